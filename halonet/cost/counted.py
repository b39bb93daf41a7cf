"""Counts the operations of a program, one by one.

JAX traces a function to a program (a jaxpr) without computing anything. Each
operation carries the names of the modules and parts it belongs to, so costs can
be summed by layer, whereas XLA's own analysis gives one sum for everything.
The count of an operation is XLA's (`jax.stages.Lowered.cost_analysis`): a
multiplication and an addition are two operations, as are a comparison and a
selection; taps of a convolution that lie on its padding count nothing;
exponentials and the like are counted apart, as transcendentals.

XLA analyses a single operation in milliseconds, so similar ones share an
analysis. It keeps counts in float32: convolutions are rounded from 2²⁴ on, all
else is exact. Work that is duplicated or unused counts, too, even where JAX
drops it before XLA sees it: in the registered models, that is a few numbers of
a resized table, and zeros for an empty padding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of a program.

  Attributes:
    scopes: names of the modules and parts around it, outermost first.
    primitive: JAX's name for what it does.
    flops: additions, multiplications and the like.
    transcendentals: exponentials, logarithms, roots and the like.
    known: whether XLA could analyse it; if not, both counts are 0.
    contracted: terms of each sum of a matrix product; 0 for everything else.
    operands: its inputs, with `shape`, `dtype` and `size`.
    result: its first output.
  """

  scopes: tuple[str, ...]
  primitive: str
  flops: int
  transcendentals: int
  known: bool
  contracted: int
  operands: tuple[Any, ...]
  result: Any


def num_bytes(array: Any) -> int:
  """Returns the bytes of an operand or a result."""
  return array.size * array.dtype.itemsize


def operations(function: Callable, *arguments: Any) -> list[Operation]:
  """Traces a function and lists its operations in program order.

  Args:
    function: maps arrays, or trees of them, to such.
    *arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
  """
  program = jax.make_jaxpr(function)(*arguments)
  return list(_walk(program.jaxpr, (), 1))


def _walk(jaxpr, scopes, times) -> Iterator[Operation]:
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    stack = str(equation.source_info.name_stack).split("/")
    inner = (*scopes, *filter(None, stack))
    body = _body(name, parameters)
    if body is not None:
      turns = parameters["length"] if name == "scan" else 1
      yield from _walk(body, inner, times * turns)
    elif equation.outvars:
      flops, transcendentals, known, contracted = _count(equation)
      yield Operation(
        inner,
        name,
        times * flops,
        times * transcendentals,
        known,
        contracted,
        tuple(each.aval for each in equation.invars),
        equation.outvars[0].aval,
      )


def _body(name, parameters):
  """Returns the program that an operation runs a known number of times."""
  # A reduction's program combines two numbers, a kernel's runs on a grid.
  if not name.startswith("reduce") and name != "pallas_call":
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
      if key in parameters:
        return getattr(parameters[key], "jaxpr", parameters[key])
  return None


# Operations that only move numbers, for which XLA counts nothing. They are
# half of a model's, and listed here to save the time of asking.
# fmt: off
_MOVES = frozenset((
  "broadcast_in_dim", "concatenate", "dynamic_slice", "pad", "reshape", "slice",
  "split", "squeeze", "stack", "transpose", "unstack",
))
# fmt: on


def _count(equation):
  """Returns FLOPs, transcendentals, whether known, and contracted terms."""
  name = equation.primitive.name
  result = equation.outvars[0].aval
  shapes = tuple(each.aval.shape for each in equation.invars)
  if name in _MOVES:
    return 0, 0, True, 0
  if name == "dot_general":
    (axes, _), _ = equation.params["dimension_numbers"]
    contracted = math.prod(shapes[0][axis] for axis in axes)
    return 2 * result.size * contracted, 0, True, contracted
  # Elementwise operations cost the same for every element. Others of such
  # shapes have a parameter that names an axis, which a scalar has not.
  if shapes and all(_broadcasts(shape, result.shape) for shape in shapes):
    counts = _analyse(equation, scalar=True)
    if counts is not None:
      return *(int(count) * result.size for count in counts), True, 0
  counts = _analyse(equation)
  if counts is None:
    return 0, 0, False, 0
  return *(_exact(count, result.size) for count in counts), True, 0


def _broadcasts(shape, to):
  return not shape or (
    len(shape) == len(to)
    and all(length in (1, full) for length, full in zip(shape, to, strict=True))
  )


def _exact(count, elements):
  """Undoes the rounding to float32 of a multiple of the result's elements."""
  multiple = round(count / max(elements, 1)) * elements
  return multiple if abs(multiple - count) <= count * 2**-23 else int(count)


_ANALYSES = {}  # What equals another operation shares its analysis.


def _analyse(equation, scalar=False):
  """Returns XLA's FLOPs and transcendentals, or None if it cannot tell."""
  bind = functools.partial(equation.primitive.bind, **equation.params)
  arguments = [
    jax.ShapeDtypeStruct(() if scalar else each.aval.shape, each.aval.dtype)
    for each in equation.invars
  ]
  key = f"{equation.primitive} {equation.params} {arguments}"
  if key not in _ANALYSES:
    _ANALYSES[key] = _ask_xla(bind, arguments)
  return _ANALYSES[key]


def _ask_xla(function, arguments):
  try:
    # Wherever the model will run, its operations are counted as on a CPU.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      lowered = jax.jit(function).lower(*arguments)
    analysis = lowered.cost_analysis()
  except Exception:  # Whatever the reason, the cost is unknown.
    return None
  # XLA counts one turn of a loop, and nothing for a call of other code.
  text = lowered.as_text()
  if analysis is None or "stablehlo.while" in text or "custom_call" in text:
    return None
  return analysis.get("flops", 0), analysis.get("transcendentals", 0)
