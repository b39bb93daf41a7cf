"""Attention of tokens to tokens, wherever they stand."""

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Float


def token_attention(
  query: Float[Array, "b q heads d"],
  key: Float[Array, "b k heads d"],
  value: Float[Array, "b k heads dv"],
) -> Float[Array, "b q heads dv"]:
  """Computes attention of all queries to all keys, without positions.

  The logits are not scaled here.

  Args:
    query: `[batch, queries, heads, head_dim]`.
    key: `[batch, keys, heads, head_dim]`.
    value: `[batch, keys, heads, value_dim]`.

  Returns:
    `[batch, queries, heads, value_dim]` in the dtype of `value`. Logits and
    softmax are float32 for narrower inputs.
  """
  with jax.named_scope("logits"):
    logits = jnp.einsum(
      "bqnd,bknd->bnqk",
      query,
      key,
      preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
  with jax.named_scope("softmax"):
    weights = nn.softmax(logits).astype(value.dtype)
  with jax.named_scope("values"):
    return jnp.einsum("bnqk,bknd->bqnd", weights, value)
