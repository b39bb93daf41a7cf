"""Workers that share a grid: with Optuna's storages, and a stand-in to train.

What is trained for real is in tests/test_sweep.py.
"""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest

from halonet.errors import UsageError
from halonet.sweep import launch, pulse, records, study
from halonet.sweep.grid import Sweep
from halonet.sweep.study import open_study, read_board
from halonet.sweep.worker import Worker

CHILD = (sys.executable, str(pathlib.Path(__file__).parent / "stand_in.py"))
HALOS = ("0", "1", "2", "3")
# A worker in a process of its own.
SCRIPT = f"""
from halonet import command
from halonet.sweep.grid import Sweep
from halonet.sweep.worker import Worker
import sys

def main():
  workdir, url = sys.argv[1:]
  sweep = Sweep("configs/digits.py", {{}}, {{"model.halo_size": {HALOS},
    "seed": ("0",)}})
  worker = Worker(sweep, workdir, url, {CHILD}, beat=1, grace=2)
  worker.run()

command.run(main)
"""


def sweep(halos=HALOS, **more):
  grid = {"model.halo_size": halos, **more, "seed": ("0",)}
  return Sweep("configs/digits.py", {}, grid)


def start(workdir, url, seconds=0.0):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, str(workdir), url],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {"STEP_SECONDS": str(seconds)},
  )


def end(process):
  output, _ = process.communicate(timeout=180)
  return process.returncode, output


def starts(workdir):
  """(folder, first step, worker) of every training that was begun."""
  lines = (workdir / "starts").read_text().splitlines()
  return [(name, int(step), pid) for name, step, pid in map(str.split, lines)]


