"""Reports what a training or evaluation step would cost on a TPU slice.

  python scripts/tpu_report.py --config=configs/imagenet/halonet.py:h0 \\
    --topology=v5e:4x4 [--per_core_batch=32] [--step=train|eval] \\
    [--config.FIELD=VALUE ...] [--no_search] [--json=FILE]

compiles the step of the training loop, sharded over the whole slice, with the
TPU compiler, which needs no TPU (and leaves alone what there is). That takes
minutes for a large model. Topologies are v3:4x4, v4:2x2x4, v5e:4x4, v5p:2x2x2,
v6e:4x4 and others of these generations, in chips. A "core" is a device of
JAX's: one of a v3 chip's two, a whole chip elsewhere. Nothing is run: times are
the compiler's estimates.

  python scripts/tpu_report.py --table [--write]

computes the rows of the tables in docs/tpu.md that docs/tables/tpu.jsonl lacks,
one line each, which takes hours in all; interrupted, it resumes with the next
row. --write computes nothing: it writes the rows that are there into the page.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from halonet import command  # noqa: E402
from halonet.errors import UsageError  # noqa: E402

PAGE = ROOT / "docs/tpu.md"
ROWS = ROOT / "docs/tables/tpu.jsonl"
BEGIN, END = "<!-- tpu: begin -->", "<!-- tpu: end -->"
MISSING = "not yet computed"
HALONETS = tuple(f"h{number}" for number in range(8))
SLICES = ("v5e:4x4", "v3:4x4", "v6e:4x4", "v4:2x2x4", "v5p:2x2x2")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", metavar="FILE[:ARG]")
  parser.add_argument("--topology", metavar="GENERATION:SHAPE")
  parser.add_argument("--per_core_batch", type=int, default=32, metavar="N")
  parser.add_argument("--step", choices=("train", "eval"), default="train")
  parser.add_argument(
    "--num_classes", type=int, metavar="N", help="(those of the data set)"
  )
  parser.add_argument(
    "--no_search",
    action="store_true",
    help="does not look for the largest batch that fits",
  )
  parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--write", action="store_true")
  arguments, rest = parser.parse_known_args()
  for word in rest:
    if not word.startswith("--config.") or "=" not in word:
      raise UsageError(f"unknown argument {word}; see --help")
  overrides = [word.removeprefix("--config.") for word in rest]

  from halonet.tpu import step_cost, step_text  # Heavy: after --help.
  from halonet.tpu.largest import largest_batch

  if arguments.write and not arguments.table:
    raise UsageError("--write belongs to --table; see --help")
  if arguments.table and (arguments.config or arguments.topology or rest):
    raise UsageError("--table computes its own rows; leave out the others")
  if arguments.table and arguments.write:
    write_table()
    return
  step_cost.check_available()
  if arguments.table:
    make_table()
    return
  for field in ("config", "topology"):
    if getattr(arguments, field) is None:
      raise UsageError(f"--{field} is missing; see --help")
  command.check_output("--json", arguments.json)
  from halonet.training.config import load_config

  config = load_config(arguments.config, overrides)
  print(
    f"{config.model.name} at {config.data.image_size} pixels,"
    f" {config.model.dtype}, {arguments.step} step on {arguments.topology}:"
    f" {step_cost.topology_devices(arguments.topology)} cores",
    flush=True,
  )
  compile_, allowed = compiler(
    config, arguments.topology, arguments.step, arguments.num_classes
  )
  first, best = compile_(arguments.per_core_batch), None
  if not arguments.no_search:
    best = largest_batch(compile_, first, allowed)
  print(step_text.describe(first, best, searched=not arguments.no_search))
  shown = first if first.fits else best
  if shown and arguments.step == "train":
    batch = step_cost.sized(
      config, arguments.topology, shown.per_core_batch
    ).batch_size
    words = [f"--config={arguments.config}", *rest]
    words = [w for w in words if not w.startswith("--config.batch_size=")]
    words.append(f"--config.batch_size={batch}")
    print(f"Next: scripts/train.sh {' '.join(words)}, on such a slice")
  if arguments.json:
    result = {"report": as_json(first), "largest": as_json(best)}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {arguments.json}")


def compiler(config, topology, step, num_classes=None):
  """Returns functions that compile a batch, and that say which may be."""
  from halonet.tpu import step_cost, step_text

  def compile_(size):
    print(f"Compiling for {size} images a core ...", end=" ", flush=True)
    cost = step_cost.compile_step(
      config,
      topology,
      step=step,
      per_core_batch=size,
      num_classes=num_classes,
    )
    print(f"{cost.compile_seconds:.0f} s: {step_text.memory(cost)}", flush=True)
    return cost

  def allowed(size):
    try:
      step_cost.sized(config, topology, size)
    except UsageError:
      return False
    return True

  return compile_, allowed


def as_json(cost):
  """Returns a cost as JSON has it, with the ten most expensive layers."""
  if cost is None:
    return None
  fields = dataclasses.asdict(cost)
  fields["layers"] = fields["layers"] and fields["layers"][:10]
  return fields


# ------------------------------------------------------------------ the table


@dataclasses.dataclass(frozen=True)
class Case:
  """What one figure of the tables is of: a model, compiled for a slice."""

  model: str
  config: str
  topology: str
  step: str = "train"
  per_core_batch: int = 32
  overrides: tuple[str, ...] = ()
  published: str | None = None  # What the paper measured.

  @property
  def key(self) -> str:
    return f"{self.model} {self.step} {self.per_core_batch} {self.topology}"


def rows() -> list[Case]:
  """Returns what the tables show, in the order of computation."""
  resnet = "configs/imagenet/sasa.py:resnet50"
  calibration = [
    Case("ResNet-50 at 224", resnet, "v3:4x4", published="–"),
    # The paper does not say the size of the images.
    Case(
      "ResNet-50 at 1024",
      resnet,
      "v3:4x4",
      step="eval",
      per_core_batch=16,
      overrides=("data.image_size=1024",),
      published="409 ms (Table 5)",
    ),
  ]
  wide = [
    Case(
      f"H4 {name} at 256",
      f"configs/imagenet/imagenet21k.py:{name}",
      "v3:4x4",
      published=f"{milliseconds} ms (Table 6)",
    )
    for name, milliseconds in (
      ("base128_conv12", 213),
      ("base128", 377),
      ("base128_patch4", 366),
    )
  ]
  # Cheap and dear chips by turns, so that the first rows say the most.
  models = [
    Case(model, f"configs/imagenet/halonet.py:{model}", topology)
    for slices in (SLICES[:2], SLICES[2:])
    for model in HALONETS
    for topology in slices
  ]
  return calibration + wide + models


def read_rows() -> dict[str, dict]:
  """Returns what has been computed, by the cases' keys."""
  if not ROWS.exists():
    return {}
  found = [json.loads(line) for line in ROWS.read_text().splitlines()]
  return {line["key"]: line for line in found}


