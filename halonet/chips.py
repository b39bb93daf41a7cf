"""Everything known of each chip: one table, with one entry for a new chip."""

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Slice:
  """What the TPU compiler must be told of slices of a chip.

  Attributes:
    example: A topology, generation and shape in chips, such as "v5e:4x4".
    options: What `get_topology_desc` needs beside the topology.
  """

  example: str
  options: Mapping[str, object] = dataclasses.field(default_factory=dict)

  @property
  def generation(self) -> str:
    """The topology's generation, such as "v5e"."""
    return self.example.partition(":")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """An accelerator, in numbers of one device as JAX counts them.

  A device is a core on TPU v2 and v3. Everywhere else it is a whole chip, even
  if the chip has two cores, which then work as one (v4, v5p).

  Attributes:
    kinds: How the `device_kind` of JAX may begin.
    peak_flops: FLOP/s of dense matrix products in bfloat16.
    hbm_bytes: Memory in bytes.
    hbm_bandwidth: Bytes/s between memory and device.
    clock_hz: Clock; None where nothing is counted in cycles.
    devices: Devices per chip.
    vector_memory: Bytes of vector memory of a core; None if there is none.
    kernel_dtypes: Operands that the fused TPU kernels may have; empty if there
      are none that the chip's matrix units take.
    slices: What the TPU compiler must be told; None if it does not know them.
  """

  kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  clock_hz: float | None = None
  devices: int = 1
  vector_memory: int | None = None
  kernel_dtypes: tuple[str, ...] = ()
  slices: Slice | None = None


_MIB, _GIB = 1 << 20, 1 << 30

# Peaks, memory and bandwidth of TPUs: docs.cloud.google.com/tpu/docs/v3 and so
# on, per chip, halved for two devices (bandwidth of v2: Jouppi et al., "Ten
# Lessons from Three Generations", ISCA 2021, table 1); of GPUs: NVIDIA's data
# sheets, of the SXM modules but for one. Clocks of v2 and v3: the same table 1;
# of v4: Jouppi et al., ISCA 2023, table 4. No document gives the other clocks.
# They are the peak over the FLOPs of a cycle, 131,072, 262,144 and 524,288 on
# v5e, v5p and v6e: the compiler's cycle estimates of large matrix products come
# to 97, 96 and 87 per cent of them, and to 97 and 93 per cent on v3 and v4.
CHIPS = (
  Chip(
    kinds=("TPU v2",),
    peak_flops=22.5e12,
    hbm_bytes=8 * _GIB,
    hbm_bandwidth=350e9,
    clock_hz=0.70e9,
    devices=2,
  ),
  Chip(
    kinds=("TPU v3",),
    peak_flops=61.5e12,
    hbm_bytes=16 * _GIB,
    hbm_bandwidth=450e9,
    clock_hz=0.94e9,
    devices=2,
    slices=Slice("v3:4x4"),
  ),
  Chip(
    kinds=("TPU v4",),
    peak_flops=275e12,
    hbm_bytes=32 * _GIB,
    hbm_bandwidth=1200e9,
    clock_hz=1.05e9,
    vector_memory=16 * _MIB,
    kernel_dtypes=("bfloat16",),
    slices=Slice(
      "v4:2x2x4",
      {"chip_config_name": "megacore", "chips_per_host_bounds": [2, 2, 1]},
    ),
  ),
  Chip(
    kinds=("TPU v5 lite", "TPU v5e"),
    peak_flops=197e12,
    hbm_bytes=16 * _GIB,
    hbm_bandwidth=819e9,
    clock_hz=1.50e9,
    vector_memory=128 * _MIB,
    kernel_dtypes=("bfloat16",),
    slices=Slice("v5e:4x4"),
  ),
  Chip(
    kinds=("TPU v5", "TPU v5p"),
    peak_flops=459e12,
    hbm_bytes=95 * _GIB,
    hbm_bandwidth=2765e9,
    clock_hz=1.75e9,
    vector_memory=64 * _MIB,
    kernel_dtypes=("bfloat16",),
    slices=Slice("v5p:2x2x2"),
  ),
  Chip(
    kinds=("TPU v6 lite", "TPU v6e"),
    peak_flops=918e12,
    hbm_bytes=32 * _GIB,
    hbm_bandwidth=1638e9,
    clock_hz=1.75e9,
    vector_memory=128 * _MIB,
    kernel_dtypes=("bfloat16",),
    slices=Slice("v6e:4x4"),
  ),
  Chip(
    kinds=("NVIDIA A100",),
    peak_flops=312e12,
    hbm_bytes=80 * _GIB,
    hbm_bandwidth=2039e9,
  ),
  Chip(
    kinds=("NVIDIA H100 80GB HBM3",),
    peak_flops=989e12,
    hbm_bytes=80 * _GIB,
    hbm_bandwidth=3350e9,
  ),
  Chip(
    kinds=("NVIDIA H100 PCIe",),
    peak_flops=756e12,
    hbm_bytes=80 * _GIB,
    hbm_bandwidth=2000e9,
  ),
  Chip(
    kinds=("NVIDIA H200",),
    peak_flops=989e12,
    hbm_bytes=141 * 10**9,
    hbm_bandwidth=4800e9,
  ),
)
# Chips whose slices the TPU compiler knows, by generation.
GENERATIONS = {chip.slices.generation: chip for chip in CHIPS if chip.slices}


def find_chip(device: jax.Device) -> Chip | None:
  """Returns the facts of a device, or None if the table does not have it."""
  return find_kind(device.device_kind)


def find_kind(kind: str) -> Chip | None:
  """Returns the chip whose name fits a `device_kind` best, or None."""
  fitting = {
    name: chip for chip in CHIPS for name in chip.kinds if kind.startswith(name)
  }
  return fitting[max(fitting, key=len)] if fitting else None
