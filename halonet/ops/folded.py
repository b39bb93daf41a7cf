"""Blocked local attention as operations that XLA fuses: the folded form.

Every query is extended by its row and its column logits, every key by two
one-hot vectors that name its row and its column,

  [q, q·R_row, q·R_col] · [k, onehot(row), onehot(col)],

so that one matrix product on flat `block² × window²` tiles yields content and
position together: there is no array with short trailing (window, window)
dimensions, which the tiling of TPUs pads, and none is added by broadcasting.
The border mask rides on the same terms at no cost.

The parts bear names in the program, `neighbourhoods`, `relative`, `masks`,
`logits`, `softmax` and `values`: profiles show them, and costs are counted by
them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halonet.ops import blocks, relative

# Images whose tiles stay in a CPU's caches together.
CHUNK = 2


def folded_attention(
  query,
  key,
  value,
  relative_height,
  relative_width,
  *,
  block_size,
  halo_size,
  stride,
  **options,
):
  """`blocked_local_attention` as operations that XLA fuses."""
  height, width = query.shape[1:3]
  logits = folded_logits(
    query,
    key,
    relative_height,
    relative_width,
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    **options,
  )
  # The sum divides the few outputs, not the many weights.
  with jax.named_scope("softmax"):
    maximum = lax.stop_gradient(logits.max(axis=-2, keepdims=True))
    weights = jnp.exp(logits - maximum)
    total = weights.sum(axis=-2)
  value = flat_windows(value, block_size, halo_size)
  with jax.named_scope("values"):
    output = jnp.einsum(
      "...kq,...kd->...qd",
      weights.astype(value.dtype),
      value,
      preferred_element_type=logits.dtype,
    )
  with jax.named_scope("softmax"):
    output = (output / total[..., None]).astype(value.dtype)
  batch, rows, cols, heads, _, dim = output.shape
  side = block_size // stride
  output = output.reshape(batch, rows, cols, heads, side, side, dim)
  output = blocks.merge_blocks(jnp.moveaxis(output, 3, 5))
  return output[:, : -(-height // stride), : -(-width // stride)]


def chunked_attention(
  query, key, value, relative_height, relative_width, **options
):
  """`folded_attention` of a few images at a time.

  What lies between the products stays in the caches, and is computed again in
  the backward pass, which needs less memory and less time for it on a CPU.
  """
  batch = query.shape[0]
  size = CHUNK if batch % CHUNK == 0 else 1

  @jax.checkpoint
  def attend(chunk):
    return folded_attention(*chunk, relative_height, relative_width, **options)

  chunks = [x.reshape(-1, size, *x.shape[1:]) for x in (query, key, value)]
  output = lax.map(attend, chunks)
  return output.reshape(batch, *output.shape[2:])


def folded_logits(
  query,
  key,
  relative_height,
  relative_width,
  *,
  block_size,
  halo_size,
  **options,
):
  """Logits `[batch, rows, columns, heads, window², side²]`, keys first."""
  query = extended_queries(
    query,
    relative_height,
    relative_width,
    block_size=block_size,
    halo_size=halo_size,
    **options,
  )
  window = block_size + 2 * halo_size
  key = flat_windows(key, block_size, halo_size)
  row, col = np.divmod(np.arange(window**2), window)
  one_hot = np.concatenate([np.eye(window)[row], np.eye(window)[col]], axis=1)
  one_hot = jnp.broadcast_to(
    jnp.asarray(one_hot, key.dtype), (*key.shape[:-1], 2 * window)
  )
  key = jnp.concatenate([key, one_hot], axis=-1)
  with jax.named_scope("logits"):
    return jnp.einsum(
      "...kd,...qd->...kq",
      key,
      query,
      preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )


def extended_queries(
  query,
  relative_height,
  relative_width,
  *,
  block_size,
  halo_size,
  stride,
  mask_padding,
  mask_window,
  relative_stride,
):
  """Queries beside their row and their column logits, with the masks in these.

  `[b, h, w, heads, d]` → `[b, rows, columns, heads, side², d + 2 · window]`.
  """
  height, width = query.shape[1:3]
  window = block_size + 2 * halo_size
  geometry = dict(
    block_size=block_size,
    halo_size=halo_size,
    stride=relative_stride or stride,
  )

  # [batch, rows, columns, heads, side, side, head_dim]
  query = blocks.pad_to_blocks(query, block_size)[:, ::stride, ::stride]
  query = blocks.split_blocks(query, block_size // stride)
  query = jnp.moveaxis(query, 5, 3)
  row_logits = relative.relative_logits(
    jnp.swapaxes(query[..., : relative_height.shape[1]], -2, -3),
    relative_height.astype(query.dtype),
    **geometry,
  )
  row_logits = jnp.swapaxes(row_logits, -2, -3)
  col_logits = relative.relative_logits(
    query[..., query.shape[-1] - relative_width.shape[1] :],
    relative_width.astype(query.dtype),
    **geometry,
  )
  # A masked key gets this once for its row and once for its column. Finite,
  # because it meets the zeros of the one-hot vectors.
  masked = jnp.asarray(jnp.finfo(query.dtype).min / 8, query.dtype)
  with jax.named_scope("masks"):
    if mask_padding:
      valid_rows = blocks.valid_keys(height, block_size, halo_size)
      valid_cols = blocks.valid_keys(width, block_size, halo_size)
      row_logits += jnp.where(valid_rows[:, None, None, None, None], 0, masked)
      col_logits += jnp.where(valid_cols[:, None, None, None], 0, masked)
    if mask_window:
      offset = np.arange(window) - halo_size
      offset = offset - np.arange(0, block_size, stride)[:, None]
      far = np.abs(offset) > halo_size
      row_logits += jnp.where(far[:, None], masked, 0)
      col_logits += jnp.where(far, masked, 0)
  query = jnp.concatenate([query, row_logits, col_logits], axis=-1)
  return query.reshape(*query.shape[:4], -1, query.shape[-1])


@jax.named_scope("neighbourhoods")
def flat_windows(x, block_size, halo_size):
  """`[b, h, w, heads, d]` → `[b, rows, columns, heads, window², d]`."""
  x = blocks.pad_to_blocks(x, block_size)
  x = blocks.extract_halos(x, block_size, halo_size)
  x = jnp.moveaxis(x, 5, 3)
  return x.reshape(*x.shape[:4], -1, x.shape[-1])
