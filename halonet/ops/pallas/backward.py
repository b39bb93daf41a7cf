"""The backward kernel: weights computed again, gradients added up in place."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.pallas import staging, tile
from halonet.ops.pallas.common import (
  for_blocks,
  head_rows,
  map_bytes,
  own,
  scratch_bytes,
  strip,
  whole,
  window,
)
from halonet.ops.pallas.geometry import Geometry, tile_bytes

# In the tiles that are computed together: more take longer to compile.
_KEYS = 1792


def backward(
  geometry: Geometry,
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
  """Gradients of `halonet.ops.pallas.forward.forward`.

  Args:
    geometry: of the layer.
    query: as in the forward pass, like the three that follow.
    key: of the forward pass.
    value: of the forward pass.
    table: of the forward pass.
    sums: that the forward pass returned.
    gradient: of its output.
    vmem_limit: bytes of vector memory that the kernel may have.
    interpret: runs without a TPU.

  Returns:
    The gradients of `query`, `key`, `value` and `table`, in their dtypes.
  """
  batch = query.shape[0]
  lanes = jnp.asarray(geometry.lane_table())
  query_spec = strip(geometry, query.shape, geometry.key_lanes)
  key_spec = strip(geometry, key.shape, geometry.key_lanes)
  value_spec = strip(geometry, value.shape, geometry.value_lanes)
  tables = (batch, geometry.strips, geometry.groups, *table.shape)
  *gradients, dtable = pl.pallas_call(
    functools.partial(_kernel, geometry),
    grid=(batch, geometry.strips, geometry.groups),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      query_spec,
      key_spec,
      value_spec,
      own(sums.shape),
      strip(geometry, gradient.shape, geometry.value_lanes),
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
      pltpu.VMEM(shape, dtype)
      for shape, dtype in _scratch(geometry, query.dtype)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="halo_attention_backward",
  )(lanes, table, query, key, value, sums, gradient)
  return *gradients, dtable.sum(axis=(0, 1, 2)).astype(table.dtype)


def backward_bytes(geometry: Geometry, dtype) -> int:
  """Vector memory of a grid step: blocks come twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = geometry.bands * geometry.head_tiles, geometry.rows * geometry.cols
  sums = tile_bytes((*sums, geometry.tile_lanes), 4)
  table = tile_bytes((2 * geometry.offsets_padded, geometry.key_lanes), 4)
  blocks = 2 * map_bytes(geometry, itemsize) + sums + table
  return 2 * blocks + scratch_bytes(_scratch(geometry, dtype))


def _scratch(geometry, dtype):
  keys, values = geometry.key_lanes, geometry.value_lanes
  key_windows = staging.windows_shape(geometry, keys)
  value_windows = staging.windows_shape(geometry, values)
  return (
    (staging.queries_shape(geometry, keys), jnp.float32),
    (staging.queries_shape(geometry, values), jnp.float32),
    (key_windows, dtype),
    (value_windows, dtype),
    (staging.queries_shape(geometry, keys), jnp.float32),
    (key_windows, jnp.float32),
    (value_windows, jnp.float32),
    (staging.buffer_shape(geometry, keys), jnp.float32),
    (staging.buffer_shape(geometry, values), jnp.float32),
  )


def _kernel(
  geometry,
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
  first_row = pl.program_id(1) * geometry.rows
  staging.stage_queries(geometry, query_ref, queries)
  staging.stage_queries(geometry, gradient_ref, gradients)
  staging.stage_windows(geometry, key_ref, key_buffer, keys)
  staging.stage_windows(geometry, value_ref, value_buffer, values)
  dkeys[...] = jnp.zeros_like(dkeys)
  dvalues[...] = jnp.zeros_like(dvalues)
  dtable_ref[...] = jnp.zeros_like(dtable_ref)

  def differentiate(places, band):
    lanes = lanes_ref[band]
    heads = range(geometry.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    windows = [window(geometry, keys, row, col) for row, col in places]
    windows = [jnp.concatenate([x, table_ref[...]], axis=0) for x in windows]
    masked_queries, masked_gradients = (
      [
        staging.masked_heads(
          geometry, x[*places[at], band], head, dim, keys.dtype
        )
        for at, head in tiles
      ]
      for x, dim in (
        (queries, geometry.head_dim),
        (gradients, geometry.value_dim),
      )
    )
    products = [
      tile.product(windows[at], query, (1, 1))
      for query, (at, _) in zip(masked_queries, tiles, strict=True)
    ]
    dweights = [
      tile.product(window(geometry, values, *places[at]), gradient, (1, 1))
      for gradient, (at, _) in zip(masked_gradients, tiles, strict=True)
    ]
    weights = []
    for x, (at, head) in zip(products, tiles, strict=True):
      logits = tile.add_positions(geometry, x, lanes, first_row, places[at])
      block = places[at][0] * geometry.cols + places[at][1]
      index = band * geometry.head_tiles + head
      weights.append(
        jnp.exp(logits - sums_ref[0, 0, 0, index, pl.ds(block, 1)])
      )
    dproducts = [
      tile.product_gradients(geometry, x, dx, lanes).astype(keys.dtype)
      for x, dx in zip(weights, dweights, strict=True)
    ]
    weights = [x.astype(values.dtype) for x in weights]
    turned = [x.T for x in windows]
    for at, (row, col) in enumerate(places):
      mine = [index for index, item in enumerate(tiles) if item[0] == at]
      pixels = pl.ds(row * geometry.block_size, geometry.window)
      size = geometry.window, geometry.window_padded
      dvalue = _sum_of_products(weights, masked_gradients, mine)
      dvalues[col, pixels] += dvalue.reshape(*size, -1)
      dkey = _sum_of_products(dproducts, masked_queries, mine)
      dkeys[col, pixels] += dkey[: geometry.keys].reshape(*size, -1)
      dtable_ref[0, 0, 0] += dkey[geometry.keys :]
      dquery = []
      for index in mine:
        channels = head_rows(
          geometry, turned[at], tiles[index][1], geometry.head_dim
        )
        dquery.append(tile.product(channels, dproducts[index], (1, 0)))
      dqueries[row, col, band] = staging.merged_heads(
        geometry, dquery, geometry.head_dim
      )

  for_blocks(geometry, differentiate, _KEYS)
  staging.unstage_queries(geometry, dqueries, dquery_ref)
  staging.add_windows(geometry, dkeys, key_buffer, dkey_ref)
  staging.add_windows(geometry, dvalues, value_buffer, dvalue_ref)


def _sum_of_products(x, y, indices):
  """Σ x[i] · y[i], added up where the products are made."""
  return tile.product(
    jnp.concatenate([x[index] for index in indices], axis=1),
    jnp.concatenate([y[index] for index in indices], axis=0),
    (1, 0),
  )
