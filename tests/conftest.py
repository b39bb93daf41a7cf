"""What all tests share: eight devices, checked shapes, seeds, real data."""

import os
import subprocess
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jaxtyping

jaxtyping.install_import_hook(
  ["halonet.ops", "halonet.models.layers", "halonet.models.network"],
  "beartype.beartype",
)

import hypothesis
import pytest

hypothesis.settings.register_profile("local", max_examples=200, deadline=None)
hypothesis.settings.register_profile(
  "ci", max_examples=50, deadline=None, derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def unchecked_shapes():
  """Lets a wrong shape through to the message that a user would get."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """The embedded digits as TFDS records on disk, prepared once."""
  from halonet.data import pipeline

  path = str(tmp_path_factory.mktemp("tfds"))
  pipeline.prepare("digits", path)
  return path


@pytest.fixture
def small_config(data_dir):
  """A complete config of a tiny model on the digits; takes overrides."""
  from halonet.training.config import load_config

  def make(*overrides):
    return load_config(
      "configs/digits.py", [*small_overrides(data_dir), *overrides]
    )

  return make


def small_overrides(data_dir):
  """Overrides that make configs/digits.py a matter of seconds."""
  return [
    f"data.data_dir={data_dir}",
    "data.image_size=16",
    "batch_size=128",
    "steps=24",
    "model.base_width=8",
    "model.depths=(1,1)",
    "model.heads=(2,2)",
    "optimizer.warmup_steps=4",
    "log_every=1",
    "eval_every=12",
    "checkpoint_every=5",
  ]


def run_command(*arguments, devices=1):
  """Starts training in a process of its own, with a line at a time to read."""
  environment = os.environ | {
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONUNBUFFERED": "1",
  }
  return subprocess.Popen(
    [sys.executable, "-m", "halonet.train", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment,
  )


def arguments(data_dir, workdir, *overrides):
  overrides = [*small_overrides(data_dir), *overrides]
  return [f"--workdir={workdir}", *(f"--config.{text}" for text in overrides)]


def finish(process):
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
  """A run of 24 steps (over two epochs), and what it printed."""
  workdir = tmp_path_factory.mktemp("runs") / "trained"
  code, output = finish(run_command(*arguments(data_dir, workdir)))
  assert code == 0, output
  return workdir, output


@pytest.fixture
def run_main(monkeypatch, capfd):
  """Runs a command here; gives its exit code, output and complaints."""
  from halonet import command

  def run(main, *words):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    code = 0
    try:
      command.run(main)
    except SystemExit as error:
      code = error.code
    return code, *capfd.readouterr()

  return run
