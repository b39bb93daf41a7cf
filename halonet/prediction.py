"""What a trained model says of one image, and where it looked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from halonet.data.images import published_input, square_input
from halonet.errors import UsageError, unknown
from halonet.interop.pretrained import (
  PRETRAINED,
  imagenet_classes,
  load_preprocessing,
  load_pretrained,
)
from halonet.models.network import Network
from halonet.parallel import make_mesh
from halonet.training.restore import restore_model


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A model with its weights, its classes, and what it wants images to be.

  Attributes:
    model: the module.
    variables: its weights.
    labels: names of its classes.
    prepare: makes an RGB image what the model takes, `[size, size, 3]`.
    crop: share of the image's shorter side that the model sees, around its
      centre.
  """

  model: Network
  variables: Any
  labels: list[str]
  prepare: Callable[[Image.Image], np.ndarray]
  crop: float = 1.0

  def predict(self, image: Image.Image) -> np.ndarray:
    """Returns the probability of every class, float32 `[classes]`."""
    inputs = self.prepare(image)[None]
    logits = self._apply(self.variables, inputs)
    return np.asarray(jax.nn.softmax(logits[0]))

  @functools.cached_property
  def _apply(self):
    return _on_one_device(self.model.apply)

  def seen(self, image: Image.Image) -> tuple[int, int, int]:
    """Left, top and side of the square that the model sees, in pixels."""
    side = round(min(image.size) * self.crop)
    left, top = ((length - side) // 2 for length in image.size)
    return left, top, side


def of_run(workdir: str, step: int | None = None) -> Classifier:
  """The model of a training run; errors as for `restore_model`."""
  mesh = make_mesh(jax.local_devices()[:1])  # One image at a time.
  run = restore_model(workdir, mesh, step)
  prepare = functools.partial(square_input, config=run.config.data)
  return Classifier(run.model, run.variables, run.labels, prepare)


def of_published(name: str, source: str | None = None) -> Classifier:
  """A published model of ImageNet's classes.

  Raises:
    UsageError: if there is none of that name, or the weights do not fit.
  """
  if name not in PRETRAINED:
    raise UsageError(f"--model: {unknown('published model', name, PRETRAINED)}")
  try:
    model, variables = load_pretrained(name, source)
  except ValueError as error:
    raise UsageError(f"--weights: {error}") from None
  expected = load_preprocessing(name, source)
  prepare = functools.partial(published_input, **dataclasses.asdict(expected))
  crop = expected.image_size / int(expected.image_size / expected.crop)
  return Classifier(model, variables, imagenet_classes(), prepare, crop)


def last_attention(
  classifier: Classifier, image: np.ndarray
) -> tuple[np.ndarray, int, int]:
  """Runs an image and returns what the last local attention layer does.

  Returns:
    The layer's weights, `[rows, columns, heads, side, side, window, window]`
    as `blocked_local_attention_weights` documents them; the distance between
    its queries in pixels of its map; and the side of that square map.

  Raises:
    UsageError: if the model has no attention in blocks.
  """
  spec = classifier.model.spec
  layers = [
    (number, block)
    for number, stage in enumerate(spec.stages, start=1)
    for block in stage
    if block.operator == "h"
  ]
  if not layers:
    raise UsageError(
      "--attention: the model has no attention in blocks, whose picture it is"
    )
  number, block = layers[-1]
  features, mutated = _on_one_device(
    lambda variables, images: classifier.model.apply(
      variables, images, method="features", mutable=["attention"]
    )
  )(classifier.variables, image[None])
  (weights,) = mutated["attention"][block.name]["attention"]["weights"]
  # A strided layer reads the map of the stage before.
  keys = -(-image.shape[0] // spec.stem_stride)
  if number > 1 or block.stride == 1:
    before = number if block.stride == 1 else number - 1
    keys = features[f"stage{before}"].shape[1]
  return np.asarray(weights[0]), spec.block_size // weights.shape[4], keys


def _on_one_device(function):
  """Compiles a function, and says to its attention that no device shares it."""
  mesh = make_mesh(jax.local_devices()[:1])

  def call(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*arguments)

  return jax.jit(call)


def attention_of_pixel(
  weights: np.ndarray,
  stride: int,
  map_size: int,
  position: tuple[float, float],
  halo_size: int,
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
  """Picks the weights of one query and lays them on the map.

  Args:
    weights: `[rows, columns, heads, side, side, window, window]`.
    stride: of the layer.
    map_size: side of the map of keys.
    position: y and x of the query, as shares of the map, in 0 … 1.
    halo_size: of the layer.

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
  text: str | None, image: Image.Image, classifier: Classifier
) -> tuple[int, int]:
  """Reads `X,Y`, a pixel of the image; its centre if None.

  Raises:
    UsageError: if it is none, or lies outside of what the model sees.
  """
  width, height = image.size
  if text is None:
    return width // 2, height // 2
  try:
    x, y = (int(number) for number in text.split(","))
  except ValueError:
    raise UsageError(
      f"--pixel is {text}; write X,Y, two whole numbers"
    ) from None
  left, top, side = classifier.seen(image)
  if not (left <= x < left + side and top <= y < top + side):
    raise UsageError(
      f"--pixel is {text}; the model sees x from {left} to {left + side - 1}"
      f" and y from {top} to {top + side - 1} of this image"
    )
  return x, y


def draw_attention(
  classifier: Classifier,
  image: Image.Image,
  pixel: tuple[int, int],
  path: str,
) -> None:
  """Draws where the last local attention looks from a pixel, into a file.

  Raises:
    UsageError: if there is no such layer, or the file cannot be written.
  """
  left, top, side = classifier.seen(image)
  square = image.crop((left, top, left + side, top + side))
  # Of the middle of the pixel.
  share = (pixel[1] - top + 0.5) / side, (pixel[0] - left + 0.5) / side

  weights, stride, map_size = last_attention(
    classifier, classifier.prepare(image)
  )
  halo_size = classifier.model.spec.halo_size
  attention, block, query = attention_of_pixel(
    weights, stride, map_size, share, halo_size
  )
  block_size = weights.shape[3] * stride
  window = block_size + 2 * halo_size

  figure = Figure(figsize=(9.6, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  extent = (0, map_size, map_size, 0)
  for panel in panels:
    panel.imshow(square, extent=extent)
    panel.set_axis_off()
  shown = panels[1].imshow(
    attention, extent=extent, cmap="magma", alpha=0.8, vmin=0
  )
  figure.colorbar(shown, ax=panels[1], shrink=0.8, label="mean weight")
  for panel in panels:
    for corner, length, style, name in (
      ((block[1], block[0]), block_size, "-", "block"),
      ((block[1] - halo_size, block[0] - halo_size), window, "--", "halo"),
    ):
      panel.add_patch(
        Rectangle(
          corner,
          length,
          length,
          fill=False,
          edgecolor="deepskyblue",
          linewidth=2.5,
          linestyle=style,
          label=f"{name} ({length}×{length})",
        )
      )
    panel.add_patch(
      Rectangle(
        (query[1], query[0]),
        1,
        1,
        fill=False,
        edgecolor="lime",
        linewidth=2.5,
        label="query",
      )
    )
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
