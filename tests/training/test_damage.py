"""Checkpoints that a disk has damaged: found, named, and never used."""

import contextlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from halonet import evaluate, predict, train
from halonet.parallel import make_mesh
from halonet.tasks.task import make_task
from halonet.training.checkpoint import Checkpoints, DamagedCheckpoint
from halonet.training.config import create_model
from halonet.training.optimizer import make_optimizer
from halonet.training.state import abstract_state, make_init
from halonet.training.workdir import Workdir
from tests.conftest import arguments, finish, run_command, run_processes
from tests.test_train import assert_same_run

# Written when the checkpoint gets its name; nothing that is read is in them.
WITHOUT_CHECKSUM = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Not read with the part that they are in.
SIDECARS = ("_sharding", "commit_success.txt")


@pytest.fixture
def run(trained, tmp_path):
  """Copies a finished run of 24 steps, as if it had still to end."""
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  (workdir / "results.json").unlink()
  return workdir


@pytest.fixture(scope="module")
def restore(trained):
  """Returns a function that reads all of the last checkpoint of a workdir."""
  workdir, mesh = Workdir(str(trained[0])), make_mesh()
  config = workdir.config()
  model = create_model(config, make_task(config, workdir.metadata()))
  init = make_init(model, make_optimizer(config), config, mesh)
  abstract = abstract_state(init, mesh)

  def read(path, step=24):
    checkpoints = Checkpoints(Workdir(str(path)).checkpoints, "accuracy")
    with contextlib.closing(checkpoints):
      return jax.device_get(checkpoints.restore(step, abstract))

  return read


@pytest.fixture(scope="module")
def true_state(trained, restore):
  return restore(trained[0])


