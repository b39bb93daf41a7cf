"""What a training step changes, and where it lives."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class TrainState(flax.struct.PyTreeNode):
  """The whole state of a training; a checkpoint holds just this.

  Attributes:
    step: optimizer steps done, an int32 scalar.
    params: parameters of the model, float32.
    batch_stats: running statistics of its batch norms, float32.
    opt_state: the optimizer's state.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """All devices in a row: the axis `data`, along which batches are split."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def make_init(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  image_size: int,
  mesh: Mesh,
) -> Callable[[jax.Array], TrainState]:
  """Compiles the drawing of a fresh state, on every device, from a key."""

  def init(key):
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3)))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=optimizer.init(variables["params"]),
    )

  return jax.jit(init, out_shardings=replicated(mesh))


def abstract_state(init: Callable[[jax.Array], TrainState], mesh: Mesh):
  """The shapes, dtypes and places of what `init` draws, without drawing."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    jax.eval_shape(init, jax.random.key(0)),
  )


def abstract_batch(
  batch_size: int, image_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shape of a global training batch, split over the mesh."""
  sharding = batch_sharding(mesh)
  image = (batch_size, image_size, image_size, 3)
  return {
    "image": jax.ShapeDtypeStruct(image, jnp.float32, sharding=sharding),
    "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=sharding),
  }
