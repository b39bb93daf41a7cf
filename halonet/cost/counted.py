"""What a program computes, counted operation by operation.

JAX traces a function to a program (a jaxpr) without computing anything. Every
operation in it bears the name of the module and the part that it belongs to,
so that costs can be summed by layer; XLA's own analysis gives one sum for all.
The count is XLA's (`jax.stages.Lowered.cost_analysis`): a multiplication and an
addition are two operations, so are a comparison and a selection; taps of a
convolution that lie on its padding are none; exponentials and their like are
counted apart, as transcendentals. XLA keeps its sum in a float32, so it is
rounded from 2²⁴ on; ours is exact. What is written twice or in vain counts,
also where JAX drops it on its way to XLA: in the models' programs, a few
numbers of a table that is resized, and zeros for a padding of nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Array:
  """An operand or a result: what memory it takes."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def elements(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.elements * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of a program.

  Attributes:
    scopes: names of the modules and parts around it, outermost first.
    primitive: what it does, in JAX's words.
    flops: additions, multiplications and the like.
    transcendentals: exponentials, logarithms, roots and the like.
    contracted: terms of each sum of a matrix product; 0 for all else.
    operands: what it reads.
    result: what it makes.
  """

  scopes: tuple[str, ...]
  primitive: str
  flops: int
  transcendentals: int
  contracted: int
  operands: tuple[Array, ...]
  result: Array


def operations(function: Callable, *arguments) -> list[Operation]:
  """Traces a function and lists its operations, in the program's order.

  Args:
    function: takes and gives arrays, or trees of them.
    *arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.

  Raises:
    ValueError: at an operation whose cost is not known here, or not fixed,
      such as a loop that ends on a condition.
  """
  program = jax.make_jaxpr(function)(*arguments)
  return list(_walk(program.jaxpr, (), 1))


def flops(function: Callable, *arguments) -> int:
  """The sum over `operations`."""
  return sum(each.flops for each in operations(function, *arguments))


# Parameters of operations under which they hold a program that runs once.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _walk(jaxpr, scopes, times) -> Iterator[Operation]:
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    parameters = equation.params
    inner = (*scopes, *_scopes(equation))
    if name in ("while", "cond", "pallas_call"):
      raise ValueError(
        f"the cost of {name!r}, in {'/'.join(inner) or 'the program'}, is not"
        " fixed by its shapes"
      )
    held = [parameters[key] for key in _CALLS if key in parameters]
    if held:
      body = getattr(held[0], "jaxpr", held[0])
      repeats = parameters["length"] if name == "scan" else 1
      yield from _walk(body, inner, times * repeats)
    else:
      yield _count(equation, inner, times)


def _scopes(equation):
  stack = str(equation.source_info.name_stack)
  return tuple(part for part in stack.split("/") if part)


def _count(equation, scopes, times):
  name = equation.primitive.name
  operands = tuple(
    Array(each.aval.shape, np.dtype(each.aval.dtype))
    for each in equation.invars
    if not jax.dtypes.issubdtype(each.aval.dtype, jax.dtypes.extended)
  )
  result = equation.outvars[0].aval
  result = Array(result.shape, np.dtype(result.dtype))
  flops = transcendentals = contracted = 0
  if name == "dot_general":
    (axes, _), _ = equation.params["dimension_numbers"]
    contracted = math.prod(operands[0].shape[axis] for axis in axes)
    flops = 2 * result.elements * contracted
  elif name == "conv_general_dilated":
    flops = _convolution(equation.params, *operands, result)
  elif name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"):
    flops = operands[0].elements - result.elements
  elif name in ("reduce_window_sum", "reduce_window_max"):
    window = math.prod(equation.params["window_dimensions"])
    flops = result.elements * (window - 1)
  elif name == "integer_pow":
    power = abs(equation.params["y"])
    products = max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0)
    flops = result.elements * (products + (equation.params["y"] < 0))
  elif name == "logistic":  # Written out as 1 / (1 + exp(−x)).
    flops, transcendentals = 3 * result.elements, result.elements
  elif name in _ARITHMETIC:
    flops = result.elements
  elif name in _TRANSCENDENTAL:
    transcendentals = result.elements
  elif name not in _FREE:
    raise ValueError(
      f"{name!r}, in {'/'.join(scopes) or 'the program'}, is an operation"
      " whose cost is not known here"
    )
  return Operation(
    scopes,
    name,
    times * flops,
    times * transcendentals,
    contracted,
    operands,
    result,
  )


def _convolution(parameters, image, kernel, result):
  """Twice the taps that meet a pixel, as XLA counts."""
  numbers = parameters["dimension_numbers"]
  taps = 1
  for axis, (before, after) in enumerate(parameters["padding"]):
    length = image.shape[numbers.lhs_spec[2 + axis]]
    size = kernel.shape[numbers.rhs_spec[2 + axis]]
    base = parameters["lhs_dilation"][axis]
    spread = parameters["rhs_dilation"][axis]
    stride = parameters["window_strides"][axis]
    # Where each tap of each window lies, in the dilated image.
    dilated = (length - 1) * base + 1
    windows = dilated + before + after - ((size - 1) * spread + 1)
    starts = np.arange(windows // stride + 1) * stride - before
    places = starts[:, None] + np.arange(size) * spread
    meets = (places >= 0) & (places < dilated) & (places % base == 0)
    taps *= int(meets.sum())
  batch = result.shape[numbers.out_spec[0]]
  features = result.shape[numbers.out_spec[1]]
  inputs = kernel.shape[numbers.rhs_spec[1]]  # Of a group, where there are.
  return 2 * batch * features * inputs * taps


# fmt: off
_ARITHMETIC = frozenset((
  "abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type",
  "div", "eq", "floor", "ge", "gt", "le", "lt", "max", "min", "mul", "ne",
  "neg", "not", "or", "rem", "round", "select_n", "sign", "square", "sub",
  "xor",
))
_TRANSCENDENTAL = frozenset((
  "cbrt", "cos", "erf", "exp", "exp2", "expm1", "log", "log1p", "pow",
  "rsqrt", "sin", "sqrt", "tan", "tanh",
))
# They move or make numbers, and compute none.
_FREE = frozenset((
  "broadcast_in_dim", "concatenate", "copy", "copy_p", "dynamic_slice",
  "dynamic_update_slice", "expand_dims", "gather", "iota", "name",
  "optimization_barrier", "pad", "reshape", "rev", "slice", "split",
  "squeeze", "stack", "stop_gradient", "transpose",
))
# fmt: on
