"""Checkpoints: the train state and the place in the data, through Orbax.

A checkpoint is written beside its final place and then renamed, so a run that
is killed leaves whole checkpoints only. Saving goes on in the background. It
knows nothing of devices or processes: another number of them reads it, too.
With several processes all of them call every method here but `scores`, `latest`
and `best`.
"""

import contextlib
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from halonet.errors import RunError
from halonet.training.state import TrainState


class Checkpoints:
  """The checkpoints of one run, by step.

  Raises RunError, with the reason and the remedy, where one cannot be written
  or read.
  """

  def __init__(
    self, directory: epath.Path, figure: str, keep: int | None = None
  ):
    """Opens a directory of checkpoints.

    Args:
      directory: made if it does not exist.
      figure: figure of the evaluation to maximise.
      keep: how many of the latest survive a save, beside the best one; None to
        read only, while another process may be writing.
    """
    policies = ocp.training.preservation_policies
    preservation = None
    if keep is not None:
      best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[figure],
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      preservation = policies.AnyPreservationPolicy(
        [policies.LatestN(keep), best]
      )
    self.directory, self._figure = directory, figure
    self._orbax = ocp.training.Checkpointer(
      directory.absolute(),
      preservation_policy=preservation,
      cleanup_tmp_directories=keep is not None,
    )

  @property
  def latest(self) -> int | None:
    """Step of the latest checkpoint, or None."""
    return max(self.scores(), default=None)

  @property
  def best(self) -> int | None:
    """Step of the best checkpoint, the latest among equals; None if none was
    evaluated."""
    evaluated = [
      (score, step)
      for step, score in self.scores().items()
      if score is not None
    ]
    return max(evaluated)[1] if evaluated else None

  def scores(self) -> dict[int, float | None]:
    """Step → the figure, None where the step was not evaluated."""
    return {
      checkpoint.step: (checkpoint.metrics or {}).get(self._figure)
      for checkpoint in self._orbax.checkpoints
    }

  def save(
    self,
    step: int,
    state: TrainState,
    batches: int,
    score: float | None = None,
  ) -> None:
    """Starts to save, once the save before is done.

    Args:
      step: the name of the checkpoint; one that exists is left as it is.
      state: the state after `step` steps; it may be donated afterwards.
      batches: how many training batches were consumed.
      score: the figure, if the step was evaluated.
    """
    if step == self.latest:
      return
    with self._explained():
      self._orbax.save_checkpointables_async(
        step,
        _parts(state) | {"iterator": {"batches": batches}},
        force=True,
        metrics=None if score is None else {self._figure: score},
      )

  def restore(
    self, step: int, abstract_state: TrainState
  ) -> tuple[TrainState, int]:
    """Reads a state and the number of training batches consumed before it."""
    parts = _parts(abstract_state) | {"iterator": {"batches": 0}}
    restored = self._load(step, parts)
    return _state(restored), restored["iterator"]["batches"]

  def restore_model(self, step: int, abstract_state: TrainState) -> TrainState:
    """Reads the weights alone: `opt_state` is None."""
    parts = _parts(abstract_state)
    del parts["optimizer"]
    restored = self._load(step, parts)
    restored["optimizer"] = {"step": step, "opt_state": None}
    return _state(restored)

  def _load(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
    try:
      return self._orbax.load_checkpointables(step, parts)
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      raise RunError(
        f"checkpoint {self.directory / str(step)} cannot be read:"
        f" {_first_line(error)}. Move it away to go on from the one before it"
      ) from error

  def wait(self) -> None:
    """Waits until the last save is done."""
    with self._explained():
      self._orbax.wait()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    with self._explained():
      self._orbax.close()

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      whole = [
        int(path.name)
        for path in self.directory.iterdir()
        if path.name.isdigit()
      ]
      safe = f"that of step {max(whole)}" if whole else "none"
      raise RunError(
        f"a checkpoint cannot be written in {self.directory}:"
        f" {_first_line(error)}. The latest whole one is {safe}; mend the"
        " cause and give the same command again"
      ) from error


def _parts(state):
  """Splits a state into what is saved apart: weights can be read alone."""
  parts = {
    "model": state.variables,
    "optimizer": {"step": state.step, "opt_state": state.opt_state},
  }
  return parts if state.ema is None else parts | {"ema": state.ema}


def _state(parts):
  """Inverts `_parts`."""
  collections = dict(parts["model"])
  return TrainState(
    params=collections.pop("params"),
    collections=collections,
    **parts["optimizer"],
    ema=parts.get("ema"),
  )


def _first_line(error):
  while error.__cause__ is not None:  # Orbax wraps the reason in its own words.
    error = error.__cause__
  return next(iter(str(error).strip().splitlines()), type(error).__name__)
