"""The form "pallas_tpu": fused kernels for TPUs."""

import jax.numpy as jnp

from halonet.chips import CHIPS
from halonet.ops.forms.form import Form, Place
from halonet.ops.forms.tpu.tiling import Tiling


class PallasTpu(Form):
  """Fused TPU kernels, interpreted elsewhere. It has reverse mode only."""

  name = "pallas_tpu"
  kernels_for = "tpu"

  def refuses(self, query, value, layer, place):
    dtype = query.dtype
    if place.platform != "tpu":  # Interpreted: any size.
      if dtype not in (jnp.float32, jnp.bfloat16):
        return f"it takes float32 or bfloat16, not {dtype}"
      return None
    reason = refuses_chip(place)
    if reason is not None:
      return reason
    if dtype != jnp.bfloat16:
      return f"it takes bfloat16, not {dtype}"
    widths = query.shape[-1], value.shape[-1]
    if any(width % 8 for width in widths):
      return f"heads are {widths[0]} and {widths[1]} wide, not multiples of 8"
    if fit(query, value, layer, place.vector_memory) is None:
      return (
        f"not even a row of blocks fits in the vector memory of {place.kind}"
      )
    return None

  def attend(self, query, key, value, tables, layer, place):
    # Pallas takes long to import, and most machines have no TPU.
    from halonet.ops.forms.tpu.fused import fused_attention

    return fused_attention(
      query,
      key,
      value,
      tables,
      fit(query, value, layer, place.vector_memory),
      split=place.split,
      vmem_limit=place.vector_memory,
      interpret=place.platform != "tpu",
    )


def refuses_chip(place: Place) -> str | None:
  """Says that the kernels are not known to run on a TPU, or returns None."""
  if place.platform != "tpu" or place.vector_memory:
    return None
  served = [chip.kinds[-1] for chip in CHIPS if chip.vector_memory]
  return f"{place.kind} is not one of {', '.join(served)}"


def fit(query, value, layer, memory: int | None) -> Tiling | None:
  """Finds the tiling with the fewest strips that fits in vector memory.

  Args:
    query: as for `Form.refuses`.
    value: the same.
    layer: geometry of the layer.
    memory: bytes of vector memory; None if there is no limit.

  Returns:
    The tiling, or None if not even strips of one row of blocks fit.
  """
  from halonet.ops.forms.tpu.fused import vector_memory

  *_, heads, head_dim = query.shape
  for strips in range(1, layer.rows + 1):
    tiling = Tiling(
      layer=layer,
      heads=heads,
      head_dim=head_dim,
      value_dim=value.shape[-1],
      strips=strips,
    )
    if memory is None or vector_memory(tiling, query.dtype) <= memory:
      return tiling
  return None
