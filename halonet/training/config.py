"""Training configs: from a file and overrides, complete and checked."""

import importlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from halonet import fields as fields_lib
from halonet.errors import UsageError, unknown
from halonet.fields import Field
from halonet.models import registry
from halonet.models.upgrade import SUCCESSORS, upgrade
from halonet.tasks.task import Task, get_task, make_task
from halonet.training.options import DURATIONS, FIELDS, check_randaugment
from halonet.training.origin import fields_of_weights


def config_fields(values: Mapping[str, Any]) -> dict[str, Field]:
  """Returns all fields of a config, by dotted names.

  Which there are depends on the task, the model, and the parts of the model
  that are chosen.

  Args:
    values: fields that are set, by dotted names; those that decide count.

  Raises:
    UsageError: if there is no such package, task or model.
  """
  packages, task, name = (
    _checked(field, FIELDS[field], values.get(field, FIELDS[field].default))
    for field in ("packages", "task", "model.name")
  )
  import_packages(packages)
  task = get_task(task)
  chosen = {
    field.removeprefix("model."): value
    for field, value in values.items()
    if field.startswith("model.") and field != "model.name"
  }
  try:
    registry.get_entry(name)
  except ValueError as error:
    raise UsageError(f"config.model.name: {error}") from None
  try:
    model = registry.model_fields(name, chosen)
  except ValueError as error:
    raise UsageError(_model_error(error, values)) from None
  return {
    **FIELDS,
    **task.FIELDS,
    **{
      f"model.{field}": each
      for field, each in model.items()
      if field not in task.decides
    },
  }


def import_packages(names: Iterable[str]) -> None:
  """Imports the packages that a config names; UsageError if one cannot be.

  They may also lie in the working directory, whatever command this is.
  """
  if names and os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  for name in names:
    try:
      importlib.import_module(name)
    except Exception as error:  # Whatever the package does.
      raise UsageError(
        f"config.packages: {name} cannot be imported:"
        f" {type(error).__name__}: {error}"
      ) from error


def load_config(
  source: str, overrides: Iterable[str] = ()
) -> ml_collections.ConfigDict:
  """Builds a complete, checked config.

  Args:
    source: `FILE` or `FILE:ARG`: a Python file with `get_config()` (or
      `get_config(arg)`) that returns a ConfigDict of the fields it sets.
    overrides: `field=value`, where dots lead into parts of the config.

  Raises:
    UsageError: that names the field, the value and the remedy.
  """
  given = flatten(ml_collections.ConfigDict(read_file(source)))
  return _build(source, given, _split(overrides))


def _split(overrides):
  words = [f"--config.{override}" for override in overrides]
  return fields_lib.parse_overrides(words)


def _build(source, given, texts):
  """Makes a config of the values in a file and the texts of overrides."""
  # What decides which fields there are, before their types are known.
  early = given | _parsed(texts, FIELDS)
  if early.get("like_weights"):
    given = fields_of_weights(early) | given
    early = given | early
  fields = config_fields(early)
  for field in (*given, *texts):
    if field not in fields:
      raise UsageError(_unknown_field(field, texts, source, fields))
  config = _complete(given | _parsed(texts, fields), fields)
  if config.data.image_size is None:
    with config.data.ignore_type():
      config.data.image_size = registry.get_entry(config.model.name).image_size
  _check(config, fields)
  return config


def field_names(config: ml_collections.ConfigDict) -> list[str]:
  """Returns all fields that can be set, with dots between the parts."""
  return list(flatten(config))


def help_text(source: str, overrides: Iterable[str] = ()) -> str:
  """Formats every field of a config, with its value there.

  A model that the overrides name has its own values, not those of the file.
  """
  given = flatten(ml_collections.ConfigDict(read_file(source)))
  texts = _split(overrides)
  if "model.name" in texts:
    given = {k: v for k, v in given.items() if not k.startswith("model.")}
  values = flatten(_build(source, given, texts))
  fields = {
    name: Field(**(vars(each) | {"default": values[name]}))
    for name, each in config_fields(values).items()
  }
  return fields_lib.describe(fields, "--config.")


def create_model(config: ml_collections.ConfigDict, task: Task) -> Any:
  """Makes the model of a config for a task that knows its data set."""
  fields = config.model.to_dict() | task.model_fields()
  try:
    model = registry.create_model(fields.pop("name"), **fields)
  except ValueError as error:
    raise UsageError(_model_error(error, {})) from None
  task.check_model(model)
  return model


