"""The report as one HTML file that needs no other, and no network."""

import base64
import html
from collections.abc import Sequence

from halonet.sweep import report

_TITLE = "Sweep"
_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; color: #222; }
img { max-width: 50rem; width: 100%; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd;
  text-align: right; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; text-align: left; }
th { cursor: pointer; border-bottom: 2px solid #888; vertical-align: bottom;
  white-space: normal; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
tr.open td { color: #777; }
tr.bad td { background: #fdf0ee; }
"""
# A click sorts by a column, a second one the other way; what is not known
# stays last.
_SCRIPT = """\
for (const th of document.querySelectorAll("th")) th.onclick = () => {
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


def render(found: Sequence[report.Setting], pictures: dict[str, bytes]) -> str:
  """Makes the page.

  Args:
    found: a line of the table each.
    pictures: names → PNGs, which the page holds.
  """
  table = report.columns(found)
  head = "".join(f"<th>{html.escape(column.title)}</th>" for column in table)
  body = "\n".join(_line(setting, table) for setting in found)
  images = "\n".join(
    f'<img alt="{html.escape(name)}" src="data:image/png;base64,'
    f'{base64.b64encode(png).decode()}">'
    for name, png in pictures.items()
  )
  trials = [row for setting in found for row in setting.trials]
  counts = {}
  for row in trials:
    counts[row.status] = counts.get(row.status, 0) + 1
  devices = {row.device for row in trials if row.device}
  said = f"{len(trials)} trials: " + ", ".join(
    f"{number} {status}" for status, number in counts.items()
  )
  if devices:
    said += f". Trained on {', '.join(sorted(devices))}"
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
<p>{html.escape(said)}. Accuracy: mean ± standard deviation over the seeds. A
click on a heading sorts.</p>
<div class="wide">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
{images}
<script>
{_SCRIPT}</script>
</body>
</html>
"""


def _line(setting, table):
  cells = []
  for column in table:
    value = column.value(setting)
    key = html.escape("" if value is None else str(value))
    text = html.escape(column.text(setting))
    cells.append(f'<td data-value="{key}">{text}</td>')
  statuses = {row.status for row in setting.trials}
  kind = ""
  if statuses & {"failed", "infeasible"}:
    kind = ' class="bad"'
  elif statuses != {"done"}:
    kind = ' class="open"'
  return f"<tr{kind}>{''.join(cells)}</tr>"
