"""What a sweep trains: base configs, and fields with several values.

All values are texts here, as they stand on the command line after
`--config.FIELD=`, because a trial's training gets them there.
"""

import dataclasses
import itertools
import re
import zlib
from typing import Any

import jax
import ml_collections

from halonet import fields
from halonet.errors import UsageError, unknown
from halonet.models import registry
from halonet.tasks.task import make_task
from halonet.training import config as config_lib

# A worker must not take the accelerator, which its trainings need.
jax.config.update("jax_platforms", "cpu")

_FIELDS = ("base", "set", "grid", "seeds")


@dataclasses.dataclass(frozen=True)
class GridPoint:
  """One trial of a grid.

  Attributes:
    values: Values of the grid's fields, with the seed.
    name: Name of the folder in which it trains.
  """

  values: dict[str, str]
  name: str

  @property
  def setting(self) -> dict[str, str]:
    """Values without the seed, which makes a repetition."""
    return {field: v for field, v in self.values.items() if field != "seed"}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A grid of trainings.

  Attributes:
    base: Config file, as `--config` of the training takes it; the first one if
      several are compared.
    changes: Fields of it that have another value in all trials.
    grid: Fields with the values that are combined, the seeds as the last. If
      several config files are compared, they are the values of "base".
  """

  base: str
  changes: dict[str, str]
  grid: dict[str, tuple[str, ...]]

  def points(self) -> list[GridPoint]:
    """Returns all combinations, the last field running fastest."""
    short = [field.rpartition(".")[2] for field in self.grid]
    labels = {
      field: name if short.count(name) == 1 else field
      for field, name in zip(self.grid, short, strict=True)
    }
    points = []
    for texts in itertools.product(*self.grid.values()):
      values = dict(zip(self.grid, texts, strict=True))
      name = ",".join(
        f"{labels[f]}={_slug(text)}" for f, text in values.items()
      )
      points.append(GridPoint(values, name))
    return points

  def overrides(self, point: GridPoint | None = None) -> list[str]:
    """Returns the `field=value` of a trial, or those that all trials share."""
    values = self.changes | (point.values if point else {})
    return [f"{f}={text}" for f, text in values.items() if f != "base"]

  @property
  def bases(self) -> tuple[str, ...]:
    """All config files that are compared."""
    return self.grid.get("base", (self.base,))

  def base_of(self, point: GridPoint) -> str:
    """Returns the config file of a trial."""
    return point.values.get("base", self.base)

  def config(self, point: GridPoint) -> ml_collections.ConfigDict:
    """Builds the config of a trial; UsageError if it is impossible."""
    return config_lib.load_config(self.base_of(point), self.overrides(point))

  def configs(self) -> dict[str, ml_collections.ConfigDict]:
    """Builds every config file's config, without values of the grid."""
    return {
      base: config_lib.load_config(base, self.overrides())
      for base in self.bases
    }

  def to_dict(self) -> dict[str, Any]:
    """Returns what makes it this sweep and no other, for `differences`."""
    return {
      "grid": {field: list(texts) for field, texts in self.grid.items()},
      "configs": list(map(config_lib.to_json, self.configs().values())),
    }


def read_sweep(
  source: str,
  changes: dict[str, str] | None = None,
  grid: dict[str, str] | None = None,
  seeds: str | None = None,
) -> Sweep:
  """Reads a sweep's config file, `FILE` or `FILE:ARG`.

  Args:
    source: `configs/sweeps/window.py` says what its `get_config` returns.
    changes: field → value, in addition to the file's `set`.
    grid: field → comma-separated values, in place of the file's.
    seeds: comma-separated seeds, in place of the file's.

  Raises:
    UsageError: that names the field, the value and the remedy.
  """
  file = dict(config_lib.read_file(source))
  for field in file:
    if field not in _FIELDS:
      raise UsageError(f"{source}: {unknown('field', field, _FIELDS)}")
  bases = file.get("base")
  bases = (bases,) if isinstance(bases, str) else bases
  listed = isinstance(bases, tuple | list) and len(bases) > 0
  if not listed or not all(isinstance(base, str) for base in bases):
    raise UsageError(
      f"{source}: base is {bases!r}; it must be a config file, such as"
      " configs/digits.py, or several in a tuple"
    )
  given = {"base": bases} if len(bases) > 1 else {}
  given |= dict(file.get("grid", {})) | (grid or {})
  if "seed" in given:
    raise UsageError("the grid holds seed; its values are those of seeds")
  given["seed"] = file.get("seeds", (0,)) if seeds is None else seeds
  fixed = {field: _text(v) for field, v in dict(file.get("set", {})).items()}
  fixed |= changes or {}
  if "base" in fixed:
    raise UsageError(
      f"config.base is {fixed['base']}, and there is no such field; to train"
      f" this config file, write --grid.base={fixed['base']}"
    )
  values = {}
  for field, texts in given.items():
    option = "--seeds" if field == "seed" else f"--grid.{field}"
    if field in fixed:
      raise UsageError(
        f"config.{field} is {fixed[field]} and has values in the grid, too; to"
        f" have but this one, write {option}={fixed[field]}"
      )
    values[field] = _values(option, texts)
  sweep = Sweep(values.get("base", bases)[0], fixed, values)
  configs = sweep.configs()
  for base, config in configs.items():
    known = config_lib.field_names(config)
    for field in values:
      # Else every trial would be refused for it.
      if field != "base" and field not in known:
        said = unknown("field", field, known)
        raise UsageError(f"--grid.{field}: in {base} {said}")
  tasks = {config.task for config in configs.values()}
  if len(tasks) > 1:
    raise UsageError(
      f"base is {', '.join(sweep.bases)}, of the tasks {', '.join(tasks)};"
      " compare config files of one task"
    )
  return sweep


