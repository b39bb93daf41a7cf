"""The report of a grid: CSV, a Markdown table, figures, and a page of them all.

It is made from records alone, so it can be made while the grid is trained.
"""

import base64
import collections
import html
from collections.abc import Sequence

from etils import epath

from halonet.sweep import effects, table
from halonet.sweep.records import DONE, FAILED, INFEASIBLE, TrialRecord

CSV, TABLE, PAGE = "trials.csv", "table.md", "report.html"
EFFECTS = "effects.md"
_TITLE = "Sweep"
_EFFECTS = "Pairs equal in all else: mean change ± standard error"
_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; color: #222; }
img { max-width: 50rem; width: 100%; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd;
  text-align: right; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; text-align: left; }
th { border-bottom: 2px solid #888; vertical-align: bottom;
  white-space: normal; }
thead th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
tr.open td { color: #777; }
tr.bad td { background: #fdf0ee; }
"""
# A click sorts by a column, a second click reverses; unknown values stay last.
_SCRIPT = """\
for (const th of document.querySelectorAll("thead th")) th.onclick = () => {
  const table = th.closest("table"), i = th.cellIndex;
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th"))
    other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[i].dataset.value;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
};
"""


def is_written(folder: str) -> bool:
  return (epath.Path(folder) / PAGE).exists()


def write(trials: Sequence[TrialRecord], folder: str) -> list[str]:
  """Writes the whole report.

  Args:
    trials: records of a grid.
    folder: local, or of a bucket; made if it is missing.

  Returns:
    The names of the files.
  """
  from halonet.sweep import figures  # Matplotlib takes its time.

  found = table.settings(trials)
  pictures = figures.draw(found)
  files = {
    CSV: table.to_csv(trials).encode(),
    TABLE: table.to_markdown(found).encode(),
    **pictures,
    PAGE: render(found, pictures).encode(),
  }
  changes = effects.cells(trials)
  if changes:
    files[EFFECTS] = table.in_markdown(changes).encode()
  root = epath.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (root / name).write_bytes(content)
  # What is not written now was of an earlier report.
  for name in {EFFECTS, *figures.ALL} - files.keys():
    (root / name).unlink(missing_ok=True)
  return list(files)


def render(
  found: Sequence[table.GridSetting], pictures: dict[str, bytes]
) -> str:
  """Makes the page, an HTML file that needs no other and no network.

  Args:
    found: a line of the table each.
    pictures: names → PNGs, which the page holds.
  """
  titles, lines = table.cells(found)
  trials = [record for setting in found for record in setting.trials]
  body = "\n".join(map(_line, found, lines))
  images = "\n".join(
    f'<img alt="{html.escape(name)}" src="data:image/png;base64,'
    f'{base64.b64encode(png).decode()}">'
    for name, png in pictures.items()
  )
  counts = collections.Counter(record.status for record in trials)
  said = f"{len(trials)} trials: " + ", ".join(
    f"{number} {status}" for status, number in counts.items()
  )
  devices = {record.device for record in trials if record.device}
  if devices:
    said += f". Trained on {', '.join(sorted(devices))}"
  changes = "\n".join(
    _row("td" if number else "th", line)
    for number, line in enumerate(effects.cells(trials))
  )
  if changes:
    changes = f"<h2>{_EFFECTS}</h2>\n<table>\n{changes}\n</table>"
  best = table.best_figure(found)
  if best:
    said += f". {best.capitalize()}: mean ± standard deviation over the seeds"
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{_TITLE}</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>{_TITLE}</h1>
<p>{html.escape(said)}. A click on a heading sorts.</p>
<div class="wide">
<table>
<thead>{_row("th", titles)}</thead>
<tbody>
{body}
</tbody>
</table>
</div>
{changes}
{images}
<script>
{_SCRIPT}</script>
</body>
</html>
"""


def _row(tag, texts):
  cells = (f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
  return f"<tr>{''.join(cells)}</tr>"


def _line(setting, cells):
  texts = []
  for value, text in cells:
    key = html.escape("" if value is None else str(value))
    texts.append(f'<td data-value="{key}">{html.escape(text)}</td>')
  statuses = {record.status for record in setting.trials}
  kind = ""
  if statuses & {FAILED, INFEASIBLE}:
    kind = ' class="bad"'
  elif statuses != {DONE}:
    kind = ' class="open"'
  return f"<tr{kind}>{''.join(texts)}</tr>"
