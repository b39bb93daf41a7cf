"""Anchors: the boxes that a one-stage detector starts from."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from halonet.ops.arguments import check_count

RATIOS = (0.5, 1.0, 2.0)


def anchors(
  height: int,
  width: int,
  levels: Sequence[int],
  scales: int = 2,
  ratios: Sequence[float] = RATIOS,
  size: float = 4.0,
  centre: float = 0.5,
) -> dict[int, Float[Array, "h w a 4"]]:
  """Returns the anchors of every level of a pyramid.

  A pixel of level l is 2^l pixels of the image wide. Around it lie anchors with
  the areas `(size · 2^l · 2^(s / scales))²` for s = 0 … scales − 1, each with
  all ratios; the last axis but one has the ratios of the first scale, then
  those of the next.

  Args:
    height: rows of the image; a level has ⌈height / 2^l⌉.
    width: columns of the image.
    levels: numbers of the levels.
    scales: sizes in an octave.
    ratios: widths over heights.
    size: side of a square anchor of the first scale, in pixels of its level.
    centre: place of an anchor in its pixel, as a share of it. Google's lie in
      the middle. torchvision's lie at the upper left corner (0.0), and are
      rounded to even sides, which are not offered here.

  Returns:
    Boxes `[⌈height / 2^l⌉, ⌈width / 2^l⌉, scales · len(ratios), 4]` in pixels
    of the image, float32, by level. Some reach beyond the image.
  """
  check_count("height", height)
  check_count("width", width)
  check_count("scales", scales)
  sides = np.stack([np.sqrt(ratios) ** -1, np.sqrt(ratios)], axis=-1)
  octave = 2 ** (np.arange(scales) / scales)
  sides = (octave[:, None, None] * sides).reshape(-1, 2)
  found = {}
  for level in levels:
    stride = 2**level
    rows, cols = (
      (np.arange(-(-length // stride)) + centre) * stride
      for length in (height, width)
    )
    centres = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1)
    halves = size * stride * sides / 2
    boxes = np.concatenate(
      [centres[:, :, None] - halves, centres[:, :, None] + halves], axis=-1
    )
    found[level] = jnp.asarray(boxes, jnp.float32)
  return found


def flatten(
  maps: dict[int, Float[Array, "h w a c"]],
) -> Float[Array, "n c"]:
  """Puts levels one after the other: row, column, anchor within each."""
  return jnp.concatenate(
    [each.reshape(-1, each.shape[-1]) for each in maps.values()]
  )
