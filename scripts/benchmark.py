"""What the benchmarks of models have in common: arguments and the model."""

import argparse
from typing import Any

from halonet import command
from halonet.errors import UsageError


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
