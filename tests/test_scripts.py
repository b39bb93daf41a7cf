"""What setup.sh decides, with a stand-in for Python that takes notes."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"

# Says it is recent, makes a "venv" that holds itself, and notes every install.
PYTHON = """#!/bin/bash
case "$1 $2" in
  "-c import"*) exit {too_old} ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip") shift 2; echo "pip $*" >> "$NOTES"; exit {pip_fails} ;;
  "--version ") echo "Python 3.99" ;;
esac
"""


class Machine:
  """A folder with the scripts, and a PATH of stand-ins."""

  def __init__(self, path):
    self.root = path / "repository"
    self.bin = path / "bin"
    self.notes = path / "notes"
    self.bin.mkdir()
    shutil.copytree(SCRIPTS, self.root / "scripts")
    (self.root / "requirements.txt").write_text("jax\n")
    (self.root / "pyproject.toml").write_text("")
    for tool in (
      "bash",
      "cksum",
      "cp",
      "dirname",
      "head",
      "mkdir",
      "rm",
      "cat",
    ):
      (self.bin / tool).symlink_to(shutil.which(tool))

  def add(self, name, too_old=0, pip_fails=0):
    tool = self.bin / name
    tool.write_text(PYTHON.format(too_old=too_old, pip_fails=pip_fails))
    tool.chmod(0o755)

  def add_script(self, name, body):
    tool = self.bin / name
    tool.write_text(f"#!/bin/bash\n{body}\n")
    tool.chmod(0o755)

  def setup(self, *words):
    self.notes.write_text("")
    done = subprocess.run(
      [str(self.root / "scripts" / "setup.sh"), *words],
      env={"PATH": str(self.bin), "NOTES": str(self.notes)},
      capture_output=True,
      text=True,
    )
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


def test_an_old_python_is_passed_over(machine):
  machine.add("python3", too_old=1)
  machine.add("python3.12")
  done, _ = machine.setup()
  assert done.returncode == 0


def test_without_python_uv_brings_one(machine):
  machine.add("python3", too_old=1)
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
  done, installs = machine.setup()
  assert done.returncode == 2 and installs == []
  assert done.stderr == (
    "error: no Python 3.11, 3.12 or 3.13 was found; install one, or uv\n"
  )


def test_without_the_venv_module_it_says_so_in_one_line(machine):
  machine.add_script("python3", '[ "$1 $2" = "-m venv" ] && exit 1; exit 0')
  done, _ = machine.setup()
  assert done.returncode == 2
  assert done.stderr.endswith(
    "python3 has no venv module; install python3-venv, or uv\n"
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
  ],
)
def test_slips_are_answered_in_one_line(machine, words, message):
  done, installs = machine.setup(*words)
  assert done.returncode == 2 and installs == []
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_shellcheck_finds_nothing():
  scripts = [*SCRIPTS.glob("*.sh"), SCRIPTS.parent / ".ci/run"]
  assert len(scripts) > 3
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert all(os.access(script, os.X_OK) for script in scripts)
