"""The table of a grid: a line for each setting, a column for each figure."""

import csv
import dataclasses
import io
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from halonet import fields as fields_lib
from halonet.sweep.records import DONE, TrialRecord


@dataclasses.dataclass(frozen=True)
class GridSetting:
  """A point of the grid without its seed.

  Attributes:
    values: Values of the grid's fields, without the seed.
    trials: Records of its seeds.
  """

  values: dict[str, str]
  trials: list[TrialRecord]

  @property
  def done(self) -> list[TrialRecord]:
    return [record for record in self.trials if record.status == DONE]

  def mean(self, figure: str) -> float | None:
    """Averages a figure over the seeds that have it; None if none has."""
    found = self._found(figure)
    return statistics.fmean(found) if found else None

  def spread(self, figure: str) -> float | None:
    """Returns the sample standard deviation; None for fewer than two seeds."""
    found = self._found(figure)
    return statistics.stdev(found) if len(found) > 1 else None

  @property
  def status(self) -> str:
    """Status of its trials, with their numbers if they differ."""
    found = [record.status for record in self.trials]
    if len(set(found)) == 1:
      return found[0]
    return ", ".join(
      f"{found.count(status)} {status}" for status in dict.fromkeys(found)
    )

  def _found(self, figure):
    found = (record.figure(figure) for record in self.trials)
    return [value for value in found if value is not None]


def settings(trials: Iterable[TrialRecord]) -> list[GridSetting]:
  """Gathers the seeds of every point, in the order of the grid."""
  gathered: dict[tuple, list[TrialRecord]] = {}
  for record in trials:
    values = {f: text for f, text in record.values.items() if f != "seed"}
    gathered.setdefault(tuple(values.items()), []).append(record)
  return [GridSetting(dict(key), found) for key, found in gathered.items()]


def shown(field: str, text: str) -> str:
  """Returns a value as tables show it: a config file without its folder.

  Values in brackets are listed without them.
  """
  if field != "base":
    value = fields_lib.parse(text)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else text
  path, colon, argument = text.partition(":")
  return pathlib.PurePath(path).stem + colon + argument


def best_figure(found: Iterable[GridSetting]) -> str:
  """Returns the figure by which the task selects; "" if nothing is done."""
  return next((record.best for s in found for record in s.done), "")


def flops_unit(found: Iterable[GridSetting]) -> tuple[str, float]:
  """Chooses a unit in which the operations of an image are no long number."""
  most = max((s.mean("flops") or 0 for s in found), default=0)
  return ("G", 1e9) if most >= 1e9 else ("M", 1e6)


def memory_title(found: Iterable[GridSetting]) -> str:
  """Says whose memory was measured: a process holds more than its training."""
  whose = {r.peak_memory_of for s in found for r in s.trials} - {None}
  return f"peak {whose.pop()} memory" if len(whose) == 1 else "peak memory"


def cells(
  found: Sequence[GridSetting],
) -> tuple[list[str], list[list[tuple[float | str | None, str]]]]:
  """Fills the table: the grid's fields, and the figures that are known.

  Returns:
    The titles, and for each setting a pair under each title: the value to sort
    by, None where it is not known, and the text to show.
  """
  best = best_figure(found)
  prefix, operations = flops_unit(found)
  figures = [(name, name, "{:.4f}", 1) for name in _measured(found)]
  figures.sort(key=lambda figure: figure[0] != best)
  figures = [
    ("window", "window", "{:.0f}", 1),
    *figures,
    ("parameters", "parameters", "{:,.0f}", 1),
    (f"{prefix}FLOPs / image", "flops", "{:.4g}", operations),
    ("attention, MiB / image", "attention_bytes", "{:.3g}", 2**20),
    (f"{memory_title(found)}, MiB", "peak_memory_bytes", "{:.0f}", 2**20),
    ("images/s", "images_per_second", "{:.0f}", 1),
  ]
  figures = [
    each for each in figures if any(s.mean(each[1]) is not None for s in found)
  ]
  titles = [
    *(field.rpartition(".")[2] for field in (found[0].values if found else ())),
    *(title for title, *_ in figures),
    *("seeds", "status", "reason"),
  ]
  lines = []
  for setting in found:
    words = [shown(*value) for value in setting.values.items()]
    line = [(_sortable(word), word) for word in words]
    for _, name, form, unit in figures:
      mean, spread = setting.mean(name), setting.spread(name)
      text = "" if mean is None else form.format(mean / unit)
      if name == best and spread is not None:
        text += f" ± {form.format(spread)}"
      line.append((mean, text))
    done = len(setting.done)
    reasons = dict.fromkeys(r.reason for r in setting.trials if r.reason)
    line.append((done, f"{done} of {len(setting.trials)}"))
    line += [(text, text) for text in (setting.status, "; ".join(reasons))]
    lines.append(line)
  return titles, lines


def to_markdown(found: Sequence[GridSetting]) -> str:
  """Writes a line for every setting: mean ± standard deviation over seeds."""
  titles, lines = cells(found)
  return in_markdown([titles, *([text for _, text in line] for line in lines)])


def in_markdown(lines: Sequence[Sequence[str]]) -> str:
  """Writes a table whose first line has the titles."""
  lines = [[text.replace("|", "\\|") for text in line] for line in lines]
  lines.insert(1, ["---"] * len(lines[0]))
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(trials: Sequence[TrialRecord]) -> str:
  """Writes a line for every trial, with everything that is known of it."""
  fields = list(trials[0].values) if trials else []
  names = [field.name for field in dataclasses.fields(TrialRecord)]
  names[names.index("figures") : names.index("figures") + 1] = dict.fromkeys(
    name for record in trials for name in record.figures
  )
  for name in ("values", "curve"):
    names.remove(name)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*fields, *names])
  for record in trials:
    # None is written as nothing.
    known = [record.figure(name) for name in names]
    writer.writerow([*(record.values[field] for field in fields), *known])
  return text.getvalue()


def _measured(found):
  """Returns the evaluation's figures; whole numbers are counts of images."""
  return dict.fromkeys(
    name
    for setting in found
    for record in setting.trials
    for name, value in record.figures.items()
    if isinstance(value, float)
  )


def _sortable(text):
  try:
    return float(text)
  except ValueError:
    return text
