"""What a training step changes, and where it lives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh

from halonet.parallel import batch_sharding, replicated


class TrainState(flax.struct.PyTreeNode):
  """The whole state of a training; a checkpoint holds just this.

  Attributes:
    step: optimizer steps done, an int32 scalar.
    params: parameters of the model, float32.
    batch_stats: running statistics of its batch norms, float32.
    opt_state: the optimizer's state.
    ema: moving averages of `params` and `batch_stats`, under these names, as
      `moving_average` makes them; None if the config asks for none.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  ema: dict[str, Any] | None = None


def make_init(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  image_size: int,
  mesh: Mesh,
  *,
  ema: bool,
) -> Callable[[int], TrainState]:
  """Compiles the drawing of a fresh state, on every device, from a seed.

  With `ema`, it has moving averages, which begin at the fresh values.
  """
  # Any form of the attention has these parameters; this one serves an image.
  spec = dataclasses.replace(model.spec, attention_implementation="xla")
  model = model.clone(spec=spec)

  def init(seed):
    # The key is made inside: every process passes the same number.
    key = jax.random.key(seed)
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=optimizer.init(params),
      ema={"params": params, "batch_stats": batch_stats} if ema else None,
    )

  return jax.jit(init, out_shardings=replicated(mesh))


def abstract_state(init: Callable[[int], TrainState], mesh: Mesh):
  """The shapes, dtypes and places of what `init` draws, without drawing."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    jax.eval_shape(init, 0),
  )


def moving_average(average: Any, now: Any, step: jax.Array, decay: float):
  """Moves an exponential moving average towards what it is of, in float32.

  The decay after `step` steps, this one included, is min(`decay`, (1 + step) /
  (10 + step)): young averages follow closely, so that the initial values are
  soon forgotten. So does `tf.train.ExponentialMovingAverage` when it is told
  `num_updates`.
  """
  step = step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, x: a + (1 - decay) * (x - a), average, now)


def abstract_batch(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shape of a global training batch, split over the mesh.

  Of b rows and images of side s, it has
    image: float32 or bfloat16 `[b, s, s, 3]`, normalised;
    label: int32 `[b]`;
  if images are mixed, as `halonet.training.mixing.mix` takes them,
    mix_share: float32 `[b]`;
    mix_box: int32 `[b, 4]`;
  and if corrupt images are skipped,
    weight: float32 `[b]`, 0 in place of a corrupt image and 1 elsewhere.
  """
  data = config.data
  shapes = {
    "image": ((data.image_size, data.image_size, 3), data.image_dtype),
    "label": ((), "int32"),
  }
  if data.mixup > 0 or data.cutmix > 0:
    shapes |= {"mix_share": ((), "float32"), "mix_box": ((4,), "int32")}
  if data.skip_corrupt:
    shapes["weight"] = ((), "float32")
  return {
    name: jax.ShapeDtypeStruct(
      (config.batch_size, *shape), dtype, sharding=batch_sharding(mesh)
    )
    for name, (shape, dtype) in shapes.items()
  }
