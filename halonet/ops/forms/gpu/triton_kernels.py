"""The kernels of `halonet.ops.forms.gpu.flash`, and their sizes.

One instance computes a tile of queries, or a chunk of keys, of one block and
one head. It loads its operands from the maps by index, with a mask for places
beyond the border, and stores its part of the result.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from halonet.ops.neighbourhood import Neighbourhood

# Rows of a tile; the fewest are those of a matrix unit.
_FEWEST, _MOST = 16, 64
# Bytes of a tile's operands. With copies for what is loaded ahead, they fit in
# the 99 KiB that every GPU since Ampere shares among the threads of a block.
_TILE_BYTES = 32 << 10
# Exponentials and logarithms have base 2, the hardware's own.
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class KernelLayout:
  """One layer and the sizes of a kernel's arrays: powers of two, for Triton.

  Attributes:
    layer: Geometry of the layer.
    heads: Number of heads.
    head_dim: Channels of a head's queries and keys.
    value_dim: Channels of a head's values.
    query_width: Width of extended queries and keys.
    key_width: Width of keys alone.
    value_width: Width of values.
    tile: Queries that a kernel holds at a time.
    chunk: Keys that it holds at a time.
    tiles: Tiles of a block's queries.
    chunks: Chunks of a neighbourhood's keys.
    warps: Warps of threads that work on them.
    stages: Loads that are under way at a time.
    precision: Precision of the products.
  """

  layer: Neighbourhood
  heads: int
  head_dim: int
  value_dim: int
  query_width: int
  key_width: int
  value_width: int
  tile: int
  chunk: int
  tiles: int
  chunks: int
  warps: int
  stages: int
  precision: lax.Precision | lax.DotAlgorithmPreset | None

  @classmethod
  def of(
    cls,
    key: jax.Array,
    value: jax.Array,
    layer: Neighbourhood,
    interpret: bool,
  ) -> "KernelLayout":
    """Returns the layout for maps `[batch, height, width, heads, dim]`."""
    *_, heads, head_dim = key.shape
    value_dim, dtype = value.shape[-1], key.dtype
    query_width = _power_of_two(head_dim + 2 * layer.window)
    value_width = _power_of_two(value_dim)
    width = query_width + value_width
    # Products of float32 hold their operands in two halves.
    row = width * (2 if dtype == jnp.bfloat16 else 8)
    most = _MOST
    while most > _FEWEST and most * row > _TILE_BYTES:
      most //= 2
    queries, keys = layer.side**2, layer.window**2
    tile = min(most, _power_of_two(queries))
    chunk = min(most, _power_of_two(keys))
    return cls(
      layer=layer,
      heads=heads,
      head_dim=head_dim,
      value_dim=value_dim,
      query_width=query_width,
      key_width=_power_of_two(head_dim),
      value_width=value_width,
      tile=tile,
      chunk=chunk,
      tiles=-(-queries // tile),
      chunks=-(-keys // chunk),
      # More keep wide rows in registers.
      warps=4 if width <= 128 else 8,
      stages=2 if most * row <= _TILE_BYTES else 1,
      precision=_precision(dtype, interpret),
    )


def _precision(dtype, interpret):
  """Returns the products' precision: float32's, unless JAX is told otherwise.

  On GPUs that is three products of TF32 for one, which keep 22 of 24 bits. One
  would keep 11, and no matrix unit multiplies float32 itself.
  """
  told = jax.config.jax_default_matmul_precision is not None
  if told or dtype != jnp.float32:
    return None
  if interpret:
    return lax.Precision.HIGHEST
  return lax.DotAlgorithmPreset.TF32_TF32_F32_X3


@dataclasses.dataclass(frozen=True)
class _Block:
  """The block and head that an instance works on."""

  layout: KernelLayout
  col: jax.Array
  row: jax.Array
  head: jax.Array

  @classmethod
  def current(cls, layout):
    # Asked for only here: the interpreter does not know them within a loop.
    return cls(layout, *(pl.program_id(axis) for axis in (1, 2, 3)))

  def load_queries(self, ref, tile, width):
    """Loads the first `width` numbers of the extended queries of a tile.

    In memory a query is a column; here it is a row.
    """
    number = tile * self.layout.tile + jnp.arange(self.layout.tile)[:, None]
    lane = jnp.arange(width)[None, :]
    mask = (lane < ref.shape[0]) & (number < ref.shape[1])
    return plgpu.load(ref.at[lane, number], mask=mask, other=0.0)

  def load_gradients(self, gradient_ref, sums_ref, means_ref, tile):
    """Loads gradients of a tile's outputs, and the numbers of the softmax.

    Queries beyond the map get infinite sums: their weights are zero.
    """
    pixel, inside = self.query_pixels(tile)
    index, mask = self.channels(
      pixel, inside, self.layout.value_dim, self.layout.value_width
    )
    return (
      plgpu.load(gradient_ref.at[index], mask=mask, other=0.0),
      plgpu.load(sums_ref.at[pixel, self.head], mask=inside, other=jnp.inf),
      plgpu.load(means_ref.at[pixel, self.head], mask=inside, other=0.0),
    )

  def load_keys(self, ref, chunk):
    """Loads a chunk of keys, beside one-hot rows and columns."""
    dim, width = self.layout.head_dim, self.layout.query_width
    row, col, pixel, inside = self.window_pixels(chunk)
    index, mask = self.channels(pixel, inside, dim, width)
    key = plgpu.load(ref.at[index], mask=mask, other=0.0)
    place = jnp.arange(width)[None, :] - dim
    named = place == row[:, None]
    named |= place == col[:, None] + self.layout.layer.window
    return jnp.where(named, jnp.ones_like(key), key)

  def load_values(self, ref, chunk):
    """Loads a chunk of values, zero beyond the border."""
    _, _, pixel, inside = self.window_pixels(chunk)
    index, mask = self.channels(
      pixel, inside, self.layout.value_dim, self.layout.value_width
    )
    return plgpu.load(ref.at[index], mask=mask, other=0.0)

  def logits(self, query, key, chunk):
    """Returns logits of a tile of queries and a chunk of keys, for base 2."""
    logits = self.product(query, key, (1, 1)) * _LOG2_E
    keys = self.layout.layer.window**2
    if keys % self.layout.chunk:
      number = chunk * self.layout.chunk + jnp.arange(self.layout.chunk)
      logits = jnp.where(number < keys, logits, -jnp.inf)
    return logits

  def differentiate(self, query, key, value, saved, chunk):
    """Returns weights and logits' gradients of a tile and a chunk.

    `saved` is from `load_gradients`.
    """
    gradient, sums, means = saved
    weights = jnp.exp2(self.logits(query, key, chunk) - sums[:, None])
    dweights = self.product(gradient, value, (1, 1))
    dlogits = weights * (dweights - means[:, None])
    return weights.astype(value.dtype), dlogits.astype(key.dtype)

  def product(self, x, y, contract):
    """Multiplies matrices over one axis of each, accumulated in float32."""
    return lax.dot_general(
      x,
      y,
      ((contract[:1], contract[1:]), ((), ())),
      precision=self.layout.precision,
      preferred_element_type=jnp.float32,
    )

  def window_pixels(self, chunk):
    """Returns keys' row and column in the neighbourhood, and their pixel."""
    layer = self.layout.layer
    number = chunk * self.layout.chunk + jnp.arange(self.layout.chunk)
    row = lax.div(number, jnp.full_like(number, layer.window))
    col = number - row * layer.window
    y = self.row * layer.block_size - layer.halo_size + row
    x = self.col * layer.block_size - layer.halo_size + col
    inside = (number < layer.window**2) & (y >= 0) & (x >= 0)
    inside &= (y < layer.height) & (x < layer.width)
    pixel = y * layer.width + x
    beyond = layer.height * layer.width
    return row, col, jnp.where(inside, pixel, beyond), inside

  def query_pixels(self, tile):
    """Returns the output's pixel of queries, and whether it is on the map."""
    side = self.layout.layer.side
    height, width = self.layout.layer.output_size
    number = tile * self.layout.tile + jnp.arange(self.layout.tile)
    row = lax.div(number, jnp.full_like(number, side))
    y = self.row * side + row
    x = self.col * side + number - row * side
    inside = (number < side**2) & (y < height) & (x < width)
    return jnp.where(inside, y * width + x, height * width), inside

  def channels(self, pixel, inside, dim, width):
    """Returns the indices of this head's channels of pixels, and their mask."""
    lane = jnp.arange(width)[None, :]
    index = pixel[:, None], self.head * dim + lane
    return index, inside[:, None] & (lane < dim)


