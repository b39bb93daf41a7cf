"""Per-pixel local attention, one row of all windows at a time.

Every query has its own window here, and gathering them all would take
window_size² maps of memory. Instead the map of keys is shifted, pixel by pixel
along a row of the windows, and the softmax is carried on from row to row: sums
are kept relative to the largest logit so far (Milakov and Gimelshein 2018,
arXiv:1805.02867). The backward pass knows their log-sum-exp, and computes each
row once more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halonet.ops.forms.form import Form


class Direct(Form):
  """Shifts of the map: the fewest operations and the least memory.

  Everything is computed in the query's dtype, or in float32 if that is wider
  (the positions' products as precisely as JAX multiplies float32 matrices on
  the device). It has reverse mode only.
  """

  name = "direct"
  keyless = True

  def suits(self, place):
    return False  # It is asked for by name; products in blocks are faster.

  def refuses(self, query, value, layer, place):
    if layer.reach is None:
      return "the queries of a block share their keys; none has its own window"
    if layer.stride > 1:
      return f"the queries are {layer.stride} pixels apart, not 1"
    return None

  def attend(self, query, key, value, tables, layer, place):
    wide = jnp.promote_types(query.dtype, jnp.float32)
    row_logits, col_logits = _position_logits(query, tables, layer, wide)
    maps = (
      None if x is None else x.astype(wide).reshape(*x.shape[:3], -1)
      for x in (query, key, value)
    )
    output = _attend(layer.reach, *maps, row_logits, col_logits)
    return output.reshape(value.shape).astype(value.dtype)


def _position_logits(query, tables, layer, dtype):
  """Scores the rows and columns of windows, `[b, h, w, heads, window]`.

  The masks of the border are in the scores.
  """
  query = query.astype(dtype)
  before, after = layer.reach
  rows, cols = (x.astype(dtype) for x in tables.spanning(-before, after))
  row_query = query[..., : rows.shape[1]]
  col_query = query[..., query.shape[-1] - cols.shape[1] :]
  with jax.named_scope("relative"):
    rows = jnp.einsum("bhwnd,kd->bhwnk", row_query, rows)
    cols = jnp.einsum("bhwnd,kd->bhwnk", col_query, cols)
  if layer.mask_padding:
    # Finite: a whole row of a window may lie beyond the border.
    masked = jnp.finfo(dtype).min / 8
    terms = []
    for axis, length in enumerate((layer.height, layer.width)):
      pixel = np.arange(length)[:, None] + np.arange(-before, after + 1)
      hidden = layer.hides(axis, pixel=pixel)
      terms.append(np.where(hidden, masked, 0).astype(dtype))
    with jax.named_scope("masks"):
      rows += terms[0][:, None, None]
      cols += terms[1][:, None]
  return rows, cols


# -------------------------------------------------------------------- the core
#
# Maps are flat here, `[batch, height, width, heads · dim]`: processors compute
# on neighbours in memory side by side. Logits are `[window, ..., heads]`, for
# the row of all windows that is at work. Without keys, `key` is None.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(reach, query, key, value, row_logits, col_logits):
  return _row_by_row(reach, query, key, value, row_logits, col_logits)[0]


def _forward(reach, *inputs):
  output, maximum, total = _row_by_row(reach, *inputs)
  return output, (inputs, output, maximum + jnp.log(total))


def _row_by_row(reach, query, key, value, row_logits, col_logits):
  """Returns the output, the largest logits and the sums relative to them."""
  heads, window_size = row_logits.shape[-2:]
  size = value.shape[-1] // heads
  keys, values = (_bordered(x, reach) for x in (key, value))

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


def _backward(reach, saved, gradient):
  (query, key, value, row_logits, col_logits), output, log_total = saved
  heads, window_size = row_logits.shape[-2:]
  size, value_size = (x.shape[-1] // heads for x in (query, value))
  keys, values = (_bordered(x, reach) for x in (key, value))
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
  before, _ = reach
  height, width = query.shape[1:3]
  inner = np.s_[:, before : before + height, before : before + width]
  drows, dcols = (jnp.moveaxis(x, 0, -1) for x in (drows, dcols))
  dkey = None if keys is None else dkeys[inner]
  return dquery, dkey, dvalues[inner], drows, dcols


_attend.defvjp(_forward, _backward)


def _logits(query, keys, row_logits, col_logits, row):
  """Scores a row of all windows: `[window, batch, height, width, heads]`."""
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
def _bordered(x, reach):
  """Pads the map with zeros where windows reach beyond its border."""
  if x is None:
    return None
  return jnp.pad(x, ((0, 0), *[reach] * 2, (0, 0)))


def _shifts(bordered, row, shape, window_size):
  """Returns views of the bordered map, one for each place in a window's row."""
  rows = lax.dynamic_slice_in_dim(bordered, row, shape[1], axis=1)
  return [rows[:, :, place : place + shape[2]] for place in range(window_size)]


def _add_shifts(bordered, parts, row):
  """Adds a part for each place in a window's row: adjoint of `_shifts`."""
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
