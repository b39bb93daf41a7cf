"""Transformers of stages: what the host does beside its operators."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import halonet
from halonet.layers.merging import LinearMerging
from halonet.models.transformer import Transformer, resize_positions

IMAGES = jax.random.normal(jax.random.key(1), (2, 21, 27, 3))
NARROW = dict(widths=(8, 16), depths=(2, 1), heads=(1, 2), num_classes=5)
FAMILIES = {
  "swin_tiny": dict(window_size=3),
  "pvt_v2_b0": dict(sr_ratios=(2, 1), mlp_ratios=(2.0,)),
  "pvt_tiny": dict(sr_ratios=(2, 1), mlp_ratios=(2.0,), position_size=32),
  "slide_swin_tiny": dict(operators=("slide", "window"), window_size=3),
  "slide_pvt_tiny": dict(
    operators=("slide", "spatial_reduction"),
    sr_ratios=(2, 1),
    mlp_ratios=(2.0,),
    position_size=32,
  ),
}


def create(name, **fields):
  return halonet.create_model(name, **NARROW | FAMILIES[name] | fields)


def draw(model):
  """Returns variables that are not at their initial values."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.normal(size=x.shape) / math.sqrt(math.prod(x.shape[:-1])), x.dtype
    ),
    shapes,
  )


@pytest.fixture(scope="module", params=FAMILIES)
def narrow(request):
  model = create(request.param)
  return model, draw(model)


@pytest.mark.parametrize("shape", [(21, 27), (1, 1)])
def test_any_size_and_aspect(narrow, shape):
  model, variables = narrow
  assert variables.keys() == {"params"}  # No statistics of batches.
  images = jax.random.normal(jax.random.key(2), (2, *shape, 3))
  logits = jax.jit(model.apply)(variables, images)
  assert logits.shape == (2, 5) and logits.dtype == jnp.float32
  assert jnp.isfinite(logits).all()
  alone = jax.jit(model.apply)(variables, images[1:])
  np.testing.assert_allclose(alone, logits[1:], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32(narrow):
  model, variables = narrow
  exact = jax.jit(model.apply)(variables, IMAGES)
  rounded = jax.jit(
    Transformer(dataclasses.replace(model.spec, dtype="bfloat16")).apply
  )(variables, IMAGES)
  assert rounded.dtype == jnp.float32
  # Three blocks of about ten roundings of 2⁻⁹ each.
  error = jnp.abs(rounded - exact).max() / jnp.abs(exact).max()
  assert error <= 40 * 2**-9


def gradients(model, variables):
  """Logits in training mode, and gradients of all parameters."""

  @jax.jit
  def compute(params):
    def loss(params):
      logits = model.apply(
        {"params": params},
        IMAGES,
        train=True,
        rngs={"dropout": jax.random.key(3)},
      )
      return (logits**2).sum(), logits

    return jax.grad(loss, has_aux=True)(params)

  return compute(variables["params"])


def test_every_parameter_is_used(narrow):
  used = jax.tree.map(lambda x: bool((x != 0).any()), gradients(*narrow)[0])
  # A bias of all keys adds the same to all logits of a query.
  paths = jax.tree_util.tree_flatten_with_path(used)[0]
  unused = {jax.tree_util.keystr(path) for path, each in paths if not each}
  assert all("['key']['bias']" in path for path in unused)


def test_rematerialisation_changes_no_value():
  plain = create("pvt_tiny", drop_path=0.3, dropout=0.2)
  variables = draw(plain)
  expected = gradients(plain, variables)
  for remat in ("stage", "block"):
    changed = create("pvt_tiny", drop_path=0.3, dropout=0.2, remat=remat)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-4, atol=1e-4 * max(1, np.abs(b).max())
      ),
      gradients(changed, variables),
      expected,
    )


OPERATORS = {
  "halo": dict(block_size=4, halo_size=1),
  "per_pixel": dict(window_size=3),
  "global": dict(global_size=4),
  "lambda": dict(lambda_window=3),
  "conv": {},
}


@pytest.mark.parametrize("operator, fields", OPERATORS.items())
def test_other_operators_run_by_one_field(operator, fields):
  fields = NARROW | fields | {"depths": (1, 1)}
  if operator == "conv":
    del fields["heads"]
  else:
    fields["heads"] = 2, 2
  model = halonet.create_model("swin_tiny", operators=(operator,), **fields)
  variables = draw(model)
  assert jnp.isfinite(jax.jit(model.apply)(variables, IMAGES)).all()
  layer = "conv" if operator == "conv" else "attention"
  assert variables["params"]["stage1_block1"].keys() == {
    *(layer, f"{layer}_norm", "project", "mlp_norm", "mlp")
  }


def test_patterns_mix_operators():
  model = halonet.create_model(
    "swin_tiny",
    operators=("conv,window", "halo"),
    window_size=3,
    block_size=4,
    **NARROW | {"heads": (2, 2)},
  )
  found, logits = gradients(model, draw(model))
  assert jnp.isfinite(logits).all() and model.window == 4 + 2 * 3
  assert all(
    (leaf != 0).any() for leaf in jax.tree.leaves(found["stage2_block1"])
  )
  assert "conv" in found["stage1_block1"]
  assert "relative_bias" in found["stage1_block2"]["attention"]


