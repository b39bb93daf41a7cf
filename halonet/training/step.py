"""The training step and the evaluation step, compiled over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from halonet.training.state import TrainState, batch_sharding, replicated

Metrics = dict[str, jax.Array]


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  label_smoothing: float,
  seed: int,
  mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
  """Compiles one step of gradient descent.

  The step takes a state (and consumes it) and a global batch of `image` and
  `label`, split along `data`, and returns the next state and the batch's
  `loss`, `accuracy` and `gradient_norm`. Batch norms see the whole global
  batch, so the result does not depend on the number of devices. What is
  dropped at random follows from the seed and the state's step.
  """

  def loss_of(params, state, batch):
    logits, updates = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      batch["image"],
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.fold_in(jax.random.key(seed), state.step)},
    )
    targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
    targets = optax.smooth_labels(targets, label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (logits, updates["batch_stats"])

  def train_step(state, batch):
    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(state.params, state, batch)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    metrics = {
      "loss": loss,
      "accuracy": (logits.argmax(-1) == batch["label"]).mean(),
      "gradient_norm": optax.tree.norm(gradients),
    }
    return state, metrics

  return jax.jit(
    train_step,
    in_shardings=(replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
    donate_argnums=0,
  )


def make_eval_step(
  model: nn.Module, mesh: Mesh
) -> Callable[[Any, Any, dict[str, jax.Array]], Metrics]:
  """Compiles the evaluation of one global batch.

  The step takes parameters, batch-norm statistics, and a batch of `image`,
  `label` and `weight`. It returns sums over the images of weight 1: `images`,
  `correct` and `loss` (cross-entropy without label smoothing, in nats).
  """

  def eval_step(params, batch_stats, batch):
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
    return {
      "images": weight.sum(),
      "correct": (weight * correct).sum(),
      # A filler may have any loss, also an infinite one.
      "loss": jnp.where(weight > 0, loss, 0.0).sum(),
    }

  return jax.jit(
    eval_step,
    in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
  )
