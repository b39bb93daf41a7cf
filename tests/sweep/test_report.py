"""The report, from records: means and spreads, figures, the page alone."""

import csv
import dataclasses
import html.parser
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from halonet.sweep import effects, figures, report, table
from halonet.sweep.records import TrialRecord

ACCURACIES = {
  (2, 0): (0.90, 0.92),
  (2, 1): (0.93, 0.95),
  (4, 0): (0.91, 0.96),
}


def done(block, halo, seed, accuracy, **more):
  return TrialRecord(
    values={
      "model.block_size": str(block),
      "model.halo_size": str(halo),
      "seed": str(seed),
    },
    status="done",
    figures={"loss": 1 - accuracy, "accuracy": accuracy, "images": 450},
    best="accuracy",
    parameters=1234567,
    flops=10**9 * (block + halo),
    peak_memory_bytes=2**30 * (1 + halo),
    peak_memory_of="device",
    images_per_second=100.0 - 10 * block,
    window=block + 2 * halo,
    device="1 × TPU v4",
  )


@pytest.mark.parametrize(
  "field, text, cell",
  [
    ("model.operators", "('conv', 'halo')", "conv, halo"),
    ("model.operators", "('halo',)", "halo"),
    ("model.block_size", "4", "4"),
    ("model.position", "none", "none"),
    ("base", "configs/cifar10.py:sasa", "cifar10:sasa"),
  ],
)
def test_a_value_is_shown_without_brackets_and_folders(field, text, cell):
  assert table.shown(field, text) == cell


def test_effects_of_a_random_grid_are_those_of_arrays():
  random = np.random.default_rng(0)
  figure = random.normal(size=(3, 4, 9))  # block, halo, seed
  figure[0] = np.nan  # Blocks of 0 have failed, and so have a few others.
  figure[random.random(figure.shape) < 0.2] = np.nan
  trials = [
    done(*point, accuracy)
    if np.isfinite(accuracy)
    else dataclasses.replace(done(*point, 0), status="failed", figures={})
    for point, accuracy in np.ndenumerate(figure)
  ]
  blocks = [figure[2] - figure[1]]
  halos = [figure[:, halo] - figure[:, 0] for halo in (1, 2, 3)]
  found = effects.effects(trials)
  assert [(each.value, each.first) for each in found] == [
    *[("2", "1")],
    *[("1", "0"), ("2", "0"), ("3", "0")],
  ]
  for each, changes in zip(found, [*blocks, *halos], strict=True):
    changes = changes[np.isfinite(changes)]
    assert 1 < len(changes) == len(each.changes)
    assert each.mean == pytest.approx(np.mean(changes))
    error = np.std(changes, ddof=1) / np.sqrt(len(changes))
    assert each.error == pytest.approx(error)


def test_windows_of_pixels_are_one_curve_in_their_order():
  rows = [
    dataclasses.replace(
      done(0, 0, 0, accuracy),
      values={"model.window_size": str(size), "seed": "0"},
      window=size,
    )
    for size, accuracy in ((7, 0.9), (3, 0.8), (11, 0.95))
  ]
  found = table.settings(rows)
  assert [setting.mean("window") for setting in found] == [7, 3, 11]
  ((label, members),) = figures.curves(found).items()
  assert label == ""
  assert [setting.mean("window") for setting in members] == [3, 7, 11]
  assert set(figures.draw(found)) == {figures.WINDOW, figures.COSTS}


@pytest.fixture
def trials():
  rows = [
    done(block, halo, seed, accuracy)
    for (block, halo), found in ACCURACIES.items()
    for seed, accuracy in enumerate(found)
  ]
  values = {"model.block_size": "4", "model.halo_size": "1"}
  return [
    *rows,
    TrialRecord(
      values | {"seed": "0"}, "failed", 'loss is <nan> | "at" step 3'
    ),
    TrialRecord(values | {"seed": "1"}, "pending"),
  ]


