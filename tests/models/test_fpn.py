"""The feature pyramid against loops over pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halonet.layers.normalization import BatchNorm
from halonet.models.fpn import FeaturePyramid

NORM = functools.partial(BatchNorm, use_running_average=True)
SIZES = {3: (11, 7), 4: (6, 4), 5: (3, 2)}
WIDTHS = {3: 5, 4: 6, 5: 7}


def draw(operator, features, seed=0):
  """Returns a pyramid, its variables, none of them simple, and its maps."""
  rng = np.random.default_rng(seed)
  pyramid = FeaturePyramid(features, 7, operator, NORM)
  maps = {
    level: jnp.asarray(rng.normal(size=(2, *size, WIDTHS[level])), jnp.float32)
    for level, size in SIZES.items()
  }
  shapes = jax.eval_shape(pyramid.init, jax.random.key(0), maps)
  variables = jax.tree.map(
    lambda x: (
      jnp.asarray(rng.uniform(0.2, 1, x.shape), jnp.float32)
      * jnp.asarray(rng.choice([-1, 1], x.shape) if x.ndim > 1 else 1)
    ),
    shapes,
  )
  return pyramid, variables, maps


def conv_by_loop(x, kernel, bias, stride):
  """A 3×3 convolution of one image, with a border of zeros."""
  height, width = (-(-length // stride) for length in x.shape[:2])
  y = np.tile(bias, (height, width, 1)).astype(np.float64)
  for i, j, a, b in np.ndindex(height, width, 3, 3):
    row, col = i * stride + a - 1, j * stride + b - 1
    if 0 <= row < x.shape[0] and 0 <= col < x.shape[1]:
      y[i, j] += x[row, col] @ kernel[a, b]
  return y


def pyramid_by_loop(variables, maps):
  params, stats = variables["params"], variables["batch_stats"]
  merged = {}
  for level in (5, 4, 3):
    lateral = params[f"lateral{level}"]
    x = maps[level] @ lateral["kernel"] + lateral["bias"]
    if level < 5:
      for i, j in np.ndindex(x.shape[:2]):
        x[i, j] += merged[level + 1][i // 2, j // 2]
    merged[level] = x
  outputs = {}
  for level in range(3, 8):
    conv = params[f"output{level}"]
    x = merged[level] if level <= 5 else outputs[level - 1]
    x = np.maximum(x, 0) if level == 7 else x
    stride = 1 if level <= 5 else 2
    outputs[level] = conv_by_loop(x, conv["kernel"], conv["bias"], stride)
  for level, x in outputs.items():
    norm, now = params[f"norm{level}"], stats[f"norm{level}"]
    x = (x - now["mean"]) / np.sqrt(now["var"] + 1e-5)
    outputs[level] = x * norm["scale"] + norm["bias"]
  return outputs


def test_levels_match_the_loop():
  pyramid, variables, maps = draw("conv", 4)
  actual = jax.jit(pyramid.apply)(variables, maps)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, maps))
  for image in range(2):
    expected = pyramid_by_loop(
      exact[0], {level: x[image] for level, x in exact[1].items()}
    )
    assert list(actual) == list(expected) == [3, 4, 5, 6, 7]
    for level, x in expected.items():
      assert x.shape == actual[level].shape[1:]
      np.testing.assert_allclose(
        actual[level][image], x, rtol=1e-4, atol=1e-4 * np.abs(x).max()
      )


@pytest.mark.parametrize("operator", ["conv", "per_pixel"])
def test_every_level_is_half_of_the_one_before_rounded_up(operator):
  pyramid, variables, maps = draw(operator, 16)
  levels = jax.eval_shape(pyramid.apply, variables, maps)
  assert {level: x.shape for level, x in levels.items()} == {
    3: (2, 11, 7, 16),
    4: (2, 6, 4, 16),
    5: (2, 3, 2, 16),
    6: (2, 2, 1, 16),
    7: (2, 1, 1, 16),
  }
  names = {"conv": "kernel", "per_pixel": "relative_width"}
  assert names[operator] in variables["params"]["output7"]
