"""A package outside halonet/: trained, killed, resumed, swept, by its names.

The files of halonet/ know none of them; tests/test_architecture.py sees to it.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from halonet import evaluate, predict
from halonet.parallel import make_mesh
from halonet.training.checkpoint import Checkpoints
from halonet.training.restore import restore_model
from tests.conftest import finish, run_command, wait_for

CONFIG = "--config=tests/extension/config.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A whole run, and one that was killed and then resumed."""
  folder = tmp_path_factory.mktemp("extension")
  whole, killed = (str(folder / name) for name in ("whole", "killed"))
  process = run_command(CONFIG, f"--workdir={killed}")
  wait_for(process, "step 20/40  test")
  process.send_signal(signal.SIGKILL)
  process.communicate()
  for workdir in (whole, killed):
    code, output = finish(run_command(CONFIG, f"--workdir={workdir}"))
    assert code == 0, output
  assert "Going on from step" in output
  return whole, killed, output


def test_a_killed_run_ends_with_the_same_bits(run):
  states = [restore_model(path, make_mesh()).state for path in run[:2]]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert "batch_stats" not in states[0].collections
  # A collection of its own is state, and a counter is no average.
  assert states[0].collections["counters"]["batches"] == 40
  assert states[0].ema["counters"]["batches"] == 40


def test_the_tasks_own_figures_are_everywhere(run):
  workdir, _, output = run
  results = json.loads((pathlib.Path(workdir) / "results.json").read_text())
  assert results["best"] == "share_within_10_degrees"
  assert results["test_share_within_10_degrees"] > 0.5  # 0.11 by chance.
  assert results["test_images"] == 64 and results["test_median_degrees"] < 10
  assert "accuracy" not in json.dumps(results)
  assert "  loss " in output and "  error " in output
  metadata = (pathlib.Path(workdir) / "metadata.json").read_text()
  assert json.loads(metadata) == {"unit": "degrees"}
  checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", "nothing")
  checkpoints.close()
  assert set(checkpoints.scores()) >= {20, 40}


def test_it_is_evaluated(run, run_main):
  code, output, complaint = run_main(evaluate.main, f"--workdir={run[0]}")
  assert code == 0, complaint
  assert "test share_within_10_degrees 0." in output


def test_it_predicts(run, run_main, tmp_path):
  path = tmp_path / "bar.png"
  Image.new("RGB", (32, 32)).save(path)
  code, output, complaint = run_main(
    predict.main, f"--workdir={run[0]}", str(path)
  )
  assert code == 0, complaint
  assert output.strip().endswith(" degrees")
  # Its host attends to nothing that could be drawn.
  words = [f"--workdir={run[0]}", f"--attention={tmp_path}/a.png", str(path)]
  code, _, complaint = run_main(predict.main, *words)
  assert code == 2 and "has no attention in blocks" in complaint


def test_its_operator_serves_the_house_and_is_swept(tmp_path):
  """Through the sweep's own command, by the task's best figure."""
  config = tmp_path / "sweep.py"
  config.write_text(
    "def get_config():\n"
    "  return dict(\n"
    '    base="tests/extension/config.py:halonet_h1",\n'
    '    set={"steps": 4, "eval_every": 4, "optimizer.warmup_steps": 1},\n'
    '    grid={"model.kernel_size": (1, 3)},\n'
    "    seeds=(0,),\n"
    "  )\n"
  )
  workdir = tmp_path / "runs"
  # As a person calls it: a script does not have the folder on its path.
  words = [f"--config={config}", f"--workdir={workdir}"]
  done = subprocess.run(
    [sys.executable, "scripts/sweep.py", *words],
    capture_output=True,
    text=True,
  )
  output = done.stdout
  assert done.returncode == 0, done.stderr
  assert "2 trials: 2 done" in output
  table = (workdir / "report" / "table.md").read_text()
  header, _, *rows = table.splitlines()
  assert "share_within_10_degrees" in header and "accuracy" not in table
  assert len(rows) == 2 and "| 1 |" in rows[0] and "| 3 |" in rows[1]
  shutil.rmtree(workdir)
