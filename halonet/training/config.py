"""The training config: every field, its default, and what it may hold."""

import ast
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from halonet.errors import UsageError, unknown
from halonet.models import registry
from halonet.training import checks, durations


def default_config() -> ml_collections.ConfigDict:
  """Returns every field that a config file may set.

  `model` takes, beside its name, every field of the named model; `num_classes`
  follows from the data set.
  """
  return ml_collections.ConfigDict(
    dict(
      # Everything random derives from this: parameters, order, augmentation.
      seed=0,
      # Optimizer steps. This and every other duration below is a number of
      # steps, or a text: "90 epochs", "0.5 epochs".
      steps=1000,
      # Images per step over all devices, and the parts in which a device
      # computes its share, one after another, to need less memory.
      batch_size=64,
      accumulation_steps=1,
      model=dict(name="halonet_h0"),
      # Weights to begin with: the workdir of another run, a .safetensors file
      # of timm's, hf-hub:OWNER/NAME, or "timm" for what timm publishes.
      init_from=None,
      data=dict(
        # A TFDS name, and where its records are (TFDS's own place if None); or
        # "folder", and the folder that holds one for each split, which holds
        # one for each class, which holds image files.
        name="digits",
        data_dir=None,
        train_split="train",
        test_split="test",
        # Side of the model's input in pixels; the model's own if None.
        image_size=None,
        # Of every channel, after scaling to 0 … 1.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        # Random crops take at least this share of an image; 1: no crops.
        crop_area=0.08,
        # Random horizontal flips.
        flip=True,
        # RandAugment: operations per image (0: none), their magnitude of 0 to
        # 10, and the standard deviation of the magnitude.
        randaugment_layers=0,
        randaugment_magnitude=10.0,
        randaugment_std=0.0,
        # Probability that a random rectangle of an image becomes noise.
        random_erasing=0.0,
        # Alphas of the beta distributions by which pairs of images are mixed;
        # 0: off. With both on, each pair gets one or the other.
        mixup=0.0,
        cutmix=0.0,
        # Share of the shorter side that the central square of a test image
        # has, and how it is resized: "bilinear" or "bicubic".
        crop_fraction=1.0,
        interpolation="bilinear",
        # "float32" or "bfloat16", of images on their way to the devices.
        image_dtype="float32",
        # Leaves out images that cannot be decoded, and counts them; else the
        # first one ends the run with its file's name.
        skip_corrupt=False,
        # Encoded images that are held in memory to be shuffled, over all
        # processes.
        shuffle_buffer=10_000,
      ),
      optimizer=dict(
        # "sgd", with Nesterov momentum, or "adamw".
        name="sgd",
        # For 256 images a step, and in proportion for other batches. Reached
        # after the linear warm-up; a cosine takes it to zero.
        learning_rate=0.1,
        warmup_steps=100,
        # Of "sgd" alone.
        momentum=0.9,
        # On kernels alone; decoupled from the gradient in "adamw".
        weight_decay=5e-5,
        # Gradients of a larger norm are scaled down to it; 0: off.
        clip_norm=0.0,
      ),
      label_smoothing=0.1,
      # Of the moving averages of weights and statistics that are evaluated
      # beside the raw ones; 0: none.
      ema_decay=0.0,
      # Steps between lines of progress, evaluations and checkpoints; the last
      # step always has all three.
      log_every=50,
      eval_every=500,
      checkpoint_every=500,
      # The latest checkpoints that are kept, beside the most accurate one of
      # those whose step was evaluated.
      keep_checkpoints=3,
      # The first and the last step of a profiler trace, or ().
      profile_steps=(),
    )
  )


