"""The backward kernel: weights computed again, gradients added up in place."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.forms.tpu import staging, tile_logits
from halonet.ops.forms.tpu.grid_steps import (
  for_blocks,
  head_rows,
  map_bytes,
  own,
  scratch_bytes,
  strip,
  whole,
  window,
)
from halonet.ops.forms.tpu.tiling import Tiling, tile_bytes

# Keys of the tiles that are computed together; more take longer to compile.
_KEYS = 1792


def backward(
  tiling: Tiling,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  table: jax.Array,
  sums: jax.Array,
  gradient: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """Returns the gradients of `halonet.ops.forms.tpu.forward.forward`.

  Args:
    tiling: of the layer.
    query: the argument of the forward pass, like the three that follow.
    key: as above.
    value: as above.
    table: as above.
    sums: log-sum-exp that the forward pass returned.
    gradient: gradient of its output.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The gradients of `query`, `key`, `value` and `table`, in their dtypes.
  """
  batch = query.shape[0]
  lanes = jnp.asarray(tiling.lane_table())
  query_spec = strip(tiling, query.shape, tiling.key_lanes)
  key_spec = strip(tiling, key.shape, tiling.key_lanes)
  value_spec = strip(tiling, value.shape, tiling.value_lanes)
  tables = (batch, tiling.strips, tiling.groups, *table.shape)
  *gradients, dtable = pl.pallas_call(
    functools.partial(_kernel, tiling),
    grid=(batch, tiling.strips, tiling.groups),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      query_spec,
      key_spec,
      value_spec,
      own(sums.shape),
      strip(tiling, gradient.shape, tiling.value_lanes),
    ],
    out_specs=[
      query_spec,
      key_spec,
      value_spec,
      own(tables),
    ],
    out_shape=[
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)),
      jax.ShapeDtypeStruct(tables, jnp.float32),
    ],
    scratch_shapes=[
      pltpu.VMEM(shape, dtype) for shape, dtype in _scratch(tiling, query.dtype)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="halo_attention_backward",
  )(lanes, table, query, key, value, sums, gradient)
  return *gradients, dtable.sum(axis=(0, 1, 2)).astype(table.dtype)


def backward_bytes(tiling: Tiling, dtype) -> int:
  """Returns the bytes of a grid step: operands twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = tiling.bands * tiling.head_tiles, tiling.strip_rows * tiling.layer.cols
  sums = tile_bytes((*sums, tiling.tile_lanes), 4)
  table = tile_bytes((2 * tiling.offsets_padded, tiling.key_lanes), 4)
  blocks = 2 * map_bytes(tiling, itemsize) + sums + table
  return 2 * blocks + scratch_bytes(_scratch(tiling, dtype))


def _scratch(tiling, dtype):
  keys, values = tiling.key_lanes, tiling.value_lanes
  key_windows = staging.windows_shape(tiling, keys)
  value_windows = staging.windows_shape(tiling, values)
  return (
    (staging.queries_shape(tiling, keys), jnp.float32),
    (staging.queries_shape(tiling, values), jnp.float32),
    (key_windows, dtype),
    (value_windows, dtype),
    (staging.queries_shape(tiling, keys), jnp.float32),
    (key_windows, jnp.float32),
    (value_windows, jnp.float32),
    (staging.buffer_shape(tiling, keys), jnp.float32),
    (staging.buffer_shape(tiling, values), jnp.float32),
  )


def _kernel(
  tiling,
  lanes_ref,
  table_ref,
  query_ref,
  key_ref,
  value_ref,
  sums_ref,
  gradient_ref,
  dquery_ref,
  dkey_ref,
  dvalue_ref,
  dtable_ref,
  queries,
  gradients,
  keys,
  values,
  dqueries,
  dkeys,
  dvalues,
  key_buffer,
  value_buffer,
):
  first_row = pl.program_id(1) * tiling.strip_rows
  staging.stage_queries(tiling, query_ref, queries)
  staging.stage_queries(tiling, gradient_ref, gradients)
  staging.stage_windows(tiling, key_ref, key_buffer, keys)
  staging.stage_windows(tiling, value_ref, value_buffer, values)
  dkeys[...] = jnp.zeros_like(dkeys)
  dvalues[...] = jnp.zeros_like(dvalues)
  dtable_ref[...] = jnp.zeros_like(dtable_ref)

  def differentiate(places, band):
    lanes = lanes_ref[band]
    heads = range(tiling.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    windows = [window(tiling, keys, row, col) for row, col in places]
    windows = [jnp.concatenate([x, table_ref[...]], axis=0) for x in windows]
    masked_queries, masked_gradients = (
      [
        staging.masked_heads(
          tiling, x[*places[at], band], head, dim, keys.dtype
        )
        for at, head in tiles
      ]
      for x, dim in (
        (queries, tiling.head_dim),
        (gradients, tiling.value_dim),
      )
    )
    products = [
      tile_logits.product(windows[at], query, (1, 1))
      for query, (at, _) in zip(masked_queries, tiles, strict=True)
    ]
    dweights = [
      tile_logits.product(window(tiling, values, *places[at]), gradient, (1, 1))
      for gradient, (at, _) in zip(masked_gradients, tiles, strict=True)
    ]
    weights = []
    for x, (at, head) in zip(products, tiles, strict=True):
      logits = tile_logits.add_positions(
        tiling, x, lanes, first_row, places[at]
      )
      block = places[at][0] * tiling.layer.cols + places[at][1]
      index = band * tiling.head_tiles + head
      weights.append(
        jnp.exp(logits - sums_ref[0, 0, 0, index, pl.ds(block, 1)])
      )
    dproducts = [
      tile_logits.product_gradients(tiling, x, dx, lanes).astype(keys.dtype)
      for x, dx in zip(weights, dweights, strict=True)
    ]
    weights = [x.astype(values.dtype) for x in weights]
    turned = [x.T for x in windows]
    for at, (row, col) in enumerate(places):
      mine = [index for index, item in enumerate(tiles) if item[0] == at]
      pixels = pl.ds(row * tiling.layer.block_size, tiling.layer.window)
      size = tiling.layer.window, tiling.window_padded
      dvalue = _sum_of_products(weights, masked_gradients, mine)
      dvalues[col, pixels] += dvalue.reshape(*size, -1)
      dkey = _sum_of_products(dproducts, masked_queries, mine)
      dkeys[col, pixels] += dkey[: tiling.keys].reshape(*size, -1)
      dtable_ref[0, 0, 0] += dkey[tiling.keys :]
      dquery = []
      for index in mine:
        channels = head_rows(
          tiling, turned[at], tiles[index][1], tiling.head_dim
        )
        dquery.append(tile_logits.product(channels, dproducts[index], (1, 0)))
      dqueries[row, col, band] = staging.merged_heads(
        tiling, dquery, tiling.head_dim
      )

  for_blocks(tiling, differentiate, _KEYS)
  staging.unstage_queries(tiling, dqueries, dquery_ref)
  staging.add_windows(tiling, dkeys, key_buffer, dkey_ref)
  staging.add_windows(tiling, dvalues, value_buffer, dvalue_ref)


def _sum_of_products(x, y, indices):
  """Returns Σ x[i] · y[i], summed within one product."""
  return tile_logits.product(
    jnp.concatenate([x[index] for index in indices], axis=1),
    jnp.concatenate([y[index] for index in indices], axis=0),
    (1, 0),
  )
