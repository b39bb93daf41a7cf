"""RandAugment: every operation against Pillow's, and how they are drawn."""

import collections

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from halonet.data import randaugment as lib

GREY = (128, 128, 128)


def photographs():
  """Crops of two photographs: odd, not square, grey, dull, one-coloured."""
  china, flower = sklearn.datasets.load_sample_images().images
  grey = Image.fromarray(flower[100:164, 200:264]).convert("L").convert("RGB")
  return {
    "square": china[100:292, 200:392],
    "odd": flower[51:150, 301:374],
    "grey": np.asarray(grey),
    "dull": china[300:364, 100:164] // 4 + 90,
    "uniform": np.full((9, 12, 3), (3, 200, 77), np.uint8),
  }


def affine(matrix):
  """Pillow's transform by the matrix that an image and an argument give."""

  def transform(image, argument):
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix(image, argument),
      Image.Resampling.NEAREST,
      fillcolor=GREY,
    )

  return transform


REFERENCES = {
  "identity": lambda image, _: image,
  "autocontrast": lambda image, _: ImageOps.autocontrast(image),
  "equalize": lambda image, _: ImageOps.equalize(image),
  "rotate": lambda image, degrees: image.rotate(degrees, fillcolor=GREY),
  "solarize": ImageOps.solarize,
  "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
  "posterize": lambda image, bits: ImageOps.posterize(image, round(bits)),
  "contrast": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
  "brightness": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
  "sharpness": lambda image, f: ImageEnhance.Sharpness(image).enhance(f),
  "shear_x": affine(lambda image, factor: (1, factor, 0, 0, 1, 0)),
  "shear_y": affine(lambda image, factor: (1, 0, 0, factor, 1, 0)),
  "translate_x": affine(lambda i, share: (1, 0, share * i.width, 0, 1, 0)),
  "translate_y": affine(lambda i, share: (1, 0, 0, 0, 1, share * i.height)),
}


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


def seeds(count):
  return tf.stack([tf.range(count), tf.fill([count], 7)], -1)


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
  # Of a standard normal, 84 % lie below 1 and 2.3 % above 2.
  assert np.quantile(degrees, 0.16) == pytest.approx(21, abs=0.9)
  assert 0.003 < (degrees > 29.999).mean() < 0.06
