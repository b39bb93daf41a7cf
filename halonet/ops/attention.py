"""Local self-attention as pure functions of arrays.

`blocked_local_attention` is the operator of HaloNet (section 3 of
arXiv:2103.12731): all queries of a block attend to one shared neighbourhood,
the block and a halo around it,

  y_ij = Σ_ab softmax_ab(q_ij · k_ab + q_ij · r_(a−i, b−j)) v_ab.

Several forms compute it, each best somewhere; `halonet.ops.dispatch` finds
one. `per_pixel_attention` is the operator of SASA (arXiv:1906.05909), where
every query has its own neighbourhood.
"""

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Float

from halonet.ops import arguments, dispatch, positions
from halonet.ops.forms import folded
from halonet.ops.neighbourhood import Neighbourhood

# Side of the blocks in which per-pixel attention is computed. The kernels are
# made for it. With windows of 7, three quarters of the keys are masked.
_PER_PIXEL_BLOCK = 8


def blocked_local_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  value: Float[Array, "b h w heads dv"],
  relative_height: Float[Array, "offsets dh"] | None = None,
  relative_width: Float[Array, "offsets dw"] | None = None,
  *,
  block_size: int,
  halo_size: int,
  stride: int = 1,
  mask_padding: bool = True,
  mask_window: bool = False,
  relative_stride: int | None = None,
  implementation: str = "auto",
) -> Float[Array, "b oh ow heads dv"]:
  """Computes blocked local self-attention (HaloNet, eq. 3).

  The map may have any height and width: it is padded to whole blocks, and the
  result is cropped. The logits are not scaled here; scale the query by
  `head_dim ** -0.5` beforehand, as `halonet.layers.halo.HaloAttention` does.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape as `query`.
    value: `[batch, height, width, heads, value_dim]`.
    relative_height: embeddings of the row offsets `key − query`, in pixels,
      from `−(block_size − 1 + halo_size)` upwards: `[2·(block_size +
      halo_size) − 1, d_h]`. They meet the first `d_h` channels of the query.
      None, as well as `relative_width`: logits come from the keys alone.
    relative_width: the same for column offsets, `[…, d_w]`; they meet the last
      `d_w` channels. The paper's form, a row half concatenated with a column
      half, is `d_h = d_w = head_dim / 2`; two full tables that are summed, as
      in timm, are `d_h = d_w = head_dim`.
    block_size: side of a block in pixels, at least 1.
    halo_size: pixels that a neighbourhood reaches beyond its block, at least 0.
    stride: keeps the queries at every `stride`-th row and column, and only
      them; keys and values stay (the paper's attention downsampling). The
      result equals `[:, ::stride, ::stride]` of the unstrided one, and is
      computed at the strided cost where `stride` divides `block_size`.
    mask_padding: whether keys beyond the border are left out of the softmax.
      If not, they take part as zero vectors, with their relative logit.
    mask_window: whether a query sees only keys at most `halo_size` rows and
      columns away: a window of 2·halo_size + 1 pixels around each query, as in
      SASA (HaloNet, figure 5), at the cost of the whole neighbourhood.
    relative_stride: pixels between neighbouring queries as the relative
      offsets count them: `stride`, unless weights were trained otherwise.
    implementation: "xla", operations that XLA fuses, the only form with
      forward-mode derivatives; "xla_chunked", the same for a few images at a
      time, for CPUs; "xla_packed", for TPUs without a kernel; "pallas_tpu" and
      "pallas_gpu", fused kernels for TPUs and GPUs, which elsewhere are
      interpreted, slowly; "direct", shifts of the map, for masked windows
      without a stride; or "auto", the best form for the devices: see
      `halonet.ops.dispatch`.

  Returns:
    `[batch, ⌈height/stride⌉, ⌈width/stride⌉, heads, value_dim]` in the dtype
    of `value`. Logits and softmax are float32 for narrower inputs.

  Raises:
    ValueError: if a size is out of range, if the shapes do not fit, or if the
      implementation cannot serve them.
  """
  tables = relative_height, relative_width
  arguments.check_blocked(
    query, key, value, tables, block_size, halo_size, stride, relative_stride
  )
  thinned = 1
  if block_size % stride:  # The queries sit differently in every block.
    if relative_stride not in (None, stride):
      raise ValueError(
        f"relative_stride is {relative_stride}; it is for strides that divide"
        f" block_size, and {stride} does not divide {block_size}"
      )
    thinned, stride, relative_stride = stride, 1, 1
  layer = Neighbourhood(
    height=query.shape[1],
    width=query.shape[2],
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    relative_stride=relative_stride or stride,
    mask_padding=mask_padding,
    reach=(halo_size, halo_size) if mask_window else None,
  )
  tables = _or_zeros(tables, 2 * layer.farthest + 1, query.dtype)
  tables = positions.Tables(*tables, first=-layer.farthest)
  output = dispatch.attend(implementation, query, key, value, tables, layer)
  return output if thinned == 1 else output[:, ::thinned, ::thinned]


