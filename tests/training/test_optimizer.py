"""The optimizer against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.training import optimizer as optimizer_lib
from halonet.training.config import load_config


def config(*overrides):
  return load_config(
    "configs/digits.py",
    [
      "steps=100",
      "batch_size=256",
      "optimizer.warmup_steps=10",
      "optimizer.learning_rate=0.5",
      "optimizer.weight_decay=0.01",
      *overrides,
    ],
  )


@pytest.mark.parametrize("final", [0.0, 1 / 128, 1.0])
def test_schedule_is_linear_then_a_cosine(final):
  """The cosine ends at a share of the peak, 0.5."""
  schedule = optimizer_lib.make_schedule(
    config(f"optimizer.final_learning_rate_ratio={final}")
  )
  steps = np.arange(101)
  falling = 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90))
  cosine = 0.5 * (final + (1 - final) * falling)
  expected = np.where(steps < 10, 0.05 * steps, cosine)
  actual = np.array([schedule(step) for step in steps])
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_learning_rate_is_for_256_images():
  rates = [
    optimizer_lib.make_schedule(config(f"batch_size={size}"))(10)
    for size in (32, 256, 4096)
  ]
  np.testing.assert_allclose(rates, [0.5 / 8, 0.5, 8.0], rtol=1e-6)


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


@pytest.mark.parametrize(
  "name, tables",
  [
    ("slide_swin_tiny", {"offset_table", "fixed_bias", "relative_bias"}),
    ("slide_pvt_tiny", {"offset_table", "class_token", "stage1_positions"}),
  ],
)
def test_decay_spares_tables_positions_and_tokens(name, tables):
  model = halonet.create_model(name)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  mask = optimizer_lib.is_decayed(variables["params"])
  decayed = {path[-1].key for path, is_decayed in leaves(mask) if is_decayed}
  spared = {path[-1].key for path, is_decayed in leaves(mask) if not is_decayed}
  assert decayed == {"kernel"}
  assert spared >= {"scale", "bias"} | tables


def leaves(tree):
  return jax.tree_util.tree_leaves_with_path(tree)


def descend(optimizer, gradient_of, steps):
  """Parameters after some steps, as float32 leaves them."""
  params = {"kernel": jnp.array([1.0, -2.0]), "scale": jnp.array([3.0])}
  state = optimizer.init(params)
  for step in range(steps):
    gradients = {name: gradient_of(x, step) for name, x in params.items()}
    updates, state = optimizer.update(gradients, state, params)
    params = {name: params[name] + updates[name] for name in params}
  return params


def wave(x, step):
  return jnp.cos(x + step)


def sgd(gradient_of, clip_norm=np.inf):
  """Twenty steps of Nesterov's method from its formulas, in float64."""
  schedule = optimizer_lib.make_schedule(config())
  params = {"kernel": np.array([1.0, -2.0]), "scale": np.array([3.0])}
  velocity = dict.fromkeys(params, 0.0)
  for step in range(20):
    rate = float(schedule(step))
    gradients = {name: gradient_of(x, step) for name, x in params.items()}
    norm = np.sqrt(sum((x**2).sum() for x in gradients.values()))
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
      gradient = gradients[name] * min(1, clip_norm / norm)
      gradient = gradient + decay * params[name]
      velocity[name] = 0.9 * velocity[name] + gradient
      params[name] = params[name] - rate * (gradient + 0.9 * velocity[name])
  return params


def close(actual, expected):
  for name in expected:
    np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4)


def test_sgd_is_nesterov_with_decay():
  optimizer = optimizer_lib.make_optimizer(config())
  close(descend(optimizer, wave, 20), sgd(lambda x, step: np.cos(x + step)))


def test_clipping_is_by_the_norm_of_all_gradients_before_decay():
  # The norm is between about 0.7 and 1.7: some steps are clipped, some not.
  optimizer = optimizer_lib.make_optimizer(config("optimizer.clip_norm=1.2"))
  clipped = sgd(lambda x, step: np.cos(x + step), clip_norm=1.2)
  free = sgd(lambda x, step: np.cos(x + step))
  close(descend(optimizer, wave, 20), clipped)
  assert abs(clipped["kernel"] - free["kernel"]).max() > 0.1


def test_adamw_decays_apart_from_the_gradient():
  optimizer = optimizer_lib.make_optimizer(config("optimizer.name=adamw"))
  schedule = optimizer_lib.make_schedule(config())
  expected = {"kernel": np.array([1.0, -2.0]), "scale": np.array([3.0])}
  first = dict.fromkeys(expected, 0.0)
  second = dict.fromkeys(expected, 0.0)
  for step in range(20):
    rate = float(schedule(step))
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
      gradient = np.cos(expected[name] + step)
      first[name] = 0.9 * first[name] + 0.1 * gradient
      second[name] = 0.999 * second[name] + 0.001 * gradient**2
      mean = first[name] / (1 - 0.9 ** (step + 1))
      variance = second[name] / (1 - 0.999 ** (step + 1))
      change = mean / (np.sqrt(variance) + 1e-8) + decay * expected[name]
      expected[name] = expected[name] - rate * change
  close(descend(optimizer, wave, 20), expected)
