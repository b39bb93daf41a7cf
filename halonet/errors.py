"""Errors that a person is meant to read: one line, no traceback."""

import difflib
from collections.abc import Iterable


class RunError(Exception):
  """A run cannot go on; the message says why and what to do about it."""

  exit_code = 1


class UsageError(RunError):
  """What was asked for is impossible; nothing has been done yet."""

  exit_code = 2


def unknown(
  kind: str, name: str, known: Iterable[str], prefix: str = ""
) -> str:
  """Words a wrong name: the nearest known one, then those of its section.

  A section is what stands before the last dot. If no known name has it, the
  sections are listed. `prefix` is put before the names that are offered.
  """
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1)
  hint = f"did you mean {prefix}{near[0]}? " if near else ""
  section = name.rpartition(".")[0]
  sections = {each.rpartition(".")[0] for each in known}
  listed = [each for each in known if each.rpartition(".")[0] == section]
  if section not in sections:
    listed = [f"{prefix}{each}.…" for each in sorted(sections - {""})]
  return f"there is no {kind} {prefix}{name}; {hint}known: {', '.join(listed)}"
