"""The form "pallas_gpu": fused kernels for GPUs."""

import functools
import importlib.util

import jax
import jax.numpy as jnp

from halonet.ops.forms import folded
from halonet.ops.forms.form import Form

# A wider array would not stay in a multiprocessor's registers.
_WIDEST = 256


class PallasGpu(Form):
  """Fused GPU kernels, interpreted elsewhere. It has reverse mode only.

  No GPU has run them yet: they are tested interpreted, and lowered for CUDA.
  JAX deprecates Pallas' dialect for Triton from 0.11 on.
  """

  name = "pallas_gpu"
  kernels_for = "gpu"

  def suits(self, place):
    return False  # Its speed has not been measured on a GPU.

  def refuses(self, query, value, layer, place):
    if query.dtype not in (jnp.float32, jnp.bfloat16):
      return f"it takes float32 or bfloat16, not {query.dtype}"
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
      return f"JAX {jax.__version__} has no Triton dialect of Pallas any more"
    for name, width in (
      ("a query with its relative logits", query.shape[-1] + 2 * layer.window),
      ("a value", value.shape[-1]),
    ):
      if width > _WIDEST:
        return f"{name} takes {width} numbers, more than {_WIDEST}"
    return None

  def attend(self, query, key, value, tables, layer, place):
    # The dialect warns when it is imported, and may be gone.
    from halonet.ops.forms.gpu.flash import attention

    tables = tables.spanning(-layer.farthest, layer.farthest)
    queries = folded.extended_queries(query, tables, layer)
    interpret = place.platform != "gpu"
    kernel = functools.partial(attention, layer, interpret)
    return place.split(kernel)(queries, key, value)
