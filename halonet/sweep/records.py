"""What is known of every trial of a grid, finished or not."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

# An infeasible trial was refused before it trained: there is no such model, or
# no such data.
DONE, FAILED, INFEASIBLE = "done", "failed", "infeasible"
RUNNING, PENDING = "running", "pending"
OVER = (DONE, FAILED, INFEASIBLE)


@dataclasses.dataclass(frozen=True)
class TrialRecord:
  """One trial. What is not known is None.

  Attributes:
    values: Values of the grid's fields, with the seed.
    status: One of this module's.
    reason: Why it failed, in a line.
    figures: Figures of the task's evaluation after the last step.
    best: Name of the figure by which the task selects; more is better.
    parameters: Number of trained parameters.
    flops: Operations of one image's forward pass; a multiplication and an
      addition are two.
    attention_bytes: Memory of one image, see `halonet.cost.model.Cost`.
    peak_memory_bytes: Peak memory of the training.
    peak_memory_of: "device", or "process" where the device does not count.
    images_per_second: Speed of the training, over all devices.
    window: Side of what a query attends to, in pixels of its map; None
      without local attention.
    device: Number × kind.
    folder: Workdir of the training.
    curve: Evaluations during the training, pairs of the step and the figure
      `best`.
  """

  values: dict[str, str]
  status: str = PENDING
  reason: str = ""
  figures: dict[str, float] = dataclasses.field(default_factory=dict)
  best: str = ""
  parameters: int | None = None
  flops: int | None = None
  attention_bytes: int | None = None
  peak_memory_bytes: int | None = None
  peak_memory_of: str | None = None
  images_per_second: float | None = None
  window: int | None = None
  device: str | None = None
  folder: str | None = None
  curve: list[list[float]] = dataclasses.field(default_factory=list)

  def figure(self, name: str) -> Any:
    """Returns a figure of the evaluation, or an attribute, by its name."""
    return self.figures.get(name, getattr(self, name, None))

  def with_results(
    self, results: dict[str, Any], metrics: Iterable[dict[str, float]]
  ) -> "TrialRecord":
    """Adds what a finished training wrote to results.json and metrics.jsonl."""
    figures = {
      name.removeprefix("test_"): value
      for name, value in results.items()
      if name.startswith("test_")
    }
    # The speed is 0 if the last process only evaluated.
    known = _BEFORE_TASKS | {
      name: results[name] for name in _FROM_RESULTS if results.get(name)
    }
    name = f"test_{known['best']}"
    known["curve"] = [[x["step"], x[name]] for x in metrics if name in x]
    value = figures.get(known["best"])
    if value is None or math.isnan(value):
      reason = f"its test {known['best']} is {value}"
      return dataclasses.replace(self, status=FAILED, reason=reason, **known)
    return dataclasses.replace(self, status=DONE, figures=figures, **known)


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The state of a grid: the records of all points, in their order."""

  records: list[TrialRecord]

  @property
  def is_complete(self) -> bool:
    return self.count(*OVER) == len(self.records)

  def count(self, *statuses: str) -> int:
    """Counts the trials that have one of these statuses."""
    return sum(record.status in statuses for record in self.records)


def from_dict(fields: dict[str, Any]) -> TrialRecord:
  """Reads a record from the fields that a study stores.

  Studies of before there were tasks hold accuracy, loss, and the sizes of the
  window instead.
  """
  if "figures" in fields:
    return TrialRecord(**fields)
  fields = dict(fields)
  known = {name: fields.pop(name, None) for name in ("accuracy", "loss")}
  figures = {name: v for name, v in known.items() if v is not None}
  window = fields.pop("window_size", None)
  block, halo = fields.pop("block_size", None), fields.pop("halo_size", None)
  if block is not None and halo is not None:
    window = block + 2 * halo
  return TrialRecord(**fields, **_BEFORE_TASKS, figures=figures, window=window)


_FROM_RESULTS = (
  "best",
  "parameters",
  "flops",
  "attention_bytes",
  "peak_memory_bytes",
  "peak_memory_of",
  "images_per_second",
  "device",
)
_BEFORE_TASKS = {"best": "accuracy"}
