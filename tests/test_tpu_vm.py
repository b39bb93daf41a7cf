"""tpu_vm.sh against a stand-in for gcloud whose workers are folders.

The stand-in notes its arguments, and runs what ssh would run in the home of
each of two workers, so that trainings really start, live on and stop.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"

GCLOUD = r"""#!/bin/bash
cd "$CLOUD" || exit
printf '%s\x1f' "$@" >> calls
echo >> calls
worker=0
for word; do
  case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
[ "$worker" = all ] && worker='0 1'
result=0
case "$1 $4" in
  config*) cat zone 2> /dev/null ;;
  *describe) cat vm 2> /dev/null || { echo "ERROR: NOT_FOUND" >&2; exit 1; } ;;
  *delete) rm vm ;;
  *scp) for i in $worker; do cp "$5" "w$i/${6#*:}"; done ;;
  *ssh)
    for i in $worker; do
      cd "$CLOUD/w$i"
      HOME=$PWD HOSTNAME=w-$i timeout "${LIMIT-20}" bash -c "$command" ||
        result=$?
    done
    ;;
esac
exit $result
"""

# Writes what it was given, and on SIGTERM "saves".
TRAIN = r"""#!/bin/bash
trap 'echo saved; exit 143' TERM
[ -e "$HOME/slip" ] && { echo "error: a slip"; exit 2; }
[ -e "$HOME/deaf" ] && trap '' TERM
printf '<%s>' "$@"
echo
while :; do sleep 0.05; done
"""

READY = "READY\tv3-32\ttpu-ubuntu2204-base\n"
WHERE = ("halo", "--zone=z-a")
SETUP = """#!/bin/bash
case $1 in
  --list) cat ~/pythons ;;
  *) echo "$*" >> ~/setup-args ;;
