"""Attention in windows that share no pixel, the operator of Swin.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu
et al., ICCV 2021, arXiv:2103.14030.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jaxtyping import Array, Float

from halonet.ops.arguments import check_arrays, check_count


def window_attention(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w heads d"],
  value: Float[Array, "b h w heads dv"],
  relative_bias: Float[Array, "offsets offsets heads"],
  *,
  window_size: int,
  shift: int = 0,
) -> Float[Array, "b h w heads dv"]:
  """Computes self-attention within windows (Swin, eq. 4).

    y_i = Σ_j softmax_j(q_i · k_j + B_(j−i)) v_j

  where j runs over the pixels of i's window. The windows tile the map from
  pixel `(shift, shift)` on; those that the border cuts are smaller. No key lies
  beyond the border. An axis no longer than a window is one window, whatever
  the shift. The logits are not scaled here.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: the same shape as `query`.
    value: `[batch, height, width, heads, value_dim]`.
    relative_bias: `[2·window_size − 1, 2·window_size − 1, heads]`, what is
      added to a logit by the row and the column offset `key − query` in pixels,
      from `1 − window_size` upwards.
    window_size: side of a window in pixels, at least 1.
    shift: pixels by which windows are shifted down and to the right, at least 0
      and less than `window_size`.

  Returns:
    `[batch, height, width, heads, value_dim]` in the dtype of `value`. Logits
    and softmax are float32 for narrower inputs.

  Raises:
    ValueError: if a size is out of range or the shapes do not fit.
  """
  check_count("window_size", window_size)
  check_count("shift", shift, least=0)
  check_arrays(query, key, value)
  offsets = 2 * window_size - 1
  if shift >= window_size:
    raise ValueError(
      f"shift is {shift}; it must be less than window_size, {window_size}"
    )
  shape = (offsets, offsets, query.shape[3])
  if relative_bias.shape != shape:
    raise ValueError(
      f"relative_bias has shape {relative_bias.shape}; window_size"
      f" {window_size} and {query.shape[3]} heads ask for {shape}"
    )
  lengths = query.shape[1:3]
  sides = tuple(min(window_size, length) for length in lengths)
  shifts = tuple(shift if length > window_size else 0 for length in lengths)
  query, key, value = (_split(x, sides, shifts) for x in (query, key, value))
  with jax.named_scope("logits"):
    logits = jnp.einsum(
      "brcqnd,brcknd->brcnqk",
      query,
      key,
      preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
  with jax.named_scope("relative"):
    rows, cols = (_offsets(side) + window_size - 1 for side in sides)
    # Indexed by row and column of the query, then of the key.
    bias = relative_bias[rows[:, None, :, None], cols[None, :, None, :]]
    area = sides[0] * sides[1]
    bias = jnp.moveaxis(bias.reshape(area, area, -1), -1, 0)
    logits += bias.astype(logits.dtype)
  with jax.named_scope("softmax"):
    rows, cols = map(_sees, lengths, sides, shifts)
    if not (rows.all() and cols.all()):
      sees = rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]
      sees = sees.reshape(len(rows), len(cols), 1, area, area)
      # Finite: queries of padding may see no key.
      logits = jnp.where(sees, logits, jnp.finfo(logits.dtype).min)
    weights = nn.softmax(logits).astype(value.dtype)
  with jax.named_scope("values"):
    output = jnp.einsum("brcnqk,brcknd->brcqnd", weights, value)
  return _join(output, lengths, sides, shifts)


def _split(x, sides, shifts):
  """Cuts a map into windows: `[b, h, w, heads, d]` → `[b, rows, columns,
  pixels of a window, heads, d]`.

  The map is padded to whole windows and rolled, so that the pieces of windows
  that the first border cuts follow those that the last one cuts.
  """
  padding = [
    (0, -n % side) for n, side in zip(x.shape[1:3], sides, strict=True)
  ]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0), (0, 0)))
  x = jnp.roll(x, [-shift for shift in shifts], (1, 2))
  batch, height, width, *rest = x.shape
  rows, cols = height // sides[0], width // sides[1]
  x = x.reshape(batch, rows, sides[0], cols, sides[1], *rest)
  return jnp.swapaxes(x, 2, 3).reshape(batch, rows, cols, -1, *rest)


def _join(x, lengths, sides, shifts):
  """Undoes `_split`."""
  batch, rows, cols, _, *rest = x.shape
  x = jnp.swapaxes(x.reshape(batch, rows, cols, *sides, *rest), 2, 3)
  x = x.reshape(batch, rows * sides[0], cols * sides[1], *rest)
  x = jnp.roll(x, shifts, (1, 2))
  return x[:, : lengths[0], : lengths[1]]


def _offsets(side):
  """Returns the offsets along an axis, `[query, key]`."""
  places = np.arange(side)
  return places - places[:, None]


def _sees(length, side, shift):
  """Says along an axis which keys a query sees, `[windows, query, key]`."""
  padded = length + -length % side
  place = np.roll(np.arange(padded), -shift).reshape(-1, side)
  window = (place - shift) // side  # −1 before the first whole one.
  same = window[:, :, None] == window[:, None, :]
  return same & (place < length)[:, None, :]
