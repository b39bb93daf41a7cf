"""The training step and the evaluation step, compiled over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from halonet.parallel import DATA, batch_sharding, replicated
from halonet.tasks.task import Task
from halonet.training.state import TrainState, moving_average

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
  model: nn.Module,
  task: Task,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Compiles one step of gradient descent.

  The step takes a state (and consumes it) and a global batch, split along
  `data`, as `task.batch_spec` describes it. It returns the next state and
  metrics: `loss`, the task's own, and the `gradient_norm` before clipping. If
  the batch has weights, it also counts the `skipped` rows of weight 0.

  With one part (`config.accumulation_steps`) the result does not depend on the
  number of devices. What is dropped at random follows from the seed and the
  state's step, and with more parts also from the part and the device. All
  parts begin with the same collections (running statistics of batch norms),
  whose updates are averaged. Batch norms over the whole batch do not reach
  beyond a part; those over groups that divide a part are not affected by it.
  """
  key = jax.random.key(config.seed)

  def loss_of(params, collections, rows, key):
    outputs, updates = model.apply(
      {"params": params, **collections},
      rows["image"],
      train=True,
      mutable=list(collections),
      rngs={"dropout": key},
    )
    loss, metrics = task.loss(outputs, rows)
    return loss, (metrics, {name: updates[name] for name in collections})

  gradients_of = jax.value_and_grad(loss_of, has_aux=True)
  if config.accumulation_steps > 1:
    gradients_of = _in_parts(gradients_of, config.accumulation_steps, mesh)

  def train_step(state, batch):
    rows = task.prepare(batch)
    # Attention reads in the mesh which chip and how many devices there are.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      (loss, (metrics, collections)), gradients = gradients_of(
        state.params,
        state.collections,
        rows,
        jax.random.fold_in(key, state.step),
      )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    state = TrainState(
      state.step + 1, params, collections, opt_state, state.ema
    )
    if state.ema is not None:
      ema = moving_average(
        state.ema, state.variables, state.step, config.ema_decay
      )
      state = state.replace(ema=ema)
    metrics = {
      "loss": loss,
      **metrics,
      "gradient_norm": optax.tree.norm(gradients),
    }
    if "weight" in batch:
      metrics["skipped"] = (batch["weight"] == 0).sum()
    return state, metrics

  return jax.jit(
    train_step,
    in_shardings=(replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
    donate_argnums=0,
  )


def _in_parts(gradients_of, parts, mesh):
  """Makes `gradients_of` add up over parts of each device's rows, in turn.

  Every device works through its own rows, with sums of its own, so that rows
  never move and the one reduction over devices comes after the last part.
  """

  def on_device(params, collections, rows, key):
    def part(number, rows):
      device = jax.lax.axis_index(DATA)
      folded = jax.random.fold_in(jax.random.fold_in(key, number), device)
      return gradients_of(params, collections, rows, folded)

    def add(sums, item):
      return jax.tree.map(jnp.add, sums, part(*item)), None

    rows = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
    shapes = jax.eval_shape(part, 0, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), rows))
    (loss, (metrics, collections)), gradients = jax.lax.psum(sums, DATA)
    count = parts * mesh.shape[DATA]
    collections = jax.tree.map(
      lambda x: (x / count).astype(x.dtype), collections
    )
    return (loss, (metrics, collections)), gradients

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(
      PartitionSpec(),
      PartitionSpec(),
      PartitionSpec(DATA),
      PartitionSpec(),
    ),
    out_specs=PartitionSpec(),
    check_vma=False,
  )


def make_eval_step(
  model: nn.Module, task: Task, mesh: Mesh
) -> Callable[[dict[str, Any], Batch], tuple[Metrics, Any]]:
  """Compiles the evaluation of one global batch.

  The step takes the model's variables and a batch. It returns the number of
  `images` of weight 1 and of `skipped` ones, and what `task.measure` says, on
  every device.
  """

  def eval_step(variables, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      outputs = model.apply(variables, batch["image"], train=False)
    counts = {"images": batch["weight"].sum()}
    if "skipped" in batch:
      counts["skipped"] = batch["skipped"].sum()
    return counts, task.measure(outputs, batch)

  return jax.jit(
    eval_step,
    in_shardings=(replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
  )
