"""Images and boxes of detection follow one geometry, to a pixel."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from halonet.data import detection_images, images, preprocessing
from tests.data.test_orientation import stored
from tests.data.test_preprocessing import data as any_data
from tests.data.test_preprocessing import encode

DARK, BRIGHT = 20, 240
MEAN = (0.3, 0.3, 0.3)
GREY = 77  # What the mean is in levels: 76.5, rounded.


def data(**overrides):
  config = any_data(**dict(image_size=64, mean=MEAN) | overrides)
  config.scale_jitter = overrides.get("scale_jitter", (1.0, 1.0))
  return config


def drawn(height, width, box):
  """A dark image with a bright box; top, left, bottom, right in pixels."""
  pixels = np.full((height, width, 3), DARK, np.uint8)
  top, left, bottom, right = box
  pixels[top:bottom, left:right] = BRIGHT
  return Image.fromarray(pixels)


def objects(boxes, height=1, width=1, labels=None, crowds=None, areas=None):
  """Objects as a source gives them, of boxes in pixels."""
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  shares = boxes / np.array([height, width, height, width], np.float32)
  count = len(boxes)
  return {
    "bbox": tf.constant(shares, tf.float32),
    "label": tf.constant(labels or range(count), tf.int64, [count]),
    "is_crowd": tf.constant(crowds or [False] * count, tf.bool, [count]),
    "area": tf.constant(areas or [1.0] * count, tf.float32, [count]),
  }


# As in the pipeline: in a graph, one for each config.
@functools.cache
def trainer(size, jitter, flip, policy):
  config = data(image_size=size, scale_jitter=jitter, flip=flip)
  if policy:
    config.randaugment_layers, config.randaugment_policy = 2, policy
  return tf.function(
    lambda encoded, seed: detection_images.train_image(encoded, config, seed),
    autograph=False,
    input_signature=[
      tf.TensorSpec([], tf.string),
      tf.TensorSpec([2], tf.int32),
    ],
  )


@functools.cache
def preparer(size, interpolation):
  config = data(image_size=size, interpolation=interpolation)
  return tf.function(
    lambda encoded: detection_images.test_image(encoded, config),
    autograph=False,
    input_signature=[tf.TensorSpec([], tf.string)],
  )


@st.composite
def boxes(draw):
  """Height, width and a box of an image, from slim to square."""
  height, width = (draw(st.integers(1, 300)) for _ in range(2))
  ends = []
  for side in (height, width):
    first = draw(st.integers(0, side - 1))
    ends.append((first, draw(st.integers(first + 1, side))))
  (top, bottom), (left, right) = ends
  return height, width, (top, left, bottom, right)


def check_is_bright(image, box, slack=1.0):
  """The pixels in the box are bright and those around it are not.

  A pixel whose centre is within `slack` of the border may be anything.
  """
  image = image.numpy()[..., 1].astype(float)
  top, left, bottom, right = np.array(box, np.float64)
  rows, columns = (np.arange(side) + 0.5 for side in image.shape)
  inner = np.outer(
    (rows > top + slack) & (rows < bottom - slack),
    (columns > left + slack) & (columns < right - slack),
  )
  outer = np.outer(
    (rows > top - slack) & (rows < bottom + slack),
    (columns > left - slack) & (columns < right + slack),
  )
  middle = (DARK + BRIGHT) / 2
  assert (image[inner] > middle).all()
  assert (image[~outer] < middle).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(
  case=boxes(),
  jitter=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.1, 0.3), (1.5, 6.0)]),
  size=st.sampled_from([32, 64]),
  flip=st.booleans(),
  seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=60)
def test_the_bright_pixels_are_where_the_box_is(
  kind, case, jitter, size, flip, seed
):
  height, width, box = case
  options = dict(quality=95, subsampling=0) if kind == "JPEG" else {}
  encoded = encode(drawn(height, width, box), kind, **options)
  image, geometry = trainer(size, jitter, flip, None)(
    encoded, tf.constant([seed, 1])
  )
  assert image.shape == (size, size, 3) and image.dtype == tf.uint8
  moved = detection_images.train_objects(
    objects([box], height, width), geometry, size, 3
  )
  full = size * preprocessing.map_boxes(
    objects([box], height, width)["bbox"], geometry
  )
  expected = np.clip(full[0], 0, size)
  if min(expected[2:] - expected[:2]) >= 1:
    assert moved["objects"] == 1
    np.testing.assert_allclose(moved["boxes"][0], expected, atol=1e-4)
  else:
    assert moved["objects"] == 0
  # The filter of an image that grows blurs an edge over one of its pixels.
  scale = size / geometry.window.numpy()[2:]
  slack = 1 + 0.5 * max(1, scale.max()) + (0.5 if kind == "JPEG" else 0)
  check_is_bright(image, full[0], slack)


@given(case=boxes(), size=st.sampled_from([32, 64]))
@settings(max_examples=60)
def test_a_test_image_is_whole_at_the_top_left(case, size):
  height, width, box = case
  encoded = encode(drawn(height, width, box))
  image, geometry = preparer(size, "bilinear")(encoded)
  moved = detection_images.test_objects(
    objects([box], height, width), geometry, size, 2
  )
  # Ground truth stays, and the model's boxes are brought to it.
  np.testing.assert_allclose(moved["boxes"][0], box, rtol=1e-6, atol=1e-4)
  on_model = np.array(box) / moved["to_source"].numpy()
  scale = size / max(height, width)
  check_is_bright(image, on_model, 1 + 0.5 * max(1, scale))
  # The scale is that of the longer side, but for rounding to whole pixels.
  rows, columns = (max(1, round(side * scale)) for side in (height, width))
  np.testing.assert_allclose(
    moved["to_source"],
    np.tile([height / rows, width / columns], 2),
    rtol=1e-5,
  )
  assert max(rows, columns) == size
  assert (image.numpy()[rows:] == GREY).all()
  assert (image.numpy()[:, columns:] == GREY).all()


@given(
  height=st.integers(20, 200),
  width=st.integers(20, 200),
  factor=st.floats(0.2, 1.0),
  flip=st.booleans(),
  seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=40)
def test_padding_is_at_the_bottom_and_the_right(
  height, width, factor, flip, seed
):
  encoded = encode(Image.new("RGB", (width, height), (BRIGHT,) * 3))
  config = data(scale_jitter=(factor, factor), flip=flip)
  image, _ = detection_images.train_image(encoded, config, [seed, 0])
  inside = (image.numpy() == BRIGHT).all(-1)
  rows, columns = inside.any(1).sum(), inside.any(0).sum()
  for found, side in ((rows, height), (columns, width)):
    # A rest that is no whole pixel of the reduced image is left out.
    assert abs(found - max(1, side * 64 * factor / max(height, width))) < 1.5
  assert inside[:rows, :columns].all()
  assert (image.numpy()[~inside] == GREY).all()


def test_the_padding_is_zero_for_the_model():
  config, encoded = data(std=(0.2,) * 3), encode(drawn(20, 60, (0, 0, 20, 60)))
  image, _ = detection_images.test_image(encoded, config)
  inputs = preprocessing.normalise(image[None], config)[0]
  assert abs(inputs.numpy()[30:]).max() < 0.5 / 255 / 0.2 + 1e-6


def test_factors_and_places_are_uniform():
  encoded = encode(drawn(50, 100, (0, 0, 50, 100)))
  train = trainer(32, (0.5, 2.0), True, None)
  windows, flips = [], []
  for seed in range(400):
    _, geometry = train(encoded, tf.constant([7, seed]))
    windows.append(geometry.window.numpy())
    flips.append(bool(geometry.flip))
  windows = np.array(windows)
  factors = 100 / windows[:, 3]
  bins = np.histogram(factors, 3, (0.5, 2.0))[0] / len(factors)
  np.testing.assert_allclose(bins, 1 / 3, atol=0.08)
  assert abs(np.mean(flips) - 0.5) < 0.08
  # Windows that fit lie inside; their places fill the room that they have.
  crops = windows[factors > 1.05]
  room = 100 - crops[:, 3]
  assert (crops[:, 1] >= 0).all() and (crops[:, 1] <= room + 1).all()
  places = crops[:, 1] / np.maximum(room, 1)
  assert abs(places[room > 20].mean() - 0.5) < 0.06
  assert np.ptp(places[room > 20]) > 0.9


def test_the_same_seed_gives_the_same_image():
  encoded = encode(Image.fromarray(load_sample_images().images[0]))
  train = trainer(64, (0.5, 2.0), True, "color")
  images = [train(encoded, tf.constant([1, seed]))[0] for seed in (2, 2, 3)]
  np.testing.assert_array_equal(images[0], images[1])
  assert (images[0].numpy() != images[2].numpy()).any()


def test_test_images_are_pillows():
  """The filter of whole photographs, grey and CMYK ones among them."""
  photograph = Image.fromarray(load_sample_images().images[1])
  for mode in ("RGB", "L", "CMYK"):
    encoded = encode(photograph.convert(mode), "JPEG", quality=95)
    actual, _ = preparer(64, "bilinear")(encoded)
    whole = Image.open(io.BytesIO(encoded.numpy())).convert("RGB")
    expected = whole.resize((64, 43), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(
      actual[:43].numpy().astype(int), np.asarray(expected), atol=4
    )


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_photographs_are_upright(turn):
  encoded, upright = stored(turn, "JPEG", quality=95, subsampling=0)
  # No image has twice as many pixels: none is decoded at a reduced size.
  config = data(image_size=160, scale_jitter=(1.0, 1.8), flip=True)
  for number in range(3):
    seed = tf.constant([5, number])
    actual, geometry = detection_images.train_image(encoded, config, seed)
    expected, same = detection_images.train_image(encode(upright), config, seed)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(geometry.window, same.window)
    assert geometry.size.numpy().tolist() == [*upright.size[::-1]]


@pytest.mark.parametrize("factor", [0.5, 0.26, 0.13, 0.06])
def test_reduced_decoding_shows_the_same(factor):
  photograph = Image.fromarray(load_sample_images().images[0])
  encoded = encode(photograph, "JPEG", quality=95)
  same = encode(Image.open(io.BytesIO(encoded.numpy())))  # A PNG, in full.
  config = data(image_size=320, scale_jitter=(factor, factor))
  seed = tf.constant([3, 4])
  reduced, geometry = detection_images.train_image(encoded, config, seed)
  full, whole = detection_images.train_image(same, config, seed)
  np.testing.assert_allclose(geometry.window, whole.window)
  difference = abs(reduced.numpy().astype(int) - full.numpy())
  assert difference.mean() < 1.5


def test_colours_change_and_boxes_and_padding_do_not():
  box = (20, 30, 60, 90)
  encoded = encode(drawn(80, 120, box))
  plain = trainer(64, (0.8, 0.8), True, None)
  colours = trainer(64, (0.8, 0.8), True, "color")
  changed = 0
  for number in range(12):
    seed = tf.constant([number, 0])
    (image, geometry), (other, same) = (
      plain(encoded, seed),
      colours(encoded, seed),
    )
    for one, another in zip(geometry, same, strict=True):
      np.testing.assert_array_equal(one, another)
    rows, columns = 34, 51  # 80 and 120 pixels, scaled by 0.8 · 64 / 120.
    assert (other.numpy()[rows:] == GREY).all()
    assert (other.numpy()[:, columns:] == GREY).all()
    changed += (image.numpy() != other.numpy()).any()
  assert changed > 6


# --------------------------------------------------------------------- objects


def identity(height=64, width=64):
  """The geometry of an image that stays as it is."""
  window = tf.constant([0.0, 0.0, height, width])
  size = tf.constant([height, width])
  return preprocessing.Geometry(size, window, tf.constant(False))


def test_training_leaves_out_crowds_and_what_is_hardly_there():
  given = objects(
    [
      (0, 0, 10, 10),
      (0, 0, 20, 20),  # A crowd.
      (5, 5, 5.9, 30),  # Less than a pixel high.
      (-9, -9, 0.5, 30),  # Less than a pixel high after it is clipped.
      (60, 60, 64, 61),
      (7, 7, 7, 9),  # Empty.
      (40, 60, 70, 64.5),
    ],
    64,
    64,
    crowds=[False, True] + [False] * 5,
    labels=[1, 1, 1, 1, 2, 1, 3],
  )
  kept = detection_images.train_objects(given, identity(), 64, 5)
  assert kept.keys() == {"boxes", "labels", "objects"}
  assert kept["objects"] == 3
  np.testing.assert_allclose(
    kept["boxes"],
    [(0, 0, 10, 10), (60, 60, 64, 61), (40, 60, 64, 64)] + [(0,) * 4] * 2,
    atol=1e-4,
  )
  assert kept["labels"].numpy().tolist() == [1, 2, 3, -1, -1]


def test_evaluation_keeps_everything_as_it_is():
  boxes = [(-3, 0, 10, 10), (5, 5, 5.5, 30), (0, 0, 70, 90)]
  given = objects(
    boxes,
    50,
    80,
    labels=[2, 0, 1],
    crowds=[False, True, False],
    areas=[7, 8, 9],
  )
  kept = detection_images.test_objects(given, identity(50, 80), 64, 4)
  np.testing.assert_allclose(kept["boxes"][:3], boxes, atol=1e-4)
  assert kept["labels"].numpy().tolist() == [2, 0, 1, -1]
  assert kept["crowd"].numpy().tolist() == [False, True, False, False]
  assert kept["area"].numpy().tolist() == [7, 8, 9, 0]
  assert kept["objects"] == 3


@pytest.mark.parametrize("count", [0, 3, 4, 5, 9])
@pytest.mark.parametrize("split", ["train_objects", "test_objects"])
def test_the_number_of_rows_is_fixed(split, count):
  given = objects([(i, i, i + 2, i + 2) for i in range(count)], 64, 64)
  function = tf.function(
    lambda given: getattr(detection_images, split)(given, identity(), 64, 4),
    autograph=False,
    input_signature=[
      {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
        for name, tensor in given.items()
      }
    ],
  )
  shapes = function.get_concrete_function().structured_outputs
  kept = function(given)
  assert kept["objects"] == count  # Counted without the limit.
  for name, output in kept.items():
    assert output.shape == shapes[name].shape, name
  assert kept["boxes"].shape == (4, 4) and kept["boxes"].dtype == tf.float32
  assert kept["labels"].dtype == tf.int32
  expected = [*range(min(count, 4))] + [-1] * (4 - min(count, 4))
  assert kept["labels"].numpy().tolist() == expected
  assert np.isfinite(kept["boxes"]).all()


@given(
  height=st.integers(1, 150),
  width=st.integers(1, 150),
  size=st.sampled_from([32, 64]),
  interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@settings(max_examples=40)
def test_predict_sees_what_evaluation_sees(height, width, size, interpolation):
  pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3))
  image = Image.fromarray(pixels.astype(np.uint8))
  config = data(image_size=size, interpolation=interpolation)
  expected, geometry = preparer(size, interpolation)(encode(image))
  actual = images.padded_input(image, config)
  expected = preprocessing.normalise(expected[None], config)[0]
  np.testing.assert_array_equal(actual, expected)
  kept = detection_images.test_objects(objects([]), geometry, size, 1)
  sides = images.padded_sides(height, width, size)
  to_source = np.tile(np.divide((height, width), sides), 2)
  np.testing.assert_allclose(to_source, kept["to_source"], rtol=1e-6)
