"""Counts what attention or a model costs, before anything is run.

  python scripts/cost.py [--height=64 --width=64 --channels=64 --window=7
      --block_size=8 --halo_size=3 --heads=4]

    Table 1 of the HaloNet paper for these numbers: its formulas, beside what is
    counted in the programs, and the terms that the formulas leave out.

  python scripts/cost.py --model=halonet_h1 [--image_size=256]
      [--model.block_size=4 ...]
  python scripts/cost.py --config=configs/digits.py [--num_classes=10]
      [--config.model.block_size=4 ...]

    Parameters, operations, activations and attention memory of a model, by
    stage and by kind of layer, for the forward pass of one image.

  python scripts/cost.py --figure=FILE.png [--stride=8 ...]

    How memory and time of one layer of each kind grow with the image, from 128
    to 1024 pixels, compiled and measured on the CPU, in a few minutes.

A multiplication and an addition are two operations. What is counted comes from
shapes alone, receptive fields from a small map: no accelerator is touched.
"""

import argparse
import dataclasses
import os
import shlex
import sys

from halonet import command, fields
from halonet.errors import UsageError


def main() -> None:
  parser = command.parser(__doc__)
  for name, each in settings().items():
    parser.add_argument(
      f"--{name}", type=int, metavar="N", help=f"{each.help} ({each.default})"
    )
  parser.add_argument("--model", metavar="NAME", help="a registered model")
  parser.add_argument(
    "--config", metavar="FILE[:ARG]", help="the model of a training's config"
  )
  parser.add_argument(
    "--image_size", type=int, metavar="PIXELS", help="side of the images"
  )
  parser.add_argument(
    "--num_classes",
    type=int,
    metavar="N",
    help="classes of the model (1000, or those of the config's data set)",
  )
  command.add_output(parser, "--figure", ".png", help="draw the growth here")
  command.add_output(parser, "--json")
  arguments, rest = parser.parse_known_args()
  for word in rest:
    prefix = "--model." if word.startswith("--model.") else "--config."
    fields.parse_overrides([word], prefix)
  of_a_model = bool(arguments.model or arguments.config)
  for name, each in settings().items():
    if getattr(arguments, name) is None:
      setattr(arguments, name, each.default)
    elif of_a_model:
      kind = "model" if arguments.model else "config.model"
      raise UsageError(
        f"--{name} is of attention alone; a model's fields are --{kind}.FIELD"
      )
  import jax

  jax.config.update("jax_platforms", "cpu")  # Leaves accelerators alone.

  if of_a_model:
    if arguments.figure:
      raise UsageError("--figure is of attention alone, without a model")
    result = of_model(arguments, rest)
  elif rest := rest + [
    f"--{name}"
    for name in ("image_size", "num_classes")
    if getattr(arguments, name) is not None
  ]:
    raise UsageError(
      f"{rest[0]} is of a model; say which, with --model=NAME or --config=FILE"
    )
  elif arguments.figure:
    result = of_growth(arguments)
  else:
    result = of_attention(arguments)
  command.write_json(arguments.json, result)


def settings() -> dict[str, fields.Field]:
  """Describes the options that attention alone has."""
  from halonet.cost.table1 import LayerSetting

  stride = fields.Field(8, "Image pixels per pixel of the figure's map.")
  return fields.fields_of(LayerSetting) | {"stride": stride}


def of_attention(arguments: argparse.Namespace) -> dict:
  """Prints Table 1 and returns it as a dict."""
  from halonet.cost import markdown, table1

  setting = _setting(arguments)
  rows = table1.table(setting)
  print(markdown.describe_attention(setting, rows))
  print(
    "Next: --model=NAME for a whole model, --figure=FILE.png for the growth"
    " with the image"
  )
  return {
    "setting": dataclasses.asdict(setting),
    "rows": [dataclasses.asdict(row) for row in rows],
    "unexplained": sum(row.unexplained for row in rows),
  }


