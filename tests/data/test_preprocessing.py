"""Preprocessing against Pillow on photographs, and by its invariants."""

import io

import ml_collections
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from halonet.data import order, pipeline, preprocessing, sources
from halonet.tasks.classification import Classification
from halonet.training.options import FIELDS

# A window in the middle of nowhere: row, column, height, width.
WINDOW = (32, 48, 200, 304)


def data(**overrides):
  fields = dict(
    image_size=24,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    crop_area=1.0,
    flip=False,
  )
  defaults = {
    name.removeprefix("data."): field.default
    for name, field in FIELDS.items()
    if name.startswith("data.")
  }
  return ml_collections.ConfigDict(defaults | fields | overrides)


def photograph(width=90, height=60, mode="RGB"):
  """A smooth picture without symmetries."""
  y, x = np.mgrid[0:height, 0:width] / max(width, height)
  channels = [np.sin(5 * x + y), np.cos(3 * y - x), np.sin(4 * x * y)]
  array = np.stack(channels, -1) * 100 + 128
  return Image.fromarray(array.astype(np.uint8)).convert(mode)


@pytest.fixture(scope="module", params=[0, 1], ids=["china", "flower"])
def real(request):
  """A real photograph, 640×427 pixels."""
  return Image.fromarray(load_sample_images().images[request.param])


def encode(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return tf.constant(file.getvalue())


def reopened(encoded):
  """What Pillow reads from an encoded image."""
  return Image.open(io.BytesIO(encoded.numpy())).convert("RGB")


def constant(window):
  return lambda height, width: tf.constant(window)


def squeezed(image, size, filter="BILINEAR"):
  return np.asarray(
    image.resize((size, size), Image.Resampling[filter]), np.float32
  )


def pillow_crop(image, window):
  top, left, height, width = window
  return image.crop((left, top, left + width, top + height))


# -------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
  "kind, mode, options",
  [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"subsampling": 0, "progressive": True}),
    ("JPEG", "L", {}),
    # Pillow writes it as Adobe does: inverted, and marked as such.
    ("JPEG", "CMYK", {"quality": 90}),
    ("PNG", "RGB", {}),
    ("PNG", "L", {}),
    ("PNG", "1", {}),
    ("PNG", "P", {}),
    ("BMP", "RGB", {}),
    ("GIF", "P", {}),
  ],
)
def test_windows_of_every_format_are_pillows(real, kind, mode, options):
  encoded = encode(real.convert(mode), kind, **options)
  actual, _ = preprocessing.decode_crop(encoded, constant(WINDOW))
  assert actual.dtype == tf.uint8
  expected = pillow_crop(reopened(encoded), WINDOW)
  # Both decode JPEGs by libjpeg-turbo, with the same accurate DCT. At a
  # window's sides the chroma beyond them takes no part in its interpolation.
  np.testing.assert_array_equal(actual[:, 2:-2], np.asarray(expected)[:, 2:-2])
  np.testing.assert_allclose(actual, expected, atol=16)


def test_cmyk_has_the_colours_of_the_original(real):
  encoded = encode(real.convert("CMYK"), "JPEG", quality=95)
  actual, _ = preprocessing.decode_crop(encoded, constant(WINDOW))
  expected = np.asarray(pillow_crop(real, WINDOW), np.float32)
  # JPEG's own loss; inverted colours would differ by some 100.
  assert abs(actual.numpy() - expected).mean() < 4


def test_sixteen_bits_keep_the_upper_eight():
  values = np.arange(400, dtype=np.uint16).reshape(20, 20) * 163 + 7
  actual = preprocessing.decode(encode(Image.fromarray(values))).numpy()
  np.testing.assert_array_equal(actual[..., 1], values >> 8)


def test_grey_becomes_three_equal_channels():
  actual, _ = preprocessing.test_image(encode(photograph(mode="L")), data())
  assert actual.shape == (24, 24, 3)
  np.testing.assert_array_equal(actual[..., 0], actual[..., 2])


