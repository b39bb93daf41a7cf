"""One trial: a training in a process of its own, and what became of it.

A process each, so that no memory that runs out and no crash reaches the
others, and so that the worker itself never holds the accelerator, which a TPU
lends to one process only.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from halonet.errors import RunError
from halonet.sweep import rows
from halonet.sweep.study import is_held

CHILD = (sys.executable, "-m", "halonet.sweep.child", str(os.getpid()))
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What JAX, the system and TensorFlow say when memory ends.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "ut of memory", "MemoryError", "bad_alloc")


class Stopped(RunError):
  """A signal ended the sweep; nothing is lost."""

  def __init__(self, number: int):
    super().__init__(
      f"{signal.Signals(number).name}: what the trial had reached is saved; the"
      " same command goes on from there"
    )
    self.exit_code = 128 + number


class StopSignals:
  """While open, notes SIGTERM and SIGINT in `signal` and tells the child.

  The first asks the child to save and leave, the second reaches it as it is.
  """

  def __enter__(self) -> "StopSignals":
    self.signal = 0
    self.child: subprocess.Popen | None = None
    self._before = {n: signal.signal(n, self._note) for n in _SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    self.signal = number
    if self.child is None:
      # Between trials there is nothing to wait for.
      raise Stopped(number)
    self.child.send_signal(signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a training ended.

  Attributes:
    status: of the row; or None if a signal ended it, and it is to go on.
    reason: why it is not done, in a line.
  """

  status: str | None
  reason: str = ""


def run(
  arguments: Sequence[str],
  folder: str,
  log: pathlib.Path,
  show: Callable[[str], None],
  stop: StopSignals,
  child: Sequence[str] = CHILD,
) -> Outcome:
  """Trains, or goes on with a training, and waits for its end.

  Args:
    arguments: of `python -m halonet.train`.
    folder: its workdir.
    log: file to which its output is added.
    show: gets each line of it.
    stop: the signals of this process.
    child: the command that takes the arguments.
  """
  _wait_for_lock(folder, show)
  # The compiler for TPUs says what did not fit in some 200 lines more.
  tail = collections.deque(maxlen=1000)
  # To a file, not a pipe: it can end in order when this process is killed.
  with open(log, "ab") as output, open(log, "rb") as written:
    written.seek(0, os.SEEK_END)
    process = subprocess.Popen(
      [*child, *arguments],
      stdout=output,
      stderr=subprocess.STDOUT,
      # Ctrl-C in a terminal reaches this process, which passes it on once.
      start_new_session=True,
    )
    with _attended(process, stop):
      for line in _lines(written, process):
        tail.append(line)
        show(line)
      code = process.wait()
  if stop.signal and code:
    return Outcome(None)
  return _outcome(code, tail)


def _lines(file, process):
  """Lines that a process adds to a file, until it ends."""
  rest = b""
  ended = False
  while not ended:
    ended = process.poll() is not None
    *whole, rest = (rest + file.read()).split(b"\n")
    for line in whole:
      yield line.decode(errors="replace")
    if not ended:
      time.sleep(0.1)
  if rest:
    yield rest.decode(errors="replace")


@contextlib.contextmanager
def _attended(process, stop) -> Iterator[None]:
  """Passes signals on to a process, and leaves none behind."""
  stop.child = process
  try:
    if stop.signal:  # It came before there was a child to tell.
      process.send_signal(signal.SIGTERM)
    yield
  finally:
    stop.child = None
    if process.poll() is None:
      process.kill()
    process.wait()


def _wait_for_lock(folder, show):
  """Waits while another process trains in a local folder.

  Such as one whose worker was killed: it is about to save and to leave.
  """
  lock = os.path.join(folder, ".lock")
  said = False
  while is_held(lock):
    if not said:
      show(f"Waiting: another process still trains in {folder}")
      said = True
    time.sleep(0.5)


def _outcome(code, tail):
  if code == 0:
    return Outcome(rows.DONE)
  if code in [end for n in _SIGNALS for end in (128 + n, -n)]:
    return Outcome(None)
  errors = [line for line in tail if line.startswith("error: ")]
  if errors:
    # UsageError's exit code: refused before anything was done.
    status = rows.INFEASIBLE if code == 2 else rows.FAILED
    return Outcome(status, errors[-1].removeprefix("error: "))
  memory = [line for line in tail if any(sign in line for sign in _NO_MEMORY)]
  if memory:
    return Outcome(rows.FAILED, f"out of memory: {memory[-1].strip()[:400]}")
  if code == -signal.SIGKILL:
    return Outcome(
      rows.FAILED,
      "killed by SIGKILL, as the system does when its memory is used up",
    )
  if code < 0:
    return Outcome(rows.FAILED, f"killed by {signal.Signals(-code).name}")
  said = [line for line in tail if line.strip()]
  last = said[-1].strip() if said else "it said nothing"
  return Outcome(rows.FAILED, f"exit code {code}: {last[:400]}")
