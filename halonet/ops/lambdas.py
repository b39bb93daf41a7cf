"""Lambda layers: linear functions of a query, made from its surroundings.

"LambdaNetworks: Modeling Long-Range Interactions Without Attention", Bello,
ICLR 2021, arXiv:2102.08602.
"""

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float


def local_lambda(
  query: Float[Array, "b h w heads d"],
  key: Float[Array, "b h w d"],
  value: Float[Array, "b h w v"],
  relative_kernel: Float[Array, "window window d"],
  relative_bias: Float[Array, " d"],
) -> Float[Array, "b h w heads v"]:
  """Applies content and local position lambdas to the queries (section 3).

  With σ the softmax over all pixels m of the map,

    y_n = (Σ_m σ(k)_m v_mᵀ + Σ_m r_(m−n) v_mᵀ + b 1ᵀ)ᵀ q_n

  where the second sum is over the window around pixel n, the lambda
  convolution of appendix C, and b is the bias of that convolution. All heads
  share keys and values. The time and memory are linear in the pixels.

  Args:
    query: `[batch, height, width, heads, head_dim]`.
    key: `[batch, height, width, head_dim]`.
    value: `[batch, height, width, value_dim]`.
    relative_kernel: `[window, window, head_dim]`, embeddings of the offsets
      `m − n`; the window is odd and centred, zero beyond the border.
    relative_bias: `[head_dim]`, part of every position lambda.

  Returns:
    `[batch, height, width, heads, value_dim]` in the dtype of `value`. The
    softmax is float32 for narrower inputs.
  """
  batch, height, width, value_dim = value.shape
  dtype = value.dtype
  with jax.named_scope("softmax"):
    wide = jnp.promote_types(dtype, jnp.float32)
    weights = nn.softmax(key.astype(wide), axis=(1, 2)).astype(dtype)
  with jax.named_scope("values"):
    content = jnp.einsum("bhwd,bhwv->bdv", weights, value)
    output = jnp.einsum("bhwnd,bdv->bhwnv", query, content)
  with jax.named_scope("relative"):
    channels = jnp.moveaxis(value, -1, 1).reshape(-1, height, width, 1)
    lambdas = lax.conv_general_dilated(
      channels,
      relative_kernel[:, :, None].astype(dtype),
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    lambdas = (lambdas + relative_bias.astype(dtype)).reshape(
      batch, value_dim, height, width, -1
    )
    output += jnp.einsum("bhwnd,bvhwd->bhwnv", query, lambdas)
  return output
