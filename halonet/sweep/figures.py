"""Figures of a grid: the best figure against the window, and against costs."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # Files only, also where there is a screen.
import matplotlib.pyplot as plt

from halonet.sweep.table import (
  Setting,
  best_figure,
  flops_unit,
  memory_title,
)

# They change the window; a curve runs along them.
_ALONG = ("model.halo_size", "model.window_size")
WINDOW, COSTS = "window.png", "costs.png"
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


def draw(found: Sequence[Setting]) -> dict[str, bytes]:
  """Draws all figures; names → PNGs. None without a finished trial."""
  best = best_figure(found)
  found = [setting for setting in found if setting.done]
  if not found:
    return {}
  with plt.rc_context(_STYLE):
    pictures = {COSTS: _png(_costs(found, best))}
    local = [s for s in found if s.mean("window") is not None]
    if local:
      pictures = {WINDOW: _png(_window(local, best))} | pictures
  return pictures


def curves(found: Sequence[Setting]) -> dict[str, list[Setting]]:
  """Makes a curve for each value of the fields that it does not run along."""
  gathered: dict[str, list[Setting]] = {}
  for setting in found:
    words = [
      f"{field.rpartition('.')[2].removesuffix('_size')} {text}"
      for field, text in setting.values.items()
      if field not in _ALONG
    ]
    gathered.setdefault(", ".join(words), []).append(setting)
  for members in gathered.values():
    members.sort(key=lambda setting: setting.mean("window") or 0)
  return gathered


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


def _window(found, best):
  figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
  gathered = curves(found)
  for number, (label, members) in enumerate(gathered.items()):
    spreads = [setting.spread(best) or 0 for setting in members]
    axes.errorbar(
      [setting.mean("window") for setting in members],
      [setting.mean(best) for setting in members],
      yerr=spreads if any(spreads) else None,
      marker=_MARKERS[number % len(_MARKERS)],
      # Smaller from curve to curve, so that curves below are seen, too.
      markersize=max(10 - 2 * number, 5),
      capsize=4,
      label=label,
    )
  axes.set_xlabel("window, pixels of the map")
  axes.set_ylabel(f"test {best}")
  axes.set_xticks(sorted({setting.mean("window") for setting in found}))
  axes.margins(0.08)
  if any(gathered):
    axes.legend(loc="best")
  seeds = max(len(setting.done) for setting in found)
  axes.set_title(
    f"{best.capitalize()} and window: "
    + (f"mean and spread of {seeds} seeds" if seeds > 1 else "one seed"),
    fontsize=11,
  )
  return figure


def _costs(found, best):
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
    known, points = [], []
    for number, (label, members) in enumerate(curves(found).items()):
      members = [s for s in members if s.mean(name) is not None]
      placed = [(s.mean(name) / unit, s.mean(best)) for s in members]
      known, points = known + members, points + placed
      axes.errorbar(
        [cost for cost, _ in placed],
        [value for _, value in placed],
        yerr=[s.spread(best) or 0 for s in members],
        fmt=_MARKERS[number % len(_MARKERS)],
        markersize=max(8 - 1.5 * number, 5),
        elinewidth=1,
        label=label,
      )
    front = pareto(points, less)
    axes.plot(
      [points[i][0] for i in front],
      [points[i][1] for i in front],
      color="0.5",
      linestyle="--",
      linewidth=1.2,
      zorder=0,
      label="Pareto front",
    )
    axes.set_xlabel(title, fontsize=9)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(0.3, 0.15)
    _label(axes, [(known[i], points[i]) for i in front], left=less)
  panels[0].set_ylabel(f"test {best}")
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside lower center", ncols=4, fontsize=9
  )
  return figure


def _label(axes, front, left):
  """Names the points of a front, on the side where its line is not."""
  axes.get_xlim(), axes.get_ylim()  # Fixes the scales.
  above = []
  for setting, point in front:
    x, y = axes.transLimits.transform(point)
    crowded = any(abs(x - u) < 0.25 and abs(y - v) < 0.06 for u, v in above)
    if not crowded:
      above.append((x, y))
    words = [
      f"{field.rpartition('.')[2][0]}{text}"
      for field, text in setting.values.items()
    ]
    axes.annotate(
      " ".join(words[:3]),
      point,
      xytext=(-5 if left != crowded else 5, -13 if crowded else 6),
      textcoords="offset points",
      ha="right" if left != crowded else "left",
      fontsize=8,
      color="0.35",
    )


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  plt.close(figure)
  return buffer.getvalue()
