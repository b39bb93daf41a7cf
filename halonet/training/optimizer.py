"""The optimizer and its learning rate."""

import jax
import ml_collections
import optax

# A config's learning rate is for this many images a step.
_REFERENCE_BATCH = 256


def peak_learning_rate(config: ml_collections.ConfigDict) -> float:
  """Returns the config's learning rate · batch size / 256.

  This is the linear scaling of "Accurate, Large Minibatch SGD", Goyal et al.,
  2017, section 2.1.
  """
  scale = config.batch_size / _REFERENCE_BATCH
  return config.optimizer.learning_rate * scale


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """Builds the schedule: a linear warm-up to the peak, then a cosine.

  The cosine ends at `optimizer.final_learning_rate_ratio` of the peak.

  Returns:
    A function from the number of steps done to the learning rate.
  """
  optimizer = config.optimizer
  peak = peak_learning_rate(config)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=peak,
    warmup_steps=optimizer.warmup_steps,
    decay_steps=config.steps,
    end_value=peak * optimizer.final_learning_rate_ratio,
  )


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """Builds the optimizer that a checked training config names.

  Gradients are clipped before anything else: neither weight decay nor momentum
  counts in the norm.
  """
  optimizer = config.optimizer
  schedule = make_schedule(config)
  steps = []
  if optimizer.clip_norm:
    steps.append(optax.clip_by_global_norm(optimizer.clip_norm))
  if optimizer.name == "adamw":
    steps.append(
      optax.adamw(
        schedule, weight_decay=optimizer.weight_decay, mask=is_decayed
      )
    )
  else:
    steps += [
      optax.add_decayed_weights(optimizer.weight_decay, mask=is_decayed),
      optax.sgd(schedule, momentum=optimizer.momentum, nesterov=True),
    ]
  return optax.chain(*steps)


def is_decayed(params: optax.Params) -> optax.Params:
  """Says which parameters decay: kernels, and no scales, biases or tables."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
