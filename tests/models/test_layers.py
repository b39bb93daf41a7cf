"""The attention layer against the float64 reference and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.models.layers import (
  EfficientChannelAttention,
  GlobalAttention,
  HaloAttention,
  SqueezeExcite,
)
from halonet.ops.attention import global_attention
from tests.ops import reference


def test_layer_is_projections_and_scaled_attention():
  layer = HaloAttention(
    heads=2,
    block_size=3,
    halo_size=2,
    qk_features=8,
    value_features=12,
    stride=3,
    mask_padding=False,
  )
  x = np.random.default_rng(0).normal(size=(2, 7, 8, 5)).astype(np.float32)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  output = layer.apply(variables, jnp.asarray(x))
  params = jax.tree.map(
    lambda p: np.asarray(p, np.float64), variables["params"]
  )
  query, key, value = (
    np.einsum("bhwc,cnd->bhwnd", x, params[name]["kernel"])
    for name in ("query", "key", "value")
  )
  expected = reference.blocked_local_attention(
    query / np.sqrt(4),
    key,
    value,
    params["relative_height"],
    params["relative_width"],
    block_size=3,
    halo_size=2,
    stride=3,
    mask_padding=False,
  )
  assert output.shape == (2, 3, 3, 12)
  np.testing.assert_allclose(
    output, expected.reshape(2, 3, 3, 12), rtol=1e-4, atol=1e-5
  )


def test_widths_default_to_the_inputs():
  layer = HaloAttention(heads=2, block_size=4, halo_size=1)
  x = jnp.ones((1, 5, 6, 8))
  output, variables = layer.init_with_output(jax.random.key(0), x)
  assert output.shape == x.shape
  assert variables["params"]["query"]["kernel"].shape == (8, 2, 4)
  assert variables["params"]["relative_width"].shape == (9, 2)


def test_projections_start_like_one_matrix():
  layer = HaloAttention(heads=4, block_size=4, halo_size=1)
  variables = layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 256)))
  deviation = variables["params"]["query"]["kernel"].std()
  np.testing.assert_allclose(deviation, 256**-0.5, rtol=0.03)


def test_weights_are_there_for_who_asks():
  layer = HaloAttention(heads=2, block_size=4, halo_size=1, stride=2)
  x = jnp.ones((1, 5, 6, 8))
  variables = layer.init(jax.random.key(0), x)
  assert set(variables) == {"params"}
  _, collections = layer.apply(variables, x, mutable=["attention"])
  (weights,) = collections["attention"]["weights"]
  assert weights.shape == (1, 2, 2, 2, 2, 2, 6, 6)
  np.testing.assert_allclose(weights.sum((-1, -2)), 1.0, rtol=1e-5)


def test_global_attention_resizes_its_tables():
  layer = GlobalAttention(heads=2, size=4, stride=2)
  x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
  variables = layer.init(jax.random.key(0), x)
  assert variables["params"]["relative_height"].shape == (7, 4)
  assert layer.apply(variables, x).shape == (2, 2, 2, 8)
  assert layer.apply(variables, jnp.ones((1, 5, 9, 8))).shape == (1, 3, 5, 8)


def test_resized_tables_are_interpolated_about_their_middle():
  layer = GlobalAttention(heads=1, size=4)
  x = jax.random.normal(jax.random.key(1), (1, 6, 4, 8))
  params = layer.init(jax.random.key(0), x)["params"]
  # Seven offsets become eleven; pixels are centred on halves.
  places = np.clip((np.arange(11) + 0.5) * 7 / 11 - 0.5, 0, 6)
  table = np.asarray(params["relative_height"], np.float64)
  table = np.stack([np.interp(places, range(7), c) for c in table.T], axis=1)
  query, key, value = (
    jnp.einsum("bhwc,cnd->bhwnd", x, params[name]["kernel"])
    for name in ("query", "key", "value")
  )
  scale = 8**-0.5
  expected = global_attention(
    query * scale,
    key,
    value,
    jnp.asarray(table / scale, jnp.float32),
    params["relative_width"] / scale,
  )
  actual = layer.apply({"params": params}, x)
  np.testing.assert_allclose(actual, expected[..., 0, :], rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(heads=3), "heads is 3, which does not divide the query width 8"),
    (dict(heads=8), "even width per head"),
    (dict(value_features=5), "does not divide the value width 5"),
    (dict(heads=0), "heads is 0"),
  ],
)
def test_widths_must_split_over_heads(fields, message):
  layer = HaloAttention(**dict(heads=2, block_size=4, halo_size=1) | fields)
  with pytest.raises(ValueError, match=message):
    layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))
