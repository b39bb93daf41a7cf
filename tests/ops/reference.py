"""Local attention once more: float64 loops over pixels, by hand.

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
  given = query, key, value, relative_height, relative_width
  inputs = [None if x is None else np.asarray(x, np.float64) for x in given]
  query, key, value, rows, cols = inputs
  gradients = [None if x is None else np.zeros_like(x) for x in inputs]
  batch, height, width, heads, dim = query.shape
  output = np.zeros(value.shape)
  first = -((window_size - 1) // 2)
  offsets = range(first, first + window_size)
  for n, y, x, head in np.ndindex(batch, height, width, heads):
    q = query[n, y, x, head]
    seen = []  # Of each key: its offsets, its place if on the map, its vector.
    for dy in offsets:
      for dx in offsets:
        place = (n, y + dy, x + dx, head)
        inside = 0 <= y + dy < height and 0 <= x + dx < width
        if not inside and mask_padding:
          continue
        vector = np.zeros(dim)
        if key is not None and inside:
          vector = vector + key[place]
        if rows is not None:
          vector[: rows.shape[1]] += rows[dy - first]
          vector[dim - cols.shape[1] :] += cols[dx - first]
        seen.append((dy - first, dx - first, place if inside else None, vector))
    logits = np.array([q @ vector for *_, vector in seen])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    nothing = np.zeros(value.shape[-1])
    values = np.array(
      [nothing if place is None else value[place] for _, _, place, _ in seen]
    )
    output[n, y, x, head] = weights @ values
    if output_gradient is None:
      continue
    g = np.asarray(output_gradient[n, y, x, head], np.float64)
    dweights = values @ g
    dlogits = weights * (dweights - weights @ dweights)
    for dlogit, weight, (dy, dx, place, vector) in zip(
      dlogits, weights, seen, strict=True
    ):
      gradients[0][n, y, x, head] += dlogit * vector
      if place is not None:
        gradients[2][place] += weight * g
        if key is not None:
          gradients[1][place] += dlogit * q
      if rows is not None:
        gradients[3][dy] += dlogit * q[: rows.shape[1]]
        gradients[4][dx] += dlogit * q[dim - cols.shape[1] :]
  if output_gradient is None:
    return output
  return [x for x in gradients if x is not None]
