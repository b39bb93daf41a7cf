"""Sizes beyond sense are refused in one line, before memory is taken.

Every number among the fields has a largest value, or stands in `UNBOUNDED`
with the reason why it needs none.
"""

import importlib.util
import pathlib
import time
import typing

import pytest

import halonet
from halonet import train
from halonet.cost.table1 import LayerSetting
from halonet.errors import UsageError
from halonet.fields import Duration, fields_of
from halonet.layers import operators
from halonet.layers.gates import GATES
from halonet.layers.stems import STEMS
from halonet.models.bottleneck import BOTTLENECKS
from halonet.models.parts import PartsSpec
from halonet.models.resnet_spec import ResNetSpec
from halonet.models.retinanet_spec import RetinaNetSpec
from halonet.models.transformer_spec import TransformerSpec
from halonet.tasks.classification import Classification
from halonet.training import config as config_lib
from halonet.training.options import FIELDS

DIGITS = "configs/digits.py"
# No memory depends on these. A run that they let diverge ends in one line.
UNBOUNDED = {
  "data.mean": "shifts the images",
  "data.std": "scales the images",
  "optimizer.learning_rate": "scales the update",
  "optimizer.weight_decay": "scales the update",
  "optimizer.clip_norm": "clips nothing if it is large",
}
# A number of steps may be 1e9, and more images may be shuffled than there are.
SENSIBLE = {"seed", "data.shuffle_buffer", "keep_checkpoints", "profile_steps"}
SENSIBLE |= set(config_lib.DURATIONS)
PARTS = [
  *(
    ({"operators": (name,)}, operators.find(name)) for name in operators.names()
  ),
  *(({"stem": name}, cls) for name, cls in STEMS.items()),
  *(({"channel_attention": name}, cls) for name, cls in GATES.items()),
  *(({"block_type": name}, cls) for name, cls in BOTTLENECKS.items()),
  ({}, ResNetSpec),
]


def numbers(fields):
  return {
    name: each
    for name, each in fields.items()
    if {int, float, Duration} & {each.kind, *typing.get_args(each.kind)}
  }


NUMBERS = 10**9, 10**12, 10**400  # The last is beyond all floats.
OF_TRAINING = numbers(FIELDS | Classification.FIELDS)
# What a model must be made of to have a field, and the field.
OF_MODELS = [
  (chosen, name, each)
  for chosen, cls in PARTS
  for name, each in numbers(fields_of(cls)).items()
]


def huge(each, number):
  """Returns a value of a field's kind, as large as the number."""
  if typing.get_origin(each.kind) is tuple:
    return (number,) * (each.length or 4)
  return number


def refused(function, *arguments, **options):
  """Returns the line in which a call fails, which is soon."""
  started = time.monotonic()
  with pytest.raises((UsageError, ValueError)) as caught:
    function(*arguments, **options)
  assert time.monotonic() - started < 5
  message = str(caught.value)
  assert "\n" not in message
  return message


def load(tmp_path, name, value, others=()):
  """Loads a config that sets a field, among others."""
  nested = {}
  for dotted, each in {**dict(others), name: value}.items():
    *parts, last = dotted.split(".")
    part = nested
    for key in parts:
      part = part.setdefault(key, {})
    part[last] = each
  path = tmp_path / "config.py"
  path.write_text(f"def get_config():\n  return {nested!r}\n")
  return config_lib.load_config(str(path))


@pytest.mark.parametrize("number", NUMBERS, ids=["1e9", "1e12", "1e400"])
@pytest.mark.parametrize("name", OF_TRAINING)
def test_fields_of_a_training(tmp_path, name, number):
  value = huge(OF_TRAINING[name], number)
  if (number < 10**400 and name in UNBOUNDED) or (
    number == 10**9 and name in SENSIBLE
  ):
    assert OF_TRAINING[name].check(name, value) == value
  else:
    message = refused(load, tmp_path, name, value)
    assert message.startswith(f"config.{name} is ")
    assert any(word in message for word in ("at most", "below", "finite"))


@pytest.mark.parametrize("number", NUMBERS, ids=["1e9", "1e12", "1e400"])
@pytest.mark.parametrize(
  "chosen, name, each",
  OF_MODELS,
  ids=[f"{name}-{'-'.join(map(str, c.values()))}" for c, name, _ in OF_MODELS],
)
def test_fields_of_a_model(tmp_path, chosen, name, each, number):
  value = huge(each, number)
  message = refused(
    halonet.create_model, "halonet_h0", **chosen, **{name: value}
  )
  assert message.startswith(f"{name} is ")
  if name != "num_classes":  # The data set decides.
    others = {f"model.{key}": each for key, each in chosen.items()}
    message = refused(load, tmp_path, f"model.{name}", value, others)
    assert message.startswith(f"config.model.{name} is ")


@pytest.mark.parametrize("number", NUMBERS, ids=["1e9", "1e12", "1e400"])
@pytest.mark.parametrize(
  "name",
  sorted(numbers(fields_of(TransformerSpec)).keys() - fields_of(PartsSpec)),
)
def test_fields_of_a_transformer(name, number):
  value = huge(fields_of(TransformerSpec)[name], number)
  message = refused(halonet.create_model, "swin_tiny", **{name: value})
  assert message.startswith(f"{name} is ")


