"""Fields of configs and models: each is described once, where it is declared.

A field has a default, a type, a range and an explanation. Reading a value from
the command line, checking it and printing the help all follow from these.
"""

import ast
import dataclasses
import math
import numbers
import operator
import os
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from halonet.errors import UsageError, unknown

# Largest values of sizes that several parts have. They are far from sensible
# ones, and keep a slip from taking all memory.
MOST_SIDE = 16_384  # Pixels; a float32 image of that side takes 3.2 GB.
MOST_WIDTH = 65_536  # Channels; the widest published ResNets have 8,192.
MOST_RATIO = 64  # Between two widths; published ones are at most 6.5.
MOST_BATCH = 2**20  # Images; large batches of ImageNet are 65,536.
MOST_CLASSES = 10_000_000  # ImageNet-21k has 21,841.
MOST_STEPS = 2**31 - 1  # The state counts steps in 32 bits.

_KINDS = {
  int: (numbers.Integral, "a whole number"),
  float: (numbers.Real, "a number"),
  bool: (bool, "true or false"),
  str: (str, "a text"),
}


class Duration:
  """A type: a number of steps, or a text such as "90 epochs"."""


@dataclasses.dataclass(frozen=True)
class Field:
  """A field's description.

  Attributes:
    default: its value unless it is set.
    help: explanation, one or more sentences.
    kind: type of its values: `int`, `float`, `bool`, `str`, `Duration`, a
      `tuple` of one of them such as `tuple[int, ...]`, or one of them or None
      such as `int | None`. By default the type of `default`.
    least: smallest allowed value.
    most: largest allowed value.
    above: bound that the value must exceed.
    below: bound that the value must stay under.
    choices: allowed values, if they are few.
    length: required number of items of a tuple; None allows any.
    total: largest allowed sum of a tuple's items.
    sides: largest allowed value in sides of the training's images.
    example: value to show in an error, where the default says little.
    changeable: whether a run that has begun may go on with another value.
  """

  default: Any
  help: str = ""
  kind: Any = None
  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  choices: tuple[Any, ...] = ()
  length: int | None = None
  total: float | None = None
  sides: int | None = None
  example: Any = None
  changeable: bool = False

  def __post_init__(self):
    if self.kind is None:
      kind = type(self.default)
      if kind is tuple:
        kind = tuple[type(self.default[0]), ...]
      object.__setattr__(self, "kind", kind)

  def range(self) -> str:
    """Words the allowed values, such as "at least 1"; "" if all are."""
    if self.choices:
      return f"one of {', '.join(map(str, self.choices))}"
    words = [f"{words} {bound}" for words, bound, _ in self._bounds()]
    if self.total is not None:
      words.append(f"at most {self.total} together")
    return " and ".join(words)

  def _bounds(self):
    bounds = (
      ("at least", self.least, operator.ge),
      ("above", self.above, operator.gt),
      ("at most", self.most, operator.le),
      ("below", self.below, operator.lt),
    )
    return [bound for bound in bounds if bound[1] is not None]

  def check(self, name: str, value: Any) -> Any:
    """Returns the value with the field's type, such as a float for 1.

    Raises:
      ValueError: if type or range are wrong; it names field and value.
    """
    value = convert(name, value, self.kind, self.example or self.default)
    if self.length is not None and len(value) != self.length:
      raise ValueError(f"{name} is {value}; it must have {self.length} items")
    if self.choices and value not in self.choices:
      kind = name.removesuffix(".name").rpartition(".")[2]
      raise ValueError(
        f"{name}: {unknown(kind, str(value), map(str, self.choices))}"
      )
    if self.kind is Duration:
      number, unit = parse_duration(name, value)
      small = number < self.least and not (unit == "epochs" and number > 0)
      if small or number > (self.most or math.inf):
        raise ValueError(f"{name} is {value}; it must be {self.range()}")
      return value
    for item in value if isinstance(value, tuple) else (value,):
      if isinstance(item, str) or item is None:
        continue
      if not all(holds(item, bound) for _, bound, holds in self._bounds()):
        raise ValueError(f"{name} is {value}; it must be {self.range()}")
    if self.total is not None and sum(value) > self.total:
      raise ValueError(f"{name} is {value}; it must be {self.range()}")
    return value

  def check_side(self, name: str, value: Any, side: int) -> None:
    """Raises ValueError if a value is too large for images of `side` pixels."""
    items = value if isinstance(value, tuple) else (value,)
    if self.sides and max(items, default=0) > self.sides * side:
      times = f"{self.sides} times " if self.sides > 1 else ""
      raise ValueError(
        f"{name} is {value}; it must be at most {self.sides * side}, {times}the"
        " side of the images"
      )


def field(default: Any, help: str = "", **description: Any) -> Any:
  """Declares a described field of a dataclass; see `Field`."""
  return dataclasses.field(
    default=default,
    metadata={"field": Field(default, help, **description)},
  )


def check_option(name: str, value: int, most: int) -> None:
  """Raises UsageError unless an option of a command is from 1 to `most`."""
  try:
    Field(1, least=1, most=most).check(f"--{name}", value)
  except ValueError as error:
    raise UsageError(str(error)) from None


