"""What comes before an attention: queries, keys, values and tables."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from halonet.ops.arguments import check_count

# Draws linear layers and tables of transformers. Swin's, PVT's and Slide's
# authors cut it off at ±2, a hundred deviations away.
LINEAR_INIT = nn.initializers.normal(0.02)


class Projection(nn.Module):
  """Holds the weights of a linear map from channels to those of all heads.

  Parameters are those of `nn.DenseGeneral`.

  Attributes:
    heads: number of heads.
    features: channels of all heads together.
    bias: whether there is a bias.
    init: draws the kernel; by default `LINEAR_INIT` draws one with a bias, and
      LeCun's rule one without.
  """

  heads: int
  features: int
  bias: bool = False
  init: Initializer | None = None

  @nn.compact
  def weights(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """Returns the kernel for so many channels, and the bias or None. Both are
    flat."""
    draw = self.init or (
      LINEAR_INIT if self.bias else nn.initializers.lecun_normal()
    )

    def init(key, shape):
      return draw(key, (shape[0], self.features)).reshape(shape)

    heads = (self.heads, self.features // self.heads)
    kernel = jnp.asarray(self.param("kernel", init, (channels, *heads)))
    kernel = kernel.reshape(channels, self.features)
    if not self.bias:
      return kernel, None
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, heads))
    return kernel, bias.reshape(self.features)

  def __call__(self, y: Float[Array, "... v"]) -> Float[Array, "... heads d"]:
    """Splits channels into heads."""
    return y.reshape(*y.shape[:-1], self.heads, self.features // self.heads)


def project(
  x: Float[Array, "... c"],
  heads: int,
  features: int,
  dtype: DTypeLike,
  name: str,
  scale: float | None = None,
  bias: bool = False,
) -> Float[Array, "... heads d"]:
  """Applies a `Projection` of that name: `[…, c]` → `[…, heads, head_dim]`."""
  (y,) = project_together(x, heads, dtype, {name: features}, scale, bias)
  return y


def project_together(
  x: Float[Array, "... c"],
  heads: int,
  dtype: DTypeLike,
  features: Mapping[str, int],
  scale: float | None = None,
  bias: bool = False,
  inits: Mapping[str, Initializer | None] | None = None,
) -> list[jax.Array]:
  """Applies several `Projection`s in one product.

  On a TPU, a product that is narrower than the matrix unit would waste the rest
  of it, and the kernels read the result as it lies.

  Args:
    x: the input.
    heads: number of heads.
    dtype: of the computation.
    features: width of the result by the name of the projection.
    scale: factor of the last one, which is that of the queries; None: 1.
    bias: whether they have biases.
    inits: `Projection.init` by the name of the projection, where it is set.

  Returns:
    `[…, heads, head_dim]` of each.
  """
  modules = [
    Projection(heads, width, bias, (inits or {}).get(name), name=name)
    for name, width in features.items()
  ]
  weights = [module.weights(x.shape[-1]) for module in modules]
  # Flat: a result with an axis of heads would have another layout in a TPU's
  # memory, and would be copied before the attention's kernel.
  with jax.named_scope("projections"):
    if scale is not None:
      kernel, own = weights.pop()
      weights.append((kernel * scale, None if own is None else own * scale))
    kernel = _beside([kernel for kernel, _ in weights])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=dtype)
    y = x @ kernel
    if bias:
      y += _beside([bias for _, bias in weights]).astype(y.dtype)
  widths = list(features.values())
  parts = lax.split(y, widths, axis=y.ndim - 1) if len(widths) > 1 else [y]
  return [module(part) for module, part in zip(modules, parts, strict=True)]


def _beside(arrays):
  return jnp.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]


def projections(
  module: Any,
  x: jax.Array,
  *,
  half_tables: bool,
  scaled: bool,
  keys: bool = True,
  bias: bool = False,
  strided: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array, int]:
  """Projects a map to queries, keys and values, in a layer's compact method.

  Args:
    module: has `heads`, `qk_features`, `value_features` (the input's width if
      None) and `dtype`; it may have `value_init`, which draws the kernel of the
      values.
    x: `[batch, height, width, channels]`.
    half_tables: whether half of a head's query meets each relative table.
    scaled: whether queries are scaled by `head_dim ** -0.5`.
    keys: whether there are keys.
    bias: whether the projections have biases.
    strided: whether only some queries are used. They are then projected alone,
      as the kernels read them from a map of their own.

  Returns:
    Queries, keys and values, `[batch, height, width, heads, …]`, and head_dim.

  Raises:
    ValueError: if `heads` does not divide a width.
  """
  heads = module.heads
  qk_features = module.qk_features or x.shape[-1]
  value_features = module.value_features or x.shape[-1]
  check_heads(heads, qk_features, value_features, half_tables)
  head_dim = qk_features // heads
  features = {"value": value_features}
  if keys:
    features = {"key": qk_features} | features
  scale = head_dim**-0.5 if scaled else None
  inits = {"value": getattr(module, "value_init", None)}
  if not strided:
    features |= {"query": qk_features}
    *found, query = project_together(
      x, heads, module.dtype, features, scale, bias, inits
    )
  else:
    query = project(x, heads, qk_features, module.dtype, "query", scale, bias)
    found = project_together(
      x, heads, module.dtype, features, bias=bias, inits=inits
    )
  *key, value = found
  return query, key[0] if keys else None, value, head_dim


def merge_heads(x: Float[Array, "b h w heads d"]) -> Float[Array, "b h w c"]:
  """`[batch, height, width, heads, d]` → `[batch, height, width, heads·d]`."""
  return x.reshape(*x.shape[:3], -1)


def relative_table(
  module: nn.Module, name: str, shape: tuple[int, int], head_dim: int
) -> jax.Array:
  """Returns a parameter of the module: an embedding for every offset."""
  return module.param(name, nn.initializers.normal(head_dim**-0.5), shape)


def check_heads(
  heads: int, qk_width: int, value_width: int, half_tables: bool = True
) -> None:
  """Raises ValueError unless both widths split evenly over the heads.

  With `half_tables` a head's query must split once more: half of it meets the
  row table, half the column table.
  """
  check_count("heads", heads)
  check_count("the query width", qk_width)
  check_count("the value width", value_width)
  if (
    qk_width < heads
    or qk_width % heads
    or (half_tables and qk_width // heads % 2)
  ):
    even = " to an even width per head" if half_tables else ""
    raise ValueError(
      f"heads is {heads}, which does not divide the query width {qk_width}"
      f"{even}"
    )
  if value_width % heads:
    raise ValueError(
      f"heads is {heads}, which does not divide the value width {value_width}"
    )
