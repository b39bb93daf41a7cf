"""Trains a model from a config file: `python -m halonet.train --help`."""

import argparse
import os
import pathlib
import sys

from halonet import command, distributed
from halonet.errors import UsageError


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m halonet.train",
    description="Trains a model, or goes on where the same run stopped.",
    epilog="Any field of the config can be set: --config.steps=100"
    " --config.model.block_size=4 --config.optimizer.learning_rate=0.05",
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config",
    default="configs/digits.py",
    metavar="FILE[:ARG]",
    help="config file, with an argument for its get_config (%(default)s)",
  )
  parser.add_argument(
    "--workdir",
    metavar="DIR",
    help="folder of this run; by default runs/NAME, or runs/NAME_ARG",
  )
  distributed.add_arguments(parser)
  arguments, rest = parser.parse_known_args()
  for word in rest:
    if not word.startswith("--config."):
      raise UsageError(f"unknown argument {word}; see --help")
    if "=" not in word:
      raise UsageError(f"{word}: write {word}=VALUE")
  path, _, argument = arguments.config.partition(":")
  name = "_".join(filter(None, [pathlib.Path(path).stem, argument]))
  workdir = arguments.workdir
  if workdir is None:
    workdir = f"runs/{name}"

  # Heavy imports come after --help and after a slip in the arguments.
  from halonet.training.config import load_config

  overrides = [word.removeprefix("--config.") for word in rest]
  config = load_config(arguments.config, overrides)

  from halonet.training.loop import train
  from halonet.training.processes import say

  distributed.initialize(arguments)
  if setting := os.environ.get("GLIBC_TUNABLES"):
    say(f"Memory: GLIBC_TUNABLES={setting}")
  results = train(config, workdir)
  python = os.path.relpath(sys.executable)
  say(
    f"test accuracy: {results['test_accuracy']:.4f}"
    f" ({results['test_correct']} of {results['test_images']} images)\n"
    f"Wrote {workdir}: results.json, metrics.jsonl, tensorboard/, and"
    f" checkpoints/ (last {results['checkpoint']}, best"
    f" {results['best_checkpoint']})\n"
    f"Next: {python} -m halonet.predict --workdir={workdir} IMAGE..."
  )


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
