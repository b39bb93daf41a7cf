"""Figures of a grid: the best figure by window, setting, step, and cost."""

import io
import statistics
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # Files only, also where there is a screen.
import matplotlib.pyplot as plt

from halonet.sweep.table import (
  GridSetting,
  best_figure,
  flops_unit,
  memory_title,
  shown,
)

WINDOW, COSTS = "window.png", "costs.png"
SETTINGS, TRAINING = "settings.png", "training.png"
ALL = {WINDOW, COSTS, SETTINGS, TRAINING}
# At 800 pixels across, as on a web page, text is as large as the text around.
_STYLE = {
  "figure.dpi": 200,
  "font.size": 10,
  "axes.grid": True,
  "grid.alpha": 0.3,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "lines.linewidth": 1.8,
  "legend.frameon": False,
}
_MARKERS = "osD^vP*X"


def draw(found: Sequence[GridSetting]) -> dict[str, bytes]:
  """Draws all figures; names → PNGs. None without a finished trial."""
  found = [setting for setting in found if setting.done]
  pictures = {}
  with plt.rc_context(_STYLE):
    if found and _along(found):
      pictures[WINDOW] = _png(_window(found))
    elif len(found) > 1:
      pictures[SETTINGS] = _png(_settings(found))
    evaluated = [len(record.curve) for s in found for record in s.done]
    if len(found) <= 10 and evaluated and min(evaluated) > 1:
      pictures[TRAINING] = _png(_training(found))
    if found:
      pictures[COSTS] = _png(_costs(found))
  return pictures


def curves(found: Sequence[GridSetting]) -> dict[str, list[GridSetting]]:
  """Makes a curve for each value of the fields that it does not run along."""
  along = _along(found)
  gathered: dict[str, list[GridSetting]] = {}
  for setting in found:
    gathered.setdefault(_words(setting, along), []).append(setting)
  for members in gathered.values():
    members.sort(key=lambda setting: setting.mean("window") or 0)
  return gathered


def _words(setting, without=None):
  """Returns a setting as words, such as "block 4, halo 1"."""
  words = []
  for field, text in setting.values.items():
    name = field.rpartition(".")[2].removesuffix("_size")
    if field != without:
      value = shown(field, text)
      words.append(value if field == "base" else f"{name} {value}")
  return ", ".join(words)


def _along(found):
  """Finds the grid's last field that changes the window; None if none does.

  Config files are no line: their windows are those of different networks.
  """
  for field in reversed([name for name in found[0].values if name != "base"]):
    windows = {}
    for setting in found:
      others = tuple((setting.values | {field: ""}).values())
      windows.setdefault(others, set()).add(setting.mean("window"))
    if any(len(values) > 1 for values in windows.values()):
      return field
  return None


def pareto(
  points: Sequence[tuple[float, float]], less_is_better: bool
) -> list[int]:
  """Finds the points (cost, figure) that no other point beats.

  Args:
    points: pairs of which the second is better when it is higher.
    less_is_better: whether the first is better when it is lower.

  Returns:
    Their indices; the best cost comes first.
  """
  sign = 1 if less_is_better else -1
  order = sorted(
    range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1])
  )
  front, highest = [], float("-inf")
  for i in order:
    if points[i][1] > highest:
      front.append(i)
      highest = points[i][1]
  return front


def _window(found):
  figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
  placed = _plot(axes, found, "window", line="-")
  axes.set_xlabel("window, pixels of the map")
  axes.set_xticks(sorted({x for _, (x, _) in placed}))
  if any(curves(found)):
    axes.legend(loc="best")
  best, seeds = best_figure(found), max(len(s.done) for s in found)
  axes.set_ylabel(f"test {best}")
  axes.set_title(
    f"{best.capitalize()} and window: "
    + (f"mean and spread of {seeds} seeds" if seeds > 1 else "one seed"),
    fontsize=11,
  )
  return figure


