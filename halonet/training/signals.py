"""Signals that end a run in order, in one process or in all of them."""

import os
import signal
import threading

import jax

from halonet.errors import RunError
from halonet.training import processes
from halonet.training.processes import say


class Stopped(RunError):
  """A signal ended the run; nothing is lost."""

  def __init__(self, number: int, saved: str):
    super().__init__(
      f"{signal.Signals(number).name}: {saved}; the same command goes on from"
      " there"
    )
    self.exit_code = 128 + number


class StopSignals:
  """While open, notes the first SIGTERM or SIGINT in `signal`, an int.

  A second one acts as it would have without. With several processes JAX notes
  SIGTERM, tells the others, and finds the step after which all stop; SIGINT
  becomes SIGTERM.

  Attributes:
    is_stopping: of the class: whether this process has been asked to stop.
  """

  is_stopping = False

  def __enter__(self) -> "StopSignals":
    self.signal = 0
    self._before = {}
    if threading.current_thread() is not threading.main_thread():
      return self
    if jax.process_count() > 1:
      self._replace(signal.SIGINT, self._pass_on)
    else:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._replace(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def after(self, step: int) -> int:
    """The signal that ends the run after this step, or 0.

    To be asked once a step; with several processes all get the same answer.
    """
    if jax.process_count() > 1 and processes.stop_requested(step):
      self.signal = int(signal.SIGTERM)
      say("SIGTERM: leaving as soon as all is saved")
    return self.signal

  def _replace(self, number, handler):
    self._before[number] = signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    self.signal = number
    StopSignals.is_stopping = True
    self.__exit__()
    # Not by print, which the signal may have interrupted.
    name = signal.Signals(number).name
    os.write(1, f"{name}: leaving as soon as all is saved\n".encode())

  def _pass_on(self, number, frame):
    del number, frame
    self.__exit__()
    signal.raise_signal(signal.SIGTERM)
