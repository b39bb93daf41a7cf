"""A form of local attention laid out for the TPU compiler, without kernels.

The product is that of the folded form, queries that carry their row and column
logits times keys that carry one-hot vectors. It is arranged for a machine whose
arrays are tiled by 8 × 128 and whose products are 128 wide:

- Channels stay in lanes, as the projections leave them. As many heads as fit
  share a product: every head has its queries as rows of their own, which are
  zero in the channels of the other heads. Nothing is transposed to separate
  heads.
- Values and keys lie side by side in one array of 128 lanes, `[v, k]`, which
  is cut into neighbourhoods once. The one-hot vectors replace the values where
  the array serves as keys. A one replaces the keys where it serves as values
  and sums the weights. All operands of products are 128 wide; with narrower
  ones the compiler puts channels into sublanes, and would cut neighbourhoods in
  lanes.
- A product with one matrix for each place of a block puts queries beside their
  row and column logits.
- A neighbourhood is put together from whole blocks, of which the last are cut
  only across rows (or columns by the eight): pixels keep their places in the
  tiles. The surplus columns are masked.
- Logits have keys first, so that the softmax reduces over sublanes. The
  backward pass computes them once more from the log-sum-exp.

It takes several times the operations that the formula asks for, nearly all of
them in places of the products that would be padding. On a CPU it is slower.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halonet.ops import blocks, positions
from halonet.ops.forms.form import Form

_LANES = 128


class Packed(Form):
  """Operations that the TPU compiler tiles well. It has reverse mode only."""

  name = "xla_packed"

  def suits(self, place):
    return place.platform == "tpu"

  def attend(self, query, key, value, tables, layer, place):
    heads, dim = query.shape[3:]
    value_dim, value_dtype = value.shape[-1], value.dtype
    places = _one_hot(*_places(layer))
    together = _heads_together(heads, dim, value_dim, places.shape[1], layer)
    groups = heads // together
    dims, value_dims = together * dim, together * value_dim
    first_key = max(value_dims, places.shape[1])
    lanes = -(-(first_key + dims) // _LANES) * _LANES

    query = blocks.pad_to_blocks(query, layer.block_size)
    query = query[:, :: layer.stride, :: layer.stride]
    query = jax.vmap(lambda x: _into_blocks(x, layer.side))(
      _grouped(query, groups)
    )
    value, key = (
      _grouped(blocks.pad_to_blocks(x, layer.block_size), groups)
      for x in (value, key)
    )
    both = [_in_lanes(value, first_key), _in_lanes(key, lanes - first_key)]
    both = jnp.concatenate(both, axis=-1)
    with jax.named_scope("neighbourhoods"):
      both = jax.vmap(lambda x: _windows(x, layer))(both)

    with jax.named_scope("relative"):
      tables = tables.spanning(-layer.farthest, layer.farthest)
      tables = (table.astype(query.dtype) for table in tables)
      expand = _expansion(*tables, dim, together, lanes, first_key, layer)
      query = jnp.einsum("gnrcqd,qdhw->gnrchqw", query, expand)
      query = query.reshape(*query.shape[:4], -1, lanes)
    with jax.named_scope("masks"):
      query += _masks(layer, lanes, together, query.dtype)

    attend = _make_attend(places, value_dims, together, first_key, lanes)
    output = attend(query, both)
    output = output.reshape(
      *output.shape[:4], layer.side, layer.side, value_dims
    )
    output = jax.vmap(blocks.merge_blocks)(output)
    output = jnp.concatenate(list(output), axis=-1)
    output = output.reshape(*output.shape[:3], heads, value_dim)
    height, width = layer.output_size
    return output[:, :height, :width].astype(value_dtype)


# ------------------------------------------------------------- the geometry


def _pieces(layer):
  """Returns a neighbourhood's pixels, along an axis, in each block it meets.

  The blocks here begin `halo_size` before those of the queries.
  """
  size, window = layer.block_size, layer.window
  return [min(size, window - start) for start in range(0, window, size)]


def _col_pieces(layer):
  """Returns `_pieces`, in whole tiles where blocks consist of such."""
  pieces = _pieces(layer)
  if layer.block_size % 8 == 0:
    pieces = [-(-piece // 8) * 8 for piece in pieces]
  return pieces


def _window_cols(layer):
  """Returns the columns of a neighbourhood, with surplus ones."""
  pieces = _col_pieces(layer)
  return (len(pieces) - 1) * layer.block_size + pieces[-1]


def _places(layer):
  """Returns row and column of every key in its neighbourhood, in our order."""
  size = layer.block_size
  places = [
    (row * size + i, col * size + j)
    for row, height in enumerate(_pieces(layer))
    for col, width in enumerate(_col_pieces(layer))
    for i in range(height)
    for j in range(width)
  ]
  return np.array(places).T


def _one_hot(rows, cols):
  """`[keys, rows + columns]`."""
  return np.concatenate(
    [np.eye(rows.max() + 1)[rows], np.eye(cols.max() + 1)[cols]], axis=1
  )


def _heads_together(heads, dim, value_dim, places, layer):
  """Returns how many heads share a product: all that fit in lanes, or one.

  With a stride, a head has few queries: more heads fill the other side.
  """
  lanes = _LANES if layer.stride == 1 else 2 * _LANES
  return max(
    number
    for number in range(1, heads + 1)
    if heads % number == 0
    and (number == 1 or number * dim + max(number * value_dim, places) <= lanes)
  )


# ---------------------------------------------------------- rearrangements


def _grouped(x, groups):
  """`[b, h, w, heads, d]` → `[groups, b, h, w, heads/groups · d]`."""
  x = x.reshape(*x.shape[:3], -1)
  return jnp.stack(jnp.split(x, groups, axis=-1))


def _in_lanes(x, lanes):
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lanes - x.shape[-1])])


def _into_blocks(x, side):
  """`[n, h, w, c]` → `[n, rows, columns, side², c]`."""
  x = blocks.split_blocks(x, side)
  return x.reshape(*x.shape[:3], side * side, x.shape[-1])


def _windows(x, layer):
  """`[n, h, w, c]` → `[n, rows, columns, keys, c]`, keys as in `_places`."""
  heights, widths = _pieces(layer), _col_pieces(layer)
  halo, after = layer.halo_size, (len(heights) - 1) * layer.block_size
  pads = halo, after - halo
  x = jnp.pad(x, [(0, 0), pads, pads, (0, 0)])
  x = blocks.split_blocks(x, layer.block_size)
  pieces = [
    x[:, row : row + layer.rows, col : col + layer.cols, :height, :width]
    for row, height in enumerate(heights)
    for col, width in enumerate(widths)
  ]
  pieces = [x.reshape(*x.shape[:3], -1, x.shape[-1]) for x in pieces]
  return jnp.concatenate(pieces, axis=3)


def _per_head(x, channels):
  """`[…, rows, lanes]` → `[…, heads · rows, lanes]`, zero outside a head.

  `channels` is boolean, `[heads, lanes]`, and marks the lanes of each head.
  """
  return jnp.concatenate(
    [x * jnp.asarray(own, x.dtype) for own in channels], axis=-2
  )


# ------------------------------------------- positions and masks of queries


def _expansion(row_table, col_table, dim, together, lanes, first_key, layer):
  """Returns the matrices that extend queries: `[side², heads · dim, heads,
  lanes]`.

  The product of a query with them has, for each head, its own channels and
  beside them its row and column logits.
  """
  side, window = layer.side, layer.window
  rows, cols = (
    positions.window_embeddings(
      table,
      block_size=layer.block_size,
      halo_size=layer.halo_size,
      queries=side,
      stride=layer.relative_stride,
    )
    for table in (row_table, col_table)
  )
  rows = jnp.pad(rows, ((0, 0), (0, 0), (0, dim - rows.shape[-1])))
  surplus = _window_cols(layer) - window
  cols = jnp.pad(cols, ((0, 0), (0, surplus), (dim - cols.shape[-1], 0)))
  terms = jnp.concatenate(
    [jnp.repeat(rows, side, axis=0), jnp.tile(cols, (side, 1, 1))], axis=1
  )
  terms = jnp.swapaxes(terms, 1, 2)[:, None, :, None]
  own = np.eye(together)[:, None, :, None]
  terms = terms * jnp.asarray(own, terms.dtype)
  terms = terms.reshape(side**2, together * dim, together, -1)
  channel = np.eye(together * dim).reshape(together, dim, 1, -1)
  channel = (channel * own).reshape(together * dim, together, -1)
  channel = jnp.asarray(channel, terms.dtype)
  channel = jnp.broadcast_to(channel, (side**2, *channel.shape))
  terms = _in_lanes(terms, first_key)
  return _in_lanes(jnp.concatenate([terms, channel], axis=-1), lanes)


def _masks(layer, lanes, together, dtype):
  """Returns the terms added to queries, `[rows, columns, queries, lanes]`.

  A hidden key gets a large negative number for its row and one for its column.
  They are finite, because they meet the zeros of the one-hot vectors.
  """
  window, window_cols = layer.window, _window_cols(layer)
  masked = jnp.asarray(jnp.finfo(dtype).min / 8, dtype)
  border = np.zeros((layer.rows, layer.cols, 1, lanes), bool)
  border[..., window + window : window + window_cols] = True  # Surplus columns.
  for axis, first in ((0, 0), (1, window)):
    hidden = layer.hides(axis, pixel=layer.key_pixels(axis))
    if hidden is not False:
      hidden = np.expand_dims(hidden, (1 - axis, 2))
      border[..., first : first + window] = hidden
  terms = jnp.where(border, masked, 0)
  if layer.reach is not None:
    row, col = np.divmod(np.arange(layer.side**2), layer.side)
    outside = np.zeros((len(row), lanes), bool)
    offsets = layer.key_offsets()
    outside[:, :window] = layer.hides(0, offset=offsets)[row]
    outside[:, window : 2 * window] = layer.hides(1, offset=offsets)[col]
    terms += jnp.where(np.tile(outside, (together, 1)), masked, 0)
  return terms


# ------------------------------------------------------------- the attention


def _make_attend(places, value_dims, together, first_key, lanes):
  """Builds the attention of queries to the keys of their neighbourhoods.

  It takes queries `[…, heads · queries, lanes]` and values beside keys `[…,
  keys, lanes]`, and returns `[…, queries, value_dims]`.
  """
  lane = np.arange(lanes)
  beside_key = np.zeros((len(places), lanes))
  beside_key[:, : places.shape[1]] = places
  owner = np.arange(value_dims) // (value_dims // together)
  channels = owner == np.arange(together)[:, None]

  def logits(query, both):
    with jax.named_scope("logits"):
      return _product("...kd,...qd->...kq", keys(both), query)

  def keys(both):
    beside = jnp.asarray(beside_key, both.dtype)
    return jnp.where(lane >= first_key, both, beside)

  def forward(query, both):
    scores = logits(query, both)
    with jax.named_scope("softmax"):
      maximum = scores.max(axis=-2)
      weights = jnp.exp(scores - maximum[..., None, :]).astype(both.dtype)
    with jax.named_scope("values"):
      # A one beside the values sums the weights.
      one = jnp.asarray(lane == value_dims, both.dtype)
      values = jnp.where(lane < value_dims, both, one)
      output = _product("...kq,...kd->...qd", weights, values)
    with jax.named_scope("softmax"):
      log_sum = maximum + jnp.log(output[..., value_dims])
      total = slice(value_dims, value_dims + 1)
      output = sum(
        each[..., :value_dims] * (own / each[..., total])
        for each, own in zip(
          jnp.split(output, together, axis=-2),
          jnp.asarray(channels, output.dtype),
          strict=True,
        )
      ).astype(both.dtype)
    return output, (query, both, output, log_sum)

  def backward(saved, gradient):
    query, both, output, log_sum = saved
    with jax.named_scope("softmax"):
      # Each head's mean of the values' gradients under its weights.
      mean = jnp.einsum(
        "...qd,hd->...hq",
        gradient.astype(log_sum.dtype) * output,
        channels.astype(log_sum.dtype),
        precision=lax.Precision.HIGHEST,
      ).reshape(log_sum.shape)
      gradient = _in_lanes(_per_head(gradient, channels), lanes)
    scores = logits(query, both)
    with jax.named_scope("softmax"):
      weights = jnp.exp(scores - log_sum[..., None, :]).astype(both.dtype)
    with jax.named_scope("values"):
      of_weights = _product("...kd,...qd->...kq", both, gradient)
      of_values = _product("...kq,...qd->...kd", weights, gradient)
    with jax.named_scope("softmax"):
      of_logits = weights * (of_weights - mean[..., None, :])
      of_logits = of_logits.astype(query.dtype)
    with jax.named_scope("logits"):
      of_keys = _product("...kq,...qd->...kd", of_logits, query)
      of_query = _product("...kq,...kd->...qd", of_logits, keys(both))
      of_both = jnp.where(lane >= first_key, of_keys, of_values)
    return of_query.astype(query.dtype), of_both.astype(both.dtype)

  @jax.custom_vjp
  def attend(query, both):
    return forward(query, both)[0]

  attend.defvjp(forward, backward)
  return attend


def _product(names, left, right):
  return jnp.einsum(
    names,
    left,
    right,
    preferred_element_type=jnp.promote_types(left.dtype, jnp.float32),
  )
