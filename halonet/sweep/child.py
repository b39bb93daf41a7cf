"""The training of a trial, as a process that does not outlive its worker.

  python -m halonet.sweep.child PARENT --config=FILE --workdir=DIR …

is `python -m halonet.train --config=FILE --workdir=DIR …`, and gets SIGTERM
when the process PARENT dies, however it does: it saves and leaves the
accelerator.
"""

import ctypes
import os
import signal
import sys

from halonet import command, train

_PR_SET_PDEATHSIG = 1


def main() -> None:
  parent = int(sys.argv.pop(1))
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != parent:  # It died before this was arranged.
    sys.exit(128 + signal.SIGTERM)
  train.main()


if __name__ == "__main__":
  command.run(main)
