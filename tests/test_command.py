"""How commands start."""

import os
import platform
import subprocess
import sys

import pytest

from halonet import command
from halonet.errors import UsageError

SCRIPT = """
import os, sys
from halonet import command
command.use_huge_pages()
print(os.getpid(), os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="the setting is glibc's"
)
@pytest.mark.parametrize("chosen", [None, "glibc.malloc.hugetlb=0"])
def test_huge_pages_unless_something_else_is_chosen(chosen):
  environment = dict(os.environ)
  environment.pop("GLIBC_TUNABLES", None)
  environment.pop("HALONET_MEMORY", None)
  if chosen is not None:
    environment["GLIBC_TUNABLES"] = chosen
  process = subprocess.Popen(
    [sys.executable, "-c", SCRIPT, "--first=a b", "--second"],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
  )
  output, _ = process.communicate(timeout=60)
  # The same process: who waits for it, or signals it, notices nothing.
  expected = chosen or "glibc.malloc.hugetlb=1"
  assert output == f"{process.pid} {expected} --first=a b --second\n"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("nowhere/x.png", "--figure: there is no folder .*nowhere"),
    ("folder.png", "--figure: .*folder.png is a folder"),
    ("x.pdf", "--figure is .*x.pdf; it must end in .png"),
  ],
)
def test_files_that_cannot_be_written(tmp_path, name, message):
  (tmp_path / "folder.png").mkdir()
  parser = command.parser("")
  command.add_output(parser, "--figure", ".png")
  with pytest.raises(UsageError, match=message):
    parser.parse_args([f"--figure={tmp_path / name}"])
  parser.parse_args([f"--figure={tmp_path / 'x.png'}"])


# Writes on a full disk: no file grows, or only the file written is refused.
_FULL = """
import pathlib, resource, signal, sys
from halonet import command

if sys.argv[1] == "everywhere":
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
command.run(lambda: pathlib.Path("/dev/full").write_text("x"))
"""


@pytest.mark.skipif(
  not os.path.exists("/dev/full"), reason="the system has no full device"
)
@pytest.mark.parametrize(
  ("where", "message"),
  [
    ("there", "a file cannot be written: No space left on device; make room"),
    ("everywhere", "no temporary file can be written: "),
  ],
)
def test_a_full_disk_is_one_line(where, message):
  process = subprocess.run(
    [sys.executable, "-c", _FULL, where], text=True, capture_output=True
  )
  assert process.returncode == 1
  assert process.stderr.startswith(f"error: {message}")
  assert process.stderr.count("\n") == 1 and not process.stdout


@pytest.mark.parametrize(
  ("statement", "absent"),
  [
    ("from halonet import command, evaluate, predict, train", "jax"),
    ("from halonet import inference", "tensorflow"),
    ("from halonet.data import images", "tensorflow"),
    ("from halonet.training import loop", "keras"),
    ("from halonet.training import loop", "tensorflow_datasets"),
  ],
)
def test_what_takes_seconds_is_imported_only_where_it_is_used(
  statement, absent
):
  script = f"import sys; {statement}; assert {absent!r} not in sys.modules"
  subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