def of_growth(arguments: argparse.Namespace) -> dict:
  """Measures growing maps, draws them and returns the points as a dict."""
  from halonet.cost import growth, table1

  fields.check_option("stride", arguments.stride, fields.MOST_SIDE)
  setting = _setting(arguments)
  total = len(table1.METHODS) * len(growth.IMAGE_SIDES)
  print(f"Compiling and measuring {total} layers on the CPU", flush=True)
  points = []
  for point in growth.measure(setting, arguments.stride):
    points.append(point)
    taken = "not run: it does not fit in half of this machine's memory"
    if point.seconds is not None:
      taken = f"{point.seconds * 1e3:,.2f} ms"
    print(
      f"{len(points):2}/{total} {point.method:17} image {point.image_side:4}"
      f" map {point.map_side:3} {point.bytes / 1e6:10,.2f} MB  {taken}",
      flush=True,
    )
  growth.draw(points, setting, arguments.stride, arguments.figure)
  print("\nGrowth, as powers of the map's height × width:")
  slopes = {}
  for method in table1.METHODS:
    own = [point for point in points if point.method == method]
    memory, time = (growth.slope(own, of) for of in ("bytes", "seconds"))
    slopes[method] = {"bytes": memory, "seconds": time}
    print(f"  {method:17} memory {memory:.2f}, time {time:.2f}")
  command.wrote(arguments.figure)
  return {
    "setting": dataclasses.asdict(setting),
    "stride": arguments.stride,
    "points": [dataclasses.asdict(point) for point in points],
    "slopes": slopes,
  }


def of_model(arguments: argparse.Namespace, rest: list[str]) -> dict:
  """Prints what a model costs and returns it as a dict."""
  from halonet.cost import markdown
  from halonet.cost import model as model_cost

  name, model, size = _model(arguments, rest)
  spec = getattr(model, "spec", model)
  classes, dtype = (getattr(spec, x, None) for x in ("num_classes", "dtype"))
  if arguments.image_size is not None:
    size = arguments.image_size
  fields.check_option("image_size", size, fields.MOST_SIDE)
  print(
    f"Tracing {name} at {size}×{size}, {dtype}, for {classes} classes",
    flush=True,
  )
  counts = model_cost.count(model, size)
  print(f"\n{markdown.describe_model(counts)}")
  if arguments.config:
    python = os.path.relpath(sys.executable)
    words = [python, "-m", "halonet.train", f"--config={arguments.config}"]
    print(f"Next: {shlex.join([*words, *rest])}")
  return {
    "model": name,
    "image_size": counts.image_size,
    "num_classes": classes,
    "dtype": dtype,
    "total": dataclasses.asdict(counts.total),
    "largest_attention_bytes": counts.largest_attention_bytes,
    "parts": [dataclasses.asdict(part) for part in counts.parts],
  }


def _model(arguments, rest):
  """Returns the model's name, the model, and the size of its images."""
  if arguments.model and arguments.config:
    raise UsageError("--model and --config exclude each other")
  kind = "model" if arguments.model else "config"
  for word in rest:
    if not word.startswith(f"--{kind}."):
      raise UsageError(f"{word} does not go with --{kind}; see --help")
  if arguments.config:
    from halonet.tasks.task import make_task
    from halonet.tpu import step_cost
    from halonet.training import config as config_lib

    pairs = [word.removeprefix("--config.") for word in rest]
    config = config_lib.load_config(arguments.config, pairs)
    metadata = step_cost.metadata(config, arguments.num_classes)
    model = config_lib.create_model(config, make_task(config, metadata))
    size = config.data.image_size
    return config.model.name, model, size

  from halonet.models import registry

  overrides = command.model_fields(rest)
  if arguments.num_classes is not None:
    overrides["num_classes"] = arguments.num_classes
  try:
    model = registry.create_model(arguments.model, **overrides)
    size = registry.get_entry(arguments.model).image_size
  except ValueError as error:
    raise UsageError(f"--model: {error}") from None
  return arguments.model, model, size


def _setting(arguments):
  from halonet.cost.table1 import LayerSetting

  names = fields.fields_of(LayerSetting)
  return LayerSetting(**{name: getattr(arguments, name) for name in names})


if __name__ == "__main__":
  command.run(main)
