"""Blocked local attention by fused GPU kernels, as a differentiable function.

They are written in Pallas' dialect for Triton, and are flash attention on the
folded form (`halonet.ops.folded`): a query is extended by its row and its
column logits, masks included, and meets keys beside which the kernel puts the
two one-hot vectors that name their row and column. Neighbourhoods are read
from the maps where they lie; neither they nor any logits are ever written to
the GPU's memory. The gradients of neighbourhoods are, in float32.

XLA extends the queries before the kernels and adds up the gradients of
overlapping neighbourhoods after them, so the relative tables need no kernel,
and no sum depends on the order in which blocks end.

No GPU has run them yet: they are tested interpreted, and lowered for CUDA.
JAX deprecates Triton's dialect from 0.11 on; `halonet.ops.choice` says so where
it is gone.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from halonet.ops import folded
from halonet.ops.pallas import gpu_kernels as kernels
from halonet.ops.pallas.geometry import Geometry

# Of the widest array that a kernel holds; a wider one would not stay in a
# multiprocessor's registers.
_WIDEST = 256


def local_attention(
  geometry: Geometry,
  over_devices: Callable[[Callable], Callable],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  relative_height: jax.Array,
  relative_width: jax.Array,
  *,
  interpret: bool,
) -> jax.Array:
  """`halonet.ops.attention.blocked_local_attention`, by kernels.

  Arrays and result as there.

  Args:
    geometry: of the layer; its `stride` divides its `block_size`.
    over_devices: makes a function of three arrays one that each device calls
      for its part of the batch.
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape.
    value: `[batch, height, width, heads, value_dim]`.
    relative_height: table of row offsets.
    relative_width: table of column offsets.
    interpret: runs the kernels without a GPU, slowly.
  """
  queries = folded.extended_queries(
    query,
    relative_height,
    relative_width,
    block_size=geometry.block_size,
    halo_size=geometry.halo_size,
    stride=geometry.stride,
    mask_padding=geometry.mask_padding,
    reach=geometry.reach,
    relative_stride=geometry.relative_stride,
  )
  attention = functools.partial(_attention, geometry, interpret)
  return over_devices(attention)(queries, key, value)


def unserved(geometry: Geometry) -> str | None:
  """Why the kernels cannot serve a layer, or None."""
  for name, width in (
    ("a query with its relative logits", kernels.query_width_of(geometry)),
    ("a value", geometry.value_dim),
  ):
    if width > _WIDEST:
      return f"{name} takes {width} numbers, more than {_WIDEST}"
  return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(geometry, interpret, queries, key, value):
  inputs = queries, key, value
  return _attend(geometry, interpret, *inputs, value.dtype)[0]


def _forward(geometry, interpret, queries, key, value):
  """The output, and what the backward pass needs."""
  inputs = queries, key, value
  # Gradients take the output as it was before it was rounded.
  output, sums = _attend(geometry, interpret, *inputs, jnp.float32)
  return output.astype(value.dtype), (*inputs, output, sums)


def _attend(geometry, interpret, queries, key, value, dtype):
  """The output, and float32 `[batch, pixels, heads]`: the softmax's sums."""
  batch, size = key.shape[0], kernels.output_size(geometry)
  layout = kernels.Layout.of(geometry, key.dtype, interpret)
  channels = geometry.heads * geometry.value_dim
  output, sums = _call(
    kernels.forward_kernel,
    geometry,
    layout,
    grid=layout.tiles,
    outputs=[
      ((batch, math.prod(size), channels), dtype),
      ((batch, math.prod(size), geometry.heads), jnp.float32),
    ],
    interpret=interpret,
    name="halo_attention_forward",
  )(queries, _flat(key), _flat(value))
  return output.reshape(batch, *size, geometry.heads, -1), sums


def _backward(geometry, interpret, saved, gradient):
  """Gradients of the extended queries, the keys and the values."""
  queries, key, value, output, sums = saved
  layout = kernels.Layout.of(geometry, key.dtype, interpret)
  # What the softmax subtracts: a query's weights times their gradients, summed.
  means = (output * gradient.astype(jnp.float32)).sum(axis=-1)
  means = means.reshape(sums.shape)
  inputs = queries, _flat(key), _flat(value), _flat(gradient), sums, means
  (dqueries,) = _call(
    kernels.query_gradient_kernel,
    geometry,
    layout,
    grid=layout.tiles,
    outputs=[(queries.shape, queries.dtype)],
    interpret=interpret,
    name="halo_attention_query_gradients",
  )(*inputs)
  windows = (*queries.shape[:4], geometry.window**2)
  dkeys, dvalues = _call(
    kernels.key_gradient_kernel,
    geometry,
    layout,
    grid=layout.chunks,
    outputs=[
      ((*windows, geometry.head_dim), jnp.float32),
      ((*windows, geometry.value_dim), jnp.float32),
    ],
    interpret=interpret,
    name="halo_attention_key_gradients",
  )(*inputs)
  return (
    dqueries,
    _overlapped(geometry, key.shape, dkeys).astype(key.dtype),
    _overlapped(geometry, value.shape, dvalues).astype(value.dtype),
  )


_attention.defvjp(_forward, _backward)


def _call(kernel, geometry, layout, *, grid, outputs, interpret, name):
  """A kernel for each of `grid` parts of each block of each head and image."""

  def spec(shape):
    if len(shape) == 3:  # A map: [batch, pixels, channels].
      return pl.BlockSpec(
        (None, *shape[1:]), lambda part, col, row, head, image: (image, 0, 0)
      )
    return pl.BlockSpec(  # [batch, rows, columns, heads, …] of blocks.
      (None, None, None, None, *shape[4:]),
      lambda part, col, row, head, image: (image, row, col, head, 0, 0),
    )

  def call(*inputs):
    return pl.pallas_call(
      functools.partial(kernel, geometry, layout),
      # What comes first is next to each other on the GPU and shares its cache.
      grid=(grid, geometry.cols, geometry.rows, geometry.heads, len(inputs[0])),
      in_specs=[spec(x.shape) for x in inputs],
      out_specs=[spec(shape) for shape, _ in outputs],
      out_shape=[jax.ShapeDtypeStruct(*output) for output in outputs],
      # They say, too, that this is for Triton.
      compiler_params=plgpu.CompilerParams(
        num_warps=layout.warps, num_stages=layout.stages
      ),
      interpret=interpret,
      name=name,
    )(*inputs)

  return call


def _overlapped(geometry, shape, windows):
  """Neighbourhoods added up to a map: the adjoint of gathering them."""
  gather = functools.partial(
    folded.flat_windows,
    block_size=geometry.block_size,
    halo_size=geometry.halo_size,
  )
  whole = jax.ShapeDtypeStruct(shape, windows.dtype)
  return jax.linear_transpose(gather, whole)(windows)[0]


def _flat(x):
  """`[batch, height, width, heads, d]` → `[batch, pixels, channels]`."""
  return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
