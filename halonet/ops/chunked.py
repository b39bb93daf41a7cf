"""The folded form for a CPU: a few images at a time, and a backward by hand.

What lies between the products of a few images stays near the cores; and of all
that the backward pass needs, only the maps are kept, and the rest is computed
again. Its products are the ones whose orientation a CPU's kernels are fast at,
and none of them meets the one-hot columns of the keys, whose gradient nobody
asks for.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from halonet.ops import folded

# Images whose tiles stay in a CPU's caches together.
CHUNK = 2


def chunked_attention(
  query, key, value, relative_height, relative_width, **options
):
  """`folded.folded_attention`, a few images at a time.

  Arrays, options and result as there. Derivatives are those of reverse mode.
  """
  options = tuple(sorted(options.items()))  # Hashable.
  return _attention(options, query, key, value, relative_height, relative_width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, query, key, value, *tables):
  def attend(chunk):
    return folded.folded_attention(*chunk, *tables, **dict(options))

  return _joined(lax.map(attend, _chunks(query, key, value)))


def _forward(options, *inputs):
  return _attention(options, *inputs), inputs


def _backward(options, inputs, gradient):
  *maps, row_table, col_table = inputs

  def step(sums, chunk):
    *gradients, rows, cols = _gradients(
      dict(options), *chunk[:3], row_table, col_table, chunk[3]
    )
    return (sums[0] + rows, sums[1] + cols), gradients

  zeros = jnp.zeros_like(row_table), jnp.zeros_like(col_table)
  sums, gradients = lax.scan(step, zeros, _chunks(*maps, gradient))
  return *map(_joined, gradients), *sums


_attention.defvjp(_forward, _backward)


def _gradients(options, query, key, value, row_table, col_table, gradient):
  """Of all arrays that `folded.folded_attention` takes.

  Args:
    options: as there.
    query: `[batch, height, width, heads, head_dim]`, and so on, as there.
    gradient: of its result, `[batch, ⌈height/stride⌉, ⌈width/stride⌉, heads,
      value_dim]`.
  """
  block_size, halo_size = options["block_size"], options["halo_size"]
  window, side = block_size + 2 * halo_size, block_size // options["stride"]
  windows = functools.partial(
    folded.flat_windows, block_size=block_size, halo_size=halo_size
  )
  queries, pull_queries = jax.vjp(
    functools.partial(folded.extended_queries, **options),
    query,
    row_table,
    col_table,
  )
  keys, pull_keys = jax.vjp(windows, key)
  values, pull_values = jax.vjp(windows, value)
  weights, total = folded.softmax_terms(keys, queries)

  # With p = weights/total and y = Σ p·v: dlogits = p · (dy·v − Σ p · dy·v).
  # Nothing of it is rounded to narrower inputs before the end.
  scaled = folded.tiles(gradient, side) / total
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
    square = dlogits.reshape(*dlogits.shape[:-2], window, window, side**2)
    dqueries = jnp.concatenate(
      [dqueries, square.sum(axis=-2), square.sum(axis=-3)], axis=-2
    )
  dquery, drows, dcols = pull_queries(dqueries.astype(queries.dtype))
  (dkey,) = pull_keys(dkeys.astype(key.dtype))
  (dvalue,) = pull_values(dvalues.astype(value.dtype))
  return dquery, dkey, dvalue, drows, dcols


def _with_transposed(x, y):
  """Batches of `[m, k] · [n, k]ᵀ`, summed in float32 at least."""
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  return jnp.einsum("...mk,...nk->...mn", x, y, preferred_element_type=wide)


def _chunks(*maps):
  batch = maps[0].shape[0]
  size = CHUNK if batch % CHUNK == 0 else 1
  return [x.reshape(-1, size, *x.shape[1:]) for x in maps]


def _joined(chunks):
  return chunks.reshape(-1, *chunks.shape[2:])
