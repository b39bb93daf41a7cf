"""How much a training computes, and how much its devices could."""

import jax

from halonet.chips import find_chip
from halonet.cost import model as model_cost
from halonet.models.network import Network


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of a device in bfloat16, or None if it is not known here."""
  chip = find_chip(device)
  return chip.peak_flops if chip else None


def training_flops(model: Network, image_size: int) -> int:
  """FLOPs of a training step per image, by the usual count: 3 forward passes.

  A multiplication and an addition count as two. What is computed again to save
  memory does not count, nor what a form of the attention computes beyond the
  formula: it is no work of the model.
  """
  return 3 * model_cost.count(model.spec, image_size).flops
