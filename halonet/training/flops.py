"""How much a training computes, and how much its devices could."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from halonet.chips import find_chip


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of a device in bfloat16, or None if it is not known here."""
  chip = find_chip(device)
  return chip.peak_flops if chip else None


def training_flops(model: nn.Module, image_size: int) -> float | None:
  """FLOPs of a training step per image, by the usual count: 3 forward passes.

  None where JAX does not count them.

  A multiplication and an addition count as two. What is computed again to save
  memory does not count: it is no work of the model.
  """
  # Other forms of the attention do more than the formula asks for, and kernels
  # are not counted.
  spec = dataclasses.replace(model.spec, attention_implementation="xla")
  model = model.clone(spec=spec)
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  lowered = jax.jit(model.apply).lower(variables, images)
  flops = (lowered.cost_analysis() or {}).get("flops")
  return 3 * flops if flops else None
