"""What the shell scripts decide, with stand-ins for Python that take notes."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import is_test

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = "bash cat cksum cp dirname grep head mkdir rm tail"

# Makes a "venv" that holds itself, and notes every install and every test run.
PYTHON = """#!/bin/bash
case "$1 $2" in
  "-c import"*)
    [ $# = 2 ] && echo {minor} && exit
    case " ${{*:3}} " in *" {minor} "*) echo {path} ;; *) exit 1 ;; esac
    ;;
  "-m venv")
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    cp "$(type -P true)" "$4/bin/ruff"
    ;;
  "-m pip") shift 2; echo "pip $*" >> "$NOTES"; exit {pip_fails} ;;
  "-m pytest") shift 2; echo "{minor}: $*" >> "$NOTES"; exit {tests_fail} ;;
esac
"""


class Machine:
  """A folder with the scripts, and a PATH of stand-ins."""

  def __init__(self, path):
    self.home = path
    self.root = path / "repository"
    self.bin = path / "bin"
    self.notes = path / "notes"
    self.bin.mkdir()
    for folder in ("scripts", ".ci"):
      shutil.copytree(ROOT / folder, self.root / folder)
    (self.root / "requirements.txt").write_text("jax\n")
    (self.root / "pyproject.toml").write_text("")
    for tool in [*TOOLS.split(), "true"]:
      (self.bin / tool).symlink_to(shutil.which(tool))

  def add(self, name, minor=13, pip_fails=0, tests_fail=0):
    """Adds a Python 3.minor; its name may be a path from the home folder."""
    tool = self.bin / name if "/" not in name else self.home / name
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.write_text(
      PYTHON.format(
        minor=minor, path=tool, pip_fails=pip_fails, tests_fail=tests_fail
      )
    )
    tool.chmod(0o755)
    return str(tool)

  def add_script(self, name, body):
    tool = self.bin / name
    tool.write_text(f"#!/bin/bash\n{body}\n")
    tool.chmod(0o755)

  def run(self, script, *words, **environment):
    self.notes.write_text("")
    path = {"PATH": str(self.bin), "HOME": str(self.home)}
    return subprocess.run(
      [str(self.root / script), *words],
      env={**path, "NOTES": str(self.notes), **environment},
      capture_output=True,
      text=True,
    )

  def setup(self, *words, **environment):
    done = self.run("scripts/setup.sh", *words, **environment)
    installs = [
      line
      for line in self.notes.read_text().splitlines()
      if line.startswith("pip install")
    ]
    return done, installs


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def test_it_installs_once(machine):
  machine.add("python3")
  done, installs = machine.setup()
  assert done.returncode == 0, done.stderr
  assert len(installs) == 2 and "requirements.txt" in installs[0]
  assert "jax[" not in installs[0]
  assert "--editable" in installs[1]
  started = time.monotonic()
  done, installs = machine.setup()
  assert (done.returncode, done.stdout, installs) == (0, "", [])
  assert time.monotonic() - started < 5


def test_changed_requirements_are_installed(machine):
  machine.add("python3")
  machine.setup()
  (machine.root / "requirements.txt").write_text("jax\nflax\n")
  done, installs = machine.setup()
  assert done.returncode == 0 and len(installs) == 2
  assert machine.setup()[1] == []


@pytest.mark.parametrize(
  "accelerator, extra",
  [("cpu", None), ("tpu", "jax[tpu]"), ("cuda", "jax[cuda12]")],
)
def test_a_named_accelerator_brings_its_jax(machine, accelerator, extra):
  machine.add("python3")
  done, installs = machine.setup("--accelerator", accelerator)
  assert done.returncode == 0
  assert (extra or "txt") in installs[0] and ("jax[" in installs[0]) == bool(
    extra
  )
  # Without a name, what is installed stays; another name installs anew.
  assert machine.setup()[1] == []
  assert machine.setup(f"--accelerator={accelerator}")[1] == []
  other = "cuda" if accelerator == "cpu" else "cpu"
  assert len(machine.setup(f"--accelerator={other}")[1]) == 2


def test_a_gpu_is_detected(machine):
  machine.add("python3")
  machine.add_script("nvidia-smi", 'echo "GPU 0: something"')
  _, installs = machine.setup()
  assert "jax[cuda12]" in installs[0]


def test_the_newest_supported_python_is_taken(machine):
  machine.add("python3", minor=11)
  machine.add_script("python3.13", "exit 127")  # As pyenv's shims are.
  newest = machine.add(".pyenv/versions/3.12.9/bin/python", minor=12)
  machine.add(".pyenv/versions/3.14.0/bin/python", minor=14)
  done, _ = machine.setup("--list")
  assert done.stdout.split() == [newest, str(machine.bin / "python3")]
  assert not (machine.root / ".venv").exists()
  done, _ = machine.setup()
  assert done.returncode == 0 and f"with {newest}\n" in done.stdout


def test_another_python_is_taken_only_when_it_is_named(machine):
  machine.add("python3", minor=11)
  machine.setup()
  newest = machine.add("python3.13")
  assert machine.setup()[1] == []
  done, installs = machine.setup("--python=python3.13")
  assert f"with {newest}\n" in done.stdout and len(installs) == 2
  assert machine.setup("--python", newest)[1] == []
  assert machine.setup()[1] == []
  # Another folder leaves .venv as it is.
  other = str(machine.home / "other")
  done, installs = machine.setup("--python=python3", HALONET_VENV=other)
  assert f"Making {other}" in done.stdout and len(installs) == 2
  assert machine.setup("--python=python3.13")[1] == []


@pytest.mark.parametrize("fails", [0, 1])
def test_ci_runs_the_smoke_tests_on_a_second_python(machine, fails):
  machine.add("python3.13")
  machine.add("python3.12", minor=12)
  machine.add("python3.11", minor=11, tests_fail=fails)
  done = machine.run(".ci/run")
  assert done.returncode == fails, done.stderr
  assert [
    line.replace("-n 2 --dist loadgroup", "").split()
    for line in machine.notes.read_text().splitlines()
    if line[0] == "1"
  ] == [["11:", "--hypothesis-profile=smoke", "@tests/smoke.txt"], ["13:"]]


def test_ci_says_when_there_is_no_second_python(machine):
  machine.add("python3.13")
  done = machine.run(".ci/run")
  assert done.returncode == 0, done.stderr
  assert "No second Python" in done.stdout


@pytest.mark.parametrize(
  "words, expected",
  [
    ("", "--hypothesis-profile=smoke @tests/smoke.txt"),
    ("--all", ""),
    ("--all -x", "-x"),
    ("tests/ops -x", "tests/ops -x"),
    ("-m slow", "-m slow"),
  ],
)
def test_the_tiers_of_the_tests(machine, words, expected):
  machine.add("python3")
  done = machine.run("scripts/test.sh", *words.split())
  assert done.returncode == 0, done.stderr
  call = machine.notes.read_text().splitlines()[-1]
  assert call.removeprefix("13: -n 2 --dist loadgroup").strip() == expected


def test_the_smoke_tests_exist():
  tests = (ROOT / "tests/smoke.txt").read_text().splitlines()
  assert [test for test in tests if not is_test(test)] == []


def test_without_python_uv_brings_one(machine):
  machine.add("python3", minor=10)
  machine.add("stand-in")
  machine.add_script(
    "uv",
    'target="${@: -1}"; mkdir -p "$target/bin";'
    f' cp "{machine.bin}/stand-in" "$target/bin/python"',
  )
  done, installs = machine.setup()
  assert done.returncode == 0, done.stderr
  assert len(installs) == 2


def test_without_any_python_it_says_so_in_one_line(machine):
  machine.add("python3", minor=10)
  done, installs = machine.setup()
  assert done.returncode == 2 and installs == []
  assert done.stderr == (
    "error: no Python 3.11, 3.12 or 3.13 with the venv module was found;"
    " install one (Debian: python3-venv), or uv\n"
  )
  assert not (machine.root / ".venv").exists()


def test_a_failed_install_is_tried_again(machine):
  machine.add("python3", pip_fails=1)
  done, _ = machine.setup()
  assert done.returncode != 0
  machine.add("python3")
  shutil.copy(machine.bin / "python3", machine.root / ".venv/bin/python")
  done, installs = machine.setup()
  assert done.returncode == 0 and len(installs) == 2


@pytest.mark.parametrize(
  "words, message",
  [
    (["--acelerator"], "unknown argument --acelerator"),
    (["--accelerator=gpu"], "must be cpu, tpu or cuda"),
    (["--accelerator"], "must be cpu, tpu or cuda"),
    (["--python=python3.9"], "is 'python3.9'; it must be a Python 3.11"),
    (["--python"], "is ''; it must be a Python 3.11"),
  ],
)
def test_slips_are_answered_in_one_line(machine, words, message):
  done, installs = machine.setup(*words)
  assert done.returncode == 2 and installs == []
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_shellcheck_finds_nothing():
  scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]
  assert len(scripts) > 3
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert all(os.access(script, os.X_OK) for script in scripts)
