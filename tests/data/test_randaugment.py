"""RandAugment: what is drawn, from which seeds, and a training with it."""

import collections
import contextlib
import json

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from halonet import train
from halonet.data import randaugment as lib
from halonet.errors import UsageError
from halonet.parallel import make_mesh
from halonet.tasks.task import make_task
from halonet.training import config as config_lib
from halonet.training.checkpoint import Checkpoints
from halonet.training.config import create_model
from halonet.training.optimizer import make_optimizer
from halonet.training.state import abstract_state, make_init
from halonet.training.workdir import Workdir
from tests.conftest import arguments, losses
from tests.data.randaugment_reference import (
  REFERENCES,
  TIMM_REFERENCES,
  TPU_REFERENCES,
  cutout,
  photographs,
  seeds,
)


def augment(image, count, **options):
  """What `count` seeds make of the image, within tf.data."""
  options = dict(layers=2, magnitude=10.0, magnitude_std=0.0) | options
  stream = tf.data.Dataset.from_tensor_slices(seeds(count)).map(
    lambda seed: lib.randaugment(
      tf.constant(image), seed, flip=seed[0] % 2 == 1, **options
    ),
    num_parallel_calls=2,
  )
  assert stream.element_spec == tf.TensorSpec(image.shape, tf.uint8)
  return list(stream.as_numpy_iterator())


def test_flips_and_then_applies_what_is_drawn():
  image = photographs()["odd"]
  options = dict(layers=2, magnitude=7.0, magnitude_std=0.5)
  names = list(lib.OPERATIONS)
  for seed, actual in enumerate(augment(image, 30, **options)):
    expected = Image.fromarray(image)
    if seed % 2 == 1:
      expected = ImageOps.mirror(expected)
    drawn = lib.draw(tf.constant([seed, 7]), **options)
    for number, value in zip(*drawn, strict=True):
      expected = REFERENCES[names[number]](expected, float(value))
    np.testing.assert_array_equal(actual, np.asarray(expected), f"{drawn}")


def test_rounds_to_the_nearest_level():
  levels = np.array([0, 0.4, 0.6, 7.51, 254.4, 255], np.float32)
  image = levels.reshape(1, 2, 3)
  [result] = augment(image, 1, layers=0)
  np.testing.assert_array_equal(result.ravel(), [0, 0, 1, 8, 254, 255])


def test_results_follow_from_the_seed():
  image = photographs()["odd"]
  first, second = augment(image, 20), augment(image, 20)
  np.testing.assert_array_equal(first, second)
  assert len({result.tobytes() for result in first}) > 15


def test_no_layers_only_flip():
  image = photographs()["odd"]
  for seed, result in enumerate(augment(image, 4, layers=0)):
    expected = image[:, ::-1] if seed % 2 == 1 else image
    np.testing.assert_array_equal(result, expected)


def test_images_of_unknown_size():
  image = photographs()["odd"]
  options = dict(layers=2, magnitude=5.0, magnitude_std=0.5)
  known = augment(image, 10, **options)
  stream = tf.data.Dataset.from_generator(
    lambda: ((image, seed) for seed in seeds(10)),
    output_signature=(
      tf.TensorSpec([None, None, 3], tf.uint8),
      tf.TensorSpec([2], tf.int32),
    ),
  ).map(
    lambda image, seed: lib.randaugment(
      image, seed, flip=seed[0] % 2 == 1, **options
    )
  )
  np.testing.assert_array_equal(list(stream.as_numpy_iterator()), known)


def draw(count, **options):
  """The operations of `count` seeds: places and numbers `[count, layers]`."""
  stream = tf.data.Dataset.from_tensor_slices(seeds(count)).map(
    lambda seed: lib.draw(seed, **options)
  )
  return map(np.stack, zip(*stream.as_numpy_iterator(), strict=True))


def test_operations_are_drawn_uniformly_and_independently():
  number, value = draw(4200, layers=2, magnitude=10.0, magnitude_std=0.0)
  assert number.shape == value.shape == (4200, 2)
  kinds = len(lib.OPERATIONS)
  assert kinds == 14
  for layer in range(2):
    counts = collections.Counter(number[:, layer])
    assert sorted(counts) == list(range(kinds))
    # 300 of each on average, and six standard deviations.
    assert max(abs(count - 300) for count in counts.values()) < 100
  pairs = number[:, 0] * kinds + number[:, 1]
  assert len(set(pairs)) == kinds**2
  rotations = value[number == list(lib.OPERATIONS).index("rotate")]
  np.testing.assert_allclose(abs(rotations), 30)
  assert abs(np.sign(rotations).mean()) < 0.2


