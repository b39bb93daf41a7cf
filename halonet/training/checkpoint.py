"""Checkpoints: the train state and the place in the data, through Orbax.

A checkpoint is written beside its final place and then renamed, so a run that
is killed leaves whole checkpoints only. Saving goes on in the background. It
knows nothing of devices or processes: another number of them reads it, too.
With several processes all of them call every method here but `steps`,
`scores`, `latest` and `best`.

Orbax has no checksums of arrays. The first process writes those of all files
when every process has written its own, before the checkpoint gets its name, and
compares them before anything is read.
"""

import contextlib
import json
import logging
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from halonet.errors import RunError
from halonet.training import checksums
from halonet.training.processes import from_first, is_first, together
from halonet.training.state import TrainState

_LOGGER = logging.getLogger(__name__)

# Orbax writes these when it gives a checkpoint its name. Nothing that is read
# depends on them.
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Files of a part that it is not read from.
_SIDECARS = ("_sharding", "commit_success.txt")
_SCORES = "metrics"  # Orbax's name of the folder of figures, and of its file.


class DamagedCheckpoint(RunError):
  """Files of a checkpoint are not what was written.

  Attributes:
    step: its name.
    damage: the checkpoint and its first such file, in words.
    older: step of the next older good one; None if there is none, or if it was
      not looked for.
  """

  def __init__(
    self, step: int, damage: str, advice: str = "", older: int | None = None
  ):
    super().__init__(f"{damage}. {advice}" if advice else damage)
    self.step, self.damage, self.older = step, damage, older


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
      directory: made by the first save if it does not exist.
      figure: figure of the evaluation to maximise.
      keep: how many of the latest survive a save, beside the best one; None to
        read only, while another process may be writing.
    """
    self.directory, self._figure, self._keep = directory, figure, keep
    self._orbax = None  # From the first save on.
    self._saving = None  # Step that is being saved.

  @property
  def latest(self) -> int | None:
    """Step of the latest checkpoint, or None."""
    return max(self.steps(), default=None)

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

  def steps(self) -> list[int]:
    """Steps of the checkpoints, in order."""
    if self._orbax is not None:
      return [checkpoint.step for checkpoint in self._orbax.checkpoints]
    names = ocp.path.step.standard_name_format()
    return sorted(found.step for found in names.find_all(self.directory))

  def scores(self) -> dict[int, float | None]:
    """Step → the figure, None where it is unknown or was not measured."""
    if self._orbax is not None:
      return {
        checkpoint.step: (checkpoint.metrics or {}).get(self._figure)
        for checkpoint in self._orbax.checkpoints
      }
    return {step: self._score(step)[0] for step in self.steps()}

  def _score(self, step):
    """Returns a step's figure or None, and why it is unknown if it is lost."""
    folder = self._folder(step)
    try:
      if checksums.exist(folder):
        damage, _ = checksums.compare(folder, part=_SCORES)
        for name, problem in damage.items():
          return None, f"{name} {problem}"
      file = folder / _SCORES / _SCORES
      if not file.exists():
        return None, ""
      return float(json.loads(file.read_text())[self._figure]), ""
    except (OSError, ValueError, LookupError, TypeError) as error:
      return None, f"{_SCORES}/{_SCORES} cannot be read: {_first_line(error)}"

  def _folder(self, step):
    return self.directory / str(step)

  def _open(self):
    """Lets Orbax into the directory, to save."""
    with together():
      for step in self.steps() if is_first() else ():
        _, reason = self._score(step)
        if reason:
          _LOGGER.warning(
            "WARNING: checkpoint %s: %s. Its %s counts as unknown",
            *(self._folder(step), reason, self._figure),
          )
          # Orbax would read it whenever it opens the directory.
          _set_aside(self._folder(step) / _SCORES)
    policies = ocp.training.preservation_policies
    best = policies.BestN(
      get_metric_fn=lambda metrics: metrics[self._figure],
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    context = ocp.Context()
    # Orbax copies its options, and with a bound method the object it is of.
    context.async_options.post_finalization_callback = lambda: (
      self._write_checksums()
    )
    self._orbax = ocp.training.Checkpointer(
      self.directory.absolute(),
      context=context,
      preservation_policy=policies.AnyPreservationPolicy(
        [policies.LatestN(self._keep), best]
      ),
      cleanup_tmp_directories=True,
    )

  def _write_checksums(self):
    """Ends what Orbax does before the checkpoint gets its name."""
    folder = self.directory / f"{self._saving}.orbax-checkpoint-tmp"
    if not folder.exists():  # In a bucket, nothing is renamed.
      folder = self._folder(self._saving)
    checksums.write(folder, skip=_WRITTEN_LAST)

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
    with self._explained():
      if self._orbax is None:
        self._open()
      if step == self.latest:
        return
      self._orbax.wait()  # Before its checksums get another step's name.
      self._saving = step
      self._orbax.save_checkpointables_async(
        step,
        _parts(state) | {"iterator": {"batches": batches}},
        force=True,
        metrics=None if score is None else {self._figure: score},
      )

  def restore_latest(
    self, abstract_state: TrainState
  ) -> tuple[int, TrainState, int] | None:
    """Reads the latest good checkpoint, to go on from there.

    Damaged ones after it are renamed, so that their steps can be saved again.

    Returns:
      Its step, the state, and the number of training batches consumed before
      it; None if there is no checkpoint.

    Raises:
      RunError: if there are checkpoints, but none is good.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        with together():
          state, batches = self.restore(step, abstract_state)
      except DamagedCheckpoint as error:
        damaged.append(error)
        continue
      with together():
        for error in damaged if is_first() else ():
          aside = _set_aside(self._folder(error.step))
          _LOGGER.warning(
            "WARNING: %s. It is now %s; the run goes on from step %s",
            *(error.damage, aside, step),
          )
      return step, state, batches
    if damaged:
      raise RunError(
        "no checkpoint is good: "
        + "; ".join(error.damage for error in damaged)
        + f". Put back a good copy, or move {self.directory} away to begin anew"
      )
    return None

  def restore(
    self, step: int, abstract_state: TrainState
  ) -> tuple[TrainState, int]:
    """Reads a state and the number of training batches consumed before it.

    Raises:
      DamagedCheckpoint: if it is not what was saved.
    """
    parts = _parts(abstract_state) | {"iterator": {"batches": 0}}
    restored = self._load(step, parts)
    return _state(restored), restored["iterator"]["batches"]

  def restore_model(self, step: int, abstract_state: TrainState) -> TrainState:
    """Reads the weights alone: `opt_state` is None.

    Raises:
      DamagedCheckpoint: if they are not what was saved; its message offers the
        next older checkpoint whose weights are, as `--step`.
    """
    parts = _parts(abstract_state)
    del parts["optimizer"]
    try:
      restored = self._load(step, parts)
    except DamagedCheckpoint as error:
      older = [other for other in reversed(self.steps()) if other < step]
      good = (other for other in older if not self._damage(other, parts))
      good = next(good, None)
      advice = "No older one is good"
      if good is not None:
        advice = f"The next older good one is --step={good}"
      raise DamagedCheckpoint(step, error.damage, advice, good) from None
    restored["optimizer"] = {"step": step, "opt_state": None}
    return _state(restored)

  def _load(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
    damage = self._damage(step, parts, speak=True)
    if damage:
      raise DamagedCheckpoint(step, damage)
    with self._readable(step):
      return ocp.load_checkpointables(self._folder(step).absolute(), parts)

  def _damage(self, step, parts, speak=False):
    """Compares the files with their checksums.

    Args:
      step: number of the checkpoint.
      parts: parts whose files must be as they were.
      speak: whether to warn of what is wrong elsewhere.

    Returns:
      What is damaged, in words; "" in all processes if nothing is.
    """
    folder = self._folder(step)
    where, bad, notes = f"checkpoint {folder}", [], []
    with together(), self._readable(step):
      if is_first() and not checksums.exist(folder):
        notes.append(
          f"has no {checksums.MANIFEST}, as those of earlier versions: it"
          " cannot be verified"
        )
      elif is_first():
        damage, strangers = checksums.compare(folder, skip=_WRITTEN_LAST)
        for name, problem in damage.items():
          part, slash, rest = name.partition("/")
          needed = rest not in _SIDECARS if part in parts else not slash
          (bad if needed else notes).append(f"{name} {problem}")
        notes += [f"{name} does not belong there" for name in strangers]
    for note in notes if speak else ():
      _LOGGER.warning("WARNING: %s: %s", where, note)
    if not from_first(len(bad)):
      return ""
    if not bad:
      return f"{where} is damaged, as process 0 says"
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{where} is damaged: {bad[0]}{more}"

  @contextlib.contextmanager
  def _readable(self, step):
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      raise RunError(
        f"checkpoint {self._folder(step)} cannot be read:"
        f" {_first_line(error)}. Move it away to go on from the one before it"
      ) from error

  def wait(self) -> None:
    """Waits until the last save is done."""
    with self._explained():
      if self._orbax is not None:
        self._orbax.wait()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    with self._explained():
      if self._orbax is not None:
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


def _set_aside(path: epath.Path) -> epath.Path:
  """Renames a folder, if it is there; returns its new name."""
  aside = path.with_name(f"{path.name}.damaged")
  while aside.exists():
    aside = aside.with_name(f"{aside.name}.damaged")
  if path.exists():
    path.rename(aside)
  return aside


def _first_line(error):
  while error.__cause__ is not None:  # Orbax wraps the reason in its own words.
    error = error.__cause__
  line = next(iter(str(error).strip().splitlines()), type(error).__name__)
  # TensorStore adds the whole specification of the array.
  return line.partition(" [tensorstore_spec=")[0]
