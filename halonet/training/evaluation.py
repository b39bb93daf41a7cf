"""Exact evaluation: every test image counts once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from halonet.data import pipeline
from halonet.data.sources import Split
from halonet.errors import RunError
from halonet.parallel import batch_sharding
from halonet.tasks.task import Task
from halonet.training.state import TrainState

Figures = dict[str, float]


def evaluate(
  eval_step: Callable[..., Any],
  task: Task,
  state: TrainState,
  split: Split,
  mesh: Mesh,
) -> tuple[Figures, Figures | None, list[dict[str, Any]] | None]:
  """Runs `eval_step` over the test split, read once.

  Returns:
    The figures of the weights, and of their moving averages if the state has
    any: the task's, `images`, which counted, and `skipped`, which could not be
    decoded, if there are any. And the evaluator's records of the averages, or
    else of the weights.

  Raises:
    RunError: if the split has no image that can be decoded.
  """
  weights = [state.variables]
  if state.ema is not None:
    weights.append(state.ema)
  evaluators = [task.evaluator() for _ in weights]
  counts = {"images": 0, "skipped": 0}

  def take(results):
    for result, evaluator in zip(results, evaluators, strict=True):
      number, measured = jax.device_get(result)
      evaluator.add(measured)
    # Every model saw the same images.
    for name, value in number.items():
      counts[name] += int(value)

  batches = pipeline.test_batches(split, task)
  before = None
  for batch in pipeline.on_device(batches, batch_sharding(mesh)):
    results = [eval_step(variables, batch) for variables in weights]
    # The devices compute while the host takes up what came before.
    if before is not None:
      take(before)
    before = results
  if before is not None:
    take(before)
  if not counts["images"]:
    raise RunError(
      f"split {task.config.data.test_split} has no image that can be decoded"
    )
  if not counts["skipped"]:
    del counts["skipped"]
  figures = [
    # NumPy's scalars are no JSON.
    {k: np.asarray(v).item() for k, v in each.figures(counts["images"]).items()}
    | counts
    for each in evaluators
  ]
  averaged = figures[1] if len(figures) > 1 else None
  return figures[0], averaged, evaluators[-1].records()


def words(task: Task, figures: Mapping[str, float]) -> str:
  """Words the figures of an evaluation in a line."""
  skipped = figures.get("skipped")
  return f"test {task.words(figures)}" + (
    f", {skipped} more images skipped" if skipped else ""
  )
