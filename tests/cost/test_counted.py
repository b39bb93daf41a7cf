"""Counts of programs, against XLA's own analysis and against hand counts."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from halonet.cost import counted


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def convolve(**options):
  return lambda x, kernel: lax.conv_general_dilated(
    x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )


PROGRAMS = {
  "product": (jnp.matmul, [shape(5, 7), shape(7, 3)]),
  "einsum": (
    lambda x, y: jnp.einsum("bqd,bkd->bqk", x, y),
    [shape(2, 3, 5), shape(2, 7, 5)],
  ),
  "same": (
    convolve(window_strides=(2, 2), padding="SAME"),
    [shape(2, 9, 12, 4), shape(3, 5, 4, 6)],
  ),
  "padded": (
    convolve(window_strides=(1, 2), padding=((3, 3), (0, 1))),
    [shape(1, 8, 8, 3), shape(7, 3, 3, 2)],
  ),
  "groups": (
    convolve(
      window_strides=(1, 1), padding=((1, 1), (1, 1)), feature_group_count=4
    ),
    [shape(2, 6, 6, 8), shape(3, 3, 2, 8)],
  ),
  "dilated": (
    convolve(
      window_strides=(1, 1),
      padding=((2, 1), (2, 2)),
      lhs_dilation=(2, 1),
      rhs_dilation=(1, 2),
    ),
    [shape(1, 6, 7, 2), shape(3, 3, 2, 2)],
  ),
  "max_pool": (
    lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    [shape(1, 9, 9, 2)],
  ),
  "mean": (lambda x: x.mean(axis=(1, 2)), [shape(3, 4, 5, 6)]),
  "softmax": (nn.softmax, [shape(4, 9)]),
  "silu": (nn.silu, [shape(4, 9)]),
  "where": (lambda x: jnp.where(x > 0, x, -x), [shape(4, 9)]),
  "narrow": (
    lambda x: x.astype(jnp.float32) ** 2,
    [shape(4, 9, dtype=jnp.bfloat16)],
  ),
  "powers": (lambda x: x**3 + x**7 + x**-2, [shape(4, 9)]),
  "roots": (lambda x: lax.rsqrt(x) * jnp.exp(x), [shape(4, 9)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_xla_counts(name):
  function, shapes = PROGRAMS[name]
  operations = counted.operations(function, *shapes)
  analysis = jax.jit(function).lower(*shapes).cost_analysis()
  assert sum(each.flops for each in operations) == analysis["flops"] > 0 or (
    name == "roots"
  )
  assert sum(each.transcendentals for each in operations) == analysis.get(
    "transcendentals", 0
  )


def flops(function, *arguments):
  return sum(each.flops for each in counted.operations(function, *arguments))


def test_by_hand():
  assert flops(*_flat("product")) == 2 * 5 * 7 * 3
  # On each axis 8 windows of 3 taps, of which the outer two lose one.
  function = convolve(window_strides=(1, 1), padding="SAME")
  shapes = shape(1, 8, 8, 4), shape(3, 3, 4, 6)
  assert flops(function, *shapes) == 2 * 4 * 6 * (3 * 8 - 2) ** 2


def test_a_scan_counts_as_often_as_it_runs():
  def function(x):
    return lax.scan(lambda x, _: (x @ x, None), x, length=10)[0]

  assert flops(function, shape(4, 4)) == 10 * 2 * 4**3


def test_scopes_lead_through_inner_functions():
  @jax.jit
  def inner(x):
    with jax.named_scope("product"):
      return x @ x

  def outer(x):
    with jax.named_scope("outer"):
      return inner(x)

  (operation,) = counted.operations(outer, shape(4, 4))
  assert operation.scopes == ("outer", "product")
  assert operation.contracted == 4
  assert [counted.num_bytes(each) for each in operation.operands] == [64, 64]


@pytest.mark.parametrize(
  "function, primitive",
  [
    (lambda x: lax.while_loop(lambda x: x[0] < 9, lambda x: x + 1, x), "while"),
    (jnp.linalg.eigvals, "eig"),
  ],
)
def test_what_xla_cannot_tell_is_unknown(function, primitive):
  x = shape(4) if primitive == "while" else shape(4, 4)
  operations = counted.operations(function, x)
  (unknown,) = (each for each in operations if not each.known)
  assert unknown.primitive == primitive and unknown.flops == 0


def test_a_primitive_that_nobody_has_heard_of_is_unknown():
  new = jax.extend.core.Primitive("new")
  new.def_abstract_eval(lambda x: x)
  (operation,) = counted.operations(new.bind, shape(4))
  assert (operation.primitive, operation.known) == ("new", False)


def test_a_small_operation_counts_for_each_element_of_a_large_one():
  elements = 2**24 + 1  # More than a float32 can hold.
  assert flops(lambda x: (x + 1).sum(), shape(elements)) == 2 * elements - 1


def _flat(name):
  function, shapes = PROGRAMS[name]
  return (function, *shapes)
