"""The family against the paper's table: counts, shapes, any image size."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.models.registry import get_entry
from halonet.models.resnet import ResNet
from halonet.models.transformer import Transformer
from tests.models.test_parameter_counts import (
  MILLIONS,
  OTHERS,
  PARAMETERS,
  abstract_variables,
)


@pytest.mark.parametrize(
  "name",
  [
    n
    for n in halonet.list_models()
    if get_entry(n).host in (ResNet, Transformer)
  ],
)
def test_features_at_an_odd_size_are_as_announced(name):
  model = halonet.create_model(name)
  images = jax.ShapeDtypeStruct((1, 97, 131, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  features = jax.eval_shape(
    lambda variables, images: model.apply(variables, images, method="features"),
    variables,
    images,
  )
  assert {name: feature.shape for name, feature in features.items()} == {
    info.name: (
      1,
      math.ceil(97 / info.stride),
      math.ceil(131 / info.stride),
      info.channels,
    )
    for info in model.spec.feature_info
  }


def gate_size(width, ratio):
  """A matrix and a bias down to the hidden layer, and up again."""
  hidden = max(8, int(width * ratio))
  return 2 * width * hidden + hidden + width


@pytest.mark.parametrize(
  "plain, gated, ratio",
  [
    ("resnet50", "resnet50_se", 1 / 16),
    ("halonet50", "halonet50_se", 1 / 16),
    ("resnet50", "resnet50_se8", 1 / 8),
    ("resnet101", "resnet101_se8", 1 / 8),
  ],
)
def test_gates_follow_the_spatial_operators(plain, gated, ratio):
  blocks = halonet.create_model(plain).spec.blocks
  added = sum(gate_size(block.width, ratio) for block in blocks)
  assert OTHERS[gated] - OTHERS[plain] == added


@pytest.mark.parametrize("name, block_size", [("b8", 8), ("b32", 32)])
def test_halo_backbones_differ_in_three_layers_without_gates(name, block_size):
  tables = 2 * (2 * (block_size + 3) - 1) * 32  # Heads are 64 wide.
  layer = 9 * 512**2 - 3 * 512**2 - tables + gate_size(512, 1 / 8)
  for resnet in ("resnet50_se8", "resnet101_se8"):
    if (halo := f"{resnet}_halo_{name}") in OTHERS:
      assert OTHERS[resnet] - OTHERS[halo] == 3 * layer


@pytest.mark.parametrize(
  "ending, layers",
  {"layers98": 98, "rv3": 50, "rw125": 50, "rb65": 50, "rqk65": 50}.items(),
)
def test_table_a1_enlarges_the_last_model_of_table_3(ending, layers):
  last = halonet.create_model("halonet50_se_silu").spec
  spec = halonet.create_model(f"halonet50_{ending}").spec
  assert 3 * len(spec.blocks) + 2 == layers
  changed = {
    f.name
    for f in dataclasses.fields(spec)
    if getattr(spec, f.name) != getattr(last, f.name)
  }
  assert changed <= {"depths", "rb", "base_width", "stem_width", "options"}
  # The paper's "about 30 M".
  assert abs(OTHERS[f"halonet50_{ending}"] - 30e6) < 2.5e6


@pytest.mark.parametrize(
  ("stem", "fields", "first"),
  [
    (stem, {"stem_pool": pool}, 4)
    for stem in ("conv7", "conv3", "tiered")
    for pool in (True, False)
  ]
  + [("patch4", {}, 4), ("cifar", {}, 1), ("cifar", {"stem_stride": 2}, 2)],
)
def test_strides_follow_from_the_stem(stem, fields, first):
  model = halonet.create_model(
    "halonet_h1",
    stem=stem,
    **fields,
    base_width=8,
    depths=(1, 1),
    heads=(2, 2),
  )
  images = jnp.ones((1, 61, 35, 3))
  variables = abstract_variables(model)
  features = jax.eval_shape(
    lambda variables: model.apply(variables, images, method="features"),
    variables,
  )
  for info in model.spec.feature_info:
    shape = features[info.name].shape
    assert shape[1:3] == (
      math.ceil(61 / info.stride),
      math.ceil(35 / info.stride),
    )
  assert [info.stride for info in model.spec.feature_info] == [first, 2 * first]


def test_float64_asks_for_x64():
  model = halonet.create_model("halonet_h0", dtype="float64")
  with pytest.raises(ValueError, match="asks for jax_enable_x64"):
    abstract_variables(model)


def test_counts_round_to_the_paper():
  counts = [round(count / 1e6, 2) for count in PARAMETERS.values()]
  assert tuple(counts) == MILLIONS


NARROW = dict(
  name="halonet_h3",
  base_width=8,
  depths=(1, 2, 1, 1),
  heads=(1, 2, 4, 4),
  df=24,
  num_classes=7,
)


@pytest.fixture(scope="module")
def narrow():
  """A narrow H3, with d_f, and its variables, not at their initial values."""
  model = halonet.create_model(**NARROW)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.uniform(size=x.shape), x.dtype),
    variables,
  )
  return model, variables


@pytest.mark.parametrize("shape", [(70, 51), (33, 90), (1, 1)])
def test_any_size_and_aspect(narrow, shape):
  model, variables = narrow
  images = np.random.default_rng(1).normal(size=(2, *shape, 3))
  images = jnp.asarray(images, jnp.float32)
  logits = jax.jit(model.apply)(variables, images)
  assert logits.shape == (2, 7)
  assert jnp.isfinite(logits).all()
  # Images do not see each other, and a batch of one works.
  alone = jax.jit(model.apply)(variables, images[1:])
  np.testing.assert_allclose(alone, logits[1:], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32(narrow):
  model, variables = narrow
  images = np.random.default_rng(1).normal(size=(2, 40, 40, 3))
  images = jnp.asarray(images, jnp.float32)
  exact = jax.jit(model.apply)(variables, images)
  rounded = jax.jit(
    ResNet(dataclasses.replace(model.spec, dtype="bfloat16")).apply
  )(variables, images)
  assert rounded.dtype == jnp.float32
  # Five blocks of about ten roundings of 2⁻⁹ each.
  error = jnp.abs(rounded - exact).max() / jnp.abs(exact).max()
  assert error <= 50 * 2**-9


def test_training_mode_updates_statistics_and_every_parameter(narrow):
  model, variables = narrow
  images = np.random.default_rng(1).normal(size=(4, 40, 40, 3))
  images = jnp.asarray(images, jnp.float32)

  @jax.jit
  def loss(params):
    logits, updates = model.apply(
      variables | {"params": params}, images, train=True, mutable="batch_stats"
    )
    return (logits**2).sum(), updates

  gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
  changed = jax.tree.map(
    lambda old, new: bool((old != new).any()),
    variables["batch_stats"],
    updates["batch_stats"],
  )
  assert all(jax.tree.leaves(changed))
  used = jax.tree.map(lambda gradient: bool((gradient != 0).any()), gradients)
  assert all(jax.tree.leaves(used))


def test_drop_path_skips_whole_blocks_for_some_examples():
  model = halonet.create_model(
    "halonet_h1",
    base_width=8,
    depths=(3,),
    heads=(2,),
    num_classes=3,
    drop_path=0.5,
    activation="relu",  # It changes nothing the second time.
    zero_init_residual=False,
  )
  drop = [block.drop_path for block in model.spec.stages[0]]
  assert drop == [0.0, 0.25, 0.5]
  images = jnp.ones((1, 16, 16, 3)) * jnp.arange(200)[:, None, None, None] / 99
  variables = model.init(jax.random.key(0), images[:1])

  def last_branch(key):
    outputs = model.apply(
      variables,
      images,
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=lambda module, _: (
        module.name in ("stage1_block2", "stage1_block3")
      ),
    )[1]["intermediates"]
    before, after = (outputs[f"stage1_block{n}"]["__call__"][0] for n in (2, 3))
    return (before == after).all(axis=(1, 2, 3))

  skipped = last_branch(jax.random.key(0))
  assert 70 <= skipped.sum() <= 130
  assert (skipped != last_branch(jax.random.key(1))).any()
  # At inference nothing is dropped, and no key is needed.
  assert jnp.isfinite(model.apply(variables, images[:2])).all()


def test_a_classifier_may_start_at_zero():
  """HaloNet's fine-tuning (table 6) does; then all logits are the bias."""
  fields = dict(base_width=8, depths=(1,), heads=(2,), num_classes=3)
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  for zero in (True, False):
    model = halonet.create_model(
      "halonet_h0", **fields, zero_init_classifier=zero
    )
    logits, variables = model.init_with_output(jax.random.key(0), images)
    assert bool((logits == 0).all()) is zero
    bias = jnp.arange(3.0)
    variables["params"]["classifier"]["bias"] = bias
    assert bool((model.apply(variables, images) == bias).all()) is zero


