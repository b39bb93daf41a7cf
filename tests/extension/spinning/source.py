"""A source: drawn bars at known angles, encoded as PNG."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from halonet.data.sources import Source, Split
from halonet.errors import UsageError

_SIZES = {"train": 256, "test": 64}


class Bars(Source):
  """Images of 32×32 pixels, each with the `angle` of its bar in radians."""

  name, location = "bars", "memory"
  features = {"image": "Image", "angle": "Scalar"}  # noqa: RUF012

  def __init__(self, data, needs):
    del data, needs

  def split(self, field, name):
    if name not in _SIZES:
      raise UsageError(f"config.data.{field}: there is no split {name}")
    images, angles = _draw(_SIZES[name], seed=len(name))
    images, angles = tf.constant(images), tf.constant(angles, tf.float32)

    def read_one(shard):
      return {
        "image": tf.gather(images, shard),
        "angle": tf.gather(angles, shard),
      }

    files = [f"bars/{name}/{number}" for number in range(_SIZES[name])]
    return Split.of_files(files, read_one)


def _draw(count, seed):
  angles = np.random.default_rng(seed).uniform(0, np.pi, count)
  images = []
  for angle in angles:
    image = Image.new("RGB", (32, 32))
    dx, dy = 13 * np.cos(angle), -13 * np.sin(angle)
    ends = (16 - dx, 16 - dy), (16 + dx, 16 + dy)
    ImageDraw.Draw(image).line(ends, "white", 4)
    file = io.BytesIO()
    image.save(file, "PNG")
    images.append(file.getvalue())
  return images, angles
