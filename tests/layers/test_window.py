"""Swin's layer: projections, shifts, and tables of other windows."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import interpolate, optimize

import halonet
from halonet.layers.window import Window, WindowAttention, resize_bias
from halonet.ops.windows import window_attention


def site(index, width=8):
  return types.SimpleNamespace(
    name="stage1_block1", stage=0, index=index, width=width, stride=1
  )


def test_the_layer_projects_with_biases_and_scales_queries():
  x = jax.random.normal(jax.random.key(0), (2, 7, 6, 10))
  layer = WindowAttention(
    heads=2, window_size=3, shift=1, qk_features=8, value_features=12
  )
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
    shapes["params"],
  )
  assert jax.tree.map(jnp.shape, params) == {
    "query": {"kernel": (10, 2, 4), "bias": (2, 4)},
    "key": {"kernel": (10, 2, 4), "bias": (2, 4)},
    "value": {"kernel": (10, 2, 6), "bias": (2, 6)},
    "relative_bias": (5, 5, 2),
  }
  query, key, value = (
    jnp.einsum("bhwc,cnd->bhwnd", x, params[name]["kernel"])
    + params[name]["bias"]
    for name in ("query", "key", "value")
  )
  expected = window_attention(
    query / 2, key, value, params["relative_bias"], window_size=3, shift=1
  )
  actual = layer.apply({"params": params}, x)
  np.testing.assert_allclose(
    actual, expected.reshape(2, 7, 6, 12), rtol=1e-4, atol=1e-4
  )
  strided = layer.clone(stride=2).apply({"params": params}, x)
  assert strided.shape == (2, 4, 3, 12)


def test_every_second_block_shifts_by_half_a_window():
  operator = Window(heads=(2,), window_size=7)
  shifts = [
    operator.layer(site(index), nn.LayerNorm, jnp.float32).shift
    for index in range(4)
  ]
  assert shifts == [0, 3, 0, 3]
  assert operator.window(site(0)) == 7


def test_windows_of_stages():
  model = halonet.create_model("swin_tiny", stage_windows=(3, 5, 14, 7))
  images = jnp.zeros((1, 64, 64, 3))
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  tables = [
    params[f"stage{stage}_block1"]["attention"]["relative_bias"].shape[0]
    for stage in range(1, 5)
  ]
  assert tables == [5, 9, 27, 13]
  assert model.window == 14
  # Those of stages with another operator do not count.
  slide = halonet.create_model("slide_swin_tiny", stage_windows=(56, 28, 14, 7))
  assert slide.window == 14
  with pytest.raises(ValueError, match="it must have one entry per stage"):
    halonet.create_model("swin_tiny", stage_windows=(7,))
  with pytest.raises(ValueError, match="window_size is 3 and stage_windows"):
    halonet.create_model("swin_tiny", window_size=3, stage_windows=(7, 7, 7, 7))


def by_scipy(table, new):
  """timm's method with SciPy's root and interpolation."""
  old = len(table) // 2
  ratio = 1.01
  if new > sum(1.01**i for i in range(old)):
    ratio = optimize.brentq(
      lambda r: sum(r**i for i in range(old)) - new, 1.01, 1.5
    )
  half = [sum(ratio**j for j in range(i)) for i in range(old + 1)]
  places = np.array([*(-x for x in half[:0:-1]), *half])
  wanted = np.clip(np.arange(-new, new + 1), places[0], places[-1])
  grid = np.stack(np.meshgrid(wanted, wanted, indexing="ij"), axis=-1)
  return interpolate.RegularGridInterpolator((places, places), table)(grid)


@pytest.mark.parametrize("old, new", [(7, 12), (7, 8), (7, 4), (12, 7), (4, 4)])
def test_biases_are_resized_on_a_geometric_grid(old, new):
  table = np.random.default_rng(0).normal(size=(2 * old - 1, 2 * old - 1, 3))
  table = table.astype(np.float32)
  resized = resize_bias(table, 2 * new - 1)
  assert resized.shape == (2 * new - 1, 2 * new - 1, 3)
  assert resized.dtype == np.float32
  np.testing.assert_allclose(
    resized, by_scipy(table, new - 1), rtol=1e-3, atol=1e-4
  )
  np.testing.assert_array_equal(
    resized[new - 1, new - 1], table[old - 1, old - 1]
  )


def test_only_another_window_changes_a_table():
  before, after = Window(window_size=3), Window(window_size=5)
  table = np.ones((5, 5, 2), np.float32)
  assert after.adapt("relative_bias", table, (9, 9, 2), before).shape == (
    9,
    9,
    2,
  )
  assert after.adapt("relative_bias", table, (5, 5, 2), before) is table
  assert after.adapt("relative_bias", table, (9, 9, 4), before) is None
  assert after.adapt("query/bias", table, (9, 9, 2), before) is None
