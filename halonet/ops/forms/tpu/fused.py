"""Blocked local attention by fused TPU kernels, as a differentiable function.

The kernels read and write the maps as they lie in memory. What neighbourhoods
repeat exists only in vector memory, and logits never reach the chip's main
memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from halonet.ops.forms.form import KERNEL_RESULTS
from halonet.ops.forms.tpu import backward as backward_lib
from halonet.ops.forms.tpu import forward as forward_lib
from halonet.ops.forms.tpu.tiling import Tiling
from halonet.ops.positions import Tables


def fused_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  tables: Tables,
  tiling: Tiling,
  *,
  split: Callable[[Callable, int], Callable],
  vmem_limit: int | None,
  interpret: bool,
) -> jax.Array:
  """Computes what `Form.attend` returns.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape.
    value: `[batch, height, width, heads, value_dim]`.
    tables: embeddings of relative offsets.
    tiling: the layer's tiling.
    split: `Place.split`.
    vmem_limit: bytes of vector memory that a kernel may use.
    interpret: whether to run the kernels without a TPU, slowly.
  """
  layer = tiling.layer
  # Flat before devices are told apart, where XLA no longer drops a reshape. The
  # parts of one projection lie beside each other already.
  flat = [x.reshape(*x.shape[:3], -1) for x in (key, value, query)]
  size = layer.block_size
  sides = tiling.strips * tiling.rows, tiling.panels * tiling.panel_cols * size

  def padded(*maps, channels):
    x = jnp.concatenate(maps, axis=-1)
    ends = [
      (0, side - old)
      for side, old in zip((*sides, channels), x.shape[1:], strict=True)
    ]
    return jnp.pad(x, ((0, 0), *ends)) if any(map(max, ends)) else x

  channels = tiling.groups * tiling.map_lanes
  if tiling.joined:
    maps = (padded(*flat, channels=channels),)
  else:
    query = flat.pop()
    query = padded(query, channels=query.shape[-1])
    query = query[:, :: layer.stride, :: layer.stride]
    maps = padded(*flat, channels=channels), query
  table = _table(tiling, *tables.spanning(-layer.farthest, layer.farthest))

  def attend(*arrays):
    *maps, table = arrays
    maps = map(
      functools.partial(_cut, tiling.panels), maps, (tiling.halo_cols, 0)
    )
    output = _attention(tiling, vmem_limit, interpret, tuple(maps), table)
    return _join(tiling.panels, output)

  output = split(attend, len(maps))(*maps, table.astype(query.dtype))
  height, width = layer.output_size
  output = output[:, :height, :width]
  return output.reshape(*output.shape[:3], tiling.heads, tiling.value_dim)


def _cut(panels, x, halo):
  """Cuts maps from left to right into images that overlap by `2 · halo`."""
  if panels == 1:
    return x
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height, panels, width // panels, channels)
  x = jnp.moveaxis(x, 2, 1)
  if halo:
    # Columns of the neighbours. A halo may be wider than a panel.
    before, after = [], []
    size = width // panels
    for step in range(1, -(-halo // size) + 1):
      share = min(size, halo - (step - 1) * size)
      far = min(step, panels)
      ends = ((0, 0), (far, 0)), ((0, 0), (0, far))
      rest = ((0, 0),) * 3
      before.insert(
        0, jnp.pad(x[:, :-step, :, size - share :], (*ends[0], *rest))
      )
      after.append(jnp.pad(x[:, step:, :, :share], (*ends[1], *rest)))
    x = jnp.concatenate([*before, x, *after], axis=3)
  return x.reshape(-1, *x.shape[2:])


def _join(panels, x):
  """Inverts `_cut` for images that do not overlap."""
  if panels == 1:
    return x
  parts = x.reshape(-1, panels, *x.shape[1:])
  return jnp.concatenate([parts[:, i] for i in range(panels)], axis=2)


def vector_memory(tiling: Tiling, dtype: jnp.dtype) -> int:
  """Returns the bytes of vector memory that the kernels of a layer need."""
  return backward_lib.spilled_bytes(tiling, dtype) + max(
    forward_lib.forward_bytes(tiling, dtype),
    backward_lib.backward_bytes(tiling, dtype),
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
  table = jnp.tile(table, (1, tiling.group_heads))
  return jnp.pad(table, ((0, 0), (0, tiling.key_span - tiling.key_lanes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(tiling, vmem_limit, interpret, maps, table):
  options = dict(vmem_limit=vmem_limit, interpret=interpret)
  return forward_lib.forward(tiling, maps, table, **options)[0]


def _forward(tiling, vmem_limit, interpret, maps, table):
  options = dict(vmem_limit=vmem_limit, interpret=interpret)
  output, sums = forward_lib.forward(tiling, maps, table, **options)
  return output, (maps, table, checkpoint_name(sums, KERNEL_RESULTS))


def _backward(tiling, vmem_limit, interpret, saved, gradient):
  options = dict(vmem_limit=vmem_limit, interpret=interpret)
  return backward_lib.backward(tiling, *saved, gradient, **options)


_attention.defvjp(_forward, _backward)
