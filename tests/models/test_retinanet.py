"""RetinaNet: SASA's table 2, outputs in the order of the anchors, gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import halonet
from halonet.cost import model as model_cost
from halonet.models import registry
from halonet.models.fpn import HEADS, WINDOW
from halonet.ops import boxes as box_ops
from tests.models.test_parameter_counts import OTHERS, abstract_variables, count

BODY = 23_508_032  # torchvision's ResNet-50 without its fc.
WIDTH = 256
# A product, and tables of 7 rows and columns of half a head's 32 channels.
ATTENTION = 3 * WIDTH**2 + 2 * 7 * 16


def conv(side, inputs, outputs):
  return side**2 * inputs * outputs + outputs


def test_parameters_follow_from_the_layers():
  fpn = sum(conv(1, stage, WIDTH) for stage in (512, 1024, 2048))
  layer = conv(3, WIDTH, WIDTH)
  norms = (5 + 2 * 4 * 5) * 2 * WIDTH
  outputs = 6 * 90, 6 * 4
  convolutional = 8 * layer + sum(conv(3, WIDTH, n) for n in outputs)
  attentional = 10 * ATTENTION + sum(conv(1, WIDTH, n) for n in outputs)
  base = fpn + 5 * layer + norms
  assert OTHERS["retinanet_resnet50"] == BODY + base + convolutional
  for ending in ("", "_full"):
    body = OTHERS[f"sasa_resnet50{ending}"] - conv(1, 2048, 1000)
    name = f"retinanet_sasa_resnet50{ending}"
    assert OTHERS[name] == body + base + convolutional
    assert OTHERS[f"{name}_attention"] == body + base + attentional
  # The text's: attention in place of the pyramid's convolutions, too.
  model = halonet.create_model(
    "retinanet_sasa_resnet50_attention", fpn_operator="per_pixel"
  )
  everywhere = OTHERS["retinanet_sasa_resnet50_attention"]
  everywhere += 5 * (ATTENTION - layer)
  assert count(abstract_variables(model)["params"]) == everywhere == 20_005_244


@pytest.mark.parametrize(
  "name, millions, flops",
  [
    ("retinanet_resnet50", 33.42, 182.3),
    ("retinanet_sasa_resnet50", 25.88, 172.4),
    ("retinanet_sasa_resnet50_attention", 21.97, 110.5),
  ],
)
def test_costs_are_those_of_table_2(name, millions, flops):
  counts = model_cost.count(halonet.create_model(name), 640)
  assert round(counts.total.parameters / 1e6, 2) == millions
  # Taps of convolutions on the padding are not counted.
  assert counts.total.flops / 1e9 == pytest.approx(flops, rel=0.02)
  assert not counts.unknown
  stages = counts.by("stage")
  assert {"stem", "stage1", "stage4", "fpn", "class_head"} <= stages.keys()
  body = model_cost.count(
    halonet.create_model(name.split("_", 1)[1].removesuffix("_attention")), 640
  ).by("stage")
  assert stages["stage2"] == body["stage2"]


@pytest.mark.parametrize(
  "backbone",
  ["halonet_h0", "swin_tiny", "pvt_tiny", "slide_pvt_v2_b1", "resnet26"],
)
def test_any_backbone_at_an_odd_size(backbone):
  model = halonet.create_model(
    "retinanet_resnet50", backbone=backbone, num_classes=3, fpn_width=32
  )
  variables = abstract_variables(model)
  images = jnp.zeros((2, 97, 203, 3))
  outputs, features = (
    jax.eval_shape(
      functools.partial(model.apply, method=method), variables, images
    )
    for method in (None, "features")
  )
  anchors = model.anchors(97, 203)
  assert outputs["class_logits"].shape == (2, len(anchors), 3)
  assert outputs["box_deltas"].shape == (2, len(anchors), 4)
  assert {name: x.shape for name, x in features.items()} == {
    info.name: (2, -(-97 // info.stride), -(-203 // info.stride), 32)
    for info in model.feature_info
  }
  assert list(features) == ["p3", "p4", "p5", "p6", "p7"]


CONV = dict(
  name="retinanet_resnet50",
  num_classes=3,
  levels=(3, 5),
  fpn_width=16,
  head_depth=1,
  depths=(1, 1, 1),
  base_width=8,
)
NARROW = CONV | dict(
  head_operator="per_pixel",
  fpn_operator="per_pixel",
  depths=(1, 1),
  levels=(3, 4),
)
KINDS = {"conv": CONV, "attention": NARROW}


@functools.cache
def drawn(kind):
  """Returns a narrow detector and variables, not at their first values."""
  model = halonet.create_model(**KINDS[kind])
  shapes = jax.eval_shape(model.init, jax.random.key(0), images())
  rng = np.random.default_rng(0)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(
      rng.uniform(0.5, 1, x.shape)
      if x.ndim == 1
      else rng.normal(size=x.shape) / math.sqrt(math.prod(x.shape[:-1])),
      jnp.float32,
    ),
    shapes,
  )
  return model, variables


def images(height=61, width=43, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)


def test_outputs_are_in_the_order_of_the_anchors():
  model, variables = drawn("conv")
  outputs, state = jax.tree.map(
    np.asarray,
    jax.jit(
      functools.partial(
        model.apply,
        capture_intermediates=lambda module, _: (
          module.name == "conv" and "output" in module.path[0]
        ),
        mutable=["intermediates"],
      )
    )(variables, images()),
  )
  anchors = model.anchors(61, 43)
  middles = np.asarray(anchors[:, :2] + anchors[:, 2:]) / 2
  areas = np.asarray(box_ops.areas(anchors))
  for name, kind, width in (
    ("class_logits", "class_output", 3),
    ("box_deltas", "box_output", 4),
  ):
    maps = state["intermediates"][kind]["conv"]["__call__"]
    row, found, expected = 0, [], []
    for level, each in enumerate(maps, start=3):
      side = 4 * 2**level
      for i, j, anchor in np.ndindex(*each.shape[1:3], 6):
        actual = outputs[name][:, row]
        np.testing.assert_array_equal(
          actual, each[:, i, j, anchor * width : (anchor + 1) * width]
        )
        found.append((middles[row] / 2**level, areas[row] / side**2))
        expected.append(((i + 0.5, j + 0.5), [1, 2][anchor // 3]))
        row += 1
    assert row == len(anchors) == outputs[name].shape[1]
    for actual, wanted in zip(found, expected, strict=True):
      np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-5)
      np.testing.assert_allclose(actual[1], wanted[1], rtol=1e-4)


@pytest.mark.parametrize("kind", ["attention", "conv"])
def test_every_parameter_learns_and_every_statistic_follows(kind):
  model, variables = drawn(kind)

  @jax.jit
  def loss(params):
    outputs, updates = model.apply(
      variables | {"params": params},
      images(),
      train=True,
      mutable="batch_stats",
    )
    return sum((x**2).sum() for x in outputs.values()), updates

  gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
  unused = [
    path
    for path, x in traverse_util.flatten_dict(gradients, sep="/").items()
    if not ((x != 0).any() and jnp.isfinite(x).all())
  ]
  # A bias changes nothing before the mean is taken off.
  assert not [path for path in unused if not path.endswith("conv/bias")]
  changed = jax.tree.map(
    lambda old, new: bool((old != new).any()),
    variables["batch_stats"],
    updates["batch_stats"],
  )
  assert all(jax.tree.leaves(changed)), changed


def gradients(remat):
  """Returns a function of a narrow detector's variables."""
  model = halonet.create_model(**CONV, remat=remat)

  def loss(params, statistics):
    outputs, updates = model.apply(
      {"params": params, "batch_stats": statistics},
      images(),
      train=True,
      mutable="batch_stats",
    )
    return sum((x**2).mean() for x in outputs.values()), updates

  grad = jax.grad(loss, has_aux=True)
  return lambda x: grad(x["params"], x["batch_stats"])


