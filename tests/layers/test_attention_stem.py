"""The stem of attention against its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from halonet.layers.attention_stem import AttentionStem, MixedStem, MixedValues
from halonet.layers.normalization import BatchNorm


def test_mixed_values_are_those_of_the_formula():
  layer = MixedValues(features=6, block_size=4, mixtures=3)
  x = jax.random.normal(jax.random.key(0), (1, 9, 6, 2))
  variables = layer.init(jax.random.key(1), x)
  params = jax.tree.map(
    lambda x: np.asarray(x, np.float64), variables["params"]
  )
  expected = np.zeros((1, 9, 6, 6))
  for y, x_ in np.ndindex(9, 6):
    place = params["rows"][y % 4] + params["cols"][x_ % 4]
    shares = np.exp(params["mixtures"] @ place)
    shares /= shares.sum()
    matrix = sum(
      share * kernel
      for share, kernel in zip(shares, params["kernel"], strict=True)
    )
    expected[0, y, x_] = np.asarray(x[0, y, x_], np.float64) @ matrix
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("values", ["mixed", "linear", "conv"])
def test_the_stem_is_attention_of_four_heads_in_blocks(values, mask_padding):
  stem = AttentionStem(features=8, values=values, mask_padding=mask_padding)
  x = jax.random.normal(jax.random.key(0), (1, 6, 9, 3))
  variables = stem.init(jax.random.key(1), x)
  params = jax.tree.map(
    lambda x: np.asarray(x, np.float64), variables["params"]
  )
  query, key = (
    np.einsum("byxc,cnd->byxnd", x, params[name]["kernel"])
    for name in ("query", "key")
  )
  if values == "linear":
    value = np.einsum("byxc,cnd->byxnd", x, params["value"]["kernel"])
  else:  # Both have a test, or a library, of their own.
    made = {
      "mixed": MixedValues(8, 4, 4),
      "conv": nn.Conv(8, (3, 3), use_bias=False),
    }
    value = made[values].apply({"params": variables["params"]["value"]}, x)
    value = np.asarray(value, np.float64).reshape(1, 6, 9, 4, 2)
  if not mask_padding:
    widths = (0, 0), (0, 2), (0, 3), (0, 0), (0, 0)
    query, key, value = (np.pad(map_, widths) for map_ in (query, key, value))
  expected = np.zeros((1, 6, 9, 4, 2))
  for row, col, head in np.ndindex(6, 9, 4):
    top, left = row - row % 4, col - col % 4
    place = 0, slice(top, top + 4), slice(left, left + 4), head
    logits = key[place] @ query[0, row, col, head] / math.sqrt(2)
    weights = np.exp(logits) / np.exp(logits).sum()
    expected[0, row, col, head] = np.einsum("yx,yxd->d", weights, value[place])
  np.testing.assert_allclose(
    stem.apply(variables, x), expected.reshape(1, 6, 9, 8), atol=1e-5
  )


@pytest.mark.parametrize(
  # A convolution makes the first value of the next block of it, too, and all
  # of that block attends to it.
  "values, last",
  [("mixed", (7, 7)), ("linear", (7, 7)), ("conv", (9, 8))],
)
def test_the_stem_sees_little_beyond_its_blocks(values, last):
  stem = AttentionStem(features=8, values=values)
  x = jax.random.normal(jax.random.key(0), (1, 10, 9, 3))
  variables = stem.init(jax.random.key(1), x)
  output = stem.apply(variables, x)
  assert output.shape == (1, 10, 9, 8)
  # The last pixel of a block.
  changed = stem.apply(variables, x.at[0, 7, 7].add(1.0)) != output
  rows, cols = np.nonzero(np.asarray(changed).any(axis=-1)[0])
  assert (rows.min(), cols.min()) == (4, 4)
  assert (rows.max(), cols.max()) == last


class Stem(nn.Module):
  @nn.compact
  def __call__(self, x):
    norm = functools.partial(BatchNorm, use_running_average=True)
    return MixedStem()(x, 16, norm, nn.relu)


def test_the_pool_of_the_stem_is_of_its_blocks():
  """Also where the last ones are not whole."""
  images = jax.random.normal(jax.random.key(0), (1, 37, 50, 3))
  before, variables = Stem().init_with_output(jax.random.key(1), images)
  after = Stem().apply(variables, images.at[0, 4, 8].add(9.0))
  assert after.shape == (1, 10, 13, 16)
  rows, cols = np.nonzero(np.asarray(after != before).any(axis=-1)[0])
  assert set(rows) == {1} and set(cols) == {2}


@pytest.mark.parametrize(
  "layer, words",
  [
    (AttentionStem(8, "nonsense"), "values is 'nonsense'; it must be one of"),
    (AttentionStem(6, "linear"), "heads is 4, which does not divide"),
    (MixedValues(8, 4, 0), "mixtures is 0; it must be a whole number"),
  ],
)
def test_impossible_layers_are_named(layer, words):
  with pytest.raises(ValueError, match=words):
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
