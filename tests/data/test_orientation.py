"""Photographs are upright everywhere, whichever way a camera stored them."""

import io
import struct

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from halonet.data import images, preprocessing, sources
from halonet.data.exif import read_orientation
from halonet.data.orientation import orientation
from halonet.data.runtime import tf
from tests.data.test_preprocessing import data, encode

TAG, SHORT, LONG = 0x0112, 3, 4
TURNS = range(1, 9)
# What Pillow calls the way from the stored image to the upright one.
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def stored(turn, kind, **options):
  """A photograph as stored with an orientation; and the same image upright."""
  image = Image.fromarray(load_sample_image("china.jpg")[100:300, 50:350])
  exif = Image.Exif()
  exif[TAG] = turn
  encoded = encode(image, kind, exif=exif, **options)
  pixels = Image.open(io.BytesIO(encoded.numpy())).convert("RGB")
  return encoded, turned(pixels, turn)


def turned(image, turn):
  return image.transpose(UPRIGHT[turn]) if turn in UPRIGHT else image


# Without subsampling, no chroma beyond a window takes part in it, and all is
# exact.
KINDS = {
  "JPEG": dict(subsampling=0, quality=95),
  "PNG": {},
  "WEBP": dict(lossless=True),
}


class Turned(tfds.core.GeneratorBasedBuilder):
  """The eight orientations of a photograph, one class each."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=[str(turn) for turn in TURNS]),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for turn in TURNS:
      encoded, _ = stored(turn, "JPEG", **KINDS["JPEG"])
      file = io.BytesIO(encoded.numpy())
      yield turn, {"image": file, "label": str(turn)}


@pytest.fixture(params=["folder", "tfds"])
def split(request, tmp_path):
  """A split of the eight orientations as JPEGs, in a folder or as records."""
  if request.param == "folder":
    for turn in TURNS:
      path = tmp_path / "train" / str(turn) / "image.jpg"
      path.parent.mkdir(parents=True)
      path.write_bytes(stored(turn, "JPEG", **KINDS["JPEG"])[0].numpy())
  name = {"folder": "folder", "tfds": "turned"}[request.param]
  fields = dict(name=name, data_dir=str(tmp_path), train_split="train")
  source = sources.open_source(
    ml_collections.ConfigDict(fields), {"label": "ClassLabel"}
  )
  return source.split("train_split", "train")


def test_a_source_predict_and_pillow_see_the_same_pixels(split, tmp_path):
  config = data(image_size=64, crop_fraction=0.8)
  seen = set()
  for shard, skip, size in zip(
    range(len(split.files)), split.skips, split.sizes, strict=True
  ):
    for example in split.read(shard, skip, size):
      turn = int(example["label"]) + 1
      _, upright = stored(turn, "JPEG", **KINDS["JPEG"])
      expected, geometry = preprocessing.test_image(encode(upright), config)
      actual, same = preprocessing.test_image(example["image"], config)
      np.testing.assert_array_equal(actual, expected)
      for one, other in zip(geometry, same, strict=True):
        np.testing.assert_array_equal(one, other)
      path = tmp_path / "image.jpg"
      path.write_bytes(example["image"].numpy())
      shown = images.read_image(path)
      np.testing.assert_array_equal(shown, upright)
      np.testing.assert_array_equal(
        images.square_input(shown, config),
        preprocessing.normalise(actual, config),
      )
      seen.add(turn)
  assert seen == set(TURNS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", TURNS)
def test_training_crops_are_those_of_the_upright_image(turn, kind):
  encoded, upright = stored(turn, kind, **KINDS[kind])
  # No crop has twice as many pixels: none is decoded at a reduced size.
  config = data(image_size=160, crop_area=0.1, flip=True)
  for number in range(6):
    seed = tf.constant([5, number])
    actual, geometry = preprocessing.train_image(encoded, config, seed)
    expected, same = preprocessing.train_image(encode(upright), config, seed)
    np.testing.assert_array_equal(actual, expected)
    for one, other in zip(geometry, same, strict=True):
      np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("least_size, ratio", [(60, 1), (30, 2), (10, 8)])
@pytest.mark.parametrize("turn", TURNS)
def test_reduced_crops_show_the_same_stored_pixels(turn, least_size, ratio):
  row, col, height, width = 24, 40, 80, 120  # Of the stored image.
  marked = np.zeros((200, 300), bool)
  marked[row : row + height, col : col + width] = True
  marked = np.asarray(turned(Image.fromarray(marked), turn))
  rows, cols = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
  window = tf.constant([rows[0], cols[0], len(rows), len(cols)], tf.int32)
  encoded, _ = stored(turn, "JPEG", **KINDS["JPEG"])
  actual, geometry = preprocessing.decode_crop(
    encoded, lambda height, width: window, least_size
  )
  pixels = tf.io.decode_and_crop_jpeg(
    encoded,
    [row // ratio, col // ratio, height // ratio, width // ratio],
    channels=3,
    ratio=ratio,
    dct_method="INTEGER_ACCURATE",
  )
  expected = turned(Image.fromarray(pixels.numpy()), turn)
  np.testing.assert_array_equal(actual, expected)
  np.testing.assert_array_equal(geometry.size, marked.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", TURNS)
def test_whole_images_are_upright(turn, kind):
  encoded, _ = stored(turn, kind, **KINDS[kind])
  pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  pixels = pixels.numpy()
  expected = turned(Image.fromarray(pixels), turn)
  np.testing.assert_array_equal(preprocessing.decode(encoded), expected)


# ------------------------------------------------------------------- the tag


def tiff(*entries, order="<", place=8):
  """An EXIF block with a table of (tag, type, count, value)."""
  head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, place)
  table = struct.pack(f"{order}H", len(entries))
  for tag, kind, count, value in entries:
    table += struct.pack(f"{order}HHI", tag, kind, count)
    # A short stands in the first half of its field.
    value = [value, 0] if kind == SHORT else [value]
    table += struct.pack(order + ("HH" if kind == SHORT else "I"), *value)
  return head.ljust(place, b"\0") + table + b"\0" * 4


def segment(marker, content):
  return struct.pack(">HH", marker, len(content) + 2) + content


def jpeg(*segments):
  return b"\xff\xd8" + b"".join(segments) + segment(0xFFDB, b"\0" * 65)


def exif(*entries, **options):
  return segment(0xFFE1, b"Exif\0\0" + tiff(*entries, **options))


def chunk(name, content):
  return struct.pack(">I", len(content)) + name + content + b"\0" * 4


def png(*chunks):
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0" * 13) + b"".join(chunks)


def webp(*chunks):
  chunks = b"".join(
    name
    + struct.pack("<I", len(content))
    + content
    + b"\0" * (len(content) % 2)
    for name, content in chunks
  )
  return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


SIX = (TAG, SHORT, 1, 6)
MAKER = (0x010F, 2, 9, 200)
JFIF = segment(0xFFE0, b"JFIF\0".ljust(14, b"\0"))


@pytest.mark.parametrize(
  "encoded, expected",
  [
    (jpeg(exif(SIX)), 6),
    (jpeg(exif(SIX, order=">")), 6),
    (jpeg(exif(MAKER, SIX, place=26)), 6),
    (jpeg(exif(MAKER, SIX, order=">", place=27)), 6),
    # After other segments, a comment among them.
    (jpeg(JFIF, segment(0xFFED, b"\xff\xe1" * 30000), exif(SIX)), 6),
    (jpeg(segment(0xFFFE, b"words"), exif(SIX)), 6),
    (jpeg(*[segment(0xFFE2, b"\0" * 65000)] * 3, exif(SIX)), 6),
    # XMP, which has the same marker, before EXIF.
    (jpeg(segment(0xFFE1, b"http://ns.adobe.com/"), exif(SIX)), 6),
    # No tag, no valid one, no table, or none in its place.
    (b"", 1),
    (b"\xff\xd8", 1),
    (b"GIF89a", 1),
    (jpeg(JFIF), 1),
    (jpeg(exif(MAKER)), 1),
    (jpeg(exif()), 1),
    (jpeg(exif((TAG, SHORT, 1, 0))), 1),
    (jpeg(exif((TAG, SHORT, 1, 9))), 1),
    (jpeg(exif((TAG, LONG, 1, 6))), 1),
    (jpeg(segment(0xFFDB, b"\0" * 65), exif(SIX)), 1),
    (jpeg(segment(0xFFE1, b"Exif\0\0XX" + tiff(SIX)[2:])), 1),
    (jpeg(segment(0xFFE1, b"Exif\0\0II*\0\xff\xff\xff\xff")), 1),
    (jpeg(segment(0xFFE1, (b"Exif\0\0" + tiff(SIX))[:22])), 1),
    (png(chunk(b"eXIf", tiff(SIX)), chunk(b"IDAT", b"")), 6),
    (png(chunk(b"tEXt", b"words"), chunk(b"eXIf", tiff(SIX, order=">"))), 6),
    (png(chunk(b"IDAT", b""), chunk(b"eXIf", tiff(SIX))), 1),
    (png(b"\xff\xff\xff\xf4what"), 1),
    (webp((b"VP8 ", b"\0" * 9), (b"EXIF", tiff(SIX))), 6),
    (webp((b"VP8 ", b""), (b"EXIF", b"Exif\0\0" + tiff(SIX))), 6),
    (webp((b"VP8 ", b"EXIF"), (b"XMP ", tiff(SIX))), 1),
    (webp((b"EXIF", b"")), 1),
  ],
)
def test_the_tag_counts_where_it_belongs(encoded, expected):
  assert int(orientation(tf.constant(encoded))) == expected
  assert read_orientation(encoded) == expected


def test_damaged_tags_are_read_in_no_time():
  """Any bytes give a number, after as many steps as there are bytes."""
  random = np.random.default_rng(0)
  for whole in (jpeg(JFIF, exif(MAKER, SIX)), png(chunk(b"eXIf", tiff(SIX)))):
    for _ in range(200):
      damaged = np.frombuffer(whole, np.uint8).copy()
      places = random.integers(2, len(damaged), 3)
      damaged[places] = random.integers(0, 256, 3)
      damaged = damaged[: random.integers(len(damaged)) + 1].tobytes()
      assert int(orientation(tf.constant(damaged))) in TURNS


def test_pillow_agrees_on_what_it_writes():
  for kind in KINDS:
    for turn in TURNS:
      encoded, upright = stored(turn, kind)
      image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded.numpy())))
      np.testing.assert_array_equal(image.convert("RGB"), upright)
      assert int(orientation(encoded)) == turn
