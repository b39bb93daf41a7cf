"""Weights for a part of a model, such as the backbone of a detector."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from halonet.errors import UsageError
from halonet.fields import Field
from halonet.interop import pretrained
from halonet.models import registry
from halonet.models.inner import Inner
from halonet.models.registry import create_model
from halonet.parallel import make_mesh
from halonet.training import initialise
from halonet.training.restore import restore_model
from halonet.training.state import TrainState
from halonet.training.workdir import Workdir
from tests.layers.test_base import resize
from tests.training.test_initialise import SMALL, TIMM, draw, flat

RESNET = SMALL | dict(depths=(1, 1, 1, 1))
del RESNET["heads"]


class Trunk(nn.Module):
  """A backbone; with no classes it ends with its features."""

  width: int = 8
  num_classes: int = 5

  last_modules = "final", "classifier"

  @nn.compact
  def __call__(self, x, train=False):
    x = self.features(x, train)
    if self.num_classes:
      x = nn.Dense(6, name="final")(x.mean((1, 2)))
      x = nn.Dense(self.num_classes, name="classifier")(x)
    return x

  @nn.compact
  def features(self, x, train=False):
    x = nn.Conv(self.width, (3, 3), name="stem")(x)
    return nn.BatchNorm(not train, name="stem_norm")(x)


class Detector(nn.Module):
  """Any backbone, a neck, and a head."""

  chosen: tuple
  outputs: int

  head_modules = ("class_head",)

  @property
  def inner(self):
    return Inner("backbone", self.chosen[0], dict(self.chosen[1:]))

  def setup(self):
    self.backbone = create_model(self.chosen[0], **dict(self.chosen[1:]))
    self.fpn = nn.Dense(4)
    self.fpn_norm = nn.BatchNorm(True)
    self.class_head = nn.Sequential([nn.Dense(4), nn.Dense(self.outputs)])

  def __call__(self, images, train=False):
    maps = self.backbone.features(images, train)
    x = maps if self.chosen[0] == "trunk" else list(maps.values())[-1]
    return self.class_head(self.fpn_norm(self.fpn(x)))


class DetectorHost:
  """Detectors; fields of the backbone are theirs."""

  @staticmethod
  def fields(chosen):
    name = chosen.get("backbone", "trunk")
    own = {"backbone": Field("trunk", ""), "outputs": Field(3, "")}
    return registry.model_fields(name, chosen) | own

  @staticmethod
  def make(backbone, outputs, **fields):
    return Detector((backbone, *sorted(fields.items())), outputs)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
  registry.register("trunk", Trunk)
  registry.register("detector", DetectorHost)


def detector(backbone="trunk", outputs=3, **fields):
  return create_model("detector", backbone=backbone, outputs=outputs, **fields)


def transfer_inner(source, target):
  given, own = draw(source), draw(target, seed=1)
  result, notes = initialise.transfer_inner(given, own, source, target.inner)
  given, own, result = map(flat, (given, own, result))
  assert result.keys() == own.keys()
  return given, own, result, notes


def check(result, given, own, resized="nothing"):
  """Compares the backbone with what was given, and the rest with its own.

  A classifier may be either's: as given, if that fits.
  """
  for path, array in result.items():
    inner = path.replace("/backbone/", "/")
    if resized in path:
      continue
    expected = own[path]
    if inner != path and given[inner].shape == array.shape:
      expected = given[inner]
    elif inner != path:
      assert "classifier" in path
    np.testing.assert_array_equal(array, expected, err_msg=path)


def test_a_backbone_begins_with_the_weights_and_the_rest_is_new():
  source = create_model("trunk")
  given, own, result, notes = transfer_inner(source, detector(num_classes=0))
  assert notes == [
    "They are those of backbone; new: class_head, fpn, fpn_norm",
    "Left out of the weights: classifier, final",
  ]
  assert {
    "params/backbone/stem/kernel",
    "batch_stats/backbone/stem_norm/var",
  } <= result.keys()
  check(result, given, own)


def test_a_retinanet_begins_with_the_weights_of_its_backbone():
  fields = dict(depths=(1, 1, 1, 1), base_width=8)
  source = create_model("resnet50", num_classes=3, **fields)
  target = create_model(
    "retinanet_resnet50", num_classes=2, fpn_width=8, head_depth=1, **fields
  )
  given, own, result, notes = transfer_inner(source, target)
  assert notes[0].startswith("They are those of backbone; new: box_head, ")
  check(result, given, own)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(depths=(1, 2)), r"params/stage2_block2/\S+ \(.*\) is missing"),
    (dict(base_width=16), r"key/kernel is \(8, 2, 4\), not \(16, 2, 8\)"),
    (dict(depths=(1,), heads=(2,)), r"params/stage2_block1/\S+ .* unexpected"),
  ],
)
def test_another_backbone_is_refused(fields, message):
  source = create_model("halonet_h1", **SMALL)
  with pytest.raises(UsageError, match=message) as caught:
    transfer_inner(source, detector("halonet_h1", **SMALL | fields))
  assert str(caught.value).startswith(
    "the weights do not fit config.model.backbone, which is halonet_h1: params/"
  )
  assert "\n" not in str(caught.value)


def begin_detector(init_from, target):
  """What a training would begin with, what was drawn for it, and the notes."""
  name, *fields = target.chosen
  model = dict(name="detector", backbone=name, outputs=target.outputs)
  config = ml_collections.ConfigDict(
    dict(init_from=str(init_from), model=model | dict(fields))
  )
  assert create_model(**config.model) == target
  drawn = draw(target, seed=1)
  own = flat(drawn)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=drawn.pop("params"),
    collections=drawn,
    opt_state=(),
  )
  mesh = make_mesh()
  state, notes = initialise.initial_state(config, target, lambda: state, mesh)
  return flat(state.variables), own, notes


def test_timms_weights_with_tables_to_resize(tmp_path):
  source = create_model("halonet26t", **TIMM | dict(block_size=8, halo_size=2))
  path, variables = tmp_path / "weights.safetensors", draw(source)
  pretrained.save_timm(path, variables, source)
  target = detector("halonet26t", **TIMM | dict(num_classes=3))
  result, own, notes = begin_detector(path, target)
  assert notes == [
    f"Weights from {path}",
    "They are those of backbone; new: class_head, fpn, fpn_norm",
    "The classifier is new: 3 classes in place of 5",
    "2 relative tables are resized from 23 to 11 rows",
  ]
  given, table = flat(variables), "stage1_block1/attention/relative_width"
  check(result, given, own, resized="stage1_block1/attention/relative")
  np.testing.assert_allclose(
    result[f"params/backbone/{table}"][2:],
    resize(given[f"params/{table}"][4:], 9),
    atol=1e-6,
  )


def test_torchvisions_weights(tmp_path):
  """The names are spelt out here, as torchvision has them."""
  source = create_model("resnet50", **RESNET)
  path, variables = tmp_path / "resnet50.safetensors", draw(source)
  pretrained.save_timm(path, variables, source)
  blocks = {
    f"{block}.{layer}"
    for block in ("layer1.0", "layer2.0", "layer3.0", "layer4.0")
    for layer in ("conv1", "conv2", "conv3", "downsample.0")
  }
  norms = {x.replace("conv", "bn") for x in blocks if "conv" in x} | {"bn1"}
  norms |= {x[:-1] + "1" for x in blocks if "down" in x}
  parts = ("weight", "bias", "running_mean", "running_var")
  assert safetensors.numpy.load_file(path).keys() == {
    *(f"{name}.weight" for name in (*blocks, "conv1", "fc")),
    *(f"{name}.{part}" for name in norms for part in parts),
    *(f"{name}.num_batches_tracked" for name in norms),
    "fc.bias",
  }
  target = detector("resnet50", **RESNET | dict(num_classes=3))
  result, own, notes = begin_detector(path, target)
  assert notes[2:] == ["The classifier is new: 3 classes in place of 5"]
  check(result, flat(variables), own)


@pytest.fixture(scope="module")
def run(trained):
  """A workdir, its model's name and fields, and its weights by path."""
  workdir, _ = trained
  restored = restore_model(str(workdir), make_mesh())
  fields = restored.config.model.to_dict() | restored.task.model_fields()
  return workdir, fields.pop("name"), fields, flat(restored.variables)


