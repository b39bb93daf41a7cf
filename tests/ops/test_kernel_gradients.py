"""The convolution's output and gradients against loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from halonet.ops.kernel_gradients import convolve, multiply


def loops(x, kernel, stride, gradient):
  """Returns the output, and the gradients of the map and of the kernel."""
  rows, columns = kernel.shape[:2]
  top, left = rows // 2, columns // 2
  padded = np.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
  output = np.zeros_like(gradient)
  of_padded, of_kernel = np.zeros_like(padded), np.zeros_like(kernel)
  for i in range(gradient.shape[1]):
    for j in range(gradient.shape[2]):
      place = (
        slice(None),
        slice(i * stride, i * stride + rows),
        slice(j * stride, j * stride + columns),
      )
      output[:, i, j] = np.einsum("brsc,rscf->bf", padded[place], kernel)
      given = gradient[:, i, j]
      of_kernel += np.einsum("brsc,bf->rscf", padded[place], given)
      of_padded[place] += np.einsum("bf,rscf->brsc", given, kernel)
  height, width = x.shape[1:3]
  of_map = of_padded[:, top : top + height, left : left + width]
  return output, of_map, of_kernel


@pytest.mark.parametrize(
  ("size", "stride", "sides", "counts"),
  [
    ((3, 3), 1, (9, 6), (2, 3, 4)),
    ((3, 3), 2, (7, 8), (1, 2, 5)),
    ((3, 3), 3, (1, 2), (3, 1, 1)),
    ((3, 1), 2, (5, 4), (2, 4, 3)),
    ((1, 1), 2, (4, 5), (1, 3, 2)),
    ((5, 5), 1, (6, 3), (1, 2, 2)),
  ],
)
def test_output_and_gradients_match_loops(size, stride, sides, counts):
  batch, channels, features = counts
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, *sides, channels))
  kernel = rng.normal(size=(*size, channels, features))
  ends = [-(-side // stride) for side in sides]
  gradient = rng.normal(size=(batch, *ends, features))
  layer = nn.Conv(
    features,
    size,
    strides=stride,
    padding=[(side // 2, side // 2) for side in size],
    use_bias=False,
    param_dtype=jnp.float64,
    conv_general_dilated=convolve,
  )
  with jax.enable_x64(True):

    @jax.jit
    def both(x, kernel, gradient):
      output, backward = jax.vjp(
        lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x),
        x,
        kernel,
      )
      return output, *backward(gradient)

    found = both(*(jnp.asarray(each) for each in (x, kernel, gradient)))
  for ours, wanted in zip(
    found, loops(x, kernel, stride, gradient), strict=True
  ):
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, wanted, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["convolution", "groups", "product"])
def test_gradients_are_those_of_xla_in_float32(dtype, layer):
  """CPUs differ in how exactly XLA adds products of bfloat16 up."""
  x = jax.random.normal(jax.random.key(0), (2, 9, 12, 8), dtype)
  if layer == "product":
    theirs = nn.Dense(6, use_bias=False)
    options = {"dot_general": multiply}
  else:
    groups = 2 if layer == "groups" else 1
    theirs = nn.Conv(
      6, (3, 3), 2, padding=1, feature_group_count=groups, use_bias=False
    )
    options = {"conv_general_dilated": convolve}
  ours = theirs.clone(dtype=dtype, **options)
  variables = theirs.init(jax.random.key(1), x)

  @functools.partial(jax.jit, static_argnums=2)
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(variables, x, layer):
    return (layer.apply(variables, x).astype("float32") ** 2).sum()

  limit = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
  found = jax.tree.leaves(gradients(variables, x, ours))
  wanted = jax.tree.leaves(gradients(variables, x.astype("float32"), theirs))
  for a, b, dtype in zip(found, wanted, ("float32", x.dtype), strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(
      np.float32(a), b, atol=limit * abs(b).max(), rtol=0
    )