def fields_of(cls: type) -> dict[str, Field]:
  """Returns the described fields of a dataclass by name.

  Their types are the annotations.
  """
  kinds = typing.get_type_hints(cls)
  return {
    each.name: dataclasses.replace(
      each.metadata["field"], kind=kinds[each.name]
    )
    for each in dataclasses.fields(cls)
    if "field" in each.metadata
  }


def check_fields(instance: Any) -> None:
  """Checks a dataclass and converts its values in place; see `Field.check`."""
  for name, each in fields_of(type(instance)).items():
    value = each.check(name, getattr(instance, name))
    object.__setattr__(instance, name, value)  # It may be frozen.


def convert(name: str, value: Any, kind: Any, example: Any = None) -> Any:
  """Returns a value with the type `kind`.

  Lists become tuples, whole numbers floats, NumPy scalars Python's numbers and
  paths texts.

  Raises:
    ValueError: if it has another type or is not finite; it names the field.
  """
  options = typing.get_args(kind)
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, tuple | list):
      raise ValueError(f"{name} is {value!r}; it must be a tuple")
    return tuple(convert(name, item, options[0], example) for item in value)
  if type(None) in options:
    if value is None:
      return None
    kind = next(each for each in options if each is not type(None))
    try:
      return convert(name, value, kind, example)
    except ValueError as error:
      raise ValueError(f"{error}, or None") from None
  if kind is Duration:
    if isinstance(value, str):
      parse_duration(name, value)
      return value
    kind = int
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  accepted, words = _KINDS[kind]
  if not isinstance(value, accepted) or (
    isinstance(value, bool) and kind is not bool
  ):
    such = "" if example in (None, ()) else f", such as {example!r}"
    raise ValueError(f"{name} is {value!r}; it must be {words}{such}")
  try:
    value = kind(value)
  except OverflowError:  # A whole number beyond all floats.
    value = math.inf
  if kind is float and not math.isfinite(value):
    raise ValueError(f"{name} is {value}; it must be a finite number")
  return value


def parse_duration(name: str, value: int | str) -> tuple[float, str]:
  """Splits a duration into its number and its unit, "steps" or "epochs".

  Raises:
    ValueError: if it is neither.
  """
  if not isinstance(value, str):
    return value, "steps"
  match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*epochs?\s*", value)
  if not match:
    raise ValueError(
      f"{name} is {value!r}; it must be a whole number of steps, or a text like"
      ' "90 epochs"'
    )
  return float(match[1]), "epochs"


def parse(text: str, kind: Any = None) -> Any:
  """Reads a value of a type from the command line.

  Texts stay as they are; all else is read as Python would, and bare words as
  texts. Whether the value fits is for `Field.check` to say.
  """
  optional = type(None) in typing.get_args(kind)
  if optional and text == "None":
    return None
  if kind is str or (optional and str in typing.get_args(kind)):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    value = {"true": True, "false": False}.get(text, text)
  texts = typing.get_origin(kind) is tuple and str in typing.get_args(kind)
  return (text,) if texts and isinstance(value, str) else value


def parse_overrides(
  words: Sequence[str], prefix: str = "--config."
) -> dict[str, str]:
  """Splits words such as `--config.FIELD=VALUE` into fields and texts.

  Raises:
    UsageError: if a word has another form.
  """
  found = {}
  for word in words:
    field, equals, text = word.removeprefix(prefix).partition("=")
    if not word.startswith(prefix):
      raise UsageError(f"unknown argument {word}; see --help")
    if not equals:
      raise UsageError(f"{word}: write {word}=VALUE")
    found[field] = text
  return found


def describe(fields: Mapping[str, Field], prefix: str = "") -> str:
  """Formats fields for a terminal: default, type or range, explanation."""
  lines = []
  for name, each in fields.items():
    kind = kind_words(each.kind) if not each.choices else ""
    words = ", ".join(filter(None, [kind, each.range()]))
    lines.append(f"{prefix}{name} = {each.default!r}  ({words})")
    note = " A run that has begun may change it." if each.changeable else ""
    lines += textwrap.wrap(
      each.help + note, 76, initial_indent="    ", subsequent_indent="    "
    )
  return "\n".join(lines)


def is_kind(kind: Any) -> bool:
  """Says whether values of a type can be read and checked here."""
  options = [each for each in typing.get_args(kind) if each is not type(None)]
  if options:
    return all(each is ... or is_kind(each) for each in options)
  return kind is Duration or kind in _KINDS


def kind_words(kind: Any) -> str:
  """Words a type, such as "a whole number or None"."""
  options = typing.get_args(kind)
  if typing.get_origin(kind) is tuple:
    return f"a tuple, each {kind_words(options[0])}"
  if type(None) in options:
    inner = next(each for each in options if each is not type(None))
    return f"{kind_words(inner)} or None"
  if kind is Duration:
    return 'a whole number of steps, or a text like "90 epochs"'
  return _KINDS[kind][1]
