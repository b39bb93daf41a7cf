"""A worker: takes trial after trial of a grid until all are over.

Any number of workers, on any machines, share a storage. What a dead worker
leaves is taken up by another one.
"""

import dataclasses
import datetime
import json
import pathlib
import re
import signal
import time
from collections.abc import Sequence

import optuna
from etils import epath

from halonet.errors import RunError, UsageError
from halonet.signals import Stopped
from halonet.sweep import launch, pulse
from halonet.sweep.grid import GridPoint, Sweep, differences, window
from halonet.sweep.records import (
  DONE,
  FAILED,
  INFEASIBLE,
  OVER,
  PENDING,
  RUNNING,
  Ledger,
  TrialRecord,
)
from halonet.sweep.study import TrialBoard, open_study

_POLL_SECONDS = 1
_STEP = re.compile(r"step \d+/\d+ .*ETA (?:(\d+) days?, )?(\d+):(\d+):(\d+)")


class Worker:
  """Trains the trials of a grid, one after another.

  Attributes:
    sweep: The grid.
    points: Its trials.
    board: Where the workers meet.
  """

  def __init__(
    self,
    sweep: Sweep,
    workdir: str,
    url: str | None = None,
    child: Sequence[str] = launch.CHILD,
    beat: float = 30,
    grace: float = 150,
  ):
    """Opens the study, and makes it if this is the first worker.

    Args:
      sweep: the grid.
      workdir: folder that holds the folders of all trials; on several
        machines one that all of them see.
      url: as `study.open_study` takes it.
      child: the command that trains a trial.
      beat: seconds between signs of life of a trial's worker.
      grace: seconds without one, after which a worker counts as dead.

    Raises:
      UsageError: if the workdir or the storage is another sweep's or cannot be
        used.
    """
    self.sweep, self.points = sweep, sweep.points()
    self._workdir, self._child, self._beat = workdir.rstrip("/"), child, beat
    self._prepare_folder()
    study = open_study(workdir, url)
    self._claim(study)
    self.board = TrialBoard(study, self.points, grace)
    self._seconds: list[float] = []  # How long this worker's trials have taken.

  def run(self) -> Ledger:
    """Trains until all trials of the grid are over, here or elsewhere.

    Raises:
      Stopped: by SIGTERM or SIGINT.
      RunError: if the storage is no longer to be reached.
    """
    with launch.Launcher(self._child) as launcher, pulse.lock_file() as lock:
      try:
        return self._run(launcher, lock)
      except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
          f"the storage fails: {reason}; the same command goes on, when it is"
          " to be had again"
        ) from error

  def _run(self, launcher, lock):
    waiting = False
    while True:
      self.board.fail_dead()
      ledger = self.board.ledger()
      if ledger.is_complete:
        return ledger
      if ledger.count(PENDING):
        waiting = False
        taken = self.board.take(lock)
        if taken:
          self._train(*taken, launcher)
          continue
      elif not waiting:
        _say(
          "Nothing is left but what other workers train (trials:"
          f" {ledger.count(RUNNING)}). Waiting, to take up what one of them may"
          " leave; Ctrl-C does no harm"
        )
        waiting = True
      time.sleep(_POLL_SECONDS)

  def _train(self, trial, point, launcher):
    """Trains a point and records what became of it."""
    started = time.monotonic()
    try:
      with pulse.beating(trial, self._beat):
        record = self._attempt(point, launcher)
    except BaseException:
      self.board.release(trial)
      raise
    self._seconds.append(time.monotonic() - started)
    if self.board.record(trial, record):
      _say(f"  {summary(record)}")
    else:
      _say("  This worker was taken for dead; another one records the trial")

  def _attempt(self, point: GridPoint, launcher) -> TrialRecord:
    """Trains a point; raises Stopped if a signal ends it."""
    number = self.points.index(point) + 1
    folder = f"{self._workdir}/{point.name}"
    log = self._log(point)
    _say(f"Trial {number} of {len(self.points)}: {point.name}, log in {log}")
    record = TrialRecord(point.values, FAILED, folder=folder)
    try:
      config = self.sweep.config(point)
    except UsageError as error:
      return dataclasses.replace(record, status=INFEASIBLE, reason=str(error))
    record = dataclasses.replace(record, window=window(config))
    arguments = [f"--config={self.sweep.base_of(point)}", f"--workdir={folder}"]
    arguments += [f"--config.{word}" for word in self.sweep.overrides(point)]
    started = time.monotonic()
    status, reason = launcher.run(
      arguments, folder, log, lambda line: self._show(line, started)
    )
    if status is None:
      raise Stopped(
        launcher.signal or signal.SIGTERM, "what the trial had reached is saved"
      )
    if status == DONE:
      try:
        results = json.loads((epath.Path(folder) / "results.json").read_text())
        return record.with_results(results, _metrics(folder))
      except (OSError, ValueError) as error:
        status, reason = FAILED, f"no results.json: {error}"
    return dataclasses.replace(record, status=status, reason=reason)

  def _show(self, line, started):
    """Prints a line of a training if it says how far the training is."""
    step = _STEP.search(line)
    if step:
      days, hours, minutes, seconds = (int(text or 0) for text in step.groups())
      left = ((24 * days + hours) * 60 + minutes) * 60 + seconds
      line += self._grid_eta(time.monotonic() - started, left)
    if step or line.startswith(("Going on", "Waiting", "SIG", "This run is")):
      _say(f"  {line}")

  def _grid_eta(self, passed, left):
    """Says how far the grid is, and when this worker's pace completes it."""
    try:
      ledger = self.board.ledger()
    except optuna.exceptions.StorageInternalError:
      return ""  # No reason to stop a training.
    seconds = [*self._seconds, passed + left]
    rounds = ledger.count(PENDING) / max(ledger.count(RUNNING), 1)
    eta = datetime.timedelta(
      seconds=round(left + rounds * sum(seconds) / len(seconds))
    )
    return f"  | grid {ledger.count(*OVER)}/{len(self.points)}  ETA {eta}"

  def _log(self, point):
    # In a bucket nothing can be appended to a file.
    root = "runs" if "://" in self._workdir else self._workdir
    folder = pathlib.Path(root) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{point.name}.log"

  def _prepare_folder(self):
    if "://" in self._workdir:
      return
    folder = pathlib.Path(self._workdir)
    if (folder / "config.json").exists():
      raise UsageError(
        f"--workdir {folder} is the folder of a single run; name a new one"
      )
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UsageError(
        f"--workdir {folder} cannot be made: {error.strerror}"
      ) from None

  def _claim(self, study):
    """Makes the study this sweep's, or refuses."""
    new = self.sweep.to_dict()
    old = study.user_attrs.get("sweep")
    if old is not None:
      refused, changed = differences(old, new)
      if refused:
        raise UsageError(
          f"--workdir {self._workdir} belongs to another sweep ("
          + ", ".join(refused)
          + "); undo the change, or name a new --workdir"
        )
      for change in changed:
        _say(f"Changed since this sweep began: config.{change}")
    if old != new:
      study.set_user_attr("sweep", new)


def _metrics(folder):
  """Reads a training's metrics.jsonl; nothing if it is gone or damaged."""
  try:
    lines = (epath.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return list(map(json.loads, lines))
  except (OSError, ValueError):
    return []  # A figure lacks a line, and the table nothing.


def summary(record: TrialRecord) -> str:
  """Returns a record as a line."""
  if record.status != DONE:
    return f"{record.status}: {record.reason}"
  words = [
    f"{name} {value:.4f}"
    for name, value in record.figures.items()
    if isinstance(value, float)
  ]
  for value, unit, form in (
    (record.parameters, 1, "{:,.0f} parameters"),
    (record.flops, 1e6, "{:.4g} MFLOPs an image"),
    (record.peak_memory_bytes, 2**30, "{:.2f} GiB"),
    (record.images_per_second, 1, "{:.0f} images/s"),
  ):
    if value:
      words.append(form.format(value / unit))
  return ", ".join(words)


def _say(line):
  print(line, flush=True)
