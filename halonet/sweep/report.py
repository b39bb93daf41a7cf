"""The report of a grid: CSV, a Markdown table, figures, and a page of them all.

It is made from rows alone, so it can be made at any time, of a grid that is
still being trained, too.
"""

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Iterable, Sequence

from etils import epath

from halonet.sweep import rows
from halonet.sweep.rows import Row

CSV, TABLE, PAGE = "trials.csv", "table.md", "report.html"


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the seeds of a point have in common, and their means.

  Attributes:
    values: of the fields of the grid, without the seed.
    trials: its rows, one for each seed.
  """

  values: dict[str, str]
  trials: tuple[Row, ...]

  @property
  def done(self) -> tuple[Row, ...]:
    return tuple(row for row in self.trials if row.status == rows.DONE)

  def mean(self, figure: str) -> float | None:
    """Mean of a figure over the seeds that have it; None if none has."""
    found = self._found(figure)
    return statistics.fmean(found) if found else None

  def spread(self, figure: str) -> float | None:
    """Sample standard deviation over the seeds; None of fewer than two."""
    found = self._found(figure)
    return statistics.stdev(found) if len(found) > 1 else None

  def first(self, figure: str):
    """A figure that all its trials share, of the first that has it."""
    found = (getattr(row, figure) for row in self.trials)
    return next((value for value in found if value is not None), None)

  @property
  def window(self) -> int | None:
    return next((r.window for r in self.trials if r.window is not None), None)

  @property
  def status(self) -> str:
    """The statuses of its trials, with their numbers if they differ."""
    found = [row.status for row in self.trials]
    if len(set(found)) == 1:
      return found[0]
    return ", ".join(
      f"{found.count(status)} {status}" for status in dict.fromkeys(found)
    )

  @property
  def reasons(self) -> str:
    return "; ".join(dict.fromkeys(r.reason for r in self.trials if r.reason))

  def _found(self, figure):
    found = (getattr(row, figure) for row in self.done)
    return [value for value in found if value is not None]


@dataclasses.dataclass(frozen=True)
class Column:
  """A figure of a setting, in a table.

  Attributes:
    title: with its unit.
    value: by which the table sorts; None where it is not known.
    text: as it is read.
  """

  title: str
  value: Callable[[Setting], float | str | None]
  text: Callable[[Setting], str]


def settings(trials: Iterable[Row]) -> list[Setting]:
  """Gathers the seeds of every point, in the order of the grid."""
  gathered: dict[tuple, list[Row]] = {}
  for row in trials:
    values = {f: text for f, text in row.values.items() if f != "seed"}
    gathered.setdefault(tuple(values.items()), []).append(row)
  return [Setting(dict(key), tuple(found)) for key, found in gathered.items()]


def columns(found: Sequence[Setting]) -> list[Column]:
  """The columns of the table: the fields of the grid, and the figures."""
  names = [
    Column(
      field.rpartition(".")[2],
      lambda s, field=field: _sortable(s.values[field]),
      lambda s, field=field: s.values[field],
    )
    for field in (found[0].values if found else ())
  ]
  prefix, unit = flops_unit(found)
  return [
    *names,
    _figure("window", lambda s: s.window, "{:d}"),
    Column("accuracy, %", lambda s: s.mean("accuracy"), _accuracy),
    _figure("loss", lambda s: s.mean("loss"), "{:.4f}"),
    _figure("parameters", lambda s: s.first("parameters"), "{:,d}"),
    _figure(
      f"{prefix}FLOPs / image", lambda s: s.first("flops"), "{:.4g}", unit
    ),
    _figure(
      "attention, MiB / image",
      lambda s: s.first("attention_bytes"),
      "{:.3g}",
      2**20,
    ),
    _figure(
      f"{memory_title(found)}, MiB",
      lambda s: s.mean("peak_memory_bytes"),
      "{:.0f}",
      2**20,
    ),
    _figure("images/s", lambda s: s.mean("images_per_second"), "{:.0f}"),
    Column("seeds", lambda s: len(s.done), _seeds),
    Column("status", lambda s: s.status, lambda s: s.status),
    Column("reason", lambda s: s.reasons, lambda s: s.reasons),
  ]


def flops_unit(found: Iterable[Setting]) -> tuple[str, float]:
  """A unit in which the operations of an image are no long number."""
  most = max((s.first("flops") or 0 for s in found), default=0)
  return ("G", 1e9) if most >= 1e9 else ("M", 1e6)


def memory_title(found: Iterable[Setting]) -> str:
  """Whose memory was measured: a process holds more than its training."""
  whose = {s.first("peak_memory_of") for s in found} - {None}
  return f"peak {whose.pop()} memory" if len(whose) == 1 else "peak memory"


def to_csv(trials: Iterable[Row]) -> str:
  """A line for every trial, with all that is known of it."""
  trials = list(trials)
  fields = list(trials[0].values) if trials else []
  figures = [f.name for f in dataclasses.fields(Row) if f.name != "values"]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*fields, *figures])
  for row in trials:
    known = dataclasses.asdict(row)
    writer.writerow(
      [row.values[field] for field in fields]
      + ["" if known[name] is None else known[name] for name in figures]
    )
  return text.getvalue()


def to_markdown(found: Sequence[Setting]) -> str:
  """A line for every setting: mean ± standard deviation over its seeds."""
  table = columns(found)
  lines = [
    "| " + " | ".join(column.title for column in table) + " |",
    "|" + "---|" * len(table),
  ]
  for setting in found:
    cells = [column.text(setting).replace("|", "\\|") for column in table]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def is_written(folder: str) -> bool:
  return (epath.Path(folder) / PAGE).exists()


def write(trials: Sequence[Row], folder: str) -> list[str]:
  """Writes the whole report.

  Args:
    trials: the rows of a grid.
    folder: local, or of a bucket; made if it is missing.

  Returns:
    The names of the files.
  """
  from halonet.sweep import figures, page  # Matplotlib takes its time.

  found = settings(trials)
  pictures = figures.draw(found)
  files = {
    CSV: to_csv(trials).encode(),
    TABLE: to_markdown(found).encode(),
    **pictures,
    PAGE: page.render(found, pictures).encode(),
  }
  root = epath.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (root / name).write_bytes(content)
  return list(files)


def _figure(title, value, form, unit=1):
  def text(setting):
    known = value(setting)
    if known is None:
      return ""
    return form.format(known / unit if unit != 1 else known)

  return Column(title, value, text)


def _accuracy(setting):
  mean, spread = setting.mean("accuracy"), setting.spread("accuracy")
  if mean is None:
    return ""
  text = f"{100 * mean:.2f}"
  return text if spread is None else f"{text} ± {100 * spread:.2f}"


def _seeds(setting):
  return f"{len(setting.done)} of {len(setting.trials)}"


def _sortable(text):
  try:
    return float(text)
  except ValueError:
    return text
