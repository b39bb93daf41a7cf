"""Reports what a training or evaluation step would cost on a TPU slice.

  python scripts/tpu_report.py --config=configs/imagenet/halonet.py:h0 \\
    --topology=v5e:4x4 [--per_core_batch=32] [--step=train|eval] \\
    [--config.FIELD=VALUE ...] [--no_search] [--json=FILE]

compiles the step of the training loop, sharded over the whole slice, with the
TPU compiler, which neither needs nor touches a TPU. That takes minutes for a
large model. Topologies are v3:4x4, v4:2x2x4, v5e:4x4, v5p:2x2x2,
v6e:4x4 and others of these generations, in chips. A "core" is a device of
JAX's: one of a v3 chip's two, a whole chip elsewhere. Nothing is run: times are
the compiler's estimates.

  python scripts/tpu_report.py --table [--write]

computes the rows of docs/tpu.md and docs/slide.md that docs/tables/tpu.jsonl
lacks. All of them take hours; interrupted, it resumes with the next row.
--write computes nothing and writes the rows that are there into the pages.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import shlex
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from halonet import command, fields  # noqa: E402
from halonet.errors import UsageError  # noqa: E402

PAGE = ROOT / "docs/tpu.md"
SLIDE_PAGE = ROOT / "docs/slide.md"
ROWS = ROOT / "docs/tables/tpu.jsonl"
MISSING = "not yet computed"
HALONETS = {
  f"h{number}": f"halonet_h{number} at {size}"
  for number, size in enumerate((256, 256, 256, 320, 384, 448, 512, 600))
}
SLICES = ("v5e:4x4", "v3:4x4", "v6e:4x4", "v4:2x2x4", "v5p:2x2x2")
# Swin-T with three attentions in stages 1 and 2.
ATTENTIONS = {
  "slide_swin_tiny": ("slide_swin_tiny", ()),
  "swin_tiny": ("swin_tiny", ()),
  "swin_tiny with blocks of 5 and halos of 1": (
    "swin_tiny",
    (
      "model.operators=('halo','halo','window')",
      "model.block_size=5",
      "model.halo_size=1",
    ),
  ),
}


def main() -> None:
  parser = command.parser(__doc__)
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
  command.add_output(parser, "--json")
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--write", action="store_true")
  arguments, rest = parser.parse_known_args()
  overrides = [f"{k}={v}" for k, v in fields.parse_overrides(rest).items()]

  from halonet.tpu import step_cost, step_text  # Heavy: after --help.
  from halonet.tpu.largest import largest_batch

  if arguments.write and not arguments.table:
    raise UsageError("--write belongs to --table; see --help")
  if arguments.table and (arguments.config or arguments.topology or rest):
    raise UsageError("--table computes its own rows; leave out the others")
  if arguments.write:
    done = read_rows()
    command.write_section(PAGE, "tpu", tables(done))
    command.write_section(SLIDE_PAGE, "tpu", grid(attentions(), done))
    return
  if arguments.table:
    make_table(rows())
    print("Next: scripts/tpu_report.py --table --write")
    return
  step_cost.check_available()
  for field in ("config", "topology"):
    if getattr(arguments, field) is None:
      raise UsageError(f"--{field} is missing; see --help")
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
    print(f"Next: scripts/train.sh {shlex.join(words)}, on such a slice")
  written = {"report": as_json(first), "largest": as_json(best)}
  command.write_json(arguments.json, written)


def compiler(config, topology, step, num_classes=None):
  """Returns two functions of a batch: to compile it, and whether it may be."""
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
      return bool(step_cost.sized(config, topology, size))
    except UsageError:
      return False

  return compile_, allowed


def as_json(cost, most=None):
  """Returns a cost as a dict, with the `most` most expensive layers or all."""
  if cost is None:
    return None
  fields = dataclasses.asdict(cost)
  fields["layers"] = fields["layers"] and fields["layers"][:most]
  return fields


# ------------------------------------------------------------------ the table


@dataclasses.dataclass(frozen=True)
class Case:
  """One figure of the tables: a model, compiled for a slice."""

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
  """Returns the cases of the tables in the order of computation."""
  v3, resnet = SLICES[1], "configs/imagenet/sasa.py:resnet50"
  # The paper does not say the size of the images.
  large = ("data.image_size=1024",)
  measured = [
    Case("resnet50 at 224", resnet, v3, published="–"),
    Case(
      *("resnet50 at 1024", resnet, v3, "eval", 16, large),
      published="409 ms (Table 5)",
    ),
  ]
  for name, step, speeds in (
    ("base128_conv12", 213, {384: 257.6, 512: 120.2}),
    ("base128", 377, {384: 121.3, 512: 48.6}),
    ("base128_patch4", 366, {384: 125.7, 512: 56.5}),
  ):
    config = f"configs/imagenet/imagenet21k.py:{name}"
    model, published = f"halonet_h4_{name}", f"{step} ms (Table 6)"
    measured.append(Case(f"{model} at 256", config, v3, published=published))
    for size, speed in speeds.items():
      config = f"configs/imagenet/finetune.py:{name}_{size}"
      published = f"{speed} images/s (Table 6)"
      measured.append(
        Case(f"{model} at {size}", config, v3, "eval", published=published)
      )
  return measured + halonets() + attentions()


def halonets() -> list[Case]:
  """Returns the cases of H0 to H7, in the first table of docs/tpu.md."""
  # Cheap and dear chips alternate, so that the first rows say the most.
  return [
    Case(model, f"configs/imagenet/halonet.py:{variant}", topology)
    for slices in (SLICES[:2], SLICES[2:])
    for variant, model in HALONETS.items()
    for topology in slices
  ]


def attentions() -> list[Case]:
  """Returns the cases of the table in docs/slide.md."""
  return [
    Case(
      model,
      f"configs/imagenet/slide.py:{variant}",
      topology,
      overrides=overrides,
    )
    for topology in SLICES[:4]
    for model, (variant, overrides) in ATTENTIONS.items()
  ]


def read_rows() -> dict[str, dict]:
  """Returns what has been computed, by the key of its case."""
  if not ROWS.exists():
    return {}
  found = [json.loads(line) for line in ROWS.read_text().splitlines()]
  return {line["key"]: line for line in found}


def make_table(cases: list[Case]) -> None:
  """Computes the cases that are missing and appends each to the file.

  Rows with a note, such as "earlier kernels", are computed again.
  """
  from halonet.tpu import step_cost
  from halonet.tpu.largest import largest_batch
  from halonet.training.config import load_config

  step_cost.check_available()
  done = read_rows()
  missing = [
    case for case in cases if case.key not in done or "note" in done[case.key]
  ]
  print(
    f"{len(missing)} of {len(cases)} rows are missing in {ROWS}", flush=True
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
    # The folder of ImageNet-21k need not be here.
    classes = 21_841 if config.data.name == "folder" else None
    compile_, allowed = compiler(config, row.topology, row.step, classes)
    report = first = compile_(row.per_core_batch)
    if not first.fits:
      report = largest_batch(compile_, first, allowed)
    line = {
      "key": row.key,
      "date": datetime.date.today().isoformat(),
      "libtpu": importlib.metadata.version("libtpu"),
      "asked": as_json(first, 10),
      "report": as_json(report, 10),
    }
    with open(ROWS, "a") as file:
      file.write(json.dumps(line) + "\n")
  command.wrote(ROWS)


def tables(done: dict[str, dict]) -> str:
  """Returns the two tables of docs/tpu.md, as Markdown."""
  times = []
  for row in rows():
    if row.published:
      report = done.get(row.key, {}).get("report")
      batch = row.per_core_batch
      estimate = needs = MISSING
      if report:
        batch = report["per_core_batch"]
        estimate = milliseconds(report)
        if "images/s" in row.published:
          seconds = report["seconds"] + report.get("waiting_seconds", 0)
          estimate = f"{report['images'] / seconds:.1f} images/s"
        estimate += note(done[row.key])
        needs = f"{report['hbm_bytes'] / 2**30:.1f}"
      what = "training step" if row.step == "train" else "forward pass"
      setup = f"{row.model}, {what}, {batch} a core"
      times.append((setup, row.published, estimate, needs))
  columns = "set-up, TPU v3", "paper", "estimate", "HBM, GiB"
  measured = command.table(columns, times, len(columns))
  return f"{grid(halonets(), done)}\n\n{measured}"


def grid(cases: list[Case], done: dict[str, dict]) -> str:
  """Returns a table with a line for each model and a column for each slice."""
  from halonet.tpu.step_cost import topology_devices

  slices = sorted({case.topology for case in cases})
  cells = {(case.model, case.topology): done.get(case.key) for case in cases}
  header = [f"{name}, {topology_devices(name)} cores" for name in slices]
  lines = [
    (
      model.removeprefix("halonet_").partition(" at ")[0],
      *(cell(cells[model, name]) for name in slices),
    )
    for model in dict.fromkeys(case.model for case in cases)
  ]
  return command.table(("model", *header), lines, len(header) + 1)


def cell(line: dict | None) -> str:
  """Words memory and time of one model on one slice."""
  if line is None:
    return MISSING
  report, asked = line["report"], line["asked"]
  if report is None:
    return f"not even one image fits in {asked['hbm_capacity'] / 2**30:.1f} GiB"
  text = f"{report['hbm_bytes'] / 2**30:.1f} GiB, {milliseconds(report)}"
  if report["per_core_batch"] != asked["per_core_batch"]:
    text += f" (**{report['per_core_batch']}** a core)"
  return text + note(line)


def milliseconds(report: dict) -> str:
  """Words the time of a step, without and with kernels' waits for memory."""
  times = (
    report["seconds"],
    report["seconds"] + report.get("waiting_seconds", 0),
  )
  shown = dict.fromkeys(f"{time * 1e3:.0f}" for time in times)
  return f"{' to '.join(shown)} ms"


def note(line: dict) -> str:
  """Returns what is different in a row from today's model, in brackets."""
  return f" ({line['note']})" if "note" in line else ""


if __name__ == "__main__":
  command.run(main)
