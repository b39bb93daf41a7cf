"""What tests share: eight devices, checked shapes, seeds and real data."""

import gc
import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs of this process are not kept; those of `run_command` are.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
_CACHE = tempfile.TemporaryDirectory(prefix="compiled")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jaxtyping

jaxtyping.install_import_hook(
  ["halonet.ops", "halonet.layers", "halonet.models"], "beartype.beartype"
)

import hypothesis
import pytest

hypothesis.settings.register_profile("local", max_examples=200, deadline=None)
for profile, examples in (("ci", 25), ("smoke", 5)):
  hypothesis.settings.register_profile(
    profile, max_examples=examples, deadline=None, derandomize=True
  )
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def is_test(argument):
  """Says whether there is a file, class or test of that name."""
  file, *names = argument.split("[")[0].split("::")
  path = pathlib.Path(file)
  return path.exists() and all(
    re.search(rf"^ *(def|class) {name}\b", path.read_text(), re.M)
    for name in names
  )


def pytest_configure(config):
  """Names the tests that do not exist; pytest-xdist would only run none."""
  missing = [argument for argument in config.args if not is_test(argument)]
  if missing:
    raise pytest.UsageError(f"there is no {', no '.join(missing)}")


@pytest.hookimpl(tryfirst=True)  # Before xdist reads the marks.
def pytest_collection_modifyitems(items):
  """Puts the tests that need whole runs first and on one worker.

  They share the runs, and would otherwise be the last to end.
  """
  for item in items:
    if {"trained", "eight"} & set(item.fixturenames):
      item.add_marker(pytest.mark.xdist_group("runs"))
  items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture
def unchecked_shapes():
  """Lets wrong shapes through, to test the message that a user gets."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def processes(monkeypatch):
  """Returns a function that makes this process appear as one of several."""

  def become(index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)

  return become


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """Prepares the embedded digits as TFDS records once; returns the folder."""
  import ml_collections

  from halonet.data import sources

  path = str(tmp_path_factory.mktemp("tfds"))
  data = ml_collections.ConfigDict({"name": "digits", "data_dir": path})
  sources.open_source(data, {})
  return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """Writes pieces of two photographs as JPEG files in a folder per class.

  There are 37 to train on and 11 to test on, of many sizes. One is grey, one
  is CMYK and one is a PNG named .JPEG.
  """
  import numpy as np
  import sklearn.datasets
  from PIL import Image

  root = tmp_path_factory.mktemp("photos")
  random = np.random.default_rng(0)
  pictures = sklearn.datasets.load_sample_images().images
  for split, count in (("train", 37), ("val", 11)):
    for number in range(count):
      label = number % 2
      height, width = random.integers(60, 200, 2)
      top, left = random.integers(0, 200, 2)
      piece = Image.fromarray(
        pictures[label][top : top + height, left : left + width]
      )
      kind = "JPEG"
      if number == 4:
        piece = piece.convert("L")
      elif number == 5:
        piece = piece.convert("CMYK")
      elif number == 6:
        kind = "PNG"
      folder = root / split / ("china", "flower")[label]
      folder.mkdir(parents=True, exist_ok=True)
      piece.save(folder / f"{number:03}.JPEG", kind, **_QUALITY[kind])
  return str(root)


_QUALITY = {"JPEG": {"quality": 90}, "PNG": {}}


@pytest.fixture
def small_config(data_dir):
  """Returns a function from overrides to the config of a tiny digits model."""
  from halonet.training.config import load_config

  def make(*overrides):
    return load_config(
      "configs/digits.py", [*small_overrides(data_dir), *overrides]
    )

  return make


def small_overrides(data_dir):
  """Returns overrides that shorten configs/digits.py to seconds."""
  return [
    f"data.data_dir={data_dir}",
    "data.image_size=16",
    "batch_size=128",
    "steps=24",
    "model.base_width=8",
    "model.depths=(1,1)",
    "model.heads=(2,2)",
    "optimizer.warmup_steps=4",
    # Low, so that rounding does not grow from step to step.
    "optimizer.learning_rate=0.1",
    "ema_decay=0.9",
    "log_every=1",
    "eval_every=12",
    "checkpoint_every=5",
  ]


def run_command(*arguments, devices=1, **variables):
  """Starts training in another process, whose output is read by line.

  Runs of the same config compile only once, unless `variables` of the
  environment say otherwise.
  """
  environment = os.environ | {
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONUNBUFFERED": "1",
    **variables,
  }
  return subprocess.Popen(
    [sys.executable, "-m", "halonet.train", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment,
  )


def run_processes(*arguments, extra=((), ())):
  """Starts two processes that train together, with four devices each.

  `extra` holds the arguments that only the first and only the second get.
  """
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  return [
    run_command(
      *arguments,
      *own,
      f"--coordinator=127.0.0.1:{port}",
      "--processes=2",
      f"--process={index}",
      devices=4,
    )
    for index, own in enumerate(extra)
  ]


def wait_for(process, text):
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f"ended without {text!r}")


def losses(workdir):
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}


def arguments(data_dir, workdir, *overrides):
  overrides = [*small_overrides(data_dir), *overrides]
  return [f"--workdir={workdir}", *(f"--config.{text}" for text in overrides)]


def finish(process):
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
  """Trains for 24 steps, over two epochs; returns workdir and output."""
  workdir = tmp_path_factory.mktemp("runs") / "trained"
  code, output = finish(run_command(*arguments(data_dir, workdir)))
  assert code == 0, output
  return workdir, output


@pytest.fixture(scope="session")
def eight(tmp_path_factory, data_dir):
  """Trains as `trained` does, on eight devices."""
  workdir = tmp_path_factory.mktemp("runs") / "eight"
  words = arguments(data_dir, workdir)
  code, output = finish(run_command(*words, devices=8))
  assert code == 0, output
  return workdir, output


@pytest.fixture
def run_main(monkeypatch, capfd):
  """Runs a command in this process; returns exit code, stdout and stderr."""
  from halonet import command, distributed

  # JAX already runs in this process, and there is no other to connect to.
  monkeypatch.setattr(distributed, "initialize", lambda arguments: None)

  def run(main, *words):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    code = 0
    try:
      command.run(main)
    except SystemExit as error:
      code = error.code
    gc.unfreeze()  # A process of tests lives longer than a command's.
    return code, *capfd.readouterr()

  return run


@pytest.fixture
def sweep(run_main):
  """Runs scripts/sweep.py here; see `run_main`."""
  path = pathlib.Path(__file__).parents[1] / "scripts" / "sweep.py"
  spec = importlib.util.spec_from_file_location("sweep", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return lambda *words: run_main(module.main, *words)
