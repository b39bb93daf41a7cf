"""Figures of a grid: accuracy against the window, and against what it costs."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # Files only, also where there is a screen.
import matplotlib.pyplot as plt

from halonet.sweep.report import Setting, flops_unit, memory_title

_WINDOW_FIELDS = ("model.block_size", "model.halo_size", "model.window_size")
WINDOW, COSTS = "accuracy_window.png", "accuracy_costs.png"
# At 800 pixels across, as in a README, text is as large as the text around.
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
  found = [setting for setting in found if setting.done]
  if not found:
    return {}
  with plt.rc_context(_STYLE):
    pictures = {COSTS: _png(_costs(found))}
    if any(setting.window is not None for setting in found):
      pictures = {WINDOW: _png(_window(found))} | pictures
  return pictures


def curves(found: Sequence[Setting]) -> dict[str, list[Setting]]:
  """One curve for each block, and for each value of the other fields."""
  gathered: dict[str, list[Setting]] = {}
  for setting in found:
    block = setting.first("block_size")
    if block is not None:
      words = [f"block {block}"]
    elif setting.first("window_size") is not None:
      words = ["per pixel"]
    else:
      words = ["no block"]
    words += [
      f"{field.rpartition('.')[2]} {text}"
      for field, text in setting.values.items()
      if field not in _WINDOW_FIELDS
    ]
    gathered.setdefault(", ".join(words), []).append(setting)
  for members in gathered.values():
    members.sort(key=lambda setting: setting.window or 0)
  return gathered


def pareto(
  points: Sequence[tuple[float, float]], less_is_better: bool
) -> list[int]:
  """Indices of the points (cost, accuracy) that no other one beats.

  Those for which every more accurate point costs more (or, unless
  `less_is_better`, has less of what is wanted), by cost.
  """
  sign = 1 if less_is_better else -1
  order = sorted(
    range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1])
  )
  front, best = [], float("-inf")
  for i in order:
    if points[i][1] > best:
      front.append(i)
      best = points[i][1]
  return front


def _window(found):
  found = [setting for setting in found if setting.window is not None]
  figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
  for number, (label, members, marker) in enumerate(_marked(curves(found))):
    spreads = [100 * (s.spread("accuracy") or 0) for s in members]
    axes.errorbar(
      [setting.window for setting in members],
      [100 * setting.mean("accuracy") for setting in members],
      yerr=spreads if any(spreads) else None,
      marker=marker,
      # Smaller from curve to curve: what lies below is seen, too.
      markersize=max(10 - 2 * number, 5),
      capsize=4,
      label=label,
    )
  axes.set_xlabel("window b + 2h, or k, pixels of the map")
  axes.set_ylabel("test accuracy, %")
  axes.set_xticks(sorted({setting.window for setting in found}))
  axes.margins(0.08)
  axes.legend(loc="best")
  seeds = max(len(setting.done) for setting in found)
  axes.set_title(
    "Accuracy and window: "
    + (f"mean and spread of {seeds} seeds" if seeds > 1 else "one seed"),
    fontsize=11,
  )
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
    known = []
    for number, (label, members, marker) in enumerate(_marked(curves(found))):
      members = [s for s in members if s.mean(name) is not None]
      known += members
      axes.errorbar(
        [s.mean(name) / unit for s in members],
        [100 * s.mean("accuracy") for s in members],
        yerr=[100 * (s.spread("accuracy") or 0) for s in members],
        fmt=marker,
        markersize=max(8 - 1.5 * number, 5),
        elinewidth=1,
        label=label,
      )
    points = [(s.mean(name) / unit, 100 * s.mean("accuracy")) for s in known]
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
  panels[0].set_ylabel("test accuracy, %")
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
    if setting.window is None:
      continue
    block, halo = (setting.first(name) for name in ("block_size", "halo_size"))
    axes.annotate(
      f"k{setting.window}" if block is None else f"b{block} h{halo}",
      point,
      xytext=(-5 if left != crowded else 5, -13 if crowded else 6),
      textcoords="offset points",
      ha="right" if left != crowded else "left",
      fontsize=8,
      color="0.35",
    )


def _marked(gathered):
  return [
    (*curve, _MARKERS[number % len(_MARKERS)])
    for number, curve in enumerate(gathered.items())
  ]


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  plt.close(figure)
  return buffer.getvalue()
