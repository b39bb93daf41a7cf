"""scripts/sweep.py: what it says and does; a real grid among the slow ones."""

import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest

from halonet.sweep import records
from halonet.sweep.grid import read_sweep
from halonet.training.config import flatten
from tests.conftest import small_overrides

ROOT = pathlib.Path(__file__).parents[1]


def test_a_grid_from_its_first_trial_to_its_report(
  sweep, trained, data_dir, tmp_path
):
  """The training itself is another test's: it is found finished."""
  workdir = tmp_path / "run"
  words = [f"--config.{text}" for text in small_overrides(data_dir)]
  words += ["--grid.model.block_size=2", "--grid.model.halo_size=1,-1"]
  words += [f"--workdir={workdir}"]
  folder = workdir / "block_size=2,halo_size=1,seed=0"
  shutil.copytree(trained[0], folder)
  code, output, complaint = sweep(*words)
  assert code == 0, complaint
  results = json.loads((folder / "results.json").read_text())
  lines = output.splitlines()
  assert lines[0].startswith("Training 2 of 2 trials of configs/digits.py: ")
  assert "  This run is finished: 24 steps." in lines
  done = next(line for line in lines if line.startswith("  accuracy "))
  assert f"accuracy {results['test_accuracy']:.4f}, " in done
  assert f" {results['parameters']:,} parameters" in done
  assert any(
    line.startswith("  infeasible: config.model.halo_size is -1")
    for line in lines
  )
  assert lines[-3].startswith("2 trials: 1 done, 1 infeasible")
  assert lines[-1] == f"Next: open {workdir}/report/report.html in a browser"
  table = (workdir / "report" / "table.md").read_text()
  assert f"| {results['parameters']:,} |" in table
  memory = results["peak_memory_bytes"] / 2**20
  assert f"| {memory:.0f} |" in table and "peak process memory" in table

  # Again: nothing to do.
  started = time.monotonic()
  code, output, _ = sweep(*words)
  assert code == 0 and time.monotonic() - started < 5
  assert output.splitlines() == [
    "This grid is finished.",
    "2 trials: 1 done, 1 infeasible",
    f"Its report: {workdir}/report/report.html",
  ]
  (workdir / "report" / "trials.csv").unlink()
  code, output, _ = sweep("report", f"--workdir={workdir}")
  assert code == 0 and (workdir / "report" / "trials.csv").exists()

  # Another one in its place: refused, in a line.
  code, _, complaint = sweep(*words, "--seeds=0,1")
  assert code == 2 and complaint.count("\n") == 1
  assert "belongs to another sweep (grid seed: 0 → 0 1)" in complaint


def test_data_that_no_trial_finds(sweep, data_dir, tmp_path):
  """Said once, not by one training after another."""
  # An impossible model is a trial's own.
  code, _, complaint = sweep(
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.data_dir={data_dir}",
    "--config.data.train_split=tarin",
    "--grid.model.halo_size=-2,1",
  )
  assert code == 2 and complaint.count("\n") == 1
  assert "config.data.train_split: there is no split tarin" in complaint
  code, output, _ = sweep("report", f"--workdir={tmp_path / 'run'}")
  assert code == 0 and "Not finished: 0 running, 4 pending" in output


def test_dry_run(sweep, tmp_path):
  code, output, complaint = sweep("--dry_run", "--grid.model.halo_size=1,-2")
  assert code == 0, complaint
  head, _, *lines, end = output.splitlines()
  assert head == "4 settings × 1 seed of configs/digits.py (num_classes 10)"
  assert lines[0].split()[:4] == ["2", "1", "4", "85,018"]  # As it trains.
  assert "IMPOSSIBLE: config.model.halo_size is -2" in lines[1]
  assert end == "2 of 4 settings will not run as they are"


