"""Everything known of each chip: one table, with one entry for a new chip."""

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator, in numbers of one device as JAX counts them.

  A device is a core on TPU v2 and v3. Everywhere else it is a whole chip, even
  if the chip has two cores, which then work as one (v4, v5p).

  Attributes:
    kinds: What the `device_kind` of JAX may begin with. The longest that fits
      a device counts, of all chips; the last is the one shown to users.
    peak_flops: FLOP/s of dense matrix products in bfloat16.
    hbm_bytes: Memory in bytes.
    hbm_bandwidth: Bytes/s between memory and device.
    clock_hz: Clock; needed if `topology` is set, to turn cycles into seconds.
    devices: Devices per chip.
    vector_memory: Bytes of a TPU core's vector memory. It lets the form
      "pallas_tpu" serve the chip, with tiles that fit in it. None if those
      kernels do not run there.
    kernel_dtype: The dtype in which these kernels compute, if it is not that of
      the maps. Before v4, a kernel's matrix products do not take bfloat16.
    topology: Example of a slice as the TPU compiler names it, generation and
      shape in chips, such as "v5e:4x4". It lets the commands of
      `halonet.tpu` estimate steps on slices of as many dimensions. None if the
      compiler does not know the chip.
    compiler_options: Options of JAX's `get_topology_desc` that slices of this
      chip need beside their name.
  """

  kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  clock_hz: float | None = None
  devices: int = 1
  vector_memory: int | None = None
  kernel_dtype: str | None = None
  topology: str | None = None
  compiler_options: Mapping[str, object] = dataclasses.field(
    default_factory=dict
  )


_MIB, _GIB = 1 << 20, 1 << 30

# Peaks, memory and bandwidth of TPUs: docs.cloud.google.com/tpu/docs/v3 and so
# on, per chip, halved for two devices (bandwidth of v2: Jouppi et al., "Ten
# Lessons from Three Generations", ISCA 2021, table 1); of GPUs: NVIDIA's data
# sheets, of the SXM modules but for one. Clocks of v2 and v3: the same table 1;
# of v4: Jouppi et al., ISCA 2023, table 4. No document gives the other clocks.
# They are the peak over the FLOPs of a cycle, 131,072, 262,144 and 524,288 on
# v5e, v5p and v6e: the compiler's cycle estimates of large matrix products come
# to 97, 96 and 87 per cent of them, and to 97 and 93 per cent on v3 and v4.
# fmt: off
CHIPS = (
  Chip(("TPU v2",), 22.5e12, 8 * _GIB, 350e9, 0.70e9, devices=2),
  Chip(
    ("TPU v3",), 61.5e12, 16 * _GIB, 450e9, 0.94e9,
    devices=2, vector_memory=16 * _MIB, kernel_dtype="float32",
    topology="v3:4x4"
  ),
  Chip(
    ("TPU v4",), 275e12, 32 * _GIB, 1200e9, 1.05e9,
    vector_memory=16 * _MIB, topology="v4:2x2x4", compiler_options={
      "chip_config_name": "megacore", "chips_per_host_bounds": [2, 2, 1]
    }
  ),
  Chip(
    ("TPU v5 lite", "TPU v5e"), 197e12, 16 * _GIB, 819e9, 1.50e9,
    vector_memory=128 * _MIB, topology="v5e:4x4"
  ),
  Chip(
    ("TPU v5", "TPU v5p"), 459e12, 95 * _GIB, 2765e9, 1.75e9,
    vector_memory=64 * _MIB, topology="v5p:2x2x2"
  ),
  Chip(
    ("TPU v6 lite", "TPU v6e"), 918e12, 32 * _GIB, 1638e9, 1.75e9,
    vector_memory=128 * _MIB, topology="v6e:4x4"
  ),
  Chip(("NVIDIA A100",), 312e12, 80 * _GIB, 2039e9),
  Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80 * _GIB, 3350e9),
  Chip(("NVIDIA H100 PCIe",), 756e12, 80 * _GIB, 2000e9),
  Chip(("NVIDIA H200",), 989e12, 141 * 10**9, 4800e9),
)
# fmt: on
# The chips whose slices the TPU compiler knows, by generation, such as "v5e".
GENERATIONS = {
  chip.topology.partition(":")[0]: chip for chip in CHIPS if chip.topology
}


def find_chip(device: jax.Device) -> Chip | None:
  """Returns the facts of a device, or None if the table does not have it."""
  return find_kind(device.device_kind)


def find_kind(kind: str) -> Chip | None:
  """Returns the chip whose name fits a `device_kind` best, or None."""
  fitting = {
    name: chip for chip in CHIPS for name in chip.kinds if kind.startswith(name)
  }
  return fitting[max(fitting, key=len)] if fitting else None
