"""Prints every row of the papers' tables, and how to reproduce it.

  python scripts/reproduce.py [--write]

counts parameters and operations of every row of docs/tables/papers.toml, in
about two minutes, and puts the TPU estimates that docs/tables/tpu.jsonl holds
beside them. --write writes the page.

  python scripts/reproduce.py --estimate [--topology=GENERATION:SHAPE]

compiles the training steps that the file lacks for v3 and v5e, or for the one
slice, with the TPU compiler, which needs no TPU. All of them take hours;
interrupted, it resumes with the next step.
"""

import dataclasses
import functools
import pathlib
import shlex
import tomllib

import tpu_report

from halonet import command, fields
from halonet.models import registry
from halonet.tpu.step_cost import topology_devices
from halonet.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/reproduce.md"
TABLES = ROOT / "docs/tables/papers.toml"
NONE = "–"
CORES = 128
SLICES = ("v3:4x4", "v5e:4x4")

# Training images. The papers give ImageNet-21k's as 14.2 million.
IMAGES = {
  "imagenet2012": 1_281_167,
  "folder": 14_200_000,
  "coco/2017": 118_287,
}

# Fields of a model that do not change what the papers count. Casts to and from
# bfloat16 would be among the operations.
_TRAINING = {
  *("name", "dtype", "remat", "batch_norm_group", "batch_norm_momentum"),
  *("drop_path", "dropout", "num_classes", "zero_init_classifier"),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a paper's table; figures are texts, "" if not published.

  Attributes:
    name: name in the paper.
    arguments: argument of the table's config and further options; "–" if it is
      another system's.
    parameters: millions of parameters.
    gflops: 10⁹ FLOPs of a forward pass, two for a multiplication and addition.
    result: result of the paper.
  """

  name: str
  arguments: str
  parameters: str
  gflops: str
  result: str


@dataclasses.dataclass(frozen=True)
class Table:
  """One table or figure; docs/tables/papers.toml explains the attributes."""

  paper: str
  name: str
  config: str
  unit: str
  rows: tuple[Row, ...]
  script: str = "scripts/train.sh"
  overrides: str = ""
  ours: str = "not yet measured"

  @property
  def trains(self) -> bool:
    return self.script == "scripts/train.sh"

  def command(self, row: Row) -> str | None:
    """Returns what runs a row, or None if it is another system's."""
    if row.arguments == NONE:
      return None
    variant, _, options = row.arguments.partition(" ")
    words = [self.script, options, self.overrides]
    if self.config:
      words.insert(1, f"--config={self.config}:{variant}")
    return " ".join(word for word in words if word)

  def cores(self, topology: str) -> int:
    """Counts the cores that share a training: a detector's are the slice's."""
    if self.config.startswith("configs/detection/"):
      return topology_devices(topology)
    return CORES

  def source(self, row: Row) -> tuple[str, list[str]]:
    """Returns the arguments of `load_config` for a row that trains."""
    _, config, *options = shlex.split(self.command(row))
    return config.removeprefix("--config="), [
      option.removeprefix("--config.")
      for option in options
      if not option.startswith("--workdir=")
    ]


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
  parser.add_argument("--estimate", action="store_true")
  parser.add_argument("--topology", choices=SLICES)
  arguments = parser.parse_args()
  if arguments.estimate:
    slices = (arguments.topology,) if arguments.topology else SLICES
    tpu_report.make_table(cases(slices))
    print("Next: scripts/reproduce.py --write")
    return
  text = page(read_tables())
  if arguments.write:
    command.write_section(PAGE, "tables", text)
  else:
    print(text)


def read_tables() -> list[Table]:
  """Reads the list of the papers' tables."""
  tables = tomllib.loads(TABLES.read_text())["table"]
  return [
    Table(**table | {"rows": tuple(Row(*row) for row in table["rows"])})
    for table in tables
  ]


@functools.cache
def _load(source, overrides):
  return config_lib.load_config(source, overrides)


def load(table: Table, row: Row):
  """Loads the training config of a row."""
  source, overrides = table.source(row)
  return _load(source, tuple(overrides))


def network(config) -> str:
  """Names what is compiled: a model, its image size, and its other fields."""
  name = config.model.name
  known = registry.model_fields(name, config.model.to_dict())
  changed = [
    f", {field}={value}"
    for field, value in config.model.items()
    if field not in _TRAINING and value != known[field].default
  ]
  return f"{name} at {config.data.image_size}{''.join(changed)}"


def cases(slices: tuple[str, ...]) -> list[tpu_report.Case]:
  """Returns the training steps of all rows, each network once per slice."""
  found = {}
  for table in filter(lambda each: each.trains, read_tables()):
    for row in table.rows:
      if table.command(row):
        source, overrides = table.source(row)
        name = network(load(table, row))
        found.setdefault(name, (table, row, source, tuple(overrides)))
  return [
    tpu_report.Case(
      *(name, source, topology, "train"),
      images_a_core(table, load(table, row), topology),
      overrides,
    )
    for topology in slices
    for name, (table, row, source, overrides) in found.items()
  ]


def images_a_core(table: Table, config, topology: str) -> int:
  """Returns 32, or a detector's share of the recipe's batch."""
  cores = table.cores(topology)
  return 32 if cores == CORES else config.batch_size // cores


# ------------------------------------------------------------------- the page


def page(tables: list[Table]) -> str:
  """Returns the tables, in the order of the papers, as Markdown."""
  done = tpu_report.read_rows()
  texts, papers = [], []
  for table in command.progress(tables, "tables"):
    if table.paper not in papers:
      papers.append(table.paper)
      texts.append(f"## {table.paper}")
    texts += [f"### {table.name}", f"Results: {table.unit}."]
    texts.append(_lines(table, done))
  return "\n\n".join(texts)


def _lines(table, done):
  header = ["row", "command", "paper", "ours"]
  costs = ["parameters", "M in the paper", "GFLOPs", "in the paper"]
  slices = [f"{each.partition(':')[0]}-{table.cores(each)}" for each in SLICES]
  if table.trains:
    header[2:2] = costs
    header += slices
  lines = []
  for row in table.rows:
    run = table.command(row)
    line = [row.name, f"`{run}`" if run else NONE, row.result]
    line.append(table.ours if run else NONE)
    if table.trains:
      parameters, gflops, *estimates = _figures(table, row, run, done)
      line[2:2] = [parameters, row.parameters, gflops, row.gflops]
      line += estimates
    lines.append([cell or NONE for cell in line])
  return command.table(header, lines, len(header))


def _figures(table, row, run, done):
  """Returns parameters, GFLOPs and the estimate for each slice, as texts."""
  if not run:
    return [NONE] * (2 + len(SLICES))
  config = load(table, row)
  name, size = config.model.name, config.data.image_size
  model = {k: v for k, v in config.model.items() if k not in _TRAINING}
  if config.data.name == "folder":
    model["num_classes"] = 21_841
  parameters, flops = _count(name, size, tuple(sorted(model.items())))
  epochs, _ = fields.parse_duration("steps", config.steps)
  images = epochs * IMAGES[config.data.name]
  estimates = []
  for topology in SLICES:
    images_each = images_a_core(table, config, topology)
    case = tpu_report.Case(
      network(config), "", topology, per_core_batch=images_each
    )
    estimates.append(
      _estimate(done.get(case.key), images / table.cores(topology), images_each)
    )
  return [
    f"{parameters:,}",
    f"{flops / 1e9:.2f}",
    *estimates,
  ]


@functools.cache
def _count(name, size, model):
  from halonet.cost import model as model_cost

  cost = model_cost.count(registry.create_model(name, **dict(model)), size)
  return cost.total.parameters, cost.total.flops


def _estimate(line, images, asked):
  """Returns memory on a core, and the time it takes for its images."""
  if line is None:
    return tpu_report.MISSING
  report = line["report"]
  if report is None:
    return "not even one image fits"
  batch = report["per_core_batch"]
  hours = images / batch * report["seconds"] / 3600
  text = f"{report['hbm_bytes'] / 2**30:.1f} GiB, {hours:.3g} h"
  if batch != asked:
    text += f" ({batch} a core)"
  return text + tpu_report.note(line)


if __name__ == "__main__":
  command.run(main)
