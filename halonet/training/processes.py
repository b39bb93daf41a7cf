"""Several processes as one run: they check, stop and fail together.

Process 0 writes files and speaks; every process computes. How they find each
other is in `halonet.distributed`.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from halonet.errors import RunError, UsageError

_MESSAGE_BYTES = 2000
_PATIENCE = 10.0  # Seconds.


def is_first() -> bool:
  """Says whether this is the process that writes files and speaks."""
  return jax.process_index() == 0


def say(line: str) -> None:
  """Prints a line, once for all processes."""
  if is_first():
    print(line, flush=True)


def from_first(number: int) -> int:
  """Returns, in every process, the number of process 0."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Makes an error of one process inside one of all of them.

  All processes must come here, and wait for each other at the end.
  """
  error = None
  try:
    yield
  except Exception as caught:  # Else the others would wait in vain.
    error = caught
  if jax.process_count() > 1:
    message = b""
    if error is not None:
      code = getattr(error, "exit_code", RunError.exit_code)
      text = f"{code}process {jax.process_index()}: {error}"
      message = text.encode()[:_MESSAGE_BYTES]
    buffer = np.zeros(_MESSAGE_BYTES, np.uint8)
    buffer[: len(message)] = np.frombuffer(message, np.uint8)
    messages = multihost_utils.process_allgather(buffer)
    texts = [
      bytes(row).rstrip(b"\0").decode(errors="ignore") for row in messages
    ]
    first = next((text for text in texts if text), None)
    if error is None and first is not None:
      kind = UsageError if first[0] == "2" else RunError
      error = kind(first[1:])
  if error is not None:
    raise error


def check_same(number: int, what: str) -> None:
  """Raises UsageError unless all processes have the same number.

  It is that of `what`, such as "files in FOLDER", as each of them sees it.
  """
  if jax.process_count() == 1:
    return
  numbers = multihost_utils.process_allgather(np.uint32(number))
  others = np.flatnonzero(numbers != numbers[0])
  if len(others):
    raise UsageError(f"process {others[0]} sees other {what} than process 0")


def check_shared(folder) -> None:
  """Raises UsageError unless all processes see the same folder.

  Args:
    folder: an `etils.epath.Path` that exists on process 0.
  """
  if jax.process_count() == 1:
    return
  token = np.frombuffer(secrets.token_bytes(8), np.uint8)
  token = multihost_utils.broadcast_one_to_all(token)
  mark = folder / f".shared-{bytes(token).hex()}"
  with together():
    if is_first():
      mark.write_text("")
  with together():
    # A network drive may take a moment to show what another host wrote.
    deadline = time.monotonic() + _PATIENCE
    while not mark.exists() and time.monotonic() < deadline:
      time.sleep(0.5)
    if not mark.exists():
      raise UsageError(
        f"--workdir {folder} is not the same folder on all hosts; name one that"
        " they share, such as gs://BUCKET/FOLDER or a network drive"
      )
  if is_first():
    mark.unlink()


def stop_requested(step: int) -> bool:
  """Says whether all processes stop after this step, as one was sent SIGTERM.

  All ask after every step, and get the same answer.
  """
  stops = multihost_utils.reached_preemption_sync_point(step)
  if stops:
    say("SIGTERM: leaving as soon as all is saved")
  return stops
