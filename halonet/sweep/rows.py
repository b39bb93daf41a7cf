"""What is known of every trial of a grid: a row each, finished or not."""

import dataclasses
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from halonet.sweep.grid import Point

# The statuses of trials that are over. An infeasible one was refused before it
# trained: no such model, or no such data.
DONE, FAILED, INFEASIBLE = "done", "failed", "infeasible"
RUNNING, PENDING = "running", "pending"


@dataclasses.dataclass(frozen=True)
class Row:
  """One trial. A figure that is not known is None.

  Attributes:
    values: of the fields of the grid, with the seed.
    status: one of this module's.
    reason: why it failed, in a line.
    accuracy: on the test images, after the last step, 0 to 1.
    loss: on the same.
    parameters: of the model, trained ones.
    flops: of one image's forward pass; a multiplication and an addition are
      two.
    attention_bytes: of one image, see `halonet.cost.model.Cost`.
    peak_memory_bytes: of the training.
    peak_memory_of: "device", or "process" where the device does not count.
    images_per_second: of the training, over all devices.
    block_size: b of the attention, in pixels of its map; None without one.
    halo_size: h.
    window_size: k of per-pixel attention; None without it.
    device: number × kind.
    folder: in which it trained.
  """

  values: dict[str, str]
  status: str = PENDING
  reason: str = ""
  accuracy: float | None = None
  loss: float | None = None
  parameters: int | None = None
  flops: int | None = None
  attention_bytes: int | None = None
  peak_memory_bytes: int | None = None
  peak_memory_of: str | None = None
  images_per_second: float | None = None
  block_size: int | None = None
  halo_size: int | None = None
  window_size: int | None = None
  device: str | None = None
  folder: str | None = None

  @property
  def is_over(self) -> bool:
    return self.status in (DONE, FAILED, INFEASIBLE)

  @property
  def window(self) -> int | None:
    """Side of what a query sees: k, or its block's neighbourhood, b + 2h."""
    if self.block_size is None or self.halo_size is None:
      return self.window_size
    return self.block_size + 2 * self.halo_size


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The state of a grid.

  Attributes:
    rows: of all points, in their order.
    lost: trials that nobody trains and that have no row: to be put back.
  """

  rows: list[Row]
  lost: list[FrozenTrial]

  @property
  def is_complete(self) -> bool:
    return all(row.is_over for row in self.rows)

  def count(self, *statuses: str) -> int:
    return sum(row.status in statuses for row in self.rows)


def record(trial: optuna.Trial, row: Row) -> None:
  """Writes a row into its trial."""
  trial.set_user_attr("row", dataclasses.asdict(row))


def read_ledger(
  study: optuna.Study, points: Iterable[Point], max_retries: int
) -> Ledger:
  """Reads the state of a grid from its study.

  Args:
    study: of the grid.
    points: of the grid.
    max_retries: how often a trial is begun whose worker dies.
  """
  trials: dict[tuple, list[FrozenTrial]] = {}
  for trial in study.get_trials(deepcopy=False):
    if not trial.user_attrs.get("duplicate"):
      trials.setdefault(key(trial.params), []).append(trial)
  rows, lost = [], []
  for point in points:
    row = Row(values=point.values)
    tried = trials.get(key(point.values), [])
    if tried:
      latest = max(tried, key=lambda trial: trial.number)
      recorded = latest.user_attrs.get("row")
      if latest.state == TrialState.RUNNING:
        row = dataclasses.replace(row, status=RUNNING)
      elif recorded is not None and latest.state.is_finished():
        row = Row(**recorded)
      elif latest.state.is_finished():
        deaths = len(latest.system_attrs.get("retry_history", []))
        if deaths >= max_retries:
          row = dataclasses.replace(
            row, status=FAILED, reason=f"its worker died {deaths + 1} times"
          )
        else:
          lost.append(latest)
    rows.append(row)
  return Ledger(rows, lost)


def key(values: dict[str, str]) -> tuple:
  """Equal for equal points."""
  return tuple(sorted(values.items()))
