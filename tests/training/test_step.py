"""The steps: what they compute, on one device and on eight."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from halonet.layers.halo import HaloAttention
from halonet.parallel import make_mesh
from halonet.tasks.mixing import mix
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training import optimizer as optimizer_lib
from halonet.training.state import (
  TrainState,
  abstract_batch,
  abstract_state,
  make_init,
)
from halonet.training.step import make_eval_step, make_train_step


class Tiny(nn.Module):
  """A convolution, a norm over groups of examples, an attention."""

  dropout: float = 0.0
  dtype: Any = jnp.dtype("float32")

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(8, (3, 3), use_bias=False, dtype=self.dtype)(x)
    mean = self.variable("batch_stats", "mean", jnp.zeros, (8,))
    if train:
      groups = x.reshape(-1, 2, *x.shape[1:]).astype(jnp.float32)
      means = groups.mean((1, 2, 3), keepdims=True)
      mean.value = 0.9 * mean.value + 0.1 * means.mean((0, 1, 2, 3))
      x = (groups - means).reshape(x.shape).astype(self.dtype)
    x = HaloAttention(2, 2, 1, dtype=self.dtype)(nn.relu(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(10, name="classifier")(x.astype(jnp.float32))


def tiny_config(*overrides):
  return config_lib.load_config(
    "configs/digits.py",
    [
      "batch_size=64",
      "data.image_size=4",
      "optimizer.warmup_steps=0",
      "optimizer.learning_rate=1.0",
      *overrides,
    ],
  )


def digits_task(config):
  return make_task(config, {"labels": list("0123456789")})


@functools.cache
def make_tiny(*overrides, devices=1, **fields):
  """The training step, and what makes a state for it, of the same weights.

  Compiled once for all tests.
  """
  config = tiny_config(*overrides)
  optimizer = optimizer_lib.make_optimizer(config)
  mesh = make_mesh(jax.devices()[:devices])
  task = digits_task(config)
  step = make_train_step(Tiny(**fields), task, optimizer, config, mesh)

  def init():
    now = tiny_variables()
    params = now["params"]
    collections = {"batch_stats": now["batch_stats"]}
    ema = now if config.ema_decay > 0 else None
    opt_state = optimizer.init(params)
    return TrainState(np.int32(0), params, collections, opt_state, ema)

  return step, lambda: on_host(init())


@functools.cache
def tiny_variables():
  images = jnp.zeros((1, 4, 4, 3))
  return on_host(jax.jit(Tiny().init)(jax.random.key(0), images))


def batch(rows, seed=0, size=4):
  rng = np.random.default_rng(seed)
  return {
    "image": np.float32(rng.normal(size=(rows, size, size, 3))),
    "label": np.int32(rng.integers(10, size=rows)),
  }


def full_batch(rows, seed=0, skipped=()):
  """With all that a config may ask for."""
  weight = np.ones(rows, np.float32)
  weight[list(skipped)] = 0
  share = np.random.default_rng(seed).uniform(size=rows // 2).repeat(2)
  return batch(rows, seed) | {
    "mix_share": np.float32(share),
    "mix_box": np.zeros((rows, 4), np.int32),
    "weight": weight,
  }


FULL = ("data.mixup=0.2", "data.skip_corrupt=True", "optimizer.clip_norm=0.5")


def cross_entropy(logits, targets, smoothing):
  """In float64, from its definition; of labels, or of soft targets."""
  logits = np.asarray(logits, np.float64)
  targets = np.asarray(targets)
  if targets.ndim == 1:
    targets = np.eye(10)[targets]
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets = targets * (1 - smoothing) + smoothing / 10
  return -(targets * log).sum(-1)


def on_host(tree):
  """Copies, which survive that the state is consumed."""
  return jax.tree.map(lambda x: np.array(x), tree)


def close(actual, expected, **tolerances):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, **tolerances),
    actual,
    expected,
  )


@functools.partial(jax.jit, static_argnames="train")
def tiny_logits(state, images, train=True):
  logits, _ = Tiny().apply(
    state.variables, images, train=train, mutable="batch_stats"
  )
  return logits


def test_metrics_are_those_of_the_batch():
  step, init = make_tiny()
  state, images = init(), batch(64)
  logits = tiny_logits(state, images["image"])
  loss = cross_entropy(logits, images["label"], 0.1).mean()
  state, metrics = step(state, images)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  correct = (logits.argmax(-1) == images["label"]).mean()
  np.testing.assert_allclose(metrics["accuracy"], correct)
  assert metrics.keys() == {"loss", "accuracy", "gradient_norm"}
  assert state.step == 1 and state.ema is None


def test_loss_of_mixed_smoothed_and_skipped_images():
  step, init = make_tiny(*FULL)
  state = init()
  # One or both images of three pairs are skipped: their partners stay pure.
  skipped = [3, 16, 17, 62]
  images = full_batch(64, skipped=skipped)
  pixels, targets = mix(
    images["image"],
    jnp.eye(10)[images["label"]],
    images["mix_share"],
    images["mix_box"],
  )
  pixels, targets = np.array(pixels), np.array(targets, np.float64)
  for row in (2, 3, 16, 17, 62, 63):
    pixels[row] = images["image"][row]
    targets[row] = np.eye(10)[images["label"][row]]
  logits = tiny_logits(state, pixels)
  kept = np.delete(np.arange(64), skipped)
  loss = cross_entropy(logits, targets, 0.1)[kept].mean()
  correct = (logits.argmax(-1) == images["label"])[kept].mean()
  _, metrics = step(state, images)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], correct, rtol=1e-6)
  assert metrics["skipped"] == 4


def test_a_batch_of_skipped_images_alone_teaches_nothing():
  step, init = make_tiny(*FULL)
  state = init()
  before = on_host(state.params)
  state, metrics = step(state, full_batch(64, skipped=range(64)))
  # The optimizer does what it does for a gradient of zero: it decays kernels.
  close(state.params, before, rtol=1e-2)
  figures = {"loss": 0, "accuracy": 0, "gradient_norm": 0, "skipped": 64}
  assert on_host(metrics) == figures


def test_gradient_norm_is_that_before_clipping():
  norms, changes = [], []
  for clip_norm in (0.0, 1e-3):
    step, init = make_tiny(
      f"optimizer.clip_norm={clip_norm}", "optimizer.weight_decay=0.0"
    )
    state = init()
    before = on_host(state.params)
    state, metrics = step(state, batch(64))
    norms.append(metrics["gradient_norm"])
    difference = jax.tree.map(lambda a, b: a - b, on_host(state.params), before)
    changes.append(
      np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(difference)))
    )
  assert norms[0] == norms[1]
  # Nesterov's first step is 1.9 gradients, at a rate of 64 / 256.
  expected = [1.9 / 4 * norms[0], 1.9e-3 / 4]
  np.testing.assert_allclose(changes, expected, rtol=1e-3)


def test_moving_averages_follow_their_formula():
  step, init = make_tiny("ema_decay=0.3")
  state = init()
  now = state.variables
  expected = jax.tree.map(lambda x: np.array(x, np.float64), now)
  close(state.ema, expected, rtol=0)
  for number in range(1, 7):
    state, _ = step(state, batch(64, number))
    # 2/11, 3/12, and from 4/13 on the decay of the config.
    decay = min(0.3, (1 + number) / (10 + number))
    now = state.variables
    expected = jax.tree.map(
      lambda a, x, decay=decay: decay * a + (1 - decay) * np.asarray(x),
      expected,
      now,
    )
    close(state.ema, expected, rtol=1e-5, atol=1e-7)
  assert {x.dtype.name for x in jax.tree.leaves(state.ema)} == {"float32"}


@pytest.mark.parametrize("devices", [1, 8])
def test_parts_add_up_to_the_large_batch(devices):
  results = []
  for parts in (1, 4):
    more = (f"accumulation_steps={parts}",) if parts > 1 else ()
    step, init = make_tiny(*FULL, *more, devices=devices)
    state = init()
    for number in range(3):
      # Parts and devices differ in how many images count.
      images = full_batch(64, number, skipped=range(number + 20))
      state, metrics = step(state, images)
    results.append(on_host((state, metrics)))
  close(results[1], results[0], rtol=2e-5, atol=1e-6)


def test_parts_stay_where_they_are_until_their_sum_is_reduced():
  config = tiny_config(*FULL, "accumulation_steps=4")
  optimizer = optimizer_lib.make_optimizer(config)
  mesh = make_mesh()
  init, task = make_init(Tiny(), optimizer, config, mesh), digits_task(config)
  step = make_train_step(Tiny(), task, optimizer, config, mesh)
  batch_shape = abstract_batch(task, mesh)
  compiled = step.lower(abstract_state(init, mesh), batch_shape).compile()
  # The loop over the parts is a computation of its own, before the entry.
  inner, entry = compiled.as_text().split("\nENTRY ")
  collective = re.compile(
    r" ((?:all|collective|reduce|ragged)-(?:reduce|gather|to-all|scatter"
    r"|permute|broadcast))(?:-start)?\("
  )
  assert not collective.findall(inner)
  # One for gradients, metrics and statistics, one for the weights of the
  # examples, one for the count of skipped images.
  assert collective.findall(entry) == ["all-reduce"] * 3


def test_every_part_drops_what_it_likes():
  images = jax.tree.map(lambda x: np.concatenate([x] * 4), batch(2))
  step, init = make_tiny(
    "accumulation_steps=2", "batch_size=8", devices=2, dropout=0.5
  )
  losses = []
  for part in range(4):  # Two parts on each of two devices, all of one content.
    weight = np.float32(np.arange(8) // 2 == part)
    _, metrics = step(init(), images | {"weight": weight})
    losses.append(float(metrics["loss"]))
  assert len(set(losses)) == 4


def test_what_is_dropped_follows_from_seed_and_step():
  losses = {}
  for seed, steps in ((0, 0), (0, 0), (1, 0), (0, 5)):
    step, init = make_tiny(f"seed={seed}", dropout=0.5)
    state = init()
    state = state.replace(step=np.int32(steps))
    _, metrics = step(state, batch(64))
    losses.setdefault((seed, steps), []).append(float(metrics["loss"]))
  first, second = losses[0, 0]
  assert first == second
  assert len({first, *losses[1, 0], *losses[0, 5]}) == 3


def test_bfloat16_is_for_the_computation_alone():
  states = []
  for dtype in ("float32", "bfloat16"):
    step, init = make_tiny("ema_decay=0.3", dtype=jnp.dtype(dtype))
    state = init()
    for number in range(2):
      images = batch(64, number)
      images["image"] = images["image"].astype(dtype)
      state, _ = step(state, images)
    states.append(state)
  kept = states[1].replace(step=None)
  floats = [x for x in jax.tree.leaves(kept) if x.dtype != jnp.int32]
  assert {x.dtype.name for x in floats} == {"float32"}
  # Neither sums of gradients (the momentum) nor weights are rounded.
  for x in on_host(floats):
    assert (x != x.astype(jnp.bfloat16).astype(np.float32)).any()
  close(states[1].params, states[0].params, rtol=0.1, atol=0.02)


def test_a_batch_can_be_learnt_by_heart():
  step, init = make_tiny("steps=10000", "label_smoothing=0.0")
  state, images = init(), batch(8)
  for _ in range(200):
    state, metrics = step(state, images)
  assert metrics["loss"] < 0.1 and metrics["accuracy"] == 1.0


@pytest.mark.slow  # tests/test_train.py trains on eight devices, too.
def test_eight_devices_compute_what_one_does(small_config):
  config = small_config(
    "optimizer.warmup_steps=0",
    "optimizer.learning_rate=0.8",
    "steps=1000",
  )
  task = digits_task(config)
  model = config_lib.create_model(config, task)
  optimizer = optimizer_lib.make_optimizer(config)
  init = make_init(model, optimizer, config, make_mesh())
  fresh = on_host(init(0))
  losses = []
  for devices in (1, 8):
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(model, task, optimizer, config, mesh)
    state, curve = fresh, []
    for number in range(5):
      state, metrics = step(state, batch(16, seed=number, size=16))
      curve.append(float(metrics["loss"]))
    losses.append(curve)
  # Sums in another order: rounding, which descent amplifies.
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_fillers_do_not_count():
  state = make_tiny()[1]()
  images = batch(16)
  images["weight"] = np.float32(np.arange(16) < 11)
  images["skipped"] = np.float32(np.arange(16) == 12)
  # Fillers would be right, and of infinite loss, if they were looked at.
  images["label"][11:] = 0
  images["image"][11:] = np.nan
  step = make_eval_step(Tiny(), digits_task(tiny_config()), make_mesh())
  counts, sums = step(state.variables, images)
  logits = tiny_logits(state, images["image"][:11], train=False)
  labels = images["label"][:11]
  assert counts == {"images": 11, "skipped": 1}
  assert sums["correct"] == int((logits.argmax(-1) == labels).sum())
  loss = cross_entropy(logits, labels, 0.0).sum()
  np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)


def test_abstract_state_is_the_real_one():
  config = tiny_config("ema_decay=0.9")
  mesh = make_mesh(jax.devices()[:2])
  init = make_init(Tiny(), optimizer_lib.make_optimizer(config), config, mesh)
  state, abstract = init(0), abstract_state(init, mesh)
  for real, shape in zip(
    jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
  ):
    assert (real.shape, real.dtype) == (shape.shape, shape.dtype)
    assert real.sharding == shape.sharding


@pytest.mark.parametrize(
  ("overrides", "expected"),
  [((), batch(64)), (FULL, full_batch(64))],
)
def test_abstract_batch_is_what_the_config_asks_for(overrides, expected):
  for dtype in ("float32", "bfloat16"):
    config = tiny_config(*overrides, f"data.image_dtype={dtype}")
    shapes = abstract_batch(digits_task(config), make_mesh())
    expected["image"] = expected["image"].astype(dtype)
    for shape in shapes.values():
      assert shape.sharding.spec == jax.sharding.PartitionSpec("data")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), expected) == jax.tree.map(
      lambda x: (x.shape, x.dtype), shapes
    )
