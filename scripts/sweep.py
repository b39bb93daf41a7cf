#!/usr/bin/env python
"""Trains a grid of configs, such as blocks × halos, and reports on it.

  python scripts/sweep.py --config=configs/sweeps/window.py --workdir=DIR
  python scripts/sweep.py report --workdir=DIR

The same command goes on after an interruption, adds a worker when it is given
on another machine with the same --storage, and does nothing when the grid is
finished.
"""

import argparse
import pathlib
import time

from halonet import command
from halonet.errors import RunError, UsageError

_EPILOG = """\
--config.FIELD=VALUE sets a field in all trials, as scripts/train.sh takes it;
--grid.FIELD=V1,V2 gives a field the values that are combined, and
--seeds=0,1,2 those of the seed. --storage takes any database of Optuna's, such
as postgresql://USER@HOST/NAME, or journal:FILE on a disk that all workers
share.
"""


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "action",
    nargs="?",
    choices=("run", "report"),
    default="run",
    help="train what is missing and report (the default), or report alone",
  )
  parser.add_argument(
    "--config",
    default="configs/sweeps/window.py",
    metavar="FILE[:ARG]",
    help="the sweep's file, with an argument for its get_config (%(default)s)",
  )
  parser.add_argument(
    "--workdir",
    metavar="DIR",
    help="folder of all trials and of the report, by default runs/NAME or"
    " runs/NAME_ARG; in a bucket it needs --storage",
  )
  parser.add_argument(
    "--storage", metavar="URL", help="of a database (DIR/sweep.db)"
  )
  parser.add_argument("--seeds", metavar="N,N", help="in place of the file's")
  parser.add_argument(
    "--retry_failed",
    action="store_true",
    help="train the trials again that failed",
  )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="print the grid with what each point costs, and train nothing",
  )
  parser.add_argument(
    "--topology",
    action="append",
    default=[],
    metavar="CHIP:SHAPE",
    help="with --dry_run, compile for these TPUs, too: v5e:4x4,v4:2x2x4",
  )
  arguments, rest = parser.parse_known_args()
  changes, grid = _fields(rest)
  if arguments.topology and not arguments.dry_run:
    raise UsageError("--topology is for --dry_run")
  if arguments.workdir is None:
    path, _, argument = arguments.config.partition(":")
    name = "_".join(filter(None, [pathlib.Path(path).stem, argument]))
    arguments.workdir = f"runs/{name}"
  if arguments.action == "report":
    others = arguments.seeds, arguments.retry_failed, arguments.dry_run
    if rest or any(others):
      raise UsageError("report takes --workdir and --storage only")
    _report(arguments)
    return

  from halonet.sweep.grid import read_sweep

  sweep = read_sweep(arguments.config, changes, grid, arguments.seeds)
  if arguments.dry_run:
    from halonet.sweep import prediction

    topologies = ",".join(arguments.topology).split(",")
    prediction.print_grid(sweep, [name for name in topologies if name])
    return
  _run(arguments, sweep)


def _fields(words):
  """Splits --config.FIELD=VALUE from --grid.FIELD=VALUES."""
  found = {"config": {}, "grid": {}}
  for word in words:
    kind, dot, rest = word.removeprefix("--").partition(".")
    if not word.startswith("--") or kind not in found or not dot:
      raise UsageError(f"unknown argument {word}; see --help")
    field, equals, value = rest.partition("=")
    if not equals:
      raise UsageError(f"{word}: write {word}=VALUE")
    found[kind][field] = value
  return found["config"], found["grid"]


def _run(arguments, sweep):
  from halonet.sweep import rows, trials
  from halonet.sweep.grid import check_data

  started = time.monotonic()
  worker = trials.Worker(sweep, arguments.workdir, arguments.storage)
  if arguments.retry_failed:
    print(f"{worker.retry_failed()} failed trials are tried again", flush=True)
  ledger = worker.ledger()
  finished = ledger.is_complete
  if finished:
    print("This grid is finished.")
  else:
    left = len(ledger.rows) - ledger.count(
      rows.DONE, rows.FAILED, rows.INFEASIBLE
    )
    grid = " × ".join(
      f"{field} {{{', '.join(texts)}}}" for field, texts in sweep.grid.items()
    )
    print(
      f"Training {left} of {len(ledger.rows)} trials of {sweep.base}: {grid}",
      flush=True,
    )
    check_data(sweep)
    ledger = worker.run()
  counts = [
    f"{ledger.count(status)} {status}"
    for status in (rows.DONE, rows.FAILED, rows.INFEASIBLE)
    if ledger.count(status)
  ]
  taken = "" if finished else f", {time.monotonic() - started:.0f} s"
  print(f"{len(ledger.rows)} trials: {', '.join(counts)}{taken}", flush=True)
  _report(arguments, only_if_missing=finished)
  if not ledger.count(rows.DONE):
    raise RunError(
      f"no trial was trained to its end; the first: {ledger.rows[0].reason}."
      " When that is mended, --retry_failed trains them again"
    )


def _report(arguments, only_if_missing=False):
  from halonet.sweep import report, rows, study, trials
  from halonet.sweep.grid import Sweep

  folder = f"{arguments.workdir.rstrip('/')}/report"
  if only_if_missing and report.is_written(folder):
    print(f"Its report: {folder}/report.html")
    return
  opened, swept = trials.load(arguments.workdir, arguments.storage)
  points = Sweep("", {}, swept["grid"]).points()
  ledger = rows.read_ledger(opened, points, study.MAX_RETRIES)
  files = report.write(ledger.rows, folder)
  print(f"Wrote {folder}: {', '.join(files)}")
  if not ledger.is_complete:
    print(
      "Not finished:"
      f" {ledger.count(rows.RUNNING)} running, {ledger.count(rows.PENDING)}"
      " pending. Next: the command that began this sweep goes on with it"
    )
  else:
    print(f"Next: open {folder}/report.html in a browser")


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
