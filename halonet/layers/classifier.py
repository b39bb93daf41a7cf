"""The linear classifier that ends a host."""

from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jaxtyping import Array, Float

# Channels that are summed in a row. On a CPU, XLA would sum all 2,048 of a
# ResNet's features in a row, at twice the rounding error of PyTorch's product.
_PART = 128


def classifier(num_classes: int, kernel_init: Initializer) -> nn.Dense:
  """Makes a layer "classifier", float32 `[…, c]` → `[…, num_classes]`.

  It is `nn.Dense` but for rounding: where a part divides the channels, it sums
  them by parts.
  """
  return nn.Dense(
    num_classes,
    kernel_init=kernel_init,
    dot_general=_product_by_parts,
    name="classifier",
  )


def _product_by_parts(
  x: Float[Array, "... c"],
  kernel: Float[Array, "c n"],
  dimension_numbers: lax.DotDimensionNumbers,
  precision: lax.PrecisionLike = None,
) -> Float[Array, "... n"]:
  """Returns x @ kernel; the arguments are those of `lax.dot_general`."""
  channels, classes = kernel.shape
  if channels % _PART:
    return lax.dot_general(x, kernel, dimension_numbers, precision)
  last = x.ndim - 1
  x = x.reshape(*x.shape[:-1], -1, _PART)
  kernel = kernel.reshape(-1, _PART, classes)
  products = lax.dot_general(
    x, kernel, (((last + 1,), (1,)), ((last,), (0,))), precision
  )
  return products.sum(0)