def flip(content, place):
  damaged = bytearray(content)
  damaged[place // 8] ^= 1 << place % 8
  return bytes(damaged)


DAMAGES = {
  "flip": lambda content: flip(content, 4 * len(content)),
  "truncate": lambda content: content[: len(content) // 2],
  "zero": lambda content: b"\0" * len(content),
  "delete": lambda content: None,
}


def files_of(folder):
  names = [path for path in folder.rglob("*") if path.is_file()]
  return sorted(str(path.relative_to(folder)) for path in names)


@contextlib.contextmanager
def damaged(file, content):
  """Replaces the content of a file for a while; None deletes it."""
  before = file.read_bytes()
  assert content != before
  file.write_bytes(content or b"")
  if content is None:
    file.unlink()
  yield
  file.write_bytes(before)


def said_by_us(caplog):
  return [
    record.getMessage()
    for record in caplog.records
    if record.name.startswith("halonet.")
  ]


def assert_not_silent(restore, workdir, name, true_state, caplog):
  """Restores with one file damaged; it is named, and no value is another."""
  caplog.clear()
  part, _, rest = name.partition("/")
  if part == "metrics" or rest in SIDECARS or name in WITHOUT_CHECKSUM:
    jax.tree.map(np.testing.assert_array_equal, restore(workdir), true_state)
    said = name in "".join(said_by_us(caplog))
    assert said != (name in WITHOUT_CHECKSUM)
    return
  with pytest.raises(DamagedCheckpoint, match="checkpoints/24 is damaged") as e:
    restore(workdir)
  assert name in str(e.value) and "more" not in str(e.value)


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_file(run, restore, true_state, caplog, kind):
  folder = run / "checkpoints" / "24"
  names = files_of(folder)
  # Every process's data, and what says where it is.
  for part in ("model", "optimizer", "ema", "iterator"):
    assert any(name.startswith(f"{part}/ocdbt.process_0/d/") for name in names)
  for name in names:
    content = DAMAGES[kind]((folder / name).read_bytes())
    with damaged(folder / name, content):
      if (kind, name) == ("delete", "checksums.json"):  # As of old.
        state = restore(run)
        jax.tree.map(np.testing.assert_array_equal, state, true_state)
        assert "24: has no checksums.json" in caplog.text
        assert "cannot be verified" in caplog.text
      else:
        assert_not_silent(restore, run, name, true_state, caplog)


@pytest.mark.parametrize(
  "number", [48, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_random_flips(run, restore, true_state, caplog, number):
  folder = run / "checkpoints" / "24"
  names = files_of(folder)
  sizes = np.array([(folder / name).stat().st_size for name in names])
  random = np.random.default_rng(number)
  for i in range(number):
    # In turn any bit of the checkpoint, and any bit of any file.
    name = random.choice(names, p=None if i % 2 else sizes / sizes.sum())
    content = (folder / name).read_bytes()
    place = int(random.integers(8 * len(content)))
    with damaged(folder / name, flip(content, place)):
      assert_not_silent(restore, run, name, true_state, caplog)


def test_a_file_too_many_is_named(run, restore, true_state, caplog):
  (run / "checkpoints" / "24" / "model" / "d" / "note").write_text("mine")
  jax.tree.map(np.testing.assert_array_equal, restore(run), true_state)
  assert "24: model/d/note does not belong there" in caplog.text


def damage(run, *steps, part="model"):
  """Flips a bit of the weights of some steps; returns the paths of files."""
  flipped = []
  for step in steps:
    folder = run / "checkpoints" / str(step) / part / "ocdbt.process_0" / "d"
    file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(flip(file.read_bytes(), 4 * file.stat().st_size))
    flipped.append(str(file.relative_to(run / "checkpoints" / str(step))))
  return flipped


def test_evaluate_and_predict_offer_an_older_one(run, run_main, tmp_path):
  (file, _) = damage(run, 24, 20)
  image = tmp_path / "image.png"
  Image.new("RGB", (16, 16)).save(image)
  message = (
    f"error: checkpoint {run}/checkpoints/24 is damaged: {file} has changed"
    " since it was written. The next older good one is --step=15\n"
  )
  for main, *words in (evaluate.main,), (predict.main, str(image)):
    assert run_main(main, f"--workdir={run}", *words) == (1, "", message)
  code, output, complaint = run_main(
    predict.main, f"--workdir={run}", "--step=15", str(image)
  )
  assert code == 0 and len(output.splitlines()) == 6
  assert "damaged" not in complaint
  damage(run, 15)
  code, _, complaint = run_main(evaluate.main, f"--workdir={run}")
  assert code == 1 and complaint.endswith("No older one is good\n")


def test_weights_of_a_run_that_are_no_numbers(run, run_main, tmp_path):
  # Written with checksums that fit.
  workdir = Workdir(str(run))
  config, mesh = workdir.config(), make_mesh()
  model = create_model(config, make_task(config, workdir.metadata()))
  init = make_init(model, make_optimizer(config), config, mesh)
  checkpoints = Checkpoints(workdir.checkpoints, "accuracy")
  with contextlib.closing(checkpoints):
    state, batches = checkpoints.restore(24, abstract_state(init, mesh))
    classifier = state.params["classifier"]
    classifier["bias"] = classifier["bias"].at[3].set(float("nan"))
    checkpoints.save(25, state, batches)
  image = tmp_path / "image.png"
  Image.new("L", (8, 8)).save(image)
  for main, words in ((evaluate.main, []), (predict.main, [str(image)])):
    code, output, complaint = run_main(main, f"--workdir={run}", *words)
    assert code == 2 and not output
    assert complaint == (
      f"error: weights: {run}, step 25: params/classifier/bias holds NaN; they"
      " are damaged, or of a training that diverged\n"
    )


def test_evaluate_needs_no_optimizer(run, run_main):
  (file,) = damage(run, 24, part="optimizer")
  code, _, complaint = run_main(evaluate.main, f"--workdir={run}")
  assert code == 0 and complaint.startswith(
    f"WARNING: checkpoint {run}/checkpoints/24: {file} has changed since it was"
    " written\n"
  )


def test_init_from_refuses_it(run, run_main, data_dir, tmp_path):
  (file,) = damage(run, 24)
  words = arguments(data_dir, tmp_path / "new", f"init_from={run}")
  code, _, complaint = run_main(train.main, *words)
  assert code == 2 and complaint.splitlines()[-1] == (
    f"error: config.init_from is {run}: checkpoint {run}/checkpoints/24 is"
    f" damaged: {file} has changed since it was written; move it away to begin"
    " with step 20"
  )


def test_training_goes_on_from_an_older_one(trained, run, data_dir):
  file, _ = damage(run, 24, 20)
  code, output = finish(run_command(*arguments(data_dir, run)))
  assert code == 0, output
  folder = run / "checkpoints"
  for step in (24, 20):
    assert f"WARNING: checkpoint {folder}/{step} is damaged: model/" in output
    assert f"It is now {folder}/{step}.damaged; the run goes on from" in output
  assert file in output and "Going on from step 15, from" in output
  assert_same_run(run, trained[0])
  names = {path.name for path in folder.iterdir()}
  assert names == {"15", "20", "24", "20.damaged", "24.damaged"}
  assert (folder / "24.damaged" / file).exists()


def test_training_goes_on_without_an_accuracy(trained, run, data_dir):
  folder = run / "checkpoints"
  shutil.rmtree(folder / "24")
  (folder / "15" / "metrics").mkdir()
  (folder / "15" / "metrics" / "metrics").write_text('{"accuracy": 0.')
  code, output = finish(run_command(*arguments(data_dir, run)))
  assert code == 0, output
  assert f"{folder}/15: metrics/metrics cannot be read: " in output
  assert "Its accuracy counts as unknown" in output
  assert_same_run(run, trained[0])


def test_no_checkpoint_is_good(run, data_dir, run_main):
  damage(run, 15, 20, 24)
  before = files_of(run / "checkpoints")
  for _ in range(2):  # It never begins anew by itself.
    code, output = finish(run_command(*arguments(data_dir, run)))
    last = output.splitlines()[-1]
    assert code == 1 and last.startswith("error: no checkpoint is good: ")
    for step in (15, 20, 24):
      assert f"checkpoints/{step} is damaged: model/" in last
    assert files_of(run / "checkpoints") == before


@pytest.mark.slow  # The decisions are those of one process.
def test_two_processes_take_the_same_older_one(eight, tmp_path, data_dir):
  run = tmp_path / "run"
  shutil.copytree(eight[0], run)
  (run / "results.json").unlink()
  damage(run, 24)
  processes = run_processes(*arguments(data_dir, run))
  ended = [finish(process) for process in processes]
  assert [code for code, _ in ended] == [0, 0], ended
  assert "WARNING: checkpoint" in ended[0][1]
  assert "WARNING: checkpoint" not in ended[1][1]
  assert "Going on from step 20, from" in ended[0][1]
  assert (run / "checkpoints" / "24.damaged").is_dir()
