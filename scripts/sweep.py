#!/usr/bin/env python
"""Trains a grid of configs, such as blocks × halos, and reports on it.

  python scripts/sweep.py --config=configs/sweeps/window.py --workdir=DIR
  python scripts/sweep.py report --workdir=DIR

The same command resumes after an interruption, adds a worker when it runs on
another machine with the same --storage, and does nothing once the grid is done.
"""

import pathlib
import shlex
import time

from halonet import command, fields
from halonet.errors import RunError, UsageError

_EPILOG = """\
--config.FIELD=VALUE sets a field in all trials, as scripts/train.sh takes it;
--grid.FIELD=V1,V2 gives a field the values that are combined, and
--seeds=0,1,2 does so for the seed. --storage takes any database that Optuna
supports, such as postgresql://USER@HOST/NAME, or journal:FILE on a disk that
all workers share.
"""


def main() -> None:
  parser = command.parser(__doc__, epilog=_EPILOG)
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
    "--storage", metavar="URL", help="database of the trials (DIR/sweep.db)"
  )
  parser.add_argument("--seeds", metavar="N,N", help="in place of the file's")
  parser.add_argument(
    "--retry_failed", action="store_true", help="train failed trials again"
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
  axes = [word for word in rest if word.startswith("--grid.")]
  grid = fields.parse_overrides(axes, "--grid.")
  changes = fields.parse_overrides([word for word in rest if word not in axes])
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
    from halonet.sweep.study import read_board

    _report(arguments, read_board(arguments.workdir, arguments.storage))
    return

  from halonet.sweep.grid import read_sweep

  sweep = read_sweep(arguments.config, changes, grid, arguments.seeds)
  if arguments.dry_run:
    from halonet.sweep import dry_run

    topologies = ",".join(arguments.topology).split(",")
    dry_run.print_grid(sweep, [name for name in topologies if name])
    return
  _run(arguments, sweep)


def _run(arguments, sweep):
  from halonet.sweep.grid import check_data
  from halonet.sweep.records import DONE, OVER
  from halonet.sweep.worker import Worker

  started = time.monotonic()
  worker = Worker(sweep, arguments.workdir, arguments.storage)
  board = worker.board
  if arguments.retry_failed:
    print(f"{board.retry_failed()} failed trials are tried again", flush=True)
  ledger = board.ledger()
  finished = ledger.is_complete
  total = len(ledger.records)
  if finished:
    print("This grid is finished.")
  else:
    axes = [
      f"{field} {{{', '.join(texts)}}}"
      for field, texts in sweep.grid.items()
      if field != "base"
    ]
    todo = f"{total - ledger.count(*OVER)} of {total} trials of"
    todo += f" {', '.join(sweep.bases)}"
    print(f"Training {todo}: {' × '.join(axes)}", flush=True)
    check_data(sweep)
    ledger = worker.run()
  counts = [f"{ledger.count(x)} {x}" for x in OVER if ledger.count(x)]
  taken = "" if finished else f", {time.monotonic() - started:.0f} s"
  print(f"{total} trials: {', '.join(counts)}{taken}", flush=True)
  _report(arguments, board, only_if_missing=finished)
  if not ledger.count(DONE):
    raise RunError(
      f"no trial was trained to its end; the first: {ledger.records[0].reason}."
      " When that is mended, --retry_failed trains them again"
    )


def _report(arguments, board, only_if_missing=False):
  from halonet.sweep import report
  from halonet.sweep.records import PENDING, RUNNING

  folder = f"{arguments.workdir.rstrip('/')}/report"
  if only_if_missing and report.is_written(folder):
    print(f"Its report: {shlex.quote(folder)}/report.html")
    return
  ledger = board.ledger()
  files = report.write(ledger.records, folder)
  command.wrote(folder, ", ".join(files))
  if not ledger.is_complete:
    print(
      f"Not finished: {ledger.count(RUNNING)} running,"
      f" {ledger.count(PENDING)} pending. Next: the command that began this"
      " sweep goes on with it"
    )
  else:
    page = shlex.quote(f"{folder}/report.html")
    print(f"Next: open {page} in a browser")


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
