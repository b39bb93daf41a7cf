"""Boxes against loops over single pairs, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.ops import boxes


def draw(rng, *shape, side=100):
  """Returns boxes within a square, of at least a pixel."""
  top_left = rng.uniform(0, side - 1, (*shape, 2))
  sides = rng.uniform(1, side - top_left)
  return np.concatenate([top_left, top_left + sides], axis=-1)


def iou_of_pair(a, b):
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  both = height * width if min(height, width) > 0 else 0.0
  union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both
  return both / union if union else 0.0


def test_iou_matches_the_loop():
  rng = np.random.default_rng(0)
  a, b = draw(rng, 2, 7), draw(rng, 2, 5)
  a[0, 0] = b[0, 0]  # The same box,
  a[1, 1] = [50, 10, 50, 90]  # an empty one,
  a[1, 2] = b[1, 2] = 0  # and padding twice.
  expected = [
    [[iou_of_pair(x, y) for y in second] for x in first]
    for first, second in zip(a, b, strict=True)
  ]
  with jax.enable_x64(True):
    actual = np.asarray(boxes.iou(jnp.asarray(a), jnp.asarray(b)))
  np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)
  assert actual[0, 0, 0] == 1 and not actual[1, 1:3].any()


def test_areas():
  given = jnp.array([[1.0, 2, 4, 8], [0, 0, 0, 0], [3, 3, 1, 1], [3, 1, 1, 9]])
  np.testing.assert_array_equal(boxes.areas(given), [18, 0, 0, 0])


@pytest.mark.parametrize("weights", [boxes.PLAIN, (10.0, 10.0, 5.0, 5.0)])
def test_deltas_are_as_defined_and_undone(weights):
  rng = np.random.default_rng(1)
  given, anchors = draw(rng, 3, 6), draw(rng, 6)
  expected = np.empty_like(given)
  for place in np.ndindex(3, 6):
    box, anchor = given[place], anchors[place[1]]
    for axis in (0, 1):
      side, unit = (x[axis + 2] - x[axis] for x in (box, anchor))
      middle, origin = ((x[axis + 2] + x[axis]) / 2 for x in (box, anchor))
      expected[place][axis] = weights[axis] * (middle - origin) / unit
      expected[place][axis + 2] = weights[axis + 2] * math.log(side / unit)
  with jax.enable_x64(True):
    deltas = boxes.encode(jnp.asarray(given), jnp.asarray(anchors), weights)
    back = boxes.decode(deltas, jnp.asarray(anchors), weights)
  np.testing.assert_allclose(deltas, expected, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(back, given, rtol=1e-12, atol=1e-12)


def test_padding_and_wild_outputs_stay_finite():
  anchors = jnp.array([[0.0, 0, 32, 32]])
  assert jnp.isfinite(boxes.encode(jnp.zeros((1, 4)), anchors)).all()
  wild = boxes.decode(jnp.array([[0.0, 0, 1e30, 200]]), anchors)
  np.testing.assert_allclose(wild, [[-984, -984, 1016, 1016]], rtol=1e-5)


def test_boxes_are_cut_off_at_the_border_of_their_image():
  given = jnp.tile(jnp.array([-3.0, 5, 90, 70]), (2, 1, 1))
  clipped = boxes.clip(given, jnp.array([[80], [100]]), jnp.array([[60], [80]]))
  np.testing.assert_array_equal(clipped, [[[0, 5, 80, 60]], [[0, 5, 90, 70]]])
  np.testing.assert_array_equal(boxes.clip(given[0], 80, 60), [[0, 5, 80, 60]])
