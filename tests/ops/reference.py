"""Local attention once more: float64 loops over pixels, by hand.

Written from the papers' formulas and from nothing in `halonet.ops`: no blocks
are cut, no map is padded; every query finds its keys by index.
"""

import numpy as np


def blocked_local_attention(
  query,
  key,
  value,
  relative_height=None,
  relative_width=None,
  *,
  block_size,
  halo_size,
  stride=1,
  mask_padding=True,
  mask_window=False,
  relative_stride=None,
  output_gradient=None,
):
  """Returns the output, or the gradients of what is given, for one of it."""

  def keys_along(axis, place):
    """Places of the keys of a query, and their rows of the table."""
    first = place // block_size * block_size
    side = block_size + 2 * halo_size
    keys = np.arange(first - halo_size, first - halo_size + side)
    if mask_padding:
      keys = keys[(keys >= 0) & (keys < query.shape[1 + axis])]
    if mask_window:
      keys = keys[np.abs(keys - place) <= halo_size]
    if relative_stride is not None:  # Counted from the block's first pixel.
      place = first + (place - first) // stride * relative_stride
    return keys, block_size - 1 + halo_size + keys - place

  inputs = query, key, value, relative_height, relative_width
  return _attention(inputs, keys_along, stride, output_gradient)


def per_pixel_attention(
  query,
  key,
  value,
  relative_height=None,
  relative_width=None,
  *,
  window_size,
  mask_padding=True,
  output_gradient=None,
):
  """Returns the output, or the gradients of what is given, for one of it."""

  def keys_along(axis, place):
    first = place - (window_size - 1) // 2
    keys = np.arange(first, first + window_size)
    if mask_padding:
      keys = keys[(keys >= 0) & (keys < query.shape[1 + axis])]
    return keys, keys - first

  inputs = query, key, value, relative_height, relative_width
  return _attention(inputs, keys_along, 1, output_gradient)


def _attention(inputs, keys_along, stride, output_gradient):
  """Attends from every `stride`-th pixel to the keys of its row and column."""
  query, key, value, rows, cols = (
    None if x is None else np.asarray(x, np.float64) for x in inputs
  )
  key = np.zeros_like(query) if key is None else key
  if rows is None:  # Embeddings without channels, for more offsets than enough.
    rows = cols = np.zeros((99, 0))
  batch, height, width, heads, dim = query.shape
  gradients = [np.zeros_like(x) for x in (query, key, value, rows, cols)]
  output = np.zeros(
    (batch, -(-height // stride), -(-width // stride), *value.shape[3:])
  )
  width_h, width_w = rows.shape[1], cols.shape[1]
  for n, i, j, head in np.ndindex(*output.shape[:3], heads):
    y, x = i * stride, j * stride
    pairs = zip(keys_along(0, y), keys_along(1, x), strict=True)
    (ys, xs), offset = (
      [grid.ravel() for grid in np.meshgrid(*pair, indexing="ij")]
      for pair in pairs
    )
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    at = n, ys[inside], xs[inside], head
    q = query[n, y, x, head]
    k, v = np.zeros((len(ys), dim)), np.zeros((len(ys), value.shape[-1]))
    k[inside], v[inside] = key[at], value[at]
    r = np.zeros_like(k)
    r[:, :width_h] += rows[offset[0]]
    r[:, dim - width_w :] += cols[offset[1]]
    logits = (k + r) @ q
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    output[n, i, j, head] = weights @ v
    if output_gradient is None:
      continue
    g = np.asarray(output_gradient[n, i, j, head], np.float64)
    dlogits = weights * (v @ g - weights @ (v @ g))
    dk = np.outer(dlogits, q)
    gradients[0][n, y, x, head] += dlogits @ (k + r)
    gradients[1][at] += dk[inside]
    gradients[2][at] += np.outer(weights, g)[inside]
    np.add.at(gradients[3], offset[0], dk[:, :width_h])
    np.add.at(gradients[4], offset[1], dk[:, dim - width_w :])
  if output_gradient is None:
    return output
  return [x for x, y in zip(gradients, inputs, strict=True) if y is not None]
