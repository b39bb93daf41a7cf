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
from halonet.training.mixing import mix
from halonet.training.state import TrainState, moving_average

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Compiles one step of gradient descent.

  The step takes a state (and consumes it) and a global batch, split along
  `data`, as `halonet.training.state.abstract_batch` describes it. It returns
  the next state and, as means over the batch, `loss` and `accuracy` (in the
  label of the image itself, mixed or not), and the `gradient_norm` before
  clipping.

  A batch with `weight` counts its rows by it, in the loss and in the metrics,
  and its `skipped` rows of weight 0; if it has no others, the gradient is zero.
  No row is mixed with one of weight 0. (Such rows do take part in the
  statistics of batch norms.)

  With one part (`config.accumulation_steps`) the result does not depend on the
  number of devices. What is dropped at random follows from the seed and the
  state's step, and with more parts also from the part and the device. All
  parts begin with the same running statistics of batch norms, whose updates
  are averaged. As the statistics of a group of examples are those that it has
  in the large batch, so is the result, for groups that divide a part: batch
  norms over the whole batch do not reach beyond a part.
  """
  key = jax.random.key(config.seed)

  def loss_of(params, batch_stats, batch, key):
    logits, updates = model.apply(
      {"params": params, "batch_stats": batch_stats},
      batch["image"],
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    targets = optax.smooth_labels(batch["target"], config.label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    correct = logits.argmax(-1) == batch["label"]
    loss = (batch["weight"] * losses).sum()
    accuracy = (batch["weight"] * correct).sum()
    return loss, (accuracy, updates["batch_stats"])

  gradients_of = jax.value_and_grad(loss_of, has_aux=True)
  if config.accumulation_steps > 1:
    gradients_of = _in_parts(gradients_of, config.accumulation_steps, mesh)

  def train_step(state, batch):
    rows = _prepare(batch, model.spec.num_classes)
    # Attention reads in the mesh which chip and how many devices there are.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      (loss, (accuracy, batch_stats)), gradients = gradients_of(
        state.params,
        state.batch_stats,
        rows,
        jax.random.fold_in(key, state.step),
      )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = state.ema
    if ema is not None:
      now = {"params": params, "batch_stats": batch_stats}
      ema = moving_average(ema, now, step, config.ema_decay)
    state = TrainState(step, params, batch_stats, opt_state, ema)
    metrics = {
      "loss": loss,
      "accuracy": accuracy,
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


def _prepare(batch, num_classes):
  """Rows of `image`, `label`, `target` and `weight`; the weights' sum is 1."""
  image, label = batch["image"], batch["label"]
  target = jax.nn.one_hot(label, num_classes)
  weight = batch.get("weight", jnp.ones(label.shape))
  if "mix_share" in batch:
    mixed = mix(image, target, batch["mix_share"], batch["mix_box"])
    whole = (weight > 0).reshape(-1, 2).all(1, keepdims=True)
    whole = jnp.broadcast_to(whole, (len(whole), 2)).reshape(-1)
    image = jnp.where(whole[:, None, None, None], mixed[0], image)
    target = jnp.where(whole[:, None], mixed[1], target)
  total = weight.sum()
  weight = weight / jnp.where(total > 0, total, 1.0)
  return {"image": image, "label": label, "target": target, "weight": weight}


def _in_parts(gradients_of, parts, mesh):
  """Makes `gradients_of` add up over parts of each device's rows, in turn.

  Every device works through its own rows, with sums of its own, so that rows
  never move and the one reduction over devices comes after the last part.
  """

  def on_device(params, batch_stats, rows, key):
    def part(number, rows):
      device = jax.lax.axis_index(DATA)
      folded = jax.random.fold_in(jax.random.fold_in(key, number), device)
      return gradients_of(params, batch_stats, rows, folded)

    def add(sums, item):
      return jax.tree.map(jnp.add, sums, part(*item)), None

    rows = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
    shapes = jax.eval_shape(part, 0, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), rows))
    (loss, (accuracy, batch_stats)), gradients = jax.lax.psum(sums, DATA)
    batch_stats = jax.tree.map(lambda x: x / (parts * mesh.size), batch_stats)
    return (loss, (accuracy, batch_stats)), gradients

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
  model: nn.Module, mesh: Mesh
) -> Callable[[Any, Any, Batch], Metrics]:
  """Compiles the evaluation of one global batch.

  The step takes parameters, batch-norm statistics, and a batch of `image`,
  `label` and `weight`. It returns sums over the images of weight 1: `images`,
  `correct` and `loss` (cross-entropy without label smoothing, in nats); and,
  for a batch that has them, the sum of `skipped`.
  """

  def eval_step(params, batch_stats, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      logits = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch["image"],
        train=False,
      )
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    )
    correct = logits.argmax(-1) == batch["label"]
    weight = batch["weight"]
    sums = {
      "images": weight.sum(),
      "correct": (weight * correct).sum(),
      # A filler may have any loss, also an infinite one.
      "loss": jnp.where(weight > 0, loss, 0.0).sum(),
    }
    if "skipped" in batch:
      sums["skipped"] = batch["skipped"].sum()
    return sums

  return jax.jit(
    eval_step,
    in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
  )