esac
"""
RUN = ("--config=configs/a.py:s(1)", "--workdir=gs://b/my run")
FIELDS = ("--config.model.depths=(1,1)", "--config.name=it's  $HOME; x")
ARRIVED = "".join(f"<{word}>" for word in (*RUN, *FIELDS))


class Cloud:
  """A repository to launch from, a gcloud, and two workers."""

  def __init__(self, path):
    self.path = path
    self.root = path / "repository"
    self.bin = path / "bin"
    self.bin.mkdir()
    for i in range(2):
      self.write(path / f"w{i}/pythons", "/usr/bin/python3.13\n")
    self.write(self.bin / "gcloud", GCLOUD)
    self.write(self.root / "configs/a.py", "a\n")
    self.write(self.root / "scripts/train.sh", TRAIN)
    self.write(self.root / "scripts/setup.sh", SETUP)
    for name in ("tpu_vm.sh", "tpu_worker.sh"):
      shutil.copy(SCRIPTS / name, self.root / "scripts")
    self.git("init", "-q")
    self.commit()

  def write(self, file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)

  def only(self, tools):
    """A folder for a PATH that has these tools and no others."""
    path = self.path / "only"
    path.mkdir()
    for tool in tools.split():
      (path / tool).symlink_to(shutil.which(tool))
    return path

  def git(self, *words):
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "gc.auto=0")
    subprocess.run(["git", *who, *words], cwd=self.root, check=True)

  def commit(self):
    self.git("add", "-A")
    self.git("commit", "-qm", "all")

  def shell(self, *words, answer="", **environment):
    return subprocess.run(
      [str(word) for word in words],
      input=answer,
      env={
        "PATH": f"{self.bin}:/usr/bin:/bin",
        "HOME": str(self.path),
        "CLOUD": str(self.path),
        **environment,
      },
      capture_output=True,
      text=True,
      timeout=60,
    )

  def tpu_vm(self, *words, **options):
    (self.path / "calls").write_text("")
    return self.shell(self.root / "scripts/tpu_vm.sh", *words, **options)

  def worker(self, i, *words):
    home = self.path / f"w{i}"
    script = home / "halonet/scripts/tpu_worker.sh"
    return self.shell("bash", script, *words, HOME=str(home))

  def calls(self):
    lines = (self.path / "calls").read_text().splitlines()
    return [line.split("\x1f")[:-1] for line in lines]

  def verbs(self):
    return [call[3] for call in self.calls()]

  def set_up(self):
    """As after setup, without its time."""
    (self.path / "vm").write_text(READY)
    for i in range(2):
      shutil.copytree(self.root, self.path / f"w{i}/halonet")

  def log(self, i, until=""):
    """Worker i's log, once a line of it begins with `until`."""
    file = self.path / f"w{i}/halonet-run/log"
    for _ in range(200):
      text = file.read_text() if file.exists() else ""
      if any(line.startswith(until) for line in text.splitlines()):
        return text
      time.sleep(0.05)
    raise AssertionError(f"no {until!r} in {text!r}")

  def pid(self, i):
    return int((self.path / f"w{i}/halonet-run/pid").read_text())

  def close(self):
    for i in range(2):
      if (self.path / f"w{i}/halonet-run/pid").exists():
        with contextlib.suppress(ProcessLookupError):
          os.killpg(self.pid(i), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
  made = Cloud(tmp_path)
  yield made
  made.close()


@pytest.fixture
def trains(cloud):
  """Two workers that train."""
  cloud.set_up()
  done = cloud.tpu_vm("train", *WHERE, *RUN, *FIELDS)
  assert done.returncode == 0, done.stderr
  for i in range(2):
    cloud.log(i, "<")
  return cloud


def assert_slip(done, message, status=2):
  assert done.returncode == status, done
  assert message in done.stderr
  assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
  "kind, runtime",
  [
    ("v2-8", "tpu-ubuntu2204-base"),
    ("v3-32", "tpu-ubuntu2204-base"),
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-16", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_create_takes_the_runtime_of_the_type(cloud, kind, runtime):
  done = cloud.tpu_vm("create", *WHERE, "--type", kind)
  assert done.returncode == 0 and "costs money" in done.stdout
  (call,) = cloud.calls()
  assert " ".join(call) == (
    f"compute tpus tpu-vm create halo --accelerator-type={kind}"
    f" --version={runtime} --zone=z-a"
  )


def test_create_spot_in_the_configured_zone(cloud):
  (cloud.path / "zone").write_text("z-of-gcloud\n")
  done = cloud.tpu_vm("create", "halo", "--spot", "--version=mine")
  assert done.returncode == 0, done.stderr
  assert cloud.calls()[1][5:] == [
    "--accelerator-type=v3-32",
    "--version=mine",
    "--spot",
    "--zone=z-of-gcloud",
  ]


def test_setup_copies_the_commit_to_all_workers(cloud):
  (cloud.path / "vm").write_text(READY)
  cloud.write(cloud.root / "gone later", "tracked\n")
  cloud.commit()
  cloud.write(cloud.root / "untracked", "x\n")
  done = cloud.tpu_vm("setup", *WHERE)
  assert done.returncode == 0, done.stderr
  assert "uncommitted changes are not copied" in done.stderr
  for i in range(2):
    home = cloud.path / f"w{i}"
    assert f"w-{i}: set up in {home}/halonet" in done.stdout
    assert (home / "setup-args").read_text() == "--accelerator tpu\n"
    assert (home / "halonet/gone later").exists()
    assert not (home / "halonet/untracked").exists()
    cloud.write(home / "halonet/.venv/python", "kept\n")
  # Another commit: what it lacks goes, what was made on the worker stays.
  (cloud.root / "gone later").unlink()
  cloud.commit()
  done = cloud.tpu_vm("setup", *WHERE)
  assert (done.returncode, done.stderr) == (0, "")
  for i in range(2):
    home = cloud.path / f"w{i}"
    assert not (home / "halonet/gone later").exists()
    assert (home / "halonet/untracked").exists()
    assert (home / "halonet/.venv/python").exists()
    assert not (home / "halonet.tar.gz").exists()


@pytest.mark.parametrize("has_uv", [False, True])
def test_an_old_python_gets_uv(cloud, has_uv):
  cloud.set_up()
  home = cloud.path / "w0"
  shutil.make_archive(home / "halonet", "gztar", cloud.root)
  path = cloud.only(
    "bash cat comm date dirname flock grep gzip mkdir mv rm sort tar true xargs"
  )
  cloud.write(home / "pythons", "")
  cloud.write(path / "python3", '#!/bin/bash\necho "$*" > ~/python-args\n')
  if has_uv:
    cloud.write(home / ".local/bin/uv", "#!/bin/bash\n")
  script = home / "halonet/scripts/tpu_worker.sh"
  done = cloud.shell(script, "install", PATH=str(path), HOME=str(home))
  assert done.returncode == 0, done.stderr
  asked = home / "python-args"
  assert asked.exists() != has_uv
  assert has_uv or asked.read_text() == "-m pip install --user --quiet uv\n"


def test_train_starts_all_workers_and_outlives_ssh(trains):
  assert trains.verbs() == ["describe", "ssh", "ssh"]
  assert all("--worker=all" in call for call in trains.calls()[1:])
  for i in range(2):
    assert trains.log(i).splitlines()[1] == ARRIVED
    assert os.getsid(trains.pid(i)) == trains.pid(i) != os.getsid(0)
  done = trains.tpu_vm("status", *WHERE)
  assert done.stdout.splitlines() == [
    "halo: v3-32 in z-a, READY",
    *(
      f"w-{i}: training runs (pid {trains.pid(i)}): {ARRIVED}" for i in range(2)
    ),
  ]


def test_a_second_training_is_refused_everywhere(trains):
  pids = [trains.pid(i) for i in range(2)]
  done = trains.tpu_vm("train", *WHERE, *RUN)
  assert_slip(done, "not started: a training runs", status=1)
  # Also where the training has died on one worker only.
  os.killpg(pids[0], signal.SIGKILL)
  done = trains.tpu_vm("train", *WHERE, *RUN)
  assert_slip(done, "not started: a training runs", status=1)
  assert [trains.pid(i) for i in range(2)] == pids
  assert "w-0: training was killed: <" in trains.tpu_vm("status", *WHERE).stdout
  # And files are not replaced under it.
  done = trains.tpu_vm("setup", *WHERE)
  assert done.returncode == 1 and "w-1: a training runs" in done.stdout


def test_stop_saves_and_train_goes_on(trains):
  done = trains.tpu_vm("stop", *WHERE)
  assert done.returncode == 0 and "still costs money" in done.stdout
  for i in range(2):
    assert f"w-{i}: the training is gone" in done.stdout
    assert trains.log(i).endswith("saved\n")
  done = trains.tpu_vm("status", *WHERE)
  assert "w-1: training ended, exit status 143: saved" in done.stdout
  assert "w-0: no training runs" in trains.tpu_vm("stop", *WHERE).stdout
  done = trains.tpu_vm("train", *WHERE, *RUN)
  assert done.returncode == 0, done.stderr
  for i in range(2):
    assert trains.log(i).count("scripts/train.sh --config=") == 2


def test_stop_of_a_training_that_hangs(cloud):
  cloud.set_up()
  (cloud.path / "w1/deaf").touch()
  assert cloud.tpu_vm("train", *WHERE, *RUN).returncode == 0
  cloud.log(1, "<")
  done = cloud.worker(1, "stop", "TERM", "1")
  assert done.returncode == 3 and "still runs after 1 s" in done.stdout
  done = cloud.tpu_vm("stop", *WHERE, "--kill")
  assert done.returncode == 0 and "w-1: SIGKILL" in done.stdout
  assert "saved" not in cloud.log(0)


def test_status_and_logs_show_how_a_training_ended(cloud):
  cloud.set_up()
  assert "w-0: no training was started" in cloud.tpu_vm("status", *WHERE).stdout
  (cloud.path / "w1/slip").touch()
  cloud.tpu_vm("train", *WHERE, *RUN)
  cloud.log(1, "error")
  time.sleep(0.2)
  done = cloud.tpu_vm("status", *WHERE)
  assert "w-1: training ended, exit status 2: error: a slip" in done.stdout
  done = cloud.tpu_vm("logs", *WHERE, "--worker=1", LIMIT="0.5")
  assert done.stdout.endswith("error: a slip\n")
  assert cloud.calls()[0][5] == "--worker=1"


def test_before_setup_it_says_so(cloud):
  (cloud.path / "vm").write_text(READY)
  done = cloud.tpu_vm("train", *WHERE, *RUN)
  assert done.returncode == 1
  assert "a worker is not set up" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["setup", "train", "status"])
def test_a_preempted_vm_is_to_be_made_again(cloud, command):
  (cloud.path / "vm").write_text("PREEMPTED\tv4-32\truntime\tTrue\n")
  done = cloud.tpu_vm(command, *WHERE, *(RUN if command == "train" else ()))
  assert_slip(done, "halo is PREEMPTED, which is final", status=1)
  assert "'scripts/tpu_vm.sh delete halo --zone=z-a'" in done.stderr
  assert (
    "'scripts/tpu_vm.sh create halo --zone=z-a --type=v4-32 --version=runtime"
    " --spot'"
  ) in done.stderr
  assert cloud.verbs() == ["describe"]


@pytest.mark.parametrize(
  "state, message",
  [("STOPPED", "tpu-vm start halo --zone=z-a"), ("CREATING", "try again")],
)
def test_a_vm_that_is_not_ready_is_left_alone(cloud, state, message):
  (cloud.path / "vm").write_text(READY.replace("READY", state))
  assert_slip(cloud.tpu_vm("train", *WHERE, *RUN), message, status=1)
  assert cloud.verbs() == ["describe"]


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "halo\n"])
def test_delete_asks_first(cloud, answer):
  (cloud.path / "vm").write_text(READY)
  done = cloud.tpu_vm("delete", *WHERE, answer=answer)
  assert done.returncode == 1 and "halo was not deleted" in done.stderr
  assert "Deletes the TPU VM halo (v3-32, READY) in z-a" in done.stdout
  assert "gs:// is kept" in done.stdout
  assert cloud.verbs() == ["describe"] and (cloud.path / "vm").exists()


