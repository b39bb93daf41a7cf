"""What all operators share: relative tables of another size."""

import numpy as np
import pytest

from halonet.layers.base import resize_table


def resize(table, offsets):
  """By NumPy's own interpolation, a column at a time."""
  old, new = len(table) // 2, offsets // 2
  places = [o * old / new if new else 0.0 for o in range(-new, new + 1)]
  columns = [np.interp(places, np.arange(-old, old + 1), c) for c in table.T]
  return np.stack(columns, axis=1)


@pytest.mark.parametrize("old", [1, 3, 13, 21])
@pytest.mark.parametrize("new", [1, 3, 9, 13, 27])
def test_tables_are_interpolated_about_offset_zero(old, new):
  table = np.random.default_rng(0).normal(size=(old, 3)).astype(np.float32)
  resized = resize_table(table, new)
  assert resized.shape == (new, 3) and resized.dtype == np.float32
  np.testing.assert_allclose(resized, resize(table, new), atol=1e-6)
  np.testing.assert_array_equal(resized[new // 2], table[old // 2])
  mirrored = resize_table(table[::-1], new)
  np.testing.assert_array_equal(mirrored, resized[::-1])
  if old == new:
    np.testing.assert_array_equal(resized, table)
  if new > 1:
    np.testing.assert_array_equal(resized[[0, -1]], table[[0, -1]])
