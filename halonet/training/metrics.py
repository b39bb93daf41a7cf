"""Figures of a run: to TensorBoard, to JSON lines, and to the screen."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from halonet.data.runtime import tf
from halonet.errors import RunError, UsageError
from halonet.training import processes
from halonet.training.workdir import Workdir

_TRACKERS: list[Callable[[str], Any]] = []


def register_writer(make: Callable[[str], Any]) -> None:
  """Adds a tracker to which every run of this process also writes its figures.

  Args:
    make: function from the workdir's path to a writer as clu has them, of which
      `write_scalars(step, scalars)` and `close()` are called, in process 0.
  """
  _TRACKERS.append(make)


class _TensorBoard:
  """Writes TensorBoard's files; clu's own writer would import Keras."""

  def __init__(self, folder):
    self._writer = tf.summary.create_file_writer(folder)

  def write_scalars(self, step, scalars):
    with self._writer.as_default():
      for name, value in scalars.items():
        tf.summary.scalar(name, value, step=step)

  def close(self):
    self._writer.close()


class MetricWriter:
  """Writes scalars to `metrics.jsonl`, for TensorBoard and to all trackers.

  Raises RunError where it cannot, because the disk is full, say.
  """

  def __init__(self, workdir: Workdir, step: int):
    """Opens both, for a run that goes on after `step` steps.

    Lines of later steps, from before the run was interrupted, are dropped:
    the same steps are about to be written again.
    """
    self._path = workdir.metrics
    self._lines = _lines_until(self._path, step)
    self._is_local = workdir.is_local
    with self._explained():
      if self._is_local:
        draft = self._path.with_name(f".{self._path.name}.tmp")
        draft.write_text("".join(self._lines))
        draft.replace(self._path)
        self._file = open(self._path, "a")  # noqa: SIM115  See close.
      self._writers = [
        _TensorBoard(str(workdir.tensorboard)),
        *(make(str(workdir.path)) for make in _TRACKERS),
      ]

  def write(self, step: int, **scalars: float) -> None:
    line = json.dumps({"step": step, **scalars}) + "\n"
    with self._explained():
      if self._is_local:
        self._file.write(line)
        self._file.flush()
      else:  # Nothing can be appended to an object of a bucket.
        self._lines.append(line)
        self._path.write_text("".join(self._lines))
      # Last: TensorFlow prints lines of its own where the disk is full.
      for writer in self._writers:
        writer.write_scalars(step, scalars)

  def close(self) -> None:
    with self._explained():
      try:
        for writer in self._writers:
          writer.close()
      finally:
        if self._is_local:
          self._file.close()

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except (OSError, tf.errors.OpError) as error:  # The second of TensorBoard.
      reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
      reason = reason.rpartition("}} ")[2]  # After TensorFlow's own name of it.
      raise RunError(
        f"figures cannot be written in {self._path.parent}: {reason}; mend the"
        " cause and give the same command again"
      ) from error


class _NoWriter:
  """Stands in for a MetricWriter in processes that write no files."""

  def write(self, step, **scalars):
    pass

  def close(self):
    pass


def open_writer(workdir: Workdir, step: int) -> MetricWriter | _NoWriter:
  return MetricWriter(workdir, step) if processes.is_first() else _NoWriter()


class Progress:
  """Training speed, over stretches without evaluation or compilation."""

  def __init__(self, steps: int, batch_size: int):
    self._steps, self._batch_size = steps, batch_size
    self._timed_steps, self._timed_seconds = 0, 0.0

  def restart(self, step: int) -> None:
    """Begins a stretch after `step` steps."""
    self._step, self._time, self._waited = step, time.perf_counter(), 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for input."""
    started = time.perf_counter()
    yield
    self._waited += time.perf_counter() - started

  def rate(self, step: int) -> tuple[float, float, float]:
    """Ends a stretch.

    Returns:
      Its images per second, the share of its time that went into waiting for
      input, and the seconds to the end of the training at its pace.
    """
    seconds = time.perf_counter() - self._time
    steps, waited = step - self._step, self._waited
    self._timed_seconds += seconds
    self._timed_steps += steps
    self.restart(step)
    seconds_per_step = seconds / steps
    return (
      steps * self._batch_size / seconds,
      waited / seconds,
      seconds_per_step * (self._steps - step),
    )

  @property
  def images_per_second(self) -> float:
    """Mean speed over all stretches of this process; 0 if there was none."""
    if not self._timed_steps:
      return 0.0
    return self._timed_steps * self._batch_size / self._timed_seconds


def _lines_until(path: epath.Path, step: int) -> list[str]:
  if not path.exists():
    return []
  kept = []
  for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
    if not line.endswith("\n"):
      continue  # A kill cut it short.
    try:
      keep = json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
      raise UsageError(
        f"{path}, line {number}, is damaged; mend it or move the file away"
      ) from None
    if keep:
      kept.append(line)
  return kept
