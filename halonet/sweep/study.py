"""Where the workers of a grid meet: an Optuna study that they share.

Each worker creates its trials itself and notes in their user attributes what
others must know: "point", the values that are trained, "duplicate" if another
worker trains them already, "stopped" if a signal ended the trial, "row", the
record of what became of it, and the signs of life of `halonet.sweep.pulse`.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Sequence

import optuna
import sqlalchemy
from optuna.trial import TrialState

from halonet.errors import UsageError
from halonet.sweep.grid import Point, Sweep
from halonet.sweep.pulse import Watch
from halonet.sweep.records import (
  DONE,
  FAILED,
  OVER,
  PENDING,
  RUNNING,
  TrialRecord,
  from_dict,
)

# How often a trial is begun whose worker dies on it: it may be what kills them.
MAX_STARTS = 21
# What Optuna raises for a trial that another worker has ended.
_FINISHED = (ValueError, optuna.exceptions.UpdateFinishedTrialError)


def open_study(workdir: str, url: str | None, new: bool) -> optuna.Study:
  """Opens the study of a sweep.

  Args:
    workdir: of the sweep, whose name the study has in a shared database.
    url: of a database, as SQLAlchemy writes it (`sqlite:///FILE`,
      `postgresql://…`, `mysql://…`), or `journal:FILE` for Optuna's journal;
      None for a SQLite file in the workdir.
    new: whether it may be made where it is missing.

  Raises:
    UsageError: if there is none, or the storage cannot be opened.
  """
  if not url and "://" in workdir:
    raise UsageError(
      f"--workdir {workdir} cannot hold the sweep's database; name one, such as"
      " --storage=postgresql://USER@HOST/NAME, or --storage=journal:FILE"
    )
  where = url or f"sqlite:///{os.path.join(workdir, 'sweep.db')}"
  path = where.removeprefix("sqlite:///").removeprefix("journal:")
  if not new and path != where and not os.path.exists(path):
    raise UsageError(f"{path} does not exist: no sweep has begun there")
  optuna.logging.set_verbosity(optuna.logging.CRITICAL)
  storage = _open_storage(where)
  # Workers may name the folder by different paths.
  name = f"halonet sweep {workdir.rstrip('/')}" if url else "halonet sweep"
  sampler = optuna.samplers.RandomSampler()  # Asked for nothing.
  if new:
    return optuna.create_study(
      storage=storage,
      sampler=sampler,
      study_name=name,
      direction="maximize",
      load_if_exists=True,
    )
  with contextlib.suppress(KeyError):
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    if "sweep" in study.user_attrs:
      return study
  raise UsageError(
    f"{where} holds no sweep of --workdir {workdir}; name --workdir and"
    " --storage as they were named when the sweep began"
  )


def read_board(workdir: str, url: str | None) -> "TrialBoard":
  """Opens the board of a sweep that has begun, to report on it."""
  study = open_study(workdir, url, new=False)
  points = Sweep("", {}, study.user_attrs["sweep"]["grid"]).points()
  return TrialBoard(study, points)


def _open_storage(url, attempts=5):
  try:
    if url.startswith("journal:"):
      path = url.removeprefix("journal:")
      os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
      backend = optuna.storages.journal.JournalFileBackend(path)
      return optuna.storages.JournalStorage(backend)
    # A connection for each transaction: trials outlast connections.
    options = {"poolclass": sqlalchemy.NullPool}
    if url.startswith("sqlite"):
      options["connect_args"] = {"timeout": 60}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)
  except Exception as error:  # Whatever the database's driver raises.
    # Another worker makes the tables at this moment.
    busy = isinstance(error, sqlalchemy.exc.IntegrityError)
    if attempts > 1 and (busy or "already exists" in str(error)):
      time.sleep(1)
      return _open_storage(url, attempts - 1)
    reason = str(error.__cause__ or error).strip().splitlines()
    shown = re.sub("://([^:/@]*):[^@]*@", r"://\1:***@", url)  # No password.
    raise UsageError(
      f"--storage {shown} cannot be opened: {reason[0] if reason else error!r};"
      " name a database, such as postgresql://USER@HOST/NAME with its driver"
      " installed, or journal:FILE on a disk that all workers share"
    ) from error


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The state of a grid: the records of all points, in their order."""

  records: list[TrialRecord]

  @property
  def is_complete(self) -> bool:
    return self.count(*OVER) == len(self.records)

  def count(self, *statuses: str) -> int:
    """Counts the trials that have one of these statuses."""
    return sum(record.status in statuses for record in self.records)


