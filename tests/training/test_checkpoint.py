"""Checkpoints: what is kept, what is read back, and what breaks."""

import gc
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.errors import RunError
from halonet.parallel import make_mesh, replicated
from halonet.training import checksums
from halonet.training.checkpoint import Checkpoints
from halonet.training.state import TrainState


@pytest.fixture
def collected():
  """Collects here what a test leaves, not in whichever test comes next."""
  yield
  gc.collect()


def fails_inside_orbax(test):
  """Orbax and TensorStore leave coroutines and unread errors behind."""
  for mark in (
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
      "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.filterwarnings(
      "ignore:coroutine .* was never awaited:RuntimeWarning"
    ),
  ):
    test = mark(test)
  return test


def make_state(seed):
  key = jax.random.key(seed)
  state = TrainState(
    step=jnp.int32(seed),
    params={"kernel": jax.random.normal(key, (64, 64))},
    collections={},
    opt_state=(),
  )
  return jax.device_put(state, replicated(make_mesh()))


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def test_the_latest_and_the_best_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  assert checkpoints.latest is None and checkpoints.best is None
  accuracies = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: None, 6: 0.8}
  for step, accuracy in accuracies.items():
    checkpoints.save(step, make_state(step), 10 * step, accuracy)
  checkpoints.close()
  again = Checkpoints(tmp_path, "accuracy")
  assert again.scores() == {2: 0.9, 5: None, 6: 0.8}
  assert again.latest == 6 and again.best == 2


@pytest.mark.parametrize("donate", [False, True])
def test_a_state_comes_back_bit_by_bit(tmp_path, donate):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  state = make_state(3)
  expected = np.array(state.params["kernel"])
  checkpoints.save(3, state, 30)
  if donate:  # As the next training step does while the save goes on.
    jax.jit(
      lambda s: s.replace(params={"kernel": s.params["kernel"] * 0}),
      donate_argnums=0,
    )(state)
  checkpoints.wait()
  restored, batches = checkpoints.restore(3, abstract(make_state(0)))
  assert batches == 30 and restored.step == 3
  np.testing.assert_array_equal(restored.params["kernel"], expected)
  assert restored.params["kernel"].sharding == replicated(make_mesh())
  checkpoints.close()


def test_an_existing_step_is_left_alone(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(3, make_state(3), 30)
  checkpoints.save(3, make_state(4), 40)
  checkpoints.wait()
  _, batches = checkpoints.restore(3, abstract(make_state(0)))
  assert batches == 30
  checkpoints.close()


def test_what_a_kill_left_is_cleared(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(3, make_state(3), 30)
  checkpoints.close()
  half = tmp_path / "4.orbax-checkpoint-tmp"
  half.mkdir()
  reader = Checkpoints(tmp_path, "accuracy")
  assert reader.latest == 3
  reader.close()
  assert half.exists()  # It may be another process's, at work.
  writer = Checkpoints(tmp_path, "accuracy", keep=2)
  assert writer.latest == 3
  writer.save(4, make_state(4), 40)
  writer.close()
  assert not half.exists() and (tmp_path / "4").exists()


@fails_inside_orbax
def test_what_orbax_cannot_read_is_named(tmp_path):
  """Without checksums, as of an earlier version."""
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(3, make_state(3), 30)
  checkpoints.close()
  (tmp_path / "3" / "checksums.json").unlink()
  for file in (tmp_path / "3" / "model").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(RunError, match=r"checkpoint .*/3 cannot be read.*Move"):
    Checkpoints(tmp_path, "accuracy").restore(3, abstract(make_state(0)))


@fails_inside_orbax
def test_a_checkpoint_of_another_model_is_named(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(3, make_state(3), 30)
  checkpoints.wait()
  other = abstract(make_state(0)).replace(
    params={"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  )
  with pytest.raises(RunError, match=r"checkpoint .*/3 cannot be read"):
    checkpoints.restore(3, other)
  checkpoints.close()


@fails_inside_orbax
def test_a_full_disk_is_one_clear_error(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(1, make_state(1), 10)
  checkpoints.wait()
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
  try:
    with pytest.raises(RunError, match=r"cannot be written.*one is that of"):
      checkpoints.save(2, make_state(2), 20)
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
  assert Checkpoints(tmp_path, "accuracy").latest == 1


def test_a_checkpoint_has_its_checksums_before_its_name(tmp_path, monkeypatch):
  """Killed at any moment, a run leaves none that cannot be verified."""
  names = []

  def write(folder, skip):
    names.append([path.name for path in tmp_path.iterdir()])
    return checksums_write(folder, skip)

  checksums_write = checksums.write
  monkeypatch.setattr(checksums, "write", write)
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=1)
  checkpoints.save(1, make_state(1), 10)
  checkpoints.save(2, make_state(2), 20)
  checkpoints.close()
  assert names[0] == ["1.orbax-checkpoint-tmp"]
  # The one before is deleted only after that.
  assert sorted(names[1]) == ["1", "2.orbax-checkpoint-tmp"]
  assert [path.name for path in tmp_path.iterdir()] == ["2"]
  assert checksums.compare(tmp_path / "2") == (
    {},
    ["_CHECKPOINT_METADATA", "commit_success.txt"],
  )


@fails_inside_orbax
def test_checksums_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
  def write(folder, skip):
    raise OSError("no space left")

  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(1, make_state(1), 10)
  checkpoints.wait()
  monkeypatch.setattr(checksums, "write", write)
  checkpoints.save(2, make_state(2), 20)
  with pytest.raises(RunError, match="no space left.*one is that of step 1;"):
    checkpoints.wait()
  assert Checkpoints(tmp_path, "accuracy").steps() == [1]


@pytest.mark.parametrize(
  "content", [b"", b"\0" * 17, b'{"accuracy": 0.', b'{"accurbcy": 0.5}', b"[]"]
)
@pytest.mark.parametrize("verified", [True, False])
def test_a_lost_accuracy_does_not_block_weights(
  tmp_path, caplog, content, verified
):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=3)
  for step, accuracy in {1: 0.5, 2: 0.9, 3: 0.7}.items():
    checkpoints.save(step, make_state(step), step, accuracy)
  checkpoints.close()
  damaged = tmp_path / "2" / "metrics" / "metrics"
  damaged.write_bytes(content)
  if not verified:
    (tmp_path / "2" / "checksums.json").unlink()
  reader = Checkpoints(tmp_path, "accuracy")
  assert reader.scores() == {1: 0.5, 2: None, 3: 0.7} and reader.best == 3
  state, batches = reader.restore(2, abstract(make_state(0)))
  np.testing.assert_array_equal(
    state.params["kernel"], make_state(2).params["kernel"]
  )
  assert batches == 2
  assert damaged.exists()  # Who reads changes nothing.
  # A training goes on, and keeps what is left of the figure.
  writer = Checkpoints(tmp_path, "accuracy", keep=3)
  caplog.clear()
  writer.save(4, make_state(4), 4, 0.6)
  writer.close()
  (line,) = caplog.messages
  assert f"checkpoint {tmp_path}/2: metrics/metrics " in line
  assert "Its accuracy counts as unknown" in line
  assert writer.scores() == {2: None, 3: 0.7, 4: 0.6} and writer.best == 3
  kept = tmp_path / "2" / "metrics.damaged" / "metrics"
  assert kept.read_bytes() == content
