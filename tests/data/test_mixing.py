"""What is drawn for mixup and CutMix."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from halonet.data.mixing import draw_mix

SIZE = 64


def seeds(pairs, first=0):
  return tf.stack([tf.range(first, first + pairs), tf.fill([pairs], 5)], -1)


def draw(pairs, mixup, cutmix, first=0):
  """Shares `[pairs]` and boxes `[pairs, 4]`, the same for both of a pair."""
  drawn = tf.function(draw_mix)(seeds(pairs, first), SIZE, mixup, cutmix)
  share, box = drawn["mix_share"].numpy(), drawn["mix_box"].numpy()
  assert share.shape == (2 * pairs,)
  assert share.dtype == np.float32
  assert box.shape == (2 * pairs, 4)
  assert box.dtype == np.int32
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
  assert box.min() == 0
  assert box.max() == SIZE
  assert ((top <= bottom) & (left <= right)).all()
  area = (bottom - top) * (right - left) / SIZE**2
  np.testing.assert_allclose(share, 1 - area, atol=1e-6)
  # Boxes that no border cuts are squares with sides √(1 − λ), λ uniform.
  free = (top > 0) & (left > 0) & (bottom < SIZE) & (right < SIZE)
  np.testing.assert_array_equal((bottom - top)[free], (right - left)[free])
  # As numpy draws them.
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
  # Some boxes are empty: √(1 − λ) below a pixel or two.
  assert 0.44 < cut.mean() < 0.56
  edges = np.minimum(share, 1 - share)
  assert np.median(edges[~cut]) < 0.1  # Beta(0.2, 0.2) is drawn to 0 and 1.
  assert np.median(edges[cut]) > 0.12


def test_draws_follow_from_each_pair_s_own_seed():
  share, box = draw(12, 0.2, 1.0)
  again_share, again_box = draw(5, 0.2, 1.0, first=7)
  np.testing.assert_array_equal(share[7:], again_share)
  np.testing.assert_array_equal(box[7:], again_box)
  assert len(set(share.tolist())) > 8
