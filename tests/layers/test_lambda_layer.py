"""The lambda layer against its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from halonet.layers.lambda_layer import LambdaLayer
from halonet.layers.normalization import BatchNorm
from halonet.ops.lambdas import local_lambda


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_local_lambdas_are_their_formula():
  query, key = draw(2, 5, 4, 3, 6), draw(2, 5, 4, 6, seed=1)
  value, kernel, bias = draw(2, 5, 4, 7, seed=2), draw(3, 3, 6), draw(6)
  weights = np.exp(key.astype(np.float64))
  weights /= weights.sum((1, 2), keepdims=True)
  content = np.einsum("bhwd,bhwv->bdv", weights, value)
  expected = np.zeros((2, 5, 4, 3, 7))
  for y, x in np.ndindex(5, 4):
    linear = content + bias[:, None]
    for row, col in np.ndindex(3, 3):
      a, b = y + row - 1, x + col - 1
      if 0 <= a < 5 and 0 <= b < 4:
        linear = linear + kernel[row, col][:, None] * value[:, a, b][:, None]
    expected[:, y, x] = np.einsum("bnd,bdv->bnv", query[:, y, x], linear)
  actual = local_lambda(*map(jnp.asarray, (query, key, value, kernel, bias)))
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
  narrow = local_lambda(
    *(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value, kernel, bias))
  )
  assert narrow.dtype == jnp.bfloat16
  error = np.abs(np.asarray(narrow, np.float32) - expected).max()
  assert error <= 0.05 * np.abs(expected).max()


def test_the_layer_pools_and_normalises():
  norm = functools.partial(BatchNorm, use_running_average=True)
  layer = LambdaLayer(
    heads=2, window=3, norm=norm, qk_features=8, value_features=12, stride=2
  )
  output, variables = layer.init_with_output(
    jax.random.key(0), jnp.asarray(draw(2, 5, 6, 10))
  )
  assert output.shape == (2, 3, 3, 12)
  assert jax.tree.map(jnp.shape, variables["params"]) == {
    "query": {"kernel": (10, 2, 4)},
    "key": {"kernel": (10, 1, 4)},
    "value": {"kernel": (10, 1, 6)},
    "query_norm": {"scale": (8,), "bias": (8,)},
    "value_norm": {"scale": (6,), "bias": (6,)},
    "relative_kernel": (3, 3, 4),
    "relative_bias": (4,),
  }