def to_json(config: ml_collections.ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
  """Reads what `to_json` wrote, in this version or an earlier one.

  Fields that came later get their defaults.

  Raises:
    ValueError: if the text is something else.
    UsageError: if a value is impossible.
  """
  values = json.loads(text)
  parts = ("data", "model", "optimizer")
  if not isinstance(values, dict) or not all(
    isinstance(values.get(part), dict) for part in parts
  ):
    raise ValueError("it is no config of a training")
  values["model"] = upgrade(values["model"])
  values = flatten(ml_collections.ConfigDict(values))
  fields = config_fields(values)
  for field in values:
    if field not in fields:
      raise ValueError(f"it has the field {field}, which is not known")
  return _complete(values, fields)


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> tuple[list[str], list[str]]:
  """Lists the fields in which two configs differ, as `field: old → new`.

  Returns:
    Those that make another training; and those that a run may change when it
    goes on, because they do not change what is learned.
  """
  old, new = flatten(old), flatten(new)
  fields = config_fields(old) | config_fields(new)
  refused, changed = [], []
  for field in sorted(old.keys() | new.keys()):
    values = old.get(field, "absent"), new.get(field, "absent")
    if values[0] != values[1]:
      kept = changed if fields[field].changeable else refused
      kept.append(f"{field}: {values[0]} → {values[1]}")
  return refused, changed


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


def in_steps(
  config: ml_collections.ConfigDict, train_size: int
) -> ml_collections.ConfigDict:
  """Returns a copy of a config with all durations in steps, checked again.

  Args:
    config: complete and checked.
    train_size: examples of an epoch.

  Raises:
    UsageError: if the durations contradict one another.
  """
  config = config.copy_and_resolve_references()
  for field in DURATIONS:
    *parts, last = field.split(".")
    part = config[parts[0]] if parts else config
    number, unit = fields_lib.parse_duration(field, part[last])
    if unit == "epochs":
      steps = round(number * train_size / config.batch_size)
      steps = max(steps, FIELDS[field].least)
      with part.ignore_type():
        part[last] = _checked(field, FIELDS[field], steps)
  _check_durations(config)
  return config


def check_devices(config: ml_collections.ConfigDict, devices: int) -> None:
  """Raises UsageError unless a batch splits as the config asks.

  It must split evenly over the devices and the parts of a device's share, into
  whole groups of batch norm and into what the task computes together.
  """
  parts = devices * config.accumulation_steps
  if config.batch_size % parts:
    below = config.batch_size // parts * parts
    near = " or ".join(str(n) for n in (below, below + parts) if n)
    by = f"{devices} devices"
    if config.accumulation_steps > 1:
      by += f" × {config.accumulation_steps} accumulation_steps"
    raise UsageError(
      f"config.batch_size is {config.batch_size}, which {by} do not divide"
      f" evenly; take {near}"
    )
  part = config.batch_size // parts
  group = config.model.get("batch_norm_group")  # None: no batch norm.
  if (
    group is not None
    and config.accumulation_steps > 1
    and (not group or part % group)
  ):
    raise UsageError(
      f"config.model.batch_norm_group is {group}; with"
      f" config.accumulation_steps {config.accumulation_steps} it must divide"
      f" the {part} images that are computed at once (0 asks for statistics of"
      " the whole batch, which its parts do not have)"
    )
  if group and config.batch_size % group:
    raise UsageError(
      f"config.model.batch_norm_group is {group}, which does not divide"
      f" config.batch_size, {config.batch_size}"
    )
  make_task(config).check_rows(part)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict:
  """Returns the values by dotted names."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _unknown_field(field, texts, source, fields):
  parts = [name for name in texts if name.startswith("model.")]
  if field in texts or not field.startswith("model.") or not parts:
    where = f"--config.{field}" if field in texts else source
    if field in SUCCESSORS:
      return f"{where}: the field is gone; {SUCCESSORS[field]}"
    return f"{where}: {unknown('field', field, fields, 'config.')}"
  changes = ", ".join(f"--config.{name}={texts[name]}" for name in parts)
  return (
    f"{source} sets config.{field}, which the model does not have with"
    f" {changes}; take a config for that model (configs/digits.py:sasa is one),"
    " or a copy of the file without the field"
  )


def _parsed(texts, fields):
  return {
    field: fields_lib.parse(text, getattr(fields.get(field), "kind", None))
    for field, text in texts.items()
  }


def _complete(values, fields):
  """Makes a config of all fields, of which some are set."""
  nested = {}
  for field, each in fields.items():
    *parts, last = field.split(".")
    part = nested
    for name in parts:
      part = part.setdefault(name, {})
    part[last] = _checked(field, each, values.get(field, each.default))
  return ml_collections.ConfigDict(nested)


def _checked(name, field, value):
  try:
    return field.check(f"config.{name}", value)
  except ValueError as error:
    raise UsageError(str(error)) from None


def _model_error(error, values):
  """Words a ValueError of a model, which may begin with the field's name."""
  operators = values.get("model.operators")
  if isinstance(operators, str | tuple | list) and (
    set("chpg") >= set("".join(map(str, operators))) > set()
  ):
    return (
      f"config.model.operators is {operators}; operators have names now, joined"
      " by commas: conv, halo, per_pixel or global in place of c, h, p, g"
    )
  separator = ": " if str(error).startswith("there is no") else "."
  return f"config.model{separator}{error}"


def _check(config, fields):
  """Raises UsageError if values contradict one another."""
  trace = config.profile_steps
  if trace and (len(trace) != 2 or trace[0] > trace[1]):
    raise UsageError(
      f"config.profile_steps is {trace}; it must be the first and the last step"
      " of the trace, such as (100, 104)"
    )
  if config.model.get("dtype") == "float64":
    raise UsageError(
      "config.model.dtype is 'float64'; training takes float32 or bfloat16"
    )
  _check_durations(config)
  check_randaugment(config.data)
  values, side = flatten(config), config.data.image_size
  for name, each in fields.items():
    try:
      each.check_side(f"config.{name}", values[name], side)
    except ValueError as error:
      raise UsageError(f"{error}, config.data.image_size = {side}") from None
  make_task(config).check()
  fields = config.model.to_dict()
  try:
    registry.create_model(fields.pop("name"), **fields)
  except ValueError as error:
    raise UsageError(_model_error(error, {})) from None


def _check_durations(config):
  steps, unit = fields_lib.parse_duration("steps", config.steps)
  warmup, warmup_unit = fields_lib.parse_duration(
    "warmup_steps", config.optimizer.warmup_steps
  )
  trace = config.profile_steps
  if trace and unit == "steps" and trace[0] > steps:
    raise UsageError(
      f"config.profile_steps is {trace}; it must begin at most at config.steps,"
      f" {config.steps}"
    )
  if unit == warmup_unit and warmup >= steps:
    raise UsageError(
      f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; it"
      f" must be below config.steps, {config.steps}"
    )
