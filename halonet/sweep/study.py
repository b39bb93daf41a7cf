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
from halonet.sweep import records
from halonet.sweep.grid import GridPoint, Sweep
from halonet.sweep.pulse import Watch
from halonet.sweep.records import DONE, FAILED, Ledger, TrialRecord

# How often a trial is begun whose worker dies on it: it may be what kills them.
MAX_STARTS = 21
# What Optuna raises for a trial that another worker has ended.
_FINISHED = (ValueError, optuna.exceptions.UpdateFinishedTrialError)


def open_study(workdir: str, url: str | None) -> optuna.Study:
  """Opens the study of a sweep, and makes it where it is missing.

  Args:
    workdir: of the sweep, whose name the study has in a shared database.
    url: of a database, as SQLAlchemy writes it (`sqlite:///FILE`,
      `postgresql://…`, `mysql://…`), or `journal:FILE` for Optuna's journal;
      None for a SQLite file in the workdir.

  Raises:
    UsageError: if the storage cannot be opened.
  """
  optuna.logging.set_verbosity(optuna.logging.CRITICAL)
  # Workers may name the workdir by different paths.
  shared = f" {workdir.rstrip('/')}" if url else ""
  return optuna.create_study(
    storage=_open_storage(_storage_url(workdir, url)),
    sampler=optuna.samplers.RandomSampler(),  # Asked for nothing.
    study_name=f"halonet sweep{shared}",
    direction="maximize",
    load_if_exists=True,
  )


def read_board(workdir: str, url: str | None) -> "TrialBoard":
  """Opens the board of a sweep that has begun; UsageError if none has."""
  where = _storage_url(workdir, url)
  path = where.removeprefix("sqlite:///").removeprefix("journal:")
  if path != where and not os.path.exists(path):
    raise UsageError(f"{path} does not exist: no sweep has begun there")
  study = open_study(workdir, url)
  sweep = study.user_attrs.get("sweep")
  if sweep is None:
    raise UsageError(
      f"{where} holds no sweep of --workdir {workdir}; name --workdir and"
      " --storage as they were named when the sweep began"
    )
  return TrialBoard(study, Sweep("", {}, sweep["grid"]).points())


def _storage_url(workdir, url):
  if not url and "://" in workdir:
    raise UsageError(
      f"--workdir {workdir} cannot hold the sweep's database; name one, such as"
      " --storage=postgresql://USER@HOST/NAME, or --storage=journal:FILE"
    )
  return url or f"sqlite:///{os.path.join(workdir, 'sweep.db')}"


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


class TrialBoard:
  """Hands the points of a grid to workers, and keeps what became of them.

  Attributes:
    study: The study that the workers share.
  """

  def __init__(
    self, study: optuna.Study, points: Sequence[GridPoint], grace: float = 150
  ):
    """Takes all points of the grid, and the seconds of `Watch`."""
    self.study, self._points, self._watch = study, points, Watch(grace)

  def ledger(self) -> Ledger:
    """Reads the state of the grid."""
    retried = self.study.user_attrs.get("retried", 0)
    tried = {}
    for trial in self._trials():
      if "duplicate" not in trial.user_attrs:
        tried.setdefault(_key(_point(trial)), []).append(trial)
    return Ledger(
      [_record(p, tried.get(_key(p.values), ()), retried) for p in self._points]
    )

  def retry_failed(self) -> int:
    """Makes failed and infeasible trials pending; returns their number."""
    failed = self.ledger().count(FAILED, records.INFEASIBLE)
    # Whatever failed among the trials of lower numbers no longer counts.
    self.study.set_user_attr("retried", len(self._trials()))
    return failed

  def fail_dead(self) -> None:
    """Ends the trials of dead workers, so that their points are pending."""
    for trial in self._trials(TrialState.RUNNING):
      if self._watch.is_dead(trial):
        with contextlib.suppress(*_FINISHED):  # Another worker noticed, too.
          self.study.tell(trial.number, state=TrialState.FAIL)

  def take(self, lock: str) -> tuple[optuna.Trial, GridPoint] | None:
    """Takes a pending point; None if another worker was faster.

    Args:
      lock: path of the worker's lock file.
    """
    trial = self.study.ask()
    trial.set_user_attr("lock", lock)
    pending = [
      point
      for point, record in zip(self._points, self.ledger().records, strict=True)
      if record.status == records.PENDING
    ]
    if pending:
      # Each worker that is about to take a point leaves the next to this one.
      choosing = self._running_before(trial).count({})
      point = pending[choosing % len(pending)]
      trial.set_user_attr("point", point.values)
      # If a point has several trials, the one with the lowest number goes on.
      # A trial that has no point yet may be about to take the same.
      others = self._running_before(trial)
      if point.values not in others and {} not in others:
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

  def _trials(self, *states):
    return self.study.get_trials(deepcopy=False, states=states or None)

  def _running_before(self, trial):
    """Returns the points of running trials with lower numbers."""
    return [
      _point(other)
      for other in self._trials(TrialState.RUNNING)
      if other.number < trial.number and "duplicate" not in other.user_attrs
    ]


def _point(trial):
  # Sweeps that an earlier version began have the parameters alone.
  return trial.user_attrs.get("point", trial.params)


def _key(values):
  return tuple(sorted(values.items()))


def _record(point, trials, retried):
  """Makes a point's record from its trials."""
  record = TrialRecord(point.values)
  if not trials or trials[-1].state == TrialState.WAITING:
    return record
  latest = trials[-1]
  if latest.state == TrialState.RUNNING:
    return dataclasses.replace(record, status=records.RUNNING)
  if "row" in latest.user_attrs:
    known = records.from_dict(latest.user_attrs["row"])
    return known if known.status == DONE or latest.number >= retried else record
  deaths = sum(
    not {"row", "stopped"} & set(trial.user_attrs)
    for trial in trials
    if trial.number >= retried
  )
  if deaths < MAX_STARTS:
    return record
  reason = f"its worker died {deaths} times"
  return dataclasses.replace(record, status=FAILED, reason=reason)
