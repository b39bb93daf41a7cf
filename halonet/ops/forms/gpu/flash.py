"""Blocked local attention by fused GPU kernels, as a differentiable function.

The kernels are written in Pallas' dialect for Triton. They are flash attention
on the folded form (`halonet.ops.forms.folded`): a query is extended by its row
and column logits, masks included, and meets keys beside which the kernel puts
the two one-hot vectors that name their row and column. Neighbourhoods are read
from the maps in place; neither they nor any logits are written to the GPU's
memory. Only the gradients of neighbourhoods are, in float32.

XLA extends the queries before the kernels and adds up the gradients of
overlapping neighbourhoods after them. The relative tables therefore need no
kernel, and no sum depends on the order in which blocks end.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from halonet.ops.forms import folded
from halonet.ops.forms.form import KERNEL_RESULTS
from halonet.ops.forms.gpu import triton_kernels as kernels
from halonet.ops.neighbourhood import Neighbourhood


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
  layer: Neighbourhood,
  interpret: bool,
  queries: jax.Array,
  key: jax.Array,
  value: jax.Array,
) -> jax.Array:
  """Computes what `Form.attend` returns.

  Args:
    layer: geometry of the layer.
    interpret: whether to run the kernels without a GPU, slowly.
    queries: `[batch, rows, columns, heads, head_dim + 2·window, side²]`, as
      `folded.extended_queries` returns them.
    key: `[batch, height, width, heads, head_dim]`.
    value: `[batch, height, width, heads, value_dim]`.
  """
  inputs = queries, key, value
  return _attend(layer, interpret, *inputs, value.dtype)[0]


def _forward(layer, interpret, queries, key, value):
  """Returns the output, and what the backward pass needs."""
  inputs = queries, key, value
  # Gradients take the output as it was before it was rounded.
  output, sums = checkpoint_name(
    _attend(layer, interpret, *inputs, jnp.float32), KERNEL_RESULTS
  )
  return output.astype(value.dtype), (*inputs, output, sums)


def _attend(layer, interpret, queries, key, value, dtype):
  """Returns the output, and log-sum-exp: float32 `[batch, pixels, heads]`."""
  batch, size, heads = key.shape[0], layer.output_size, key.shape[3]
  layout = kernels.KernelLayout.of(key, value, layer, interpret)
  output, sums = _call(
    kernels.forward_kernel,
    layout,
    grid=layout.tiles,
    outputs=[
      ((batch, math.prod(size), heads * value.shape[4]), dtype),
      ((batch, math.prod(size), heads), jnp.float32),
    ],
    interpret=interpret,
    name="halo_attention_forward",
  )(queries, _flat(key), _flat(value))
  return output.reshape(batch, *size, heads, -1), sums


def _backward(layer, interpret, saved, gradient):
  """Returns gradients of the extended queries, the keys and the values."""
  queries, key, value, output, sums = saved
  layout = kernels.KernelLayout.of(key, value, layer, interpret)
  # What the softmax subtracts: a query's weights times their gradients, summed.
  means = (output * gradient.astype(jnp.float32)).sum(axis=-1)
  means = means.reshape(sums.shape)
  inputs = queries, _flat(key), _flat(value), _flat(gradient), sums, means
  (dqueries,) = _call(
    kernels.query_gradient_kernel,
    layout,
    grid=layout.tiles,
    outputs=[(queries.shape, queries.dtype)],
    interpret=interpret,
    name="halo_attention_query_gradients",
  )(*inputs)
  windows = (*queries.shape[:4], layer.window**2)
  dkeys, dvalues = _call(
    kernels.key_gradient_kernel,
    layout,
    grid=layout.chunks,
    outputs=[
      ((*windows, layout.head_dim), jnp.float32),
      ((*windows, layout.value_dim), jnp.float32),
    ],
    interpret=interpret,
    name="halo_attention_key_gradients",
  )(*inputs)
  return (
    dqueries,
    _overlapped(layer, key.shape, dkeys).astype(key.dtype),
    _overlapped(layer, value.shape, dvalues).astype(value.dtype),
  )


attention.defvjp(_forward, _backward)


def _call(kernel, layout, *, grid, outputs, interpret, name):
  """Calls a kernel for `grid` parts of each block of each head and image."""

  layer = layout.layer

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
      functools.partial(kernel, layout),
      # What comes first is next to each other on the GPU and shares its cache.
      grid=(grid, layer.cols, layer.rows, layout.heads, len(inputs[0])),
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


def _overlapped(layer, shape, windows):
  """Adds neighbourhoods up to a map: the adjoint of gathering them."""
  gather = functools.partial(folded.flat_windows, layer=layer)
  whole = jax.ShapeDtypeStruct(shape, windows.dtype)
  return jax.linear_transpose(gather, whole)(windows)[0]


def _flat(x):
  """`[batch, height, width, heads, d]` → `[batch, pixels, channels]`."""
  return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
