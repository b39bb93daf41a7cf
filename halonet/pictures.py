"""Pictures of where a model looks."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from halonet.errors import UsageError
from halonet.inference import Predictor


def attention_of_pixel(
  weights: np.ndarray,
  stride: int,
  map_size: int,
  position: tuple[float, float],
  halo_size: int,
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
  """Lays the weights of one query on the map.

  Args:
    weights: `[rows, columns, heads, side, side, window, window]`.
    stride: distance between queries, in pixels of the map.
    map_size: side of the map of keys.
    position: y and x of the query, as shares of the map, in 0 … 1.
    halo_size: pixels that a neighbourhood reaches beyond its block.

  Returns:
    The mean over the heads as `[map_size, map_size]`; the first row and
    column of the query's block; the row and column of the query.
  """
  block_size = weights.shape[3] * stride
  window = weights.shape[-1]
  last = (map_size - 1) // stride
  query = [min(int(share * map_size) // stride, last) for share in position]
  query = [index * stride for index in query]
  block = [pixel // block_size for pixel in query]
  inside = [(pixel % block_size) // stride for pixel in query]
  local = weights[(*block, slice(None), *inside)].mean(axis=0)
  top, left = (index * block_size - halo_size for index in block)
  canvas = np.zeros((map_size + 2 * window,) * 2)
  canvas[top + window : top + 2 * window, left + window : left + 2 * window] = (
    local
  )
  on_map = canvas[window : window + map_size, window : window + map_size]
  return on_map, (block[0] * block_size, block[1] * block_size), tuple(query)


def parse_pixel(
  text: str | None, image: Image.Image, predictor: Predictor
) -> tuple[int, int]:
  """Reads `X,Y`, a pixel of the image; the centre of what is seen if None.

  Raises:
    UsageError: if it is none, or lies outside of what the model sees.
  """
  left, top, side = predictor.seen(image)
  if text is None:
    return left + side // 2, top + side // 2
  try:
    x, y = (int(number) for number in text.split(","))
  except ValueError:
    raise UsageError(
      f"--pixel is {text!r}; write X,Y, two whole numbers"
    ) from None
  if not (left <= x < left + side and top <= y < top + side):
    raise UsageError(
      f"--pixel is {text}; the model sees x from {left} to {left + side - 1}"
      f" and y from {top} to {top + side - 1} of this image"
    )
  return x, y


def draw_attention(
  predictor: Predictor,
  image: Image.Image,
  pixel: tuple[int, int],
  path: str,
) -> None:
  """Draws where the last local attention looks from a pixel, into a file.

  Raises:
    UsageError: if there is no such layer, or the file cannot be written.
  """
  left, top, side = predictor.seen(image)
  square = image.crop((left, top, left + side, top + side))
  share = (pixel[1] - top + 0.5) / side, (pixel[0] - left + 0.5) / side

  weights, geometry = predictor.last_attention(image)
  map_size, _, block_size, halo_size, stride = map(int, geometry)
  attention, block, query = attention_of_pixel(
    weights, stride, map_size, share, halo_size
  )
  window = block_size + 2 * halo_size

  figure = Figure(figsize=(9.6, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  extent = (0, map_size, map_size, 0)
  for panel in panels:
    panel.set_axis_off()
  panels[0].imshow(square, extent=extent)
  # Nothing shines through: the colours are those of the bar.
  shown = panels[1].imshow(attention, extent=extent, cmap="magma", vmin=0)
  figure.colorbar(shown, ax=panels[1], shrink=0.8, label="mean weight")
  blue = dict(edgecolor="deepskyblue", linewidth=2.5)
  for panel in panels:
    for first, length, name, style in (
      (0, block_size, f"block ({block_size}×{block_size})", blue),
      (halo_size, window, f"window ({window}×{window})", blue | {"ls": "--"}),
    ):
      corner = block[1] - first, block[0] - first
      panel.add_patch(
        Rectangle(corner, length, length, fill=False, label=name, **style)
      )
    style = dict(edgecolor="lime", linewidth=2.5, label="query")
    panel.add_patch(Rectangle(query[::-1], 1, 1, fill=False, **style))
    margin = 0.04 * map_size + halo_size
    panel.set_xlim(-margin, map_size + margin)
    panel.set_ylim(map_size + margin, -margin)
  panels[0].set_title(f"{map_size}×{map_size} map, query {query[1]},{query[0]}")
  panels[1].set_title("where it looks, mean over heads")
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
  )
  try:
    figure.savefig(path, dpi=110)
  except OSError as error:
    raise UsageError(f"--attention {path} cannot be written: {error}") from None