def test_windows_work_in_a_resnet():
  model = halonet.create_model(
    "halonet_h0",
    operators=("window", "spatial_reduction"),
    base_width=8,
    depths=(1, 1),
    heads=(2, 2),
    sr_ratios=(2, 2),
    window_size=3,
  )
  logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), IMAGES)
  assert jnp.isfinite(logits).all() and model.window == 3


def test_merging_orders_pixels_as_published():
  class Merge(nn.Module):
    @nn.compact
    def __call__(self, x):
      norm = lambda name: lambda y: y  # noqa: E731
      return LinearMerging()(x, 4, norm, "merge")

  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  identity = {"params": {"merge": {"kernel": jnp.eye(4)}}}
  np.testing.assert_array_equal(
    Merge().apply(identity, x)[0],
    [
      [[0, 3, 1, 4], [2, 5, 0, 0]],
      [[6, 0, 7, 0], [8, 0, 0, 0]],
    ],
  )


def test_drop_path_rises_linearly_and_skips_branches():
  model = create("swin_tiny", drop_path=0.6)
  rates = [block.drop_path for block in model.spec.blocks]
  np.testing.assert_allclose(rates, [0, 0.3, 0.6])
  variables = draw(model)
  images = jnp.repeat(IMAGES[:1], 40, axis=0)
  logits = jax.jit(
    lambda key: model.apply(
      variables, images, train=True, rngs={"dropout": key}
    )
  )(jax.random.key(0))
  assert 8 < len(np.unique(np.asarray(logits[:, 0]).round(4))) < 40
  # At inference nothing is dropped, and no key is needed.
  logits = jax.jit(model.apply)(variables, images[:2])
  np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5)


def test_positions_and_the_token_count():
  model = create("pvt_tiny")
  params = draw(model)["params"]
  # Strides of 4 and 8.
  sides = [params[f"stage{n}_positions"].shape[0] for n in (1, 2)]
  assert sides == [8, 4]
  apply = jax.jit(model.apply)
  before = apply({"params": params}, IMAGES)
  for name in ("class_token", "class_token_position", "stage2_positions"):
    changed = params | {name: params[name] + 1}
    assert jnp.abs(apply({"params": changed}, IMAGES) - before).max() > 0


def test_positions_are_resized_bilinearly():
  table = np.arange(4.0)[:, None, None] + 10 * np.arange(4.0)[None, :, None]
  table = jnp.asarray(table, jnp.float32)
  np.testing.assert_array_equal(resize_positions(table, (4, 4)), table)
  smaller = resize_positions(table, (2, 4))
  np.testing.assert_allclose(smaller[:, 1, 0], [10.5, 12.5])
  larger = resize_positions(table, (8, 4))
  np.testing.assert_allclose(
    larger[:, 0, 0], np.clip(np.arange(8) / 2 - 0.25, 0, 3)
  )


def test_tables_and_positions_adapt_to_another_model():
  old, new = create("swin_tiny"), create("swin_tiny", window_size=5)
  path = "params/stage1_block2/attention/relative_bias"
  table = np.ones((5, 5, 1), np.float32)
  np.testing.assert_allclose(new.adapt(path, table, (9, 9, 1), old), 1)
  old, new = create("pvt_tiny"), create("pvt_tiny", position_size=64)
  table = np.ones((8, 8, 8), np.float32)
  path = "params/stage1_positions"
  np.testing.assert_allclose(new.adapt(path, table, (16, 16, 8), old), 1)
  path = "params/stage1_block1/mlp/expand/kernel"
  assert new.adapt(path, table, (16, 16, 8), old) is None


@pytest.mark.parametrize(
  "name, fields, words",
  [
    ("swin_tiny", dict(widths=(8,)), r"widths is \(8,\); it must have"),
    ("swin_tiny", dict(mlp_ratios=()), r"mlp_ratios is \(\); it must have"),
    ("swin_tiny", dict(mlp_ratios=(0.01,)), "stage1 are 0 wide"),
    ("swin_tiny", dict(heads=(5, 1)), "stage1_block1: heads is 5, which"),
    ("swin_tiny", dict(window_size=0), "window_size is 0"),
    ("swin_tiny", dict(merging="conv5"), "there is no merging conv5"),
    ("swin_tiny", dict(class_token=True), "operator window, which takes no"),
    ("pvt_v2_b0", dict(class_token=True), "mlp 'conv', which has no place"),
    ("pvt_v2_b0", dict(sr_ratios=(2,)), "sr_ratios is .* one entry per stage"),
    ("swin_tiny", dict(sr_ratios=(2, 1)), "operator spatial_reduction"),
    ("swin_tiny", dict(dtype="float8"), "there is no dtype float8"),
  ],
)
def test_impossible_models_are_refused(name, fields, words):
  with pytest.raises(ValueError, match=words):
    create(name, **fields)