def make_table() -> None:
  """Computes the rows that are missing, and appends each to the file."""
  from halonet.tpu.largest import largest_batch
  from halonet.training.config import load_config

  done = read_rows()
  missing = [row for row in rows() if row.key not in done]
  print(
    f"{len(missing)} of {len(rows())} rows are missing in {ROWS}", flush=True
  )
  ROWS.parent.mkdir(exist_ok=True)
  started = time.perf_counter()
  for number, row in enumerate(missing):
    eta = "unknown"
    if number:
      seconds = (time.perf_counter() - started) / number
      eta = datetime.timedelta(seconds=round(seconds * (len(missing) - number)))
    print(f"[{number + 1}/{len(missing)}] {row.key}, ETA {eta}", flush=True)
    config = load_config(row.config, row.overrides)
    # The classes of a folder that is not here: ImageNet-21k's.
    classes = 21_841 if config.data.name == "folder" else None
    compile_, allowed = compiler(config, row.topology, row.step, classes)
    report = first = compile_(row.per_core_batch)
    if not first.fits:
      report = largest_batch(compile_, first, allowed)
    line = {
      "key": row.key,
      "date": datetime.date.today().isoformat(),
      "libtpu": importlib.metadata.version("libtpu"),
      "asked": as_json(first),
      "report": as_json(report),
    }
    with open(ROWS, "a") as file:
      file.write(json.dumps(line) + "\n")
  print(f"Wrote {ROWS}\nNext: scripts/tpu_report.py --table --write")


def write_table() -> None:
  """Writes what has been computed into the page."""
  before, rest = PAGE.read_text().split(BEGIN)
  _, after = rest.split(END)
  PAGE.write_text(f"{before}{BEGIN}\n{tables(read_rows())}\n{END}{after}")
  print(f"Wrote {PAGE}")


def tables(done: dict[str, dict]) -> str:
  """Returns the page's two tables, as Markdown."""
  from halonet.tpu.step_cost import topology_devices

  wanted = {row.key: row for row in rows()}
  models = [row for row in wanted.values() if row.model in HALONETS]
  slices = sorted({row.topology for row in models})
  cells = {(row.model, row.topology): cell(done.get(row.key)) for row in models}
  lines = [
    "| model | "
    + " | ".join(f"{name}, {topology_devices(name)} cores" for name in slices)
    + " |",
    "|---" * (len(slices) + 1) + "|",
    *(
      f"| {model} | " + " | ".join(cells[model, name] for name in slices) + " |"
      for model in HALONETS
    ),
    "",
    "| set-up, TPU v3 | paper | estimate | HBM, GiB |",
    "|---|---|---|---|",
  ]
  for row in wanted.values():
    if row.published:
      line = done.get(row.key)
      estimate = needs = MISSING
      if line and line["report"]:
        report = line["report"]
        estimate = f"{report['seconds'] * 1e3:.0f} ms"
        needs = f"{report['hbm_bytes'] / 2**30:.1f}"
      what = "training step" if row.step == "train" else "forward pass"
      lines.append(
        f"| {row.model}, {what}, {row.per_core_batch} a core |"
        f" {row.published} | {estimate} | {needs} |"
      )
  return "\n".join(lines)


def cell(line: dict | None) -> str:
  """Words memory and time of one model on one slice."""
  if line is None:
    return MISSING
  report, asked = line["report"], line["asked"]
  if report is None:
    return f"not even one image fits in {asked['hbm_capacity'] / 2**30:.1f} GiB"
  text = (
    f"{report['hbm_bytes'] / 2**30:.1f} GiB, {report['seconds'] * 1e3:.0f} ms"
  )
  if report["per_core_batch"] != asked["per_core_batch"]:
    text += f" (**{report['per_core_batch']}** a core)"
  return text


if __name__ == "__main__":
  command.run(main)
