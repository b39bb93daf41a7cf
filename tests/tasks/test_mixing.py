"""Mixup and CutMix: what is drawn, and mixing on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from halonet.parallel import batch_sharding, make_mesh
from halonet.tasks.mixing import draw_mix, mix

SIZE = 64
ROWS, SIDE, CLASSES = 16, 12, 5


def draw(pairs, mixup, cutmix, first=0):
  """Draws shares `[pairs]` and boxes `[pairs, 4]`."""
  seeds = tf.stack([tf.range(first, first + pairs), tf.fill([pairs], 5)], -1)
  drawn = tf.function(draw_mix)(seeds, SIZE, mixup, cutmix)
  share, box = drawn["mix_share"].numpy(), drawn["mix_box"].numpy()
  assert share.shape == (2 * pairs,) and share.dtype == np.float32
  assert box.shape == (2 * pairs, 4) and box.dtype == np.int32
  np.testing.assert_array_equal(share[::2], share[1::2])
  np.testing.assert_array_equal(box[::2], box[1::2])
  return share[::2], box[::2]


@pytest.mark.parametrize("alpha", [0.02, 0.2, 1.0, 4.0])
def test_mixup_shares_have_a_beta_distribution(alpha):
  share, box = draw(2000, alpha, 0.0)
  assert (box == 0).all()
  assert ((share >= 0) & (share <= 1)).all()
  for x in (1e-5, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
    expected = scipy.stats.beta(alpha, alpha).cdf(x)
    assert (share < x).mean() == pytest.approx(expected, abs=0.05)


def test_cutmix_boxes_lie_in_the_image_and_have_the_rest_of_the_share():
  share, box = draw(2000, 0.0, 1.0)
  top, left, bottom, right = box.T
  assert box.min() == 0 and box.max() == SIZE
  assert ((top <= bottom) & (left <= right)).all()
  area = (bottom - top) * (right - left) / SIZE**2
  np.testing.assert_allclose(share, 1 - area, atol=1e-6)
  # Boxes that no border cuts are squares with sides √(1 − λ), λ uniform.
  free = (top > 0) & (left > 0) & (bottom < SIZE) & (right < SIZE)
  np.testing.assert_array_equal((bottom - top)[free], (right - left)[free])
  # The same drawn by NumPy.
  rng = np.random.default_rng(0)
  half = (np.sqrt(rng.uniform(size=20_000)) * SIZE).astype(int) // 2
  sides = []
  for centre in rng.integers(SIZE, size=(2, 20_000)):
    ends = np.clip([centre - half, centre + half], 0, SIZE)
    sides.append(ends[1] - ends[0])
  expected = sides[0] * sides[1] / SIZE**2
  assert scipy.stats.ks_2samp(area, expected).statistic < 0.045


def test_a_fair_coin_decides_between_both():
  share, box = draw(2000, 0.2, 1.0)
  cut = box.any(-1)
  # Some boxes are empty, with sides below a pixel or two.
  assert 0.44 < cut.mean() < 0.56
  edges = np.minimum(share, 1 - share)
  assert np.median(edges[~cut]) < 0.1  # Beta(0.2, 0.2) prefers 0 and 1.
  assert np.median(edges[cut]) > 0.12


def test_draws_follow_from_each_pair_s_own_seed():
  share, box = draw(12, 0.2, 1.0)
  again_share, again_box = draw(5, 0.2, 1.0, first=7)
  np.testing.assert_array_equal(share[7:], again_share)
  np.testing.assert_array_equal(box[7:], again_box)
  assert len(set(share.tolist())) > 8


# ---------------------------------------------------------- on the devices


def batch(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(ROWS, SIDE, SIDE, 3))
  targets = rng.dirichlet(np.ones(CLASSES), ROWS)
  share = np.repeat(rng.uniform(size=ROWS // 2), 2)
  boxes = [
    [0, 0, 0, 0],
    [2, 3, 9, 5],
    [0, 0, SIDE, SIDE],
    [4, 0, 4, 9],  # Empty.
    [0, 7, 5, SIDE],
    [0, 0, 0, 0],
    [11, 11, 12, 12],
    [3, 6, 8, 6],  # Empty.
  ]
  box = np.repeat(np.array(boxes, np.int32), 2, 0)
  return (
    jnp.asarray(images, dtype),
    jnp.asarray(targets, jnp.float32),
    jnp.asarray(share, jnp.float32),
    jnp.asarray(box),
  )


def loop(images, targets, share, box):
  images, targets, share = (
    np.asarray(x, np.float64) for x in (images, targets, share)
  )
  mixed, mixed_targets = images.copy(), targets.copy()
  for own in range(len(images)):
    other = own + 1 if own % 2 == 0 else own - 1
    part = share[own]
    mixed_targets[own] = part * targets[own] + (1 - part) * targets[other]
    top, left, bottom, right = box[own]
    if (bottom - top) * (right - left) > 0:
      cut = np.s_[top:bottom, left:right]
      mixed[own][cut] = images[other][cut]
    else:
      mixed[own] = part * images[own] + (1 - part) * images[other]
  return mixed, mixed_targets


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)]
)
def test_equals_a_loop_over_images(dtype, tolerance):
  arrays = batch(dtype)
  images, targets = jax.jit(mix)(*arrays)
  assert images.dtype == dtype and targets.dtype == jnp.float32
  expected, expected_targets = loop(*arrays)
  actual = np.asarray(images, np.float64)
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


def test_the_whole_share_changes_no_bit():
  images, targets, share, box = batch()
  mixed = mix(images, targets, jnp.ones_like(share), jnp.zeros_like(box))
  np.testing.assert_array_equal(mixed[0], images)
  np.testing.assert_array_equal(mixed[1], targets)


def test_devices_mix_without_communication():
  sharding = batch_sharding(make_mesh())
  arrays = batch()
  compiled = (
    jax.jit(mix, in_shardings=sharding, out_shardings=sharding)
    .lower(*arrays)
    .compile()
  )
  for collective in ("all-", "collective-permute", "reduce-scatter"):
    assert collective not in compiled.as_text()
  actual = compiled(*jax.device_put(arrays, sharding))
  for one, eight in zip(mix(*arrays), actual, strict=True):
    np.testing.assert_allclose(one, eight, atol=1e-6)
