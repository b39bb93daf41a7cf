"""Peak memory: of the devices that count it, else of the process."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet import train
from halonet.errors import UsageError
from halonet.training.memory import check_step, peak_memory
from tests.conftest import arguments


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


@pytest.mark.parametrize(
  "words, complaint",
  [
    (["batch_size=1048576", "data.image_size=1024"], "its share of a batch"),
    (["model.base_width=16384"], "parameters and their training state take"),
  ],
)
def test_what_no_device_can_hold_is_refused(
  run_main, data_dir, tmp_path, words, complaint
):
  code, output, error = run_main(
    train.main, *arguments(data_dir, tmp_path / "run", *words)
  )
  assert code == 2 and complaint in error and error.count("\n") == 1
  assert "Compiling" not in output
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_step_that_no_device_can_hold_is_refused(monkeypatch):
  def products(x):
    return jnp.sin(x @ x.T) @ x

  x = jax.ShapeDtypeStruct((8192, 8), jnp.float32)
  step = jax.jit(products).lower(x).compile()
  check_step(step)
  # Eight devices share 2 GiB, a quarter of which the products take.
  memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * 2**30}
  monkeypatch.setattr(os, "sysconf", memory.get)
  with pytest.raises(UsageError, match="a training step needs 0.25"):
    check_step(step)
