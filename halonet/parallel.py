"""The mesh of devices: its axes, and how arrays are laid out on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Batches are split along DATA. ROWS is for splitting an image from top to
# bottom; it does not count as batch.
DATA, ROWS = "data", "rows"


def make_mesh(devices: list[jax.Device] | None = None, rows: int = 1) -> Mesh:
  """Arranges devices as `[data, rows]`.

  Args:
    devices: to arrange; all devices of all processes by default.
    rows: devices that share an image.
  """
  devices = np.array(jax.devices() if devices is None else devices)
  return Mesh(
    devices.reshape(-1, rows), (DATA, ROWS), axis_types=(AxisType.Auto,) * 2
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the first axis of an array along `data`."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
  """Puts the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())