def test_noise_on_the_magnitude_is_cut_to_its_range():
  number, value = draw(3000, layers=2, magnitude=8.0, magnitude_std=1.0)
  degrees = abs(value[number == list(lib.OPERATIONS).index("rotate")])
  assert degrees.max() == pytest.approx(30)
  assert np.median(degrees) == pytest.approx(24, abs=0.6)
  # In a standard normal, 84 % lie below 1 and 2.3 % above 2.
  assert np.quantile(degrees, 0.16) == pytest.approx(21, abs=0.9)
  assert 0.003 < (degrees > 29.999).mean() < 0.06


# ----------------------------------------------------------- the policy "tpu"


def test_tpu_operations_signs_and_places_are_uniform_and_independent():
  options = dict(layers=2, magnitude=10.0, magnitude_std=0.0)
  number, value = draw(4800, policy="tpu", **options)
  places = np.stack(
    [lib.draw_places(seed, layers=2).numpy() for seed in seeds(4800)]
  )
  assert places.shape == (4800, 2, 2)
  names = list(lib.TPU_OPERATIONS)
  assert len(names) == 16
  for layer in range(2):
    counts = np.bincount(number[:, layer], minlength=16)
    # 300 of each on average, and six standard deviations.
    assert counts.shape == (16,) and abs(counts - 300).max() < 100
  assert len(set(number[:, 0] * 16 + number[:, 1])) == 256
  for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
    # 600 fair coins: the mean's standard deviation is 0.04.
    assert abs(np.sign(value[number == names.index(name)]).mean()) < 0.24
  # Quarters of height and width, over all and where Cutout was drawn.
  for chosen, expected in (
    (places.reshape(-1, 2), 600),
    (places[number == names.index("cutout")], 600 / 16),
  ):
    quarters = (chosen * 4).astype(int)
    counts = np.bincount(quarters[:, 0] * 4 + quarters[:, 1], minlength=16)
    assert counts.shape == (16,)
    assert abs(counts - expected).max() < 6 * expected**0.5
  # Two layers have places of their own.
  assert abs(np.corrcoef(places.reshape(-1, 4).T) - np.eye(4)).max() < 0.08


def test_tpu_flips_and_then_applies_what_is_drawn():
  image = photographs()["odd"]
  options = dict(policy="tpu", layers=2, magnitude=17.0, magnitude_std=2.0)
  names = list(lib.TPU_OPERATIONS)
  seen = set()
  for seed, actual in enumerate(augment(image, 60, **options)):
    expected = image[:, ::-1] if seed % 2 == 1 else image
    pair = tf.constant([seed, 7])
    drawn = lib.draw(pair, **options)
    places = lib.draw_places(pair, layers=2).numpy()
    for number, value, place in zip(*drawn, places, strict=True):
      name, value = names[number], float(value)
      if name == "cutout":
        expected = cutout(expected, value, place.tolist())
      else:
        expected = TPU_REFERENCES[name](Image.fromarray(expected), value)
      expected = np.asarray(expected)
      seen.add(name)
    np.testing.assert_array_equal(actual, expected, f"{drawn}")
  assert seen == set(names)


def test_tpu_results_follow_from_the_seed_whatever_the_order():
  image = photographs()["odd"]
  options = dict(policy="tpu", layers=2, magnitude=31.0)
  first, second = augment(image, 20, **options), augment(image, 20, **options)
  np.testing.assert_array_equal(first, second)
  assert len({result.tobytes() for result in first}) > 15
  np.testing.assert_array_equal(first[:5], augment(image, 5, **options))


def test_tpu_noise_is_cut_at_zero_alone():
  names = list(lib.TPU_OPERATIONS)

  def degrees(magnitude):
    number, value = draw(
      3000, policy="tpu", layers=2, magnitude=magnitude, magnitude_std=1.0
    )
    return abs(value[number == names.index("rotate")])

  high = degrees(10.0) / 3
  assert np.median(high) == pytest.approx(10, abs=0.25)
  # In a standard normal, 84 % lie below 1 and 16 % above it.
  assert np.quantile(high, [0.16, 0.84]) == pytest.approx([9, 11], abs=0.35)
  low = degrees(0.0) / 3
  assert 0.4 < (low == 0).mean() < 0.6 and low.max() > 1.5


# ---------------------------------------------------------- the policy "timm"

# What timm calls rand-m9-mstd0.5-inc1.
RECIPE = dict(policy="timm", layers=2, magnitude=9.0, magnitude_std=0.5)


