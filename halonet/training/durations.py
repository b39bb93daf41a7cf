"""Durations of a config: steps, or epochs until the data set is known."""

import re

import ml_collections

# Where a config may say "90 epochs" for a number of steps.
FIELDS = (
  "steps",
  "optimizer.warmup_steps",
  "log_every",
  "eval_every",
  "checkpoint_every",
)


def parse(value: int | str) -> tuple[float, str]:
  """Splits a duration into its number and its unit, "steps" or "epochs".

  Raises:
    TypeError: that says what it must be, if it is neither.
  """
  if not isinstance(value, str):
    return value, "steps"
  match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*epochs?\s*", value)
  if not match:
    raise TypeError('a whole number of steps, or a text like "90 epochs"')
  return float(match[1]), "epochs"


def in_steps(
  config: ml_collections.ConfigDict, train_size: int
) -> ml_collections.ConfigDict:
  """Returns a copy of a config with all durations in steps.

  Args:
    config: complete and checked.
    train_size: examples of an epoch.
  """
  config = config.copy_and_resolve_references()
  for field in FIELDS:
    *parts, last = field.split(".")
    part = config
    for name in parts:
      part = part[name]
    number, unit = parse(part[last])
    if unit == "epochs":
      steps = round(number * train_size / config.batch_size)
      # What is to happen at all, happens at least once a step.
      steps = max(steps, 0 if field == "optimizer.warmup_steps" else 1)
      with part.ignore_type():
        part[last] = steps
  return config
