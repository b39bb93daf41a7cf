"""Relative position logits: how a query scores a key by where the key lies.

The paper adds `q · r` to every logit, where `r` is chosen by the offset of the
key from the query and is a row part beside a column part (HaloNet, section 3;
SASA, section 3). The score of an offset is therefore a row logit plus a column
logit, and each is computed once per row (column) of the neighbourhood.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def num_offsets(block_size: int, halo_size: int) -> int:
  """Returns the rows of a relative table: offsets −(b−1+h) … b−1+h.

  A query stands in the block and a key in the block or the halo, so the two
  are at most `block_size − 1 + halo_size` pixels apart along an axis.
  """
  return 2 * (block_size + halo_size) - 1


@dataclasses.dataclass(frozen=True)
class Tables:
  """Embeddings of relative offsets, one table for rows and one for columns.

  Attributes:
    rows: `[offsets, d_h]`; they meet the first `d_h` channels of the query.
    cols: `[offsets, d_w]`; they meet the last `d_w` channels.
    first: Offset `key − query` in pixels that the first embeddings belong to.
  """

  rows: Float[Array, "offsets dh"]
  cols: Float[Array, "offsets dw"]
  first: int

  def spanning(self, first: int, last: int) -> tuple[jax.Array, jax.Array]:
    """Returns both tables for the offsets from `first` to `last`.

    Offsets that have no embedding get zeros.
    """
    end = self.first + self.rows.shape[0] - 1
    pads = (self.first - first, last - end, 0), (0, 0, 0)
    if pads[0] == pads[1]:
      return self.rows, self.cols
    zero = jnp.zeros((), self.rows.dtype)
    return lax.pad(self.rows, zero, pads), lax.pad(self.cols, zero, pads)


def window_embeddings(
  table: Float[Array, "offsets d"],
  *,
  block_size: int,
  halo_size: int,
  queries: int,
  stride: int,
) -> Float[Array, "queries window d"]:
  """Returns the embedding of every key row (or column) for every query.

  Args:
    table: `[2·(block_size + halo_size) − 1, d]`, one embedding per offset
      `key − stride·n`, from `−(block_size − 1 + halo_size)` upwards.
    block_size: side of a block in pixels.
    halo_size: width of the halo in pixels.
    queries: number of queries; query `n` stands at pixel `stride·n`.
    stride: distance between queries in pixels.

  Returns:
    `[queries, block_size + 2·halo_size, d]`, in the table's dtype.
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


@jax.named_scope("relative")
def relative_logits(
  query: Float[Array, "... length d"], table: Float[Array, "offsets d"]
) -> Float[Array, "... length length"]:
  """Scores all keys of a row (or column) of pixels for all its queries.

  Args:
    query: `[..., length, d]`, the queries of the row.
    table: `[2·length − 1, d]`, one embedding per offset `key − query`, from
      `1 − length` upwards.

  Returns:
    `[..., length, length]`, query before key, in the query's dtype.
  """
  length = query.shape[-2]
  embeddings = window_embeddings(
    table, block_size=length, halo_size=0, queries=length, stride=1
  )
  return jnp.einsum("...qd,qkd->...qk", query, embeddings)
