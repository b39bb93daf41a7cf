"""Which implementation serves a layer, on which chip, and why not another.

What can be known while a program is traced decides: the chip is that of the
mesh in context (`jax.sharding.use_abstract_mesh`), which need not be one of
this machine, or else this process's default device. Where arrays are is not
known then.
"""

import dataclasses
import functools
import importlib.util
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
IMPLEMENTATIONS = ("auto", *_XLA, "pallas_tpu", "pallas_gpu")
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
    Unserved: if kernels are asked for and cannot serve the layer.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation is {implementation!r}; it must be one of"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  if implementation in _XLA:
    return _xla(implementation, geometry)
  mesh = jax.sharding.get_abstract_mesh()
  kind, on_tpu, on_gpu = _device(mesh)
  if implementation == "auto":
    devices = jax.device_count() if mesh.empty else mesh.size
    if not on_tpu:
      # On GPUs as well: "pallas_gpu" has not run on one, and its speed there
      # has not been measured against this.
      # Devices that share a batch would wait for one another at every chunk.
      alone = kind == "cpu" and devices == 1
      name = "xla_chunked" if alone else "xla"
      _log(f"attention: {name}")
      return _xla(name, geometry)
    if mesh.empty and devices > 1:
      _log("attention: xla_packed (no mesh says which devices share a batch)")
      return _xla("xla_packed", geometry)
  axes = [
    name
    for name, axis in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if axis != AxisType.Manual and mesh.shape[name] > 1
  ]
  shares = 1
  for name in axes:
    shares *= mesh.shape[name]
  name = "pallas_tpu" if implementation == "auto" else implementation
  native = on_tpu if name == "pallas_tpu" else on_gpu
  reason = _unserved(name, geometry, batch, dtypes, kind, native, shares)
  if reason is not None:
    if implementation == "auto":
      _log(f"attention: xla_packed, not pallas_tpu ({reason})", logging.WARNING)
      return _xla("xla_packed", geometry)
    raise Unserved(
      f"implementation is {name!r}, which cannot serve this: {reason};"
      " 'auto' falls back to XLA"
    )
  if native:
    _log(f"attention: {name}")
  else:
    chip = name.removeprefix("pallas_").upper()
    _log(f"attention: {name}, interpreted without a {chip}, which is slow")
  over_devices = functools.partial(_over_devices, axes)
  if name == "pallas_gpu":
    from halonet.ops.pallas import gpu

    attend = functools.partial(gpu.local_attention, geometry, over_devices)
  else:
    from halonet.ops.pallas import local_attention as kernels

    attend = functools.partial(
      kernels.local_attention,
      _fitting(geometry, dtypes[0], kind) if native else geometry,
      over_devices,
      vmem_limit=_vector_memory(kind) if native else None,
    )
  return name, functools.partial(attend, interpret=not native)


def _over_devices(axes, kernel):
  """Calls `kernel` on every device of the mesh for its part of the batch.

  The batch is that of its first three arguments; what comes after them goes to
  every device as it is.
  """
  if not axes:
    return kernel
  rows = PartitionSpec(tuple(axes))

  def call(*arrays):
    specs = [rows] * 3 + [PartitionSpec()] * (len(arrays) - 3)
    return jax.shard_map(
      kernel, in_specs=tuple(specs), out_specs=rows, check_vma=False
    )(*arrays)

  return call


def _xla(name, geometry):
  options = {
    field: getattr(geometry, field)
    for field in (
      "block_size",
      "halo_size",
      "stride",
      "mask_padding",
      "reach",
      "relative_stride",
    )
  }
  return name, functools.partial(_XLA[name], **options)


def _device(mesh):
  """The kind of the device that will run this, whether a TPU, whether a GPU."""
  device = None if mesh.empty else mesh.abstract_device
  if device is None:
    device = jax.config.jax_default_device or jax.devices()[0]
  if isinstance(device, str):  # A platform.
    device = jax.devices(device)[0]
  kind = device.device_kind
  return kind, kind.startswith("TPU"), device.platform == "gpu"


def _vector_memory(kind):
  fitting = [name for name in _VECTOR_MEMORY if kind.startswith(name)]
  return _VECTOR_MEMORY[max(fitting, key=len)] if fitting else None


def _unserved(name, geometry, batch, dtypes, kind, native, shares):
  """Why the kernels of that name cannot serve a layer, or None."""
  if batch % shares:
    return f"a batch of {batch} does not split over {shares} devices"
  if len(set(dtypes)) > 1:
    return "query, key and value are not of one dtype"
  if name == "pallas_tpu" and native:
    return _unserved_by_tpu(geometry, dtypes[0], kind)
  if dtypes[0] not in (jnp.float32, jnp.bfloat16):
    return f"it takes float32 or bfloat16, not {dtypes[0]}"
  if name == "pallas_tpu":  # Interpreted: any size.
    return None
  if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
    return f"JAX {jax.__version__} has no Triton dialect of Pallas any more"
  from halonet.ops.pallas import gpu

  return gpu.unserved(geometry)


def _unserved_by_tpu(geometry, dtype, kind):
  available = _vector_memory(kind)
  if available is None:
    return f"{kind} is not TPU v4, v5e, v5p or v6e"
  if dtype != jnp.bfloat16:
    return f"it takes bfloat16, not {dtype}"
  if geometry.head_dim % 8 or geometry.value_dim % 8:
    return (
      f"heads are {geometry.head_dim} and {geometry.value_dim} wide, not"
      " multiples of 8"
    )
  if _fitting(geometry, dtype, kind) is None:
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
