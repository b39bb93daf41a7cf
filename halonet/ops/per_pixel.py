"""Per-pixel local attention, one row of all windows at a time.

Every query has a window of its own here, and gathering them all would take
window_size² maps of memory. Instead the map of keys is shifted, pixel by pixel
along a row of the windows, and the softmax is carried on from row to row: sums
are kept relative to the largest logit so far (Milakov and Gimelshein 2018,
arXiv:1805.02867). The backward pass knows their logarithm, and computes each
row once more.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def reach(window_size: int) -> tuple[int, int]:
  """Pixels of a window before and after its query, along an axis.

  An even window reaches one pixel farther after the query than before it, as
  that of a convolution with "SAME" padding does.
  """
  return (window_size - 1) // 2, window_size // 2


def per_pixel_attention(
  query,
  key,
  value,
  relative_height,
  relative_width,
  *,
  window_size,
  mask_padding,
):
  """`halonet.ops.attention.per_pixel_attention`, directly.

  Arrays, options and result as there; both tables are needed. All is computed
  in the query's dtype, at least in float32 (the positions' products as
  precisely as JAX multiplies float32 matrices on the device). Derivatives are
  those of reverse mode.
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  logits = _position_logits(
    query.astype(wide),
    relative_height.astype(wide),
    relative_width.astype(wide),
    window_size,
    mask_padding,
  )
  maps = (
    None if x is None else x.astype(wide).reshape(*x.shape[:3], -1)
    for x in (query, key, value)
  )
  return _attend(*maps, *logits).reshape(value.shape).astype(value.dtype)


def _position_logits(query, row_table, col_table, window_size, mask_padding):
  """What a window's rows and its columns add, `[b, h, w, heads, window]`."""
  row_query = query[..., : row_table.shape[1]]
  col_query = query[..., query.shape[-1] - col_table.shape[1] :]
  with jax.named_scope("relative"):
    rows = jnp.einsum("bhwnd,kd->bhwnk", row_query, row_table)
    cols = jnp.einsum("bhwnd,kd->bhwnk", col_query, col_table)
  if mask_padding:
    height, width = query.shape[1:3]
    with jax.named_scope("masks"):
      rows += _mask(height, window_size, query.dtype)[:, None, None]
      cols += _mask(width, window_size, query.dtype)[:, None]
  return rows, cols


def _mask(length, window_size, dtype):
  """`[length, window]`: 0, or a very low logit for what lies outside."""
  before, _ = reach(window_size)
  pixel = np.arange(length)[:, None] + np.arange(window_size) - before
  outside = (pixel < 0) | (pixel >= length)
  # Finite: a whole row of a window may lie outside.
  return np.where(outside, jnp.finfo(dtype).min / 8, 0).astype(dtype)


# -------------------------------------------------------------------- the core
#
# Maps are flat here, `[batch, height, width, heads · dim]`: processors compute
# on neighbours in memory side by side. Logits are `[window, ..., heads]`, for
# the row of all windows that is at work. Without keys, `key` is None.


@jax.custom_vjp
def _attend(query, key, value, row_logits, col_logits):
  return _row_by_row(query, key, value, row_logits, col_logits)[0]


def _forward(*inputs):
  output, maximum, total = _row_by_row(*inputs)
  return output, (inputs, output, maximum + jnp.log(total))


def _row_by_row(query, key, value, row_logits, col_logits):
  """The result, and of the logits the largest and Σ exp(logit − largest)."""
  heads, window_size = row_logits.shape[-2:]
  size = value.shape[-1] // heads
  keys, values = (_bordered(x, window_size) for x in (key, value))

  def step(carry, row):
    maximum, total, output = carry
    logits = _logits(query, keys, row_logits, col_logits, row)
    with jax.named_scope("softmax"):
      highest = jnp.maximum(maximum, logits.max(axis=0))
      weights = jnp.exp(logits - highest)
      shrunk = jnp.exp(maximum - highest)
      total = shrunk * total + weights.sum(axis=0)
    with jax.named_scope("values"):
      output = _spread(shrunk, size) * output
      for weight, shift in zip(
        weights, _shifts(values, row, query.shape, window_size), strict=True
      ):
        output += _spread(weight, size) * shift
    return (highest, total, output), None

  none = jnp.full(row_logits.shape[:-1], -jnp.inf, query.dtype)
  carry = none, jnp.zeros_like(none), jnp.zeros_like(value)
  (maximum, total, output), _ = lax.scan(step, carry, jnp.arange(window_size))
  return output / _spread(total, size), maximum, total


