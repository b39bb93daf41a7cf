"""Boxes: areas, overlaps, and their places relative to anchors.

A box is top, left, bottom and right, continuous and in pixels: its width is
right − left. A padding row is a box of zeros. It overlaps nothing.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

# Largest logarithm of a side over an anchor's that `decode` believes, as in
# torchvision and Google's code: an exponential of an untrained layer's output
# must not overflow.
MOST_GROWTH = math.log(1000 / 16)
# Shortest side in pixels that `encode` sees, so that padding stays finite.
_LEAST_SIDE = 1e-6

Weights = tuple[float, float, float, float]
PLAIN: Weights = (1.0, 1.0, 1.0, 1.0)


def areas(boxes: Float[Array, "... 4"]) -> Float[Array, "..."]:
  """Returns the areas; 0 where bottom or right lies before top or left."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def iou(
  a: Float[Array, "... n 4"], b: Float[Array, "... m 4"]
) -> Float[Array, "... n m"]:
  """Returns intersection over union of all pairs; 0 where the union is empty.

  Args:
    a: boxes.
    b: boxes, with the same leading axes.
  """
  # Coordinate by coordinate: an innermost axis of two numbers would waste most
  # of a vector unit.
  top, left, bottom, right = (a[..., :, None, side] for side in range(4))
  up, near, low, far = (b[..., None, :, side] for side in range(4))
  height = jnp.maximum(jnp.minimum(bottom, low) - jnp.maximum(top, up), 0)
  width = jnp.maximum(jnp.minimum(right, far) - jnp.maximum(left, near), 0)
  both = height * width
  union = areas(a)[..., :, None] + areas(b)[..., None, :] - both
  return jnp.where(union > 0, both / jnp.where(union > 0, union, 1), 0)


def encode(
  boxes: Float[Array, "*batch n 4"],
  anchors: Float[Array, "*#batch n 4"],
  weights: Weights = PLAIN,
) -> Float[Array, "*batch n 4"]:
  """Returns boxes relative to anchors.

  `(y − y_a) / h_a, (x − x_a) / w_a, log(h / h_a), log(w / w_a)`, of centres and
  sides ("Rich feature hierarchies …", Girshick et al., CVPR 2014, appendix C).

  Args:
    boxes: boxes; padding gives numbers that are finite and mean nothing.
    anchors: an anchor for each.
    weights: factors of the four numbers. Google's RetinaNet and torchvision's
      have none; second stages usually have 10, 10, 5, 5.
  """
  centres, sides = _centres(boxes)
  origins, units = _centres(anchors)
  sides = jnp.maximum(sides, _LEAST_SIDE)
  deltas = (centres - origins) / units, jnp.log(sides / units)
  return jnp.concatenate(deltas, axis=-1) * jnp.asarray(weights, boxes.dtype)


def decode(
  deltas: Float[Array, "*batch n 4"],
  anchors: Float[Array, "*#batch n 4"],
  weights: Weights = PLAIN,
) -> Float[Array, "*batch n 4"]:
  """Undoes `encode`; sides are at most 62.5 times the anchor's."""
  deltas = deltas / jnp.asarray(weights, deltas.dtype)
  origins, units = _centres(anchors)
  centres = origins + deltas[..., :2] * units
  halves = jnp.exp(jnp.minimum(deltas[..., 2:], MOST_GROWTH)) * units / 2
  return jnp.concatenate([centres - halves, centres + halves], axis=-1)


def clip(
  boxes: Float[Array, "... 4"],
  height: float | int | Num[Array, "..."],
  width: float | int | Num[Array, "..."],
) -> Float[Array, "... 4"]:
  """Cuts boxes off at the border of an image, given in pixels."""
  size = jnp.stack([jnp.asarray(height), jnp.asarray(width)] * 2, axis=-1)
  return jnp.clip(boxes, 0, size.astype(boxes.dtype))


def _centres(boxes):
  """Returns centres and sides, rows before columns."""
  sides = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + sides / 2, sides