@pytest.mark.parametrize("words, answer", [((), "y\n"), (("--yes",), "")])
def test_delete(cloud, words, answer):
  (cloud.path / "vm").write_text(READY)
  done = cloud.tpu_vm("delete", *WHERE, *words, answer=answer)
  assert done.returncode == 0, done.stderr
  assert "Deletes the TPU VM halo (v3-32, READY) in z-a" in done.stdout
  assert cloud.calls()[1][3:] == ["delete", "halo", "--quiet", "--zone=z-a"]
  assert not (cloud.path / "vm").exists()


def test_delete_of_a_vm_that_is_not_there(cloud):
  done = cloud.tpu_vm("delete", *WHERE, "--yes")
  assert done.returncode == 1 and "NOT_FOUND" in done.stderr
  assert "halo in z-a cannot be described" in done.stderr
  assert cloud.verbs() == ["describe"]


def test_dry_run_prints_what_would_run(cloud):
  """Pasted into a shell, it makes the calls of the real command."""
  cloud.set_up()
  for words in (
    ("create", *WHERE, "--spot"),
    ("setup", *WHERE),
    ("train", *WHERE, *RUN, *FIELDS),
    ("status", *WHERE),
    ("logs", *WHERE),
    ("stop", *WHERE),
    ("delete", *WHERE, "--yes"),
  ):
    dry = cloud.tpu_vm(*words, "--dry_run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert cloud.calls() == []
    assert (cloud.path / "vm").exists()
    assert not (cloud.path / "w0/halonet-run/log").exists()
    (cloud.bin / "gcloud").rename(cloud.bin / "real")
    cloud.write(  # Takes notes only.
      cloud.bin / "gcloud",
      "\n".join(GCLOUD.splitlines()[:4])
      + f'\n[ "$4" != describe ] || printf "{READY.strip()}"\n',
    )
    real = cloud.tpu_vm(*words)
    assert real.returncode == 0, real.stderr
    wanted = cloud.calls()
    (cloud.path / "calls").write_text("")
    cloud.shell("bash", "-c", dry.stdout)
    assert cloud.calls() == wanted and wanted
    (cloud.bin / "real").rename(cloud.bin / "gcloud")


def test_without_gcloud(cloud):
  path = str(cloud.only("bash dirname sed"))
  done = cloud.tpu_vm("stop", "halo", "--dry_run", PATH=path)
  assert done.returncode == 0 and "--zone" not in done.stdout
  done = cloud.tpu_vm("stop", *WHERE, PATH=path)
  assert_slip(done, "gcloud is missing", status=1)


def test_help(cloud):
  for words in (["--help"], ["train", "--help"], ["train", "x", "-h"]):
    done = cloud.tpu_vm(*words)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")


@pytest.mark.parametrize(
  "words, message",
  [
    ([], "a command is missing"),
    (["launch", "halo"], "unknown command launch"),
    (["train"], "train needs the VM's name"),
    (["status", "--zone=z"], "status needs the VM's name"),
    (["status", "my vm"], "'my vm' may hold"),
    (["status", *WHERE, "--fast"], "status knows no argument --fast"),
    (["status", *WHERE, "zone"], "status knows no argument zone"),
    (["status", *WHERE, "--spot"], "status knows no argument --spot"),
    (["delete", *WHERE, "--yes=1"], "--yes takes no value"),
    (["create", "halo", "--zone"], "--zone needs a value"),
    (["create", *WHERE, "--type="], "--type needs a value"),
    (["create", "halo", "--zone", "--spot"], "--zone needs a value"),
    (["create", *WHERE, "--type=h100-8"], "--type is 'h100-8'"),
    (["status", "halo"], "no zone: give --zone=ZONE"),
    (["logs", *WHERE, "--worker=all"], "--worker is 'all'"),
    (["train", *WHERE, RUN[1]], "train needs --config=FILE"),
    (["train", *WHERE, RUN[1], "--config=b.py"], "--config is 'b.py'; no such"),
    (["train", *WHERE, RUN[0]], "--workdir is ''"),
    (["train", *WHERE, RUN[0], "--workdir=/tmp/x"], "a folder gs://BUCKET"),
    (["train", *WHERE, *RUN, "--config.steps"], "write --config.steps=VALUE"),
  ],
)
def test_slips_are_answered_in_one_line(cloud, words, message):
  assert_slip(cloud.tpu_vm(*words), message)
  assert all(call[0] == "config" for call in cloud.calls())
