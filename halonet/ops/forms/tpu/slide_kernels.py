"""The kernels of slide attention: logits stay in vector memory, both ways."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.forms.tpu.slide_steps import (
  as_rows,
  exponentials,
  live_lanes,
  moved,
  product,
  products,
  read,
  stage,
  unstage,
  write,
)
from halonet.ops.forms.tpu.slide_tiling import SlideTiling
from halonet.ops.forms.tpu.tiling import LANES


def forward(
  tiling: SlideTiling,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  keys: jax.Array,
  turned_values: jax.Array,
  ones: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> jax.Array:
  """Computes the attention.

  Args:
    tiling: the layer's tiling.
    query: `[batch, height, width, channels]`, or `[height, width, batch,
      channels]` where the tiling has several images at once.
    key: the same shape.
    value: the same shape.
    keys: for each pixel of the window, the matrix from channels to logits, and
      then that of the bias: `[groups, shifts + 1, 128, logits]`. The logits of
      a head are repeated.
    turned_values: the matrices of the values, `[groups, shifts + 1, logits,
      128]`, zero for repeated logits.
    ones: the matrix that sums logits for each channel, `[logits, 128]`.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The output, shaped as `query`.
  """
  steps = _batch(tiling, query) // tiling.images
  image = _image(tiling, lambda step: step)
  return pl.pallas_call(
    functools.partial(_forward_kernel, tiling),
    grid=(tiling.groups, steps),
    in_specs=[
      *(_first(1, x.shape[1:]) for x in (keys, turned_values)),
      _whole(ones),
      *[image] * 3,
    ],
    out_specs=image,
    out_shape=jax.ShapeDtypeStruct(query.shape, value.dtype),
    scratch_shapes=[pltpu.VMEM(tiling.bordered, jnp.float32)] * 2,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 2, vmem_limit_bytes=vmem_limit
    ),
    interpret=interpret,
    name="slide_attention_forward",
  )(keys, turned_values, ones, query, key, value)


def _forward_kernel(
  tiling,
  keys_ref,
  values_ref,
  ones_ref,
  query_ref,
  key_ref,
  value_ref,
  output_ref,
  key_map,
  value_map,
):
  live = live_lanes(tiling)
  stage(tiling, live, key_ref, key_map)
  stage(tiling, live, value_ref, value_map)
  rows = tiling.rows

  @pl.loop(0, tiling.height // rows)
  def _(index):
    row = index * rows
    query = read(tiling, live, query_ref, row, rows).reshape(-1, LANES)
    logits = products(tiling, query, key_map, keys_ref, row, rows)
    weights = exponentials(tiling, logits).astype(values_ref.dtype)
    output = product(weights, values_ref[tiling.shifts])
    for pixel in range(tiling.shifts):
      value = value_map[moved(tiling, row, rows, pixel)].reshape(output.shape)
      output += product(weights, values_ref[pixel]) * value
    # Where there is a head, the sum is one at least.
    total = jnp.maximum(product(weights, ones_ref[...]), 1.0)
    output = as_rows(tiling, output / total, rows)
    write(tiling, output_ref, row, output)


def backward(
  tiling: SlideTiling,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  gradient: jax.Array,
  matrices: tuple[jax.Array, ...],
  ones: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """Returns the gradients of `forward`.

  Args:
    tiling: the layer's tiling.
    query: the argument of the forward pass, as the two that follow.
    key: as above.
    value: as above.
    gradient: gradient of its output.
    matrices: those of keys and values, `[groups, shifts + 1, 128, logits]`, and
      both turned, zero for repeated logits.
    ones: the matrix that sums logits for each logit, `[logits, logits]`.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The gradients of `query`, `key` and `value` in their dtypes, and those of
    the turned matrices of keys and of values, float32 `[groups, parts, shifts +
    1, logits, 128]`. Their sum over the parts is meant, without the repeated
    logits, whose numbers are arbitrary.
  """
  steps = _batch(tiling, query) // tiling.images
  # A chip with two cores gives each a part.
  parts = 1 if steps % 2 else 2
  steps //= parts
  image = _image(tiling, lambda part, step: part * steps + step)
  sums = tiling.shifts + 1, tiling.logits, LANES
  return pl.pallas_call(
    functools.partial(_backward_kernel, tiling),
    grid=(tiling.groups, parts, steps),
    in_specs=[
      *(_first(1, x.shape[1:]) for x in matrices),
      _whole(ones),
      *[image] * 4,
    ],
    out_specs=[
      *[image] * 3,
      *[_first(2, sums)] * 2,
    ],
    out_shape=[
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)),
      *[jax.ShapeDtypeStruct((tiling.groups, parts, *sums), jnp.float32)] * 2,
    ],
    scratch_shapes=[pltpu.VMEM(tiling.bordered, jnp.float32)] * 4,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="slide_attention_backward",
  )(*matrices, ones, query, key, value, gradient)


def _backward_kernel(
  tiling,
  keys_ref,
  values_ref,
  turned_keys_ref,
  turned_values_ref,
  ones_ref,
  query_ref,
  key_ref,
  value_ref,
  gradient_ref,
  dquery_ref,
  dkey_ref,
  dvalue_ref,
  dkeys_ref,
  dvalues_ref,
  key_map,
  value_map,
  dkey_map,
  dvalue_map,
):
  live = live_lanes(tiling)
  stage(tiling, live, key_ref, key_map)
  stage(tiling, live, value_ref, value_map)
  dkey_map[...] = jnp.zeros_like(dkey_map)
  dvalue_map[...] = jnp.zeros_like(dvalue_map)

  @pl.when(pl.program_id(2) == 0)
  def _():
    dkeys_ref[...] = jnp.zeros_like(dkeys_ref)
    dvalues_ref[...] = jnp.zeros_like(dvalues_ref)

  rows, last = tiling.rows, tiling.shifts
  dtype = keys_ref.dtype

  @pl.loop(0, tiling.height // rows)
  def _(index):
    row = index * rows
    query = read(tiling, live, query_ref, row, rows).reshape(-1, LANES)
    gradient = read(tiling, live, gradient_ref, row, rows)
    gradient = gradient.reshape(query.shape)
    logits = products(tiling, query, key_map, keys_ref, row, rows)
    weights = exponentials(tiling, logits).astype(dtype)
    total = jnp.maximum(product(weights, ones_ref[...]), 1.0)
    weights = weights.astype(jnp.float32) / total
    dweights = products(tiling, gradient, value_map, values_ref, row, rows)
    dlogits = weights * dweights
    dlogits -= weights * _precise_product(dlogits, ones_ref[...])
    dlogits, weights = dlogits.astype(dtype), weights.astype(dtype)
    turned_dlogits, turned_weights = dlogits.T, weights.T
    dquery = product(dlogits, turned_keys_ref[last])
    dkeys_ref[last] += product(turned_dlogits, query.astype(dtype))
    dvalues_ref[last] += product(turned_weights, gradient.astype(dtype))
    for pixel in range(tiling.shifts):
      at = moved(tiling, row, rows, pixel)
      key = key_map[at].reshape(query.shape)
      value = value_map[at].reshape(query.shape)
      back = product(dlogits, turned_keys_ref[pixel])
      dquery += back * key
      dkey_map[at] += as_rows(tiling, back * query, rows)
      back = product(weights, turned_values_ref[pixel])
      dvalue_map[at] += as_rows(tiling, back * gradient, rows)
      both = (query * key).astype(dtype)
      dkeys_ref[pixel] += product(turned_dlogits, both)
      both = (gradient * value).astype(dtype)
      dvalues_ref[pixel] += product(turned_weights, both)
    write(tiling, dquery_ref, row, as_rows(tiling, dquery, rows))

  unstage(tiling, dkey_map, dkey_ref)
  unstage(tiling, dvalue_map, dvalue_ref)


def _precise_product(x, ones):
  """Multiplies float32 by a matrix of ones in its narrower dtype."""
  high = x.astype(ones.dtype)
  low = (x - high.astype(x.dtype)).astype(ones.dtype)
  return product(high, ones) + product(low, ones)


def _batch(tiling, x):
  return x.shape[2 if tiling.images > 1 else 0]


def _image(tiling, number):
  """Specifies a map; `number` counts what a grid step sees of the batch."""
  if tiling.images > 1:
    return pl.BlockSpec(
      tiling.map_block, lambda group, *step: (0, 0, number(*step), group)
    )
  return pl.BlockSpec(
    (None, *tiling.map_block),
    lambda group, *step: (number(*step), 0, 0, group),
  )


def _whole(x):
  """Specifies an array that every grid step sees as a whole."""
  return pl.BlockSpec(x.shape, lambda *step: (0,) * x.ndim)


def _first(leading, shape):
  """Specifies an array that is cut along its first axes as the grid is."""
  zeros = (0,) * len(shape)
  return pl.BlockSpec(
    (*[None] * leading, *shape), lambda *step: (*step[:leading], *zeros)
  )