@pytest.mark.parametrize(
  "name, parameters",
  {
    "resnet50": 23_508_032,  # torchvision's without its fc.
    "halonet_h3": 11_817_928 - 1024 * (1000 + 2 + 8 * 64 * 1.5) - 1000,
    "swin_tiny": 28_288_354 - 768 * (1000 + 2) - 1000,
    "pvt_tiny": 13_229_288 - 512 * (1000 + 2) - 1000,
    "pvt_v2_b0": 3_666_760 - 256 * 1000 - 1000,
  }.items(),
)
def test_without_classes_features_are_pooled(name, parameters):
  """Neither a classifier nor what comes before it is left."""
  model = halonet.create_model(name, num_classes=0)
  variables = abstract_variables(model)
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
  pooled, features = (
    jax.eval_shape(functools.partial(model.apply, method=method), *arguments)
    for method in (None, "features")
    for arguments in [(variables, jnp.zeros((2, 70, 51, 3)))]
  )
  last = model.spec.feature_info[-1]
  assert pooled.shape == (2, last.channels) and pooled.dtype == jnp.float32
  assert features[last.name].shape[-1] == last.channels


def test_pooled_features_are_those_that_are_classified(narrow):
  _, variables = narrow
  images = jax.random.normal(jax.random.key(0), (2, 40, 33, 3))
  body = halonet.create_model(**NARROW | dict(num_classes=0))
  shapes = jax.eval_shape(body.init, jax.random.key(0), images)
  variables = {
    kind: {name: variables[kind][name] for name in tree}
    for kind, tree in shapes.items()
  }
  pooled = jax.jit(body.apply)(variables, images)
  last = body.apply(variables, images, method="features")["stage4"]
  np.testing.assert_allclose(pooled, last.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_lists_are_taken_for_tuples():
  model = halonet.create_model("halonet_h1", depths=[1, 1], heads=[2, 2])
  assert model.spec.depths == (1, 1)
  hash(model)


@pytest.mark.parametrize(
  "change",
  [
    dict(mask_padding=False),
    dict(mask_window=True),
    dict(downsampling="pool"),
  ],
)
def test_attention_options_reach_the_attention(narrow, change):
  model, variables = narrow
  images = jax.random.normal(jax.random.key(0), (1, 70, 51, 3))
  changed = halonet.create_model(**NARROW, **change)
  before, after = (
    jax.jit(m.apply)(variables, images) for m in (model, changed)
  )
  assert jnp.abs(before - after).max() > 1e-4


def test_blocks_start_as_the_identity():
  model = halonet.create_model(
    "halonet_h1", base_width=8, depths=(2,), heads=(2,), num_classes=3
  )
  variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  scale = variables["params"]["stage1_block2"]["expand_norm"]["scale"]
  assert (scale == 0).all()
  model = ResNet(dataclasses.replace(model.spec, zero_init_residual=False))
  variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  scale = variables["params"]["stage1_block2"]["expand_norm"]["scale"]
  assert (scale == 1).all()


@pytest.mark.parametrize(
  "overrides, message",
  [
    (dict(block_size=0), "block_size is 0; it must be at least 1"),
    (dict(halo_size=-1), "halo_size is -1; it must be at least 0"),
    (dict(heads=(3, 8, 8, 8)), "stage1_block1: heads is 3, which does not"),
    (dict(heads=(4, 8)), "heads is .*one entry per stage"),
    (dict(heads=(0, 8, 8, 8)), r"heads is \(0, 8, 8, 8\); it must be"),
    (dict(depths=()), "depths is"),
    (dict(depths=(1, 0, 1, 1)), "depths is"),
    (dict(rv=0.3), "rv is 0.3; rv times 64"),
    (dict(rqk=0.3), "rqk is 0.3; rqk times 64"),
    (dict(rqk=1 / 16), "stage1_block1: heads is 4, .* query width 4 to an"),
    (dict(rb=-1.0), "rb is -1.0"),
    (dict(df=0), "df is 0"),
    (dict(num_classes=-1), "num_classes is -1"),
    (dict(num_classes=0, dropout=0.1), "dropout is 0.1, and num_classes 0"),
    (dict(num_classes=0, zero_init_classifier=True), "leave zero_init_clas"),
    (dict(dtype="float8"), "there is no dtype float8"),
    (dict(block_size=2.5), "block_size is 2.5; it must be a whole number"),
    (dict(block_size="8"), "block_size is '8'"),
    (dict(depths=2), "depths is 2; it must be a tuple"),
    (dict(mask_padding=1), "mask_padding is 1; it must be true or false"),
    (dict(rb=float("inf")), "rb is inf; it must be a finite number"),
    (dict(stem="conv9"), "there is no stem conv9"),
    (
      dict(stem="tiered", base_width=4),
      "the stem.s width is 4; the tiered one",
    ),
    (dict(block_type="timm", out_widths=(8, 8, 0, 8)), "out_widths is"),
    (dict(block_type="timm", out_widths=(8,)), "one entry per stage"),
    (
      dict(operators=("timm_halo",), qk_ratio=0.01, heads=(16, 8, 8, 8)),
      "the query width is 0; it must be",
    ),
    (dict(operators=("h",)), "there is no operator h; .*known: conv, .*global"),
    (dict(operators=()), "operators is"),
    (dict(operators=("conv", "")), "there is no operator ;"),
    (dict(operators=("conv",), group_width=7), "group_width is 7"),
    (dict(operators=("lambda",), lambda_window=4), "4; it must be odd"),
    (dict(drop_path=1.0), "drop_path is 1.0"),
    (dict(dropout=-0.1), "dropout is -0.1"),
    (dict(batch_norm_group=-1), "batch_norm_group is -1"),
    (dict(batch_norm_momentum=1.0), "batch_norm_momentum is 1.0"),
    (dict(remat="all"), "there is no remat all; .*block"),
  ],
)
def test_impossible_models_are_refused(overrides, message):
  with pytest.raises(ValueError, match=message):
    halonet.create_model("halonet_h0", **overrides)
