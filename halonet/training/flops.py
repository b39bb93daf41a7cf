"""How much a training computes, and how much its devices could."""

import jax
import jax.numpy as jnp
from flax import linen as nn

# Peak FLOP/s of a device as JAX counts them (a core on v2 and v3, a chip
# later), dense, in bfloat16: from the makers' data sheets.
_PEAKS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of a device in bfloat16, or None if it is not known here."""
  kind = device.device_kind
  fitting = [name for name in _PEAKS if kind.startswith(name)]
  return _PEAKS[max(fitting, key=len)] if fitting else None


def training_flops(model: nn.Module, image_size: int) -> float | None:
  """FLOPs of a training step per image, by the usual count: 3 forward passes.

  None where JAX does not count them.

  A multiplication and an addition count as two. What is computed again to save
  memory does not count: it is no work of the model.
  """
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  lowered = jax.jit(model.apply).lower(variables, images)
  flops = (lowered.cost_analysis() or {}).get("flops")
  return 3 * flops if flops else None
