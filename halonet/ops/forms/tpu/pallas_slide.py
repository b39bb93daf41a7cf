"""The form "pallas_tpu" of slide attention: fused kernels for TPUs."""

import jax
import jax.numpy as jnp

from halonet.ops.forms.form import Place, Shaped
from halonet.ops.forms.tpu.pallas_tpu import refuses_chip
from halonet.ops.forms.tpu.slide_tiling import fit

_WINDOW = 5  # Kernels are as long as a window has pixels.


def refuses(
  query: Shaped, key: Shaped, value: Shaped, window_size: int, place: Place
) -> str | None:
  """Says why the kernels cannot serve a layer, or returns None."""
  dtype = query.dtype
  kernel_dtype = place.kernel_dtype(dtype)
  reason = place.refuses_kernels(query, key, value) or refuses_chip(place)
  if reason is not None:
    return reason
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"it takes float32 or bfloat16, not {dtype}"
  if window_size > _WINDOW:
    return f"it takes windows of up to {_WINDOW} pixels, not {window_size}"
  if fit(query.shape, window_size, kernel_dtype, None) is None:
    return (
      f"heads are {query.shape[-1]} wide, which does not divide 128, and all"
      " heads together are wider"
    )
  if fit(query.shape, window_size, kernel_dtype, place.vector_memory) is None:
    return f"the map does not fit in the vector memory of {place.kind}"
  return None


def attend(*arrays: jax.Array) -> jax.Array:
  """Computes what the forms of `halonet.ops.shifted` do, by the kernels."""
  # Pallas takes long to import, and most machines have no TPU.
  from halonet.ops.forms.tpu.slide_fused import slide_fused

  place, dtype = Place.current(), arrays[0].dtype
  kernel_dtype = place.kernel_dtype(dtype)
  return slide_fused(
    *(x.astype(kernel_dtype) for x in arrays),
    split=place.split,
    memory=place.vector_memory,
    interpret=place.platform != "tpu",
  ).astype(dtype)
