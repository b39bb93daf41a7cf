"""Counts what training computes, and what its devices could."""

import jax
from flax import linen as nn

from halonet.chips import find_chip
from halonet.cost import model as model_cost


def peak_flops(device: jax.Device) -> float | None:
  """Returns a device's peak FLOP/s in bfloat16, or None if unknown."""
  chip = find_chip(device)
  return chip.peak_flops if chip else None


def training_flops(model: nn.Module, image_size: int) -> int | None:
  """Returns FLOPs of a training step per image: 3 forward passes, as usual.

  A multiplication and an addition count as two. Work that is repeated to save
  memory does not count. None if the FLOPs are unknown.
  """
  forward = model_cost.forward_flops(model, image_size)
  return None if forward is None else 3 * forward
