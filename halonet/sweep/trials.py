"""A worker: takes trial after trial of a grid until all are over.

Any number of workers, on any machines, do the same on one storage. Which trial
is whose is decided there, by Optuna: its grid sampler hands out every point
once, and what a dead worker leaves is queued again.
"""

import dataclasses
import datetime
import json
import logging
import os
import pathlib
import re
import signal
import time
from collections.abc import Sequence

import optuna
from etils import epath

from halonet.errors import RunError, UsageError
from halonet.sweep import rows, study, training
from halonet.sweep.grid import Point, Sweep, differences

_POLL_SECONDS = 1
_STEP = re.compile(r"step (\d+)/(\d+) .*ETA")


class _NotDone(Exception):
  """A trial ended with a row that has no accuracy, or with none at all."""


def storage_url(workdir: str, url: str | None) -> str:
  """Where the workers meet: by default a SQLite file in a local workdir.

  Raises:
    UsageError: if the workdir is not local and no storage is named.
  """
  if url:
    return url
  if "://" in workdir:
    raise UsageError(
      f"--workdir {workdir} cannot hold the sweep's database; name one, such as"
      " --storage=postgresql://USER@HOST/NAME, or --storage=journal:FILE"
    )
  return f"sqlite:///{os.path.join(workdir, 'sweep.db')}"


def load(
  workdir: str, url: str | None, **options: int
) -> tuple[optuna.Study, dict]:
  """Opens the study of a grid that has been begun; and what it sweeps.

  Raises:
    UsageError: if none has been.
  """
  where = storage_url(workdir, url)
  path = where.removeprefix("sqlite:///").removeprefix("journal:")
  if path != where and not os.path.exists(path):
    raise UsageError(f"{path} does not exist: no sweep has begun there")
  optuna.logging.set_verbosity(logging.CRITICAL)
  try:
    opened = optuna.load_study(
      study_name=_name(workdir, url),
      storage=study.open_storage(where, **options),
    )
    return opened, opened.user_attrs["sweep"]
  except KeyError:
    raise UsageError(
      f"{where} holds no sweep of --workdir {workdir}; name --workdir and"
      " --storage as they were named when the sweep began"
    ) from None


