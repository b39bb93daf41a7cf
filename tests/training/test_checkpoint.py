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
def test_a_corrupt_checkpoint_is_named(tmp_path):
  checkpoints = Checkpoints(tmp_path, "accuracy", keep=2)
  checkpoints.save(3, make_state(3), 30)
  checkpoints.close()
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
