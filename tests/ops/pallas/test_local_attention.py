"""The fused kernels, interpreted, against a float64 loop over pixels."""

import pytest
from hypothesis import example, given, settings

from tests.ops.test_attention import case, cases, check


@given(cases())
@example(case((1, 8, 8, 2, 4), 4, 0))  # blocks that do not overlap
@example(case((1, 3, 5, 2, 4), 8, 3))  # a block larger than the map
@example(case((1, 6, 4, 1, 4), 2, 7))  # a halo larger than block and map
@example(case((1, 17, 13, 4, 4), 8, 3, value_dim=6))  # two heads in a tile
@example(case((1, 19, 13, 2, 4), 10, 3))  # a head in a tile
@example(case((1, 16, 9, 4, 2), 8, 3, stride=2, mask_window=True))
@settings(max_examples=2)
def test_matches_the_per_pixel_loop(case):
  check(case, "pallas_tpu")


@pytest.mark.slow
@given(cases())
@example(case((1, 13, 20, 2, 4), 12, 2))  # two bands in a block
@example(case((1, 15, 14, 2, 4), 14, 2, relative_dims=(4, 4)))
@example(case((1, 33, 20, 1, 2), 32, 3))  # eight bands
@settings(max_examples=100)
def test_matches_the_per_pixel_loop_everywhere(case):
  check(case, "pallas_tpu")
