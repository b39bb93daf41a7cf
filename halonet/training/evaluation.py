"""Exact evaluation: every test image counts once."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import tensorflow_datasets as tfds
from jax.sharding import Mesh

from halonet.data import pipeline
from halonet.training.state import TrainState, batch_sharding
from halonet.training.step import Metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Counts over a whole split; `loss` is the mean cross-entropy in nats."""

  images: int
  correct: int
  loss: float

  @property
  def accuracy(self) -> float:
    return self.correct / self.images

  def __str__(self) -> str:
    return (
      f"test accuracy: {self.accuracy:.4f} ({self.correct} of {self.images}"
      f" images), loss {self.loss:.4f}"
    )


def evaluate(
  eval_step: Callable[..., Metrics],
  state: TrainState,
  builder: tfds.core.DatasetBuilder,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> Evaluation:
  """Runs `eval_step` over the test split and adds up what it returns."""
  sums = []
  batches = pipeline.test_batches(builder, config)
  for batch in pipeline.on_device(batches, batch_sharding(mesh)):
    sums.append(eval_step(state.params, state.batch_stats, batch))
  # A batch's counts are exact in float32; their sum is taken in Python.
  images, correct, loss = (
    sum(float(batch[name]) for batch in jax.device_get(sums))
    for name in ("images", "correct", "loss")
  )
  return Evaluation(int(images), int(correct), loss / images)
