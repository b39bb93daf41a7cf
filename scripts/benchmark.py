"""What the benchmarks of models share: arguments, model, step and batch."""

import argparse
from typing import Any

from halonet import command
from halonet.errors import UsageError

OBJECTS = 20  # Boxes in an image of a detector.


def parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser of a model, its images and the rounds to measure."""
  parser = command.parser(description)
  parser.add_argument("--model", default="halonet_h1", metavar="NAME")
  for flag, default, unit in (
    ("--image_size", 256, "PIXELS"),
    ("--batch_size", 8, "N"),
    ("--rounds", 5, "N"),
  ):
    parser.add_argument(
      flag, type=command.positive(int), default=default, metavar=unit
    )
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  command.add_output(parser, "--json")
  return parser


def words(arguments: argparse.Namespace) -> str:
  return (
    f"{arguments.model} at {arguments.image_size} pixels, batches of"
    f" {arguments.batch_size}, {arguments.dtype}"
  )


def create_model(
  flag: str, arguments: argparse.Namespace, fields: dict[str, Any]
) -> Any:
  """Makes the model; raises UsageError, after the flag, if it cannot be."""
  from halonet.models import registry

  try:
    return registry.create_model(
      arguments.model, dtype=arguments.dtype, **fields
    )
  except ValueError as error:
    raise UsageError(f"{flag}: {error}") from None


def task_of(config, classes):
  """Returns the task of a config whose data would have so many classes."""
  from halonet.tasks.task import make_task

  labels = [str(number) for number in range(classes)]
  return make_task(config, {"labels": labels})


def training(config, task):
  """Returns our model, mesh, training step, its state and its batch."""
  import jax

  from halonet.parallel import batch_sharding, make_mesh
  from halonet.training import config as config_lib
  from halonet.training import optimizer as optimizer_lib
  from halonet.training.state import make_init
  from halonet.training.step import make_train_step

  model = config_lib.create_model(config, task)
  mesh = make_mesh(jax.devices()[:1])
  optimizer = optimizer_lib.make_optimizer(config)
  state = make_init(model, optimizer, config, mesh)(0)
  given = jax.device_put(batch(config, task), batch_sharding(mesh))
  train_step = make_train_step(model, task, optimizer, config, mesh)
  return model, mesh, train_step, state, given


def batch(config, task):
  """Returns a batch with all that the steps of its task take, at random."""
  import numpy as np

  generator, classes = np.random.default_rng(0), len(task.metadata["labels"])
  count, size = config.batch_size, config.data.image_size
  shape = (count, size, size, 3)
  given = {"image": generator.standard_normal(shape, np.float32)}
  if config.task == "classification":
    labels = generator.integers(classes, size=count)
    return given | {"label": labels.astype(np.int32)}
  most = config.data.max_objects
  boxes = np.zeros((count, most, 4), np.float32)
  corners = np.sort(generator.uniform(0, size, (count, OBJECTS, 2, 2)), axis=2)
  boxes[:, :OBJECTS] = corners.reshape(count, OBJECTS, 4)
  labels = np.full((count, most), -1, np.int32)
  labels[:, :OBJECTS] = generator.integers(classes, size=(count, OBJECTS))
  return given | {
    "boxes": boxes,
    "labels": labels,
    "objects": np.full(count, OBJECTS, np.int32),
    "content": np.full((count, 2), size, np.float32),
    "to_source": np.ones((count, 4), np.float32),
  }
