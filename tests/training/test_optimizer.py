"""The optimizer against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np

import halonet
from halonet.training import optimizer as optimizer_lib
from halonet.training.config import load_config


def config(*overrides):
  return load_config(
    "configs/digits.py",
    [
      "steps=100",
      "optimizer.warmup_steps=10",
      "optimizer.learning_rate=0.5",
      "optimizer.weight_decay=0.01",
      *overrides,
    ],
  )


def test_schedule_is_linear_then_a_cosine():
  schedule = optimizer_lib.make_schedule(config())
  steps = np.arange(101)
  cosine = 0.25 * (1 + np.cos(np.pi * (steps - 10) / 90))
  expected = np.where(steps < 10, 0.05 * steps, cosine)
  actual = np.array([schedule(step) for step in steps])
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_decay_is_for_kernels_alone():
  model = halonet.create_model("halonet_h4")
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  mask = optimizer_lib.is_decayed(variables["params"])
  decayed = {path[-1].key for path, is_decayed in leaves(mask) if is_decayed}
  spared = {path[-1].key for path, is_decayed in leaves(mask) if not is_decayed}
  assert decayed == {"kernel"}
  assert spared == {"scale", "bias", "relative_height", "relative_width"}


def leaves(tree):
  return jax.tree_util.tree_leaves_with_path(tree)


def test_sgd_is_nesterov_with_decay():
  optimizer = optimizer_lib.make_optimizer(config())
  schedule = optimizer_lib.make_schedule(config())
  params = {"kernel": jnp.array([1.0, -2.0]), "scale": jnp.array([3.0])}
  state = optimizer.init(params)
  expected = {name: np.array(x, np.float64) for name, x in params.items()}
  velocity = dict.fromkeys(params, 0.0)
  for step in range(20):
    gradients = {name: jnp.cos(x + step) for name, x in params.items()}
    updates, state = optimizer.update(gradients, state, params)
    params = {name: params[name] + updates[name] for name in params}
    rate = float(schedule(step))
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
      gradient = np.cos(expected[name] + step) + decay * expected[name]
      velocity[name] = 0.9 * velocity[name] + gradient
      expected[name] -= rate * (gradient + 0.9 * velocity[name])
  for name in params:
    np.testing.assert_allclose(params[name], expected[name], rtol=1e-4)


def test_adamw_decays_apart_from_the_gradient():
  optimizer = optimizer_lib.make_optimizer(config("optimizer.name=adamw"))
  schedule = optimizer_lib.make_schedule(config())
  params = {"kernel": jnp.array([1.0, -2.0]), "scale": jnp.array([3.0])}
  state = optimizer.init(params)
  expected = {name: np.array(x, np.float64) for name, x in params.items()}
  first = dict.fromkeys(params, 0.0)
  second = dict.fromkeys(params, 0.0)
  for step in range(20):
    gradients = {name: jnp.cos(x + step) for name, x in params.items()}
    updates, state = optimizer.update(gradients, state, params)
    params = {name: params[name] + updates[name] for name in params}
    rate = float(schedule(step))
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
      gradient = np.cos(expected[name] + step)
      first[name] = 0.9 * first[name] + 0.1 * gradient
      second[name] = 0.999 * second[name] + 0.001 * gradient**2
      mean = first[name] / (1 - 0.9 ** (step + 1))
      variance = second[name] / (1 - 0.999 ** (step + 1))
      change = mean / (np.sqrt(variance) + 1e-8) + decay * expected[name]
      expected[name] -= rate * change
  for name in params:
    np.testing.assert_allclose(params[name], expected[name], rtol=1e-4)
