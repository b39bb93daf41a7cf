"""What all operators share: relative tables of another size."""

import numpy as np
import pytest

from halonet.layers.base import resize_table
from halonet.layers.halo import Halo


def resize(table, offsets):
  """Interpolates by NumPy's own function, a column at a time."""
  old, new = len(table) // 2, offsets // 2
  places = [o * old / new if new else 0.0 for o in range(-new, new + 1)]
  columns = [np.interp(places, np.arange(-old, old + 1), c) for c in table.T]
  return np.stack(columns, axis=1)


@pytest.mark.parametrize("old", [1, 3, 13, 19, 21])
@pytest.mark.parametrize("new", [1, 3, 9, 13, 27, 33])
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


@pytest.mark.parametrize("block_size, halo_size", [(12, 2), (16, 1)])
def test_fine_tuning_stretches_tables_to_the_new_window(block_size, halo_size):
  """From block 8, halo 2 to those of table 6."""
  before = Halo(block_size=8, halo_size=2)
  after = Halo(block_size=block_size, halo_size=halo_size)
  farthest = block_size + halo_size - 1
  table = np.stack([np.arange(-9, 10), np.arange(-9, 10) ** 2], axis=1)
  table = table.astype(np.float32)
  shape = 2 * farthest + 1, 2
  resized = after.adapt("relative_height", table, shape, before)
  # The farthest offsets, 9 and now 13 or 16, have one embedding.
  places = np.arange(-farthest, farthest + 1) * 9 / farthest
  np.testing.assert_allclose(resized[:, 0], places, atol=1e-5)
  low = np.floor(places)
  between = low**2 + (places - low) * (2 * low + 1)
  np.testing.assert_allclose(resized[:, 1], between, atol=1e-4)
