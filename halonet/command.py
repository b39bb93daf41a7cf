"""What the commands have in common: quiet libraries, and errors in one line."""

import ast
import logging
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from halonet.errors import RunError, UsageError


def use_huge_pages() -> None:
  """Starts this command anew, once, with memory in huge pages.

  Arrays come and go in every step, and the system would hand them out in small
  pages, each with a fault; malloc reads its settings at its start alone. For
  the `__main__` of what computes much. Who sets GLIBC_TUNABLES, to anything,
  has chosen, and nothing is started anew: so debuggers, too, stay.
  """
  setting, mark = "glibc.malloc.hugetlb=1", "HALONET_MEMORY"
  # The mark, because the system may keep the setting from privileged programs.
  if {"GLIBC_TUNABLES", mark} & set(os.environ):
    return
  if platform.libc_ver()[0] != "glibc":
    return
  environment = os.environ | {"GLIBC_TUNABLES": setting, mark: setting}
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def run(main: Callable[[], None]) -> None:
  """Runs a command; a RunError becomes one line and its exit code."""
  # Before TensorFlow is imported: its start-up messages are not for users.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # TensorFlow keeps its memory: asking the system for every batch of images
  # anew would take a tenth of the input pipeline's time.
  os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
  import absl.logging

  absl.logging.set_verbosity(absl.logging.ERROR)
  # The package's own: which attention serves, and why not a faster one.
  logger = logging.getLogger("halonet")
  logger.setLevel(logging.INFO)
  printed = _Printed()
  logger.addHandler(printed)
  logger.propagate = False  # Libraries print what comes to them once more.
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
  finally:
    logger.removeHandler(printed)
    logger.propagate = True


class _Printed(logging.Handler):
  def emit(self, record):
    print(self.format(record), file=sys.stderr, flush=True)


def check_output(flag: str, file: pathlib.Path | None, suffix="") -> None:
  """Says that a file cannot be written, before there is work to be lost.

  Raises:
    UsageError: if it is in no folder, is one, or does not end in `suffix`.
  """
  if file is None:
    return
  if not file.absolute().parent.is_dir():
    raise UsageError(f"{flag}: there is no folder {file.parent}")
  if file.is_dir():
    raise UsageError(f"{flag}: {file} is a folder; name a file in it")
  if not file.name.endswith(suffix):
    raise UsageError(f"{flag} is {file}; it must end in {suffix}")


def model_fields(
  words: Sequence[str], prefix: str = "--model."
) -> dict[str, Any]:
  """Reads a model's fields from words such as `--model.block_size=4`.

  Raises:
    UsageError: if a word is none.
  """
  fields = {}
  for word in words:
    field, equals, text = word.removeprefix(prefix).partition("=")
    if not word.startswith(prefix):
      raise UsageError(f"unknown argument {word}; see --help")
    if not equals:
      raise UsageError(f"{word}: write {word}=VALUE")
    if field in ("name", "dtype", "num_classes"):
      raise UsageError(f"{word}: {field} is no field to set so; see --help")
    try:
      fields[field] = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
      fields[field] = {"true": True, "false": False}.get(text, text)
  return fields


def _leave(code):
  """Exits; as one of several processes, without waiting for the others.

  They may be waiting for this one. JAX ends them when it is gone.
  """
  jax = sys.modules.get("jax")
  joined = jax is not None and jax.distributed.is_initialized()
  if joined and jax.process_count() > 1:
    os._exit(code)
  sys.exit(code)
