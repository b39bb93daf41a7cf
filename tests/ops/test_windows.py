"""Attention in windows against a loop over pixels, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.ops.windows import window_attention

# Height, width, window_size, shift: whole windows, cut ones, and maps that are
# no larger than a window along one axis, or along both.
CASES = [
  (6, 9, 3, 0),
  (6, 9, 3, 1),
  (7, 5, 3, 2),
  (8, 3, 4, 2),
  (5, 4, 5, 2),
  (2, 3, 5, 2),
  (4, 5, 1, 0),
  (9, 8, 4, 2),
]


def draw(height, width, window_size, dtype=np.float64):
  """Queries, keys, values and biases."""
  rng = np.random.default_rng(0)
  shape, offsets = (2, height, width, 2), 2 * window_size - 1
  return [
    rng.normal(size=size).astype(dtype)
    for size in (
      (*shape, 4),
      (*shape, 4),
      (*shape, 3),
      (offsets, offsets, 2),
    )
  ]


def by_loop(query, key, value, bias, window_size, shift, gradient):
  """The output, and gradients of all inputs for one of the output."""
  batch, height, width, heads, _ = query.shape
  output = np.zeros(value.shape)
  gradients = [np.zeros_like(x) for x in (query, key, value, bias)]

  def neighbours(place, length):
    if length <= window_size:
      return range(length)
    return [
      other
      for other in range(length)
      if (other - shift) // window_size == (place - shift) // window_size
    ]

  for n, y, x, head in np.ndindex(batch, height, width, heads):
    keys = [(a, b) for a in neighbours(y, height) for b in neighbours(x, width)]
    logits = np.array(
      [
        query[n, y, x, head] @ key[n, a, b, head]
        + bias[a - y + window_size - 1, b - x + window_size - 1, head]
        for a, b in keys
      ]
    )
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    v = np.array([value[n, a, b, head] for a, b in keys])
    output[n, y, x, head] = weights @ v
    g = gradient[n, y, x, head]
    dlogits = weights * (v @ g - weights @ v @ g)
    for (a, b), weight, d in zip(keys, weights, dlogits, strict=True):
      gradients[0][n, y, x, head] += d * key[n, a, b, head]
      gradients[1][n, a, b, head] += d * query[n, y, x, head]
      gradients[2][n, a, b, head] += weight * g
      offset = a - y + window_size - 1, b - x + window_size - 1
      gradients[3][*offset, head] += d
  return output, gradients


@pytest.mark.parametrize("height, width, window_size, shift", CASES)
def test_output_and_gradients_match_the_loop(height, width, window_size, shift):
  inputs = draw(height, width, window_size)
  gradient = np.random.default_rng(1).normal(size=inputs[2].shape)
  expected = by_loop(*inputs, window_size, shift, gradient)

  @jax.jit
  def compute(inputs, gradient):
    output, back = jax.vjp(
      lambda *x: window_attention(*x, window_size=window_size, shift=shift),
      *inputs,
    )
    return output, list(back(gradient))

  with jax.enable_x64(True):
    actual = compute(inputs, gradient)
    assert actual[0].dtype == jnp.float64
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
    actual,
    expected,
  )


def test_bfloat16_has_float32_logits():
  inputs = [jnp.asarray(x) for x in draw(7, 5, 3, np.float32)]
  exact = window_attention(*inputs, window_size=3, shift=1)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
  rounded = window_attention(*narrow, window_size=3, shift=1)
  assert rounded.dtype == jnp.bfloat16
  assert np.abs(rounded.astype(np.float32) - exact).max() <= 0.05


@pytest.mark.parametrize(
  "window_size, shift, words",
  [
    (0, 0, "window_size is 0; it must be a whole number of at least 1"),
    (3, 3, "shift is 3; it must be less than window_size, 3"),
    (3, -1, "shift is -1; it must be a whole number of at least 0"),
    (4, 0, r"relative_bias has shape \(5, 5, 2\); window_size 4 and 2 heads"),
  ],
)
def test_bad_sizes_are_named(window_size, shift, words):
  inputs = [jnp.asarray(x) for x in draw(4, 4, 3, np.float32)]
  with pytest.raises(ValueError, match=words):
    window_attention(*inputs, window_size=window_size, shift=shift)
