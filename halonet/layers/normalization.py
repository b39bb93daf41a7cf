"""Batch normalisation whose statistics may be those of groups of examples.

Flax's own takes the whole batch, which spans all devices under `jax.jit`: the
statistics are then communicated in every layer, forwards and backwards. The
papers' recipes come from an age when each core normalised by what it held, and
the smaller sample is a regulariser that their results include. Here the sample
is a number of the configuration, not of the machine.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# The name by which a rematerialisation policy can keep the statistics, which
# are small, and of the whole batch are dear to communicate a second time.
STATISTICS = "batch_norm_statistics"


class BatchNorm(nn.Module):
  """Normalises every channel over examples and pixels.

  "Batch Normalization", Ioffe and Szegedy, ICML 2015; groups as in "Accurate,
  Large Minibatch SGD", Goyal et al., 2017, section 3.1. Parameters `scale` and
  `bias`, and `mean` and `var` in the collection `batch_stats`, are those of
  `flax.linen.BatchNorm`, as is the result where `group` is 0.

  In training, `[batch, …]` is taken as `[batch/group, group, …]`, and each row
  is normalised by its own mean and (biased) variance. The running statistics
  move towards the means over the rows of both. A group is of neighbours in the
  batch: it lies within one device if `group` divides the device's share, and
  normalisation then needs no communication, only the running statistics do.

  The variance is E[(x − s)²] − (E[x − s])², which takes one pass over memory as
  E[x²] − (E[x])² does, but cancels no digits where s is near the mean; s is the
  running mean.

  Attributes:
    use_running_average: normalises by the running statistics.
    group: examples over which statistics are taken; 0: the whole batch.
    momentum: share of the running statistics that a step keeps.
    epsilon: added to the variance.
    dtype: of the result; parameters are float32, and so are the statistics
      unless `dtype` is wider.
    scale_init: draws `scale`.
  """

  use_running_average: bool
  group: int = 0
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: Float[Array, "b *pixels c"]
  ) -> Float[Array, "b *pixels c"]:
    """Maps `[batch, …, channels]` to the same shape, in `dtype`.

    The running statistics are updated if their collection is mutable.

    Raises:
      ValueError: in training, if `group` does not divide the batch.
    """
    shape = x.shape[-1:]
    kind = (shape, jnp.float32)
    scale = self.param("scale", self.scale_init, *kind)
    bias = self.param("bias", nn.initializers.zeros, *kind)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, *kind)
    running_var = self.variable("batch_stats", "var", jnp.ones, *kind)
    y = x.astype(jnp.promote_types(self.dtype, jnp.float32))

    if self.use_running_average:
      mean, var = running_mean.value, running_var.value
    else:
      y = self._split(y)
      axes = tuple(range(1, y.ndim - 1))
      shift = running_mean.value
      shifted = y - shift
      offset = shifted.mean(axes, keepdims=True)
      var = lax.square(shifted).mean(axes, keepdims=True) - lax.square(offset)
      var = jnp.maximum(var, 0)  # Rounding may leave it below.
      mean = checkpoint_name(shift + offset, STATISTICS)
      var = checkpoint_name(var, STATISTICS)
      if (
        self.is_mutable_collection("batch_stats") and not self.is_initializing()
      ):
        for running, now in ((running_mean, mean), (running_var, var)):
          now = now.reshape(-1, *shape).mean(axis=0)
          now = self.momentum * running.value + (1 - self.momentum) * now
          running.value = now.astype(running.value.dtype)

    y = (y - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.reshape(x.shape).astype(self.dtype)

  def _split(self, x):
    """`[batch, …]` → `[batch/group, group, …]`."""
    batch = x.shape[0]
    # A model is initialised with a single example.
    group = batch if self.is_initializing() else self.group or batch
    if batch % group:
      raise ValueError(
        f"batch_norm_group is {group}, which does not divide the batch of"
        f" {batch} examples"
      )
    return x.reshape(batch // group, group, *x.shape[1:])