class TrialBoard:
  """Hands the points of a grid to workers, and keeps what became of them.

  Attributes:
    study: The study that the workers share.
  """

  def __init__(
    self, study: optuna.Study, points: Sequence[Point], grace: float = 150
  ):
    """Takes all points of the grid, and the seconds of `Watch`."""
    self.study = study
    self._points = points
    self._watch = Watch(grace)

  def ledger(self) -> Ledger:
    """Reads the state of the grid."""
    return self._ledger(self.study.get_trials(deepcopy=False))

  def retry_failed(self) -> int:
    """Makes failed and infeasible trials pending; returns their number."""
    ledger = self.ledger()
    # Whatever failed among the trials with lower numbers does not count.
    self.study.set_user_attr("retried", len(self.study.get_trials()))
    return ledger.count(*OVER) - ledger.count(DONE)

  def fail_dead(self) -> None:
    """Ends the trials of dead workers, so that their points are pending."""
    for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
      if self._watch.is_dead(trial):
        with contextlib.suppress(*_FINISHED):  # Another worker noticed, too.
          self.study.tell(trial.number, state=TrialState.FAIL)

  def take(self, lock: str) -> tuple[optuna.Trial, Point] | None:
    """Takes a pending point; None if another worker was faster.

    Args:
      lock: path of the worker's lock file.
    """
    trial = self.study.ask()
    trial.set_user_attr("lock", lock)
    trials = self.study.get_trials(deepcopy=False)
    records = zip(self._points, self._ledger(trials).records, strict=True)
    pending = [point for point, record in records if record.status == PENDING]
    if pending:
      # Workers that are about to take a point leave this one the next.
      choosing = [t for t in _running_before(trial, trials) if not _values(t)]
      point = pending[len(choosing) % len(pending)]
      trial.set_user_attr("point", point.values)
      # Of several trials of a point, the one with the lowest number goes on.
      # A trial that has no point yet may be about to take the same.
      trials = self.study.get_trials(deepcopy=False)
      if not any(
        _values(other) in (point.values, {})
        for other in _running_before(trial, trials)
      ):
        return trial, point
    trial.set_user_attr("duplicate", True)
    self.study.tell(trial, state=TrialState.FAIL)
    return None

  def record(self, trial: optuna.Trial, record: TrialRecord) -> bool:
    """Ends a trial; False if its worker had been taken for dead."""
    try:
      trial.set_user_attr("row", dataclasses.asdict(record))
      if record.status == DONE:
        self.study.tell(trial, record.figures[record.best])
      else:
        self.study.tell(trial, state=TrialState.FAIL)
    except _FINISHED:
      return False
    return True

  def release(self, trial: optuna.Trial) -> None:
    """Leaves a trial to whoever goes on with the grid."""
    with contextlib.suppress(*_FINISHED):
      trial.set_user_attr("stopped", True)
      self.study.tell(trial, state=TrialState.FAIL)

  def _ledger(self, trials):
    retried = self.study.user_attrs.get("retried", 0)
    tried = {}
    for trial in trials:
      if not trial.user_attrs.get("duplicate"):
        tried.setdefault(_key(_values(trial)), []).append(trial)
    return Ledger(
      [
        _record(point, tried.get(_key(point.values), []), retried)
        for point in self._points
      ]
    )


def _running_before(trial, trials):
  return [
    other
    for other in trials
    if other.number < trial.number
    and other.state == TrialState.RUNNING
    and not other.user_attrs.get("duplicate")
  ]


def _values(trial):
  # Sweeps that an earlier version began have the parameters alone.
  return trial.user_attrs.get("point", trial.params)


def _key(values):
  return tuple(sorted(values.items()))


def _record(point, trials, retried):
  """Makes a point's record from its trials."""
  record = TrialRecord(point.values)
  if not trials:
    return record
  latest = trials[-1]
  if latest.state == TrialState.RUNNING:
    return dataclasses.replace(record, status=RUNNING)
  if latest.state == TrialState.WAITING:
    return record
  if "row" in latest.user_attrs:
    known = from_dict(latest.user_attrs["row"])
    return known if known.status == DONE or latest.number >= retried else record
  deaths = sum(
    not {"row", "stopped"} & set(trial.user_attrs)
    for trial in trials
    if trial.number >= retried
  )
  if deaths < MAX_STARTS:
    return record
  return dataclasses.replace(
    record, status=FAILED, reason=f"its worker died {deaths} times"
  )