@pytest.mark.parametrize("fits", [True, False])
def test_dry_run_on_a_tpu(sweep, monkeypatch, fits):
  """What the compiler says is in other tests."""
  from halonet.tpu import step_cost

  asked = []

  def compile_step(config, topology, *, per_core_batch):
    asked.append((config.model.block_size, topology, per_core_batch))
    return step_cost.StepCost(
      topology,
      "train",
      per_core_batch,
      "TPU",
      8,
      2**33,
      2**34 if fits else 2**32,
      fits,
      1.0,
      seconds=0.0123 if fits else None,
    )

  monkeypatch.setattr(step_cost, "compile_step", compile_step)
  monkeypatch.setattr(step_cost, "check_available", lambda: None)
  code, output, _ = sweep(
    "--dry_run", "--topology=v3:2x2", "--topology=v5e:4x4,v5e:8x16"
  )
  assert code == 0
  assert len(asked) == 8  # No compilation for a batch that does not split.
  assert asked[:2] == [(2, "v3:2x2", 8), (2, "v5e:4x4", 4)]
  assert output.count("8.00 of 16.00 GiB, 12.3 ms") == (8 if fits else 0)
  assert output.count("8.00 of 4.00 GiB, –") == (0 if fits else 8)
  missed = "v5e:8x16" if fits else "v3:2x2, v5e:4x4, v5e:8x16"
  assert output.count(f"  WILL NOT RUN ON {missed}\n") == 4
  assert output.count("which 128 devices do not divide") == 4


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("--storage=nonsense",), "--storage nonsense cannot be opened"),
    (("--workdir=x", "--grid.a"), "--grid.a: write --grid.a=VALUE"),
    (("--workdir=x", "--wrong=1"), "unknown argument --wrong=1"),
    (("--workdir=x", "--topology=v3:2x2"), "--topology is for --dry_run"),
    (("report", "--workdir=x", "--seeds=1"), "report takes --workdir and"),
    (("report", "--workdir=nowhere"), "nowhere/sweep.db does not exist"),
    (("--workdir=x", "--config=none.py"), "there is no file none.py"),
    (("--dry_run", "--topology=v9:1"), "topology is 'v9:1'; it must be"),
  ],
)
def test_slips(sweep, words, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # Where runs/ may be made.
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  if "--topology=v9:1" in words:
    from halonet.tpu import step_cost

    monkeypatch.setattr(step_cost, "check_available", lambda: None)
  code, _, complaint = sweep(*words)
  assert code == 2 and complaint.count("\n") == 1
  assert message in complaint


SWEEPS = [
  (path, variant)
  for path in sorted((ROOT / "configs/sweeps").glob("*.py"))
  for variant in runpy.run_path(str(path))["VARIANTS"]
]


@pytest.mark.parametrize(
  "path, variant", SWEEPS, ids=[f"{p.name}:{v}" for p, v in SWEEPS]
)
def test_the_configs(path, variant):
  """Every point of every variant is possible and has its own values."""
  text = path.read_text()
  assert "halonet" not in re.findall(r"^(?:import|from) (\w+)", text, re.M)
  sweep = read_sweep(f"{path}:{variant}")
  assert len({point.name for point in sweep.points()}) > 1
  for point in sweep.points():
    config = flatten(sweep.config(point)) | {"base": sweep.base_of(point)}
    for field, value in point.setting.items():
      assert str(config[field]) == value


@pytest.mark.slow
def test_the_digits_grid_killed_and_taken_up(tmp_path, sweep):
  """The default grid, whole; its first trial's worker dies in the middle."""
  workdir = tmp_path / "run"
  words = (f"--workdir={workdir}",)
  process = subprocess.Popen(
    [sys.executable, str(ROOT / "scripts" / "sweep.py"), *words],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  for line in process.stdout:
    if "step 75/150" in line:
      break
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, output, complaint = sweep(*words)
  assert code == 0, complaint
  step = re.search(r"Going on from step (\d+)", output)
  assert 75 <= int(step[1]) < 150  # Not at the checkpoint of step 50.
  assert "4 trials: 4 done" in output
  accuracies = [
    float(text) for text in re.findall(r"^  accuracy (\S+),", output, re.M)
  ]
  assert len(accuracies) == 4 and min(accuracies) > 0.9
  assert records.DONE in (workdir / "report" / "trials.csv").read_text()