@pytest.mark.parametrize("number", NUMBERS, ids=["1e9", "1e12", "1e400"])
@pytest.mark.parametrize("name", numbers(fields_of(RetinaNetSpec)))
def test_fields_of_a_detector(name, number):
  value = huge(fields_of(RetinaNetSpec)[name], number)
  message = refused(halonet.create_model, "retinanet_resnet50", **{name: value})
  assert message.startswith(f"{name} is ")


@pytest.mark.parametrize("number", [10**9, 10**12])
@pytest.mark.parametrize("name", fields_of(LayerSetting))
def test_fields_of_a_layer(name, number):
  assert refused(LayerSetting, **{name: number}).startswith(f"--{name} is ")


@pytest.mark.parametrize(
  "fields, words",
  [
    # Each is in its range.
    ({"depths": (1,) * 1000, "heads": (4,) * 1000}, "channels; there may be"),
    ({"depths": (500, 501), "heads": (4, 4)}, "at most 1000 together"),
    ({"base_width": 65_536}, "channels; there may be at most 65536"),
    ({"block_type": "inverted", "rb": 64.0}, "channels; there may be"),
    ({"rqk": 64.0, "base_width": 2048}, "queries and values have"),
    (
      {"operators": ("lambda",), "lambda_depth": 65_536, "rb": 1.0},
      "queries and values have",
    ),
  ],
)
def test_widths_that_follow(fields, words):
  assert words in refused(halonet.create_model, "halonet_h0", **fields)


@pytest.mark.parametrize(
  "name, operator, most",
  [
    ("halo_size", "halo", 16),
    ("block_size", "halo", 32),
    ("halo_size", "timm_halo", 16),
    ("window_size", "per_pixel", 32),
    ("lambda_window", "lambda", 32),
  ],
)
def test_no_more_than_the_image(tmp_path, name, operator, most):
  others = {"data.image_size": 16, "model.operators": (operator,)}
  name = f"model.{name}"
  load(tmp_path, name, most - (operator == "lambda"), others)  # It is odd.
  message = refused(load, tmp_path, name, most + 1, others)
  assert message.startswith(f"config.{name} is {most + 1}; it must be at most")
  assert "config.data.image_size" in message


@pytest.mark.parametrize(
  "overrides",
  [
    ["model.name=halonet_h7", "batch_size=65536"],
    ["data.image_size=8192", "data.shuffle_buffer=300000000"],
    ["steps=1000000000", "accumulation_steps=65536", "batch_size=65536"],
    ["model.depths=(100,100)", "model.base_width=2048"],
    ["data.randaugment_policy=tpu", "data.randaugment_magnitude=31"],
  ],
)
def test_what_is_sensible_is_taken(overrides):
  config_lib.load_config(DIGITS, overrides)


def test_many_classes_are_taken():
  halonet.create_model("halonet_h7", num_classes=1_000_000)


def test_epochs_without_end(tmp_path):
  """A number of epochs makes more steps than there may be."""
  config = config_lib.load_config(DIGITS, ["steps=2000000000 epochs"])
  message = refused(config_lib.in_steps, config, train_size=1347)
  assert message.startswith("config.steps is ") and "at most" in message
  digits = "9" * 400
  message = refused(config_lib.load_config, DIGITS, [f"steps={digits} epochs"])
  assert message.startswith("config.steps is ")


def script(name):
  path = pathlib.Path(__file__).parents[1] / "scripts" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.main


TPU = ("--config=configs/digits.py", "--topology=v5e:2x2")


@pytest.mark.parametrize(
  "name, words, field",
  [
    ("train", ["--config.model.depths=(100000000,100000000)"], "model.depths"),
    ("train", ["--config.data.image_size=10000000000"], "data.image_size"),
    ("sweep", ["--config.batch_size=10000000000"], "config.batch_size"),
    ("cost", ["--height=10000000000"], "--height"),
    ("cost", ["--model=halonet_h0", "--image_size=100000"], "--image_size"),
    ("cost", ["--model=halonet_h0", "--num_classes=1000000000"], "num_classes"),
    (
      "cost",
      ["--config=configs/digits.py", "--num_classes=1000000000"],
      "--num_classes",
    ),
    ("cost", ["--model=halonet_h0", "--model.df=1000000000"], "df"),
    ("tpu_report", [*TPU, "--config.model.rb=1e10"], "config.model.rb"),
    ("tpu_report", [*TPU, "--num_classes=1000000000"], "--num_classes"),
    ("tpu_report", [*TPU, "--per_core_batch=1000000000"], "--per_core_batch"),
  ],
)
def test_commands(run_main, tmp_path, monkeypatch, name, words, field):
  if name == "tpu_report":
    pytest.importorskip("libtpu")
  if name in ("train", "sweep"):
    words = [*words, f"--workdir={tmp_path / 'run'}"]
  main = train.main if name == "train" else script(name)
  code, _, complaint = run_main(main, *words)
  assert code == 2, complaint
  assert complaint.startswith("error: ") and complaint.count("\n") == 1
  assert f"{field} is " in complaint and "at most" in complaint
  assert not (tmp_path / "run").exists()
