"""The form of local attention that the TPU compiler makes most of.

The product of `halonet.ops.attention` is kept, queries that carry their row
and column logits times keys that carry one-hot vectors, and arranged for a
machine whose arrays are tiled by 8 × 128 and whose products are 128 wide:

- Channels stay in lanes, as the projections leave them. As many heads as fit
  share a product: every head has its queries as rows of their own, which are
  zero in the channels of the other heads. Nothing is transposed to separate
  heads.
- Values and keys lie side by side in one array of 128 lanes, `[v, k]`, which
  is cut into neighbourhoods once. The one-hot vectors take the place of the
  values where it serves as keys, and a one that of the keys where it serves as
  values: it sums the weights. All products have operands 128 wide; with
  narrower ones the compiler puts channels into sublanes, and neighbourhoods
  would be cut in lanes.
- A product with one matrix for each place of a block puts queries beside their
  row and column logits.
- A neighbourhood is put together from whole blocks, of which the last are cut
  only across rows (or columns by the eight): pixels keep their places in the
  tiles. The columns too many are masked.
- Logits have keys first, so that the softmax reduces over sublanes. The
  backward pass computes them once more from the log of their sum.

It takes several times the operations that the formula asks for, nearly all of
them in places of the products that would be padding. On a CPU it is slower.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from halonet.ops import blocks

_LANES = 128


def packed_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  value: Float[Array, "b h w heads dv"],
  relative_height: Float[Array, "offsets dh"],
  relative_width: Float[Array, "offsets dw"],
  *,
  block_size: int,
  halo_size: int,
  stride: int = 1,
  mask_padding: bool = True,
  reach: tuple[int, int] | None = None,
  relative_stride: int | None = None,
) -> Float[Array, "b oh ow heads dv"]:
  """What `halonet.ops.attention.blocked_local_attention` computes.

  Arguments and result as there; they are not checked, and `stride` must divide
  `block_size`; `reach` is that of `halonet.ops.pallas.geometry.Geometry`. There
  is a reverse-mode gradient of its own, and no forward mode.
  """
  height, width, heads, dim = query.shape[1:]
  value_dim = value.shape[-1]
  dtype, value_dtype = query.dtype, value.dtype
  side = block_size // stride
  rows, cols = _places(block_size, halo_size)
  places = _one_hot(rows, cols)
  together = _heads_together(heads, dim, value_dim, places.shape[1], stride)
  groups = heads // together
  dims, value_dims = together * dim, together * value_dim
  first_key = max(value_dims, places.shape[1])
  lanes = -(-(first_key + dims) // _LANES) * _LANES

  query = blocks.pad_to_blocks(query, block_size)[:, ::stride, ::stride]
  query = jax.vmap(lambda x: _into_blocks(x, side))(_grouped(query, groups))
  value, key = (
    _grouped(blocks.pad_to_blocks(x, block_size), groups) for x in (value, key)
  )
  both = [_in_lanes(value, first_key), _in_lanes(key, lanes - first_key)]
  both = jnp.concatenate(both, axis=-1)
  with jax.named_scope("neighbourhoods"):
    both = jax.vmap(lambda x: _windows(x, block_size, halo_size))(both)

  with jax.named_scope("relative"):
    expand = _expansion(
      relative_height.astype(dtype),
      relative_width.astype(dtype),
      dim,
      together,
      lanes,
      first_key,
      window_cols=cols.max() + 1,
      block_size=block_size,
      halo_size=halo_size,
      side=side,
      stride=relative_stride or stride,
    )
    query = jnp.einsum("gnrcqd,qdhw->gnrchqw", query, expand)
    query = query.reshape(*query.shape[:4], -1, lanes)
  with jax.named_scope("masks"):
    query += _masks(
      height,
      width,
      lanes,
      window_cols=cols.max() + 1,
      together=together,
      block_size=block_size,
      halo_size=halo_size,
      stride=stride,
      mask_padding=mask_padding,
      reach=reach,
      dtype=dtype,
    )

  attend = _make_attend(places, value_dims, together, first_key, lanes)
  output = attend(query, both)
  output = output.reshape(*output.shape[:4], side, side, value_dims)
  output = jax.vmap(blocks.merge_blocks)(output)
  output = jnp.concatenate(list(output), axis=-1)
  output = output.reshape(*output.shape[:3], heads, value_dim)
  output = output[:, : -(-height // stride), : -(-width // stride)]
  return output.astype(value_dtype)


# ------------------------------------------------------------- the geometry


def _pieces(block_size, halo_size):
  """Pixels of a neighbourhood, along an axis, in each block that it meets.

  The blocks here begin `halo_size` before those of the queries.
  """
  window = block_size + 2 * halo_size
  return [
    min(block_size, window - start) for start in range(0, window, block_size)
  ]


def _col_pieces(block_size, halo_size):
  """As `_pieces`; to whole tiles, where blocks consist of such."""
  pieces = _pieces(block_size, halo_size)
  if block_size % 8 == 0:
    pieces = [-(-piece // 8) * 8 for piece in pieces]
  return pieces


def _places(block_size, halo_size):
  """Row and column of every key in its neighbourhood, in our order of keys."""
  places = [
    (row * block_size + i, col * block_size + j)
    for row, height in enumerate(_pieces(block_size, halo_size))
    for col, width in enumerate(_col_pieces(block_size, halo_size))
    for i in range(height)
    for j in range(width)
  ]
  return np.array(places).T


def _one_hot(rows, cols):
  """`[keys, rows + columns]`."""
  return np.concatenate(
    [np.eye(rows.max() + 1)[rows], np.eye(cols.max() + 1)[cols]], axis=1
  )


def _heads_together(heads, dim, value_dim, places, stride):
  """How many heads share a product: all that fit into the lanes, or one.

  With a stride, a head has few queries: more heads fill the other side.
  """
  lanes = _LANES if stride == 1 else 2 * _LANES
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


def _windows(x, block_size, halo_size):
  """`[n, h, w, c]` → `[n, rows, columns, keys, c]`, keys as in `_places`."""
  heights = _pieces(block_size, halo_size)
  widths = _col_pieces(block_size, halo_size)
  rows, cols = (length // block_size for length in x.shape[1:3])
  after = (len(heights) - 1) * block_size - halo_size
  x = jnp.pad(x, [(0, 0), (halo_size, after), (halo_size, after), (0, 0)])
  x = blocks.split_blocks(x, block_size)
  pieces = [
    x[:, row : row + rows, col : col + cols, :height, :width]
    for row, height in enumerate(heights)
    for col, width in enumerate(widths)
  ]
  pieces = [x.reshape(*x.shape[:3], -1, x.shape[-1]) for x in pieces]
  return jnp.concatenate(pieces, axis=3)


def _per_head(x, channels):
  """`[…, rows, lanes]` → `[…, heads · rows, lanes]`, zero outside a head.

  `channels` is boolean, `[heads, lanes]`: those that are a head's.
  """
  return jnp.concatenate(
    [x * jnp.asarray(own, x.dtype) for own in channels], axis=-2
  )


# ----------------------------------------------- what queries carry of places


def _expansion(
  height,
  width,
  dim,
  together,
  lanes,
  first_key,
  *,
  window_cols,
  block_size,
  halo_size,
  side,
  stride,
):
  """`[side², heads · dim, heads, lanes]`: a query times it has, for each head,
  its own channels and its row and column logits beside them."""
  window = block_size + 2 * halo_size
  first = [block_size - 1 - stride * place for place in range(side)]
  rows = jnp.stack([height[start : start + window] for start in first])
  cols = jnp.stack([width[start : start + window] for start in first])
  rows = jnp.pad(rows, ((0, 0), (0, 0), (0, dim - rows.shape[-1])))
  cols = jnp.pad(
    cols, ((0, 0), (0, window_cols - window), (dim - cols.shape[-1], 0))
  )
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


def _masks(
  height,
  width,
  lanes,
  *,
  window_cols,
  together,
  block_size,
  halo_size,
  stride,
  mask_padding,
  reach,
  dtype,
):
  """What is added to queries, `[rows, columns, queries, lanes]`.

  A masked key gets a large negative number for its row and one for its column.
  They are finite, because they meet the zeros of the one-hot vectors.
  """
  window = block_size + 2 * halo_size
  masked = jnp.finfo(dtype).min / 8
  rows = blocks.valid_keys(height, block_size, halo_size)
  cols = blocks.valid_keys(width, block_size, halo_size)
  if not mask_padding:
    rows, cols = np.ones_like(rows), np.ones_like(cols)
  cols = np.pad(cols, ((0, 0), (0, window_cols - window)))
  border = np.zeros((len(rows), len(cols), 1, lanes), bool)
  border[..., :window] = ~rows[:, None, None]
  border[..., window : window + window_cols] = ~cols[:, None]
  number = jnp.asarray(masked, dtype)
  terms = jnp.where(border, number, 0)
  if reach is not None:
    place = np.arange(0, block_size, stride)
    before, after = reach
    offset = np.arange(window) - halo_size - place[:, None]
    far = (offset < -before) | (offset > after)
    row, col = np.divmod(np.arange(len(place) ** 2), len(place))
    outside = np.zeros((len(row), lanes), bool)
    outside[:, :window] = far[row]
    outside[:, window : 2 * window] = far[col]
    terms += jnp.where(np.tile(outside, (together, 1)), number, 0)
  return terms


# ------------------------------------------------------------- the attention


def _make_attend(places, value_dims, together, first_key, lanes):
  """Returns the attention of queries to the keys of their neighbourhoods.

  It maps queries `[…, heads · queries, lanes]` and values beside keys `[…,
  keys, lanes]` to `[…, queries, value_dims]`.
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
      # Of each head, the mean of its values' gradients under its weights.
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
