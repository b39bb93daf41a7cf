"""What the commands have in common: quiet libraries, and errors in one line."""

import os
import signal
import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
  """Runs a command; a RunError becomes one line and its exit code."""
  # Before TensorFlow is imported: its start-up messages are not for users.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # TensorFlow keeps its memory: asking the system for every batch of images
  # anew would take a tenth of the input pipeline's time.
  os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
  import absl.logging

  from halonet.errors import RunError

  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    main()
  except RunError as error:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr, flush=True)
    _leave(error.exit_code)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
  except BrokenPipeError:  # Whoever read the output has left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _leave(code):
  """Exits; as one of several processes, without waiting for the others.

  They may be waiting for this one. JAX ends them when it is gone.
  """
  jax = sys.modules.get("jax")
  joined = jax is not None and jax.distributed.is_initialized()
  if joined and jax.process_count() > 1:
    os._exit(code)
  sys.exit(code)