def forward_kernel(
  layout, queries_ref, key_ref, value_ref, output_ref, sums_ref
):
  """Computes the output of a tile of queries, and their log-sum-exp."""
  block, tile = _Block.current(layout), pl.program_id(0)
  query = block.load_queries(queries_ref, tile, layout.query_width)

  def attend(chunk, carry):
    output, maximum, total = carry
    key = block.load_keys(key_ref, chunk)
    value = block.load_values(value_ref, chunk)
    logits = block.logits(query, key, chunk)
    higher = jnp.maximum(maximum, logits.max(axis=1))
    weights = jnp.exp2(logits - higher[:, None])
    scale = jnp.exp2(maximum - higher)
    total = total * scale + weights.sum(axis=1)
    product = block.product(weights.astype(value.dtype), value, (1, 0))
    return output * scale[:, None] + product, higher, total

  output, maximum, total = lax.fori_loop(
    0,
    layout.chunks,
    attend,
    (
      jnp.zeros((layout.tile, layout.value_width), jnp.float32),
      jnp.full((layout.tile,), -jnp.inf, jnp.float32),
      jnp.zeros((layout.tile,), jnp.float32),
    ),
  )
  pixel, inside = block.query_pixels(tile)
  index, mask = block.channels(
    pixel, inside, layout.value_dim, layout.value_width
  )
  output = (output / total[:, None]).astype(output_ref.dtype)
  plgpu.store(output_ref.at[index], output, mask=mask)
  sums = maximum + jnp.log2(total)
  plgpu.store(sums_ref.at[pixel, block.head], sums, mask=inside)


