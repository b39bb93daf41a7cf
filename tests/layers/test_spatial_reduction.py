"""PVT's layer against loops over queries and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from halonet.layers.spatial_reduction import SpatialReductionAttention

NORM = functools.partial(nn.LayerNorm, use_fast_variance=False)


def draw(layer, *inputs):
  """Parameters that are not at their initial values."""
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) / 3, shapes
  )


def by_loop(params, x, token, ratio, heads):
  """The outputs of all tokens, in float64; the class token's is the first."""
  params = jax.tree.map(np.float64, params)
  batch, height, width, channels = x.shape

  def project(name, y):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    return np.einsum("c,cnd->nd", y, kernel) + bias

  output = []
  for n in range(batch):
    keys = [*token[n]]
    if ratio == 1:
      keys += [*x[n].reshape(-1, channels)]
    else:
      kernel = params["reduction"]["kernel"]
      for i in range(max(1, height // ratio)):
        for j in range(max(1, width // ratio)):
          y = params["reduction"]["bias"].copy()
          for a, b in np.ndindex(ratio, ratio):
            if i * ratio + a < height and j * ratio + b < width:
              y += x[n, i * ratio + a, j * ratio + b] @ kernel[a, b]
          y = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
          norm = params["reduction_norm"]
          keys.append(y * norm["scale"] + norm["bias"])
    key = np.array([project("key", y) for y in keys])
    value = np.array([project("value", y) for y in keys])
    for y in (*token[n], *x[n].reshape(-1, channels)):
      query = project("query", y) * (channels // heads) ** -0.5
      logits = np.einsum("nd,knd->nk", query, key)
      weights = np.exp(logits - logits.max(1, keepdims=True))
      weights /= weights.sum(1, keepdims=True)
      output.append(np.einsum("nk,knd->nd", weights, value).ravel())
  return np.array(output).reshape(batch, -1, channels)


@pytest.mark.parametrize(
  "size, ratio", [((4, 6), 2), ((5, 7), 2), ((2, 5), 3), ((3, 4), 1)]
)
@pytest.mark.parametrize("tokens", [0, 1])
def test_matches_the_loop(size, ratio, tokens):
  x = jax.random.normal(jax.random.key(0), (2, *size, 8))
  token = jax.random.normal(jax.random.key(1), (2, 1, 8))
  layer = SpatialReductionAttention(heads=2, ratio=ratio, norm=NORM)
  inputs = (x, token)[: 1 + tokens]
  params = draw(layer, *inputs)
  expected = by_loop(
    params, np.float64(x), np.float64(token[:, :tokens]), ratio, heads=2
  )
  actual = layer.apply({"params": params}, *inputs)
  if tokens:
    actual, first = actual
    np.testing.assert_allclose(first, expected[:, :1], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    actual.reshape(2, -1, 8), expected[:, tokens:], rtol=1e-4, atol=1e-4
  )


def test_a_stride_averages():
  x = jnp.ones((1, 5, 6, 8))
  layer = SpatialReductionAttention(heads=2, ratio=2, norm=NORM, stride=2)
  output, _ = layer.init_with_output(jax.random.key(0), x)
  assert output.shape == (1, 3, 3, 8)
