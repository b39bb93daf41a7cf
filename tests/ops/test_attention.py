"""Blocked local attention against a float64 loop over pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halonet.ops.attention import (
  blocked_local_attention,
  blocked_local_attention_weights,
  global_attention,
)
from tests.ops import reference


@st.composite
def cases(draw):
  """Shapes and options; the arrays follow from the seed."""
  head_dim = draw(st.sampled_from([2, 4, 8]))
  # Halves that are concatenated (the paper), or full tables (timm).
  width_h, width_w = draw(
    st.sampled_from(
      [(head_dim // 2, head_dim // 2), (head_dim, head_dim), (1, head_dim - 1)]
    )
  )
  return dict(
    shape=(
      draw(st.integers(1, 2)),
      draw(st.integers(1, 9)),
      draw(st.integers(1, 9)),
      draw(st.integers(1, 3)),
      head_dim,
    ),
    value_dim=draw(st.integers(1, 6)),
    relative_dims=(width_h, width_w),
    block_size=draw(st.integers(1, 5)),
    halo_size=draw(st.integers(0, 6)),
    stride=draw(st.integers(1, 3)),
    mask_padding=draw(st.booleans()),
    mask_window=draw(st.sampled_from([False, False, True])),
    seed=draw(st.integers(0, 2**16)),
  )


def case(shape, block_size, halo_size, **overrides):
  return dict(
    shape=shape,
    value_dim=4,
    relative_dims=(shape[-1] // 2,) * 2,
    block_size=block_size,
    halo_size=halo_size,
    stride=1,
    mask_padding=True,
    mask_window=False,
    seed=0,
  ) | dict(overrides)


def arrays(case):
  """The five arrays of a case, an output gradient, and the keyword options."""
  rng = np.random.default_rng(case["seed"])
  *spatial, head_dim = case["shape"]
  offsets = 2 * (case["block_size"] + case["halo_size"]) - 1
  stride = case["stride"]
  batch, height, width, heads = spatial
  shapes = [
    (*spatial, head_dim),
    (*spatial, head_dim),
    (*spatial, case["value_dim"]),
    *((offsets, dim) for dim in case["relative_dims"]),
  ]
  inputs = [jnp.asarray(rng.normal(size=x), jnp.float32) for x in shapes]
  gradient = rng.normal(
    size=(
      batch,
      -(-height // stride),
      -(-width // stride),
      heads,
      case["value_dim"],
    )
  ).astype(np.float32)
  names = ("block_size", "halo_size", "stride", "mask_padding", "mask_window")
  return inputs, gradient, {name: case[name] for name in names}


def relative_error(actual, expected):
  scale = np.abs(expected).max()
  return np.abs(np.asarray(actual, np.float64) - expected).max() / max(
    scale, 1e-3
  )


def value_and_gradients(attention, inputs, output_gradient, jit=jax.jit):
  @jit
  def run(*inputs):
    output, pullback = jax.vjp(attention, *inputs)
    return output, pullback(jnp.asarray(output_gradient, output.dtype))

  return run(*inputs)


# Programs that are long and run once: few seconds to compile.
compiled = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def check(case, implementation, attention=None, jit=jax.jit):
  """Output and gradients against a float64 loop over pixels.

  They are those of `blocked_local_attention`, or of another function.
  """
  inputs, output_gradient, options = arrays(case)
  attention = attention or functools.partial(
    blocked_local_attention, **options, implementation=implementation
  )
  output, gradients = value_and_gradients(
    attention, inputs, output_gradient, jit
  )
  expected = reference.blocked_local_attention(*inputs, **options)
  assert output.shape == expected.shape
  assert relative_error(output, expected) <= 1e-5
  expected_gradients = reference.blocked_local_attention(
    *inputs, **options, output_gradient=output_gradient
  )
  # Relative to the largest of all five: in some cases a gradient is zero but
  # for rounding (the weights of a lone key do not depend on its logit).
  scale = max(np.abs(expected).max() for expected in expected_gradients)
  for actual, expected in zip(gradients, expected_gradients, strict=True):
    assert np.abs(actual - expected).max() <= 1e-5 * max(scale, 1e-3)


@given(cases())
@example(case((1, 8, 8, 2, 4), 4, 0))  # blocks that do not overlap
@example(case((1, 8, 8, 1, 4), 1, 0))  # every pixel on its own
@example(case((1, 3, 5, 2, 4), 8, 3))  # a block larger than the map
@example(case((2, 1, 1, 2, 4), 4, 2))  # a single pixel
@example(case((1, 6, 4, 1, 4), 2, 7))  # a halo larger than block and map
@example(case((1, 19, 13, 2, 4), 10, 3))  # H7's last stage at 600
@example(case((1, 9, 7, 1, 4), 4, 1, stride=2, mask_padding=False))
@example(case((1, 9, 7, 1, 4), 3, 1, stride=2))  # stride does not divide
def test_matches_the_per_pixel_loop(case):
  check(case, "xla")


@pytest.mark.parametrize("relative_stride", [-1, 0, 3])
def test_impossible_relative_strides_are_named(relative_stride):
  inputs, _, options = arrays(case((1, 4, 4, 1, 4), 4, 1, stride=2))
  with pytest.raises(ValueError, match=f"relative_stride is {relative_stride}"):
    blocked_local_attention(*inputs, **options, relative_stride=relative_stride)
  with pytest.raises(ValueError, match="relative_stride is 1; it is for"):
    blocked_local_attention(
      *inputs, **options | {"stride": 3}, relative_stride=1
    )


def test_strided_is_the_unstrided_subsampled():
  inputs, _, options = arrays(case((1, 13, 10, 2, 4), 4, 2))
  whole = blocked_local_attention(*inputs, **options)
  for stride in (2, 3, 4):
    strided = blocked_local_attention(*inputs, **options | {"stride": stride})
    np.testing.assert_allclose(
      strided, whole[:, ::stride, ::stride], rtol=1e-5, atol=1e-5
    )


@given(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 2**16))
@settings(max_examples=20)
def test_shifts_by_whole_blocks_shift_the_output(rows, cols, seed):
  """Block-level translation equivariance, where no border is in reach."""
  block_size, halo_size = 4, 3
  inputs, _, options = arrays(
    case((1, 40, 40, 1, 4), block_size, halo_size, seed=seed)
  )
  attention = jax.jit(functools.partial(blocked_local_attention, **options))

  def moved(dy, dx):
    maps = [jnp.roll(x, (dy, dx), axis=(1, 2)) for x in inputs[:3]]
    return jnp.roll(attention(*maps, *inputs[3:]), (-dy, -dx), axis=(1, 2))

  # Two blocks of shift and one of halo away from the border on every side.
  inner = np.s_[:, 12:28, 12:28]
  still = attention(*inputs)[inner]
  by_blocks = moved(rows * block_size, cols * block_size)[inner]
  np.testing.assert_allclose(by_blocks, still, rtol=1e-4, atol=1e-5)
  by_pixels = moved(rows * block_size + 1, cols * block_size)[inner]
  assert jnp.abs(by_pixels - still).max() > 1e-2


@pytest.mark.parametrize(
  "height, dim", [(6, 2), (6, 4), (3, 4)], ids=["half", "full", "not square"]
)
def test_global_attention_is_one_block(height, dim):
  rng = np.random.default_rng(0)
  maps = [jnp.asarray(rng.normal(size=(2, height, 6, 2, 4)), "float32")] * 3
  tables = [jnp.asarray(rng.normal(size=(11, dim)), "float32") for _ in "hw"]
  expected = reference.blocked_local_attention(
    *maps, *tables, block_size=6, halo_size=0
  )
  # Between three rows, only the offsets −2 … 2 of the square occur.
  rows = tables[0][6 - height : 5 + height]
  output = global_attention(*maps, rows, tables[1])
  assert relative_error(output, expected) <= 1e-5


def test_reference_gradients_are_those_of_its_output():
  inputs, output_gradient, options = arrays(
    case((1, 5, 4, 2, 4), 2, 1, stride=2, mask_padding=False)
  )
  inputs = [np.asarray(x, np.float64) for x in inputs]
  gradients = reference.blocked_local_attention(
    *inputs, **options, output_gradient=output_gradient
  )
  rng = np.random.default_rng(1)
  for index, gradient in enumerate(gradients):
    direction = rng.normal(size=gradient.shape)

    def along(step, index=index, direction=direction):
      moved = list(inputs)
      moved[index] = moved[index] + step * direction
      output = reference.blocked_local_attention(*moved, **options)
      return (output * output_gradient).sum()

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(numeric, (gradient * direction).sum(), rtol=1e-7)


def test_weights_reproduce_the_output():
  inputs, _, options = arrays(case((1, 7, 9, 2, 4), 4, 1, stride=2))
  query, key, value, *tables = inputs
  weights = blocked_local_attention_weights(query, key, *tables, **options)
  assert weights.shape == (1, 2, 3, 2, 2, 2, 6, 6)
  np.testing.assert_allclose(weights.sum((-1, -2)), 1.0, rtol=1e-5)
  output = blocked_local_attention(*inputs, **options)
  padded = np.pad(value, [(0, 0), (1, 2), (1, 4), (0, 0), (0, 0)])
  for i, j in np.ndindex(4, 5):
    row, col = i // 2, j // 2
    window = padded[0, 4 * row : 4 * row + 6, 4 * col : 4 * col + 6]
    expected = np.einsum(
      "hyx,yxhd->hd", weights[0, row, col, :, i % 2, j % 2], window
    )
    np.testing.assert_allclose(output[0, i, j], expected, atol=1e-5)


def test_masked_keys_have_exactly_no_weight():
  inputs, _, options = arrays(case((1, 5, 5, 1, 4), 4, 2))
  query, key, _, *tables = inputs
  weights = blocked_local_attention_weights(query, key, *tables, **options)
  ys = np.arange(8)[None] - 2 + np.array([[0], [4]])
  valid = (ys >= 0) & (ys < 5)
  valid = valid[:, None, :, None] & valid[None, :, None, :]
  valid = np.broadcast_to(valid[None, :, :, None, None, None], weights.shape)
  assert (np.asarray(weights)[~valid] == 0).all()
  assert (np.asarray(weights)[valid] > 0).all()


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(block_size=0), "block_size is 0"),
    (dict(halo_size=-1), "halo_size is -1"),
    (dict(stride=0), "stride is 0"),
    (dict(block_size=3), "relative_height has shape"),
  ],
)
def test_bad_sizes_are_named(change, message):
  inputs, _, options = arrays(case((1, 4, 4, 1, 4), 2, 1))
  with pytest.raises(ValueError, match=message):
    blocked_local_attention(*inputs, **(options | change))


def test_shapes_that_do_not_fit_are_named(unchecked_shapes):
  (query, key, value, *tables), _, options = arrays(case((1, 4, 4, 1, 4), 2, 1))
  with pytest.raises(ValueError, match="must agree"):
    blocked_local_attention(query, key[:, :2], value, *tables, **options)
  with pytest.raises(ValueError, match=r"query must be \[batch"):
    blocked_local_attention(query[0], key, value, *tables, **options)
  wide = [jnp.zeros((5, 5))] * 2
  with pytest.raises(ValueError, match="wider than head_dim 4"):
    blocked_local_attention(query, key, value, *wide, **options)
