"""The forward kernel: attention of all blocks of an image, in vector memory."""

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
_KEYS = 3584


def forward(
  tiling: Tiling,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  table: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Computes the attention on maps of whole blocks.

  Args:
    tiling: of the layer.
    query: `[batch, strips · rows · side, columns · side, heads · head_dim]`.
    key: `[batch, strips · (rows · block_size + 2 · halo_rows), columns ·
      block_size, heads · head_dim]`: every strip with its halo.
    value: the same with `heads · value_dim`.
    table: `[2 · offsets_padded, group_heads · head_dim]`, both relative tables
      for the lanes of a group.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The output, shaped as `query` with `heads · value_dim`; and every query's
    log-sum-exp, float32 `[batch, strips, groups, bands · head_tiles, blocks,
    tile_lanes]`.
  """
  batch = query.shape[0]
  lanes = jnp.asarray(tiling.lane_table())
  sums = (
    batch,
    tiling.strips,
    tiling.groups,
    tiling.bands * tiling.head_tiles,
    tiling.strip_rows * tiling.layer.cols,
    tiling.tile_lanes,
  )
  output = (*query.shape[:3], tiling.heads * tiling.value_dim)
  return pl.pallas_call(
    functools.partial(_kernel, tiling),
    grid=(batch, tiling.strips, tiling.groups),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      strip(tiling, query.shape, tiling.key_lanes),
      strip(tiling, key.shape, tiling.key_lanes),
      strip(tiling, value.shape, tiling.value_lanes),
    ],
    out_specs=[
      strip(tiling, output, tiling.value_lanes),
      own(sums),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(output, value.dtype),
      jax.ShapeDtypeStruct(sums, jnp.float32),
    ],
    scratch_shapes=[
      pltpu.VMEM(shape, dtype) for shape, dtype in _scratch(tiling, query.dtype)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="halo_attention_forward",
  )(lanes, table, query, key, value)


def forward_bytes(tiling: Tiling, dtype) -> int:
  """Returns the bytes of a grid step: operands twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = tiling.bands * tiling.head_tiles, tiling.strip_rows * tiling.layer.cols
  sums = tile_bytes((*sums, tiling.tile_lanes), 4)
  maps = map_bytes(tiling, itemsize)
  return 2 * (maps + sums) + scratch_bytes(_scratch(tiling, dtype))


def _scratch(tiling, dtype):
  keys, values = tiling.key_lanes, tiling.value_lanes
  return (
    (staging.queries_shape(tiling, keys), jnp.float32),
    (staging.queries_shape(tiling, values), jnp.float32),
    (staging.windows_shape(tiling, keys), dtype),
    (staging.windows_shape(tiling, values), dtype),
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
  output_ref,
  sums_ref,
  queries,
  outputs,
  keys,
  values,
  key_buffer,
  value_buffer,
):
  first_row = pl.program_id(1) * tiling.strip_rows
  staging.stage_queries(tiling, query_ref, queries)
  staging.stage_windows(tiling, key_ref, key_buffer, keys)
  staging.stage_windows(tiling, value_ref, value_buffer, values)

  def attend(places, band):
    """Computes some blocks side by side, so that the chip's units overlap."""
    lanes = lanes_ref[band]
    heads = range(tiling.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    windows = [window(tiling, keys, row, col) for row, col in places]
    windows = [jnp.concatenate([x, table_ref[...]], axis=0) for x in windows]
    products = []
    for at, head in tiles:
      query = staging.masked_heads(
        tiling,
        queries[*places[at], band],
        head,
        tiling.head_dim,
        keys.dtype,
      )
      products.append(tile_logits.product(windows[at], query, (1, 1)))
    logits = [
      tile_logits.add_positions(tiling, x, lanes, first_row, places[at])
      for x, (at, _) in zip(products, tiles, strict=True)
    ]
    maxima = [x.max(axis=0, keepdims=True) for x in logits]
    weights = [
      jnp.exp(x - m).astype(values.dtype)
      for x, m in zip(logits, maxima, strict=True)
    ]
    windows = [window(tiling, values, *place).T for place in places]
    ones = jnp.ones((16, tiling.keys), values.dtype)
    results = []
    for x, maximum, (at, head) in zip(weights, maxima, tiles, strict=True):
      # A row of ones among the channels sums the weights.
      channels = head_rows(tiling, windows[at], head, tiling.value_dim)
      both = tile_logits.product(
        jnp.concatenate([channels, ones], axis=0), x, (1, 0)
      )
      total = both[-1:]
      results.append(both[:-16] / total)
      block = places[at][0] * tiling.layer.cols + places[at][1]
      sums_ref[0, 0, 0, band * tiling.head_tiles + head, pl.ds(block, 1)] = (
        maximum + jnp.log(total)
      )
    for at, (row, col) in enumerate(places):
      mine = results[at * len(heads) : (at + 1) * len(heads)]
      outputs[row, col, band] = staging.merged_heads(
        tiling, mine, tiling.value_dim
      )

  for_blocks(tiling, attend, _KEYS)
  staging.unstage_queries(tiling, outputs, output_ref)