class Worker:
  """Trains the trials of a grid, one after another.

  Attributes:
    sweep: the grid.
    points: its trials.
    study: where the workers meet.
  """

  def __init__(
    self,
    sweep: Sweep,
    workdir: str,
    url: str | None = None,
    child: Sequence[str] = training.CHILD,
    **options: int,
  ):
    """Opens the study, and makes it if this is the first worker.

    Args:
      sweep: the grid.
      workdir: folder that holds the folders of all trials; on several
        machines one that all of them see.
      url: as `study.open_storage` takes it, or None for a file in the workdir.
      child: the command that trains a trial.
      **options: of `study.open_storage`.

    Raises:
      UsageError: if the workdir or the storage is another sweep's or cannot be
        used.
    """
    self.sweep, self.points = sweep, sweep.points()
    self._workdir, self._child = workdir.rstrip("/"), child
    self._prepare_folder()
    optuna.logging.set_verbosity(logging.CRITICAL)  # The rows say it all.
    self.study = optuna.create_study(
      storage=study.open_storage(storage_url(workdir, url), **options),
      study_name=_name(workdir, url),
      sampler=optuna.samplers.GridSampler(sweep.grid, seed=0),
      direction="maximize",
      load_if_exists=True,
    )
    self._claim()
    self._seconds: list[float] = []  # What this worker's trials have taken.

  def ledger(self) -> rows.Ledger:
    return rows.read_ledger(self.study, self.points, study.MAX_RETRIES)

  def retry_failed(self) -> int:
    """Queues the failed and infeasible trials again; gives their number."""
    failed = {
      rows.key(row.values)
      for row in self.ledger().rows
      if row.status in (rows.FAILED, rows.INFEASIBLE)
    }
    latest = {}
    for trial in self.study.get_trials(deepcopy=False):
      if rows.key(trial.params) in failed:
        latest[rows.key(trial.params)] = trial
    for trial in latest.values():
      study.put_back(self.study, trial)
    return len(latest)

  def run(self) -> rows.Ledger:
    """Trains until all trials of the grid are over, here or elsewhere.

    Raises:
      Stopped: by SIGTERM or SIGINT.
      RunError: if the storage is no longer to be reached.
    """
    with training.StopSignals() as stop, study.pulse() as lock:
      try:
        return self._run(stop, lock)
      except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
          f"the storage fails: {reason}; the same command goes on, when it is"
          " to be had again"
        ) from error

  def _run(self, stop, lock):
    waiting = False
    while True:
      study.notice_deaths(self.study)
      ledger = self.ledger()
      for trial in ledger.lost:
        study.put_back(self.study, trial)
      if ledger.is_complete:
        return ledger
      if ledger.count(rows.PENDING):
        waiting = False
        self._train_one(stop, lock)
        continue
      if not waiting:
        _say(
          "Nothing is left but what other workers train (trials:"
          f" {ledger.count(rows.RUNNING)}). Waiting, to take up what one of"
          " them may leave; Ctrl-C does no harm"
        )
        waiting = True
      time.sleep(_POLL_SECONDS)

  def _train_one(self, stop, lock):
    self._taken_over = False
    try:
      self.study.optimize(
        lambda trial: self._objective(trial, stop, lock),
        n_trials=1,
        catch=(_NotDone,),
      )
    except ValueError:  # Optuna's, for a trial that has ended elsewhere.
      if not self._taken_over:
        raise

  def _objective(self, trial, stop, lock):
    study.begun_here(trial, lock)
    values = {
      field: trial.suggest_categorical(field, texts)
      for field, texts in self.sweep.grid.items()
    }
    if self._has_another(trial):
      trial.set_user_attr("duplicate", True)
      raise optuna.TrialPruned
    point = next(point for point in self.points if point.values == values)
    started = time.monotonic()
    row = self._train(point, stop)
    if row is None:
      frozen = self.study._storage.get_trial(trial._trial_id)
      study.put_back(self.study, frozen)
      raise training.Stopped(stop.signal or signal.SIGTERM)
    self._seconds.append(time.monotonic() - started)
    try:
      rows.record(trial, row)
    except optuna.exceptions.UpdateFinishedTrialError:
      _say("  This worker was taken for dead; another one records the trial")
      self._taken_over = True
      raise _NotDone from None
    _say(f"  {summary(row)}")
    if row.status != rows.DONE:
      raise _NotDone
    return row.accuracy

  def _has_another(self, trial):
    """Whether two workers took the same point at the same moment."""
    return any(
      other.number < trial.number
      and other.params == trial.params
      and other.state in (optuna.trial.TrialState.RUNNING, _COMPLETE)
      and not other.user_attrs.get("duplicate")
      for other in self.study.get_trials(deepcopy=False)
    )

  def _train(self, point: Point, stop) -> rows.Row | None:
    """Trains a point; its row, or None if a signal ended it."""
    number = self.points.index(point) + 1
    folder = f"{self._workdir}/{point.name}"
    log = self._log(point)
    _say(f"Trial {number} of {len(self.points)}: {point.name}, log in {log}")
    row = rows.Row(values=point.values, folder=folder)
    try:
      config = self.sweep.config(point)
    except UsageError as error:
      return dataclasses.replace(row, status=rows.INFEASIBLE, reason=str(error))
    if "h" in "".join(config.model.operators):
      row = dataclasses.replace(
        row,
        block_size=config.model.block_size,
        halo_size=config.model.halo_size,
      )
    elif "p" in "".join(config.model.operators):
      row = dataclasses.replace(row, window_size=config.model.window_size)
    arguments = [f"--config={self.sweep.base}", f"--workdir={folder}"]
    arguments += [f"--config.{word}" for word in self.sweep.overrides(point)]
    outcome = training.run(
      arguments, folder, log, self._shower(), stop, self._child
    )
    if outcome.status is None:
      return None
    row = dataclasses.replace(row, status=outcome.status, reason=outcome.reason)
    return _with_figures(row, config, folder)

  def _shower(self):
    """Prints those lines of a training that say how far it is."""
    started = time.monotonic()
    first = None

    def show(line):
      nonlocal first
      step = _STEP.search(line)
      if not step:
        if line.startswith(("Going on", "Waiting", "SIG", "This run is")):
          _say(f"  {line}")
        return
      done, of = int(step[1]), int(step[2])
      passed = time.monotonic() - started
      if first is None:
        first = done, passed
        _say(f"  {line}")
        return
      speed = (done - first[0]) / max(passed - first[1], 1e-3)
      left = (of - done) / max(speed, 1e-9)
      _say(f"  {line}  {self._grid_eta(passed, left)}")

    return show

  def _grid_eta(self, passed, left):
    """How far the grid is, and when it will be done at this worker's pace."""
    try:
      ledger = self.ledger()
    except optuna.exceptions.StorageInternalError:
      return ""  # No reason to stop a training.
    seconds = [*self._seconds, passed + left]
    workers = max(ledger.count(rows.RUNNING), 1)
    rounds = ledger.count(rows.PENDING) / workers
    eta = datetime.timedelta(
      seconds=round(left + rounds * sum(seconds) / len(seconds))
    )
    over = len(ledger.rows) - ledger.count(rows.RUNNING, rows.PENDING)
    return f"| grid {over}/{len(ledger.rows)}  ETA {eta}"

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

  def _claim(self):
    """Makes the study this sweep's, or refuses."""
    new = self.sweep.to_dict()
    old = self.study.user_attrs.get("sweep")
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
      self.study.set_user_attr("sweep", new)


