"""Convolutions and products whose gradients a CPU computes fast.

For the gradient of a kernel, XLA convolves the whole map, which is slow on a
CPU. For that of a matrix, it joins what comes before with the copy that
transposes an argument, which is slow, too. Here, such a gradient is a few
products, and what comes before is computed first. Only reverse mode
differentiates it. Elsewhere than on a CPU, these are XLA's own operations.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from halonet.ops.forms.form import Place


def convolve(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw group features"],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> Float[Array, "b oh ow features"]:
  """Convolves as `jax.lax.conv_general_dilated`, for `flax.linen.Conv`.

  Args:
    x: the map.
    kernel: the kernel; a group has `group` of the map's channels.
    strides: pixels between neighbouring outputs, along rows and columns.
    padding: pixels of zeros before and after rows, and columns.
    **options: the other arguments of `jax.lax.conv_general_dilated`. They must
      be those of a map in NHWC without dilation, which is not checked.

  Returns:
    The map, in the dtype of `x`.
  """
  call = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    **options,
  )
  *taps, group, _ = kernel.shape
  if group != x.shape[3] or not _on_cpu():
    return call(x, kernel)

  def kernel_gradient(x, gradient):
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ends = [
      (length - 1) * stride + 1
      for length, stride in zip(gradient.shape[1:3], strides, strict=True)
    ]

    def of_row(row):
      columns = [
        x[
          :,
          row : row + ends[0] : strides[0],
          column : column + ends[1] : strides[1],
        ]
        for column in range(taps[1])
      ]
      columns = jnp.concatenate(columns, axis=3)
      return _sum_of_products("bhwc,bhwf->cf", columns, gradient)

    return jnp.stack([of_row(row) for row in range(taps[0])])

  return _differentiable(call, kernel_gradient)(x, kernel)


def multiply(
  x: Float[Array, "*rows c"],
  kernel: Float[Array, "c features"],
  dimension_numbers: Any,
  **options: Any,
) -> Float[Array, "*rows features"]:
  """Multiplies as `jax.lax.dot_general`, for `flax.linen.Dense`.

  Args:
    x: rows of channels.
    kernel: the matrix.
    dimension_numbers: those of the product of rows with a matrix.
    **options: the other arguments of `jax.lax.dot_general`.

  Returns:
    The rows, in the dtype of `x`.
  """
  call = functools.partial(
    lax.dot_general, dimension_numbers=dimension_numbers, **options
  )
  if not _on_cpu():
    return call(x, kernel)

  def kernel_gradient(x, gradient):
    return _sum_of_products("...c,...f->cf", x, gradient)

  return _differentiable(call, kernel_gradient)(x, kernel)


def _sum_of_products(axes: str, x: Array, gradient: Array) -> Array:
  """Adds the products of bfloat16 up in float32, on every CPU."""
  dtype = jnp.promote_types(gradient.dtype, jnp.float32)
  return jnp.einsum(axes, x, gradient, preferred_element_type=dtype)


def _on_cpu() -> bool:
  return Place.current().platform == "cpu"


def _differentiable(call: Callable, kernel_gradient: Callable) -> Callable:
  """Gives a function that is linear in a map and in a kernel its gradients."""

  @jax.custom_vjp
  def apply(x, kernel):
    return call(x, kernel)

  def forward(x, kernel):
    return call(x, kernel), (x, kernel)

  def backward(inputs, gradient):
    x, kernel = inputs
    (of_x,) = jax.linear_transpose(lambda x: call(x, kernel), x)(gradient)
    of_kernel = kernel_gradient(*lax.optimization_barrier((x, gradient)))
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)

  apply.defvjp(forward, backward)
  return apply
