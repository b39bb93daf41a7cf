"""Slide attention by fused TPU kernels, as a differentiable function.

The kernels compute what the form "side_by_side" of `halonet.ops.shifted` does:
a matrix for each pixel of the window has the kernel once per head, in blocks on
its diagonal. The logits of a head lie in lanes, and their maximum is found by
turning a register lane by lane. So that each turn stays within a head, its
logits are repeated, all but the last.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from halonet.ops.forms.form import KERNEL_RESULTS
from halonet.ops.forms.tpu import slide_kernels
from halonet.ops.forms.tpu.slide_tiling import fit
from halonet.ops.forms.tpu.tiling import LANES


def slide_fused(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  kernel: jax.Array,
  key_bias: jax.Array,
  value_kernel: jax.Array,
  value_bias: jax.Array,
  *,
  split: Callable[[Callable], Callable],
  memory: int | None,
  interpret: bool,
) -> jax.Array:
  """Computes what the forms of `halonet.ops.shifted` do.

  It has reverse mode only.

  Args:
    query: `[batch, height, width, heads, head_dim]`, and all arrays in its
      dtype, float32 or bfloat16.
    key: the same shape.
    value: the same shape.
    kernel: `[window, window, head_dim, shifts]`.
    key_bias: `[heads, head_dim, shifts]`, with the table in it.
    value_kernel: the same shape as `kernel`.
    value_bias: `[head_dim, shifts]`.
    split: `Place.split`.
    memory: bytes of vector memory that a kernel may use; None: no limit.
    interpret: whether to run the kernels without a TPU, slowly.
  """
  size, (heads, head_dim) = kernel.shape[0], query.shape[3:]

  def attend(*arrays):  # With a device's share of the batch.
    shape = *arrays[0].shape[:3], heads, head_dim
    tiling = fit(shape, size, query.dtype, memory)
    return _attention(tiling, memory, interpret, *arrays)

  value_bias = jnp.broadcast_to(value_bias, key_bias.shape)
  # Flat before devices are told apart, where XLA no longer drops a reshape.
  flat = (x.reshape(*x.shape[:3], -1) for x in (query, key, value))
  output = split(attend)(*flat, kernel, key_bias, value_kernel, value_bias)
  return output.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(tiling, memory, interpret, query, key, value, *parameters):
  maps = [_laid_out(tiling, x) for x in (query, key, value)]
  kernel, key_bias, value_kernel, value_bias = parameters
  output = slide_kernels.forward(
    tiling,
    *maps,
    _matrices(tiling, kernel, key_bias, repeated=True),
    _turned(_matrices(tiling, value_kernel, value_bias)),
    jnp.asarray(_ones(tiling)[:, tiling.logits :], query.dtype),
    vmem_limit=memory,
    interpret=interpret,
  )
  return _laid_back(tiling, output)


def _forward(tiling, memory, interpret, *inputs):
  output = _attention(tiling, memory, interpret, *inputs)
  return checkpoint_name(output, KERNEL_RESULTS), inputs


def _backward(tiling, memory, interpret, inputs, gradient):
  query, key, value, kernel, key_bias, value_kernel, value_bias = inputs
  pairs = (kernel, key_bias), (value_kernel, value_bias)
  matrices = functools.partial(_matrices, tiling)
  *maps, dkeys, dvalues = slide_kernels.backward(
    tiling,
    *(_laid_out(tiling, x) for x in (query, key, value, gradient)),
    (
      *(matrices(*pair, repeated=True) for pair in pairs),
      *(_turned(matrices(*pair)) for pair in pairs),
    ),
    jnp.asarray(_ones(tiling)[:, : tiling.logits], query.dtype),
    vmem_limit=memory,
    interpret=interpret,
  )
  parameters = []
  for pair, gradients in zip(pairs, (dkeys, dvalues), strict=True):
    # `_matrices` is linear: where it is taken makes no difference.
    wide = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in pair]
    pull = jax.linear_transpose(matrices, *wide)
    found = pull(_turned(gradients.sum(axis=1)))
    parameters += [x.astype(y.dtype) for x, y in zip(found, pair, strict=True)]
  return *(_laid_back(tiling, x) for x in maps), *parameters


_attention.defvjp(_forward, _backward)


def _laid_out(tiling, x):
  """Gives a map the order of axes that the kernels take."""
  return x.transpose(1, 2, 0, 3) if tiling.images > 1 else x


def _laid_back(tiling, x):
  """Inverts `_laid_out`."""
  return x.transpose(2, 0, 1, 3) if tiling.images > 1 else x


def _matrices(tiling, kernel, bias, repeated=False):
  """Makes the matrices from channels to logits, of each pixel and of the bias.

  Args:
    tiling: the layer's tiling.
    kernel: `[window, window, head_dim, shifts]`.
    bias: `[heads, head_dim, shifts]`.
    repeated: whether the logits of a head are there twice, all but the last,
      instead of once, before zeros.

  Returns:
    `[groups, shifts + 1, 128, logits]`.
  """
  groups, heads, shifts = tiling.groups, tiling.group_heads, tiling.shifts
  bias = jnp.pad(bias, ((0, groups * heads - tiling.heads), (0, 0), (0, 0)))
  bias = bias.reshape(groups, 1, tiling.lanes, shifts)
  kernel = jnp.tile(
    kernel.reshape(1, shifts, -1, shifts), (groups, 1, heads, 1)
  )
  x = jnp.concatenate([kernel, bias], axis=1)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, LANES - tiling.lanes), (0, 0)))
  # Ones that put a shift where its logits are, and those of a head's channels.
  shift = np.arange(tiling.head_logits)
  shift = np.where((shift < shifts) | repeated, shift % shifts, shifts)
  places = np.tile(np.eye(shifts + 1, shifts)[shift], (heads, 1)).T
  blocks = np.ones((tiling.head_dim, tiling.head_logits))
  blocks = np.kron(np.eye(heads), blocks)
  places, blocks = (
    np.pad(ones, [(0, n - m) for n, m in zip(shape, ones.shape, strict=True)])
    for ones, shape in (
      (places, (shifts, tiling.logits)),
      (blocks, (LANES, tiling.logits)),
    )
  )
  x = jnp.matmul(x, places.astype(x.dtype), precision=lax.Precision.HIGHEST)
  return x * blocks.astype(x.dtype)


def _turned(x):
  return jnp.swapaxes(x, -1, -2)


def _ones(tiling):
  """Returns the matrices that sum a head's logits, for each of its logits and
  for each of its channels: float32 `[logits, logits + 128]`."""
  once = np.arange(tiling.head_logits) < tiling.shifts
  heads = np.eye(tiling.group_heads)
  sums = [
    np.kron(heads, np.outer(once, np.ones(count)))
    for count in (tiling.head_logits, tiling.head_dim)
  ]
  found = np.zeros((tiling.logits, tiling.logits + LANES), np.float32)
  for x, first in zip(sums, (0, tiling.logits), strict=True):
    found[: x.shape[0], first : first + x.shape[1]] = x
  return found