def test_recomputation_changes_nothing():
  _, variables = drawn("conv")
  plain, again = (jax.jit(gradients(x))(variables) for x in ("none", "block"))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(plain[0]))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-3, atol=1e-5 * largest
    ),
    again,
    plain,
  )


@pytest.mark.parametrize(
  "remat, parts",
  [
    ("none", 0),
    # Stages, pyramid, two heads and their last layers;
    ("stage", 3 + 1 + 2 + 2),
    ("block", 3 + 1 + 2 + 2),  # blocks, and one layer of each head.
  ],
)
def test_what_is_computed_again(remat, parts):
  _, variables = drawn("conv")
  program = str(jax.make_jaxpr(gradients(remat))(variables))
  assert len(re.findall(r"= (?:remat2|checkpoint)\[", program)) == parts


@pytest.mark.parametrize("kind", ["attention", "conv"])
def test_bfloat16_is_near_float32(kind):
  model, variables = drawn(kind)
  narrow = halonet.create_model(**KINDS[kind], dtype="bfloat16")
  assert narrow.backbone.spec.dtype == "bfloat16"
  exact, rounded = (
    jax.jit(each.apply)(variables, images()) for each in (model, narrow)
  )
  for name, x in exact.items():
    assert rounded[name].dtype == jnp.float32
    # Ten layers of about ten roundings of 2⁻⁹ each.
    error = jnp.abs(rounded[name] - x).max() / jnp.abs(x).max()
    assert error <= 100 * 2**-9
    # The last layers are not rounded.
    assert (rounded[name] != rounded[name].astype(jnp.bfloat16)).any()


