"""Suppression and detections against loops over boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.ops import suppression
from tests.ops.test_boxes import draw, iou_of_pair


def by_loop(boxes, scores, labels, threshold, most):
  order = sorted(
    (i for i in range(len(scores)) if scores[i] > -np.inf),
    key=lambda i: (-scores[i], i),
  )
  kept = []
  for i in order:
    if all(
      labels[i] != labels[j] or iou_of_pair(boxes[i], boxes[j]) <= threshold
      for j in kept
    ):
      kept.append(i)
  return kept[:most]


@pytest.mark.parametrize("most", [3, 40])
@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_suppression_matches_the_loop(threshold, most):
  rng = np.random.default_rng(4)
  # Ten places, with four boxes that differ little at each.
  boxes = np.repeat(draw(rng, 3, 10), 4, axis=1) + rng.normal(size=(3, 40, 4))
  boxes = boxes.astype(np.float32)
  scores = rng.integers(0, 12, (3, 40)) / 8.0  # With ties.
  labels = rng.integers(0, 2, (3, 40))
  scores[0, ::5] = -np.inf
  scores[0, 7] = np.nan
  scores[2] = -np.inf
  kept, found = jax.jit(suppression.suppress, static_argnums=(3, 4))(
    *map(jnp.asarray, (boxes, scores, labels)), threshold, most
  )
  assert kept.shape == found.shape == (3, most)
  scores[0, 7] = -np.inf
  for image in range(3):
    expected = by_loop(
      boxes[image], scores[image], labels[image], threshold, most
    )
    np.testing.assert_array_equal(kept[image][found[image]], expected)
    assert found[image][: len(expected)].all()
    assert not kept[image][~found[image]].any()
    everything = (scores[image] > -np.inf).sum()
    assert image == 2 or len(expected) <= min(most, everything - 5)


def decode_one(delta, anchor, height, width):
  box = np.empty(4)
  for axis, most in ((0, height), (1, width)):
    unit = anchor[axis + 2] - anchor[axis]
    middle = (anchor[axis + 2] + anchor[axis]) / 2 + delta[axis] * unit
    half = np.exp(delta[axis + 2]) * unit / 2
    box[axis] = np.clip(middle - half, 0, most)
    box[axis + 2] = np.clip(middle + half, 0, most)
  return box


def detect_by_loop(logits, deltas, anchors, level_sizes, size, **options):
  """Returns rows of box, score and label of one image, best first."""
  pairs, start = [], 0
  for level_size in level_sizes:
    level = [
      (-logits[row, label], row, label)
      for row in range(start, start + level_size)
      for label in range(logits.shape[1])
    ]
    pairs += sorted(level)[: options["candidates"]]
    start += level_size
  scores = np.array([1 / (1 + np.exp(pair[0])) for pair in pairs])
  boxes = [decode_one(deltas[row], anchors[row], *size) for _, row, _ in pairs]
  order = np.array([-pair[0] for pair in pairs], float)
  order[scores <= options["score_threshold"]] = -np.inf
  labels = [label for _, _, label in pairs]
  kept = by_loop(boxes, order, labels, options["overlap"], options["most"])
  return [(*boxes[i], scores[i], labels[i]) for i in kept]


@pytest.mark.parametrize("candidates", [10, 500])
def test_detections_match_the_loop(candidates):
  rng = np.random.default_rng(5)
  level_sizes, classes = (40, 12, 3), 4
  number = sum(level_sizes)
  anchors = draw(rng, number)
  # Halves, so that there are ties.
  logits = rng.integers(-8, 5, (2, number, classes)) / 2.0
  logits[1] -= 100  # Nothing there.
  logits[1, 20, 2] = 30.0
  deltas = rng.normal(0, 0.3, (2, number, 4))
  sizes = np.array([[90.0, 70.0], [100.0, 100.0]])
  options = dict(
    score_threshold=0.3, candidates=candidates, overlap=0.4, most=25
  )
  with jax.enable_x64(True):
    found = jax.jit(
      lambda *x: suppression.detect(*x[:3], level_sizes, x[3], **options)
    )(*map(jnp.asarray, (logits, deltas, anchors, sizes)))
  assert found.boxes.shape == (2, 25, 4) and found.count[1] == 1
  for image in range(2):
    expected = detect_by_loop(
      logits[image],
      deltas[image],
      anchors,
      level_sizes,
      sizes[image],
      **options,
    )
    count = int(found.count[image])
    assert count == len(expected)
    actual = np.concatenate(
      [found.boxes[image], found.scores[image, :, None]], axis=-1
    )
    np.testing.assert_allclose(
      actual[:count], [row[:5] for row in expected], rtol=1e-9, atol=1e-9
    )
    assert list(found.labels[image][:count]) == [row[5] for row in expected]
    assert (
      not actual[count:].any() and (found.labels[image][count:] == -1).all()
    )
  assert found.count[0] >= 10


def test_saturated_scores_keep_their_order():
  """Scores of 40 and 50 are 1 in float32."""
  boxes = jnp.array([[0.0, 0, 9, 9], [20, 20, 29, 29]])
  detect = jax.jit(lambda *x: suppression.detect(*x[:3], (2,), x[3], most=2))
  found = detect(
    jnp.array([[[40.0], [50.0]]]),
    jnp.zeros((1, 2, 4)),
    boxes,
    jnp.array([[32.0, 32.0]]),
  )
  np.testing.assert_array_equal(found.boxes[0], boxes[::-1])
  np.testing.assert_array_equal(found.scores, [[1, 1]])


def test_levels_that_do_not_add_up_are_named():
  with pytest.raises(ValueError, match=r"\(2, 3\), which adds up to 5; there"):
    suppression.detect(
      jnp.zeros((1, 4, 2)),
      jnp.zeros((1, 4, 4)),
      jnp.zeros((4, 4)),
      (2, 3),
      jnp.ones((1, 2)),
    )