def _settings(found):
  """Draws a line for each setting, with its seeds, mean and spread."""
  figure, axes = plt.subplots(
    figsize=(8, 1.2 + 0.4 * len(found)), layout="constrained"
  )
  best = best_figure(found)
  for row, setting in enumerate(found):
    values = [record.figure(best) for record in setting.done]
    axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.4)
    axes.errorbar(
      setting.mean(best),
      row,
      xerr=setting.spread(best),
      marker="|",
      markersize=14,
      color="C1",
      capsize=4,
    )
  axes.set_yticks(range(len(found)), [_words(each) for each in found])
  axes.set_ylim(len(found) - 0.5, -0.5)
  axes.set_xlabel(f"test {best}: seeds, their mean and standard deviation")
  return figure


def _training(found):
  """Draws the figure against the step: the seeds' mean, lowest and highest."""
  figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
  for setting in found:
    values = {}
    for record in setting.done:
      for step, value in record.curve:
        values.setdefault(step, []).append(value)
    steps = sorted(x for x in values if len(values[x]) == len(setting.done))
    means = [statistics.fmean(values[step]) for step in steps]
    (line,) = axes.plot(steps, means, label=_words(setting))
    axes.fill_between(
      steps,
      [min(values[step]) for step in steps],
      [max(values[step]) for step in steps],
      color=line.get_color(),
      alpha=0.2,
      linewidth=0,
    )
  axes.set_xlabel("step")
  axes.set_ylabel(f"test {best_figure(found)}")
  if found[1:]:
    axes.legend(loc="best")
  return figure


def _costs(found):
  figure, panels = plt.subplots(
    1, 3, figsize=(8, 3.7), sharey=True, layout="constrained"
  )
  prefix, operations = flops_unit(found)
  memory = memory_title(found)
  costs = (
    ("flops", f"{prefix}FLOPs per image (less is better)", operations, True),
    ("peak_memory_bytes", f"{memory}, GiB (less is better)", 2**30, True),
    ("images_per_second", "training, images/s (more is better)", 1, False),
  )
  for axes, (name, title, unit, less) in zip(panels, costs, strict=True):
    placed = _plot(axes, found, name, unit)
    front = pareto([point for _, point in placed], less)
    axes.plot(
      [placed[i][1][0] for i in front],
      [placed[i][1][1] for i in front],
      color="0.5",
      linestyle="--",
      linewidth=1.2,
      zorder=0,
      label="Pareto front",
    )
    for i in front:  # Named on the side where the line is not.
      axes.annotate(
        _short(placed[i][0]),
        placed[i][1],
        xytext=(-5 if less else 5, 6),
        textcoords="offset points",
        ha="right" if less else "left",
        fontsize=8,
        color="0.35",
      )
    axes.set_xlabel(title, fontsize=9)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(0.3, 0.15)
  panels[0].set_ylabel(f"test {best_figure(found)}")
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside lower center", ncols=4, fontsize=9
  )
  return figure


def _plot(axes, found, name, unit=1, line="none"):
  """Plots the best figure against another; returns settings and points."""
  best, plotted = best_figure(found), []
  for number, (label, members) in enumerate(curves(found).items()):
    members = [s for s in members if s.mean(name) is not None]
    points = [(s.mean(name) / unit, s.mean(best)) for s in members]
    spreads = [s.spread(best) or 0 for s in members]
    axes.errorbar(
      [x for x, _ in points],
      [y for _, y in points],
      yerr=spreads if any(spreads) else None,
      linestyle=line,
      marker=_MARKERS[number % len(_MARKERS)],
      # Smaller from curve to curve, so that curves below are seen, too.
      markersize=max(9 - 2 * number, 5),
      capsize=4,
      label=label,
    )
    plotted += zip(members, points, strict=True)
  return plotted


def _short(setting):
  """Returns a setting as a few letters, such as "b4 h1"."""
  return " ".join(
    ("" if field == "base" else field.rpartition(".")[2][0])
    + shown(field, text)
    for field, text in list(setting.values.items())[:3]
  )


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  plt.close(figure)
  return buffer.getvalue()
