"""RandAugment's operations against Pillow's, and their arguments."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from halonet.data import randaugment as lib
from tests.data.randaugment_reference import (
  REFERENCES,
  REFERENCES_OF,
  cutout,
  photographs,
)
from tests.data.test_randaugment import draw

# From 0 over fractions to the greatest of the papers, and 30, which is a
# rotation by 90 degrees.
TIMM_MAGNITUDES = (0.0, 0.1, 2.4, 5.0, 7.3, 9.0, 9.61, 10.0)
MAGNITUDES = (0.0, 0.1, 2.4, 5.0, 7.3, 10.0, 17.0, 20.0, 24.0, 30.0, 31.0)


def arguments_of(name):
  """From the greatest magnitude to the greatest in the other direction."""
  _, rest, up, down = lib.OPERATIONS[name]
  if up == down == rest:
    return [0.0]
  return [
    *np.linspace(down, rest, 11, dtype=np.float32),
    *np.linspace(rest, up, 11, dtype=np.float32)[1:],
  ]


def assert_equals_pillow(name, images, arguments):
  """Runs an operation within tf.data, whose graphs are rewritten for speed."""
  number = list(lib.OPERATIONS).index(name)
  cases = [(image, value) for image in images for value in arguments]
  kinds = (
    tf.TensorSpec([None, None, 3], tf.uint8),
    tf.TensorSpec([], tf.float32),
  )
  stream = tf.data.Dataset.from_generator(
    lambda: iter(cases), output_signature=kinds
  ).map(
    lambda image, value: lib.apply(
      image, tf.constant(False), tf.constant([number]), value[None]
    )
  )
  for case, actual in zip(cases, stream.as_numpy_iterator(), strict=True):
    expected = REFERENCES[name](Image.fromarray(case[0]), float(case[1]))
    message = f"{name} {case[1]} of {case[0].shape}"
    np.testing.assert_array_equal(actual, np.asarray(expected), message)


@pytest.mark.parametrize("name", lib.OPERATIONS)
def test_operation_equals_pillow(name):
  assert_equals_pillow(name, photographs().values(), arguments_of(name))


@pytest.mark.parametrize("name", ["color", "contrast", "sharpness"])
def test_blends_round_as_pillow_where_levels_are_whole(name):
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  assert_equals_pillow(name, [image], [0.6, 1.1, 1.2, 1.7])


def test_autocontrast_rounds_as_pillow_for_any_range():
  low, high = np.sort(np.random.default_rng(0).integers(256, size=(2, 900)), 0)
  levels = np.linspace(low, high, 256).round().astype(np.uint8)
  images = levels.reshape(16, 16, 300, 3).transpose(2, 0, 1, 3)
  assert_equals_pillow("autocontrast", images, [0.0])


def test_greatest_magnitudes_are_those_of_the_paper():
  turns = {
    "rotate": 30,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
  }
  expected = {name: (0, most, -most) for name, most in turns.items()}
  for name in ("color", "contrast", "brightness", "sharpness"):
    expected[name] = (1, 1.9, 0.1)
  expected |= {"solarize": (256, 0, 0), "posterize": (8, 4, 4)}
  for name in ("identity", "autocontrast", "equalize"):
    expected[name] = (0, 0, 0)
  assert {name: row[1:] for name, row in lib.OPERATIONS.items()} == expected


def tpu_arguments(name, magnitude):
  """What the published code makes of a magnitude, with both signs if random."""
  level = magnitude / 10
  match name:
    case "autocontrast" | "equalize" | "invert":
      return {0.0}
    case "color" | "contrast" | "brightness" | "sharpness":
      return {level * 1.8 + 0.1}
    case "posterize":
      return {float(int(level * 4))}
    case "solarize":
      return {float(int(level * 256))}
    case "cutout":
      return {float(int(level * 40))}
    case "solarize_add":
      return {float(int(level * 110))}
    case "rotate":
      return {level * 30, -level * 30}
    case "shear_x" | "shear_y":
      return {level * 0.3, -level * 0.3}
    case "translate_x" | "translate_y":
      return {level * 100, -level * 100}


def timm_arguments(name, magnitude):
  """What timm makes of a magnitude in "inc1", with both signs if random."""
  level = magnitude / 10
  match name:
    case "autocontrast" | "equalize" | "invert" | "identity":
      return {0.0}
    case "color" | "contrast" | "brightness" | "sharpness":
      return {max(0.1, 1 + level * 0.9), max(0.1, 1 - level * 0.9)}
    case "posterize":
      return {8.0 - (4 - int(level * 4))}  # Bits that are not kept.
    case "solarize":
      return {256.0 - (256 - min(256, int(level * 256)))}  # Below 256.
    case "solarize_add":
      return {float(min(128, int(level * 110)))}
    case "rotate":
      return {level * 30, -level * 30}
    case "shear_x" | "shear_y":
      return {level * 0.3, -level * 0.3}
    case "translate_x" | "translate_y":
      return {level * 0.45, -level * 0.45}


def shapes():
  """Images to transform: square and not, down to single pixels."""
  images = photographs()
  small = {
    "one": images["odd"][:1, :1],
    "row": images["odd"][3:4, :11],
    "tiny": images["odd"][:5, :2],
  }
  large = [images[kind] for kind in ("square", "odd", "uniform")]
  return [*large, *small.values()]


# The corners of the image, and a place within.
PLACES = np.array([(0, 0), (1 - 2**-24, 1 - 2**-24), (0.3, 0.71)], np.float32)


@pytest.mark.parametrize(
  "policy, name",
  [
    (policy, name)
    for policy in ("tpu", "timm")
    for name in lib.POLICIES[policy].operations
  ],
)
def test_operation_equals_its_reference(policy, name):
  number = list(lib.POLICIES[policy].operations).index(name)
  if policy == "tpu":
    values = {x for m in MAGNITUDES for x in tpu_arguments(name, m)}
  else:
    values = {x for m in TIMM_MAGNITUDES for x in timm_arguments(name, m)}
  cases = [
    (image, np.float32(value), place)
    for image in shapes()
    for value in sorted(values)
    for place in (PLACES if name == "cutout" else PLACES[:1])
  ]
  kinds = (
    tf.TensorSpec([None, None, 3], tf.uint8),
    tf.TensorSpec([], tf.float32),
    tf.TensorSpec([2], tf.float32),
  )
  stream = tf.data.Dataset.from_generator(
    lambda: iter(cases), output_signature=kinds
  ).map(
    lambda image, value, place: lib.apply(
      image,
      tf.constant(False),
      tf.constant([number]),
      value[None],
      place[None],
      policy=policy,
    )
  )
  for case, actual in zip(cases, stream.as_numpy_iterator(), strict=True):
    image, value, place = case
    if name == "cutout":
      expected = cutout(image, value, place.tolist())
    else:
      reference = REFERENCES_OF[policy][name]
      expected = reference(Image.fromarray(image), float(value))
    message = f"{name} {value} at {place} of {image.shape}"
    np.testing.assert_array_equal(actual, np.asarray(expected), message)


@pytest.mark.parametrize(
  "policy, magnitude",
  [
    *(("tpu", magnitude) for magnitude in MAGNITUDES),
    *(("timm", magnitude) for magnitude in TIMM_MAGNITUDES),
  ],
)
def test_arguments_are_those_of_the_published_code(policy, magnitude):
  options = dict(layers=2, magnitude=magnitude, magnitude_std=0.0)
  number, value = draw(600, policy=policy, **options)
  names = list(lib.POLICIES[policy].operations)
  found = {name: set(value[number == i]) for i, name in enumerate(names)}
  # Signs that are random are both found: each 18 times on average, or more.
  arguments = {"tpu": tpu_arguments, "timm": timm_arguments}[policy]
  assert found == {
    name: {np.float32(x) for x in arguments(name, magnitude)} for name in names
  }


def test_above_10_solarize_and_from_20_posterize_do_nothing():
  image = photographs()["odd"]
  names = list(lib.TPU_OPERATIONS)

  def result(name, argument):
    return lib.apply(
      image,
      tf.constant(False),
      tf.constant([names.index(name)]),
      tf.constant([argument]),
      tf.zeros([1, 2]),
      policy="tpu",
    )

  for name, last, first in (("solarize", 9.9, 10), ("posterize", 19.9, 20)):
    [weak], [none] = (tpu_arguments(name, m) for m in (last, first))
    assert (result(name, weak) != image).numpy().any()
    for argument in (none, *tpu_arguments(name, 31)):
      np.testing.assert_array_equal(result(name, argument), image)
