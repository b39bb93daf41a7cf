"""Gates against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.layers.gates import EfficientChannelAttention, SqueezeExcite


def test_squeeze_excite_is_its_formula():
  layer = SqueezeExcite(ratio=1 / 4)
  x = np.random.default_rng(0).normal(size=(2, 3, 5, 64)).astype(np.float32)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  p = jax.tree.map(np.asarray, variables["params"])
  hidden = x.mean((1, 2)) @ p["reduce"]["kernel"] + p["reduce"]["bias"]
  gate = np.maximum(hidden, 0) @ p["expand"]["kernel"] + p["expand"]["bias"]
  expected = x / (1 + np.exp(-gate))[:, None, None]
  actual = layer.apply(variables, jnp.asarray(x))
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels, size", [(16, 3), (64, 3), (256, 5)])
def test_efficient_channel_attention_is_its_formula(channels, size):
  layer = EfficientChannelAttention()
  x = np.random.default_rng(0).normal(size=(2, 3, 5, channels))
  x = x.astype(np.float32)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  kernel = np.asarray(variables["params"]["conv"]["kernel"])[:, 0, 0]
  assert kernel.shape == (size,)
  padded = np.pad(x.mean((1, 2)), [(0, 0), (size // 2, size // 2)])
  gate = sum(kernel[i] * padded[:, i : i + channels] for i in range(size))
  expected = x / (1 + np.exp(-gate))[:, None, None]
  actual = layer.apply(variables, jnp.asarray(x))
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
