"""What every form of the attention has to do alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from halonet.ops.attention import blocked_local_attention
from halonet.ops.forms import chunked
from halonet.ops.neighbourhood import Neighbourhood
from halonet.parallel import batch_sharding, make_mesh, replicated
from tests.ops import reference
from tests.ops.test_attention import (
  arrays,
  case,
  cases,
  check,
  compiled,
  relative_error,
  value_and_gradients,
)

BLOCKED = ["xla", "xla_chunked", "xla_packed", "pallas_tpu", "pallas_gpu"]


@pytest.mark.parametrize("form", ["xla_chunked", "xla_packed"])
@given(case=cases())
@example(case=case((1, 8, 8, 2, 4), 4, 0))  # blocks that do not overlap
@example(case=case((3, 3, 5, 2, 4), 8, 3))  # a block larger than the map
@example(case=case((4, 6, 4, 1, 4), 2, 7))  # a halo larger than block and map
@example(case=case((1, 9, 7, 4, 16), 8, 3, stride=2, mask_padding=False))
@example(case=case((1, 9, 17, 8, 16), 8, 3, value_dim=16))
@example(
  case=case(
    (2, 9, 7, 2, 4), 8, 1, stride=2, mask_window=True, relative_dims=(4, 4)
  )
)
@settings(max_examples=3)
def test_matches_the_per_pixel_loop(form, case):
  check(case, form)


@pytest.mark.parametrize("stride, parts", [(1, 3), (2, 1)])
def test_a_batch_may_be_computed_in_parts(monkeypatch, stride, parts):
  # Blocks of 4×4 complete the map to 8×4; strides leave out queries.
  monkeypatch.setattr(chunked, "LOGITS", 3 * 8 * 4 * 2 * 6**2)
  maps = np.zeros((9, 5, 4, 2, 4))
  layer = Neighbourhood(
    height=5, width=4, block_size=4, halo_size=1, stride=stride
  )
  (split,) = chunked._chunks(layer, maps)
  assert split.shape[:2] == (parts, 9 // parts)
  check(case((9, 5, 4, 2, 4), 4, 1, stride=stride), "xla_chunked")


@pytest.mark.parametrize("form", BLOCKED)
def test_queries_may_be_counted_apart_from_their_pixels(form):
  inputs, output_gradient, options = arrays(
    case((1, 5, 4, 2, 4), 4, 2, stride=2)
  )
  options["relative_stride"] = 1
  attention = functools.partial(
    blocked_local_attention, **options, implementation=form
  )
  output, gradients = value_and_gradients(
    attention, inputs, output_gradient, jit=compiled
  )
  expected = [
    reference.blocked_local_attention(*inputs, **options),
    *reference.blocked_local_attention(
      *inputs, **options, output_gradient=output_gradient
    ),
  ]
  for actual, wanted in zip((output, *gradients), expected, strict=True):
    assert relative_error(actual, wanted) <= 1e-5


@pytest.mark.parametrize("form", ["xla", "xla_packed"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_bfloat16_is_within_its_precision(form, mask_padding):
  inputs, _, options = arrays(
    case((2, 13, 10, 2, 16), 4, 2, stride=2, mask_padding=mask_padding)
  )
  inputs[0] = inputs[0] * 16**-0.5
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
  output = blocked_local_attention(*rounded, **options, implementation=form)
  assert output.dtype == jnp.bfloat16
  expected = reference.blocked_local_attention(
    *(np.asarray(x, np.float64) for x in rounded), **options
  )
  # Inputs are exact. Relative logits, weights and output are each rounded to 8
  # bits (2⁻⁹ each), and a logit of size 4 turns its rounding into 4 · 2⁻⁹.
  assert relative_error(output, expected) <= 8 * 2**-9


@pytest.mark.parametrize("form", ["xla", "xla_packed"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masks_are_finite_in_every_dtype(form, dtype):
  inputs, _, options = arrays(case((1, 5, 3, 1, 4), 8, 2, mask_window=True))
  inputs = [jnp.asarray(x, dtype) for x in inputs]
  gradients = jax.grad(
    lambda *x: (
      blocked_local_attention(*x, **options, implementation=form)
      .astype("float32")
      .sum()
    ),
    argnums=range(5),
  )(*inputs)
  assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("form", ["pallas_tpu", "pallas_gpu", "xla_chunked"])
def test_bfloat16_is_no_worse_than_xla(form):
  _, _, options = arrays(case((1, 9, 6, 2, 16), 4, 2))
  programs = {
    name: compiled(
      functools.partial(
        value_and_gradients,
        functools.partial(
          blocked_local_attention, **options, implementation=name
        ),
        jit=lambda run: run,
      )
    )
    for name in ("xla", form)
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
    for name, run in programs.items():
      output, gradients = run(rounded[:-1], rounded[-1])
      results = output, *gradients
      assert {x.dtype for x in results} == {jnp.dtype("bfloat16")}
      errors[name] += np.array(
        [
          np.mean((np.asarray(x, np.float64) - y) ** 2)
          for x, y in zip(results, expected, strict=True)
        ]
      )
  assert (errors[form] > 0).all()
  assert (np.sqrt(errors[form] / errors["xla"]) <= 1.05).all()


@pytest.mark.parametrize("form", BLOCKED[1:])
def test_devices_share_a_batch(form):
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
    name: compiled(
      jax.grad(functools.partial(loss, name), argnums=range(5)),
      in_shardings=(rows,) * 3 + (replicated(mesh),) * 2,
    )
    .lower(*maps, *tables)
    .compile()
    for name in ("xla", form)
  }
  if form.startswith("pallas"):
    # Each device computes its share; only the tables' gradients are summed.
    assert "all-gather" not in results[form].as_text()
  outputs = {
    name: run(
      *(jax.device_put(x, rows) for x in maps),
      *(jax.device_put(x, replicated(mesh)) for x in tables),
    )
    for name, run in results.items()
  }
  for ours, theirs in zip(outputs[form], outputs["xla"], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
