"""Where a grid's workers meet: an Optuna study, and a pulse of each worker.

A trial whose worker has died is put back, so that another one takes it up. The
databases of Optuna notice a death by a heartbeat. Its journal has none, and
gets one here, of the same kind. A death on the same machine is noticed at once:
each worker holds a lock, which the system gives up with it.
"""

import contextlib
import fcntl
import os
import re
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from halonet.errors import UsageError

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 150
# How often a trial is begun whose worker dies on it: it may be what kills them.
MAX_RETRIES = 20


def open_storage(
  url: str,
  heartbeat: int = HEARTBEAT_SECONDS,
  grace: int = GRACE_SECONDS,
) -> optuna.storages.BaseStorage:
  """Opens what the workers share, and makes it where it is missing.

  Args:
    url: of a database, as SQLAlchemy writes it (`sqlite:///FILE`,
      `postgresql://…`, `mysql://…`), or `journal:FILE` for Optuna's journal.
    heartbeat: seconds between signs of life of a trial's worker.
    grace: seconds without one, after which the worker counts as dead.

  Raises:
    UsageError: if there is none.
  """
  for _ in range(4):
    try:
      return _open(url, heartbeat, grace)
    except sqlalchemy.exc.OperationalError as error:
      if "already exists" not in str(error):
        break
      time.sleep(1)  # Another worker makes the tables at this moment.
    except Exception:  # Whatever the database's driver raises: said below.
      break
  try:
    return _open(url, heartbeat, grace)
  except Exception as error:
    reason = str(error.__cause__ or error).strip().splitlines()
    shown = re.sub("://([^:/@]*):[^@]*@", r"://\1:***@", url)  # No password.
    raise UsageError(
      f"--storage {shown} cannot be opened: {reason[0] if reason else error!r};"
      " name a database, such as postgresql://USER@HOST/NAME with its driver"
      " installed, or journal:FILE on a disk that all workers share"
    ) from error


def _open(url, heartbeat, grace):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    return _storage(url, heartbeat, grace)


def _storage(url, heartbeat, grace):
  retry = optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_RETRIES)
  if url.startswith("journal:"):
    path = url.removeprefix("journal:")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return _Journal(JournalFileBackend(path), heartbeat, grace, retry)
  options = {}
  if url.startswith("sqlite"):
    options["connect_args"] = {"timeout": 60}
  else:
    options["pool_pre_ping"] = True  # Trials outlast connections.
  return _Database(
    url,
    engine_kwargs=options,
    heartbeat_interval=heartbeat,
    grace_period=grace,
    heartbeat_stale_trial_callback=retry,
  )


def put_back(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
  """Queues a trial's values once more, for any worker."""
  place = ("grid_id", "search_space")  # The sampler's marks.
  study.add_trial(
    optuna.create_trial(
      state=TrialState.WAITING,
      params=trial.params,
      distributions=trial.distributions,
      system_attrs={name: trial.system_attrs[name] for name in place},
    )
  )


def notice_deaths(study: optuna.Study) -> None:
  """Puts the trials of dead workers back."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    optuna.storages.fail_stale_trials(study)


@contextlib.contextmanager
def pulse() -> Iterator[str]:
  """Holds a lock file of this worker's, and gives its path."""
  path = os.path.join(
    tempfile.gettempdir(), f"halonet-sweep-{uuid.uuid4().hex}.lock"
  )
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
      yield path
    finally:
      os.remove(path)


def begun_here(trial: optuna.Trial, lock: str) -> None:
  """Notes whose a trial is, by the path that `pulse` gave."""
  # By number: what a trial inherits when it is put back is another's.
  trial.set_user_attr(f"lock {trial.number}", lock)


def is_held(path: str) -> bool | None:
  """Whether a process of this machine holds a lock file; None: no such file."""
  try:
    with open(path, "r+") as file:  # Network disks lock for writers only.
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return None
  return False


def _dead_here(trials):
  for trial in trials:
    path = trial.user_attrs.get(f"lock {trial.number}")
    if path is not None and is_held(path) is False:
      yield trial._trial_id


def _running(storage, study_id):
  return storage.get_all_trials(study_id, False, (TrialState.RUNNING,))


class _Database(RDBStorage):
  def record_heartbeat(self, trial_id: int) -> None:
    # The next one makes up for what a disturbed connection loses.
    with contextlib.suppress(optuna.exceptions.StorageInternalError):
      super().record_heartbeat(trial_id)

  def _get_stale_trial_ids(self, study_id: int) -> list[int]:
    stale = super()._get_stale_trial_ids(study_id)
    return sorted({*stale, *_dead_here(_running(self, study_id))})


class _Journal(JournalStorage, BaseHeartbeat):
  """The journal with a heartbeat: a number that changes while a worker lives.

  Each worker sees by its own clock for how long a number has not changed, so
  the clocks of the machines need not agree.
  """

  def __init__(self, backend, interval, grace, callback):
    super().__init__(backend)
    self._interval, self._grace, self._callback = interval, grace, callback
    self._seen: dict[int, tuple[Any, float]] = {}

  def record_heartbeat(self, trial_id: int) -> None:
    # It is finished if it was given to another worker in the meantime.
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
      self.set_trial_system_attr(trial_id, "heartbeat", uuid.uuid4().hex)

  def _get_stale_trial_ids(self, study_id: int) -> list[int]:
    trials = _running(self, study_id)
    now = time.monotonic()
    stale = set(_dead_here(trials))
    for trial in trials:
      beat = trial.system_attrs.get("heartbeat")
      last, since = self._seen.get(trial._trial_id, (None, now))
      if beat != last:
        since = now
      self._seen[trial._trial_id] = (beat, since)
      if now - since > self._grace:
        stale.add(trial._trial_id)
    return sorted(stale)

  def get_heartbeat_interval(self) -> int:
    return self._interval

  def get_heartbeat_stale_trial_callback(self):
    return self._callback
