"""The form "pallas_tpu": fused kernels for TPUs."""

import dataclasses
import itertools

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from halonet.chips import CHIPS
from halonet.ops.forms.form import KERNEL_RESULTS, Form, Place, Shaped
from halonet.ops.forms.tpu.tiling import Tiling
from halonet.ops.neighbourhood import Neighbourhood


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
    if fit(query, value, layer, place) is None:
      return f"not even a block fits in the vector memory of {place.kind}"
    return None

  def attend(self, query, key, value, tables, layer, place):
    # Pallas takes long to import, and most machines have no TPU.
    from halonet.ops.forms.tpu.fused import fused_attention

    tiling = fit(query, value, layer, place)
    parts = query.shape[3] // tiling.heads
    arrays = [
      jnp.split(x.astype(place.kernel_dtype(x.dtype)), parts, axis=3)
      for x in (query, key, value)
    ]
    outputs = [
      fused_attention(
        *maps,
        tables,
        tiling,
        split=place.split,
        vmem_limit=place.vector_memory,
        interpret=place.platform != "tpu",
      )
      for maps in zip(*arrays, strict=True)
    ]
    output = jnp.concatenate(outputs, axis=3).astype(value.dtype)
    # Where kernels compute in float32, half of their output's size.
    return checkpoint_name(output, KERNEL_RESULTS)


def refuses_chip(place: Place) -> str | None:
  """Says that the kernels are not known to run on a TPU, or returns None."""
  if place.platform != "tpu" or place.vector_memory:
    return None
  served = [chip.kinds[-1] for chip in CHIPS if chip.vector_memory]
  return f"{place.kind} is not one of {', '.join(served)}"


def fit(
  query: Shaped, value: Shaped, layer: Neighbourhood, place: Place
) -> Tiling | None:
  """Finds a tiling that fits in vector memory.

  It keeps as many heads together as it can, then has the fewest panels, and
  then the fewest strips. Where that alone would ask for empty rows of blocks,
  there are up to twice as many strips, without padding.

  Args:
    query: as for `Form.refuses`.
    value: the same.
    layer: geometry of the layer.
    place: where it runs; interpreted kernels have no limit.

  Returns:
    The tiling, for all heads or for as many of them as fit; or None if not even
    a block of one head fits.
  """
  from halonet.ops.forms.tpu.fused import vector_memory

  memory, dtype = place.vector_memory, place.kernel_dtype(query.dtype)
  *_, heads, head_dim = query.shape
  counts = [n for n in range(heads, 0, -1) if heads % n == 0]
  cuts = range(1, layer.cols + 1), range(1, layer.rows + 1)
  for heads, panels, strips in itertools.product(counts, *cuts):
    tiling = Tiling(
      layer=layer,
      heads=heads,
      head_dim=head_dim,
      value_dim=value.shape[-1],
      strips=strips,
      panels=panels,
      wide=memory is not None and dtype == jnp.float32,
    )
    if memory is None:
      return tiling
    if vector_memory(tiling, dtype) <= memory:
      whole = dataclasses.replace(tiling, strips=_whole_strips(tiling))
      # More rows of a lower strip may be computed at a time.
      return whole if vector_memory(whole, dtype) <= memory else tiling
  return None


def _whole_strips(tiling):
  """Returns a number of strips without empty rows of blocks, if there is one
  and padding can be left out, which costs more than halos do."""
  layer, few = tiling.layer, tiling.strips
  if layer.height % layer.block_size or layer.width % layer.block_size:
    return few
  exact = (n for n in range(few, 2 * few + 1) if layer.rows % n == 0)
  return next(exact, few)
