"""Measures how many images per second the input pipeline makes.

  python scripts/bench_input.py FOLDER [--image_size=256]

FOLDER holds JPEGs, at any depth. The pipelines take turns, each on all cores
that this process may use (`taskset -c 0-3 python …` leaves it four), for some
seconds in each of three rounds; the medians are compared:

  bare           this project's fused decoding and random cropping, and the
                 resize, and nothing else: the least that training needs.
  full           this project's training stream, `pipeline.train_batches`:
                 shuffled, decoded, cropped, resized, flipped, RandAugment(2,
                 10), in batches of 64, normalised to float32.
  full bfloat16  the same, normalised to bfloat16.
  Pillow         the same images as of full, with Pillow and NumPy in worker
                 processes. Every JPEG is decoded whole, as torchvision and
                 timm do. The images stay in the workers: neither batching nor
                 sending them to the trainer is counted.
  Pillow draft   the same; but, as in bare and full, a JPEG is decoded at a
                 reduced size (Pillow's draft mode) where the crop is twice as
                 large as needed.

The files are read before, so all of them come from the system's file cache as
long as there is memory for it. The time before a pipeline runs steadily does
not count.
"""

# No TensorFlow and no JAX up here: Pillow's workers read this module as well.
import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import pathlib
import random
import statistics
import time

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

ROUNDS = 3
WARM_UP_SECONDS = 1.5
BATCH_SIZE = 64
MAX_FILES = 5000
EXAMPLES = 1_281_167
LAYERS, MAGNITUDE = 2, 10.0
LEAST_AREA = 0.08
GREY = (128, 128, 128)  # What pixels from outside of an image become.


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
  parser.add_argument("--image_size", type=int, default=256, metavar="PIXELS")
  parser.add_argument(
    "--seconds",
    type=float,
    default=10.0,
    help=f"per pipeline and round, of {ROUNDS} rounds (default: 10)",
  )
  parser.add_argument(
    "--json", type=pathlib.Path, metavar="FILE", help="also write it here"
  )
  arguments = parser.parse_args()
  for name in ("image_size", "seconds"):
    if getattr(arguments, name) <= 0:
      parser.error(f"--{name} must be above 0")

  cores = len(os.sched_getaffinity(0))
  files, size = read_files(arguments.folder)
  print(
    f"{len(files)} JPEGs of {size / len(files) / 1e3:.0f} kB on average;"
    f" {cores} cores; {arguments.image_size} pixels",
    flush=True,
  )
  rates = measure(files, arguments)
  result = dict(
    folder=str(arguments.folder),
    images=len(files),
    bytes=size,
    image_size=arguments.image_size,
    cores=cores,
    seconds=arguments.seconds,
    rounds=rates,
    images_per_second={
      name: statistics.median(values) for name, values in rates.items()
    },
  )
  medians = result["images_per_second"]
  result["full_to_bare"] = medians["full"] / medians["bare"]
  result["full_to_pillow"] = medians["full"] / medians["Pillow"]
  result["full_to_pillow_draft"] = medians["full"] / medians["Pillow draft"]
  print(table(result))
  if arguments.json:
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {arguments.json}")


def read_files(folder: pathlib.Path) -> tuple[list[str], int]:
  """Finds and reads JPEGs, at most `MAX_FILES`: their paths and total bytes.

  Raises:
    UsageError: if there is none.
  """
  from halonet.errors import UsageError

  if not folder.is_dir():
    raise UsageError(f"there is no folder {folder}")
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  random.Random(0).shuffle(paths)
  files, size = [], 0
  for path in paths:
    encoded = path.read_bytes()
    if encoded.startswith(b"\xff\xd8\xff"):
      files.append(str(path))
      size += len(encoded)
    if len(files) == MAX_FILES:
      break
  if not files:
    raise UsageError(f"{folder} holds no JPEG, at any depth")
  return files, size


def measure(
  files: list[str], arguments: argparse.Namespace
) -> dict[str, list[float]]:
  """Runs the pipelines in turns: images per second of each in every round."""
  with (
    pillow_workers(files, arguments, draft=False) as whole,
    pillow_workers(files, arguments, draft=True) as draft,
  ):
    pipelines = tensorflow_pipelines(files, arguments)
    pipelines |= {"Pillow": whole, "Pillow draft": draft}
    rates = {name: [] for name in pipelines}
    print("Warming up", flush=True)
    for count_for in pipelines.values():  # Compiles, and starts all threads.
      count_for(arguments.seconds)
    for number in range(ROUNDS):
      for name, count_for in pipelines.items():
        count_for(min(WARM_UP_SECONDS, arguments.seconds))
        images, seconds = count_for(arguments.seconds)
        rates[name].append(images / seconds)
        print(
          f"round {number + 1}/{ROUNDS} {name:13} {images / seconds:8.1f}"
          " images/s",
          flush=True,
        )
  return rates


