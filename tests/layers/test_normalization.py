"""Batch norm against a float64 loop over groups, and against Flax's own."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import strategies as st

from halonet.layers.normalization import BatchNorm

EPSILON = 1e-5


def draw(shape, seed=0):
  """Input, gradient of the output, parameters, running statistics."""
  rng = np.random.default_rng(seed)
  x = rng.normal(rng.normal(size=shape[-1]), 1 + rng.uniform(), shape)
  mean, bias = rng.normal(size=(2, shape[-1]))
  var, scale = rng.uniform(0.5, 2, size=(2, shape[-1]))
  drawn = (
    x,
    rng.normal(size=shape),
    {
      "params": {"scale": scale, "bias": bias},
      "batch_stats": {"mean": mean, "var": var},
    },
  )
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)


def run(layer, variables, x, cotangent):
  """Output, updated statistics, gradients of the parameters and of x."""

  def forward(params, x):
    y, updates = layer.apply(
      variables | {"params": params}, x, mutable=["batch_stats"]
    )
    return (y * cotangent).sum(), (y, updates["batch_stats"])

  gradient = jax.jit(jax.grad(forward, argnums=(0, 1), has_aux=True))
  gradients, (y, stats) = gradient(variables["params"], x)
  return y, stats, *gradients


def reference(x, cotangent, variables, group, momentum):
  """The same in float64, one group and one channel after the other."""
  x, cotangent, variables = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float64), (x, cotangent, variables)
  )
  scale, bias = variables["params"]["scale"], variables["params"]["bias"]
  y, dx = np.zeros_like(x), np.zeros_like(x)
  dscale, dbias = np.zeros_like(scale), np.zeros_like(bias)
  means, variances = [], []
  for first in range(0, len(x), group):
    rows = slice(first, first + group)
    for c in range(x.shape[-1]):
      values, g = x[rows, ..., c], cotangent[rows, ..., c]
      deviation = np.sqrt(values.var() + EPSILON)
      normal = (values - values.mean()) / deviation
      y[rows, ..., c] = normal * scale[c] + bias[c]
      dx[rows, ..., c] = (
        scale[c] / deviation * (g - g.mean() - normal * (g * normal).mean())
      )
      dscale[c] += (g * normal).sum()
      dbias[c] += g.sum()
    means.append(x[rows].mean(axis=(0, 1, 2)))
    variances.append(x[rows].var(axis=(0, 1, 2)))
  stats = {
    name: momentum * old + (1 - momentum) * np.mean(new, axis=0)
    for (name, old), new in zip(
      variables["batch_stats"].items(), (means, variances), strict=True
    )
  }
  return y, stats, {"scale": dscale, "bias": dbias}, dx


def dtypes(tree):
  return jax.tree.map(lambda leaf: leaf.dtype, tree)


def assert_close(actual, expected, rtol=1e-5, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    actual,
    expected,
  )


@hypothesis.settings(max_examples=12)
@hypothesis.given(
  groups=st.integers(1, 3),
  group=st.integers(1, 4),
  sides=st.sampled_from([(2, 3), (5, 1)]),
  channels=st.integers(1, 3),
  momentum=st.sampled_from([0.0, 0.9, 0.9999]),
)
def test_each_group_is_normalised_by_itself(
  groups, group, sides, channels, momentum
):
  x, cotangent, variables = draw((groups * group, *sides, channels))
  layer = BatchNorm(use_running_average=False, group=group, momentum=momentum)
  assert_close(
    run(layer, variables, x, cotangent),
    reference(x, cotangent, variables, group, momentum),
    atol=1e-4,
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_running_average", [False, True])
def test_without_groups_it_is_flaxs(dtype, use_running_average):
  x, cotangent, variables = draw((6, 4, 5, 3))
  x = x.astype(dtype)
  options = dict(
    use_running_average=use_running_average, momentum=0.9, dtype=dtype
  )
  ours = run(BatchNorm(**options), variables, x, cotangent)
  flaxs = run(nn.BatchNorm(epsilon=EPSILON, **options), variables, x, cotangent)
  assert dtypes(ours) == dtypes(flaxs)
  assert_close(ours[1], flaxs[1])
  # Flax rounds the two terms of a gradient before it adds them.
  eps = 2 * float(jnp.finfo(dtype).eps)
  assert_close(ours, flaxs, rtol=eps, atol=max(eps, 1e-5))


def test_variables_are_drawn_as_flaxs():
  x = jnp.ones((1, 2, 2, 3))
  ours = BatchNorm(use_running_average=False, group=8).init(
    jax.random.key(0), x
  )
  flaxs = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
  assert jax.tree.structure(ours) == jax.tree.structure(flaxs)
  assert_close(ours, flaxs, 0, 0)


def test_statistics_of_bfloat16_are_float32():
  # In bfloat16 a sum of 4,096 ones stops growing at 256.
  x = jnp.ones((4, 32, 32, 1), jnp.bfloat16)
  layer = BatchNorm(False, momentum=0.0, dtype=jnp.bfloat16)
  variables = layer.init(jax.random.key(0), x)
  y, updates = layer.apply(variables, x, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert updates["batch_stats"]["mean"] == 1.0


def test_a_mean_far_from_zero_costs_no_digits():
  x, cotangent, variables = draw((4, 16, 16, 2))
  x += 3000.0  # Its square has no digit left for a variance of one.
  variables["batch_stats"]["mean"] += 3000.0
  y, *_ = run(BatchNorm(False, group=2), variables, x, cotangent)
  expected = reference(x, cotangent, variables, 2, 0.9)[0]
  assert_close(y, expected, rtol=1e-3, atol=1e-3)


def test_frozen_statistics_stay():
  x, _, variables = draw((4, 3, 3, 2))
  y = BatchNorm(False, group=2).apply(variables, x)
  updated, _ = BatchNorm(False, group=2).apply(
    variables, x, mutable=["batch_stats"]
  )
  assert_close(y, updated, 0, 0)


def test_a_group_that_does_not_divide_the_batch():
  x, _, variables = draw((6, 3, 3, 2))
  with pytest.raises(ValueError, match="batch_norm_group is 4.* batch of 6"):
    BatchNorm(False, group=4).apply(variables, x)
  BatchNorm(True, group=4).apply(variables, x)  # Evaluation has no groups.
