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

The parts are named scopes of the program, `neighbourhoods`, `relative`,
`masks`, `logits`, `softmax` and `values`: profiles show them, and costs are
counted by them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from halonet.ops import blocks, positions
from halonet.ops.forms.form import Form


class Folded(Form):
  """Operations that XLA fuses. The only form with forward-mode derivatives."""

  name = "xla"

  def suits(self, place):
    return True

  def attend(self, query, key, value, tables, layer, place):
    tables = tables.spanning(-layer.farthest, layer.farthest)
    return folded_attention(query, key, value, tables, layer)


def folded_attention(query, key, value, tables, layer):
  """Computes what `Form.attend` returns, with tables of all offsets."""
  queries = extended_queries(query, tables, layer)
  keys, values = flat_windows(key, layer), flat_windows(value, layer)
  weights, total = softmax_terms(keys, queries)
  # The sum divides the few outputs, not the many weights.
  with jax.named_scope("values"):
    output = product(transposed(values), weights.astype(value.dtype))
  with jax.named_scope("softmax"):
    output = (output / total).astype(value.dtype)
  return merged(output, layer)


def softmax_terms(keys, queries):
  """Returns numerators and denominators of the softmax over the keys.

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
  """Multiplies batches of `[m, k] · [k, n]`, summed in float32 at least."""
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  return jnp.matmul(x, y, preferred_element_type=wide)


def transposed(x):
  """Swaps the last two axes and keeps the result as an array of its own.

  On a CPU, XLA would fuse the transposition into the product, which then runs
  outside its fast kernels and takes twice as long. Elsewhere the copy costs a
  little and gains nothing.
  """
  return lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def extended_queries(query, tables, layer):
  """Joins queries with their row and column logits, which carry the masks.

  `[b, h, w, heads, d]` → `[b, rows, columns, heads, d + 2·window, side²]`.
  """
  side = layer.side
  row_table, col_table = tables
  query = blocks.pad_to_blocks(query, layer.block_size)
  query = query[:, :: layer.stride, :: layer.stride]
  query = blocks.split_blocks(query, side)
  query = jnp.moveaxis(query, (5, 6), (3, 4))  # [..., heads, d, side, side]
  row_embeddings, col_embeddings = (
    positions.window_embeddings(
      table.astype(query.dtype),
      block_size=layer.block_size,
      halo_size=layer.halo_size,
      queries=side,
      stride=layer.relative_stride,
    )
    for table in tables
  )
  row_query = query[..., : row_table.shape[1], :, :]
  col_query = query[..., query.shape[-3] - col_table.shape[1] :, :, :]
  with jax.named_scope("relative"):
    row_logits = jnp.einsum("...dij,ikd->...kij", row_query, row_embeddings)
    col_logits = jnp.einsum("...dij,jkd->...kij", col_query, col_embeddings)
  # A hidden key gets this once for its row and once for its column. Finite,
  # because it meets the zeros of the one-hot vectors.
  masked = jnp.asarray(jnp.finfo(query.dtype).min / 8, query.dtype)
  with jax.named_scope("masks"):
    if layer.mask_padding:
      rows, cols = (
        layer.hides(axis, pixel=layer.key_pixels(axis)) for axis in (0, 1)
      )
      row_logits += jnp.where(rows[:, None, None, :, None, None], masked, 0)
      col_logits += jnp.where(cols[:, None, :, None, None], masked, 0)
    if layer.reach is not None:
      rows, cols = (
        layer.hides(axis, offset=layer.key_offsets()).T for axis in (0, 1)
      )
      row_logits += jnp.where(rows[:, :, None], masked, 0)
      col_logits += jnp.where(cols[:, None, :], masked, 0)
  query = jnp.concatenate([query, row_logits, col_logits], axis=-3)
  return query.reshape(*query.shape[:5], side**2)


@jax.named_scope("neighbourhoods")
def flat_windows(x, layer):
  """Gathers neighbourhoods.

  `[b, h, w, heads, d]` → `[b, rows, columns, heads, window², d]`.
  """
  x = blocks.pad_to_blocks(x, layer.block_size)
  x = blocks.extract_halos(x, layer.block_size, layer.halo_size)
  x = jnp.moveaxis(x, 5, 3)
  return x.reshape(*x.shape[:4], -1, x.shape[-1])


def merged(x, layer):
  """Puts tiles of queries, `[b, rows, columns, heads, d, side²]`, on a map.

  Returns `[b, ⌈height/stride⌉, ⌈width/stride⌉, heads, d]`.
  """
  x = x.reshape(*x.shape[:5], layer.side, layer.side)
  x = blocks.merge_blocks(jnp.moveaxis(x, (3, 4), (5, 6)))
  height, width = layer.output_size
  return x[:, :height, :width]


def tiles(x, side):
  """Inverts `merged`; the pixels that complete the blocks are zero."""
  x = blocks.split_blocks(blocks.pad_to_blocks(x, side), side)
  x = jnp.moveaxis(x, (5, 6), (3, 4))
  return x.reshape(*x.shape[:5], side**2)