def table(result: dict) -> str:
  lines = ["| pipeline | images/s | rounds |", "|---|---|---|"]
  for name, values in result["rounds"].items():
    spread = " ".join(f"{value:.0f}" for value in values)
    median = result["images_per_second"][name]
    lines.append(f"| {name} | {median:.1f} | {spread} |")
  lines.append(f"| full ÷ bare | {result['full_to_bare']:.2f} | |")
  lines.append(f"| full ÷ Pillow | {result['full_to_pillow']:.2f} | |")
  ratio = result["full_to_pillow_draft"]
  lines.append(f"| full ÷ Pillow draft | {ratio:.2f} | |")
  return "\n".join(lines)


# ------------------------------------------------------------------ TensorFlow


def tensorflow_pipelines(files, arguments):
  """Makes functions from seconds to the images made and the time it took."""
  import tensorflow as tf

  from halonet.data import preprocessing
  from halonet.errors import RunError

  def bare(path, seed):
    window = functools.partial(
      preprocessing.random_window, least_area=LEAST_AREA, seed=seed
    )
    size = arguments.image_size
    image = preprocessing.decode_crop(tf.io.read_file(path), window, size)
    # One number, so that batching costs nothing.
    return preprocessing.resize_crop(image, size)[0, 0, 0]

  def bare_batches():
    stream = tf.data.Dataset.from_tensor_slices(files).repeat()
    stream = stream.shuffle(len(files)).enumerate()
    stream = stream.map(
      lambda index, path: bare(path, tf.stack([0, index])),
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    stream = stream.batch(BATCH_SIZE).prefetch(2)
    try:
      yield from stream.as_numpy_iterator()
    except tf.errors.OpError as error:
      raise RunError(f"an image cannot be read: {error.message}") from None

  def counter(batches):
    def count_for(seconds):
      start, batches_made = time.perf_counter(), 0
      while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        batches_made += 1
      return batches_made * BATCH_SIZE, passed

    return count_for

  return {
    "bare": counter(bare_batches()),
    "full": counter(train_batches(files, arguments, "float32")),
    "full bfloat16": counter(train_batches(files, arguments, "bfloat16")),
  }


def train_batches(files, arguments, image_dtype):
  """The stream that a training on a folder of these files reads."""
  import tensorflow as tf

  from halonet.data import pipeline, sources
  from halonet.training.config import default_config

  config = default_config()
  config.batch_size = BATCH_SIZE
  config.data.name = "folder"
  config.data.image_size = arguments.image_size
  config.data.image_dtype = image_dtype
  config.data.crop_area = LEAST_AREA
  config.data.randaugment_layers = LAYERS
  config.data.randaugment_magnitude = MAGNITUDE

  def read(shard, skip, take):
    path = tf.constant(files)[shard % len(files)]
    example = {"image": tf.io.read_file(path), "label": tf.zeros([], tf.int64)}
    return tf.data.Dataset.from_tensors(example).skip(skip).take(take)

  # As many as ImageNet's, over and over the same: an epoch begins rarely.
  names = np.resize(np.array(files), EXAMPLES)
  zeros, ones = np.zeros(EXAMPLES, np.int64), np.ones(EXAMPLES, np.int64)
  split = sources.Split(names, zeros, ones, read)
  return pipeline.train_batches(split, config)


# ---------------------------------------------------------------------- Pillow


@contextlib.contextmanager
def pillow_workers(files, arguments, *, draft):
  """Starts the workers; gives a function as `tensorflow_pipelines` does.

  The workers rest except while that function runs.
  """
  from halonet.errors import RunError

  # Spawned: forked ones could inherit TensorFlow's locks.
  context = multiprocessing.get_context("spawn")
  processes = len(os.sched_getaffinity(0))
  running = context.Event()
  counts = context.Array("q", processes, lock=False)
  workers = [
    context.Process(
      target=work,
      args=(files, arguments.image_size, draft, number, running, counts),
      daemon=True,
    )
    for number in range(processes)
  ]

  def count_for(seconds):
    before, start = sum(counts), time.perf_counter()
    running.set()
    time.sleep(seconds)
    images, passed = sum(counts) - before, time.perf_counter() - start
    running.clear()
    if not all(worker.is_alive() for worker in workers):
      raise RunError("a worker of Pillow's has failed; see above")
    return images, passed

  try:
    for worker in workers:
      worker.start()
    yield count_for
  finally:
    for worker in workers:
      worker.kill()
      worker.join()


def work(files, image_size, draft, number, running, counts) -> None:
  """Makes images without end and counts them, while `running` is set."""
  choices = random.Random(number)
  # A parent that was killed does not end its children.
  while multiprocessing.parent_process().is_alive():
    if not running.wait(timeout=1):
      continue
    pillow_image(choices.choice(files), image_size, choices, draft=draft)
    counts[number] += 1


def pillow_image(
  path: str, size: int, choices: random.Random, *, draft: bool
) -> np.ndarray:
  """What `pipeline.train_batches` does to an image, by Pillow and NumPy."""
  with Image.open(path) as image:
    window = random_window(*image.size, choices)
    ratio = 1
    if draft:
      spare = min(window[2], window[3]) // size
      ratio = 2 ** min(3, max(0, spare.bit_length() - 1))
    if ratio > 1:
      image.draft("RGB", [side // ratio for side in image.size])
    left, top, width, height = (side // ratio for side in window)
    image = image.convert("RGB")
  image = image.resize(
    (size, size),
    Image.Resampling.BILINEAR,
    box=(left, top, left + width, top + height),
  )
  if choices.random() < 0.5:
    image = ImageOps.mirror(image)
  for _ in range(LAYERS):
    operation = choices.choice(list(OPERATIONS.values()))
    image = operation(image, choices.choice((-1, 1)) * MAGNITUDE / 10)
  scale, offset = normalisation(size)
  rows = np.asarray(image, np.float32).reshape(size, size * 3)
  rows = rows * scale
  rows += offset
  return rows.reshape(size, size, 3)


@functools.cache
def normalisation(size):
  """Factors and summands for a row of pixels."""
  mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
  rows = np.tile(1 / (255 * std), size), np.tile(-mean / std, size)
  return tuple(row.astype(np.float32) for row in rows)


def random_window(width, height, choices):
  """Left, top, width and height, distributed as in preprocessing.py."""
  aspect = choices.uniform(3 / 4, 4 / 3)
  most = min(height, int(width / aspect))
  least = min(most, round(math.sqrt(LEAST_AREA * width * height / aspect)))
  rows = max(1, choices.randint(least, most))
  columns = min(width, max(1, round(rows * aspect)))
  left, top = (
    choices.randint(0, width - columns),
    choices.randint(0, height - rows),
  )
  return left, top, columns, rows


def affine(image, *coefficients):
  return image.transform(
    image.size, Image.Transform.AFFINE, coefficients, fillcolor=GREY
  )


# The same as halonet/data/randaugment.py's, with its ranges; s is −1 … 1.
OPERATIONS = {
  "identity": lambda image, s: image,
  "autocontrast": lambda image, s: ImageOps.autocontrast(image),
  "equalize": lambda image, s: ImageOps.equalize(image),
  "rotate": lambda image, s: image.rotate(30 * s, fillcolor=GREY),
  "solarize": lambda image, s: ImageOps.solarize(image, 256 - 256 * abs(s)),
  "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
  "posterize": lambda image, s: ImageOps.posterize(
    image, 8 - round(4 * abs(s))
  ),
  "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(
    1 + 0.9 * s
  ),
  "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(
    1 + 0.9 * s
  ),
  "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(
    1 + 0.9 * s
  ),
  "shear_x": lambda image, s: affine(image, 1, 0.3 * s, 0, 0, 1, 0),
  "shear_y": lambda image, s: affine(image, 1, 0, 0, 0.3 * s, 1, 0),
  "translate_x": lambda image, s: affine(
    image, 1, 0, 150 / 331 * s * image.width, 0, 1, 0
  ),
  "translate_y": lambda image, s: affine(
    image, 1, 0, 0, 0, 1, 150 / 331 * s * image.height
  ),
}


if __name__ == "__main__":
  from halonet import command

  command.run(main)
