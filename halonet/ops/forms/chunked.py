"""The folded form for a CPU: a few images at a time, and its own backward pass.

The intermediate arrays of a few images stay in the caches near the cores. The
backward pass keeps only the maps and computes the rest again. Its products
have the orientation that a CPU's kernels are fast at, and skip the one-hot
columns of the keys, whose gradient nobody needs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from halonet.ops.forms import folded
from halonet.ops.forms.form import Form

# Logits that a few images have together: 4 MiB of float32 stay in the caches.
# With fewer, starting the operations takes longer than what they do.
LOGITS = 2**20


class Chunked(Form):
  """The folded form, a few images at a time. It has reverse mode only."""

  name = "xla_chunked"

  def suits(self, place):
    # Devices that share a batch would wait for one another at every chunk.
    return place.kind == "cpu" and place.devices == 1

  def attend(self, query, key, value, tables, layer, place):
    tables = tables.spanning(-layer.farthest, layer.farthest)
    return _attention(layer, query, key, value, *tables)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(layer, query, key, value, *tables):
  def attend(chunk):
    return folded.folded_attention(*chunk, tables, layer)

  return _joined(lax.map(attend, _chunks(layer, query, key, value)))


def _forward(layer, *inputs):
  return _attention(layer, *inputs), inputs


def _backward(layer, inputs, gradient):
  *maps, row_table, col_table = inputs

  def step(sums, chunk):
    *gradients, rows, cols = _gradients(
      layer, *chunk[:3], row_table, col_table, chunk[3]
    )
    return (sums[0] + rows, sums[1] + cols), gradients

  zeros = jnp.zeros_like(row_table), jnp.zeros_like(col_table)
  sums, gradients = lax.scan(step, zeros, _chunks(layer, *maps, gradient))
  return *map(_joined, gradients), *sums


_attention.defvjp(_forward, _backward)


def _gradients(layer, query, key, value, row_table, col_table, gradient):
  """Returns the gradients of the five arrays, given that of the output."""
  window = layer.window
  windows = functools.partial(folded.flat_windows, layer=layer)
  queries, pull_queries = jax.vjp(
    lambda query, *tables: folded.extended_queries(query, tables, layer),
    query,
    row_table,
    col_table,
  )
  keys, pull_keys = jax.vjp(windows, key)
  values, pull_values = jax.vjp(windows, value)
  weights, total = folded.softmax_terms(keys, queries)

  # With p = weights/total and y = Σ p·v: dlogits = p · (dy·v − Σ p · dy·v).
  # Nothing is rounded to a narrower dtype before the end.
  scaled = folded.tiles(gradient, layer.side) / total
  with jax.named_scope("values"):
    dvalues = _with_transposed(weights.astype(value.dtype), scaled)
    dweights = folded.product(values, scaled)
  with jax.named_scope("softmax"):
    mean = (weights * dweights).sum(axis=-2, keepdims=True) / total
    dlogits = weights * (dweights - mean)
  with jax.named_scope("logits"):
    dkeys = _with_transposed(dlogits, queries[..., : query.shape[-1], :])
    dqueries = folded.product(folded.transposed(keys), dlogits)
  # The one-hot vectors' products are sums along the axes of the window.
  with jax.named_scope("relative"):
    square = dlogits.reshape(*dlogits.shape[:-2], window, window, -1)
    dqueries = jnp.concatenate(
      [dqueries, square.sum(axis=-2), square.sum(axis=-3)], axis=-2
    )
  dquery, drows, dcols = pull_queries(dqueries.astype(queries.dtype))
  (dkey,) = pull_keys(dkeys.astype(key.dtype))
  (dvalue,) = pull_values(dvalues.astype(value.dtype))
  return dquery, dkey, dvalue, drows, dcols


def _with_transposed(x, y):
  """Multiplies batches of `[m, k] · [n, k]ᵀ`, summed in float32 at least."""
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  return jnp.einsum("...mk,...nk->...mn", x, y, preferred_element_type=wide)


def _chunks(layer, *maps):
  """Splits batches into parts of at most `LOGITS`, or of two images."""
  batch, heads = maps[0].shape[0], maps[0].shape[3]
  queries = layer.rows * layer.cols * layer.side**2
  most = max(2, LOGITS // (heads * queries * layer.window**2))
  size = 1  # An exported program's batch is of any size.
  if isinstance(batch, int):
    size = max(n for n in range(1, min(batch, most) + 1) if batch % n == 0)
  return [x.reshape(-1, size, *x.shape[1:]) for x in maps]


def _joined(chunks):
  return chunks.reshape(-1, *chunks.shape[2:])
