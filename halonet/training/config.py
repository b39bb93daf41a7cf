"""The training config: every field, its default, and what it may hold."""

import ast
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from halonet.errors import UsageError, unknown
from halonet.models import registry


def default_config() -> ml_collections.ConfigDict:
  """Returns every field that a config file may set.

  `model` takes, beside its name, every field of the named model; `num_classes`
  follows from the data set.
  """
  return ml_collections.ConfigDict(
    dict(
      # Everything random derives from this: parameters, order, augmentation.
      seed=0,
      # Optimizer steps, and images per step over all devices.
      steps=1000,
      batch_size=64,
      model=dict(name="halonet_h0"),
      data=dict(
        # A TFDS name, and where its records are (TFDS's own place if None).
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
        # Encoded images that are held in memory to be shuffled.
        shuffle_buffer=10_000,
      ),
      optimizer=dict(
        # "sgd", with Nesterov momentum, or "adamw".
        name="sgd",
        # Reached after the linear warm-up; a cosine takes it to zero.
        learning_rate=0.1,
        warmup_steps=100,
        # Of "sgd" alone.
        momentum=0.9,
        # On kernels alone; decoupled from the gradient in "adamw".
        weight_decay=5e-5,
      ),
      label_smoothing=0.1,
      # Steps between lines of progress, evaluations and checkpoints; the last
      # step always has all three.
      log_every=50,
      eval_every=500,
      checkpoint_every=500,
      # The latest checkpoints that are kept, beside the most accurate one of
      # those whose step was evaluated.
      keep_checkpoints=3,
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
  from_file = _read(source)
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
    value = _parse(text, default)
    _set(config, field, value, f"--config.{field}")
  if config.data.image_size is None:
    size = registry.get_entry(name).image_size
    _assign(config, "data.image_size", size)
  check(config)
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UsageError if a value is out of range, or the model impossible."""
  for field, least in (
    ("steps", 1),
    ("batch_size", 1),
    ("seed", 0),
    ("log_every", 1),
    ("eval_every", 1),
    ("checkpoint_every", 1),
    ("keep_checkpoints", 1),
    ("data.image_size", 1),
    ("data.shuffle_buffer", 1),
    ("optimizer.warmup_steps", 0),
    ("optimizer.learning_rate", 0),
    ("optimizer.momentum", 0),
    ("optimizer.weight_decay", 0),
  ):
    value = _get(config, field)
    if not value >= least:
      raise UsageError(
        f"config.{field} is {value}; it must be at least {least}"
      )
  if config.seed >= 2**31:
    raise UsageError(f"config.seed is {config.seed}; it must be below 2**31")
  if not 0 < config.data.crop_area <= 1:
    raise UsageError(
      f"config.data.crop_area is {config.data.crop_area}; it must be above 0"
      " and at most 1"
    )
  if not 0 <= config.label_smoothing < 1:
    raise UsageError(
      f"config.label_smoothing is {config.label_smoothing}; it must be at least"
      " 0 and below 1"
    )
  if config.optimizer.warmup_steps >= config.steps:
    raise UsageError(
      f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; it"
      f" must be below config.steps, {config.steps}"
    )
  for field in ("mean", "std"):
    value = config.data[field]
    if len(value) != 3 or (field == "std" and min(value) <= 0):
      raise UsageError(
        f"config.data.{field} is {value}; it must be three numbers"
        + (" above 0" if field == "std" else "")
      )
  if config.optimizer.name not in ("sgd", "adamw"):
    message = unknown("optimizer", config.optimizer.name, ("sgd", "adamw"))
    raise UsageError(f"config.optimizer.name: {message}")
  if config.model.dtype == "float64":
    raise UsageError(
      "config.model.dtype is 'float64'; training takes float32 or bfloat16"
    )
  create_model(config, num_classes=1)


def create_model(config: ml_collections.ConfigDict, num_classes: int):
  """Makes the model of a config; raises UsageError if it is impossible."""
  fields = config.model.to_dict()
  try:
    return registry.create_model(
      fields.pop("name"), **fields, num_classes=num_classes
    )
  except ValueError as error:
    raise UsageError(f"config.model: {error}") from None


def check_devices(config: ml_collections.ConfigDict, devices: int) -> None:
  """Raises UsageError unless the batch splits evenly over the devices."""
  if config.batch_size % devices:
    below = config.batch_size // devices * devices
    near = " or ".join(str(n) for n in (below, below + devices) if n)
    raise UsageError(
      f"config.batch_size is {config.batch_size}, which {devices} devices do"
      f" not divide evenly; take {near}"
    )


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


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> list[str]:
  """Lists the fields in which two configs differ, as `field: old → new`."""
  old, new = _flatten(old), _flatten(new)
  return [
    f"{field}: {old.get(field, 'absent')} → {new.get(field, 'absent')}"
    for field in sorted(old.keys() | new.keys())
    if old.get(field, "absent") != new.get(field, "absent")
  ]


def _read(source):
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
    return ml_collections.ConfigDict(config)
  except (Exception, SystemExit) as error:  # Whatever the user's file does.
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise UsageError(f"--config: {source} fails: {reason}") from error


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


def _get(config, field):
  for key in field.split("."):
    config = config[key]
  return config


def _assign(config, field, value):
  *parts, last = field.split(".")
  for part in parts:
    config = config[part]
  config[last] = value


def _set(config, field, value, source):
  """Sets a field that exists, to a value of its kind."""
  known = _flatten(config)
  if field not in known:
    raise UsageError(f"{source}: {unknown('field', field, known, 'config.')}")
  try:
    value = _coerce(value, _OPTIONAL.get(field, known[field]))
  except TypeError as error:
    raise UsageError(
      f"config.{field} is {value!r}; it must be {error}, such as"
      f" {_OPTIONAL.get(field, known[field])!r}"
    ) from None
  _assign(config, field, value)


# Fields that are None by default, with an example of what else they may be.
_OPTIONAL = {"data.data_dir": "gs://bucket/data", "data.image_size": 224}


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


def _parse(text, default):
  """Reads the text of an override, as Python does but for bare words."""
  if isinstance(default, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return {"true": True, "false": False}.get(text, text)
