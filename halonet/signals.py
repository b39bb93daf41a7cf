"""SIGTERM and SIGINT as requests to save and leave, with nothing lost."""

import os
import signal
import threading
from collections.abc import Callable

from halonet.errors import RunError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(RunError):
  """A signal ended the command; nothing is lost.

  Args:
    number: of the signal; the exit code is 128 more.
    saved: what can be relied on, such as "saved runs/x/checkpoints/3".
  """

  def __init__(self, number: int, saved: str):
    super().__init__(
      f"{signal.Signals(number).name}: {saved}; the same command goes on from"
      " there"
    )
    self.exit_code = 128 + number


class StopSignals:
  """Notes SIGTERM and SIGINT while open, instead of dying from them.

  Outside the main thread it notes nothing.

  Attributes:
    signal: Number of the latest signal, 0 before the first.
    is_stopping: Whether this process was ever asked to stop; of the class.
  """

  is_stopping = False

  def __init__(
    self,
    respond: Callable[[int], None] | None = None,
    agreed: Callable[[int], bool] | None = None,
  ):
    """Chooses what a signal does beside being noted.

    Args:
      respond: called in the handler, for every signal. Without it, the first
        signal prints a line, and a second one acts as if this were not open.
      agreed: for one process of several; whether all of them stop after a
        step. SIGTERM is then left to JAX, which tells the others, and SIGINT
        becomes SIGTERM.
    """
    self.signal = 0
    self._respond, self._agreed = respond, agreed
    self._before = {}

  def __enter__(self) -> "StopSignals":
    if threading.current_thread() is threading.main_thread():
      handler = self._pass_on if self._agreed else self._note
      for number in STOP_SIGNALS[1:] if self._agreed else STOP_SIGNALS:
        self._before[number] = signal.signal(number, handler)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def after(self, step: int) -> int:
    """Returns the signal that ends the run after this step, or 0.

    To be called once a step; all of several processes get the same answer.
    """
    if self._agreed and self._agreed(step):
      self.signal = int(signal.SIGTERM)
    return self.signal

  def _note(self, number, frame):
    del frame
    self.signal = number
    StopSignals.is_stopping = True
    if self._respond:
      self._respond(number)
      return
    self.__exit__()
    # Not by print, which the signal may have interrupted.
    name = signal.Signals(number).name
    os.write(1, f"{name}: leaving as soon as all is saved\n".encode())

  def _pass_on(self, number, frame):
    del number, frame
    self.__exit__()
    signal.raise_signal(signal.SIGTERM)
