"""Fields of a description: values of the kinds that they are declared as."""

import math
import numbers
import typing
from typing import Any

_KINDS = {
  int: (numbers.Integral, "a whole number"),
  float: (numbers.Real, "a number"),
  bool: (bool, "true or false"),
  str: (str, "a text"),
}


def typed(name: str, value: Any, kind: Any) -> Any:
  """Makes a value the kind that its field is declared as.

  Args:
    name: of the field.
    value: lists become tuples, and whole numbers floats, where asked for.
    kind: `int`, `float`, `bool`, `str`, one of these or None, or a tuple.

  Raises:
    ValueError: if it is of another kind, or not finite; it names the field.
  """
  options = typing.get_args(kind)
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, tuple | list):
      raise ValueError(f"{name} is {value!r}; it must be a tuple")
    return tuple(typed(name, item, options[0]) for item in value)
  if options:  # A kind, or None.
    if value is None:
      return None
    kind = options[0]
  accepted, words = _KINDS[kind]
  if not isinstance(value, accepted) or (
    isinstance(value, bool) and kind is not bool
  ):
    optional = " or None" if options else ""
    raise ValueError(f"{name} is {value!r}; it must be {words}{optional}")
  value = kind(value)
  if kind is float and not math.isfinite(value):
    raise ValueError(f"{name} is {value}; it must be finite")
  return value
