"""The logits of a tile and their gradients, for both kernels."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from halonet.ops.forms.tpu.tiling import Tiling

MASKED = -1e30  # Finite: a query may see no key but masked ones.


def product(x: jax.Array, y: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """Multiplies matrices over one axis of each, accumulated in float32."""
  dimensions = ((contract[:1], contract[1:]), ((), ()))
  return lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def position_logits(
  tiling: Tiling,
  table_logits: jax.Array,
  lanes: jax.Array,
  row: jax.Array,
  col: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns relative logits and masks of a block's keys, per row and column.

  Args:
    tiling: the layer's tiling.
    table_logits: `[2 · offsets_padded, tile_lanes]`, the products of the
      queries with all rows of the two relative tables.
    lanes: the band's part of `Tiling.lane_table`, `[8, tile_lanes]`.
    row: the block's row.
    col: the block's column.

  Returns:
    Terms `[≥ window, tile_lanes]` for the rows and `[window_padded,
    tile_lanes]` for the columns of the neighbourhood.
  """
  size, layer = tiling.offsets_padded, tiling.layer
  terms = []
  for axis, block in enumerate((row, col)):
    term = _shift(
      tiling, table_logits[axis * size : (axis + 1) * size], lanes, axis, -1
    )
    term = term[: tiling.window_padded]
    place = lax.broadcasted_iota(jnp.int32, term.shape, 0)
    hidden = layer.hides(
      axis,
      pixel=place + (block * layer.block_size - layer.halo_size),
      offset=place - layer.halo_size - lanes[2 + axis : 3 + axis],
    )
    surplus = place >= layer.window
    hidden = surplus if hidden is False else surplus | hidden
    terms.append(jnp.where(hidden, MASKED, term))
  return terms[0], terms[1]


def add_positions(
  tiling: Tiling,
  products: jax.Array,
  lanes: jax.Array,
  first: tuple[jax.Array | int, jax.Array | int],
  place: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """Returns logits `[keys, tile_lanes]`, given products of queries with keys.

  Args:
    tiling: the layer's tiling.
    products: `[keys + 2 · offsets_padded, tile_lanes]`: the relative tables'
      rows come after the keys.
    lanes: as for `position_logits`.
    first: row and column of the grid step's first block.
    place: row and column of the block, counted from there.
  """
  row, col = first[0] + place[0], first[1] + place[1]
  rows, cols = position_logits(tiling, products[tiling.keys :], lanes, row, col)
  size = tiling.window_padded
  return jnp.concatenate(
    [
      products[i * size : (i + 1) * size] + (cols + rows[i : i + 1])
      for i in range(tiling.layer.window)
    ],
    axis=0,
  )


def table_gradients(
  tiling: Tiling, rows: jax.Array, cols: jax.Array, lanes: jax.Array
) -> jax.Array:
  """Applies the adjoint of `position_logits`.

  Args:
    tiling: the layer's tiling.
    rows: gradients of the terms of the rows, `[window, tile_lanes]`.
    cols: gradients of the terms of the columns, `[window_padded, tile_lanes]`.
    lanes: as for `position_logits`.

  Returns:
    Gradients of `table_logits`, `[2 · offsets_padded, tile_lanes]`.
  """
  terms = []
  for axis, term in enumerate((rows, cols)):
    missing = tiling.offsets_padded - term.shape[0]
    if missing:
      empty = jnp.zeros((missing, term.shape[1]), term.dtype)
      term = jnp.concatenate([term, empty], axis=0)
    terms.append(_shift(tiling, term, lanes, axis, 1))
  return jnp.concatenate(terms, axis=0)


def product_gradients(
  tiling: Tiling, weights: jax.Array, dweights: jax.Array, lanes: jax.Array
) -> jax.Array:
  """Returns gradients of the products that `add_positions` took.

  Args:
    tiling: the layer's tiling.
    weights: weights of the softmax, `[keys, tile_lanes]`.
    dweights: their gradients.
    lanes: as for `position_logits`.

  Returns:
    float32 `[keys + 2 · offsets_padded, tile_lanes]`.
  """
  weighted = weights * dweights
  mean = weighted.sum(axis=0, keepdims=True)
  dlogits = weighted - weights * mean
  size = tiling.window_padded
  parts = [
    dlogits[i * size : (i + 1) * size] for i in range(tiling.layer.window)
  ]
  rows = jnp.concatenate([x.sum(axis=0, keepdims=True) for x in parts], axis=0)
  tables = table_gradients(tiling, rows, sum(parts), lanes)
  return jnp.concatenate([dlogits, tables], axis=0)


def _shift(tiling, x, lanes, axis, direction):
  """Moves every lane of `x` along sublanes by its own number of places.

  It moves by powers of two, each only in the lanes that need it. One strided
  roll would do, but not all chips have it.
  """
  places = lanes[axis : axis + 1]
  power = 1
  while power < tiling.layer.block_size:
    rolled = pltpu.roll(x, direction * power % x.shape[0], 0)
    x = jnp.where((places & power) != 0, rolled, x)
    power *= 2
  return x
