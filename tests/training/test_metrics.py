"""Figures on disk and on the screen."""

import json

import pytest

from halonet.errors import UsageError
from halonet.training import metrics
from halonet.training.workdir import Workdir


def read(workdir):
  return [json.loads(line) for line in workdir.metrics.read_text().splitlines()]


@pytest.mark.parametrize("is_local", [True, False])
def test_lines_and_tensorboard_are_written(tmp_path, is_local):
  workdir = Workdir(str(tmp_path))
  workdir.is_local = is_local  # In a bucket, nothing can be appended.
  writer = metrics.MetricWriter(workdir, 0)
  writer.write(1, loss=2.5)
  writer.write(2, loss=1.5, accuracy=0.25)
  writer.close()
  assert read(workdir) == [
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 1.5, "accuracy": 0.25},
  ]
  (events,) = workdir.tensorboard.iterdir()
  assert b"accuracy" in events.read_bytes()


def test_a_tracker_gets_the_same_figures(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "_TRACKERS", [])
  told = []

  class Tracker:
    def __init__(self, workdir):
      told.append(workdir)

    def write_scalars(self, step, scalars):
      told.append((step, scalars))

    def close(self):
      told.append("closed")

  metrics.register_writer(Tracker)
  writer = metrics.MetricWriter(Workdir(str(tmp_path)), 0)
  writer.write(1, loss=2.5)
  writer.close()
  assert told == [str(tmp_path), (1, {"loss": 2.5}), "closed"]


@pytest.mark.parametrize("is_local", [True, False])
def test_going_on_drops_what_will_be_written_again(tmp_path, is_local):
  workdir = Workdir(str(tmp_path))
  workdir.is_local = is_local
  lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
  workdir.metrics.write_text("".join(lines) + '{"step": 4, "lo')
  writer = metrics.MetricWriter(workdir, 2)
  writer.write(3, again=1.0)
  writer.close()
  assert read(workdir) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]


def test_a_damaged_line_is_named(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.metrics.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2, is damaged"):
    metrics.MetricWriter(workdir, 2)


def test_progress_leaves_out_what_lies_between_stretches(monkeypatch):
  now = 0.0
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
  progress = metrics.Progress(steps=100, batch_size=8)
  assert progress.images_per_second == 0
  progress.restart(10)
  with progress.waiting():
    now = 1.0
  now = 5.0
  assert progress.rate(20) == (16.0, 0.2, 40.0)
  now = 1000.0  # An evaluation.
  progress.restart(20)
  now = 1010.0
  assert progress.rate(30) == (8.0, 0.0, 70.0)
  assert progress.images_per_second == 20 * 8 / 15