def per_pixel_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"] | None,
  value: Float[Array, "b h w heads dv"],
  relative_height: Float[Array, "window dh"] | None = None,
  relative_width: Float[Array, "window dw"] | None = None,
  *,
  window_size: int,
  mask_padding: bool = True,
  implementation: str = "auto",
) -> Float[Array, "b h w heads dv"]:
  """Computes self-attention of every pixel to its window (SASA, eq. 3).

  Unlike in `blocked_local_attention`, no two queries share their keys, and a
  map that moves by a pixel has its result move by a pixel, but for the border.
  The logits are not scaled here.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape as `query`; None: logits come from the positions alone
      (SASA, table 6).
    value: `[batch, height, width, heads, value_dim]`.
    relative_height: embeddings of the row offsets `key − query`, in pixels,
      from `−⌊(window_size − 1)/2⌋` upwards: `[window_size, d_h]`. They meet the
      first `d_h` channels of the query. None, as well as `relative_width`:
      logits come from the keys alone.
    relative_width: the same for column offsets, `[window_size, d_w]`; they meet
      the last `d_w` channels. The paper's form has a row half beside a column
      half, `d_h = d_w = head_dim / 2`.
    window_size: side of the window in pixels, at least 1 (k). An even one
      reaches a pixel farther to the right and to the bottom.
    mask_padding: whether keys beyond the border are left out of the softmax.
      If not, they take part as zero vectors, with their relative logit.
    implementation: "direct", shifts of the map: no more operations than the
      windows hold, and the least memory. Any other form, as
      `blocked_local_attention` takes them, computes the same in blocks and
      masks the keys outside of the window: more operations, but in products
      that chips are fast at. "auto" is one of these. Only "xla" has
      forward-mode derivatives.

  Returns:
    `[batch, height, width, heads, value_dim]` in the dtype of `value`. Logits
    and softmax are float32 for narrower inputs.

  Raises:
    ValueError: if a size is out of range, if the shapes do not fit, or if the
      implementation cannot serve them.
  """
  arguments.check_count("window_size", window_size)
  arguments.check_arrays(query, key, value)
  asked = f"window_size {window_size} asks for {window_size} rows"
  tables = relative_height, relative_width
  arguments.check_tables(query, tables, window_size, asked)
  # An even window reaches a pixel farther after the query than before it, as
  # that of a convolution with "SAME" padding does.
  before, after = (window_size - 1) // 2, window_size // 2
  layer = Neighbourhood(
    height=query.shape[1],
    width=query.shape[2],
    block_size=_PER_PIXEL_BLOCK,
    halo_size=after,
    mask_padding=mask_padding,
    reach=(before, after),
  )
  tables = _or_zeros(tables, window_size, query.dtype)
  tables = positions.Tables(*tables, first=-before)
  return dispatch.attend(implementation, query, key, value, tables, layer)


def global_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  value: Float[Array, "b h w heads dv"],
  relative_height: Float[Array, "offsets_h dh"],
  relative_width: Float[Array, "offsets_w dw"],
) -> Float[Array, "b h w heads dv"]:
  """Computes self-attention of all pixels to all (BoTNet).

  Arguments and result as for `blocked_local_attention`, whose block is the
  whole map here; the tables have `2·height − 1` and `2·width − 1` rows, for
  the offsets from `1 − height` and `1 − width` upwards.
  """
  height, width = query.shape[1:3]
  query = jnp.moveaxis(query, 3, 1)  # [batch, heads, height, width, d]
  row_logits = positions.relative_logits(
    jnp.swapaxes(query[..., : relative_height.shape[1]], -2, -3),
    relative_height.astype(query.dtype),
  )
  col_logits = positions.relative_logits(
    query[..., query.shape[-1] - relative_width.shape[1] :],
    relative_width.astype(query.dtype),
  )
  with jax.named_scope("logits"):
    logits = jnp.einsum(
      "bnijd,bacnd->bnijac",
      query,
      key,
      preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
  with jax.named_scope("relative"):
    logits += jnp.swapaxes(row_logits, -2, -3)[..., None]
    logits += col_logits[..., None, :]
  with jax.named_scope("softmax"):
    logits = logits.reshape(*logits.shape[:4], height * width)
    weights = nn.softmax(logits).astype(value.dtype)
  with jax.named_scope("values"):
    value = value.reshape(value.shape[0], height * width, *value.shape[3:])
    return jnp.einsum("bnijk,bknd->bijnd", weights, value)


def blocked_local_attention_weights(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  relative_height: Float[Array, "offsets dh"] | None = None,
  relative_width: Float[Array, "offsets dw"] | None = None,
  *,
  block_size: int,
  halo_size: int,
  stride: int = 1,
  mask_padding: bool = True,
  mask_window: bool = False,
  relative_stride: int | None = None,
) -> Float[Array, "b rows cols heads side side window window"]:
  """Returns the softmax weights of `blocked_local_attention`.

  Arguments as there; `stride` must divide `block_size`.

  Returns:
    `[batch, rows, columns, heads, side, side, window, window]` with `side =
    block_size/stride` and `window = block_size + 2·halo_size`: for block
    (row, column), where its query (i, j) looks in its neighbourhood, whose
    first pixel is `(row·block_size − halo_size, column·block_size −
    halo_size)` of the map. Rows and columns of blocks cover the padded map.

  Raises:
    ValueError: if a size is out of range or the shapes do not fit.
  """
  tables = relative_height, relative_width
  arguments.check_blocked(
    query, key, key, tables, block_size, halo_size, stride, relative_stride
  )
  if block_size % stride:
    raise ValueError(
      f"stride {stride} must divide block_size {block_size} for the weights"
    )
  layer = Neighbourhood(
    height=query.shape[1],
    width=query.shape[2],
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    relative_stride=relative_stride or stride,
    mask_padding=mask_padding,
    reach=(halo_size, halo_size) if mask_window else None,
  )
  tables = _or_zeros(tables, 2 * layer.farthest + 1, query.dtype)
  queries = folded.extended_queries(query, tables, layer)
  keys = folded.flat_windows(key, layer)
  weights, total = folded.softmax_terms(keys, queries)
  weights = jnp.swapaxes(weights / total, -1, -2)
  side, window = layer.side, layer.window
  return weights.reshape(*weights.shape[:4], side, side, window, window)


def _or_zeros(tables, rows, dtype):
  """Returns the tables, or in place of none what adds nothing to a logit."""
  if tables[0] is None:
    return (jnp.zeros((rows, 1), dtype),) * 2
  return tables
