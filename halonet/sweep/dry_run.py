"""What a grid will cost, before anything is trained."""

import functools
from collections.abc import Sequence

import ml_collections

from halonet.cost import model as model_cost
from halonet.cost import tpu
from halonet.data import sources
from halonet.errors import RunError, UsageError
from halonet.models import registry
from halonet.sweep.grid import Point, Sweep, window
from halonet.training import checks
from halonet.training import config as config_lib


def print_grid(sweep: Sweep, topologies: Sequence[str] = ()) -> None:
  """Prints what every setting of a grid costs, and whether it will run.

  Args:
    sweep: the grid; all seeds of a setting cost the same.
    topologies: TPUs for which a training step of each setting is compiled,
      such as "v5e:4x4".

  Raises:
    UsageError: if the base config is impossible, or a topology is, or there is
      no compiler for it.
  """
  if topologies:
    tpu.check_available()
  for topology in topologies:
    tpu.topology_devices(topology)
  classes, known = class_count(sweep.config())
  points, seeds = settings(sweep), len(sweep.grid["seed"])
  _say(
    f"{len(points)} settings × {seeds} seed{'s' * (seeds > 1)} of {sweep.base},"
    f" with {classes} classes"
    + ("" if known else " (assumed: the data set is not here)")
  )
  if topologies:
    _say(
      "Compiling a training step of each setting for"
      f" {', '.join(topologies)}: minutes for large models"
    )
  titles = [field.rpartition(".")[2] for field in points[0].setting]
  titles += ["window", "parameters", "MFLOPs/image", "attention MiB/image"]
  titles += [f"{topology}: HBM per core, step" for topology in topologies]
  _say("  ".join(titles))
  impossible = 0
  for point in points:
    cells, fault = list(point.setting.values()), ""
    try:
      config = sweep.config(point)
    except UsageError as error:
      fault = f"IMPOSSIBLE: {error}"
    else:
      cells += _costs(config, classes)
      steps = [_compile(config, topology, classes) for topology in topologies]
      cells += [text for text, _ in steps]
      missed = [
        topology
        for topology, (_, fits) in zip(topologies, steps, strict=True)
        if not fits
      ]
      if missed:
        fault = f"WILL NOT RUN ON {', '.join(missed)}"
    impossible += bool(fault)
    cells = [c.rjust(len(t)) for c, t in zip(cells, titles, strict=False)]
    _say("  ".join([*cells, fault] if fault else cells))
  if impossible:
    _say(f"{impossible} of {len(points)} settings will not run as they are")
  else:
    _say("All settings are possible")


def settings(sweep: Sweep) -> list[Point]:
  """Returns the points of the first seed."""
  first = sweep.grid["seed"][0]
  return [p for p in sweep.points() if p.values["seed"] == first]


def class_count(config: ml_collections.ConfigDict) -> tuple[int, bool]:
  """Counts the classes of a config's data set; says whether that is known.

  If the data set is not here, they are those that the model has by itself.
  """
  try:
    return sources.count_classes(config.data), True
  except UsageError:
    return registry.model_fields(config.model.name)["num_classes"], False


def _costs(config, classes):
  spec = config_lib.create_model(config, classes).spec
  cost = _count(spec, config.data.image_size)
  return [
    str(window(config) or "–"),
    f"{cost.parameters:,}",
    f"{cost.flops / 1e6:,.2f}",
    f"{cost.attention_bytes / 2**20:.3g}",
  ]


@functools.cache  # Settings may differ in the training alone.
def _count(spec, image_size):
  return model_cost.count(spec, image_size).total


def _compile(config, topology, classes):
  """Returns memory and time of a step, or why there is none; and if it fits."""
  devices = tpu.topology_devices(topology)
  per_core = config.batch_size // (devices * config.accumulation_steps)
  try:
    checks.check_devices(config, devices)
    report = tpu.report(
      config, topology, per_core_batch=per_core, num_classes=classes
    )
  except RunError as error:
    return str(error), False
  memory = (
    f"{report.hbm_bytes / 2**30:.2f} of {report.hbm_capacity / 2**30:.2f} GiB"
  )
  time = "–" if report.seconds is None else f"{1e3 * report.seconds:.1f} ms"
  return f"{memory}, {time}", report.fits


def _say(line):
  print(line, flush=True)