def query_gradient_kernel(
  layout,
  queries_ref,
  key_ref,
  value_ref,
  gradient_ref,
  sums_ref,
  means_ref,
  dqueries_ref,
):
  """Computes gradients of a tile of extended queries."""
  block, tile = _Block.current(layout), pl.program_id(0)
  query = block.load_queries(queries_ref, tile, layout.query_width)
  saved = block.load_gradients(gradient_ref, sums_ref, means_ref, tile)

  def add(chunk, dquery):
    key = block.load_keys(key_ref, chunk)
    value = block.load_values(value_ref, chunk)
    _, dlogits = block.differentiate(query, key, value, saved, chunk)
    return dquery + block.product(dlogits, key, (1, 0))

  dquery = jnp.zeros(query.shape, jnp.float32)
  dquery = lax.fori_loop(0, layout.chunks, add, dquery)
  number = tile * layout.tile + jnp.arange(layout.tile)[:, None]
  lane = jnp.arange(layout.query_width)[None, :]
  _store(dqueries_ref, (lane, number), dquery)


def key_gradient_kernel(
  layout,
  queries_ref,
  key_ref,
  value_ref,
  gradient_ref,
  sums_ref,
  means_ref,
  dkeys_ref,
  dvalues_ref,
):
  """Computes gradients of a chunk of a neighbourhood's keys and values."""
  block, chunk = _Block.current(layout), pl.program_id(0)
  key = block.load_keys(key_ref, chunk)
  value = block.load_values(value_ref, chunk)

  def add(tile, carry):
    dkey, dvalue = carry
    query = block.load_queries(queries_ref, tile, layout.query_width)
    saved = block.load_gradients(gradient_ref, sums_ref, means_ref, tile)
    weights, dlogits = block.differentiate(query, key, value, saved, chunk)
    # One-hot vectors have no gradient: the queries' own channels are enough,
    # and the lanes behind these are not stored.
    query = block.load_queries(queries_ref, tile, layout.key_width)
    return (
      dkey + block.product(dlogits, query, (0, 0)),
      dvalue + block.product(weights, saved[0], (0, 0)),
    )

  dkey, dvalue = lax.fori_loop(
    0,
    layout.tiles,
    add,
    (
      jnp.zeros((layout.chunk, layout.key_width), jnp.float32),
      jnp.zeros((layout.chunk, layout.value_width), jnp.float32),
    ),
  )
  number = chunk * layout.chunk + jnp.arange(layout.chunk)[:, None]
  for ref, x in ((dkeys_ref, dkey), (dvalues_ref, dvalue)):
    _store(ref, (number, jnp.arange(x.shape[1])[None, :]), x)


def _store(ref, index, x):
  """Stores the part of `x` that has a place in `ref`."""
  first, second = index
  mask = (first < ref.shape[0]) & (second < ref.shape[1])
  plgpu.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def _power_of_two(size):
  """Returns a power of two: at least `size`, and a matrix unit's least."""
  return max(_FEWEST, 1 << (size - 1).bit_length())
