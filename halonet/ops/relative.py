"""Relative position logits: how a query scores a key by where the key lies.

The paper adds `q · r` to every logit, where `r` is chosen by the offset of the
key from the query and is a row part beside a column part (HaloNet, section 3;
SASA, section 3). The score of an offset is therefore a row logit plus a column
logit, and each is computed once per row (column) of the neighbourhood.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def num_offsets(block_size: int, halo_size: int) -> int:
  """Rows of a relative table: offsets −(b−1+h) … b−1+h of a key from a query.

  A query stands in the block and a key in the block or the halo, so the two
  are at most `block_size − 1 + halo_size` pixels apart along an axis.
  """
  return 2 * (block_size + halo_size) - 1


@jax.named_scope("relative")
def relative_logits(
  query: Float[Array, "... queries d"],
  table: Float[Array, "offsets d"],
  *,
  block_size: int,
  halo_size: int,
  stride: int = 1,
) -> Float[Array, "... queries window"]:
  """Scores every key row (or column) of a neighbourhood for every query.

  Args:
    query: `[..., queries, d]`, the queries of one column (or row) of a block;
      query `n` stands at pixel `stride·n` of the block.
    table: `[2·(block_size + halo_size) − 1, d]`, one embedding per offset
      `key − stride·n`, from `−(block_size − 1 + halo_size)` upwards.
    block_size: side of a block in pixels.
    halo_size: width of the halo in pixels.
    stride: distance between queries in pixels.

  Returns:
    `[..., queries, block_size + 2·halo_size]`, in the query's dtype.
  """
  embeddings = window_embeddings(
    table,
    block_size=block_size,
    halo_size=halo_size,
    queries=query.shape[-2],
    stride=stride,
  )
  return jnp.einsum("...qd,qkd->...qk", query, embeddings)


def window_embeddings(
  table: Float[Array, "offsets d"],
  *,
  block_size: int,
  halo_size: int,
  queries: int,
  stride: int,
) -> Float[Array, "queries window d"]:
  """The embedding of every key row (or column) for every query.

  Arguments as for `relative_logits`; `queries` is their number.
  """
  window = block_size + 2 * halo_size
  # The first key lies halo_size before the block: offset −halo_size − position
  # of the query, row block_size − 1 − position of the table.
  return jnp.stack(
    [
      lax.slice_in_dim(table, first, first + window)
      for first in (block_size - 1 - stride * n for n in range(queries))
    ]
  )