@pytest.mark.parametrize("least_size, ratio", [(101, 1), (100, 2), (25, 8)])
def test_a_window_is_reduced_as_far_as_it_may(real, least_size, ratio):
  encoded = encode(real, "JPEG")
  reduced, geometry = preprocessing.decode_crop(
    encoded, constant(WINDOW), least_size
  )
  assert (geometry.window == WINDOW).numpy().all()
  assert reduced.shape == (200 // ratio, 304 // ratio, 3)
  # Means of blocks are another filter than the lower frequencies of a block: a
  # few levels. A window off by one reduced pixel would show several times that.
  expected = np.asarray(pillow_crop(reopened(encoded), WINDOW), np.float32)
  expected = expected.reshape(200 // ratio, ratio, 304 // ratio, ratio, 3)
  expected = expected.mean((1, 3))
  close = abs(reduced.numpy() - expected).mean()
  assert close < 2
  if ratio > 1:
    for axis in (0, 1):
      moved = np.roll(expected, 1, axis)
      assert abs(reduced.numpy() - moved).mean() > 3 * close


def test_a_corrupt_image_is_an_error(real):
  for kind in ("JPEG", "PNG"):
    cut = encode(real, kind).numpy()[:5000]
    with pytest.raises(tf.errors.InvalidArgumentError):
      preprocessing.test_image(tf.constant(cut), data())


# ------------------------------------------------------------------ test images


@pytest.mark.parametrize("size", [24, 100])
def test_test_image_is_the_resized_central_square(size):
  image = photograph()
  actual, _ = preprocessing.test_image(encode(image), data(image_size=size))
  assert actual.dtype == tf.uint8
  expected = squeezed(image.crop((15, 0, 75, 60)), size)
  # Pillow rounds after rows and after columns.
  np.testing.assert_allclose(actual.numpy(), expected, atol=1)
  assert abs(actual.numpy() - expected).mean() < 0.2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_fraction_and_interpolation(real, kind, interpolation):
  encoded = encode(real, kind)
  config = data(crop_fraction=0.875, interpolation=interpolation, image_size=96)
  actual, _ = preprocessing.test_image(encoded, config)
  actual = tf.cast(actual, tf.float32)
  # 0.875 of 427 pixels are 373.6.
  square = pillow_crop(reopened(encoded), (26, 133, 374, 374))
  expected = squeezed(square, 96, interpolation.upper())
  # Pillow rounds after rows and after columns, and cuts overshoots twice.
  atol = 2 if interpolation == "bilinear" else 8
  np.testing.assert_allclose(actual, expected, atol=atol)
  assert abs(actual - expected).numpy().mean() < 0.5


@pytest.mark.parametrize("shape", [(3, 16, 16, 3), (256, 3)])
def test_every_level_is_normalised_by_mean_and_std(shape):
  config = data(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
  images = np.stack([np.arange(256, dtype=np.uint8)] * 3, -1)
  images = np.resize(images, shape)
  actual = preprocessing.normalise(tf.constant(images), config)
  expected = (images / 255 - config.mean) / config.std
  assert actual.dtype == tf.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
  config.image_dtype = "bfloat16"
  half = preprocessing.normalise(tf.constant(images), config)
  np.testing.assert_array_equal(half, tf.cast(actual, tf.bfloat16))


# -------------------------------------------------------------- training images


def test_whole_image_is_used_without_crops():
  image = photograph(60, 60)
  seed = tf.constant([0, 1])
  np.testing.assert_array_equal(
    preprocessing.train_image(encode(image), data(), seed)[0],
    preprocessing.test_image(encode(image), data())[0],
  )


def windows(height, width, least_area, count):
  """Windows by as many seeds, int32 `[count, 4]`."""

  @tf.function
  def draw(number):
    return preprocessing.random_window(
      height, width, least_area=least_area, seed=tf.stack([7, number])
    )

  return np.stack([draw(tf.constant(number)) for number in range(count)])


def test_random_windows_have_their_areas_and_aspects():
  row, col, height, width = windows(480, 640, 0.08, 1500).T
  assert min(row) >= 0 and max(row + height) <= 480
  assert min(col) >= 0 and max(col + width) <= 640
  area, aspect = height * width / (480 * 640), width / height
  # Sides are whole pixels; those of the least area are some 150.
  assert 0.078 < min(area) < 0.09 and 0.93 < max(area) <= 1
  assert 0.74 < min(aspect) < 0.78 and 1.29 < max(aspect) < 1.345
  # Uniform are the aspects, and for each of them the heights that fit.
  assert 1.02 < aspect.mean() < 1.06
  least = np.sqrt(0.08 * 480 * 640 / aspect)
  most = np.minimum(480, 640 / aspect)
  place = (height - least) / (most - least)
  assert 0.47 < place.mean() < 0.53 and 0.26 < place.std() < 0.32
  # Everywhere in the image.
  assert min(row) == 0 and max(row + height) == 480
  assert abs((row + height / 2).mean() - 240) < 10
  assert abs((col + width / 2).mean() - 320) < 10


def test_a_strip_in_which_no_window_fits_is_taken_whole():
  assert (windows(1000, 2, 0.08, 3) == (0, 0, 1000, 2)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_random_crop_is_pillows_of_the_same_window(real, kind):
  encoded = encode(real, kind)
  config = data(image_size=200, crop_area=0.1)
  image = reopened(encoded)
  upwards = 0
  for number in range(12):
    seed = tf.constant([3, number])
    actual, geometry = preprocessing.train_image(encoded, config, seed)
    assert actual.dtype == tf.uint8
    window = geometry.window.numpy()
    expected = squeezed(pillow_crop(image, window), 200)
    difference = abs(actual.numpy() - expected)
    if max(window[2:]) <= 200:
      upwards += 1
      # Pillow rounds twice. At the sides, see windows of every format.
      assert difference[:, 8:-8].max() <= 1 and difference.max() <= 16
    else:
      # Another antialiasing filter; of other windows it would be some 50.
      assert difference.mean() < 4
  assert 0 < upwards < 12


def test_downwards_the_resize_is_the_mean_over_areas(real):
  def shares(old, new):
    """How much each old pixel covers of each new one, `[new, old]`."""
    edges = np.arange(new + 1)[:, None] * old / new
    covered = np.clip(edges - np.arange(old), 0, 1)
    return (covered[1:] - covered[:-1]) * new / old

  pixels = np.asarray(real)
  actual = preprocessing.resize_crop(tf.constant(pixels), 300)
  expected = np.einsum(
    "yh, hwc, xw -> yxc",
    shares(427, 300),
    pixels,
    shares(640, 300),
    optimize=True,
  )
  # Borders of new pixels are computed in float32.
  np.testing.assert_allclose(actual, expected, atol=0.02)


def test_flips_half_of_the_images():
  encoded = encode(photograph(60, 60))
  plain = preprocessing.test_image(encoded, data())[0].numpy()
  flipped = 0
  for number in range(100):
    seed = tf.constant([3, number])
    image, (_, _, flip) = preprocessing.train_image(
      encoded, data(flip=True), seed
    )
    np.testing.assert_array_equal(image, plain[:, ::-1] if flip else plain)
    flipped += int(flip)
  assert 30 <= flipped <= 70


def test_only_the_seed_decides(real):
  encoded = encode(real, "JPEG")
  config = data(crop_area=0.3, flip=True)
  image = tf.function(
    lambda seed: preprocessing.train_image(encoded, config, seed)[0]
  )
  first, other, again = (
    image(tf.constant([5, number])).numpy() for number in (6, 7, 6)
  )
  np.testing.assert_array_equal(first, again)
  assert abs(first.astype(float) - other).mean() > 3


def test_a_box_is_where_the_geometry_says(real):
  """A rectangle drawn into a photograph, in crops that show all of it."""
  left, top, right, bottom = 180, 110, 330, 290
  marked = real.copy()
  marked.paste((255, 0, 255), (left, top, right, bottom))
  box = np.array([top, left, bottom, right]) / (427, 640, 427, 640)
  seen = set()
  for kind in ("JPEG", "PNG"):
    encoded = encode(marked, kind, quality=95)
    for number in range(40):
      config = data(image_size=160, crop_area=0.4, flip=True)
      image, geometry = preprocessing.train_image(
        encoded, config, tf.constant([8, number])
      )
      assert geometry.size.numpy().tolist() == [427, 640]
      mapped = preprocessing.map_boxes(tf.constant(box, tf.float32), geometry)
      if min(mapped) < 0.02 or max(mapped) > 0.98:
        continue
      red, green, blue = (image.numpy()[..., i].astype(int) for i in range(3))
      drawn = (red > 200) & (green < 60) & (blue > 200)
      rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
      actual = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
      np.testing.assert_allclose(actual, mapped.numpy() * 160, atol=2.5)
      seen.add((kind, bool(geometry.flip)))
  assert len(seen) == 4


def test_a_padded_image_is_cut_at_all_places_alike():
  encoded = encode(photograph(24, 24))
  plain = np.array(reopened(encoded))
  padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)))
  places = np.zeros((5, 5), int)
  box = tf.constant([0.25, 0.5, 0.5, 0.75])
  for number in range(250):
    image, geometry = preprocessing.train_image(
      encoded, data(crop_padding=2), tf.constant([3, number])
    )
    row, col = np.round(geometry.window.numpy()[:2]).astype(int) + 2
    places[row, col] += 1
    np.testing.assert_array_equal(image, padded[row:, col:][:24, :24])
    moved = preprocessing.map_boxes(box, geometry) * 24
    np.testing.assert_allclose(
      moved, [8 - row, 14 - col, 14 - row, 20 - col], atol=1e-4
    )
  assert places.min() >= 2 and places.max() <= 22  # 10 on average.


def test_boxes_of_the_centre_and_of_the_whole():
  encoded = encode(photograph(90, 60))
  _, geometry = preprocessing.test_image(encoded, data())
  whole = preprocessing.map_boxes(tf.constant([[0.0, 0, 1, 1]]), geometry)
  np.testing.assert_allclose(whole, [[0, -0.25, 1, 1.25]], atol=1e-6)
  _, geometry = preprocessing.train_image(encoded, data(), tf.constant([0, 0]))
  np.testing.assert_array_equal(geometry.window, [0, 0, 60, 90])


def test_everything_together_through_the_training_stream(real, small_config):
  """Augmented and erased images are those of `train_image`, in bfloat16."""
  config = small_config(
    "batch_size=4",
    "data.image_size=48",
    "data.randaugment_layers=2",
    "data.random_erasing=1.0",
    "data.image_dtype=bfloat16",
  )
  encoded = encode(real, "JPEG")
  split = sources.Split.of_files(
    [f"{number}.JPEG" for number in range(6)],
    lambda shard: {"image": encoded, "label": shard},
  )
  task = Classification(config, {"labels": list("012345")})
  batch = next(pipeline.train_batches(split, task))
  assert batch["image"].shape == (4, 48, 48, 3)
  for image, number in zip(batch["image"], batch["label"], strict=True):
    epoch, number = tf.constant(0, tf.int64), tf.constant(number, tf.int64)
    seed = order.example_seed(config.seed, epoch, number)
    pixels, _ = preprocessing.train_image(encoded, config.data, seed)
    expected = (pixels.numpy() / 255 - config.data.mean) / config.data.std
    # bfloat16 has eight significant bits.
    np.testing.assert_allclose(image.astype(float), expected, rtol=1 / 256)
