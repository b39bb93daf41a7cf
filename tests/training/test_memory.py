"""Peak memory: of the devices that count it, else of the process."""

import jax
import numpy as np

from halonet.training.memory import peak_memory


class Device:
  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_of_the_process_on_a_cpu():
  before, whose = peak_memory()
  assert whose == "process"
  size = before + 2**26  # More than it ever held.
  held = np.ones(size, np.uint8)
  after, _ = peak_memory()
  assert size <= after < size + before + 2**28
  del held
  assert peak_memory()[0] >= after  # A peak does not fall.


def test_of_the_devices_where_they_count(monkeypatch):
  devices = [
    Device({"peak_bytes_in_use": 5}),
    Device({"peak_bytes_in_use": 7}),
    Device(None),
  ]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert peak_memory() == (7, "device")
