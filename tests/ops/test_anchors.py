"""Anchors against a loop over pixels."""

import numpy as np
import pytest

from halonet.ops import anchors as anchor_ops


@pytest.mark.parametrize("centre", [0.5, 0.0])
def test_anchors_are_as_defined(centre):
  ratios = (0.5, 1.0, 3.0)
  found = anchor_ops.anchors(
    70, 41, (3, 4, 6), scales=2, ratios=ratios, size=3.0, centre=centre
  )
  assert [each.shape for each in found.values()] == [
    (9, 6, 6, 4),
    (5, 3, 6, 4),
    (2, 1, 6, 4),
  ]
  expected = []
  for level in (3, 4, 6):
    stride = 2**level
    for top in range(0, 70, stride):
      for left in range(0, 41, stride):
        for scale in (1, 2**0.5):
          for ratio in ratios:
            area = (3.0 * stride * scale) ** 2
            height = (area / ratio) ** 0.5
            width = area / height
            y, x = top + centre * stride, left + centre * stride
            expected.append(
              [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
            )
  flat = anchor_ops.flatten(found)
  assert flat.dtype == np.float32
  np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-4)


def test_sides_at_640_are_googles():
  found = anchor_ops.anchors(640, 640, range(3, 8))
  assert sum(each[..., 0].size for each in found.values()) == 51_150
  first = np.asarray(found[3][0, 0])
  np.testing.assert_allclose(first[1], [-12, -12, 20, 20], atol=1e-5)
  last = np.asarray(found[7][-1, -1, -2])
  side = 512 * 2**0.5
  np.testing.assert_allclose(last[2:] - last[:2], [side, side], rtol=1e-6)


def test_impossible_sizes_are_named():
  with pytest.raises(ValueError, match="height is 0; it must be"):
    anchor_ops.anchors(0, 8, (3,))
