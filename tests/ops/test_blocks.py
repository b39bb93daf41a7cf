"""Blocks and halos against direct indexing."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from halonet.ops import blocks

# Every case compiles its own programs.
FEW = settings(max_examples=15)


@FEW
@given(
  rows=st.integers(1, 4),
  cols=st.integers(1, 4),
  block_size=st.integers(1, 5),
  halo_size=st.integers(0, 8),
)
def test_halos_are_slices_of_the_padded_map(rows, cols, block_size, halo_size):
  shape = (2, rows * block_size, cols * block_size, 3)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  windows = blocks.extract_halos(jnp.asarray(x), block_size, halo_size)
  side = block_size + 2 * halo_size
  assert windows.shape == (2, rows, cols, side, side, 3)
  padded = np.pad(x, [(0, 0), (halo_size,) * 2, (halo_size,) * 2, (0, 0)])
  for i, j in np.ndindex(rows, cols):
    y, z = i * block_size, j * block_size
    np.testing.assert_array_equal(
      windows[:, i, j], padded[:, y : y + side, z : z + side]
    )


@FEW
@given(
  height=st.integers(1, 9),
  width=st.integers(1, 9),
  block_size=st.integers(1, 6),
)
def test_pad_split_merge(height, width, block_size):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3, 2))
  x = x.astype(np.float32)
  padded = blocks.pad_to_blocks(jnp.asarray(x), block_size)
  assert padded.shape[1] % block_size == padded.shape[2] % block_size == 0
  assert padded.shape[1] - height < block_size
  assert padded.shape[2] - width < block_size
  split = blocks.split_blocks(padded, block_size)
  np.testing.assert_array_equal(
    split[:, 0, 0], padded[:, :block_size, :block_size]
  )
  merged = np.asarray(blocks.merge_blocks(split))
  np.testing.assert_array_equal(merged, padded)
  np.testing.assert_array_equal(merged[:, :height, :width], x)
  assert not merged[:, height:].any() and not merged[:, :, width:].any()