def test_timm_applies_each_operation_with_a_probability_of_one_half():
  number, value = draw(4500, **RECIPE)
  names = list(lib.TIMM_OPERATIONS)
  assert len(names) == 16 and names[-1] == "identity"
  for layer in range(2):
    counts = np.bincount(number[:, layer], minlength=16)
    # Half of 4500 and six standard deviations; 150 of each other one.
    assert abs(counts[15] - 2250) < 6 * 1125**0.5
    assert counts.shape == (16,) and abs(counts[:15] - 150).max() < 6 * 150**0.5
  # Layers are independent: in a quarter of the images nothing is applied.
  nothing = (number == 15).all(1).sum()
  assert abs(nothing - 1125) < 6 * (4500 * 3 / 16) ** 0.5
  for name in ("rotate", "color", "shear_x", "shear_y", "translate_x"):
    chosen = value[number == names.index(name)] - (name == "color")
    # 300 fair coins: the mean's standard deviation is 0.06.
    assert abs(np.sign(chosen).mean()) < 0.36


def test_timm_draws_a_magnitude_for_each_operation():
  number, value = draw(9000, **RECIPE)
  names = list(lib.TIMM_OPERATIONS)
  magnitudes = abs(value[number == names.index("rotate")]) / 3
  assert np.median(magnitudes) == pytest.approx(9, abs=0.15)
  # In a standard normal, 16 % lie below -1; 2.3 % above 2 are cut to 10.
  assert np.quantile(magnitudes, 0.16) == pytest.approx(8.5, abs=0.15)
  assert magnitudes.max() == pytest.approx(10)
  assert 0.003 < (magnitudes > 9.9999).mean() < 0.06
  # Seven of the eight bits go from 7.5 on, and all at 10.
  dropped = value[number == names.index("posterize")]
  assert set(dropped) <= {6, 7, 8} and {7, 8} <= set(dropped)


def test_timm_flips_and_then_applies_what_is_drawn():
  image = photographs()["odd"]
  names = list(lib.TIMM_OPERATIONS)
  seen = set()
  for seed, actual in enumerate(augment(image, 120, **RECIPE)):
    expected = Image.fromarray(image[:, ::-1] if seed % 2 == 1 else image)
    drawn = lib.draw(tf.constant([seed, 7]), **RECIPE)
    for number, value in zip(*drawn, strict=True):
      result = TIMM_REFERENCES[names[number]](expected, float(value))
      expected = Image.fromarray(np.asarray(result))
      seen.add(names[number])
    np.testing.assert_array_equal(actual, np.asarray(expected), f"{drawn}")
  assert seen == set(names)


@pytest.fixture
def train_digits(run_main, data_dir, tmp_path):
  """Returns a function that trains with RandAugment: parameters and losses."""

  def run(name, policy):
    words = arguments(
      data_dir,
      tmp_path / name,
      "steps=2",
      "optimizer.warmup_steps=1",
      "ema_decay=0",
      "model.depths=(1,)",
      "model.heads=(2,)",
      "data.randaugment_layers=2",
      "data.randaugment_magnitude=9",
      f"data.randaugment_policy={policy}",
    )
    code, _, complaint = run_main(train.main, *words)
    assert code == 0, complaint
    workdir = Workdir(str(tmp_path / name))
    config, mesh = workdir.config(), make_mesh()
    model = create_model(config, make_task(config, workdir.metadata()))
    init = make_init(model, make_optimizer(config), config, mesh)
    checkpoints = Checkpoints(workdir.checkpoints, "accuracy")
    with contextlib.closing(checkpoints):
      state = checkpoints.restore(2, abstract_state(init, mesh))
    return jax.tree.leaves(state), losses(tmp_path / name)

  return run


def test_a_training_with_it_has_the_same_bits_again(train_digits):
  runs = [
    train_digits(name, policy)
    for name, policy in (("a", "tpu"), ("b", "tpu"), ("c", "autoaugment"))
  ]
  for one, same in zip(runs[0][0], runs[1][0], strict=True):
    np.testing.assert_array_equal(one, same)
  assert runs[0][1] == runs[1][1]
  # Another policy is another training, from the first step on.
  assert sorted(runs[0][1]) == [1, 2]
  assert all(runs[0][1][step] != runs[2][1][step] for step in (1, 2))


def test_a_magnitude_above_10_needs_the_policy_that_has_it(small_config):
  message = (
    "config.data.randaugment_magnitude is 10.5; it must be at most 10, or"
    " config.data.randaugment_policy must be tpu"
  )
  for policy in ("autoaugment", "timm"):
    with pytest.raises(UsageError, match=message):
      small_config(
        "data.randaugment_magnitude=10.5", f"data.randaugment_policy={policy}"
      )
  data = small_config(
    "data.randaugment_magnitude=31", "data.randaugment_policy=tpu"
  ).data
  assert (data.randaugment_magnitude, data.randaugment_policy) == (31, "tpu")


def test_an_old_config_has_the_old_policy(small_config):
  values = small_config("data.randaugment_policy=tpu").to_dict()
  del values["data"]["randaugment_policy"]
  config = config_lib.from_json(json.dumps(values))
  assert config.data.randaugment_policy == "autoaugment"
