"""The change that each value of a field makes, all else being equal."""

import dataclasses
import statistics
from collections.abc import Sequence

from halonet.sweep import table
from halonet.sweep.records import DONE, TrialRecord


@dataclasses.dataclass(frozen=True)
class Effect:
  """One value of a field against the first that has finished trials.

  Attributes:
    field: Field of the grid.
    value: Its value.
    first: The value with which it is compared.
    changes: Change of the figure by which the task selects, for every pair of
      finished trials that have all other values and the seed in common.
  """

  field: str
  value: str
  first: str
  changes: list[float]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.changes)

  @property
  def error(self) -> float | None:
    """Standard error of the mean; None for a single pair."""
    number = len(self.changes)
    return statistics.stdev(self.changes) / number**0.5 if number > 1 else None


def effects(trials: Sequence[TrialRecord]) -> list[Effect]:
  """Compares the values of every field, in the order of the grid."""
  done = {
    tuple(record.values.items()): record.figure(record.best)
    for record in trials
    if record.status == DONE
  }
  found = []
  for field in dict(next(iter(done), ())):
    if field == "seed":
      continue
    first, *others = dict.fromkeys(dict(key)[field] for key in done)
    for value in others:
      pairs = [
        (figure, done.get(tuple((dict(key) | {field: first}).items())))
        for key, figure in done.items()
        if dict(key)[field] == value
      ]
      changes = [new - old for new, old in pairs if old is not None]
      if changes:
        found.append(Effect(field, value, first, changes))
  return found


def cells(trials: Sequence[TrialRecord]) -> list[list[str]]:
  """Returns the lines of a table, the titles first; none without a pair."""
  best = next((record.best for record in trials if record.best), "")
  lines = [["field", "value", "against", f"change of {best}", "pairs"]]
  for effect in effects(trials):
    change = f"{effect.mean:+.4f}"
    if effect.error is not None:
      change += f" ± {effect.error:.4f}"
    compared = [table.shown(effect.field, effect.value)]
    compared.append(table.shown(effect.field, effect.first))
    lines.append(
      [
        effect.field.rpartition(".")[2],
        *compared,
        change,
        str(len(effect.changes)),
      ]
    )
  return lines if len(lines) > 1 else []