def test_an_untrained_model_sees_few_objects():
  model = halonet.create_model(**NARROW)
  params = jax.jit(model.init)(jax.random.key(0), images())["params"]
  for kind, score in (("class", 0.01), ("box", 0.5)):
    conv = params[f"{kind}_output"]["conv"]
    np.testing.assert_allclose(jax.nn.sigmoid(conv["bias"]), score, rtol=1e-5)
    assert 5e-6 < conv["kernel"].std() < 2e-5
  for module in (params["class_head"]["layer1"], params["box_output"]):
    deviation = module["attention"]["value"]["kernel"].std()
    assert 0.008 < deviation < 0.012
  assert params["fpn"]["output3"]["value"]["kernel"].std() > 0.1


def test_objects_that_the_outputs_tell_are_detected():
  model = halonet.create_model(**CONV)
  anchors = model.anchors(70, 90)
  boxes = jnp.array([[3.0, 5, 40, 60], [20, 30, 65, 88]])
  rows = jnp.array([10, len(anchors) - 1])  # Of the first and the last level.
  logits = jnp.full((1, len(anchors), 3), -9.0)
  logits = logits.at[0, rows, jnp.array([2, 0])].set(jnp.array([1.0, 2]))
  deltas = jnp.zeros((1, len(anchors), 4))
  deltas = deltas.at[0, rows].set(box_ops.encode(boxes, anchors[rows]))
  outputs = {"class_logits": logits, "box_deltas": deltas}
  found = jax.jit(lambda x: model.detect(x, (70, 90), most=5))(outputs)
  assert found.count == 2 and list(found.labels[0]) == [0, 2, -1, -1, -1]
  np.testing.assert_allclose(
    found.boxes[0, :2], boxes[::-1], rtol=1e-4, atol=1e-3
  )
  sizes = jnp.array([[50.0, 70.0]])
  cut = model.detect(outputs, (70, 90), sizes, most=5)
  np.testing.assert_allclose(cut.boxes[0, 0], [20, 30, 50, 70], rtol=1e-4)


def test_fields_of_the_backbone_are_the_detectors():
  model = halonet.create_model(
    "retinanet_resnet50",
    backbone="halonet_h3",
    block_size=5,
    drop_path=0.3,
    batch_norm_group=2,
    batch_norm_momentum=0.5,
    remat="block",
    num_classes=7,
    fpn_operator="per_pixel",
  )
  body = model.backbone.spec
  assert dict(body.options)["block_size"] == 5 and body.drop_path == 0.3
  for spec in (model.spec, body):
    assert (spec.batch_norm_group, spec.batch_norm_momentum) == (2, 0.5)
    assert spec.remat == "block"
  assert (model.spec.num_classes, body.num_classes) == (7, 0)
  assert model.window == max(WINDOW, 5 + 2 * 3)
  fields = registry.model_fields("retinanet_resnet50")
  assert fields["depths"].default == (3, 4, 6, 3)
  assert not {"df", "dropout", "attention_implementation"} & fields.keys()


def test_tables_of_another_window_are_resized():
  small, large = (
    halonet.create_model("retinanet_sasa_resnet50_attention", window_size=size)
    for size in (5, 7)
  )
  path = "params/backbone/stage1_block1/attention/relative_height"
  table = np.arange(10.0).reshape(5, 2)
  resized = large.adapt(path, table, (7, 2), small)
  np.testing.assert_allclose(resized[:, 0], np.linspace(0, 8, 7))
  path = "params/class_head/layer1/attention/relative_height"
  assert large.adapt(path, table, (7, 2), small) is None
  assert large.adapt(path, table, (5, 2), small) is table


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(backbone="resnet5"), "backbone: there is no model resnet5; did you"),
    (dict(backbone="retinanet_resnet50"), "which has no stages; take a clas"),
    (dict(levels=(1, 7)), "first has a stride of 2; resnet50 has stages with"),
    (dict(levels=(3, 4)), "the last must be at least 5, that of the last"),
    (dict(levels=(3,)), "it must have 2 items"),
    (dict(anchor_ratios=()), r"anchor_ratios is \(\); it must name one"),
    (
      dict(fpn_width=24, head_operator="per_pixel"),
      f"fpn_width is 24; the {HEADS} heads of the attention ask for a multiple",
    ),
    (dict(head_operator="halo"), "there is no head_operator halo; .*known: c"),
    (dict(dropout=0.1), "no field of retinanet_resnet50, dropout; did you"),
    (dict(num_classes=0), "num_classes is 0; it must be at least 1"),
    (dict(heads=(1, 1, 1, 1)), "no field of retinanet_resnet50, heads"),
  ],
)
def test_impossible_detectors_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    halonet.create_model("retinanet_resnet50", **fields)