def wait_until(condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


SLOW_JOURNAL = pytest.param("journal", marks=pytest.mark.slow)


@pytest.fixture(params=["sqlite", SLOW_JOURNAL])
def url(request, tmp_path):
  if request.param == "sqlite":
    return f"sqlite:///{tmp_path}/sweep.db"
  return f"journal:{tmp_path}/shared/journal.log"


def test_two_workers_share_a_grid(tmp_path, url):
  workers = [start(tmp_path / "run", url, 0.05) for _ in range(2)]
  for code, output in map(end, workers):
    assert code == 0, output
  begun = starts(tmp_path / "run")
  names = [name for name, _, _ in begun]
  assert sorted(names) == [f"halo_size={halo},seed=0" for halo in HALOS]
  assert len({worker for _, _, worker in begun}) == 2
  worker = Worker(sweep(), str(tmp_path / "run"), url, CHILD)
  ledger = worker.board.ledger()
  assert ledger.is_complete and ledger.count(records.DONE) == 4
  assert [row.figures["accuracy"] for row in ledger.records] == [
    0.0,
    0.1,
    0.2,
    0.3,
  ]
  # Nothing is done again.
  worker.run()
  assert starts(tmp_path / "run") == begun


def test_each_trial_has_its_own_config_file(tmp_path):
  bases = "configs/digits.py", "configs/digits.py:swin_halo"
  grid = {"base": bases, "model.halo_size": ("1",), "seed": ("0",)}
  worker = Worker(Sweep(bases[0], {}, grid), str(tmp_path / "run"), None, CHILD)
  found = worker.run().records
  folders = [pathlib.Path(record.folder) for record in found]
  assert tuple((folder / "base").read_text() for folder in folders) == bases
  assert [record.curve for record in found] == [[[10, 0.5], [20, 1.0]]] * 2


@pytest.mark.parametrize(
  ("url", "elsewhere"),
  [
    ("sqlite", False),
    ("journal", True),
    pytest.param("sqlite", True, marks=pytest.mark.slow),
  ],
  indirect=["url"],
)
def test_a_killed_workers_trial_is_taken_up(tmp_path, url, elsewhere):
  workdir = tmp_path / "run"
  first = start(workdir, url, 0.05)
  wait_until(lambda: list(workdir.glob("halo*/step")))
  (saved,) = workdir.glob("halo*/step")
  wait_until(lambda: int(saved.read_text() or 0) >= 5)
  first.kill()
  end(first)
  opened = open_study(str(workdir), url)
  (trial,) = opened.get_trials(states=(optuna.trial.TrialState.RUNNING,))
  lock = pathlib.Path(trial.user_attrs["lock"])
  assert pulse.is_held(str(lock)) is False
  if elsewhere:  # No lock to be seen: the beat must tell.
    lock.unlink()
  begun = time.monotonic()
  code, output = end(start(workdir, url))
  assert code == 0, output
  assert not elsewhere or time.monotonic() - begun > 2
  counted = collections.Counter(name for name, _, _ in starts(workdir))
  assert counted.pop(saved.parent.name) == 2
  assert set(counted.values()) == {1}
  (again,) = [
    step
    for name, step, _ in starts(workdir)
    if name == saved.parent.name and step
  ]
  assert again == 15  # What it saved after its worker had gone.
  assert Worker(sweep(), str(workdir), url, CHILD).board.ledger().is_complete
  lock.unlink(missing_ok=True)


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
  workdir = tmp_path / "run"
  url = f"sqlite:///{tmp_path}/sweep.db"
  first = start(workdir, url, 0.05)
  wait_until(lambda: list(workdir.glob("halo*/step")))
  first.send_signal(signal.SIGTERM)
  code, output = end(first)
  assert code == 128 + signal.SIGTERM
  last = output.splitlines()[-1]
  assert last.startswith("error: SIGTERM: ") and "same command" in last
  assert "Traceback" not in output
  worker = Worker(sweep(), str(workdir), url, CHILD)
  assert worker.board.ledger().count(records.PENDING) == 4
  assert worker.run().count(records.DONE) == 4
  assert sum(step > 0 for _, step, _ in starts(workdir)) == 1


def test_what_fails_is_a_row_and_the_sweep_goes_on(tmp_path, capfd):
  grid = sweep(("1", "-1"), **{"model.rb": ("1.0", "2.0", "3.0", "4.0", "5.0")})
  worker = Worker(grid, str(tmp_path), child=CHILD)
  found = {
    (row.values["model.halo_size"], row.values["model.rb"]): row
    for row in worker.run().records
  }
  for (halo, _), row in found.items():
    if halo == "-1":
      assert row.status == records.INFEASIBLE
      assert "halo_size is -1; it must be at least 0" in row.reason
  ends = {
    rb: (row.status, row.reason) for (h, rb), row in found.items() if h > "0"
  }
  assert ends["1.0"] == (records.DONE, "")
  assert ends["2.0"] == (records.FAILED, "loss is nan at step 3")
  assert ends["3.0"] == (records.INFEASIBLE, "config.batch_size is odd")
  assert ends["4.0"][0] == records.FAILED
  assert ends["4.0"][1].startswith("out of memory: E0000 RESOURCE_EXHAUSTED")
  assert ends["5.0"][0] == records.FAILED and "SIGKILL" in ends["5.0"][1]
  assert len(starts(tmp_path)) == 5
  assert "Traceback" not in "".join(capfd.readouterr())

  # None of them is tried again, unless it is asked for.
  worker.run()
  assert len(starts(tmp_path)) == 5
  assert worker.board.retry_failed() == 9
  assert worker.board.ledger().count(records.PENDING) == 9
  assert worker.run().count(records.DONE) == 1
  assert len(starts(tmp_path)) == 9

  # Another grid or another config has no business here.
  with pytest.raises(UsageError, match="grid model.rb: 1.0 2.0 .* → absent"):
    Worker(sweep(), str(tmp_path), child=CHILD)
  changed = Sweep("configs/digits.py", {"batch_size": "32"}, grid.grid)
  with pytest.raises(UsageError, match="\\(batch_size: 64 → 32\\); undo"):
    Worker(changed, str(tmp_path), child=CHILD)
  capfd.readouterr()
  changed = Sweep("configs/digits.py", {"log_every": "7"}, grid.grid)
  Worker(changed, str(tmp_path), child=CHILD)
  assert "Changed since this sweep began: config.log_every: 50 → 7" in (
    capfd.readouterr().out
  )


def test_a_workdir_by_another_path(tmp_path):
  worker = Worker(sweep(("1",)), str(tmp_path / "run"), child=CHILD)
  worker.run()
  other = os.path.relpath(tmp_path / "run")
  assert Worker(sweep(("1",)), other, child=CHILD).board.ledger().is_complete
  opened = read_board(other, None).study
  assert len(opened.trials) == 1


def test_two_workers_that_take_the_same_trial(tmp_path):
  worker = Worker(sweep(("1",)), str(tmp_path), child=CHILD)
  trial, point = worker.board.take("nowhere")
  assert worker.board.take("nowhere") is None
  # One that is about to take a point may take this one.
  worker.board.release(trial)
  choosing = worker.board.study.ask()
  assert worker.board.take("nowhere") is None
  worker.board.release(choosing)
  assert worker.board.take("nowhere")[1] == point


def test_a_worker_that_was_taken_for_dead(tmp_path, monkeypatch, capfd):
  worker = Worker(sweep(("1", "2")), str(tmp_path), child=CHILD)
  runs = []
  run = launch.Launcher.run

  def suspended(*arguments):
    if not runs:
      worker.board.study.tell(0, state=optuna.trial.TrialState.FAIL)
    runs.append(arguments)
    return run(*arguments)

  monkeypatch.setattr(launch.Launcher, "run", suspended)
  assert worker.run().count(records.DONE) == 2
  assert len(runs) == 3
  assert "This worker was taken for dead" in capfd.readouterr().out


def test_workers_that_die_on_a_trial_again_and_again(tmp_path, monkeypatch):
  monkeypatch.setattr(study, "MAX_STARTS", 2)
  worker = Worker(sweep(("1",)), str(tmp_path), child=CHILD)
  for _ in range(2):
    assert worker.board.ledger().count(records.PENDING)
    trial, _ = worker.board.take("nowhere")
    worker.board.study.tell(trial, state=optuna.trial.TrialState.FAIL)
  (record,) = worker.run().records
  assert record.status == records.FAILED
  assert record.reason == "its worker died 2 times"
  assert worker.board.retry_failed() == 1
  assert worker.run().is_complete


def test_a_sweep_of_before_there_were_tasks(tmp_path):
  """Its trials hold the old rows; nothing is trained again."""
  worker = Worker(sweep(("1", "2", "3")), str(tmp_path), child=CHILD)
  row = dict(status="done", reason="", parameters=5, flops=7, attention_bytes=9)
  shape = dict(block_size=4, halo_size=1, window_size=None)
  for point, state in zip(
    worker.points, ("COMPLETE", "FAIL", "WAITING"), strict=True
  ):
    figures = dict(accuracy=None, loss=None)
    if state == "COMPLETE":
      figures = dict(accuracy=0.25, loss=2.0)
    old = row | shape | figures | {"values": point.values}
    if state == "FAIL":
      old |= {"status": "failed", "reason": "loss is nan"}
    worker.board.study.add_trial(
      optuna.create_trial(
        state=optuna.trial.TrialState[state],
        params=point.values,
        distributions={
          field: optuna.distributions.CategoricalDistribution(texts)
          for field, texts in worker.sweep.grid.items()
        },
        value=figures["accuracy"],
        user_attrs={"row": old} if state != "WAITING" else {},
      )
    )
  first, second, third = worker.run().records
  assert (first.status, first.figures, first.window) == (
    "done",
    {"accuracy": 0.25, "loss": 2.0},
    6,
  )
  assert (first.best, first.flops) == ("accuracy", 7)
  assert (second.status, second.reason) == ("failed", "loss is nan")
  assert third.figures["accuracy"] == 0.3
  assert len(starts(tmp_path)) == 1


def test_slips(tmp_path):
  (tmp_path / "config.json").touch()
  with pytest.raises(UsageError, match="is the folder of a single run"):
    Worker(sweep(), str(tmp_path))
  with pytest.raises(UsageError, match="gs://b/x cannot hold .*--storage="):
    Worker(sweep(), "gs://b/x")
  for url in ("nonsense", "postgresql://host/name", f"sqlite:///{tmp_path}"):
    with pytest.raises(UsageError, match=f"--storage {url} cannot be opened"):
      open_study("x", url)
  with pytest.raises(UsageError) as caught:
    open_study("x", "postgresql://me:secret@host/name")
  assert "me:***@host/name cannot" in str(caught.value)
  assert "secret" not in str(caught.value)
  with pytest.raises(UsageError, match="no sweep has begun"):
    read_board(str(tmp_path), None)


@pytest.mark.parametrize("told_before", [False, True])
def test_a_trials_process_saves_when_its_worker_dies(tmp_path, told_before):
  """The real child and signals, with a training that only waits.

  The worker may pass a signal on and then die, and where its threads die
  slowly, the system tells of each.
  """
  saved = tmp_path / "saved"
  code = f"""
import pathlib, time
from halonet import train
from halonet.sweep import child
from halonet.signals import StopSignals
def main():
  with StopSignals() as stop:
    print("up", flush=True)
    while not stop.signal:
      time.sleep(0.01)
    time.sleep(1)
    pathlib.Path({str(saved)!r}).touch()
train.main = main
child.main()
"""
  parent = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import os, subprocess, sys;"
      f"p = subprocess.Popen([sys.executable, '-c', {code!r},"
      " str(os.getpid())]); print(p.pid, flush=True); p.wait()",
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  pid = int(parent.stdout.readline())
  assert parent.stdout.readline() == "up\n"
  if told_before:
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
  parent.kill()
  parent.communicate()
  for _ in range(3):
    time.sleep(0.2)
    os.kill(pid, signal.SIGUSR1)
  wait_until(lambda: not is_alive(pid))
  assert saved.exists()


def is_alive(pid):
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"