def _backward(saved, gradient):
  (query, key, value, row_logits, col_logits), output, log_total = saved
  heads, window_size = row_logits.shape[-2:]
  size, value_size = (x.shape[-1] // heads for x in (query, value))
  keys, values = (_bordered(x, window_size) for x in (key, value))
  # With weights p and y = Σ p·v: dlogits = p · (dy·v − dy·y).
  mean = _sum_heads(gradient * output, heads)

  def step(carry, row):
    dquery, dkeys, dvalues, dcols = carry
    logits = _logits(query, keys, row_logits, col_logits, row)
    with jax.named_scope("softmax"):
      weights = jnp.exp(logits - log_total)
    with jax.named_scope("values"):
      dweights = jnp.stack(
        [
          _sum_heads(gradient * shift, heads)
          for shift in _shifts(values, row, query.shape, window_size)
        ]
      )
      parts = [_spread(weight, value_size) * gradient for weight in weights]
      dvalues = _add_shifts(dvalues, parts, row)
    with jax.named_scope("softmax"):
      dlogits = weights * (dweights - mean)
    if keys is not None:
      with jax.named_scope("logits"):
        spread = [_spread(dlogit, size) for dlogit in dlogits]
        shifts = _shifts(keys, row, query.shape, window_size)
        for one, shift in zip(spread, shifts, strict=True):
          dquery += one * shift
        dkeys = _add_shifts(dkeys, [one * query for one in spread], row)
    return (dquery, dkeys, dvalues, dcols + dlogits), dlogits.sum(axis=0)

  dcols = jnp.zeros((window_size, *row_logits.shape[:-1]), query.dtype)
  zeros = jax.tree.map(jnp.zeros_like, (query, keys, values))
  (dquery, dkeys, dvalues, dcols), drows = lax.scan(
    step, (*zeros, dcols), jnp.arange(window_size)
  )
  before, _ = reach(window_size)
  height, width = query.shape[1:3]
  inner = np.s_[:, before : before + height, before : before + width]
  drows, dcols = (jnp.moveaxis(x, 0, -1) for x in (drows, dcols))
  dkey = None if keys is None else dkeys[inner]
  return dquery, dkey, dvalues[inner], drows, dcols


_attend.defvjp(_forward, _backward)


def _logits(query, keys, row_logits, col_logits, row):
  """Of a row of all windows: `[window, batch, height, width, heads]`."""
  heads, window_size = row_logits.shape[-2:]
  rows = lax.dynamic_index_in_dim(row_logits, row, -1, keepdims=False)
  positions = rows + jnp.moveaxis(col_logits, -1, 0)
  if keys is None:
    return positions
  with jax.named_scope("logits"):
    products = jnp.stack(
      [
        _sum_heads(query * shift, heads)
        for shift in _shifts(keys, row, query.shape, window_size)
      ]
    )
  return products + positions


@jax.named_scope("neighbourhoods")
def _bordered(x, window_size):
  """The map with zeros for what windows see beyond its border."""
  if x is None:
    return None
  return jnp.pad(x, ((0, 0), *[reach(window_size)] * 2, (0, 0)))


def _shifts(bordered, row, shape, window_size):
  """What each place in a row of the windows sees: views of the bordered map."""
  rows = lax.dynamic_slice_in_dim(bordered, row, shape[1], axis=1)
  return [rows[:, :, place : place + shape[2]] for place in range(window_size)]


def _add_shifts(bordered, parts, row):
  """Adds what belongs to the places in a row of the windows: no views."""
  height, width = parts[0].shape[1:3]
  before = lax.dynamic_slice_in_dim(bordered, row, height, axis=1)
  for place, part in enumerate(parts):
    rest = bordered.shape[2] - width - place
    before += jnp.pad(part, ((0, 0), (0, 0), (place, rest), (0, 0)))
  return lax.dynamic_update_slice_in_dim(bordered, before, row, axis=1)


def _sum_heads(x, heads):
  """`[..., heads · dim]` → `[..., heads]`."""
  return x.reshape(*x.shape[:-1], heads, -1).sum(axis=-1)


def _spread(x, size):
  """`[..., heads]` → `[..., heads · size]`: its transpose."""
  x = jnp.broadcast_to(x[..., None], (*x.shape, size))
  return x.reshape(*x.shape[:-2], -1)
