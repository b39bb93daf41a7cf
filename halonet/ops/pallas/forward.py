"""The forward kernel: attention of all blocks of an image, in vector memory."""

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
_KEYS = 3584


def forward(
  geometry: Geometry,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  table: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Attends, on maps of whole blocks.

  Args:
    geometry: of the layer.
    query: `[batch, strips · rows · side, columns · side, heads · head_dim]`.
    key: `[batch, strips · (rows · block_size + 2 · halo_rows), columns ·
      block_size, heads · head_dim]`: every strip with its halo.
    value: the same with `heads · value_dim`.
    table: `[2 · offsets_padded, group_heads · head_dim]`, both relative tables
      for the lanes of a group.
    vmem_limit: bytes of vector memory that the kernel may have.
    interpret: runs without a TPU.

  Returns:
    The output, as `query` with `heads · value_dim`; and the logarithm of every
    query's sum, float32 `[batch, strips, groups, bands · head_tiles, blocks,
    tile_lanes]`.
  """
  batch = query.shape[0]
  lanes = jnp.asarray(geometry.lane_table())
  sums = (
    batch,
    geometry.strips,
    geometry.groups,
    geometry.bands * geometry.head_tiles,
    geometry.rows * geometry.cols,
    geometry.tile_lanes,
  )
  output = (*query.shape[:3], geometry.heads * geometry.value_dim)
  return pl.pallas_call(
    functools.partial(_kernel, geometry),
    grid=(batch, geometry.strips, geometry.groups),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      strip(geometry, query.shape, geometry.key_lanes),
      strip(geometry, key.shape, geometry.key_lanes),
      strip(geometry, value.shape, geometry.value_lanes),
    ],
    out_specs=[
      strip(geometry, output, geometry.value_lanes),
      own(sums),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(output, value.dtype),
      jax.ShapeDtypeStruct(sums, jnp.float32),
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
    name="halo_attention_forward",
  )(lanes, table, query, key, value)


def forward_bytes(geometry: Geometry, dtype) -> int:
  """Vector memory of a grid step: blocks come twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = geometry.bands * geometry.head_tiles, geometry.rows * geometry.cols
  sums = tile_bytes((*sums, geometry.tile_lanes), 4)
  maps = map_bytes(geometry, itemsize)
  return 2 * (maps + sums) + scratch_bytes(_scratch(geometry, dtype))


def _scratch(geometry, dtype):
  keys, values = geometry.key_lanes, geometry.value_lanes
  return (
    (staging.queries_shape(geometry, keys), jnp.float32),
    (staging.queries_shape(geometry, values), jnp.float32),
    (staging.windows_shape(geometry, keys), dtype),
    (staging.windows_shape(geometry, values), dtype),
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
  output_ref,
  sums_ref,
  queries,
  outputs,
  keys,
  values,
  key_buffer,
  value_buffer,
):
  first_row = pl.program_id(1) * geometry.rows
  staging.stage_queries(geometry, query_ref, queries)
  staging.stage_windows(geometry, key_ref, key_buffer, keys)
  staging.stage_windows(geometry, value_ref, value_buffer, values)

  def attend(places, band):
    """Some blocks, in step: the units of the chip overlap."""
    lanes = lanes_ref[band]
    heads = range(geometry.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    windows = [window(geometry, keys, row, col) for row, col in places]
    windows = [jnp.concatenate([x, table_ref[...]], axis=0) for x in windows]
    products = []
    for at, head in tiles:
      query = staging.masked_heads(
        geometry,
        queries[*places[at], band],
        head,
        geometry.head_dim,
        keys.dtype,
      )
      products.append(tile.product(windows[at], query, (1, 1)))
    logits = [
      tile.add_positions(geometry, x, lanes, first_row, places[at])
      for x, (at, _) in zip(products, tiles, strict=True)
    ]
    maxima = [x.max(axis=0, keepdims=True) for x in logits]
    weights = [
      jnp.exp(x - m).astype(values.dtype)
      for x, m in zip(logits, maxima, strict=True)
    ]
    windows = [window(geometry, values, *place).T for place in places]
    ones = jnp.ones((16, geometry.keys), values.dtype)
    results = []
    for x, maximum, (at, head) in zip(weights, maxima, tiles, strict=True):
      # A row of ones among the channels sums the weights.
      channels = head_rows(geometry, windows[at], head, geometry.value_dim)
      both = tile.product(jnp.concatenate([channels, ones], axis=0), x, (1, 0))
      total = both[-1:]
      results.append(both[:-16] / total)
      block = places[at][0] * geometry.cols + places[at][1]
      sums_ref[0, 0, 0, band * geometry.head_tiles + head, pl.ds(block, 1)] = (
        maximum + jnp.log(total)
      )
    for at, (row, col) in enumerate(places):
      mine = results[at * len(heads) : (at + 1) * len(heads)]
      outputs[row, col, band] = staging.merged_heads(
        geometry, mine, geometry.value_dim
      )

  for_blocks(geometry, attend, _KEYS)
  staging.unstage_queries(geometry, outputs, output_ref)
