"""The evaluation of weights and of their averages, in one pass."""

import jax
import numpy as np
import pytest

from halonet.data import pipeline
from halonet.errors import RunError
from halonet.parallel import make_mesh
from halonet.tasks.task import make_task
from halonet.training.evaluation import evaluate, words
from halonet.training.state import TrainState


def step(variables, batch):
  """Counts as an eval step does; `params` says what is predicted."""
  weight = batch["weight"]
  counts = {"images": weight.sum(), "skipped": batch["skipped"].sum()}
  return counts, {
    "correct": (weight * (batch["label"] == variables["params"])).sum(),
    "loss": (weight * variables["offset"]).sum(),
  }


@pytest.fixture
def run(monkeypatch, small_config):
  """Evaluates two batches of eight; gives the batches read as well."""
  read = []

  def test_batches(*_):
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
    collections = {"offset": np.float32(2.0)}
    state = TrainState(0, np.int32(0), collections, (), ema)
    task = make_task(small_config(), {"labels": list("0123456789")})
    return evaluate(jax.jit(step), task, state, None, make_mesh()), read

  return evaluated


RAW = {
  "accuracy": 4 / 13,
  "loss": 2.0,
  "correct": 4,
  "images": 13,
  "skipped": 1,
}


def test_weights_alone(run, small_config):
  (raw, average, records), read = run(None)
  assert raw == RAW and average is records is None and read == [0, 1]
  text = "test accuracy: 0.3077 (4 of 13 images), loss 2.0000"
  task = make_task(small_config())
  assert words(task, raw) == f"{text}, 1 more images skipped"
  del raw["skipped"]
  assert words(task, raw) == text


def test_averages_see_the_same_batches(run):
  ema = {"params": np.int32(1), "offset": np.float32(3.0)}
  (raw, average, _), read = run(ema)
  assert raw == RAW and read == [0, 1]
  assert average == RAW | {"accuracy": 3 / 13, "loss": 3.0, "correct": 3}


def test_nothing_to_evaluate_is_an_error(run):
  def nothing(variables, batch):
    return jax.tree.map(lambda x: 0 * x, step(variables, batch))

  with pytest.raises(RunError, match="no image that can be decoded"):
    run(None, nothing)
