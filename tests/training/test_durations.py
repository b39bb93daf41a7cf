"""Durations in epochs become steps once the data set is known."""

import pytest

from halonet.training import checks, durations
from halonet.training.config import load_config


def test_epochs_become_steps():
  config = load_config(
    "configs/digits.py",
    [
      "batch_size=100",
      "steps=90 epochs",
      "optimizer.warmup_steps=2.5 epochs",
      "eval_every=1 epoch",
      "checkpoint_every=0.001epochs",
      "log_every=7",
    ],
  )
  resolved = durations.in_steps(config, train_size=1347)
  assert resolved.steps == 1212  # 90 · 1347 / 100 = 1212.3
  assert resolved.optimizer.warmup_steps == 34
  assert resolved.eval_every == 13
  assert resolved.checkpoint_every == 1
  assert resolved.log_every == 7
  # What is stored is what was given.
  assert config.steps == "90 epochs"
  checks.check(resolved)


def test_a_warm_up_of_another_unit_is_checked_in_steps():
  config = load_config(
    "configs/digits.py", ["steps=10 epochs", "optimizer.warmup_steps=500"]
  )
  resolved = durations.in_steps(config, train_size=1347)
  with pytest.raises(checks.UsageError, match="warmup_steps is 500; it must"):
    checks.check(resolved)
