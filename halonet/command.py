"""What the commands have in common: quiet libraries, and errors in one line."""

import argparse
import contextlib
import datetime
import errno
import gc
import json
import logging
import os
import pathlib
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from halonet import fields
from halonet.errors import RunError, UsageError


def use_huge_pages() -> None:
  """Starts this command anew, once, with memory in huge pages.

  Small pages would cost a fault each whenever a step allocates its arrays, and
  malloc reads its settings only when a process starts. Call it in the
  `__main__` of a command that computes much. If GLIBC_TUNABLES is set, to
  whatever value, nothing is started anew.
  """
  setting, mark = "glibc.malloc.hugetlb=1", "HALONET_MEMORY"
  # The system may hide the setting from privileged programs, but not the mark.
  if {"GLIBC_TUNABLES", mark} & set(os.environ):
    return
  if platform.libc_ver()[0] != "glibc":
    return
  environment = os.environ | {"GLIBC_TUNABLES": setting, mark: setting}
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Turns garbage collection off for imports, and exempts what they made later.

  Collections would take a fifth of the time of a command's imports.
  """
  gc.disable()
  try:
    yield
  finally:
    gc.freeze()
    gc.enable()


def run(main: Callable[[], None]) -> None:
  """Runs a command; a RunError becomes one line and its exit code."""
  # Before TensorFlow is imported: its start-up messages are not for users.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # TensorFlow then keeps its memory. Allocating every batch of images anew
  # takes a tenth of the input pipeline's time.
  os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
  import absl.logging

  absl.logging.set_verbosity(absl.logging.ERROR)
  absl.logging.get_absl_logger().addFilter(_is_said_once)
  # AutoGraph warns of every function where it cannot write temporary files.
  logging.getLogger("tensorflow").setLevel(logging.ERROR)
  sys.unraisablehook = _unraisable
  # The package logs which attention serves, and why not a faster one.
  logger = logging.getLogger("halonet")
  logger.setLevel(logging.INFO)
  printed = _Printed()
  logger.addHandler(printed)
  logger.propagate = False  # Handlers of libraries would print it again.
  try:
    _check_temporary_files()
    main()
  except RunError as error:
    _fail(error)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
  except BrokenPipeError:  # Whoever read the output has left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise
    _fail(
      RunError(
        f"{error.filename or 'a file'} cannot be written: {error.strerror};"
        " make room and give the same command again"
      )
    )
  finally:
    logger.removeHandler(printed)
    logger.propagate = True


def _check_temporary_files():
  """Raises RunError if there can be none: libraries write some on import."""
  try:
    tempfile.gettempdir()
  except FileNotFoundError as error:
    raise RunError(
      f"no temporary file can be written: {error.strerror}; make room, or name"
      " another folder by TMPDIR"
    ) from None


def _is_said_once(record):
  """Leaves out what Orbax logs, with a traceback for each thread, and raises.

  An old checkpoint that cannot be removed is only logged, and so is kept.
  """
  if not record.exc_info:
    return True
  record.exc_info = None
  return str(record.msg).startswith("Failed to remove")


def _unraisable(unraisable):
  """Prints an exception that nobody can catch, but for those of a failed save.

  TensorStore's threads then report, hundreds of times, to an event loop that is
  gone.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


class _Printed(logging.Handler):
  def emit(self, record):
    print(self.format(record), file=sys.stderr, flush=True)


def parser(description: str, **options: Any) -> argparse.ArgumentParser:
  """Returns a parser that prints a docstring as it is."""
  return argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    **options,
  )


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
  """Returns a type for arguments: an `int`, say, above 0."""

  def number(text):
    value = kind(text)
    if not value > 0:
      raise argparse.ArgumentTypeError("must be above 0")
    return value

  return number


def add_output(
  parser: argparse.ArgumentParser, flag: str, suffix: str = "", **options: Any
) -> None:
  """Adds an option for a file to write, checked before there is work to lose.

  Parsing raises UsageError if the file's folder does not exist, if it is a
  folder itself, or if it does not end in `suffix`.
  """

  def output(text):
    file = pathlib.Path(text)
    if not file.absolute().parent.is_dir():
      raise UsageError(f"{flag}: there is no folder {file.parent}")
    if file.is_dir():
      raise UsageError(f"{flag}: {file} is a folder; name a file in it")
    if not file.name.endswith(suffix):
      raise UsageError(f"{flag} is {file}; it must end in {suffix}")
    return file

  options = {"metavar": f"FILE{suffix}", "help": "also write it here"} | options
  parser.add_argument(flag, type=output, **options)


def wrote(path: str | os.PathLike, what: str = "") -> None:
  """Prints where a result is, as a shell reads it, and what is there."""
  print(f"Wrote {shlex.quote(str(path))}{what and f': {what}'}")


def write_json(file: pathlib.Path | None, result: Any) -> None:
  """Writes a result where `--json` asks for it."""
  if file:
    file.write_text(json.dumps(result, indent=2, default=float) + "\n")
    wrote(file)


def write_section(page: pathlib.Path, name: str, text: str) -> None:
  """Replaces what a page has between `<!-- name: begin -->` and its end."""
  begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
  before, rest = page.read_text().split(begin)
  _, after = rest.split(end)
  page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
  wrote(page)


def table(
  header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1
) -> str:
  """Formats a Markdown table whose first `left` columns are texts."""
  lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
  rule = ["---"] * left + ["--:"] * (len(header) - left)
  return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def progress(items: Sequence[Any], what: str) -> Iterator[Any]:
  """Yields the items of a long work, and says on stderr how far it is.

  Args:
    items: what there is to do.
    what: their name in the plural.
  """
  started = shown = time.monotonic()
  for number, item in enumerate(items):
    now = time.monotonic()
    if number and now - shown > 5:
      shown = now
      rate = number / (now - started)
      eta = datetime.timedelta(seconds=round((len(items) - number) / rate))
      print(
        f"{number} of {len(items)} {what}, {rate:.2g} a second, ETA {eta}",
        file=sys.stderr,
        flush=True,
      )
    yield item


def model_fields(
  words: Sequence[str], prefix: str = "--model."
) -> dict[str, Any]:
  """Reads a model's fields from words such as `--model.block_size=4`.

  Raises:
    UsageError: if a word is not one.
  """
  texts = fields.parse_overrides(words, prefix)
  for field in texts.keys() & {"name", "dtype", "num_classes"}:
    raise UsageError(f"{prefix}{field}: {field} is no field to set so")
  return {field: fields.parse(text) for field, text in texts.items()}


def _fail(error):
  sys.stdout.flush()
  print(f"error: {error}", file=sys.stderr, flush=True)
  _leave(error.exit_code)


def _leave(code):
  """Exits; as one of several processes, without waiting for the others.

  They may be waiting for this one. JAX ends them when it is gone.
  """
  jax = sys.modules.get("jax")
  joined = jax is not None and jax.distributed.is_initialized()
  if joined and jax.process_count() > 1:
    os._exit(code)
  sys.exit(code)
