"""Signs of life: a lock file for workers of this machine, a beat for others.

Both are recorded in user attributes of a running trial: "lock" holds the path
of its worker's lock file, "beat" a number that changes while the worker lives.
"""

import contextlib
import fcntl
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator

import optuna


@contextlib.contextmanager
def lock_file() -> Iterator[str]:
  """Holds a new lock file, which the system gives up with this process."""
  path = os.path.join(
    tempfile.gettempdir(), f"halonet-sweep-{uuid.uuid4().hex}.lock"
  )
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield path
    # Left behind by an error: it shows others that nobody holds it.
    os.remove(path)


def is_held(path: str) -> bool | None:
  """Returns whether a process of this machine holds a lock file.

  None if there is no such file here.
  """
  try:
    with open(path, "r+") as file:  # Network disks lock for writers only.
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return None
  return False


@contextlib.contextmanager
def beating(trial: optuna.Trial, seconds: float) -> Iterator[None]:
  """Changes the beat of a trial every few seconds, in a thread."""
  over = threading.Event()

  def beat():
    while not over.wait(seconds):
      # A disturbed connection loses one beat; the next makes up for it. The
      # trial is finished if this worker was taken for dead.
      with contextlib.suppress(optuna.exceptions.OptunaError, OSError):
        trial.set_user_attr("beat", uuid.uuid4().hex)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


class Watch:
  """Tells which trials' workers have died.

  The time without a beat is measured by this process's clock, so the clocks of
  the machines need not agree.
  """

  def __init__(self, grace: float):
    """Takes the seconds without a beat after which a worker counts as dead."""
    self._grace = grace
    self._beats: dict[int, tuple[str | None, float]] = {}

  def is_dead(self, trial: optuna.trial.FrozenTrial) -> bool:
    """Returns whether the worker of a running trial has died."""
    now = time.monotonic()
    beat = trial.user_attrs.get("beat")
    last, since = self._beats.get(trial.number, (None, now))
    since = since if beat == last else now
    self._beats[trial.number] = beat, since
    lock = trial.user_attrs.get("lock", "")
    return is_held(lock) is False or now - since > self._grace
