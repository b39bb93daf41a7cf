"""What a grid will cost, before anything is trained."""

from collections.abc import Sequence

import ml_collections

from halonet.cost import model as model_cost
from halonet.data import sources
from halonet.errors import RunError, UsageError
from halonet.models import registry
from halonet.sweep.grid import Sweep, window
from halonet.sweep.table import shown
from halonet.tasks.task import make_task
from halonet.tpu import step_cost
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
    step_cost.check_available()
  for topology in topologies:
    step_cost.topology_devices(topology)
  decided = {
    base: _decided_fields(config) for base, config in sweep.configs().items()
  }
  seeds = sweep.grid["seed"]
  points = [p for p in sweep.points() if p.values["seed"] == seeds[0]]
  _say(
    f"{len(points)} settings × {len(seeds)} seed{'s' * (len(seeds) > 1)} of"
    f" {', '.join(map(_with_data, decided, decided.values()))}"
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
    cells, fault = [shown(*each) for each in point.setting.items()], ""
    try:
      config = sweep.config(point)
    except UsageError as error:
      fault = f"IMPOSSIBLE: {error}"
    else:
      cells += _costs(config, decided[sweep.base_of(point)])
      steps = [_compile(config, topology) for topology in topologies]
      cells += [text for text, _ in steps]
      fits = dict(zip(topologies, (fit for _, fit in steps), strict=True))
      missed = [topology for topology in topologies if not fits[topology]]
      if missed:
        fault = f"WILL NOT RUN ON {', '.join(missed)}"
    impossible += bool(fault)
    cells = [c.rjust(len(t)) for c, t in zip(cells, titles, strict=False)]
    _say("  ".join([*cells, fault] if fault else cells))
  if impossible:
    _say(f"{impossible} of {len(points)} settings will not run as they are")
  else:
    _say("All settings are possible")


def _decided_fields(config):
  """Returns the model's fields that follow from the data set, if it is here."""
  task = make_task(config)
  try:
    source = sources.describe(config.data, task.needs)
  except UsageError:
    return {}
  return make_task(config, task.describe(source)).model_fields()


def _with_data(base, decided):
  """Names a config file, and what follows from its data set."""
  words = [f"{field} {value}" for field, value in decided.items()]
  absent = "the data set is not here: sizes are assumed"
  return f"{base} ({', '.join(words) or absent})"


def _costs(config: ml_collections.ConfigDict, decided: dict) -> list[str]:
  fields = config.model.to_dict() | decided
  model = registry.create_model(fields.pop("name"), **fields)
  cost = model_cost.count(model, config.data.image_size).total
  return [
    str(window(config) or "–"),
    f"{cost.parameters:,}",
    f"{cost.flops / 1e6:,.2f}",
    f"{cost.attention_bytes / 2**20:.3g}",
  ]


def _compile(config, topology):
  """Returns memory and time of a step, or why there is none; and if it fits."""
  devices = step_cost.topology_devices(topology)
  per_core = config.batch_size // (devices * config.accumulation_steps)
  try:
    config_lib.check_devices(config, devices)
    step = step_cost.compile_step(config, topology, per_core_batch=per_core)
  except RunError as error:
    return str(error), False
  memory = (
    f"{step.hbm_bytes / 2**30:.2f} of {step.hbm_capacity / 2**30:.2f} GiB"
  )
  time = "–" if step.seconds is None else f"{1e3 * step.seconds:.1f} ms"
  return f"{memory}, {time}", step.fits


def _say(line):
  print(line, flush=True)
