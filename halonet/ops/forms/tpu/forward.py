"""The forward kernel: attention of all blocks of an image, in vector memory."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.forms.tpu import staging, tile_logits
from halonet.ops.forms.tpu.grid_steps import (
  first_block,
  for_blocks,
  head_rows,
  key_window,
  map_bytes,
  operand_specs,
  operands,
  own,
  query_rows,
  scratch_bytes,
  strip_index,
  strip_of_queries,
  value_window,
  whole,
)
from halonet.ops.forms.tpu.tiling import Tiling, tile_bytes

# Keys of the tiles that are computed together; more take longer to compile.
_KEYS = 3584
_TILE = 16  # Sublanes of bfloat16, where rows of channels end.


def forward(
  tiling: Tiling,
  maps: tuple[jax.Array, ...],
  table: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Computes the attention on maps of whole blocks.

  Args:
    tiling: the layer's tiling.
    maps: `[batch, strips · rows, columns · block_size, …]`, with the channels
      of all keys, values and queries; or, if `tiling.joined` is not set, with
      those of keys and values, and then another map of the queries, `[batch,
      strips · strip_rows · side, columns · side, heads · head_dim]`.
    table: `[2 · offsets_padded, key_span]`, both relative tables for the lanes
      of a group.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The output, `[…, heads · value_dim]` for every query; and their log-sum-exp,
    float32 `[batch, groups, strips, bands · head_tiles, blocks, tile_lanes]`.
  """
  batch, rows, cols, _ = maps[-1].shape
  lanes = jnp.asarray(tiling.lane_table())
  sums = (
    batch,
    tiling.groups,
    tiling.strips,
    tiling.bands * tiling.head_tiles,
    tiling.strip_rows * tiling.panel_cols,
    tiling.tile_lanes,
  )
  output = (batch, rows, cols, tiling.heads * tiling.value_dim)
  return pl.pallas_call(
    functools.partial(_kernel, tiling),
    grid=(batch, tiling.groups, tiling.strips),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      *operand_specs(tiling, maps),
    ],
    out_specs=[
      strip_of_queries(tiling, output, tiling.value_lanes),
      own(sums),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(output, maps[0].dtype),
      jax.ShapeDtypeStruct(sums, jnp.float32),
    ],
    scratch_shapes=[
      pltpu.VMEM(shape, dtype)
      for shape, dtype in _scratch(tiling, maps[0].dtype)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3,
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="halo_attention_forward",
  )(lanes, table, *operands(tiling, maps))


def forward_bytes(tiling: Tiling, dtype) -> int:
  """Returns the bytes of a grid step: operands twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = tiling.bands * tiling.head_tiles, tiling.strip_rows * tiling.panel_cols
  sums = tile_bytes((*sums, tiling.tile_lanes), 4)
  maps = map_bytes(tiling, itemsize)
  return 2 * (maps + sums) + scratch_bytes(_scratch(tiling, dtype))


def _scratch(tiling, dtype):
  context = tiling.context_lanes
  return (
    (staging.queries_shape(tiling, tiling.key_span), jnp.float32),
    (staging.queries_shape(tiling, tiling.value_lanes), jnp.float32),
    (staging.windows_shape(tiling, context), dtype),
    (staging.buffer_shape(tiling, context), jnp.float32),
  )


def _kernel(tiling, lanes_ref, table_ref, *refs):
  *maps, output_ref, sums_ref, queries, outputs, windows, buffer = refs
  index, first = strip_index(tiling), first_block(tiling)
  staging.stage_queries(tiling, query_rows(tiling, maps, index), queries)
  staging.stage_windows(tiling, maps, index, buffer, windows)

  def attend(places, band):
    """Computes some blocks side by side, so that the chip's units overlap."""
    lanes = lanes_ref[band]
    heads = range(tiling.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    near = [key_window(tiling, windows, *place) for place in places]
    near = [jnp.concatenate([x, table_ref[...]], axis=0) for x in near]
    products = []
    for at, head in tiles:
      query = staging.masked_heads(
        tiling,
        queries[*places[at], band],
        head,
        tiling.head_dim,
        windows.dtype,
      )
      products.append(tile_logits.product(near[at], query, (1, 1)))
    logits = [
      tile_logits.add_positions(tiling, x, lanes, first, places[at])
      for x, (at, _) in zip(products, tiles, strict=True)
    ]
    maxima = [x.max(axis=0, keepdims=True) for x in logits]
    weights = [
      jnp.exp(x - m).astype(windows.dtype)
      for x, m in zip(logits, maxima, strict=True)
    ]
    near = [value_window(tiling, windows, *place).T for place in places]
    ones = jnp.ones((_TILE, tiling.keys), windows.dtype)
    results = []
    for x, maximum, (at, head) in zip(weights, maxima, tiles, strict=True):
      # A row of ones among the channels sums the weights.
      channels = head_rows(
        tiling, near[at], head, tiling.value_dim, tiling.value_shift
      )
      both = tile_logits.product(
        jnp.concatenate([channels, ones], axis=0), x, (1, 0)
      )
      total = both[-1:]
      results.append(both[:-_TILE] / total)
      block = places[at][0] * tiling.panel_cols + places[at][1]
      sums_ref[0, 0, 0, band * tiling.head_tiles + head, pl.ds(block, 1)] = (
        maximum + jnp.log(total)
      )
    for at, (row, col) in enumerate(places):
      mine = results[at * len(heads) : (at + 1) * len(heads)]
      outputs[row, col, band] = staging.merged_heads(
        tiling, mine, tiling.value_dim
      )

  for_blocks(tiling, attend, _KEYS)

  def write(row, line):
    output_ref[0, row] = line.astype(output_ref.dtype)

  staging.unstage_queries(tiling, outputs, write)
