"""Which implementation serves a layer, on which chip, and why not another.

What can be known while a program is traced decides: the chip is that of the
mesh in context (`jax.sharding.use_abstract_mesh`), which need not be one of
this machine, or else this process's default device. Where arrays are is not
known then.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from halonet.errors import UsageError
from halonet.ops.chunked import chunked_attention
from halonet.ops.folded import folded_attention
from halonet.ops.packed import packed_attention
from halonet.ops.pallas.geometry import Geometry

_XLA = {
  "xla": folded_attention,
  "xla_chunked": chunked_attention,
  "xla_packed": packed_attention,
}
IMPLEMENTATIONS = ("auto", *_XLA, "pallas_tpu")
_LOGGER = logging.getLogger(__name__)
_MIB = 1 << 20
# Vector memory of a core in bytes, by how JAX's device_kind begins; the longest
# that fits counts. Earlier chips take no bfloat16 operands.
_VECTOR_MEMORY = {
  "TPU v4": 16 * _MIB,
  "TPU v5 lite": 128 * _MIB,
  "TPU v5e": 128 * _MIB,
  "TPU v5": 64 * _MIB,
  "TPU v6": 128 * _MIB,
}


class Unserved(UsageError, ValueError):
  """The implementation that was asked for cannot serve a layer."""


def choose(
  implementation: str,
  geometry: Geometry,
  batch: int,
  dtypes: tuple[jnp.dtype, ...],
) -> tuple[str, Callable[..., jax.Array]]:
  """Finds what serves a layer.

  Args:
    implementation: one of `IMPLEMENTATIONS`.
    geometry: of the layer.
    batch: images, over all devices.
    dtypes: of query, key and value.

  Returns:
    The implementation's name, and a function of query, key, value and the two
    relative tables.

  Raises:
    ValueError: if there is no such implementation.
    Unserved: if "pallas_tpu" is asked for and cannot serve the layer.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation is {implementation!r}; it must be one of"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  if implementation in _XLA:
    return _xla(implementation, geometry)
  mesh = jax.sharding.get_abstract_mesh()
  kind, on_tpu = _device(mesh)
  if implementation == "auto":
    devices = jax.device_count() if mesh.empty else mesh.size
    if not on_tpu:
      # Devices that share a batch would wait for one another at every chunk.
      alone = kind == "cpu" and devices == 1
      name = "xla_chunked" if alone else "xla"
      _log(f"attention: {name}")
      return _xla(name, geometry)
    if mesh.empty and devices > 1:
      _log("attention: xla_packed (no mesh says which devices share a batch)")
      return _xla("xla_packed", geometry)
  from halonet.ops.pallas import local_attention as kernels

  axes = [
    name
    for name, axis in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if axis != AxisType.Manual and mesh.shape[name] > 1
  ]
  shares = 1
  for name in axes:
    shares *= mesh.shape[name]
  reason = _unserved(geometry, batch, dtypes, kind, on_tpu, shares)
  if reason is not None:
    if implementation == "auto":
      _log(f"attention: xla_packed, not pallas_tpu ({reason})", logging.WARNING)
      return _xla("xla_packed", geometry)
    raise Unserved(
      f"implementation is 'pallas_tpu', which cannot serve this: {reason};"
      " 'auto' falls back to XLA"
    )
  if on_tpu:
    geometry = _fitting(geometry, dtypes[0], kind)
    _log("attention: pallas_tpu")
  else:
    _log("attention: pallas_tpu, interpreted without a TPU, which is slow")
  options = dict(
    vmem_limit=_vector_memory(kind) if on_tpu else None, interpret=not on_tpu
  )

  def over_devices(kernel):
    if not axes:
      return kernel
    rows = PartitionSpec(tuple(axes))
    return jax.shard_map(
      kernel,
      in_specs=(rows, rows, rows, PartitionSpec()),
      out_specs=rows,
      check_vma=False,
    )

  return "pallas_tpu", functools.partial(
    kernels.local_attention, geometry, over_devices, **options
  )


def _xla(name, geometry):
  options = {
    field: getattr(geometry, field)
    for field in (
      "block_size",
      "halo_size",
      "stride",
      "mask_padding",
      "mask_window",
      "relative_stride",
    )
  }
  return name, functools.partial(_XLA[name], **options)


def _device(mesh):
  """The kind of the device that will run this, and whether it is a TPU."""
  device = None if mesh.empty else mesh.abstract_device
  if device is None:
    device = jax.config.jax_default_device or jax.devices()[0]
  if isinstance(device, str):  # A platform.
    device = jax.devices(device)[0]
  return device.device_kind, device.device_kind.startswith("TPU")


def _vector_memory(kind):
  fitting = [name for name in _VECTOR_MEMORY if kind.startswith(name)]
  return _VECTOR_MEMORY[max(fitting, key=len)] if fitting else None


def _unserved(geometry, batch, dtypes, kind, on_tpu, shares):
  """Why the kernels cannot serve a layer, or None."""
  if batch % shares:
    return f"a batch of {batch} does not split over {shares} devices"
  if len(set(dtypes)) > 1:
    return "query, key and value are not of one dtype"
  if not on_tpu:  # Any size, and any dtype that sums in float32.
    if dtypes[0] in (jnp.float32, jnp.bfloat16):
      return None
    return f"it takes float32 or bfloat16, not {dtypes[0]}"
  available = _vector_memory(kind)
  if available is None:
    return f"{kind} is not TPU v4, v5e, v5p or v6e"
  if dtypes[0] != jnp.bfloat16:
    return f"it takes bfloat16, not {dtypes[0]}"
  if geometry.head_dim % 8 or geometry.value_dim % 8:
    return (
      f"heads are {geometry.head_dim} and {geometry.value_dim} wide, not"
      " multiples of 8"
    )
  if _fitting(geometry, dtypes[0], kind) is None:
    return f"not even a row of blocks fits in the vector memory of {kind}"
  return None


def _fitting(geometry, dtype, kind):
  """The geometry with as few strips as vector memory asks for, or None."""
  from halonet.ops.pallas import local_attention as kernels

  for strips in range(1, geometry.rows + 1):
    cut = dataclasses.replace(geometry, strips=strips)
    if kernels.vector_memory(cut, dtype) <= _vector_memory(kind):
      return cut
  return None


@functools.cache
def _log(message, level=logging.INFO):
  """Logs every message once."""
  _LOGGER.log(level, message)
