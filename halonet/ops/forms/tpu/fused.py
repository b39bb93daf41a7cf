"""Blocked local attention by fused TPU kernels, as a differentiable function.

The kernels read and write the maps as they lie in memory. What neighbourhoods
repeat exists only in vector memory, and logits never reach the chip's main
memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from halonet.ops import blocks
from halonet.ops.forms.tpu import backward as backward_lib
from halonet.ops.forms.tpu import forward as forward_lib
from halonet.ops.forms.tpu.tiling import Tiling
from halonet.ops.positions import Tables

# Vector memory for values that do not fit in registers, in bytes.
_SPILLED = 4 << 20


def fused_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  tables: Tables,
  tiling: Tiling,
  *,
  split: Callable[[Callable], Callable],
  vmem_limit: int | None,
  interpret: bool,
) -> jax.Array:
  """Computes what `Form.attend` returns.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape.
    value: `[batch, height, width, heads, value_dim]`.
    tables: embeddings of relative offsets.
    tiling: of the layer.
    split: `Place.split`.
    vmem_limit: bytes of vector memory that a kernel may use.
    interpret: whether to run the kernels without a TPU, slowly.
  """
  layer = tiling.layer
  # Flat before devices are told apart, where XLA no longer drops a reshape.
  query, key, value = (
    blocks.pad_to_blocks(x.reshape(*x.shape[:3], -1), layer.block_size)
    for x in (query, key, value)
  )
  table = _table(tiling, *tables.spanning(-layer.farthest, layer.farthest))
  attention = split(
    functools.partial(_attention, tiling, vmem_limit, interpret)
  )
  missing = tiling.strips * tiling.strip_rows * layer.block_size
  missing = (0, missing - query.shape[1])
  query, key, value = (
    jnp.pad(x, ((0, 0), missing, (0, 0), (0, 0))) if missing[1] else x
    for x in (query, key, value)
  )
  output = attention(
    query[:, :: layer.stride, :: layer.stride],
    _strips(tiling, key),
    _strips(tiling, value),
    table.astype(query.dtype),
  )
  height, width = layer.output_size
  output = output[:, :height, :width]
  return output.reshape(*output.shape[:3], tiling.heads, tiling.value_dim)


def vector_memory(tiling: Tiling, dtype: jnp.dtype) -> int:
  """Returns the bytes of vector memory that the kernels of a layer need."""
  return _SPILLED + max(
    forward_lib.forward_bytes(tiling, dtype),
    backward_lib.backward_bytes(tiling, dtype),
  )


def _strips(tiling, x):
  """Puts the strips of a map beneath each other, each with its halo rows."""
  if tiling.strips == 1:
    return x
  halo, rows = (
    tiling.layer.halo_size,
    tiling.strip_rows * tiling.layer.block_size,
  )
  x = jnp.pad(x, ((0, 0), (halo, halo), (0, 0), (0, 0)))
  starts = range(0, tiling.strips * rows, rows)
  return jnp.concatenate(
    [x[:, start : start + rows + 2 * halo] for start in starts], axis=1
  )


def _table(tiling, relative_height, relative_width):
  """Puts both tables beneath each other, repeated for every head of a group."""
  offsets, width_h = relative_height.shape
  rows = (0, tiling.offsets_padded - offsets)
  height = (rows, (0, tiling.head_dim - width_h))
  width = (rows, (tiling.head_dim - relative_width.shape[1], 0))
  table = jnp.concatenate(
    [jnp.pad(relative_height, height), jnp.pad(relative_width, width)]
  )
  return jnp.tile(table, (1, tiling.group_heads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(tiling, vmem_limit, interpret, query, key, value, table):
  options = dict(vmem_limit=vmem_limit, interpret=interpret)
  return forward_lib.forward(tiling, query, key, value, table, **options)[0]


def _forward(tiling, vmem_limit, interpret, query, key, value, table):
  inputs = query, key, value, table
  output, sums = forward_lib.forward(
    tiling, *inputs, vmem_limit=vmem_limit, interpret=interpret
  )
  return output, (*inputs, sums)


def _backward(tiling, vmem_limit, interpret, saved, gradient):
  return backward_lib.backward(
    tiling, *saved, gradient, vmem_limit=vmem_limit, interpret=interpret
  )


_attention.defvjp(_forward, _backward)
