"""A source: drawn bars at known angles, encoded as PNG."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from halonet.data.sources import Source, Split
from halonet.errors import UsageError

_SIZES = {"train": 256, "test": 64}


def open_bars(data, needs):
  """Opens the bars; `data.data_dir` is not needed."""
  del data, needs

  def split(field, name):
    if name not in _SIZES:
      raise UsageError(f"config.data.{field}: there is no split {name}")
    images, angles = _draw(_SIZES[name], seed=len(name))
    names = np.array([f"bars/{name}/{number}" for number in range(len(images))])
    images, angles = tf.constant(images), tf.constant(angles, tf.float32)

    def read_one(shard):
      return {
        "image": tf.gather(images, shard),
        "angle": tf.gather(angles, shard),
      }

    def read(shard, skip, take):
      examples = tf.data.Dataset.from_tensors(read_one(shard))
      return examples.skip(skip).take(take)

    zeros = np.zeros(len(names), np.int64)
    return Split(names, zeros, zeros + 1, read, read_one)

  return Source("bars", "memory", {}, split)


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
