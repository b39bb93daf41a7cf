"""What every form of the attention offers, and what it may ask about."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from halonet.chips import Chip, find_kind
from halonet.ops.neighbourhood import Neighbourhood
from halonet.ops.positions import Tables
from halonet.parallel import DATA

Shaped = jax.Array | jax.ShapeDtypeStruct

# The name by which a rematerialisation policy can keep what kernels return, so
# that the backward pass does not run them again.
KERNEL_RESULTS = "results of attention kernels"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an attention will run, as far as is known while it is traced.

  Attributes:
    mesh: The mesh in context, which may be empty.
    platform: The devices' platform: "cpu", "gpu" or "tpu".
    kind: The devices' `device_kind`, such as "TPU v5 lite".
    devices: Number of devices of the mesh, or of all processes without one.
  """

  mesh: AbstractMesh
  platform: str
  kind: str
  devices: int

  @classmethod
  def current(cls) -> "Place":
    """Returns the place of a program that is traced now.

    The devices are those of the mesh in context, which this machine need not
    have, or else this process's default device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None:
      device = jax.config.jax_default_device or jax.devices()[0]
    if isinstance(device, str):  # The name of a platform.
      device = jax.devices(device)[0]
    kind = device.device_kind
    platform = "tpu" if kind.startswith("TPU") else device.platform
    devices = jax.device_count() if mesh.empty else mesh.size
    return cls(mesh, platform, kind, devices)

  @property
  def chip(self) -> Chip | None:
    """What is known of the devices."""
    return find_kind(self.kind)

  @property
  def axes(self) -> tuple[str, ...]:
    """Names of the mesh axes that still have to be split for a kernel."""
    return tuple(
      name
      for name, kind in zip(
        self.mesh.axis_names, self.mesh.axis_types, strict=True
      )
      if kind != AxisType.Manual and self.mesh.shape[name] > 1
    )

  @property
  def vector_memory(self) -> int | None:
    """Bytes of vector memory that the TPU kernels have here; None where they
    are interpreted or do not run."""
    return self.chip.vector_memory if self.chip else None

  def kernel_dtype(self, dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which TPU kernels compute on maps of a dtype."""
    chip = self.chip
    return jnp.dtype((chip and chip.kernel_dtype) or dtype)

  def refuses_kernels(self, *maps: Shaped | None) -> str | None:
    """Says why no kernel can serve these maps here, or returns None."""
    maps = [x for x in maps if x is not None]
    if len({x.dtype for x in maps}) > 1:
      return "query, key and value are not of one dtype"
    for name in self.axes:
      if name != DATA:
        return f"the mesh splits {name!r}, and kernels can split only {DATA!r}"
    shares = self.mesh.shape[DATA] if self.axes else 1
    batch = maps[0].shape[0]
    if batch % shares:
      return f"a batch of {batch} does not split over {shares} devices"
    return None

  def split(self, kernel: Callable, maps: int = 3) -> Callable:
    """Makes every device call `kernel` for its share of the batch.

    The result and the first `maps` arguments are split along their first axis.
    Further arguments go to every device as they are.
    """
    if not self.axes:
      return kernel
    share = PartitionSpec(DATA)

    def call(*arrays):
      specs = [share] * maps + [PartitionSpec()] * (len(arrays) - maps)
      return jax.shard_map(
        kernel, in_specs=tuple(specs), out_specs=share, check_vma=False
      )(*arrays)

    return call


@runtime_checkable
class Form(Protocol):
  """One implementation of local attention.

  Arrays have the shapes that `halonet.ops.attention.blocked_local_attention`
  documents; they are not checked again. `layer.stride` divides
  `layer.block_size`.

  Attributes:
    name: The value of `implementation` that asks for this form.
    kernels_for: The platform that its kernels are compiled for, each device by
      itself; elsewhere they are interpreted. None if XLA compiles the form.
    keyless: Whether `attend` takes None for the key, where logits come from
      positions alone; other forms get zeros.
  """

  name: str
  kernels_for: str | None = None
  keyless: bool = False

  def suits(self, place: Place) -> bool:
    """Says whether "auto" should prefer this form, at this place, to all that
    follow it in `halonet.ops.dispatch.FORMS`."""
    return place.platform == self.kernels_for

  def refuses(
    self, query: Shaped, value: Shaped, layer: Neighbourhood, place: Place
  ) -> str | None:
    """Says why this form cannot serve a layer, or returns None.

    The reason is a clause for the log, such as "it takes no strides". Only
    shapes and dtypes are looked at. Where `kernels_for` is set, dispatch has
    seen to it that query, key and value share one dtype, and that the batch
    splits over the mesh.
    """
    return None

  def attend(
    self,
    query: jax.Array,
    key: jax.Array | None,
    value: jax.Array,
    tables: Tables,
    layer: Neighbourhood,
    place: Place,
  ) -> jax.Array:
    """Computes the attention.

    Args:
      query: the whole map, already scaled; logits are plain products.
      key: None only if the form is `keyless`.
      value: may be of another width than query and key.
      tables: relative embeddings, of all offsets that `layer` does not hide at
        least; `tables.spanning` cuts or pads them to a range.
      layer: who sees whom.
      place: where it runs; forms with kernels call them through `place.split`.

    Returns:
      `[batch, ⌈height/stride⌉, ⌈width/stride⌉, heads, value_dim]`, in the dtype
      of `value`.
    """
    ...