def test_the_csv_has_every_trial(trials):
  lines = list(csv.DictReader(io.StringIO(table.to_csv(trials))))
  assert len(lines) == len(trials)
  assert [line["status"] for line in lines[-2:]] == ["failed", "pending"]
  assert lines[-2]["reason"] == trials[-2].reason
  for line, row in zip(lines, trials, strict=True):
    assert line["seed"] == row.values["seed"]
    if row.figures:
      assert float(line["accuracy"]) == row.figures["accuracy"]
      assert line["images"] == "450"
      assert int(line["flops"]) == row.flops
    else:
      assert line["accuracy"] == line["flops"] == ""


def test_the_table_has_means_and_spreads(trials):
  head, _, *lines = table.to_markdown(table.settings(trials)).splitlines()
  titles = [cell.strip() for cell in head.split("|")[1:-1]]
  assert titles[2:5] == ["window", "accuracy", "loss"]  # The best is first.
  assert "peak device memory, MiB" in titles and "GFLOPs / image" in titles
  assert len(lines) == 4
  for line, found in zip(lines, ACCURACIES.values(), strict=False):
    cells = dict(
      zip(titles, (c.strip() for c in line.split("|")[1:-1]), strict=True)
    )
    mean, spread = np.mean(found), np.std(found, ddof=1)
    assert cells["accuracy"] == f"{mean:.4f} ± {spread:.4f}"
    assert cells["parameters"] == "1,234,567"
    assert cells["seeds"] == "2 of 2" and cells["status"] == "done"
  assert "| 0 of 2 | 1 failed, 1 pending | loss is <nan> \\| " in lines[-1]


def test_effects_are_changes_in_pairs_equal_in_all_else(trials, tmp_path):
  # Blocks of 4 with halos of 1 are not done, so each value has two seeds left.
  found = effects.cells(trials)
  assert found[0] == [
    "field",
    "value",
    "against",
    "change of accuracy",
    "pairs",
  ]
  assert found[1:] == [
    ["block_size", "4", "2", "+0.0250 ± 0.0150", "2"],
    ["halo_size", "1", "0", "+0.0300 ± 0.0000", "2"],
  ]
  assert effects.cells(trials[:2]) == []  # Two seeds of one setting.
  alone = [done(2, halo, 0, accuracy) for halo, accuracy in ((0, 1), (1, 0.5))]
  assert effects.cells(alone)[1][3:] == ["-0.5000", "1"]
  assert report.EFFECTS in report.write(trials, str(tmp_path))
  page = (tmp_path / report.PAGE).read_text()
  assert "<th>pairs</th>" in page and "<td>+0.0250 ± 0.0150</td>" in page
  report.write(trials[:2], str(tmp_path))
  assert not (tmp_path / report.EFFECTS).exists()


def test_one_seed_has_no_spread():
  (setting,) = table.settings([done(2, 1, 0, 0.5)])
  assert setting.spread("accuracy") is None and setting.mean("window") == 4
  assert "| 0.5000 |" in table.to_markdown([setting])
  (equal,) = table.settings([done(2, 1, seed, 0.5) for seed in (0, 1)])
  assert "| 0.5000 ± 0.0000 |" in table.to_markdown([equal])


def test_the_pareto_front_is_what_nothing_beats():
  random = np.random.default_rng(0)
  for less, trial in itertools.product((True, False), range(50)):
    points = [tuple(map(float, p)) for p in random.integers(0, 6, (trial, 2))]
    sign = 1 if less else -1

    def beaten(point, points=points, sign=sign):
      cost, accuracy = point
      return any(
        sign * c <= sign * cost and a >= accuracy and (c, a) != point
        for c, a in points
      )

    front = [points[i] for i in figures.pareto(points, less)]
    assert sorted(front) == sorted({p for p in points if not beaten(p)})


def test_a_curve_for_each_block_and_other_field(trials):
  found = figures.curves(table.settings(trials[:-2]))
  assert {k: [s.mean("window") for s in v] for k, v in found.items()} == {
    "block 2": [2, 4],
    "block 4": [4],
  }
  other = [
    TrialRecord(**{**vars(row), "values": row.values | {"model.rb": rb}})
    for row in trials[:-2]
    for rb in ("1.0", "2.0")
  ]
  assert len(figures.curves(table.settings(other))) == 4