def test_a_run_of_ours(run):
  workdir, name, fields, given = run
  target = detector(name, **fields | dict(num_classes=4))
  result, own, notes = begin_detector(workdir, target)
  assert notes == [
    f"Weights from {workdir}",
    "They are those of backbone; new: class_head, fpn, fpn_norm",
    "The classifier is new: 4 classes in place of 10",
  ]
  check(result, given, own)


def test_what_does_not_fit_is_named_with_its_field(run, tmp_path):
  workdir, name, _, _ = run
  source = create_model("resnet50", **RESNET)
  path = tmp_path / "resnet50.safetensors"
  pretrained.save_timm(path, draw(source), source)
  resnet = "config.model.backbone is resnet50"
  for init_from, fields, message in (
    (workdir, RESNET, f"{resnet}, and the weights are of {name}; choose"),
    (path, RESNET | dict(depths=(1, 1, 1, 2)), f"{resnet}: .*layer4.1.conv1"),
    (tmp_path / "none.safetensors", RESNET, f"{resnet}: .*there is no file"),
  ):
    with pytest.raises(UsageError, match=message) as caught:
      begin_detector(init_from, detector("resnet50", **fields))
    start = f"config.init_from is {init_from}: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("init_from", ["timm", "hf-hub:me/mine"])
def test_weights_are_looked_for_under_the_backbones_name(init_from, tmp_path):
  workdir = Workdir(str(tmp_path))
  config = ml_collections.ConfigDict(
    dict(init_from=init_from, model=dict(name="detector", backbone="resnet50"))
  )
  initialise.check_source(config, workdir)
  config.model.backbone = "halonet_h0"
  with pytest.raises(UsageError, match="timm has no weights of halonet_h0;"):
    initialise.check_source(config, workdir)


def test_a_detectors_weights_begin_another_whole():
  source, target = detector(), detector(outputs=7)
  given, own = draw(source), draw(target, seed=1)
  result, notes = initialise.transfer(given, own, source, target)
  assert notes == ["class_head is new: 7 outputs in place of 3"]
  given, own = flat(given), flat(own)
  for path, array in flat(result).items():
    origin = own if "class_head" in path else given
    np.testing.assert_array_equal(array, origin[path], err_msg=path)
