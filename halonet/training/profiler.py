"""A trace of chosen steps, for TensorBoard's profile page."""

import shlex
from typing import Any

import jax

from halonet.training.processes import say


class Profiler:
  """Traces the steps that `config.profile_steps` names, for TensorBoard."""

  def __init__(self, steps: tuple[int, ...], directory: str, step: int):
    """Prepares a trace for a run that goes on after `step` steps."""
    self._first, self._last = steps or (0, 0)
    self._first = max(self._first, step + 1)
    self._directory, self._open = directory, False

  def before(self, step: int) -> None:
    if step == self._first and step <= self._last:
      jax.profiler.start_trace(self._directory)
      self._open = True

  def after(self, step: int, state: Any) -> None:
    if self._open and step == self._last:
      jax.block_until_ready(state)  # So that the trace has all of the step.
      self.close()
      where = shlex.quote(self._directory)
      say(f"Wrote the trace of steps {self._first}–{step}: {where}")

  def close(self) -> None:
    if self._open:
      jax.profiler.stop_trace()
      self._open = False
