"""Blocked local attention by fused TPU kernels, as a differentiable function.

The maps go into the kernels as they are and come out as they are: what a
neighbourhood repeats exists in vector memory alone, and no array of logits
ever in the chip's main memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from halonet.ops import blocks
from halonet.ops.pallas import backward as backward_lib
from halonet.ops.pallas import forward as forward_lib
from halonet.ops.pallas.geometry import Geometry

# What the compiler needs of vector memory beside blocks and scratch: values
# that do not fit in registers.
_SPILLED = 4 << 20


def local_attention(
  geometry: Geometry,
  over_devices: Callable[[Callable], Callable],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  relative_height: jax.Array,
  relative_width: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> jax.Array:
  """`halonet.ops.attention.blocked_local_attention`, by kernels.

  Arrays and result as there.

  Args:
    geometry: of the layer; its `stride` divides its `block_size`.
    over_devices: makes a function of three maps and a table one that each
      device calls for its part of the batch.
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape.
    value: `[batch, height, width, heads, value_dim]`.
    relative_height: table of row offsets.
    relative_width: table of column offsets.
    vmem_limit: bytes of vector memory that a kernel may have.
    interpret: runs the kernels without a TPU, slowly.
  """
  batch, stride = query.shape[0], geometry.stride
  size = geometry.height, geometry.width
  # Flat before devices are told apart, where XLA no longer drops a reshape.
  query, key, value = (
    blocks.pad_to_blocks(x.reshape(batch, *size, -1), geometry.block_size)
    for x in (query, key, value)
  )
  table = _table(geometry, relative_height, relative_width)
  attention = over_devices(
    functools.partial(_attention, geometry, vmem_limit, interpret)
  )
  missing = geometry.strips * geometry.rows * geometry.block_size
  missing = (0, missing - query.shape[1])
  query, key, value = (
    jnp.pad(x, ((0, 0), missing, (0, 0), (0, 0))) if missing[1] else x
    for x in (query, key, value)
  )
  output = attention(
    query[:, ::stride, ::stride],
    _strips(geometry, key),
    _strips(geometry, value),
    table.astype(query.dtype),
  )
  output = output[:, : -(-size[0] // stride), : -(-size[1] // stride)]
  return output.reshape(*output.shape[:3], geometry.heads, geometry.value_dim)


def vector_memory(geometry: Geometry, dtype: jnp.dtype) -> int:
  """Bytes of vector memory that the kernels of a layer need."""
  return _SPILLED + max(
    forward_lib.forward_bytes(geometry, dtype),
    backward_lib.backward_bytes(geometry, dtype),
  )


def _strips(geometry, x):
  """The strips of a map beneath each other, each between its halo rows."""
  if geometry.strips == 1:
    return x
  halo, rows = geometry.halo_size, geometry.rows * geometry.block_size
  x = jnp.pad(x, ((0, 0), (halo, halo), (0, 0), (0, 0)))
  starts = range(0, geometry.strips * rows, rows)
  return jnp.concatenate(
    [x[:, start : start + rows + 2 * halo] for start in starts], axis=1
  )


def _table(geometry, relative_height, relative_width):
  """Both tables beneath each other, each beside itself for every head."""
  offsets, width_h = relative_height.shape
  rows = (0, geometry.offsets_padded - offsets)
  height = (rows, (0, geometry.head_dim - width_h))
  width = (rows, (geometry.head_dim - relative_width.shape[1], 0))
  table = jnp.concatenate(
    [jnp.pad(relative_height, height), jnp.pad(relative_width, width)]
  )
  return jnp.tile(table, (1, geometry.group_heads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(geometry, vmem_limit, interpret, query, key, value, table):
  options = dict(vmem_limit=vmem_limit, interpret=interpret)
  return forward_lib.forward(geometry, query, key, value, table, **options)[0]


def _forward(geometry, vmem_limit, interpret, query, key, value, table):
  inputs = query, key, value, table
  output, sums = forward_lib.forward(
    geometry, *inputs, vmem_limit=vmem_limit, interpret=interpret
  )
  return output, (*inputs, sums)


def _backward(geometry, vmem_limit, interpret, saved, gradient):
  return backward_lib.backward(
    geometry, *saved, gradient, vmem_limit=vmem_limit, interpret=interpret
  )


_attention.defvjp(_forward, _backward)
