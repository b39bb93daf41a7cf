"""Blocked local attention once more: a float64 loop over pixels, by hand.

Written from the paper's formula and from nothing in `halonet.ops`: no blocks
are cut, no map is padded; every query finds its neighbourhood by index.
"""

import numpy as np


def blocked_local_attention(
  query,
  key,
  value,
  relative_height,
  relative_width,
  *,
  block_size,
  halo_size,
  stride=1,
  mask_padding=True,
  mask_window=False,
  relative_stride=None,
  output_gradient=None,
):
  """Returns the output, or the five gradients for an `output_gradient`."""
  inputs = [query, key, value, relative_height, relative_width]
  query, key, value, rows, cols = (np.asarray(x, np.float64) for x in inputs)
  batch, height, width, heads, _ = query.shape
  gradients = [np.zeros_like(x) for x in (query, key, value, rows, cols)]
  output = np.zeros(
    (batch, -(-height // stride), -(-width // stride), *value.shape[3:])
  )
  zero = block_size - 1 + halo_size  # the table's row of offset 0
  width_h, width_w = rows.shape[1], cols.shape[1]
  for n, i, j, head in np.ndindex(*output.shape[:3], heads):
    y, x = i * stride, j * stride
    top = y // block_size * block_size - halo_size
    left = x // block_size * block_size - halo_size
    side = block_size + 2 * halo_size
    ys, xs = np.mgrid[top : top + side, left : left + side].reshape(2, -1)
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    kept = np.ones_like(inside)
    if mask_padding:
      kept &= inside
    if mask_window:
      kept &= (np.abs(ys - y) <= halo_size) & (np.abs(xs - x) <= halo_size)
    ys, xs, inside = ys[kept], xs[kept], inside[kept]
    q = query[n, y, x, head]
    k = np.zeros((len(ys), len(q)))
    k[inside] = key[n, ys[inside], xs[inside], head]
    v = np.zeros((len(ys), value.shape[-1]))
    v[inside] = value[n, ys[inside], xs[inside], head]
    if relative_stride is None:
      offset = zero + ys - y, zero + xs - x
    else:  # Queries of a block are counted this far apart.
      first = y // block_size * block_size, x // block_size * block_size
      counted = [
        start + (pixel - start) // stride * relative_stride
        for start, pixel in zip(first, (y, x), strict=True)
      ]
      offset = zero + ys - counted[0], zero + xs - counted[1]
    r = np.zeros_like(k)
    r[:, :width_h] += rows[offset[0]]
    r[:, len(q) - width_w :] += cols[offset[1]]
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
    at = (n, ys[inside], xs[inside], head)
    gradients[1][at] += dk[inside]
    gradients[2][at] += np.outer(weights, g)[inside]
    np.add.at(gradients[3], offset[0], dk[:, :width_h])
    np.add.at(gradients[4], offset[1], dk[:, len(q) - width_w :])
  return output if output_gradient is None else gradients
