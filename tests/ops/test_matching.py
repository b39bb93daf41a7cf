"""Matching against a loop over anchors and objects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.ops import boxes, matching
from tests.ops.test_boxes import draw


def by_loop(overlaps, real, matched, unmatched, forced):
  objects, anchors = overlaps.shape
  rows = [row for row in range(objects) if real[row]]
  found, nearest = [], []
  for anchor in range(anchors):
    best, value = -1, 0.0
    for row in rows:
      if overlaps[row, anchor] > value:
        best, value = row, overlaps[row, anchor]
    nearest.append(best)
    if value >= matched:
      found.append(best)
    else:
      found.append(-2 if value >= unmatched else -1)
  for row in reversed(rows):
    highest = max(overlaps[row])
    if highest == 0:
      continue
    tied = [a for a in range(anchors) if overlaps[row, a] == highest]
    if forced == "best":
      found[tied[0]] = row
    elif forced == "ties":
      for anchor in tied:
        found[anchor] = nearest[anchor]
  return found


@pytest.mark.parametrize("forced", matching.FORCED)
@pytest.mark.parametrize("matched, unmatched", [(0.5, 0.5), (0.5, 0.4)])
def test_matches_the_loop(forced, matched, unmatched):
  rng = np.random.default_rng(2)
  function = jax.jit(matching.match, static_argnums=(2, 3, 4))
  kinds = set()
  for _ in range(30):
    # Tenths, so that there are ties and values at the thresholds.
    overlaps = rng.integers(0, 9, (5, 12)).astype(np.float32)
    overlaps *= rng.integers(0, 2, (5, 1))  # Some objects meet no anchor.
    overlaps /= np.float32(10)
    overlaps[overlaps == np.float32(0.5)] = 0.5
    real = rng.uniform(size=5) < 0.7
    actual = function(overlaps, real, matched, unmatched, forced)
    expected = by_loop(
      overlaps, real, np.float32(matched), np.float32(unmatched), forced
    )
    np.testing.assert_array_equal(actual, expected)
    kinds |= set(np.sign(expected)) | ({-2} & set(expected))
  assert {0, 1, -1} <= kinds and ((-2 in kinds) == (unmatched < matched))


def test_two_objects_may_want_one_anchor():
  overlaps = jnp.array([[0.1, 0.45, 0.0], [0.2, 0.3, 0.0]])
  real = jnp.array([True, True])
  for forced, expected in (
    ("none", [-1, -1, -1]),
    ("best", [-1, 0, -1]),  # The first of the two.
    ("ties", [-1, 0, -1]),  # The one that it overlaps more.
  ):
    found = matching.match(overlaps, real, forced=forced)
    np.testing.assert_array_equal(found, expected)
  found = matching.match(overlaps[::-1], real, forced="best")
  np.testing.assert_array_equal(found, [-1, 0, -1])
  found = matching.match(overlaps[::-1], real, forced="ties")
  np.testing.assert_array_equal(found, [-1, 1, -1])


def test_targets_of_a_batch():
  rng = np.random.default_rng(3)
  anchors = draw(rng, 200)
  given = draw(rng, 2, 4)
  labels = np.array([[7, 0, 3, -1], [-1, -1, -1, -1]])
  given[labels < 0] = 0
  given[0, 1] = anchors[5]
  function = jax.jit(jax.vmap(matching.targets, (None, 0, 0)))
  found = function(*(jnp.asarray(x) for x in (anchors, given, labels)))
  assert found.labels[0, 5] == 0 and found.objects[0, 5] == 1
  assert (found.labels[1] == matching.BACKGROUND).all()  # An empty image.
  assert jnp.isfinite(found.deltas).all()
  positive = np.asarray(found.objects[0]) >= 0
  assert 3 <= positive.sum() < 200
  np.testing.assert_array_equal(
    found.labels[0][positive], labels[0][found.objects[0][positive]]
  )
  back = boxes.decode(found.deltas[0], jnp.asarray(anchors, jnp.float32))
  np.testing.assert_allclose(
    back[positive], given[0][found.objects[0][positive]], rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(forced="all"), "forced is 'all'; it must be one of none, best, ties"),
    (dict(matched=0.3), "unmatched is 0.5 and matched 0.3"),
    (dict(unmatched=0.0), "unmatched is 0.0"),
  ],
)
def test_impossible_options_are_named(options, words):
  with pytest.raises(ValueError, match=words):
    matching.match(jnp.zeros((1, 3)), jnp.array([True]), **options)
