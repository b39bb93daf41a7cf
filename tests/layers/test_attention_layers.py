"""Attention layers against their formulas."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from halonet.layers.global_attention import GlobalAttention
from halonet.layers.halo import HaloAttention
from halonet.layers.lambda_layer import LambdaLayer
from halonet.layers.per_pixel import PerPixelAttention
from halonet.layers.sinusoids import sinusoids
from halonet.layers.timm_halo import TimmHaloAttention
from halonet.ops.attention import global_attention, per_pixel_attention
from halonet.parallel import make_mesh
from tests.ops import reference
from tests.ops.forms.test_forms import BLOCKED
from tests.ops.test_attention import compiled


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


def waves(height, width, channels):
  """Sines and cosines of rows and of columns, one number at a time."""
  table = np.zeros((height, width, channels))
  count = channels // 4
  for y, x, i in np.ndindex(height, width, count):
    rate = 10_000 ** (-i / count)
    for first, place in ((0, y), (2 * count, x)):
      table[y, x, first + i] = np.sin(place * rate)
      table[y, x, first + count + i] = np.cos(place * rate)
  return table


@pytest.mark.parametrize("form", BLOCKED)
@pytest.mark.parametrize("position, stride", [("absolute", 1), ("none", 2)])
def test_halos_without_tables_match_the_loop(form, position, stride):
  layer = HaloAttention(
    heads=2,
    block_size=4,
    halo_size=1,
    qk_features=8,
    value_features=16,
    stride=stride,
    position=position,
    implementation=form,
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 5, 9)).astype(np.float32)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  assert variables["params"].keys() == {"query", "key", "value"}

  kernels = [
    np.asarray(variables["params"][name]["kernel"], np.float64)
    for name in ("query", "key", "value")
  ]
  scales = 4**-0.5, 1, 1
  placed = x + (waves(6, 5, 9) if position == "absolute" else 0)
  projected = [
    scale * np.einsum("bhwc,cnd->bhwnd", placed, kernel)
    for scale, kernel in zip(scales, kernels, strict=True)
  ]
  options = dict(block_size=4, halo_size=1, stride=stride)
  expected = reference.blocked_local_attention(*projected, **options)
  seed = rng.normal(size=expected.shape)

  def run(seed, *inputs):
    output, pull = jax.vjp(layer.apply, *inputs)
    return output, pull(seed.reshape(output.shape))

  output, (of_variables, of_x) = compiled(run)(
    jnp.asarray(seed, x.dtype), variables, jnp.asarray(x)
  )
  np.testing.assert_allclose(
    output, expected.reshape(output.shape), rtol=1e-4, atol=1e-5
  )
  gradients = reference.blocked_local_attention(
    *projected, **options, output_gradient=seed
  )
  wanted_x = 0
  for name, scale, kernel, gradient in zip(
    ("query", "key", "value"), scales, kernels, gradients, strict=True
  ):
    wanted = scale * np.einsum("bhwc,bhwnd->cnd", placed, gradient)
    actual = of_variables["params"][name]["kernel"]
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
    wanted_x += scale * np.einsum("bhwnd,cnd->bhwc", gradient, kernel)
  np.testing.assert_allclose(of_x, wanted_x, rtol=1e-4, atol=1e-4)


def test_absolute_positions_are_those_of_the_whole_map_on_every_device():
  mesh = make_mesh(rows=2)
  layer = HaloAttention(heads=2, block_size=4, halo_size=1, position="absolute")
  x = jax.random.normal(jax.random.key(0), (4, 16, 8, 8))
  variables = layer.init(jax.random.key(1), x)
  expected = layer.apply(variables, x)
  sharding = NamedSharding(mesh, PartitionSpec("data", "rows"))
  with jax.set_mesh(mesh):
    apply = jax.jit(layer.apply, in_shardings=(None, sharding))
    output = apply(variables, jax.device_put(x, sharding))
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


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


def test_halos_may_end_in_a_pool():
  layer = HaloAttention(2, 4, 1, stride=2, downsampling="pool")
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
  variables = layer.init(jax.random.key(1), x)
  whole = HaloAttention(2, 4, 1).apply(variables, x)
  expected = [
    [whole[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2, 4)]
    for i in (0, 2, 4)
  ]
  np.testing.assert_allclose(
    layer.apply(variables, x), np.transpose(expected, (2, 0, 1, 3)), atol=1e-6
  )


def test_weights_and_geometry_are_stored_on_demand():
  layer = HaloAttention(heads=2, block_size=4, halo_size=1, stride=2)
  x = jnp.ones((1, 5, 6, 8))
  variables = layer.init(jax.random.key(0), x)
  assert set(variables) == {"params"}
  _, collections = layer.apply(variables, x, mutable=["attention"])
  (weights,) = collections["attention"]["weights"]
  assert weights.shape == (1, 2, 2, 2, 2, 2, 6, 6)
  np.testing.assert_allclose(weights.sum((-1, -2)), 1.0, rtol=1e-5)
  (geometry,) = collections["attention"]["geometry"]
  assert geometry.tolist() == [5, 6, 4, 1, 2]


def test_weights_of_halos_without_tables_are_stored_too():
  layer = HaloAttention(heads=2, block_size=4, halo_size=1, position="none")
  x = jnp.ones((1, 4, 4, 8))
  variables = layer.init(jax.random.key(0), x)
  _, collections = layer.apply(variables, x, mutable=["attention"])
  (weights,) = collections["attention"]["weights"]
  # Nothing tells the 16 pixels apart.
  seen = weights[0, 0, 0, :, :, :, 1:-1, 1:-1]
  np.testing.assert_allclose(seen, 1 / 16, rtol=1e-5)


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


def test_the_layer_is_projections_attention_and_a_pool():
  layer = PerPixelAttention(
    heads=2, window_size=3, qk_features=8, value_features=12, stride=2
  )
  x = jax.random.normal(jax.random.key(0), (2, 7, 6, 10))
  variables = layer.init(jax.random.key(1), x)
  params = variables["params"]
  shapes = jax.tree.map(jnp.shape, params)
  assert shapes == {
    "query": {"kernel": (10, 2, 4)},
    "key": {"kernel": (10, 2, 4)},
    "value": {"kernel": (10, 2, 6)},
    "relative_height": (3, 2),
    "relative_width": (3, 2),
  }
  query, key, value = (
    jnp.einsum("byxc,cnd->byxnd", x, params[name]["kernel"])
    for name in ("query", "key", "value")
  )
  attended = per_pixel_attention(
    query / 2,
    key,
    value,
    params["relative_height"],
    params["relative_width"],
    window_size=3,
  ).reshape(2, 7, 6, 12)
  expected = np.zeros((2, 4, 3, 12))
  for row in range(4):
    for col in range(3):
      square = attended[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
      expected[:, row, col] = square.mean(axis=(1, 2))
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_absolute_positions_are_added_to_the_input():
  absolute = PerPixelAttention(heads=2, window_size=3, position="absolute")
  bare = PerPixelAttention(heads=2, window_size=3, position="none")
  x = jax.random.normal(jax.random.key(0), (1, 7, 6, 8))
  variables = absolute.init(jax.random.key(1), x)
  output = absolute.apply(variables, x)
  np.testing.assert_allclose(
    output, bare.apply(variables, x + sinusoids(7, 6, 8)), atol=1e-6
  )
  assert np.abs(output - bare.apply(variables, x)).max() > 0.1


def test_sinusoids_tell_all_pixels_apart():
  table = np.asarray(sinusoids(9, 11, 16)).reshape(99, 16)
  apart = np.linalg.norm(table[:, None] - table, axis=-1)
  assert (apart + 10 * np.eye(99)).min() > 0.1
  # Rows in the first half of the channels, columns in the second.
  np.testing.assert_array_equal(
    sinusoids(9, 11, 16)[3, :, :8],
    sinusoids(9, 11, 16)[3, :1, :8].repeat(11, 0),
  )
  np.testing.assert_allclose(
    sinusoids(2, 2, 8)[1, 0, :4],
    [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)],
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  "layer, words",
  [
    (HaloAttention(2, 4, 1, position="polar"), "position is 'polar'"),
    (HaloAttention(2, 4, 1, downsampling="max"), "downsampling is 'max'"),
    (PerPixelAttention(2, 0), "window_size is 0; it must be a whole"),
    (PerPixelAttention(2, 3, position="polar"), "position is 'polar'"),
    (
      PerPixelAttention(2, 3, content=False, position="none"),
      "nothing is left",
    ),
    (PerPixelAttention(2, 3, stride=0), "stride is 0; it must be a whole"),
  ],
)
def test_impossible_layers_are_named(layer, words):
  with pytest.raises(ValueError, match=words):
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


SIZES = "heads", "block_size", "halo_size", "window_size", "size", "window"
LAYERS = (
  HaloAttention(2, 4, 1),
  TimmHaloAttention(2, 4, 1),
  PerPixelAttention(2, 3),
  GlobalAttention(2, 4),
  LambdaLayer(2, 3, functools.partial(nn.BatchNorm, True), 8, 8),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_impossible_maps_are_named(layer):
  """Also where no types are checked."""
  for x, words in (
    (jnp.ones((4, 4, 8)), "add a batch axis with x[None]"),
    (jnp.ones((4, 8)), "channels], not [4, 8]"),
    (jnp.ones((1, 4, 4, 8), jnp.uint8), "x has dtype uint8"),
  ):
    with pytest.raises(ValueError, match=re.escape(words)):
      layer.init(jax.random.key(0), x)


@pytest.mark.parametrize(
  "layer, field",
  [
    (layer, field)
    for layer in LAYERS
    for field in SIZES
    if hasattr(layer, field)
  ],
)
def test_impossible_sizes_are_named(layer, field):
  layer = layer.clone(**{field: -1})
  with pytest.raises(ValueError, match=f"{field} is -1; it must be a whole"):
    layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))