_COMPLETE = optuna.trial.TrialState.COMPLETE


def _with_figures(row, config, folder):
  """Adds what a training has written, and what its model costs."""
  path = epath.Path(folder)
  if (path / "labels.txt").exists():  # It may have failed before.
    from halonet.sweep import counts

    labels = (path / "labels.txt").read_text().splitlines()
    try:
      cost = counts.count(config, len(labels))
    except ValueError as error:  # No reason to lose what was trained.
      row = dataclasses.replace(row, reason=row.reason or f"uncounted: {error}")
    else:
      row = dataclasses.replace(
        row,
        parameters=cost.parameters,
        flops=cost.flops,
        attention_bytes=cost.attention_bytes,
      )
  if row.status != rows.DONE:
    return row
  try:
    results = json.loads((path / "results.json").read_text())
  except (OSError, ValueError) as error:
    return dataclasses.replace(
      row, status=rows.FAILED, reason=f"no results.json: {error}"
    )
  return dataclasses.replace(
    row,
    accuracy=results["test_accuracy"],
    loss=results["test_loss"],
    # 0 if this process only evaluated.
    images_per_second=results["images_per_second"] or None,
    peak_memory_bytes=results.get("peak_memory_bytes"),
    peak_memory_of=results.get("peak_memory_of"),
    device=results["device"],
  )


def summary(row: rows.Row) -> str:
  """A row in a line."""
  if row.status != rows.DONE:
    return f"{row.status}: {row.reason}"
  words = [f"accuracy {row.accuracy:.4f}, loss {row.loss:.4f}"]
  if row.parameters:
    words.append(f"{row.parameters:,} parameters")
    words.append(f"{row.flops / 1e6:.4g} MFLOPs an image")
  if row.peak_memory_bytes:
    words.append(f"{row.peak_memory_bytes / 2**30:.2f} GiB")
  if row.images_per_second:
    words.append(f"{row.images_per_second:.0f} images/s")
  return ", ".join(words)


def _name(workdir, url):
  """Of the study: several sweeps may share a database."""
  if not url:  # The folder's own, by whatever path it is named.
    return "halonet sweep"
  return f"halonet sweep {workdir.rstrip('/')}"


def _say(line):
  print(line, flush=True)
