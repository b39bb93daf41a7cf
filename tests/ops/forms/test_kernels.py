"""The fused kernels, interpreted, against a float64 loop over pixels."""

import pytest
from hypothesis import example, given, settings

from halonet.ops.forms.tpu.fused import fused_attention
from halonet.ops.forms.tpu.tiling import Tiling
from halonet.ops.neighbourhood import Neighbourhood
from halonet.ops.positions import Tables
from tests.ops.test_attention import arrays, case, cases, check, compiled

KERNELS = pytest.mark.parametrize("kernels", ["pallas_tpu", "pallas_gpu"])


@KERNELS
@given(case=cases())
@example(case=case((1, 9, 6, 2, 4), 8, 3, value_dim=6))  # two heads in a tile
@example(case=case((1, 9, 6, 2, 2), 8, 3, stride=2, mask_window=True))
@example(case=case((1, 4, 6, 1, 4), 2, 7))  # a halo beyond block and map
@settings(max_examples=1)
def test_matches_the_per_pixel_loop(kernels, case):
  check(case, kernels, jit=compiled)


@pytest.mark.slow
@KERNELS
@given(case=cases())
@example(case=case((1, 8, 8, 2, 4), 4, 0))  # blocks that do not overlap
@example(case=case((1, 3, 5, 2, 4), 8, 3))  # a block larger than the map
@example(case=case((1, 19, 13, 2, 4), 10, 3))  # one head in a tile
@example(case=case((1, 13, 20, 2, 4), 12, 2))  # two bands in a block
@example(case=case((1, 15, 14, 2, 4), 14, 2, relative_dims=(4, 4)))
@example(case=case((1, 17, 10, 8, 2), 8, 4, value_dim=8))
@example(case=case((1, 9, 7, 1, 4), 3, 1, stride=2))  # stride does not divide
@example(case=case((1, 33, 20, 1, 2), 32, 3))  # eight bands
@settings(max_examples=100)
def test_matches_the_per_pixel_loop_everywhere(kernels, case):
  check(case, kernels, jit=compiled)


@pytest.mark.parametrize(
  "case, strips",
  [
    # The last row of blocks is beyond the map.
    (case((1, 9, 5, 1, 4), 4, 3, mask_padding=False), 2),
    pytest.param(
      case((1, 12, 7, 2, 4), 4, 2, stride=2), 3, marks=pytest.mark.slow
    ),
    pytest.param(
      case((1, 6, 4, 1, 4), 2, 7, mask_window=True), 3, marks=pytest.mark.slow
    ),
  ],
)
def test_strips_change_nothing(case, strips):
  _, _, options = arrays(case)
  _, height, width, heads, head_dim = case["shape"]
  halo = case["halo_size"]
  layer = Neighbourhood(
    height=height,
    width=width,
    relative_stride=case["stride"],
    reach=(halo, halo) if options.pop("mask_window") else None,
    **options,
  )
  tiling = Tiling(
    layer=layer,
    heads=heads,
    head_dim=head_dim,
    value_dim=case["value_dim"],
    strips=strips,
  )

  def attention(query, key, value, *tables):
    return fused_attention(
      query,
      key,
      value,
      Tables(*tables, -layer.farthest),
      tiling,
      split=lambda kernel: kernel,
      vmem_limit=None,
      interpret=True,
    )

  check(case, "pallas_tpu", attention, jit=compiled)
