"""What a training step changes, and where it lives."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh

from halonet.ops import dispatch
from halonet.parallel import batch_sharding, replicated
from halonet.tasks.task import Task

# Collections that a module may fill when it is initialised, and that are no
# state: what layers report of one call.
_REPORTS = ("intermediates", "attention")


class TrainState(flax.struct.PyTreeNode):
  """The whole state of a training; a checkpoint holds just this.

  Attributes:
    step: optimizer steps done, an int32 scalar.
    params: parameters of the model, float32.
    collections: the model's other collections of variables, by name, such as
      the `batch_stats` of batch norms; {} if it has none.
    opt_state: the optimizer's state.
    ema: moving averages of all variables, in the structure of `variables`;
      None if the config asks for none.
  """

  step: jax.Array
  params: Any
  collections: dict[str, Any]
  opt_state: optax.OptState
  ema: dict[str, Any] | None = None

  @property
  def variables(self) -> dict[str, Any]:
    """Variables as `model.apply` takes them."""
    return {"params": self.params, **self.collections}


def make_init(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> Callable[[int], TrainState]:
  """Compiles a function that draws a fresh state, on every device, from a seed.

  Moving averages begin at the fresh values.
  """
  size = config.data.image_size

  def init(seed):
    # The key is made inside: every process passes the same number.
    key = jax.random.key(seed)
    # Every form of the attention has these parameters; this one serves a
    # single image.
    with dispatch.implementation("xla"):
      variables = dict(model.init(key, jnp.zeros((1, size, size, 3))))
    variables = {
      name: values for name, values in variables.items() if name not in _REPORTS
    }
    params = variables["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      collections={
        name: variables[name] for name in variables if name != "params"
      },
      opt_state=optimizer.init(params),
      ema=variables if config.ema_decay > 0 else None,
    )

  return jax.jit(init, out_shardings=replicated(mesh))


def abstract_state(init: Callable[[int], TrainState], mesh: Mesh) -> TrainState:
  """Returns shapes, dtypes and places of what `init` draws."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    jax.eval_shape(init, 0),
  )


def moving_average(
  average: Any, now: Any, step: jax.Array, decay: float
) -> Any:
  """Moves exponential moving averages towards the present values.

  The decay after `step` steps, this one included, is min(`decay`, (1 + step) /
  (10 + step)): young averages follow closely, so that the initial values are
  soon forgotten. So does `tf.train.ExponentialMovingAverage` when it is told
  `num_updates`. Whole numbers, such as counters, are not averaged.
  """
  step = step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))

  def move(a, x):
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return a + (1 - decay) * (x - a)

  return jax.tree.map(move, average, now)


def abstract_batch(
  task: Task, mesh: Mesh, *, train: bool = True
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a global batch, split over the mesh.

  `task.batch_spec` says what it holds. An evaluation batch has as many rows as
  a training step computes at once.
  """
  config = task.config
  rows = config.batch_size // (1 if train else config.accumulation_steps)
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *shape), dtype, sharding=batch_sharding(mesh)
    )
    for name, (shape, dtype) in task.batch_spec(train).items()
  }
