"""Who sees whom, against the definition pixel by pixel."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from halonet.ops.neighbourhood import Neighbourhood


@given(
  size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
  side=st.integers(1, 4),
  stride=st.integers(1, 3),
  halo_size=st.integers(0, 6),
  mask_padding=st.booleans(),
  reach=st.none() | st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_keys_are_hidden_by_the_border_and_by_the_reach(
  size, side, stride, halo_size, mask_padding, reach
):
  layer = Neighbourhood(
    height=size[0],
    width=size[1],
    block_size=side * stride,
    halo_size=halo_size,
    stride=stride,
    mask_padding=mask_padding,
    reach=reach,
  )
  for axis, length in enumerate(size):
    pixels, offsets = layer.key_pixels(axis), layer.key_offsets()
    hidden = layer.hides(axis, pixel=pixels[:, None], offset=offsets)
    shape = (-(-length // layer.block_size), side, layer.window)
    hidden = np.broadcast_to(hidden, shape)
    for block, query, place in np.ndindex(*shape):
      start = block * layer.block_size
      key, own = start - halo_size + place, start + query * stride
      expected = mask_padding and not 0 <= key < length
      if reach is not None:
        expected |= not -reach[0] <= key - own <= reach[1]
      assert hidden[block, query, place] == expected


def test_places_may_be_traced():
  """A device that holds some rows of a map may learn which when it runs."""
  layer = Neighbourhood(height=9, width=9, block_size=4, halo_size=1)
  share = layer.key_pixels(0)[:1]
  hidden = jax.jit(lambda first: layer.hides(0, pixel=share + first))(8)
  np.testing.assert_array_equal(
    hidden, layer.hides(0, pixel=layer.key_pixels(0)[2:])
  )
  assert layer.hides(0, offset=layer.key_offsets()) is False
