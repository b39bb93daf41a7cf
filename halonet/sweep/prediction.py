"""What a grid will cost, before anything is trained."""

import dataclasses
from collections.abc import Iterator, Sequence

import ml_collections

from halonet.cost import tpu
from halonet.data import sources
from halonet.errors import RunError, UsageError
from halonet.models import registry
from halonet.sweep import counts
from halonet.sweep.grid import Point, Sweep
from halonet.training import checks


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a setting of the grid costs.

  Attributes:
    values: of the fields of the grid, without the seed.
    window: b + 2h or k, in pixels of the map; None without local attention.
    parameters: of the model.
    flops: of one image's forward pass.
    attention_bytes: of one image, see `halonet.cost.model.Cost`.
    steps: what the compiler says of a training step, on each topology.
    reason: why the setting is impossible, or "".
  """

  values: dict[str, str]
  window: int | None = None
  parameters: int | None = None
  flops: int | None = None
  attention_bytes: int | None = None
  steps: tuple["Step", ...] = ()
  reason: str = ""

  @property
  def will_run(self) -> bool:
    return not self.reason and all(step.fits for step in self.steps)


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step on a TPU, as the compiler for it estimates it.

  Attributes:
    topology: such as "v5e:4x4".
    fits: whether a core has the memory that the step needs.
    text: memory and time, or why there is no step.
  """

  topology: str
  fits: bool
  text: str


def predict(
  sweep: Sweep, classes: int, topologies: Sequence[str] = ()
) -> Iterator[Prediction]:
  """Predicts one setting of the grid after another; its seeds cost the same.

  Args:
    sweep: the grid.
    classes: of the data set.
    topologies: TPUs for which a step is compiled, which takes a minute each.
  """
  for point in settings(sweep):
    try:
      config = sweep.config(point)
    except UsageError as error:
      yield Prediction(point.setting, reason=str(error))
      continue
    cost = counts.count(config, classes)
    model = config.model
    operators = "".join(model.operators)
    window = model.window_size if "p" in operators else None
    if "h" in operators:
      window = model.block_size + 2 * model.halo_size
    yield Prediction(
      point.setting,
      window,
      cost.parameters,
      cost.flops,
      cost.attention_bytes,
      tuple(_compile(config, topology, classes) for topology in topologies),
    )


def settings(sweep: Sweep) -> list[Point]:
  """The points of the first seed."""
  first = sweep.grid["seed"][0]
  return [p for p in sweep.points() if p.values["seed"] == first]


def class_count(config: ml_collections.ConfigDict) -> tuple[int, bool]:
  """Classes of a config's data set, and whether that is known.

  If the data set is not here, those that the model has by itself.
  """
  try:
    return sources.count_classes(config.data), True
  except UsageError:
    return registry.model_fields(config.model.name)["num_classes"], False


def print_grid(sweep: Sweep, topologies: Sequence[str]) -> None:
  """Prints what every setting of a grid costs, and whether it will run.

  Raises:
    UsageError: if the base config is impossible, or a topology is, or there is
      no compiler for it.
  """
  if topologies:
    tpu.check_available()
  for topology in topologies:
    tpu.topology_devices(topology)
  base = sweep.config()
  classes, known = class_count(base)
  number, seeds = len(settings(sweep)), len(sweep.grid["seed"])
  print(
    f"{number} settings × {seeds} seed{'s' * (seeds > 1)} of {sweep.base}, with"
    f" {classes} classes"
    + ("" if known else " (assumed: the data set is not here)"),
    flush=True,
  )
  if topologies:
    print(
      "Compiling a training step of each setting for"
      f" {', '.join(topologies)}: minutes for large models",
      flush=True,
    )
  fields = [field for field in sweep.grid if field != "seed"]
  titles = [field.rpartition(".")[2] for field in fields]
  titles += ["window", "parameters", "MFLOPs/image", "attention MiB/image"]
  titles += [f"{topology}: HBM per core, step" for topology in topologies]
  print("  ".join(titles), flush=True)
  impossible = 0
  for prediction in predict(sweep, classes, topologies):
    impossible += not prediction.will_run
    cells = [prediction.values[field] for field in fields]
    if not prediction.reason:
      cells += [
        str(prediction.window or "–"),
        f"{prediction.parameters:,}",
        f"{prediction.flops / 1e6:,.2f}",
        f"{prediction.attention_bytes / 2**20:.3g}",
        *(step.text for step in prediction.steps),
      ]
    line = "  ".join(
      cell.rjust(len(title)) for cell, title in zip(cells, titles, strict=False)
    )
    if prediction.reason:
      line += f"  IMPOSSIBLE: {prediction.reason}"
    elif not prediction.will_run:
      missed = [step.topology for step in prediction.steps if not step.fits]
      line += f"  WILL NOT RUN ON {', '.join(missed)}"
    print(line, flush=True)
  if impossible:
    print(f"{impossible} of {number} settings will not run as they are")
  else:
    print("All settings are possible")


def _compile(config, topology, classes):
  devices = tpu.topology_devices(topology)
  per_core = config.batch_size // (devices * config.accumulation_steps)
  try:
    checks.check_devices(config, devices)
    report = tpu.report(
      config, topology, per_core_batch=per_core, num_classes=classes
    )
  except RunError as error:
    return Step(topology, False, str(error))
  memory = (
    f"{report.hbm_bytes / 2**30:.2f} of {report.hbm_capacity / 2**30:.2f} GiB"
  )
  time = "–" if report.seconds is None else f"{1e3 * report.seconds:.1f} ms"
  return Step(topology, report.fits, f"{memory}, {time}")
