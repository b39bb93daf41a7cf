"""The fused kernels, interpreted, against a float64 loop over pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from halonet.ops.attention import blocked_local_attention
from halonet.ops.pallas.geometry import Geometry
from halonet.ops.pallas.local_attention import local_attention
from halonet.parallel import batch_sharding, make_mesh, replicated
from tests.ops import reference
from tests.ops.test_attention import (
  arrays,
  case,
  cases,
  check,
  relative_error,
  value_and_gradients,
)

# The interpreter's programs are long, and run once: few seconds to compile.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


KERNELS = pytest.mark.parametrize("kernels", ["pallas_tpu", "pallas_gpu"])


def check_kernels(case, attention=None, kernels="pallas_tpu"):
  check(case, kernels, attention, jit=compiled)


@KERNELS
@given(case=cases())
@example(case=case((1, 9, 6, 2, 4), 8, 3, value_dim=6))  # two heads in a tile
@example(case=case((1, 9, 6, 2, 2), 8, 3, stride=2, mask_window=True))
@example(case=case((1, 4, 6, 1, 4), 2, 7))  # a halo beyond block and map
@settings(max_examples=1)
def test_matches_the_per_pixel_loop(kernels, case):
  check_kernels(case, kernels=kernels)


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
  check_kernels(case, kernels=kernels)


def in_strips(case, strips):
  _, _, options = arrays(case)
  _, height, width, heads, head_dim = case["shape"]
  far = case["halo_size"]
  options["reach"] = (far, far) if options.pop("mask_window") else None
  geometry = Geometry(
    height=height,
    width=width,
    heads=heads,
    head_dim=head_dim,
    value_dim=case["value_dim"],
    relative_stride=case["stride"],
    strips=strips,
    **options,
  )
  return functools.partial(
    local_attention, geometry, lambda x: x, vmem_limit=None, interpret=True
  )


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
  check_kernels(case, in_strips(case, strips))


@KERNELS
def test_offsets_of_strided_queries_may_be_counted_otherwise(kernels):
  inputs, _, options = arrays(case((1, 5, 4, 2, 4), 4, 2, stride=2))
  options["relative_stride"] = 1
  output = blocked_local_attention(*inputs, **options, implementation=kernels)
  expected = reference.blocked_local_attention(*inputs, **options)
  assert relative_error(output, expected) <= 1e-5


@pytest.mark.parametrize("kernels", ["pallas_tpu", "pallas_gpu", "xla_chunked"])
def test_bfloat16_is_no_worse_than_xla(kernels):
  _, _, options = arrays(case((1, 9, 6, 2, 16), 4, 2))
  programs = {
    implementation: compiled(
      functools.partial(
        value_and_gradients,
        functools.partial(
          blocked_local_attention, **options, implementation=implementation
        ),
        jit=lambda run: run,
      )
    )
    for implementation in ("xla", kernels)
  }
  errors = dict.fromkeys(programs, 0)
  for seed in range(4):  # The tables have few entries: one would be chance.
    inputs, gradient, _ = arrays(case((1, 9, 6, 2, 16), 4, 2, seed=seed))
    inputs[0] = inputs[0] * 16**-0.5
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (*inputs, gradient)]
    *exact, exact_gradient = (np.asarray(x, np.float64) for x in rounded)
    expected = [
      reference.blocked_local_attention(*exact, **options),
      *reference.blocked_local_attention(
        *exact, **options, output_gradient=exact_gradient
      ),
    ]
    for implementation, run in programs.items():
      output, gradients = run(rounded[:-1], rounded[-1])
      results = output, *gradients
      assert {x.dtype for x in results} == {jnp.dtype("bfloat16")}
      errors[implementation] += np.array(
        [
          np.mean((np.asarray(x, np.float64) - y) ** 2)
          for x, y in zip(results, expected, strict=True)
        ]
      )
  assert (errors[kernels] > 0).all()
  assert (np.sqrt(errors[kernels] / errors["xla"]) <= 1.05).all()


@KERNELS
def test_devices_share_a_batch(kernels):
  rng = np.random.default_rng(0)
  maps = [rng.normal(size=(8, 3, 4, 1, 4)).astype("float32") for _ in "qkv"]
  tables = [rng.normal(size=(5, 2)).astype("float32") for _ in "hw"]
  mesh = make_mesh()
  assert mesh.size == 8

  def loss(implementation, *inputs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      output = blocked_local_attention(
        *inputs, block_size=2, halo_size=1, implementation=implementation
      )
    return (output**2).mean()

  rows = batch_sharding(mesh)
  results = {
    implementation: compiled(
      jax.grad(functools.partial(loss, implementation), argnums=range(5)),
      in_shardings=(rows,) * 3 + (replicated(mesh),) * 2,
    )
    .lower(*maps, *tables)
    .compile()
    for implementation in ("xla", kernels)
  }
  # Each device its own part; only the tables' gradients are summed.
  assert "all-gather" not in results[kernels].as_text()
  outputs = {
    name: run(
      *(jax.device_put(x, rows) for x in maps),
      *(jax.device_put(x, replicated(mesh)) for x in tables),
    )
    for name, run in results.items()
  }
  for ours, theirs in zip(outputs[kernels], outputs["xla"], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
