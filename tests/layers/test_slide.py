"""Layers of slide attention against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.layers.slide import SlideAttention, merge
from tests.layers import slide_drawn
from tests.layers.slide_drawn import (
  CASES,
  GOLDEN,
  from_authors,
  key,
  projected,
  run,
)
from tests.ops.test_shifted import error, loop


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def trained(layer, x):
  """Returns parameters as far from their start as after a training."""
  x = jnp.asarray(x, jnp.float32)
  params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
  leaves, tree = jax.tree.flatten(params)
  leaves = [
    jnp.asarray(leaf + 0.3 * draw(*leaf.shape, seed=i), jnp.float32)
    for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, leaves)


def by_hand(params, x, heads, window, reduction):
  """The layer's formula in float64; kernels and biases are added by hand."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  query, key, value = (
    np.einsum("bhwc,cnd->bhwnd", x, params[name]["kernel"])
    + params[name]["bias"]
    for name in ("query", "key", "value")
  )
  query *= (x.shape[-1] / heads) ** -0.5
  one_hot = np.zeros((window, window, query.shape[-1], window**2))
  for shift in range(window**2):
    one_hot[shift // window, shift % window, :, shift] = 1
  options = {}
  for mine, theirs in (("", "shift"), ("value_", "value_shift")):
    if theirs in params:
      options[f"{mine}kernel"] = params[theirs]["kernel"]
      options[f"{mine}bias"] = params[theirs]["bias"]
    elif f"deformed_{theirs}" in params:
      learned = params[f"deformed_{theirs}"]
      options[f"{mine}kernel"] = one_hot + learned["kernel"]
      options[f"{mine}bias"] = learned["bias"] + params.get("fixed_bias", 0)
  if not options:
    options = {"kernel": one_hot, "bias": params.get("fixed_bias")}
  output = loop(
    query,
    key,
    value,
    table=params["offset_table"],
    window_size=window,
    **options,
  )
  return output.reshape(*x.shape[:3], -1)


@pytest.mark.parametrize(
  "options",
  [
    {},
    dict(window_size=5, shared_shifts=False),
    dict(shared_shifts=False, fixed_bias=False, reduction=2),
    dict(shifts="fixed"),
    dict(shifts="fixed", fixed_bias=False),
    dict(shifts="merged", reduction=4),
  ],
  ids=str,
)
def test_the_layer_is_its_formula(options):
  layer = SlideAttention(heads=2, **options)
  x = draw(1, 4, 3, 16)
  params = trained(layer, x)
  wanted = by_hand(params, x, 2, layer.window_size, layer.reduction)
  output = jax.jit(layer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
  assert output.shape == (1, 4, 3, 16 // layer.reduction)
  assert error(output, wanted) <= 1e-5


def test_the_default_has_the_authors_parameters():
  layer = SlideAttention(heads=3)
  x = jnp.zeros((1, 7, 6, 96))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
  projection = {"kernel": (96, 3, 32), "bias": (3, 32)}
  assert jax.tree.map(jnp.shape, shapes) == {
    "query": projection,
    "key": projection,
    "value": projection,
    "offset_table": (3, 9),
    "fixed_bias": (32, 9),
    "deformed_shift": {"kernel": (3, 3, 32, 9), "bias": (32, 9)},
  }


def test_the_start():
  x = jnp.asarray(draw(1, 5, 6, 96), jnp.float32)
  init = jax.jit(SlideAttention(heads=3).init)
  params = init(jax.random.key(0), x)["params"]
  shift = params["deformed_shift"]
  for array in (shift["kernel"], shift["bias"], params["fixed_bias"]):
    assert 0.3 < np.abs(array).max() <= 1 / 3
    assert abs(array.mean()) < 0.05
  for array in (params["query"]["kernel"], params["offset_table"]):
    assert 0.01 < array.std() < 0.03
  # Zeros make it plain local attention.
  plain, deformed = (
    SlideAttention(heads=3, shifts=shifts, shift_init="zeros")
    for shifts in ("fixed", "deformed")
  )
  params = jax.jit(deformed.init)(jax.random.key(0), x)["params"]
  fixed = {k: v for k, v in params.items() if k != "deformed_shift"}
  np.testing.assert_allclose(
    deformed.apply({"params": params}, x),
    plain.apply({"params": fixed}, x),
    atol=1e-6,
  )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fixed_bias", [True, False])
def test_merged_layers_put_out_the_same(shared, fixed_bias):
  options = dict(heads=2, shared_shifts=shared)
  layer = SlideAttention(fixed_bias=fixed_bias, **options)
  x = jnp.asarray(draw(2, 7, 6, 16), jnp.float32)
  params = trained(layer, x)
  expected = jax.jit(layer.apply)({"params": params}, x)
  merged = SlideAttention(shifts="merged", **options)
  actual = jax.jit(merged.apply)({"params": merge(params)}, x)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  wanted = jax.eval_shape(merged.init, jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, merge(params)) == jax.tree.map(
    jnp.shape, wanted
  )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_as_the_authors_layer(case):
  """In its own layout, from weights of theirs; see scripts/parity_slide.py."""
  golden = np.load(GOLDEN)
  _, state, x, weight = slide_drawn.draw(case)
  params = from_authors(state, case)
  *_, heads, window = case
  with jax.enable_x64():
    layer = SlideAttention(heads, window, dtype=jnp.float64)
    output, *gradients = run(layer, params, x, weight)
    merged = SlideAttention(heads, window, shifts="merged", dtype=jnp.float64)
    other = jax.jit(merged.apply)({"params": merge(params)}, x)
    for actual in (output, other):
      assert error(actual, golden[key(case, "output")]) <= 1e-12
    assert error(projected(*gradients), golden[key(case, "gradient")]) <= 1e-12


def model(**fields):
  return halonet.create_model(
    "slide_swin_tiny",
    depths=(1, 1),
    heads=(2, 4),
    widths=(16, 32),
    operators=("slide",),
    num_classes=5,
    **fields,
  )


def test_a_model_trains_and_merges():
  images = jnp.asarray(draw(4, 36, 28, 3), jnp.float32)
  labels = jnp.arange(4)
  network = model()
  params = jax.jit(network.init)(jax.random.key(0), images)["params"]

  @jax.jit
  def step(params):
    def loss(params):
      logits = network.apply({"params": params}, images)
      return -jax.nn.log_softmax(logits)[labels, labels].mean()

    value, gradients = jax.value_and_grad(loss)(params)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
    return value, gradients, moved

  first, gradients, params = step(params)
  for _ in range(3):
    last, gradients, params = step(params)
  assert last < first
  trained_shifts = gradients["stage1_block1"]["attention"]
  for name in ("fixed_bias", "offset_table"):
    assert np.abs(trained_shifts[name]).max() > 0
  expected = jax.jit(network.apply)({"params": params}, images)
  actual = jax.jit(model(slide_shifts="merged").apply)(
    {"params": merge(params)}, images
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(slide_window=4), "slide_window is 4; it must be odd"),
    (dict(slide_window=33), "slide_window is 33; it must be at least 1 and at"),
    (
      dict(slide_reduction=3),
      "slide_reduction is 3; it must divide the width, 16",
    ),
    (dict(slide_reduction=16), "heads is 2, which does not divide"),
    (dict(slide_shifts="learned"), "slide_shifts"),
    (dict(slide_init="normal"), "slide_init"),
  ],
)
def test_slips_are_named(fields, words):
  with pytest.raises(ValueError) as caught:
    model(**fields)
  assert words in str(caught.value)
