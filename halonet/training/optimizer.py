"""The optimizer and its learning rate."""

import jax
import ml_collections
import optax


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Linear warm-up from zero to the learning rate, then a cosine to zero."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.optimizer.learning_rate,
    warmup_steps=config.optimizer.warmup_steps,
    decay_steps=config.steps,
  )


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """Builds the optimizer that a checked training config names."""
  optimizer = config.optimizer
  schedule = make_schedule(config)
  if optimizer.name == "adamw":
    return optax.adamw(
      schedule, weight_decay=optimizer.weight_decay, mask=is_decayed
    )
  return optax.chain(
    optax.add_decayed_weights(optimizer.weight_decay, mask=is_decayed),
    optax.sgd(schedule, momentum=optimizer.momentum, nesterov=True),
  )


def is_decayed(params: optax.Params) -> optax.Params:
  """Which parameters weight decay is for: the kernels.

  Norms' scales, biases and relative tables are left alone.
  """
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
