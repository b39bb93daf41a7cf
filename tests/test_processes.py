"""Several processes train as one: real ones, on virtual devices."""

import json
import shutil
import signal

import numpy as np

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


def rows(workdir, figure):
  """Step → value of a figure."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {row["step"]: row[figure] for row in found if figure in row}


def saved(workdir):
  return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_run_on_two_hosts_and_then_on_one(eight, tmp_path, data_dir):
  workdir = tmp_path / "run"
  words = arguments(data_dir, workdir)

  # SIGTERM to one saves on all.
  processes = run_processes(*words)
  wait_for(processes[0], "step 2/24")
  processes[1].send_signal(signal.SIGTERM)
  ended = finish_all(processes)
  step = saved(workdir)
  assert 2 <= step < 12
  checkpoint = workdir / "checkpoints" / str(step)
  for code, output in ended:
    assert code == 128 + signal.SIGTERM, output
    assert f"saved {checkpoint}" in output and "Traceback" not in output

  # They go on from there, over an evaluation, until one is killed.
  processes = run_processes(*words)
  wait_for(processes[0], f"Going on from step {step}, from {checkpoint}")
  wait_for(processes[0], "step 14/24")
  processes[1].kill()
  # JAX ends the other one, too, after a while; nobody waits for it here.
  processes[0].kill()
  _, (_, second) = finish_all(processes)
  # One of them speaks.
  assert "step 1" not in second and "accuracy" not in second
  assert not (workdir / "results.json").exists()

  # One process with two devices ends it: no image twice, none left out.
  code, output = finish(run_command(*words, devices=2))
  assert code == 0, output
  assert "Going on from step 1" in output

  # All of it is what one process of eight devices did.
  whole, _ = eight
  actual, expected = losses(workdir), losses(whole)
  assert sorted(actual) == sorted(expected) == list(range(1, 25))
  # Sums are taken in another order, and descent amplifies what rounding makes
  # of it; another image in a batch would change its loss by far more.
  np.testing.assert_allclose(
    [actual[step] for step in expected], list(expected.values()), rtol=1e-4
  )
  # Evaluated by two processes after step 12, and by one after step 24.
  assert rows(workdir, "test_images") == {12: 450, 24: 450}
  assert rows(workdir, "test_accuracy") == rows(whole, "test_accuracy")


def test_an_error_of_the_first_ends_all(photos, tmp_path):
  folder = tmp_path / "photos"
  shutil.copytree(photos, folder)
  # The first process evaluates the first half: it alone meets this one.
  damaged = folder / "val" / "china" / "000.JPEG"
  damaged.write_bytes(damaged.read_bytes()[:200])
  words = arguments(
    folder,
    tmp_path / "run",
    "data.name=folder",
    "data.test_split=val",
    "batch_size=8",
    "eval_every=2",
  )
  first, second = finish_all(run_processes(*words))
  assert first[0] == 1
  assert f"error: {damaged} cannot be decoded" in first[1]
  # It does not wait for the other, and JAX ends that one.
  assert second[0] != 0


def test_another_config_on_one_host_is_refused(tmp_path, data_dir):
  words = arguments(data_dir, tmp_path / "run")
  first, second = run_processes(*words, extra=([], ["--config.seed=1"]))
  for code, output in finish_all([first, second]):
    assert code == 2, output
    assert "process 1 sees other config fields than process 0" in output


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, data_dir):
  words = arguments(data_dir, "none")[1:]
  extra = [[f"--workdir={tmp_path / name}"] for name in ("one", "other")]
  ended = finish_all(run_processes(*words, extra=extra))
  for code, output in ended:
    assert code == 2, output
    assert "is not the same folder on all hosts" in output.splitlines()[-1]
    assert "Traceback" not in output
