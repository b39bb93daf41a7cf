"""Attention of tokens to tokens against a loop, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from halonet.ops.tokens import token_attention


def draw():
  rng = np.random.default_rng(0)
  return [
    rng.normal(size=(2, number, 3, depth))
    for number, depth in ((5, 4), (7, 4), (7, 6))
  ]


def by_loop(query, key, value, gradient):
  """The output, and gradients of all inputs for one of the output."""
  output = np.zeros((*query.shape[:3], value.shape[-1]))
  gradients = [np.zeros_like(x) for x in (query, key, value)]
  for n, i, head in np.ndindex(query.shape[:3]):
    k, v = key[n, :, head], value[n, :, head]
    logits = k @ query[n, i, head]
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    output[n, i, head] = weights @ v
    g = gradient[n, i, head]
    dlogits = weights * (v @ g - weights @ v @ g)
    gradients[0][n, i, head] += dlogits @ k
    gradients[1][n, :, head] += np.outer(dlogits, query[n, i, head])
    gradients[2][n, :, head] += np.outer(weights, g)
  return output, gradients


def test_output_and_gradients_match_the_loop():
  inputs = draw()
  gradient = np.random.default_rng(1).normal(size=(2, 5, 3, 6))
  with jax.enable_x64(True):
    output, back = jax.vjp(token_attention, *map(jnp.asarray, inputs))
    actual = output, list(back(jnp.asarray(gradient)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
    actual,
    by_loop(*inputs, gradient),
  )


def test_bfloat16_has_float32_logits():
  exact = token_attention(*(jnp.asarray(x, jnp.float32) for x in draw()))
  rounded = token_attention(*(jnp.asarray(x, jnp.bfloat16) for x in draw()))
  assert rounded.dtype == jnp.bfloat16
  assert np.abs(rounded.astype(np.float32) - exact).max() <= 0.1
