"""What accelerators can do: one table for all who reckon with their speed."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator, in numbers of one device as JAX counts them.

  A device is a core on TPU v2 and v3, and a whole chip everywhere else, also
  where a chip has two cores that work as one (v4, v5p).

  Attributes:
    peak_flops: FLOP/s of dense matrix products in bfloat16.
    hbm_bytes: memory.
    hbm_bandwidth: bytes/s between memory and device.
    clock_hz: None where nothing here is counted in cycles.
    devices: per chip.
  """

  peak_flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  clock_hz: float | None = None
  devices: int = 1


_GIB = 1 << 30

# By JAX's device_kind, or how it begins. Peaks, memory and bandwidth of TPUs:
# docs.cloud.google.com/tpu/docs/v3 and so on, per chip, halved for two devices
# (v2's bandwidth: Jouppi et al., "Ten Lessons from Three Generations", ISCA
# 2021, table 1); of GPUs: NVIDIA's data sheets, of the SXM modules but for one.
# Clocks of v2 and v3: the same table 1; of v4: Jouppi et al., ISCA 2023, table
# 4. No document gives the others'. They are the peak over the FLOPs that the
# chip does in a cycle, 131,072, 262,144 and 524,288 on v5e, v5p and v6e: the
# compiler's cycle estimates of large matrix products come to 97, 96 and 87 per
# cent of them, and to 97 and 93 per cent on v3 and v4.
_V5E = Chip(197e12, 16 * _GIB, 819e9, clock_hz=1.50e9)
_V5P = Chip(459e12, 95 * _GIB, 2765e9, clock_hz=1.75e9)
_V6E = Chip(918e12, 32 * _GIB, 1638e9, clock_hz=1.75e9)
_CHIPS = {
  "TPU v2": Chip(22.5e12, 8 * _GIB, 350e9, clock_hz=0.70e9, devices=2),
  "TPU v3": Chip(61.5e12, 16 * _GIB, 450e9, clock_hz=0.94e9, devices=2),
  "TPU v4": Chip(275e12, 32 * _GIB, 1200e9, clock_hz=1.05e9),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "NVIDIA A100": Chip(312e12, 80 * _GIB, 2039e9),
  "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * _GIB, 3350e9),
  "NVIDIA H100 PCIe": Chip(756e12, 80 * _GIB, 2000e9),
  "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9),
}


def find_chip(device: jax.Device) -> Chip | None:
  """The facts of a device, or None if they are not known here."""
  return find_kind(device.device_kind)


def find_kind(kind: str) -> Chip | None:
  """The same by the device's `device_kind`, such as "TPU v5 lite"."""
  fitting = [name for name in _CHIPS if kind.startswith(name)]
  return _CHIPS[max(fitting, key=len)] if fitting else None
