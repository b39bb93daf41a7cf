"""Figures of a run: to TensorBoard, to JSON lines, and to the screen."""

import json
import pathlib
import time

from clu import metric_writers

from halonet.errors import UsageError
from halonet.training.workdir import Workdir


class MetricWriter:
  """Writes scalars to `metrics.jsonl` and for TensorBoard."""

  def __init__(self, workdir: Workdir, step: int):
    """Opens both, for a run that goes on after `step` steps.

    Lines of later steps, from before the run was interrupted, are dropped:
    the same steps are about to be written again.
    """
    _drop_after(workdir.metrics, step)
    self._lines = open(workdir.metrics, "a")  # noqa: SIM115  See close.
    self._tensorboard = metric_writers.SummaryWriter(str(workdir.tensorboard))

  def write(self, step: int, **scalars: float) -> None:
    self._tensorboard.write_scalars(step, scalars)
    self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
    self._lines.flush()

  def close(self) -> None:
    self._tensorboard.close()
    self._lines.close()


class Progress:
  """Training speed, over stretches without evaluation or compilation."""

  def __init__(self, steps: int, batch_size: int):
    self._steps, self._batch_size = steps, batch_size
    self._timed_steps, self._timed_seconds = 0, 0.0

  def restart(self, step: int) -> None:
    """Begins a stretch after `step` steps."""
    self._step, self._time = step, time.perf_counter()

  def rate(self, step: int) -> tuple[float, float]:
    """Ends a stretch: its images per second, and the seconds to the end."""
    seconds = time.perf_counter() - self._time
    steps = step - self._step
    self._timed_seconds += seconds
    self._timed_steps += steps
    self.restart(step)
    seconds_per_step = seconds / steps
    return (
      steps * self._batch_size / seconds,
      seconds_per_step * (self._steps - step),
    )

  @property
  def images_per_second(self) -> float:
    """Over all stretches of this process; 0 if there was none."""
    if not self._timed_steps:
      return 0.0
    return self._timed_steps * self._batch_size / self._timed_seconds


def _drop_after(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
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
  draft = path.with_name(f".{path.name}.tmp")
  draft.write_text("".join(kept))
  draft.replace(path)
