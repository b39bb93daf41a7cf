"""Training from the command line: whole runs, kills, signals and slips."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet import train
from halonet.data import pipeline, sources
from halonet.parallel import make_mesh
from halonet.tasks.task import make_task
from halonet.training.checkpoint import Checkpoints
from halonet.training.config import create_model
from halonet.training.optimizer import make_optimizer
from halonet.training.state import abstract_state, make_init
from halonet.training.workdir import Workdir
from tests.conftest import (
  arguments,
  finish,
  losses,
  run_command,
  wait_for,
)


def whole_state(path):
  """All that the last checkpoint of a run holds."""
  workdir, mesh = Workdir(str(path)), make_mesh()
  config = workdir.config()
  model = create_model(config, make_task(config, workdir.metadata()))
  init = make_init(model, make_optimizer(config), config, mesh)
  checkpoints = Checkpoints(workdir.checkpoints, "accuracy")
  with contextlib.closing(checkpoints):
    return checkpoints.restore(24, abstract_state(init, mesh))


def assert_same_run(workdir, expected):
  """Same bits in parameters, statistics, momentum, averages; same losses."""
  states = [whole_state(path) for path in (workdir, expected)]
  leaves = [jax.tree.leaves_with_path(state) for state in states]
  for (path, actual), (_, wanted) in zip(*leaves, strict=True):
    np.testing.assert_array_equal(actual, wanted, err_msg=str(path))
  assert losses(workdir) == losses(expected)


def test_a_run_says_what_it_does_and_ends_with_its_accuracy(trained):
  workdir, output = trained
  lines = output.splitlines()
  results = json.loads((workdir / "results.json").read_text())
  accuracy = results["test_accuracy"]
  assert lines[-3] == (
    f"test accuracy: {accuracy:.4f} ({results['test_correct']} of 450 images),"
    f" loss {results['test_loss']:.4f}"
  )
  assert accuracy == results["test_correct"] / 450
  assert f"Wrote {workdir}" in lines[-2] and "Next: " in lines[-1]
  assert "Total: " in output  # The overview of the parameters.
  assert any("images/s" in line and "ETA" in line for line in lines)
  assert "Traceback" not in output and "Warning" not in output
  assert results["steps"] == 24 and results["test_images"] == 450
  assert results["peak_memory_of"] == "process"
  assert results["peak_memory_bytes"] > 2**27  # Of JAX and TensorFlow alone.
  assert sorted(losses(workdir)) == list(range(1, 25))
  assert list((workdir / "tensorboard").iterdir())
  kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
  assert kept == {15, 20, 24}
  metadata = json.loads((workdir / "metadata.json").read_text())
  assert metadata == {"labels": list("0123456789")}


def test_a_finished_run_says_so(trained, data_dir):
  workdir, _ = trained
  before = (workdir / "results.json").read_bytes()
  code, output = finish(run_command(*arguments(data_dir, workdir)))
  assert code == 0 and "This run is finished" in output
  assert output.splitlines()[-3].startswith("test accuracy: ")
  assert "Compil" not in output
  assert (workdir / "results.json").read_bytes() == before


def test_killed_at_any_moment_it_ends_the_same(trained, tmp_path, data_dir):
  workdir = tmp_path / "run"
  command_line = arguments(data_dir, workdir)
  # Before the first step; between checkpoints; and while one is written.
  for moment in ("Compiling", "step 8/24", "step 15/24"):
    process = run_command(*command_line)
    wait_for(process, moment)
    if moment == "step 15/24":
      deadline = time.monotonic() + 10
      while time.monotonic() < deadline:
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
        if any(name.startswith("15") for name in names):
          break
    process.kill()
    finish(process)
    assert not (workdir / "results.json").exists()
  code, output = finish(run_command(*command_line))
  assert code == 0, output
  assert "Going on from step" in output
  assert_same_run(workdir, trained[0])


def test_sigterm_saves_and_leaves(trained, tmp_path, data_dir):
  workdir = tmp_path / "run"
  command_line = arguments(data_dir, workdir)
  process = run_command(*command_line)
  wait_for(process, "step 7/24")
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code == 128 + signal.SIGTERM
  saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert saved >= 7
  last = output.splitlines()[-1]
  assert last == (
    f"error: SIGTERM: saved {workdir / 'checkpoints' / str(saved)}; the same"
    " command goes on from there"
  )
  code, output = finish(run_command(*command_line))
  assert code == 0 and f"Going on from step {saved}," in output
  assert_same_run(workdir, trained[0])


@pytest.mark.slow  # Parts equal the whole in test_step.py, too.
def test_it_goes_on_in_more_parts(trained, tmp_path, data_dir):
  """With less memory for a device: the same images at the same steps."""
  workdir = tmp_path / "run"
  overrides = ["model.batch_norm_group=32"]
  words = arguments(data_dir, workdir, *overrides)
  process = run_command(*words, "--config.log_every=1")
  wait_for(process, "step 7/24")
  process.send_signal(signal.SIGTERM)
  finish(process)
  code, output = finish(run_command(*words, "--config.accumulation_steps=4"))
  assert code == 0, output
  assert "Changed since this run began: config.accumulation_steps: 1" in output
  whole = tmp_path / "whole"
  code, output = finish(run_command(*arguments(data_dir, whole, *overrides)))
  assert code == 0, output
  np.testing.assert_allclose(
    [losses(workdir)[step] for step in range(1, 25)],
    [losses(whole)[step] for step in range(1, 25)],
    rtol=1e-4,  # Rounding, which descent amplifies.
  )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_compiling_leaves_in_order(tmp_path, data_dir, number):
  workdir = tmp_path / "run"
  process = run_command(*arguments(data_dir, workdir))
  wait_for(process, "Compiling")
  process.send_signal(number)
  code, output = finish(process)
  assert code == 128 + number
  assert "Traceback" not in output and "Ignored" not in output
  # It may come a moment later than the compilation's end.
  assert output.splitlines()[-1].startswith(
    (
      f"error: {number.name}: nothing is lost since step 0",
      f"error: {number.name}: saved ",
    )
  )


def test_the_first_loss_is_the_configs(trained, data_dir):
  """Seed, order, smoothing and preprocessing all reach the loss."""
  workdir, _ = trained
  config = Workdir(str(workdir)).config()
  task = make_task(config, Workdir(str(workdir)).metadata())
  model = create_model(config, task)
  source = sources.open_source(config.data, task.needs)
  split = source.split("train_split", "train")
  batch = next(pipeline.train_batches(split, task))
  images = jnp.asarray(batch["image"])
  variables = jax.jit(model.init)(jax.random.key(config.seed), images[:1])
  logits, _ = jax.jit(
    lambda variables, images: model.apply(
      variables, images, train=True, mutable="batch_stats"
    )
  )(variables, images)
  logits = np.asarray(logits, np.float64)
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets = 0.9 * np.eye(10)[batch["label"]] + 0.01
  expected = -(targets * log).sum(-1).mean()
  np.testing.assert_allclose(losses(workdir)[1], expected, rtol=1e-4)


def test_killed_between_the_last_save_and_the_result(
  trained, tmp_path, data_dir
):
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  results = json.loads((workdir / "results.json").read_text())
  (workdir / "results.json").unlink()
  code, output = finish(run_command(*arguments(data_dir, workdir)))
  assert code == 0, output
  again = json.loads((workdir / "results.json").read_text())
  for name in ("test_accuracy", "test_loss", "steps", "best_checkpoint"):
    assert again[name] == results[name]


def test_eight_devices_train_as_one_does(trained, eight):
  workdir, output = eight
  assert "Devices: 8" in output
  actual, expected = losses(workdir), losses(trained[0])
  # Sums in another order: rounding, which descent amplifies step by step.
  np.testing.assert_allclose(
    [actual[step] for step in range(1, 21)],
    [expected[step] for step in range(1, 21)],
    rtol=1e-3,
  )
  results = json.loads((workdir / "results.json").read_text())
  assert results["test_images"] == 450


@pytest.mark.parametrize(
  "word, message",
  [
    ("--config.stepz=1", "did you mean config.steps?"),
    ("--config.model.block_size=0", "block_size is 0"),
    ("--config.model.halo_size=-1", "halo_size is -1"),
    ("--config.model.heads=(3,3)", "heads is 3, which does not divide"),
    ("--config.batch_size=100", "config.batch_size is 100, which 8 devices"),
    ("--config.model.name=halonet-h1", "did you mean halonet_h1?"),
    ("--config.data.name=digit", "did you mean digits?"),
    ("--config.data.test_split=dev", "config.data.test_split"),
    ("--workdir=/dev/null/run", "--workdir /dev/null/run cannot be written"),
    ("--config=none.py", "there is no file none.py"),
    ("--confg=x.py", "unknown argument --confg=x.py"),
    ("--config.steps", "write --config.steps=VALUE"),
  ],
)
def test_a_slip_is_answered_in_one_line(
  run_main, monkeypatch, tmp_path, data_dir, word, message
):
  compiled = []
  monkeypatch.setattr(
    "halonet.training.loop.make_init", lambda *a, **b: compiled.append(a)
  )
  words = arguments(data_dir, tmp_path / "run")
  code, _, complaint = run_main(train.main, *words, word)
  assert code == 2
  assert message in complaint
  assert complaint.startswith("error: ") and complaint.count("\n") == 1
  assert not compiled
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_of_another_config_is_refused(run_main, trained, data_dir):
  workdir, _ = trained
  words = arguments(data_dir, workdir, "optimizer.momentum=0.8")
  code, _, complaint = run_main(train.main, *words)
  assert code == 2
  assert "(optimizer.momentum: 0.9 → 0.8)" in complaint


def test_a_loss_that_is_not_finite_stops_the_run(run_main, tmp_path, data_dir):
  workdir = tmp_path / "run"
  words = arguments(
    data_dir, workdir, "optimizer.learning_rate=1e30", "checkpoint_every=1"
  )
  code, _, complaint = run_main(train.main, *words)
  assert code == 1
  saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert f"at step {saved[-1] + 1}; the last good checkpoint is" in complaint
  assert str(workdir / "checkpoints" / str(saved[-1])) in complaint
  assert "Lower config.optimizer.learning_rate (it is 1e+30)" in complaint
  assert complaint.count("\n") == 1


@pytest.mark.parametrize("name", ["none", "empty", "none.safetensors"])
def test_missing_weights_to_begin_with_are_noticed_first(
  run_main, tmp_path, name
):
  (tmp_path / "empty").mkdir()
  path = tmp_path / name
  # Where nothing is prepared.
  words = arguments(tmp_path / "data", tmp_path / "run", f"init_from={path}")
  code, output, complaint = run_main(train.main, *words)
  assert code == 2 and f"config.init_from is {path}" in complaint
  assert not output and not (tmp_path / "data").exists()
  assert complaint.count("\n") == 1
  assert not (tmp_path / "run" / "config.json").exists()


# Trains on a disk that is full once a text is printed: no file grows any more.
_FULL = """
import resource, signal, sys
from halonet import command, train

