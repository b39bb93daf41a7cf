"""Several processes train as one: real ones, on virtual devices."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from halonet.training.restore import restore_model
from halonet.training.state import make_mesh
from tests.conftest import (
  arguments,
  finish,
  losses,
  run_command,
  run_processes,
  wait_for,
)


def finish_all(processes):
  return [finish(process) for process in processes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_dir):
  """A whole run of two processes of four devices, and what they printed."""
  workdir = tmp_path_factory.mktemp("runs") / "pair"
  ended = finish_all(run_processes(*arguments(data_dir, workdir)))
  assert [code for code, _ in ended] == [0, 0], ended
  return workdir, [output for _, output in ended]


def results(workdir):
  return json.loads((pathlib.Path(workdir) / "results.json").read_text())


def assert_close(workdir, expected):
  """The same losses but for rounding, and the same counts.

  Sums are taken in another order, and descent amplifies what rounding makes of
  it; another image in a batch would change its loss by far more.
  """
  actual, wanted = losses(workdir), losses(expected)
  assert sorted(actual) == sorted(wanted) == list(range(1, 25))
  np.testing.assert_allclose(
    [actual[step] for step in wanted], list(wanted.values()), rtol=1e-4
  )
  for name in ("test_images", "test_correct", "steps", "checkpoint"):
    assert results(workdir)[name] == results(expected)[name]


def test_two_processes_train_as_one(pair, eight):
  workdir, (first, second) = pair
  assert "Devices: 8 × cpu (cpu), in 2 processes" in first
  # One of them speaks.
  assert "test accuracy" in first and "test accuracy" not in second
  assert "step" not in second
  assert_close(workdir, eight[0])


def test_a_killed_process_is_no_loss_for_another_topology(
  pair, tmp_path, data_dir
):
  workdir = tmp_path / "run"
  processes = run_processes(*arguments(data_dir, workdir))
  wait_for(processes[0], "step 13/24")
  processes[1].kill()
  # JAX ends the other one, too, after a while; nobody waits for it here.
  processes[0].kill()
  finish_all(processes)
  assert not (workdir / "results.json").exists()
  # One process with two devices goes on: no image twice, none left out.
  code, output = finish(run_command(*arguments(data_dir, workdir), devices=2))
  assert code == 0, output
  # That of step 10, or that which step 12's evaluation made.
  assert "Going on from step 1" in output
  assert_close(workdir, pair[0])


def test_sigterm_to_one_saves_on_all(pair, tmp_path, data_dir):
  workdir = tmp_path / "run"
  processes = run_processes(*arguments(data_dir, workdir))
  wait_for(processes[0], "step 2/24")
  processes[1].send_signal(signal.SIGTERM)
  ended = finish_all(processes)
  saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
  for code, output in ended:
    assert code == 128 + signal.SIGTERM, output
    assert f"saved {workdir / 'checkpoints' / str(saved)}" in output
    assert "Traceback" not in output
  # On the same devices it goes on to the same bits.
  ended = finish_all(run_processes(*arguments(data_dir, workdir)))
  assert [code for code, _ in ended] == [0, 0], ended
  assert f"Going on from step {saved}," in ended[0][1]
  mesh = make_mesh()
  states = [restore_model(str(path), mesh).state for path in (workdir, pair[0])]
  leaves = [jax.tree.leaves_with_path(state) for state in states]
  for (path, actual), (_, wanted) in zip(*leaves, strict=True):
    np.testing.assert_array_equal(actual, wanted, err_msg=str(path))
  assert losses(workdir) == losses(pair[0])


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, data_dir):
  words = arguments(data_dir, "none")[1:]
  workdirs = [tmp_path / "one", tmp_path / "other"]
  ended = finish_all(run_processes(*words, workdirs=workdirs))
  for code, output in ended:
    assert code == 2, output
    assert "is not the same folder on all hosts" in output.splitlines()[-1]
    assert "Traceback" not in output
