"""Matching: which object each anchor is to find."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from halonet.ops import boxes as box_ops

BACKGROUND = -1
IGNORED = -2
FORCED = ("none", "best", "ties")


class Targets(NamedTuple):
  """What a detector is to say at each anchor of an image.

  Attributes:
    labels: class of the object, `BACKGROUND` or `IGNORED`.
    deltas: the object's box relative to the anchor; elsewhere numbers that are
      finite and mean nothing.
    objects: row of the object, `BACKGROUND` or `IGNORED`.
  """

  labels: Int[Array, " n"]
  deltas: Float[Array, "n 4"]
  objects: Int[Array, " n"]


def match(
  overlaps: Float[Array, "m n"],
  real: Bool[Array, " m"],
  matched: float = 0.5,
  unmatched: float = 0.5,
  forced: str = "best",
) -> Int[Array, " n"]:
  """Gives anchors to the objects that they overlap most.

  The defaults are those of Google's RetinaNet. torchvision's has `unmatched =
  0.4` and `forced = "ties"`.

  Args:
    overlaps: IoU of every object with every anchor.
    real: which rows are objects, and not padding.
    matched: least IoU of a match.
    unmatched: least IoU of an anchor that is no background. From here to
      `matched` anchors are ignored.
    forced: which anchors match whatever their IoU, if it is above 0.
      "best": the best anchor of each object, the first of equals, matches this
      object; if it is the best of several, the first of them. "ties": all best
      anchors of each object match the object that they themselves overlap most.
      "none": none.

  Returns:
    Row of the object, −1 for background, −2 for ignored. The first of equals
    counts. Without objects, all is background.
  """
  if forced not in FORCED:
    raise ValueError(
      f"forced is {forced!r}; it must be one of {', '.join(FORCED)}"
    )
  if not 0 < unmatched <= matched:
    raise ValueError(
      f"unmatched is {unmatched} and matched {matched}; they must be above 0,"
      " and unmatched not above matched"
    )
  overlaps = jnp.where(real[:, None], overlaps, 0)
  best = overlaps.max(axis=0)
  nearest = overlaps.argmax(axis=0).astype(jnp.int32)
  found = jnp.where(best >= unmatched, IGNORED, BACKGROUND)
  found = jnp.where(best >= matched, nearest, found)
  if forced == "ties":
    highest = overlaps.max(axis=1, keepdims=True)
    tied = ((overlaps == highest) & (highest > 0)).any(axis=0)
    found = jnp.where(tied, nearest, found)
  elif forced == "best":
    rows = jnp.arange(len(overlaps), dtype=jnp.int32)
    places = overlaps.argmax(axis=1)
    places = jnp.where(overlaps.max(axis=1) > 0, places, overlaps.shape[1])
    # The smallest row wins among several objects; places beyond are dropped.
    owners = jnp.full(overlaps.shape[1], len(overlaps), jnp.int32)
    owners = owners.at[places].min(rows, mode="drop")
    found = jnp.where(owners < len(overlaps), owners, found)
  return found.astype(jnp.int32)


def targets(
  anchors: Float[Array, "n 4"],
  boxes: Float[Array, "m 4"],
  labels: Int[Array, " m"],
  matched: float = 0.5,
  unmatched: float = 0.5,
  forced: str = "best",
) -> Targets:
  """Says what a detector is to find at each anchor of one image.

  `jax.vmap` takes it to a batch, with the same anchors for all.

  Args:
    anchors: boxes of the anchors.
    boxes: boxes of the objects, padded with zeros.
    labels: their classes, padded with −1.
    matched: see `match`, as for the others.
    unmatched: see `match`.
    forced: see `match`.
  """
  overlaps = box_ops.iou(boxes, anchors)
  objects = match(overlaps, labels >= 0, matched, unmatched, forced)
  rows = jnp.maximum(objects, 0)
  return Targets(
    jnp.where(objects >= 0, labels[rows], objects).astype(jnp.int32),
    box_ops.encode(boxes[rows], anchors),
    objects,
  )