def window(config: ml_collections.ConfigDict) -> int | None:
  """Returns the side of what a query attends to, in pixels of its map.

  None for a model without local attention.
  """
  fields = config.model.to_dict()
  model = registry.create_model(fields.pop("name"), **fields)
  return getattr(model, "window", None)


def check_data(sweep: Sweep) -> None:
  """Checks the data of all config files before the first trial begins.

  Raises:
    UsageError: if some of it cannot be read.
  """
  if any(field.startswith("data.") for field in sweep.grid):
    return
  from halonet.data import sources  # TensorFlow takes seconds to load.

  for config in sweep.configs().values():
    source = sources.open_source(config.data, make_task(config).needs)
    for field in ("train_split", "test_split"):
      source.split(field, config.data[field])


def differences(
  old: dict[str, Any], new: dict[str, Any]
) -> tuple[list[str], list[str]]:
  """Lists how two sweeps' `to_dict` differ, as `field: old → new`.

  Returns:
    The differences that make another sweep, and those that do not change what
    is learned.
  """
  grids = old["grid"], new["grid"]
  words = [{f: " ".join(texts) for f, texts in grid.items()} for grid in grids]
  refused = [
    f"grid {f}: {words[0].get(f, 'absent')} → {words[1].get(f, 'absent')}"
    for f in sorted(words[0].keys() | words[1].keys())
    if grids[0].get(f) != grids[1].get(f)
  ]
  both = grids[0].keys() & grids[1].keys()
  if grids[0].get("base") != grids[1].get("base"):
    return refused, []
  other, changed = {}, {}
  # Earlier versions stored one config, as `config`.
  texts = (each.get("configs") or [each["config"]] for each in (old, new))
  for pair in zip(*texts, strict=True):
    try:
      found = config_lib.differences(*map(config_lib.from_json, pair))
    except ValueError as error:
      raise UsageError(f"the sweep's config cannot be read: {error}") from None
    for kept, words in zip((other, changed), found, strict=True):
      # The base's own value of a field of the grid is never trained.
      kept |= {x: None for x in words if x.partition(":")[0] not in both}
  return refused + list(other), list(changed)


def _text(value):
  return value if isinstance(value, str) else repr(value)


def _values(option, given):
  """Returns a field's values as texts; UsageError if they are no values."""
  if isinstance(given, str):
    split = fields.parse(f"[{given}]")  # Commas in brackets split nothing.
    bare = [word.strip() for word in given.split(",")]
    given = bare if isinstance(split, str) else split
  if not isinstance(given, tuple | list):
    raise UsageError(f"{option} is {given!r}; it must be a tuple of values")
  texts = tuple(map(_text, given))
  if not all(texts) or not texts:
    raise UsageError(f"{option} lacks a value; write such as 2,4")
  if len(set(texts)) < len(texts):
    raise UsageError(f"{option} is {', '.join(texts)}: one stands twice")
  return texts


def _slug(text):
  """Returns a value as a part of a folder's name."""
  slug = re.sub(r"[^\w.+-]+", "-", text).strip("-")[-40:]
  if slug == text:
    return text
  return f"{slug}-{zlib.crc32(text.encode()):08x}"
