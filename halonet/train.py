"""Trains a model from a config file: `python -m halonet.train --help`."""

import argparse
import os
import pathlib
import shlex
import sys

from halonet import command, distributed, fields


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
  parser.add_argument(
    "--help-config",
    action="store_true",
    help="print every field of the config, with its value, and leave",
  )
  distributed.add_arguments(parser)
  arguments, rest = parser.parse_known_args()
  overrides = [
    f"{field}={text}" for field, text in fields.parse_overrides(rest).items()
  ]
  path, _, argument = arguments.config.partition(":")
  name = "_".join(filter(None, [pathlib.Path(path).stem, argument]))
  workdir = arguments.workdir
  if workdir is None:
    workdir = f"runs/{name}"

  # Heavy imports come after --help and after a slip in the arguments.
  with command.importing():
    from halonet.training.config import help_text, load_config

  if arguments.help_config:
    print(help_text(arguments.config, overrides))
    return
  config = load_config(arguments.config, overrides)

  with command.importing():
    from halonet.tasks.task import make_task
    from halonet.training.evaluation import words
    from halonet.training.loop import train
    from halonet.training.processes import is_first, say
    from halonet.training.workdir import Workdir

  distributed.initialize(arguments)
  if setting := os.environ.get("GLIBC_TUNABLES"):
    say(f"Memory: GLIBC_TUNABLES={setting}")
  results = train(config, workdir)
  if not is_first():
    return
  task = make_task(config, Workdir(workdir).metadata())
  figures = {
    name.removeprefix("test_"): value
    for name, value in results.items()
    if name.startswith("test_")
  }
  python = os.path.relpath(sys.executable)
  following = [python, "-m", "halonet.predict", f"--workdir={workdir}"]
  say(
    f"{words(task, figures)}\n"
    f"Wrote {shlex.quote(workdir)}: results.json, metrics.jsonl, tensorboard/,"
    f" and checkpoints/ (last {results['checkpoint']}, best"
    f" {results['best_checkpoint']})\n"
    f"Next: {shlex.join(following)} IMAGE..."
  )


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
