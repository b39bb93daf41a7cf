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
  "identity": lambda image: image,
  "autocontrast": ImageOps.autocontrast,
  "equalize": ImageOps.equalize,
  "rotate": lambda image, degrees: image.rotate(degrees, fillcolor=GREY),
  "solarize": ImageOps.solarize,
  "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
  "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
  "contrast": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
  "brightness": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
  "sharpness": lambda image, f: ImageEnhance.Sharpness(image).enhance(f),
  "shear_x": affine(lambda image, factor: (1, factor, 0, 0, 1, 0)),
  "shear_y": affine(lambda image, factor: (1, 0, 0, factor, 1, 0)),
  "translate_x": affine(lambda i, share: (1, 0, share * i.width, 0, 1, 0)),
  "translate_y": affine(lambda i, share: (1, 0, 0, 0, 1, share * i.height)),
}


def strengths_to_arguments(name):
  """Arguments from the greatest magnitude to the greatest in reverse."""
  argument = lib.OPERATIONS[name][1]
  if argument is None:
    return None
  strengths = np.linspace(-1, 1, 21, dtype=np.float32)
  return [float(argument(tf.constant(strength))) for strength in strengths]


def assert_equals_pillow(name, images, arguments=None):
  """Runs an operation within tf.data, whose graphs are rewritten for speed."""
  operation, reference = lib.OPERATIONS[name][0], REFERENCES[name]
  cases = [
    (image, *((argument,) if arguments else ()))
    for image in images
    for argument in arguments or [None]
  ]
  kinds = [tf.TensorSpec([None, None, 3], tf.uint8)]
  kinds += [tf.TensorSpec([], tf.float32)] if arguments else []
  stream = tf.data.Dataset.from_generator(
    lambda: iter(cases), output_signature=tuple(kinds)
  ).map(operation)
  for case, actual in zip(cases, stream.as_numpy_iterator(), strict=True):
    expected = reference(Image.fromarray(case[0]), *case[1:])
    message = f"{name}{case[1:]} of {case[0].shape}"
    np.testing.assert_array_equal(actual, np.asarray(expected), message)


@pytest.mark.parametrize("name", lib.OPERATIONS)
def test_operation_equals_pillow(name):
  images = photographs().values()
  assert_equals_pillow(name, images, strengths_to_arguments(name))


@pytest.mark.parametrize("name", ["color", "contrast", "sharpness"])
def test_blends_round_as_pillow_where_levels_are_whole(name):
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  assert_equals_pillow(name, [image], [0.6, 1.1, 1.2, 1.7])


def test_autocontrast_rounds_as_pillow_for_any_range():
  low, high = np.sort(np.random.default_rng(0).integers(256, size=(2, 900)), 0)
  levels = np.linspace(low, high, 256).round().astype(np.uint8)
  images = levels.reshape(16, 16, 300, 3).transpose(2, 0, 1, 3)
  assert_equals_pillow("autocontrast", images)


def test_greatest_magnitudes_are_those_of_the_paper():
  greatest = {
    name: [float(argument(tf.constant(s))) for s in (-1.0, 0.0, 1.0)]
    for name, (_, argument) in lib.OPERATIONS.items()
    if argument
  }
  symmetric = {
    "rotate": 30,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
  }
  expected = {name: [-most, 0, most] for name, most in symmetric.items()}
  for name in ("color", "contrast", "brightness", "sharpness"):
    expected[name] = [0.1, 1, 1.9]
  expected |= {"solarize": [0, 256, 0], "posterize": [4, 8, 4]}
  assert greatest.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(greatest[name], values, rtol=1e-6, err_msg=name)


def seeds(count):
  return tf.stack([tf.range(count), tf.fill([count], 7)], -1)


