"""Exact evaluation: every test image counts once."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from halonet.data import pipeline
from halonet.data.sources import Split
from halonet.errors import RunError
from halonet.parallel import batch_sharding
from halonet.training.state import TrainState
from halonet.training.step import Metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Counts over a whole split; `loss` is the mean cross-entropy in nats.

  `images` does not include the `skipped` ones, which could not be decoded.
  """

  images: int
  correct: int
  loss: float
  skipped: int = 0

  @property
  def accuracy(self) -> float:
    return self.correct / self.images

  def __str__(self) -> str:
    skipped = f", {self.skipped} more skipped" if self.skipped else ""
    return (
      f"test accuracy: {self.accuracy:.4f} ({self.correct} of {self.images}"
      f" images{skipped}), loss {self.loss:.4f}"
    )


def evaluate(
  eval_step: Callable[..., Metrics],
  state: TrainState,
  split: Split,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> tuple[Evaluation, Evaluation | None]:
  """Runs `eval_step` over the test split, read once, and adds up its counts.

  Returns:
    Of the weights, and of their moving averages if the state has any.

  Raises:
    RunError: if the split has no image that can be decoded.
  """
  weights = [(state.params, state.batch_stats)]
  if state.ema is not None:
    weights.append((state.ema["params"], state.ema["batch_stats"]))
  sums = [[] for _ in weights]
  batches = pipeline.test_batches(split, config)
  for batch in pipeline.on_device(batches, batch_sharding(mesh)):
    if len(sums[0]) > 1:  # Batches must not pile up on the devices.
      jax.block_until_ready(sums[-1][-2])
    for variables, own in zip(weights, sums, strict=True):
      own.append(eval_step(*variables, batch))
  evaluations = [_add_up(jax.device_get(own), config) for own in sums]
  return evaluations[0], evaluations[1] if len(evaluations) > 1 else None


def _add_up(sums, config):
  # A batch's counts are exact in float32; their sum is taken in Python.
  def count(name):
    return sum(int(batch.get(name, 0)) for batch in sums)

  images = count("images")
  if not images:
    raise RunError(
      f"split {config.data.test_split} has no image that can be decoded"
    )
  loss = sum(float(batch["loss"]) for batch in sums) / images
  return Evaluation(images, count("correct"), loss, count("skipped"))
