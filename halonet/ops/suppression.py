"""Suppression: of boxes that overlap, only those with the best scores stay."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from halonet.ops import boxes as box_ops


class Detections(NamedTuple):
  """What is found in each image of a batch, best first.

  Attributes:
    boxes: in pixels of the model's image; zeros in padding rows.
    scores: from 0 to 1; zeros in padding rows.
    labels: classes; −1 in padding rows.
    count: number of rows that are no padding.
  """

  boxes: Float[Array, "b k 4"]
  scores: Float[Array, "b k"]
  labels: Int[Array, "b k"]
  count: Int[Array, " b"]


def suppress(
  boxes: Float[Array, "b n 4"],
  scores: Float[Array, "b n"],
  labels: Int[Array, "b n"],
  threshold: float = 0.5,
  most: int = 100,
) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
  """Keeps the best boxes, none of which overlaps a better one of its class.

  This is greedy non-maximum suppression of each class, exactly: the box with
  the best score is kept, all of its class with an IoU above the threshold are
  dropped, and so on. The first of equal scores counts as the better.

  Every kept box costs a look at all candidates, so the time is that of most ·
  n overlaps, in `most` steps. Computing all n² overlaps first would cost more,
  as long as `most` is a few hundred.

  Args:
    boxes: candidates.
    scores: their scores; −∞ or NaN for padding, which is never kept.
    labels: their classes.
    threshold: largest IoU of two kept boxes of a class.
    most: number of boxes to keep of all classes together, k.

  Returns:
    Numbers of the kept candidates, best score first; and which of them there
    are. The others are 0.
  """
  alive = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
  numbers = jnp.arange(boxes.shape[1])

  def pick(alive, _):
    chosen = alive.argmax(axis=1)[:, None]
    found = jnp.take_along_axis(alive, chosen, axis=1) > -jnp.inf
    box = jnp.take_along_axis(boxes, chosen[..., None], axis=1)
    overlaps = box_ops.iou(box, boxes)[:, 0] > threshold
    same = labels == jnp.take_along_axis(labels, chosen, axis=1)
    gone = (overlaps & same) | (numbers == chosen)
    alive = jnp.where(gone, -jnp.inf, alive)
    return alive, (jnp.where(found, chosen, 0)[:, 0], found[:, 0])

  _, (chosen, found) = lax.scan(pick, alive, length=most)
  return chosen.T.astype(jnp.int32), found.T


def detect(
  class_logits: Float[Array, "b n classes"],
  box_deltas: Float[Array, "b n 4"],
  anchors: Float[Array, "n 4"],
  level_sizes: Sequence[int],
  image_sizes: Float[Array, "b 2"],
  score_threshold: float = 0.05,
  candidates: int = 1000,
  overlap: float = 0.5,
  most: int = 100,
) -> Detections:
  """Turns a one-stage detector's outputs into detections.

  Of each level the pairs of an anchor and a class with the best scores, the
  sigmoids of the logits, become candidates. Boxes are cut off at the border of
  their image, and `suppress` chooses among the candidates of all levels.

  Args:
    class_logits: for every anchor, level by level.
    box_deltas: as `boxes.encode` defines them, without weights.
    anchors: boxes of the anchors.
    level_sizes: number of anchors of each level.
    image_sizes: height and width of each image in pixels, without the padding
      of the model's input.
    score_threshold: score that a candidate must exceed.
    candidates: most candidates of each level.
    overlap: largest IoU of two detections of a class.
    most: most detections of an image; k is smaller if there are fewer
      candidates.
  """
  if sum(level_sizes) != len(anchors):
    raise ValueError(
      f"level_sizes is {tuple(level_sizes)}, which adds up to"
      f" {sum(level_sizes)}; there are {len(anchors)} anchors"
    )
  found, start = [], 0
  for size in level_sizes:
    logits = class_logits[:, start : start + size]
    logits, rows, labels = jax.vmap(_best_pairs, (0, None))(logits, candidates)
    found.append((logits, rows + start, labels))
    start += size
  logits, rows, labels = (
    jnp.concatenate(each, axis=1) for each in zip(*found, strict=True)
  )
  deltas = jnp.take_along_axis(box_deltas, rows[..., None], axis=1)
  boxes = box_ops.decode(deltas, anchors[rows])
  boxes = box_ops.clip(boxes, *jnp.moveaxis(image_sizes, -1, 0)[..., None])
  # The order is that of the logits: float32 has few scores near 1.
  scores = jax.nn.sigmoid(logits)
  order = jnp.where(scores > score_threshold, logits, -jnp.inf)
  most = min(most, order.shape[1])  # Each costs a step.
  kept, there = suppress(boxes, order, labels, overlap, most)
  return Detections(
    jnp.where(
      there[..., None], jnp.take_along_axis(boxes, kept[..., None], axis=1), 0
    ),
    jnp.where(there, jnp.take_along_axis(scores, kept, axis=1), 0),
    jnp.where(there, jnp.take_along_axis(labels, kept, axis=1), -1),
    there.sum(axis=1, dtype=jnp.int32),
  )


def _best_pairs(logits, most):
  """Returns logits, anchors and classes of the best pairs in an image's level.

  The first of equals is the better. The best pairs are of the anchors with the
  best classes, as each better anchor has a better pair. So only anchors are
  sorted, and then few pairs.
  """
  anchors, classes = logits.shape
  _, rows = lax.top_k(logits.max(axis=1), min(most, anchors))
  rows = jnp.sort(rows)  # The first of equal pairs is that of the first anchor.
  pairs = logits[rows].reshape(-1)
  best, places = lax.top_k(pairs, min(most, len(pairs)))
  rows, labels = rows[places // classes], places % classes
  return best, rows.astype(jnp.int32), labels.astype(jnp.int32)
