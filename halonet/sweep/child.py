"""The training of one trial, as a process that does not outlive its worker.

  python -m halonet.sweep.child PARENT --config=FILE --workdir=DIR …

is `python -m halonet.train --config=FILE --workdir=DIR …`, and gets SIGTERM
when the process PARENT dies, however it dies: the training saves and leaves
the accelerator.
"""

import ctypes
import os
import signal
import sys

from halonet import command
from halonet.signals import StopSignals

_PR_SET_PDEATHSIG = 1


def main() -> None:
  end_with(int(sys.argv.pop(1)))
  from halonet import train

  train.main()


def end_with(parent: int) -> None:
  """Sends this process a single SIGTERM when its parent dies.

  Linux reports the death of every thread that this process was handed to, so
  one parent's death may be reported several times, and the parent may have
  passed on a SIGTERM before. A second SIGTERM would end a training before it
  has saved.
  """

  def pass_on(number, frame):
    del frame
    signal.signal(number, signal.SIG_IGN)
    if not StopSignals.is_stopping:
      signal.raise_signal(signal.SIGTERM)

  signal.signal(signal.SIGUSR1, pass_on)
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
  if os.getppid() != parent:  # It died before this was arranged.
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
  command.run(main)
