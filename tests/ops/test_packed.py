"""The TPU's form of local attention, against the loop over pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings

from halonet.ops.attention import blocked_local_attention
from tests.ops import reference
from tests.ops.test_attention import (
  arrays,
  case,
  cases,
  check,
  relative_error,
)

packed_attention = functools.partial(
  blocked_local_attention, implementation="xla_packed"
)


@given(cases())
@example(case((1, 8, 8, 2, 4), 4, 0))  # blocks that do not overlap
@example(case((1, 3, 5, 2, 4), 8, 3))  # a block larger than the map; columns
@example(case((1, 6, 4, 1, 4), 2, 7))  # a halo larger than block and map
@example(case((1, 9, 7, 4, 16), 8, 3, stride=2, mask_padding=False))
@example(case((1, 9, 17, 8, 16), 8, 3, value_dim=16))  # two groups of heads
@example(case((1, 9, 7, 2, 4), 8, 1, mask_window=True, mask_padding=False))
@settings(max_examples=3)
def test_matches_the_per_pixel_loop(case):
  check(case, "xla_packed")


def test_queries_may_be_counted_apart_from_their_pixels():
  inputs, _, options = arrays(case((1, 9, 7, 2, 4), 4, 2, stride=2))
  options["relative_stride"] = 1
  expected = reference.blocked_local_attention(*inputs, **options)
  assert relative_error(packed_attention(*inputs, **options), expected) <= 1e-5


def test_bfloat16_is_within_its_precision():
  inputs, _, options = arrays(case((2, 13, 10, 2, 16), 4, 2, stride=2))
  inputs[0] = inputs[0] * 16**-0.5
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
  output = packed_attention(*rounded, **options)
  assert output.dtype == jnp.bfloat16
  expected = reference.blocked_local_attention(
    *(np.asarray(x, np.float64) for x in rounded), **options
  )
  assert relative_error(output, expected) <= 8 * 2**-9


def test_masks_are_finite_in_the_narrowest_dtype():
  inputs, _, options = arrays(case((1, 5, 3, 1, 4), 8, 2, mask_window=True))
  inputs = [jnp.asarray(x, jnp.float16) for x in inputs]
  gradients = jax.grad(
    lambda *x: packed_attention(*x, **options).astype("float32").sum(),
    argnums=range(5),
  )(*inputs)
  assert all(jnp.isfinite(g).all() for g in gradients)