def augment(image, count, **options):
  """What `count` seeds make of the image, within tf.data."""
  options = dict(layers=2, magnitude=10.0, magnitude_std=0.0) | options
  stream = tf.data.Dataset.from_tensor_slices(seeds(count)).map(
    lambda seed: lib.randaugment(tf.constant(image), seed, **options),
    num_parallel_calls=2,
  )
  assert stream.element_spec == tf.TensorSpec(image.shape, tf.uint8)
  return list(stream.as_numpy_iterator())


def test_results_follow_from_the_seed():
  image = photographs()["odd"]
  first, second = augment(image, 20), augment(image, 20)
  np.testing.assert_array_equal(first, second)
  assert len({result.tobytes() for result in first}) > 15


def test_no_layers_change_nothing():
  image = photographs()["odd"]
  for result in augment(image, 3, layers=0):
    np.testing.assert_array_equal(result, image)


def test_images_of_unknown_size():
  image = photographs()["odd"]
  options = dict(layers=1, magnitude=5.0, magnitude_std=0.5)
  known = augment(image, 10, **options)
  stream = tf.data.Dataset.from_generator(
    lambda: ((image, seed) for seed in seeds(10)),
    output_signature=(
      tf.TensorSpec([None, None, 3], tf.uint8),
      tf.TensorSpec([2], tf.int32),
    ),
  ).map(lambda image, seed: lib.randaugment(image, seed, **options))
  np.testing.assert_array_equal(list(stream.as_numpy_iterator()), known)


@pytest.fixture
def record(monkeypatch):
  """Replaces each operation by one that writes down number and argument."""

  def recorder(number, argument):
    def operation(image, value=None):
      value = 0.0 if value is None else value
      row = tf.stack([tf.cast(number, tf.float32), tf.cast(value, tf.float32)])
      return tf.concat([image, row[None]], 0)

    return operation, argument

  table = {
    name: recorder(number, argument)
    for number, (name, (_, argument)) in enumerate(lib.OPERATIONS.items())
  }
  monkeypatch.setattr(lib, "OPERATIONS", table)

  def run(count, **options):
    empty = tf.zeros([0, 2])

    def draw(seed):
      # The recorders let the image grow.
      image = tf.raw_ops.PlaceholderWithDefault(input=empty, shape=[None, 2])
      return lib.randaugment(image, seed, **options)

    stream = tf.data.Dataset.from_tensor_slices(seeds(count)).map(draw)
    return np.stack(list(stream.as_numpy_iterator()))

  return run


def test_operations_are_drawn_uniformly_and_independently(record):
  drawn = record(4200, layers=2, magnitude=10.0, magnitude_std=0.0)
  assert drawn.shape == (4200, 2, 2)
  number = drawn[..., 0].astype(int)
  kinds = len(lib.OPERATIONS)
  assert kinds == 14
  for layer in range(2):
    counts = collections.Counter(number[:, layer])
    assert sorted(counts) == list(range(kinds))
    # 300 of each on average, and six standard deviations.
    assert max(abs(count - 300) for count in counts.values()) < 100
  pairs = number[:, 0] * kinds + number[:, 1]
  assert len(set(pairs)) == kinds**2
  rotations = drawn[number == list(lib.OPERATIONS).index("rotate"), 1]
  np.testing.assert_allclose(abs(rotations), 30)
  assert abs(np.sign(rotations).mean()) < 0.2


def test_noise_on_the_magnitude_is_cut_to_its_range(record):
  drawn = record(3000, layers=2, magnitude=8.0, magnitude_std=1.0)
  rotate = list(lib.OPERATIONS).index("rotate")
  degrees = abs(drawn[drawn[..., 0] == rotate, 1])
  assert degrees.max() == pytest.approx(30)
  assert np.median(degrees) == pytest.approx(24, abs=0.6)
  # Of a standard normal, 84 % lie below 1 and 2.3 % above 2.
  assert np.quantile(degrees, 0.16) == pytest.approx(21, abs=0.9)
  assert 0.003 < (degrees > 29.999).mean() < 0.06