def load_config(
  source: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Builds a complete, checked config.

  Args:
    source: `FILE` or `FILE:ARG`: a Python file with `get_config()` (or
      `get_config(arg)`) that returns a ConfigDict of the fields it sets.
    overrides: `field=value`, where dots lead into parts of the config.

  Raises:
    UsageError: that names the field, the value and the remedy.
  """
  from_file = ml_collections.ConfigDict(read_file(source))
  pairs = [_split_override(override) for override in overrides]

  config = default_config()
  name = dict(pairs).get("model.name")
  if name is None:
    name = _flatten(from_file).get("model.name", config.model.name)
  try:
    fields = registry.model_fields(str(name))
  except ValueError as error:
    raise UsageError(f"config.model.name: {error}") from None
  del fields["num_classes"]
  config.model = ml_collections.ConfigDict({"name": str(name), **fields})

  for field, value in _flatten(from_file).items():
    _set(config, field, value, source)
  for field, text in pairs:
    default = _OPTIONAL.get(field, _flatten(config).get(field))
    if field in durations.FIELDS:
      default = 1  # A number where it can be one, whatever the file says.
    value = _parse(text, field, default)
    _set(config, field, value, f"--config.{field}")
  if config.data.image_size is None:
    size = registry.get_entry(name).image_size
    _assign(config, "data.image_size", size)
  checks.check(config)
  create_model(config, num_classes=1)
  return config


def create_model(config: ml_collections.ConfigDict, num_classes: int):
  """Makes the model of a config; raises UsageError if it is impossible."""
  fields = config.model.to_dict()
  try:
    return registry.create_model(
      fields.pop("name"), **fields, num_classes=num_classes
    )
  except ValueError as error:
    raise UsageError(f"config.model: {error}") from None


def field_names(config: ml_collections.ConfigDict) -> list[str]:
  """All fields that can be set, with dots between a part and its field."""
  return list(_flatten(config))


def to_json(config: ml_collections.ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
  """Reads what `to_json` wrote; lists become tuples again.

  Raises:
    ValueError: if the text is something else.
  """

  def freeze(value):
    if isinstance(value, dict):
      return {key: freeze(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  fields = json.loads(text)
  if not isinstance(fields, dict):
    raise ValueError("it holds no fields")
  config = ml_collections.ConfigDict(freeze(fields))
  missing = _flatten(default_config()).keys() - _flatten(config).keys()
  if missing:
    raise ValueError(f"it lacks {', '.join(sorted(missing))}")
  return config


# They say how, where and when, and not what is learned.
_CHANGEABLE = (
  "accumulation_steps",
  "model.remat",
  "data.data_dir",
  "data.skip_corrupt",
  "log_every",
  "eval_every",
  "checkpoint_every",
  "keep_checkpoints",
  "profile_steps",
)


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> tuple[list[str], list[str]]:
  """Lists the fields in which two configs differ, as `field: old → new`.

  Returns:
    Those that make another training, and those that a run may change when it
    goes on: they say how, where and when, not what is learned.
  """
  old, new = _flatten(old), _flatten(new)
  changed = {
    field: f"{field}: {old.get(field, 'absent')} → {new.get(field, 'absent')}"
    for field in sorted(old.keys() | new.keys())
    if old.get(field, "absent") != new.get(field, "absent")
  }
  return (
    [text for field, text in changed.items() if field not in _CHANGEABLE],
    [text for field, text in changed.items() if field in _CHANGEABLE],
  )


def read_file(source: str) -> dict[str, Any] | ml_collections.ConfigDict:
  """Calls the `get_config` of `FILE`, or `FILE:ARG`; UsageError if it fails."""
  path, _, argument = source.partition(":")
  path = pathlib.Path(path)
  if not path.is_file():
    raise UsageError(f"--config: there is no file {path}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None:
    raise UsageError(f"--config: {path} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
  except (Exception, SystemExit) as error:  # Whatever the user's file does.
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise UsageError(f"--config: {source} fails: {reason}") from error
  if not isinstance(config, dict | ml_collections.ConfigDict):
    raise UsageError(f"--config: {source} gives {config!r}; it must be a dict")
  return config


def _split_override(override):
  field, equals, text = override.partition("=")
  if not equals:
    raise UsageError(f"--config.{field}: write --config.{field}=VALUE")
  return field, text


def _flatten(config, prefix=""):
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _assign(config, field, value):
  *parts, last = field.split(".")
  for part in parts:
    config = config[part]
  with config.ignore_type():  # A duration may be a number or a text.
    config[last] = value


def _set(config, field, value, source):
  """Sets a field that exists, to a value of its kind."""
  known = _flatten(config)
  if value is None and field in _OPTIONAL:
    _assign(config, field, None)
    return
  if field not in known:
    raise UsageError(f"{source}: {unknown('field', field, known, 'config.')}")
  default = _OPTIONAL.get(field, known[field])
  if field in durations.FIELDS:
    default = 1  # A number where it is no text, whatever it was before.
  try:
    if field in durations.FIELDS and isinstance(value, str):
      durations.parse(value)
    else:
      value = _coerce(value, default)
  except TypeError as error:
    raise UsageError(
      f"config.{field} is {value!r}; it must be {error}, such as {default!r}"
    ) from None
  _assign(config, field, value)


# Fields that are None by default, with an example of what else they may be.
_OPTIONAL = {
  "data.data_dir": "gs://bucket/data",
  "data.image_size": 224,
  "init_from": "runs/pretrained",
}


def _coerce(value, default):
  """Makes `value` one of the default's kind; TypeError says what that is."""
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  if isinstance(default, tuple):
    if not isinstance(value, tuple | list):
      raise TypeError("a tuple")
    # Of an empty default, the model knows what its items are.
    return tuple(_coerce(item, (default or (None,))[0]) for item in value)
  if isinstance(default, bool):
    if not isinstance(value, bool):
      raise TypeError("true or false")
  elif isinstance(default, int):
    if not isinstance(value, int) or isinstance(value, bool):
      raise TypeError("a whole number")
  elif isinstance(default, float):
    if not isinstance(value, int | float) or isinstance(value, bool):
      raise TypeError("a number")
    if not math.isfinite(value):
      raise TypeError("a finite number")
    return float(value)
  elif isinstance(default, str) and not isinstance(value, str):
    raise TypeError("a text")
  return value  # What is None by default, the model checks.


def _parse(text, field, default):
  """Reads the text of an override, as Python does but for bare words."""
  if field in _OPTIONAL and text == "None":
    return None
  if isinstance(default, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return {"true": True, "false": False}.get(text, text)
