"""The steps: what they compute, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.training import config as config_lib
from halonet.training import optimizer as optimizer_lib
from halonet.training.state import (
  abstract_batch,
  abstract_state,
  make_init,
  make_mesh,
)
from halonet.training.step import make_eval_step, make_train_step


@pytest.fixture
def parts(small_config):
  config = small_config("optimizer.warmup_steps=0", "steps=1000")
  model = config_lib.create_model(config, num_classes=10)
  return model, optimizer_lib.make_optimizer(config)


def batch(size, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": jnp.asarray(rng.normal(size=(size, 16, 16, 3)), jnp.float32),
    "label": jnp.asarray(rng.integers(10, size=size), jnp.int32),
  }


def cross_entropy(logits, labels, smoothing):
  """In float64, from its definition."""
  logits = np.asarray(logits, np.float64)
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
  return -(targets * log).sum(-1)


def test_metrics_are_those_of_the_batch(parts):
  model, optimizer = parts
  mesh = make_mesh()
  state = make_init(model, optimizer, 16, mesh)(jax.random.key(0))
  images = batch(16)
  logits, _ = model.apply(
    {"params": state.params, "batch_stats": state.batch_stats},
    images["image"],
    train=True,
    mutable="batch_stats",
  )
  loss = cross_entropy(logits, images["label"], 0.1).mean()
  step = make_train_step(model, optimizer, 0.1, 0, mesh)
  state, metrics = step(state, images)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  correct = (logits.argmax(-1) == images["label"]).mean()
  np.testing.assert_allclose(metrics["accuracy"], correct)
  assert metrics["gradient_norm"] > 0
  assert state.step == 1


def test_what_is_dropped_follows_from_seed_and_step(small_config):
  config = small_config("model.drop_path=0.5", "model.dropout=0.5")
  model = config_lib.create_model(config, num_classes=10)
  optimizer = optimizer_lib.make_optimizer(config)
  mesh = make_mesh()
  losses = {}
  for seed, steps in ((0, 0), (0, 0), (1, 0), (0, 5)):
    state = make_init(model, optimizer, 16, mesh)(jax.random.key(0))
    state = state.replace(step=state.step + steps)
    step = make_train_step(model, optimizer, 0.1, seed, mesh)
    _, metrics = step(state, batch(16))
    losses.setdefault((seed, steps), []).append(float(metrics["loss"]))
  first, second = losses[0, 0]
  assert first == second
  assert len({first, *losses[1, 0], *losses[0, 5]}) == 3


def test_a_batch_can_be_learnt_by_heart(parts):
  model, optimizer = parts
  mesh = make_mesh()
  state = make_init(model, optimizer, 16, mesh)(jax.random.key(0))
  step = make_train_step(model, optimizer, 0.0, 0, mesh)
  images = batch(16)
  for _ in range(100):
    state, metrics = step(state, images)
  assert metrics["loss"] < 0.1 and metrics["accuracy"] == 1.0


def test_eight_devices_compute_what_one_does(parts):
  model, optimizer = parts
  losses, states = [], []
  for mesh in (make_mesh(jax.devices()[:1]), make_mesh(jax.devices())):
    state = make_init(model, optimizer, 16, mesh)(jax.random.key(0))
    step = make_train_step(model, optimizer, 0.1, 0, mesh)
    curve = []
    for number in range(20):
      state, metrics = step(state, batch(32, seed=number))
      curve.append(float(metrics["loss"]))
    losses.append(curve)
    states.append(state)
  # Sums in another order: rounding, which twenty steps of descent amplify.
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
  np.testing.assert_allclose(losses[1][:5], losses[0][:5], rtol=1e-5)


def test_fillers_do_not_count(parts):
  model, optimizer = parts
  mesh = make_mesh()
  state = make_init(model, optimizer, 16, mesh)(jax.random.key(0))
  images = batch(16)
  images["weight"] = jnp.where(jnp.arange(16) < 11, 1.0, 0.0)
  # Fillers would be right, and of infinite loss, if they were looked at.
  images["label"] = images["label"].at[11:].set(0)
  images["image"] = images["image"].at[11:].set(jnp.nan)
  step = make_eval_step(model, mesh)
  sums = step(state.params, state.batch_stats, images)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  logits = model.apply(variables, images["image"][:11])
  labels = images["label"][:11]
  assert sums["images"] == 11
  assert sums["correct"] == (logits.argmax(-1) == labels).sum()
  loss = cross_entropy(logits, labels, 0.0).sum()
  np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)


def test_abstract_shapes_are_the_real_ones(parts):
  model, optimizer = parts
  mesh = make_mesh()
  init = make_init(model, optimizer, 16, mesh)
  state, abstract = init(jax.random.key(0)), abstract_state(init, mesh)
  for real, shape in zip(
    jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
  ):
    assert (real.shape, real.dtype) == (shape.shape, shape.dtype)
    assert real.sharding == shape.sharding
  shapes = abstract_batch(16, 16, mesh)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), batch(16)) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
