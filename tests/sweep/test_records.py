"""Records: what a training's results make of a trial."""

import math

from halonet.sweep.records import DONE, FAILED, TrialRecord

RESULTS = {
  "test_angle": 0.5,
  "test_images": 3,
  "steps": 9,
  "best": "angle",
  "images_per_second": 0,
}


def test_results_of_any_task():
  lines = [{"step": 4, "loss": 2.0}, {"step": 9, "test_angle": 0.5}]
  record = TrialRecord({}).with_results(RESULTS, lines)
  assert record.status == DONE and record.best == "angle"
  assert record.curve == [[9, 0.5]]
  assert record.figures == {"angle": 0.5, "images": 3}
  assert record.images_per_second is None  # It only evaluated.


def test_results_without_the_best_figure():
  record = TrialRecord({}).with_results(RESULTS | {"test_angle": math.nan}, [])
  assert (record.status, record.reason) == (FAILED, "its test angle is nan")
  before = {"test_accuracy": 0.5, "test_loss": 1.0}
  assert TrialRecord({}).with_results(before, []).best == "accuracy"
