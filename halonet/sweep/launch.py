"""Runs the trainings of a worker, each in a process of its own.

Separate processes keep a crash, or memory that runs out, from reaching the
other trials. They also keep the worker itself off the accelerator, which a TPU
lends to one process only.
"""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from halonet.signals import STOP_SIGNALS, Stopped, StopSignals
from halonet.sweep.pulse import is_held
from halonet.sweep.records import DONE, FAILED, INFEASIBLE

CHILD = (sys.executable, "-m", "halonet.sweep.child", str(os.getpid()))
# What JAX, the system and TensorFlow say when memory ends.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "ut of memory", "MemoryError", "bad_alloc")


class Launcher(StopSignals):
  """Runs trainings one after another and passes this process's signals on.

  While it is open, the first signal asks the training to save and leave, and
  the second one ends it. Between trainings a signal raises Stopped.
  """

  def __init__(self, child: Sequence[str] = CHILD):
    """Takes the command that trains, without its arguments."""
    super().__init__(self._tell_child)
    self._command = child
    self._child: subprocess.Popen | None = None

  def run(
    self,
    arguments: Sequence[str],
    folder: str,
    log: pathlib.Path,
    show: Callable[[str], None],
  ) -> tuple[str | None, str]:
    """Begins or continues a training, and waits for its end.

    Args:
      arguments: of `python -m halonet.train`.
      folder: its workdir.
      log: file to which its output is added.
      show: called with each line of the output.

    Returns:
      Status and reason of the record; status None if a signal ended the
      training, and the same command is to take it up again.
    """
    _wait_for_lock(folder, show)
    # The TPU compiler adds some 200 lines to its word that memory ran out.
    tail = collections.deque(maxlen=1000)
    # A file, not a pipe: the training can end in order if this process dies.
    with open(log, "ab") as output, open(log, "rb") as written:
      written.seek(0, os.SEEK_END)
      child = self._child = subprocess.Popen(
        [*self._command, *arguments],
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C in a terminal reaches this process, which passes it on once.
        start_new_session=True,
      )
      try:
        if self.signal:  # It came before there was a child to tell.
          child.send_signal(signal.SIGTERM)
        for line in _lines(written, child):
          tail.append(line)
          show(line)
      finally:
        self._child = None
        if child.poll() is None:
          child.kill()
        code = child.wait()
    if self.signal and code:
      return None, ""
    return _outcome(code, tail)

  def _tell_child(self, number):
    if self._child is None:
      raise Stopped(number, "what the trial had reached is saved")
    self._child.send_signal(signal.SIGTERM)


def _lines(file, process):
  """Yields the lines that a process adds to a file, until it ends."""
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


def _wait_for_lock(folder, show):
  """Waits while another process trains in a local folder.

  A training whose worker was killed is about to save and to leave.
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
    return DONE, ""
  if code in [end for n in STOP_SIGNALS for end in (128 + n, -n)]:
    return None, ""
  errors = [line for line in tail if line.startswith("error: ")]
  if errors:
    # UsageError's exit code: refused before anything was done.
    status = INFEASIBLE if code == 2 else FAILED
    return status, errors[-1].removeprefix("error: ")
  memory = [line for line in tail if any(sign in line for sign in _NO_MEMORY)]
  if memory:
    return FAILED, f"out of memory: {memory[-1].strip()[:400]}"
  if code == -signal.SIGKILL:
    reason = "killed by SIGKILL, as the system does when its memory is used up"
    return FAILED, reason
  if code < 0:
    return FAILED, f"killed by {signal.Signals(-code).name}"
  said = [line for line in tail if line.strip()]
  last = said[-1].strip() if said else "it said nothing"
  return FAILED, f"exit code {code}: {last[:400]}"
