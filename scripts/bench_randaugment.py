"""Measures how long RandAugment takes an image.

  python scripts/bench_randaugment.py [--image_size=256] [--rounds=20]

Two operations are applied to one photograph, drawn anew each time. The policies
take turns in one process; the medians of the rounds are compared. Times are
those of the processor, over all threads: other work disturbs them less. "First
image" includes the compilation, once for a policy and a size of images.
"""

import functools
import statistics
import time

import numpy as np

from halonet import command

# Policies and magnitudes; a policy's first one compiles.
CONTENDERS = (
  ("autoaugment", 10.0),
  ("tpu", 10.0),
  ("tpu", 31.0),
  ("timm", 9.0),
)
LAYERS = 2
IMAGES = 500  # In a round.


def main() -> None:
  parser = command.parser(__doc__)
  for flag, default, unit in (
    ("--image_size", 256, "PIXELS"),
    ("--rounds", 20, "N"),
  ):
    parser.add_argument(
      flag, type=command.positive(int), default=default, metavar=unit
    )
  arguments = parser.parse_args()

  image = photograph(arguments.image_size)
  streams, first = {}, {}
  for contender in CONTENDERS:
    streams[contender] = augmented(image, *contender)
    first[contender] = seconds(streams[contender], 1)
  rounds = {contender: [] for contender in CONTENDERS}
  for _ in range(arguments.rounds):
    for contender, stream in streams.items():
      rounds[contender].append(seconds(stream, IMAGES) / IMAGES)
  rows = [
    (
      f"{contender[0]}, magnitude {contender[1]:g}",
      f"{statistics.median(times) * 1e6:.0f} µs",
      f"{min(times) * 1e6:.0f} µs",
      f"{first[contender]:.1f} s",
    )
    for contender, times in rounds.items()
  ]
  header = ("policy", "an image", "fastest round", "first image")
  print(command.table(header, rows))


def photograph(size: int) -> np.ndarray:
  """Returns a photograph, uint8 `[size, size, 3]`."""
  from PIL import Image
  from sklearn.datasets import load_sample_images

  image = Image.fromarray(load_sample_images().images[0])
  return np.asarray(image.resize((size, size)))


def augmented(image, policy, magnitude):
  """Yields what RandAugment makes of an image, of one seed after another."""
  from halonet.data.randaugment import randaugment
  from halonet.data.runtime import tf

  augment = functools.partial(
    randaugment,
    tf.constant(image),
    policy=policy,
    layers=LAYERS,
    magnitude=magnitude,
    magnitude_std=0.0,
  )
  stream = tf.data.Dataset.counter(0, 1, tf.int32).map(
    lambda number: augment(tf.stack([number, 0]), flip=number % 2 == 1)
  )
  return stream.as_numpy_iterator()


def seconds(stream, images):
  start = time.process_time()
  for _ in range(images):
    next(stream)
  return time.process_time() - start


if __name__ == "__main__":
  command.run(main)