moment = sys.argv.pop(1)

class Out:
  def write(self, text):
    sys.__stdout__.write(text)
    if moment in text:
      resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

  def flush(self):
    sys.__stdout__.flush()

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.stdout = Out()
command.run(train.main)
"""


@pytest.mark.parametrize(
  "moment, complaint",
  [
    ("step 3/", "error: figures cannot be written in "),
    ("step 5/", "error: a checkpoint cannot be written in "),
  ],
)
def test_a_full_disk_is_one_line(tmp_path, data_dir, moment, complaint):
  words = arguments(data_dir, tmp_path / "run")
  process = subprocess.run(
    [sys.executable, "-c", _FULL, moment, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {"PYTHONUNBUFFERED": "1"},
  )
  assert process.returncode == 1, process.stdout
  lines = process.stdout.splitlines()
  (last,) = (n for n, line in enumerate(lines) if line.startswith(moment))
  (line,) = lines[last + 1 :]
  assert line.startswith(complaint) and "File too large" in line


def test_a_later_start_compiles_nothing(tmp_path, data_dir):
  """Also after the cache was damaged; then it compiles, and says why."""
  caches = tmp_path / "caches"

  def run(name, *overrides, folder=""):
    short = ["steps=2", "optimizer.warmup_steps=1", *overrides]
    words = arguments(data_dir, tmp_path / name, *short)
    variables = {
      "XDG_CACHE_HOME": str(caches),
      "JAX_COMPILATION_CACHE_DIR": folder,
    }
    code, output = finish(run_command(*words, **variables))
    assert code == 0, output
    return output

  assert f"Compiled programs are kept in {caches}/halonet" in run("first")
  folder = caches / "halonet" / "compiled"
  kept = {path: path.read_bytes() for path in folder.glob("*-cache")}
  assert kept
  run("second")
  assert {path: path.read_bytes() for path in folder.glob("*-cache")} == kept
  for path, content in kept.items():
    middle = len(content) // 2
    damaged = bytes([content[middle] ^ 4])
    path.write_bytes(content[:middle] + damaged + content[middle + 1 :])
  assert "Error reading persistent compilation cache entry" in run("third")
  runs = [losses(tmp_path / name) for name in ("first", "second", "third")]
  assert runs[0] == runs[1] == runs[2]
  shutil.rmtree(caches)
  off = "compilation_cache=false"
  assert "are kept" not in run("fourth", off, folder=str(caches))
  # The command that reads its checkpoint keeps nothing, either.
  words = [sys.executable, "-m", "halonet.evaluate"]
  subprocess.run(
    [*words, f"--workdir={tmp_path / 'fourth'}"],
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(caches)},
    check=True,
    stdout=subprocess.DEVNULL,
  )
  assert not caches.exists()


def test_help_needs_no_heavy_import():
  code = (
    "import sys; sys.argv = ['train', '--help']\n"
    "from halonet import train\n"
    "try: train.main()\n"
    "except SystemExit: pass\n"
    "assert not {'tensorflow', 'clu'} & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert "--config.model.block_size=4" in done.stdout
