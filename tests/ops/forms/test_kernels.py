"""The fused kernels, interpreted, against a float64 loop over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from halonet.ops.attention import blocked_local_attention
from halonet.ops.forms.form import Place
from halonet.ops.forms.tpu import pallas_tpu
from halonet.ops.forms.tpu.fused import fused_attention
from halonet.ops.forms.tpu.tiling import Tiling
from halonet.ops.neighbourhood import Neighbourhood
from halonet.ops.positions import Tables
from tests.ops import reference
from tests.ops.test_attention import (
  arrays,
  case,
  cases,
  check,
  compiled,
  relative_error,
)

SLOW = pytest.mark.slow
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
  "case, strips, panels",
  [
    # The last row of blocks is beyond the map.
    (case((1, 9, 5, 1, 4), 4, 3, mask_padding=False), 2, 1),
    (case((2, 9, 9, 1, 4), 4, 3), 2, 2),  # and the last column
    pytest.param(case((1, 12, 7, 2, 4), 4, 2, stride=2), 3, 1, marks=SLOW),
    (case((1, 5, 4, 2, 4), 2, 0), 3, 1),
    pytest.param(  # a halo beyond strip and map
      case((1, 6, 4, 1, 4), 2, 7, mask_window=True), 3, 1, marks=SLOW
    ),
    # a halo beyond all panels
    pytest.param(case((1, 4, 4, 1, 4), 2, 5), 1, 2, marks=SLOW),
    pytest.param(case((2, 9, 12, 2, 4), 4, 2, stride=2), 1, 3, marks=SLOW),
    # Two groups: heads of 64 channels.
    pytest.param(case((1, 9, 9, 4, 64), 4, 3, value_dim=128), 3, 1, marks=SLOW),
    pytest.param(case((1, 6, 6, 4, 64), 4, 1, stride=2), 2, 2, marks=SLOW),
  ],
)
def test_strips_and_panels_change_nothing(case, strips, panels):
  check_cut(case, strips, panels, wide=strips == panels == 2)


@pytest.mark.slow
@given(case=cases(), data=st.data())
@settings(max_examples=20)
def test_any_strips_and_panels_change_nothing(case, data):
  _, height, width, *_ = case["shape"]
  size = case["block_size"]
  assume(size % case["stride"] == 0)  # Others get blocks that do, before.
  strips, panels = (
    data.draw(st.integers(1, min(3, -(-side // size))))
    for side in (height, width)
  )
  check_cut(case, strips, panels, wide=data.draw(st.booleans()))


def check_cut(case, strips, panels, wide):
  """Compares kernels that cut a map so with the loop."""
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
    panels=panels,
    wide=wide,
  )

  def attention(query, key, value, *tables):
    return fused_attention(
      query,
      key,
      value,
      Tables(*tables, -layer.farthest),
      tiling,
      split=lambda kernel, maps: kernel,
      vmem_limit=None,
      interpret=True,
    )

  check(case, "pallas_tpu", attention, jit=compiled)


def test_v3_computes_in_float32_for_a_part_of_the_heads(monkeypatch):
  """Tables and maps are bfloat16, and so are gradients."""
  place = Place(jax.sharding.get_abstract_mesh(), "cpu", "TPU v3", 1)
  layer = Neighbourhood(height=5, width=4, block_size=4, halo_size=1)
  monkeypatch.setattr(Place, "current", lambda: place)
  monkeypatch.setattr(pallas_tpu, "fit", lambda *arguments: one_head)
  one_head = Tiling(layer=layer, heads=1, head_dim=4, value_dim=4)
  inputs, weight, options = arrays(case((1, 5, 4, 2, 4), 4, 1))
  exact = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in inputs]

  def loss(*inputs):
    output = blocked_local_attention(
      *inputs, **options, implementation="pallas_tpu"
    )
    assert output.dtype == jnp.bfloat16
    return (output.astype(jnp.float32) * weight).sum()

  gradients = jax.grad(loss, argnums=range(5))(
    *(jnp.asarray(x, jnp.bfloat16) for x in exact)
  )
  expected = reference.blocked_local_attention(
    *exact, **options, output_gradient=weight
  )
  for ours, wanted in zip(gradients, expected, strict=True):
    assert ours.dtype == jnp.bfloat16
    # Only inputs and results are rounded, to 8 bits.
    assert relative_error(ours, wanted) <= 2**-7
