"""Blocked local attention as operations that XLA fuses: the folded form.

Every query is extended by its row and its column logits, every key by two
one-hot vectors that name its row and its column,

  [k, onehot(row), onehot(col)] · [q, q·R_row, q·R_col],

so that one matrix product on flat `window² × block²` tiles yields content and
position together: there is no array with short trailing (window, window)
dimensions, which the tiling of TPUs pads, and none is added by broadcasting.
The border mask rides on the same terms at no cost.

Keys come first in all tiles, queries last: sums and maxima over the keys are
then those of whole rows of queries.

The parts bear names in the program, `neighbourhoods`, `relative`, `masks`,
`logits`, `softmax` and `values`: profiles show them, and costs are counted by
them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halonet.ops import blocks, relative


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
  queries = extended_queries(
    query,
    relative_height,
    relative_width,
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    **options,
  )
  keys = flat_windows(key, block_size, halo_size)
  values = flat_windows(value, block_size, halo_size)
  weights, total = softmax_terms(keys, queries)
  # The sum divides the few outputs, not the many weights.
  with jax.named_scope("values"):
    output = product(transposed(values), weights.astype(value.dtype))
  with jax.named_scope("softmax"):
    output = (output / total).astype(value.dtype)
  return merged(output, height, width, block_size, stride)


def softmax_terms(keys, queries):
  """Numerators and denominators of the softmax over the keys.

  Args:
    keys: `[..., window², d]`, as `flat_windows` gives them.
    queries: `[..., d + 2·window, side²]`, as `extended_queries` does.

  Returns:
    `[..., window², side²]` and `[..., 1, side²]`, at least float32.
  """
  window = (queries.shape[-2] - keys.shape[-1]) // 2
  row, col = np.divmod(np.arange(window**2), window)
  one_hot = np.concatenate([np.eye(window)[row], np.eye(window)[col]], axis=1)
  one_hot = jnp.broadcast_to(
    jnp.asarray(one_hot, keys.dtype), (*keys.shape[:-1], 2 * window)
  )
  keys = jnp.concatenate([keys, one_hot], axis=-1)
  with jax.named_scope("logits"):
    logits = product(keys, queries)
  with jax.named_scope("softmax"):
    maximum = lax.stop_gradient(logits.max(axis=-2, keepdims=True))
    weights = jnp.exp(logits - maximum)
    return weights, weights.sum(axis=-2, keepdims=True)


def product(x, y):
  """Batches of `[m, k] · [k, n]`, summed in float32 at least."""
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  return jnp.matmul(x, y, preferred_element_type=wide)


def transposed(x):
  """The last two axes swapped, as an array of its own.

  For a CPU, XLA would make one operation of a transposition and a product,
  which its fast kernels do not know: it then takes twice as long. Elsewhere it
  is a copy that need not be.
  """
  return lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def extended_queries(
  query,
  relative_height,
  relative_width,
  *,
  block_size,
  halo_size,
  stride,
  mask_padding,
  reach,
  relative_stride,
):
  """Queries beside their row and their column logits, with the masks in these.

  `[b, h, w, heads, d]` → `[b, rows, columns, heads, d + 2·window, side²]`.
  """
  height, width = query.shape[1:3]
  window, side = block_size + 2 * halo_size, block_size // stride
  query = blocks.pad_to_blocks(query, block_size)[:, ::stride, ::stride]
  query = blocks.split_blocks(query, side)
  query = jnp.moveaxis(query, (5, 6), (3, 4))  # [..., heads, d, side, side]
  row_tables, col_tables = (
    relative.window_embeddings(
      table.astype(query.dtype),
      block_size=block_size,
      halo_size=halo_size,
      queries=side,
      stride=relative_stride or stride,
    )
    for table in (relative_height, relative_width)
  )
  row_query = query[..., : relative_height.shape[1], :, :]
  col_query = query[..., query.shape[-3] - relative_width.shape[1] :, :, :]
  with jax.named_scope("relative"):
    row_logits = jnp.einsum("...dij,ikd->...kij", row_query, row_tables)
    col_logits = jnp.einsum("...dij,jkd->...kij", col_query, col_tables)
  # A masked key gets this once for its row and once for its column. Finite,
  # because it meets the zeros of the one-hot vectors.
  masked = jnp.asarray(jnp.finfo(query.dtype).min / 8, query.dtype)
  with jax.named_scope("masks"):
    if mask_padding:
      valid_rows = blocks.valid_keys(height, block_size, halo_size)
      valid_cols = blocks.valid_keys(width, block_size, halo_size)
      row_logits += jnp.where(
        valid_rows[:, None, None, :, None, None], 0, masked
      )
      col_logits += jnp.where(valid_cols[:, None, :, None, None], 0, masked)
    if reach is not None:
      offset = np.arange(window)[:, None] - halo_size
      offset = offset - np.arange(0, block_size, stride)
      before, after = reach
      far = (offset < -before) | (offset > after)  # [window, side]
      row_logits += jnp.where(far[:, :, None], masked, 0)
      col_logits += jnp.where(far[:, None, :], masked, 0)
  query = jnp.concatenate([query, row_logits, col_logits], axis=-3)
  return query.reshape(*query.shape[:5], side**2)


@jax.named_scope("neighbourhoods")
def flat_windows(x, block_size, halo_size):
  """`[b, h, w, heads, d]` → `[b, rows, columns, heads, window², d]`."""
  x = blocks.pad_to_blocks(x, block_size)
  x = blocks.extract_halos(x, block_size, halo_size)
  x = jnp.moveaxis(x, 5, 3)
  return x.reshape(*x.shape[:4], -1, x.shape[-1])


def merged(x, height, width, block_size, stride):
  """Puts tiles of queries, `[b, rows, columns, heads, d, side²]`, on a map.

  Returns `[b, ⌈height/stride⌉, ⌈width/stride⌉, heads, d]`.
  """
  side = block_size // stride
  x = x.reshape(*x.shape[:5], side, side)
  x = blocks.merge_blocks(jnp.moveaxis(x, (3, 4), (5, 6)))
  return x[:, : -(-height // stride), : -(-width // stride)]


def tiles(x, side):
  """The inverse of `merged`; what completes the blocks is zero."""
  x = blocks.split_blocks(blocks.pad_to_blocks(x, side), side)
  x = jnp.moveaxis(x, (5, 6), (3, 4))
  return x.reshape(*x.shape[:5], side**2)