class Reader(html.parser.HTMLParser):
  """Collects the cells of tables, and whatever a page asks for."""

  def __init__(self):
    super().__init__()
    self.rows, self.asked = [], []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.asked += [attributes[n] for n in ("src", "href") if n in attributes]
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append([attributes.get("data-value"), ""])

  def handle_data(self, data):
    if self.rows and self.rows[-1]:
      self.rows[-1][-1][1] += data


def test_the_report_is_written_and_the_page_stands_alone(trials, tmp_path):
  folder = str(tmp_path / "run" / "report")
  assert not report.is_written(folder)
  names = report.write(trials, folder)
  assert report.is_written(folder)
  assert sorted(names) == sorted(
    path.name for path in (tmp_path / "run" / "report").iterdir()
  )
  for name in (figures.WINDOW, figures.COSTS):
    with Image.open(tmp_path / "run" / "report" / name) as image:
      assert image.width == 1600
      assert len(image.getcolors(2**24)) > 100
  text = (tmp_path / "run" / "report" / report.PAGE).read_text()
  reader = Reader()
  reader.feed(text)
  assert len(reader.asked) == 2
  assert all(where.startswith("data:image/png;") for where in reader.asked)
  assert not re.search(r"https?://|@import|url\(", text)
  head, *lines = reader.rows[:5]
  assert [len(row) for row in reader.rows[5:]] == [5, 5, 5]  # The effects.
  accuracy = [title for _, title in head].index("accuracy")
  keys = [line[accuracy][0] for line in lines]
  assert [float(key) for key in keys[:-1]] == pytest.approx(
    [np.mean(found) for found in ACCURACIES.values()]
  )
  assert keys[-1] == ""
  assert trials[-2].reason in lines[-1][-1][1]
  assert "<nan>" not in text


def test_a_grid_without_attention(tmp_path):
  """A ResNet has costs and no window; a task may have another figure."""
  row = TrialRecord(
    {"model.rb": "4.0", "seed": "0"},
    "done",
    figures={"angle": 0.5},
    best="angle",
    flops=10**9,
    images_per_second=5.0,
  )
  names = report.write([row], str(tmp_path))
  assert figures.COSTS in names and figures.WINDOW not in names
  assert "accuracy" not in (tmp_path / report.PAGE).read_text()


def test_networks_are_lines_of_a_figure(tmp_path):
  rows = [
    TrialRecord(
      {"base": base, "model.rb": "4.0", "seed": str(seed)},
      "done",
      figures={"accuracy": 0.5 + seed / 10},
      best="accuracy",
      flops=10**9,
      images_per_second=5.0,
      window=window,
      curve=[[10, 0.2], [20, 0.5 + seed / 10]],
    )
    for base, window in (
      ("configs/digits.py", 6),
      ("configs/digits.py:sasa", 3),
    )
    for seed in range(3)
  ]
  (tmp_path / figures.WINDOW).write_bytes(b"of an earlier report")
  names = report.write(rows, str(tmp_path))
  assert {figures.SETTINGS, figures.TRAINING} <= set(names)
  assert figures.WINDOW not in names
  assert not (tmp_path / figures.WINDOW).exists()
  for name in (figures.SETTINGS, figures.TRAINING):
    with Image.open(tmp_path / name) as image:
      assert len(image.getcolors(2**24)) > 100
  text = (tmp_path / report.TABLE).read_text()
  assert "| digits | 4.0 | 6 | 0.6000 ± 0.1000 |" in text
  assert "| digits:sasa | 4.0 |" in text
  assert "curve" not in (tmp_path / report.CSV).read_text()


def test_a_grid_of_which_nothing_is_done(trials, tmp_path):
  names = report.write(trials[-2:], str(tmp_path))
  assert names == [report.CSV, report.TABLE, report.PAGE]
  assert "1 failed, 1 pending" in (tmp_path / report.PAGE).read_text()
  assert report.render([], {}).count("<tr>") == 1
