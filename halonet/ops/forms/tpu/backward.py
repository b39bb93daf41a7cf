"""The backward kernel: weights computed again, gradients added up in place."""

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
  pieces,
  query_rows,
  scratch_bytes,
  strip_index,
  strip_of_queries,
  together,
  value_window,
  whole,
)
from halonet.ops.forms.tpu.tiling import LANES, Tiling, round_up, tile_bytes

# Keys of the tiles that are computed together; more take longer to compile.
_KEYS = 1792


def backward(
  tiling: Tiling,
  maps: tuple[jax.Array, ...],
  table: jax.Array,
  sums: jax.Array,
  gradient: jax.Array,
  *,
  vmem_limit: int | None,
  interpret: bool,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Returns the gradients of `halonet.ops.forms.tpu.forward.forward`.

  Args:
    tiling: the layer's tiling.
    maps: the argument of the forward pass.
    table: the same.
    sums: log-sum-exp that the forward pass returned.
    gradient: gradient of its output.
    vmem_limit: bytes of vector memory that the kernel may use.
    interpret: whether to run without a TPU.

  Returns:
    The gradients of `maps` and `table`, in their dtypes.
  """
  batch, dtype = maps[0].shape[0], maps[0].dtype
  lanes = jnp.asarray(tiling.lane_table())
  tables = (batch, tiling.groups, tiling.strips, *table.shape)
  *gradients, dtable = pl.pallas_call(
    functools.partial(_kernel, tiling),
    grid=(batch, tiling.groups, tiling.strips),
    in_specs=[
      whole(lanes.shape),
      whole(table.shape),
      *operand_specs(tiling, maps),
      own(sums.shape),
      strip_of_queries(tiling, gradient.shape, tiling.value_lanes),
    ],
    out_specs=[
      # Strips overlap: the kernel itself copies the rows that are done.
      pl.BlockSpec(memory_space=pl.ANY),
      *(strip_of_queries(tiling, x.shape, tiling.key_lanes) for x in maps[1:]),
      own(tables),
    ],
    out_shape=[
      *(jax.ShapeDtypeStruct(x.shape, dtype) for x in maps),
      jax.ShapeDtypeStruct(tables, jnp.float32),
    ],
    scratch_shapes=[
      *(pltpu.VMEM(*memory) for memory in _scratch(tiling, dtype)),
      pltpu.SemaphoreType.DMA,
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=vmem_limit,
    ),
    interpret=interpret,
    name="halo_attention_backward",
  )(lanes, table, *operands(tiling, maps), sums, gradient)
  return tuple(gradients), dtable.sum(axis=(0, 1, 2)).astype(table.dtype)


def backward_bytes(tiling: Tiling, dtype) -> int:
  """Returns the bytes of a grid step: operands twice, scratch once."""
  itemsize = jnp.dtype(dtype).itemsize
  sums = tiling.bands * tiling.head_tiles, tiling.strip_rows * tiling.panel_cols
  sums = tile_bytes((*sums, tiling.tile_lanes), 4)
  table = tile_bytes((2 * tiling.offsets_padded, tiling.key_span), 4)
  blocks = map_bytes(tiling, itemsize) + sums + table
  if not tiling.joined:
    side = tiling.layer.side
    queries = tiling.strip_rows * side, tiling.panel_cols * side
    blocks += tile_bytes((*queries, tiling.key_lanes), itemsize)
  return 2 * blocks + scratch_bytes(_scratch(tiling, dtype))


def spilled_bytes(tiling: Tiling, dtype) -> int:
  """Estimates the bytes of values that do not fit in registers.

  The factors bound what the compilers for v3 and v4 report for the layers of
  HaloNets and detectors. The forward kernel has fewer.
  """
  itemsize = jnp.dtype(dtype).itemsize
  rows, cols = together(tiling, _KEYS)
  tiles = rows * cols * tiling.head_tiles
  spilled = (1 << 20) + tiles * tiling.keys * LANES * (7 + 2 * itemsize)
  if itemsize == 4:  # Masked queries and gradients.
    widths = tiling.key_lanes, tiling.value_shift + tiling.value_lanes
    lanes = sum(round_up(width, LANES) for width in widths)
    spilled += tiles * tiling.tile_lanes * lanes * 7 + (3 << 17)
    if tiling.layer.stride > 1:
      spilled += 2 << 20
  return spilled


def _scratch(tiling, dtype):
  context = tiling.context_lanes
  windows = staging.windows_shape(tiling, context)
  values = tiling.value_shift + tiling.value_lanes
  lanes = sum(lanes for _, lanes in pieces(tiling))
  return (
    (staging.queries_shape(tiling, tiling.key_span), jnp.float32),
    (staging.queries_shape(tiling, values), jnp.float32),
    (windows, dtype),
    (staging.queries_shape(tiling, tiling.key_lanes), jnp.float32),
    (windows, jnp.float32),
    (staging.buffer_shape(tiling, context), jnp.float32),
    ((tiling.rows + tiling.halo_rows, tiling.width, lanes), dtype),
  )


def _kernel(tiling, lanes_ref, table_ref, *refs):
  count = len(pieces(tiling)) + (not tiling.joined)
  maps, others, scratch = refs[:count], refs[count:-8], refs[-8:]
  sums_ref, gradient_ref, dmap_ref, *dquery_ref, dtable_ref = others
  queries, gradients, windows, dqueries = scratch[:4]
  dwindows, buffer, rows, semaphore = scratch[4:]
  index, first = strip_index(tiling), first_block(tiling)
  staging.stage_queries(tiling, query_rows(tiling, maps, index), queries)
  staging.stage_queries(
    tiling, lambda row: gradient_ref[0, row], gradients, tiling.value_shift
  )
  staging.stage_windows(tiling, maps, index, buffer, windows)
  staging.carry_windows(tiling, index, dwindows)
  dtable_ref[...] = jnp.zeros_like(dtable_ref)

  def differentiate(places, band):
    lanes = lanes_ref[band]
    heads = range(tiling.head_tiles)
    tiles = [(at, head) for at in range(len(places)) for head in heads]
    near = [key_window(tiling, windows, *place) for place in places]
    near = [jnp.concatenate([x, table_ref[...]], axis=0) for x in near]
    masked_queries, masked_gradients = (
      [
        staging.masked_heads(
          tiling, x[*places[at], band], head, dim, windows.dtype, shift
        )
        for at, head in tiles
      ]
      for x, dim, shift in (
        (queries, tiling.head_dim, 0),
        (gradients, tiling.value_dim, tiling.value_shift),
      )
    )
    products = [
      tile_logits.product(near[at], query, (1, 1))
      for query, (at, _) in zip(masked_queries, tiles, strict=True)
    ]
    dweights = [
      tile_logits.product(
        value_window(tiling, windows, *places[at]), gradient, (1, 1)
      )
      for gradient, (at, _) in zip(masked_gradients, tiles, strict=True)
    ]
    weights = []
    for x, (at, head) in zip(products, tiles, strict=True):
      logits = tile_logits.add_positions(tiling, x, lanes, first, places[at])
      block = places[at][0] * tiling.panel_cols + places[at][1]
      tile = band * tiling.head_tiles + head
      weights.append(jnp.exp(logits - sums_ref[0, 0, 0, tile, pl.ds(block, 1)]))
    dproducts = [
      tile_logits.product_gradients(tiling, x, dx, lanes).astype(windows.dtype)
      for x, dx in zip(weights, dweights, strict=True)
    ]
    weights = [x.astype(windows.dtype) for x in weights]
    turned = [x.T for x in near]
    for at, (row, col) in enumerate(places):
      mine = [number for number, item in enumerate(tiles) if item[0] == at]
      pixels = pl.ds(row * tiling.layer.block_size, tiling.layer.window)
      size = tiling.layer.window, tiling.window_padded
      dvalue = _sum_of_products(weights, masked_gradients, mine)
      dkey = _sum_of_products(dproducts, masked_queries, mine)
      dtable_ref[0, 0, 0] += dkey[tiling.keys :]
      both = _overlapped(tiling, dkey[: tiling.keys], dvalue)
      dwindows[col, pixels] += both.reshape(*size, -1)
      dquery = []
      for tile in mine:
        channels = head_rows(
          tiling, turned[at], tiles[tile][1], tiling.head_dim
        )
        dquery.append(tile_logits.product(channels, dproducts[tile], (1, 0)))
      dqueries[row, col, band] = staging.merged_heads(
        tiling, dquery, tiling.head_dim
      )

  for_blocks(tiling, differentiate, _KEYS)
  _gather_queries(tiling, dqueries, dquery_ref, rows)
  step = pl.program_id(0), pl.program_id(1), index  # Not known in a loop.
  copy = functools.partial(_copy, tiling, step, rows, dmap_ref, semaphore)
  staging.add_windows(
    tiling, index, dwindows, buffer, rows, functools.partial(copy, "start")
  )
  size = tiling.layer.block_size

  @pl.loop(0, tiling.strip_rows)
  def _(row):
    copy("wait", row * size, size)

  if tiling.halo_rows:

    @pl.when(index == tiling.strips - 1)
    def _():
      @pl.loop(tiling.rows, tiling.rows + tiling.halo_rows)
      def _(row):
        copy("wait", row, 1)


def _gather_queries(tiling, dqueries, dquery_ref, rows):
  """Puts gradients of queries in a map of their own, or beside the others."""
  kept = tiling.halo_rows
  lanes = pl.ds(tiling.context_lanes, tiling.key_lanes)
  if not tiling.joined:
    (dquery_ref,) = dquery_ref

    def write(row, line):
      dquery_ref[0, row] = line.astype(dquery_ref.dtype)

    staging.unstage_queries(tiling, dqueries, write)
    return

  # The last rows of the strip before wait for gradients of keys and values.
  @pl.loop(0, kept)
  def _(row):
    rows[row, :, lanes] = rows[tiling.rows + row, :, lanes]

  def write(row, line):
    rows[kept + row, :, lanes] = line.astype(rows.dtype)

  staging.unstage_queries(tiling, dqueries, write)


def _copy(tiling, step, rows, dmap_ref, semaphore, act, first, count):
  """Starts or awaits copies of rows to memory.

  Args:
    tiling: the layer's tiling.
    step: indices of the image, the group and the strip.
    rows: scratch, of which the first row is `halo_rows` above the strip.
    dmap_ref: gradient of the map, in memory.
    semaphore: one for all copies.
    act: "start" or "wait".
    first: first row of `rows`.
    count: number of rows.
  """
  image, group, index = step
  place = index * tiling.rows - tiling.halo_rows + first

  def copy(first, place, count):
    lane = 0
    for start, lanes in pieces(tiling):
      if tiling.groups > 1:
        start = pl.multiple_of(start + group * lanes, LANES)
      source = rows.at[pl.ds(first, count), :, pl.ds(lane, lanes)]
      target = dmap_ref.at[image, pl.ds(place, count), :, pl.ds(start, lanes)]
      getattr(pltpu.make_async_copy(source, target, semaphore), act)()
      lane += lanes

  if not tiling.halo_rows:
    copy(first, place, count)
    return
  pl.when(place >= 0)(lambda: copy(first, place, count))

  # The first strip begins above the map.
  @pl.when(place < 0)
  def _():
    for row in range(count):
      pl.when(place + row >= 0)(
        lambda row=row: copy(first + row, place + row, 1)
      )


def _overlapped(tiling, dkey, dvalue):
  """Puts gradients of keys and values side by side, adding what they share.

  Where keys end within a register, both have that register. Each is zero in the
  other's channels.
  """
  start, span = tiling.value_start, tiling.key_span
  shared = dkey[:, start:] + dvalue[:, : span - start] if span > start else None
  columns = [dkey[:, :start], shared, dvalue[:, span - start :]]
  columns = [x for x in columns if x is not None and x.shape[1]]
  return jnp.concatenate(columns, axis=1)


def _sum_of_products(x, y, indices):
  """Returns Σ x[i] · y[i], summed within one product."""
  return tile_logits.product(
    jnp.concatenate([x[index] for index in indices], axis=1),
    jnp.concatenate([y[index] for index in indices], axis=0),
    (1, 0),
  )
