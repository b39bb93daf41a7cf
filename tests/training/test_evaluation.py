"""The evaluation of weights and of their averages, in one pass."""

import jax
import numpy as np
import pytest

from halonet.data import pipeline
from halonet.errors import RunError
from halonet.parallel import make_mesh
from halonet.training.evaluation import Evaluation, evaluate
from halonet.training.state import TrainState


def step(params, batch_stats, batch):
  """Counts as an eval step does; `params` says what is predicted."""
  weight = batch["weight"]
  return {
    "images": weight.sum(),
    "correct": (weight * (batch["label"] == params)).sum(),
    "loss": (weight * batch_stats).sum(),
    "skipped": batch["skipped"].sum(),
  }


@pytest.fixture
def run(monkeypatch, small_config):
  """Evaluates two batches of eight; gives the batches read as well."""
  read = []

  def test_batches(builder, config):
    del builder, config
    for number in range(2):
      read.append(number)
      yield {
        "label": np.arange(8, dtype=np.int32) % 4,
        "weight": np.float32(np.arange(8) < 8 - 3 * number),
        # One image is corrupt; the others of weight 0 are fillers.
        "skipped": np.float32(np.arange(8) == (5 if number else -1)),
      }

  monkeypatch.setattr(pipeline, "test_batches", test_batches)

  def evaluated(ema, step=step):
    state = TrainState(0, np.int32(0), np.float32(2.0), (), ema)
    config, mesh = small_config(), make_mesh()
    return evaluate(jax.jit(step), state, None, config, mesh), read

  return evaluated


def test_weights_alone(run):
  (raw, average), read = run(None)
  assert raw == Evaluation(images=13, correct=4, loss=2.0, skipped=1)
  assert average is None and read == [0, 1]
  assert str(raw) == (
    "test accuracy: 0.3077 (4 of 13 images, 1 more skipped), loss 2.0000"
  )


def test_averages_see_the_same_batches(run):
  ema = {"params": np.int32(1), "batch_stats": np.float32(3.0)}
  (raw, average), read = run(ema)
  assert raw == Evaluation(images=13, correct=4, loss=2.0, skipped=1)
  assert average == Evaluation(images=13, correct=3, loss=3.0, skipped=1)
  assert read == [0, 1]


def test_nothing_to_evaluate_is_an_error(run):
  def nothing(params, batch_stats, batch):
    return jax.tree.map(lambda x: 0 * x, step(params, batch_stats, batch))

  with pytest.raises(RunError, match="no image that can be decoded"):
    run(None, nothing)


def test_skipped_images_are_mentioned_if_there_are_any():
  text = "test accuracy: 0.5000 (1 of 2 images), loss 0.2500"
  assert str(Evaluation(2, 1, 0.25)) == text
