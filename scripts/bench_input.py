"""Measures how many images per second the input pipeline makes.

  python scripts/bench_input.py FOLDER [--image_size=256]

FOLDER holds JPEGs, at any depth. Each pipeline has processes of its own. They
take turns, for some seconds in each of three rounds, and have all cores that
this process may use (`taskset -c 0-3 python …` leaves four) while the others
rest. The medians are compared:

  bare           this project's fused decoding and random cropping, and the
                 resize, and nothing else: the least that training needs.
  full           this project's training stream, `pipeline.train_batches`:
                 shuffled, decoded, cropped, resized, flipped, RandAugment(2,
                 10), in batches of 64, normalised to float32.
  full bfloat16  the same, normalised to bfloat16.
  Pillow         the same as full, with Pillow and NumPy, in one worker process
                 per core. Every JPEG is decoded whole, as torchvision and timm
                 do. A worker writes its images straight into one of two batches
                 in shared memory: nothing is sent.
  Pillow draft   the same, but a JPEG is decoded at a reduced size, as in bare
                 and full, where the crop is twice as large as needed.

An image counts when its batch is delivered. The rate of a process is that
between two deliveries, the last of the warm-up and the last of the seconds, so
only whole batches count. The warm-up before each count covers the start and
what was buffered during the rest. The files are read beforehand, so they come
from the system's file cache as long as there is memory for it.
"""

# No TensorFlow up here: Pillow's workers read this module as well.
import contextlib
import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from halonet import command
from halonet.errors import RunError, UsageError

CONFIG = f"{pathlib.Path(__file__).parents[1]}/configs/imagenet/halonet.py:h0"
ROUNDS = 3
WARM_UP_SECONDS = 1.5
BATCH_SIZE = 64
MAX_FILES = 5000
EXAMPLES = 1_281_167
LAYERS, MAGNITUDE = 2, 10.0
LEAST_AREA = 0.08
GREY = (128, 128, 128)  # What pixels from outside of an image become.


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
  side = command.positive(int)
  parser.add_argument("--image_size", type=side, default=256, metavar="PIXELS")
  parser.add_argument(
    "--seconds",
    type=command.positive(float),
    default=10.0,
    help=f"per pipeline and round, of {ROUNDS} rounds (default: 10)",
  )
  command.add_output(parser, "--json")
  arguments = parser.parse_args()

  cores = len(os.sched_getaffinity(0))
  files, size = read_files(arguments.folder)
  about = f"{len(files)} JPEGs of {size / len(files) / 1e3:.0f} kB on average"
  print(f"{about}; {cores} cores; {arguments.image_size} pixels", flush=True)
  # For the processes: several cannot share an accelerator.
  os.environ["JAX_PLATFORMS"] = "cpu"
  rates = measure(files, arguments.image_size, arguments.seconds, cores)
  medians = {name: statistics.median(rates[name]) for name in rates}
  result = vars(arguments) | {
    "folder": str(arguments.folder),
    "json": str(arguments.json),
    "images": len(files),
    "bytes": size,
    "cores": cores,
    "rounds": rates,
    "images_per_second": medians,
  }
  for other in ("bare", "Pillow", "Pillow draft"):
    name = "full_to_" + other.lower().replace(" ", "_")
    result[name] = medians["full"] / medians[other]
  print(table(result))
  command.write_json(arguments.json, result)


def read_files(folder: pathlib.Path) -> tuple[list[str], int]:
  """Finds up to `MAX_FILES` JPEGs; returns their paths and size in bytes."""
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


def measure(files, image_size, seconds, cores) -> dict[str, list[float]]:
  partial = functools.partial
  pipelines = {
    "bare": (bare_batches, 1),
    "full": (partial(train_batches, image_dtype="float32"), 1),
    "full bfloat16": (partial(train_batches, image_dtype="bfloat16"), 1),
    "Pillow": (partial(pillow_batches, draft=False), cores),
    "Pillow draft": (partial(pillow_batches, draft=True), cores),
  }
  pipelines = {
    name: (partial(make, files, image_size), processes)
    for name, (make, processes) in pipelines.items()
  }
  return in_turns(pipelines, seconds)


def in_turns(pipelines, seconds) -> dict[str, list[float]]:
  """Runs pipelines in turns; returns images per second in every round.

  `pipelines` has what `started` takes, by name: `make` and `processes`.
  """
  with contextlib.ExitStack() as stack:
    meters = {}
    for name, (make, processes) in pipelines.items():
      meters[name] = stack.enter_context(started(name, make, processes))
    rates = {name: [] for name in meters}
    warm_up = min(WARM_UP_SECONDS, seconds)
    print("Warming up", flush=True)
    for rate in meters.values():  # Compiles, and starts all threads.
      rate(warm_up, seconds)
    for number in range(ROUNDS):
      for name, rate in meters.items():
        rates[name].append(rate(warm_up, seconds))
        done = f"round {number + 1}/{ROUNDS} {name:13}"
        print(f"{done} {rates[name][-1]:8.1f} images/s", flush=True)
  return rates


def table(result: dict) -> str:
  rows = [
    (
      name,
      f"{median:.1f}",
      " ".join(f"{x:.0f}" for x in result["rounds"][name]),
    )
    for name, median in result["images_per_second"].items()
  ]
  for other in ("bare", "Pillow", "Pillow draft"):
    ratio = result["full_to_" + other.lower().replace(" ", "_")]
    rows.append((f"full ÷ {other}", f"{ratio:.2f}", "–"))
  return command.table(("pipeline", "images/s", "rounds"), rows, left=3)


# ------------------------------------------------------------------- processes


@contextlib.contextmanager
def started(
  name: str, make: Callable[[int], Iterator], processes: int
) -> Iterator[Callable[[float, float], float]]:
  """Starts a pipeline's processes, which rest except while it is measured.

  `make`, which is pickled, takes a process's number and returns its batches;
  at a None among them it may rest. Yields a function that takes the seconds to
  warm up and to count, and returns images per second. It raises RunError if a
  process has ended.
  """
  # Spawned: forked ones could inherit locks.
  context = multiprocessing.get_context("spawn")
  running, failure = context.Event(), context.SimpleQueue()
  # Each holds the images so far and when the last of them were delivered.
  marks = [context.Array("d", 2) for _ in range(processes)]
  workers = []
  for number, mark in enumerate(marks):
    given = make, number, running, mark, failure
    workers.append(context.Process(target=work, args=given, daemon=True))

  def wait(seconds):
    ends = [worker.sentinel for worker in workers]
    if ended := multiprocessing.connection.wait(ends, seconds):
      worker = workers[ends.index(ended[0])]
      worker.join()  # The code may come a moment after the end.
      code = worker.exitcode
      why = f"exit code {code}" if failure.empty() else failure.get()
      raise RunError(f"a process of the pipeline {name} has ended: {why}")

  def run(seconds):
    """Returns the marks after `seconds`, when every process has delivered."""
    before = np.array([mark[:] for mark in marks])
    wait(seconds)
    while ((now := np.array([mark[:] for mark in marks])) == before).any():
      wait(0.05)
    return now

  def rate(warm_up, seconds):
    running.set()
    first, last = run(warm_up), run(seconds)
    running.clear()
    images, times = (last - first).T
    return float((images / times).sum())

  try:
    for worker in workers:
      worker.start()
    yield rate
  finally:
    for worker in workers:
      worker.kill()
      worker.join()


def work(make, number, running, mark, failure) -> None:
  """Takes batches while `running` is set, and marks what is delivered."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent's to handle.
  images = 0
  try:
    batches = make(number)
    # A parent that was killed does not end its children.
    while multiprocessing.parent_process().is_alive():
      if running.wait(timeout=1) and next(batches) is not None:
        images += BATCH_SIZE
        mark[:] = images, time.perf_counter()
  except RunError as error:
    failure.put(str(error))
    raise SystemExit(error.exit_code) from None


# ------------------------------------------------------------------ TensorFlow


def bare_batches(files, size, number):
  from halonet.data import preprocessing
  from halonet.data.runtime import tf

  def bare(path, seed):
    window = functools.partial(
      preprocessing.random_window, least_area=LEAST_AREA, seed=seed
    )
    image, _ = preprocessing.decode_crop(tf.io.read_file(path), window, size)
    # One number, so that batching costs nothing.
    return preprocessing.resize_crop(image, size)[0, 0, 0]

  stream = tf.data.Dataset.from_tensor_slices(files).repeat()
  stream = stream.shuffle(len(files)).enumerate()
  stream = stream.map(
    lambda index, path: bare(path, tf.stack([number, index])),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  stream = stream.batch(BATCH_SIZE).prefetch(2)
  try:
    yield from stream.as_numpy_iterator()
  except tf.errors.OpError as error:
    line = error.message.strip().splitlines()[0]
    raise RunError(f"an image cannot be read: {line}") from None


def train_batches(files, size, number, *, image_dtype):
  """Returns the stream that a training on a folder of these files reads."""
  from halonet.data import pipeline
  from halonet.data.runtime import tf
  from halonet.data.sources import Split
  from halonet.tasks.task import make_task
  from halonet.training.config import load_config

  overrides = f"""seed={number} batch_size={BATCH_SIZE} data.image_size={size}
    data.image_dtype={image_dtype} data.crop_area={LEAST_AREA}
    data.randaugment_policy=autoaugment
    data.randaugment_layers={LAYERS} data.randaugment_magnitude={MAGNITUDE}"""
  config = load_config(CONFIG, overrides.split())

  def read_one(shard):
    path = tf.gather(tf.constant(files), shard % len(files))
    return {"image": tf.io.read_file(path), "label": tf.zeros([], tf.int64)}

  # As many as ImageNet's, over and over the same: an epoch begins rarely.
  names = np.resize(np.array(files, object), EXAMPLES)
  split = Split.of_files(names, read_one)
  return pipeline.train_batches(split, make_task(config))


# ---------------------------------------------------------------------- Pillow


def pillow_batches(files, size, number, *, draft):
  """Yields two batches in turn, made anew, and None before every image."""
  choices = random.Random(number)
  shape = (2, BATCH_SIZE, size, size, 3)
  memory = multiprocessing.RawArray("f", math.prod(shape))
  for batch in itertools.cycle(np.frombuffer(memory, "f").reshape(shape)):
    for place in batch:
      yield None
      path = choices.choice(files)
      try:
        pillow_image(path, place, choices, draft=draft)
      except OSError as error:
        raise RunError(f"{path} cannot be decoded: {error}") from None
    yield batch


def pillow_image(
  path: str, place: np.ndarray, choices: random.Random, *, draft: bool
) -> None:
  """Does what `pipeline.train_batches` does to an image, with Pillow and NumPy.

  The result is written into `place`, `[size, size, 3]` float32.
  """
  size = len(place)
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
  box = left, top, left + width, top + height
  image = image.resize((size, size), Image.Resampling.BILINEAR, box)
  if choices.random() < 0.5:
    image = ImageOps.mirror(image)
  for _ in range(LAYERS):
    operation = choices.choice(list(OPERATIONS.values()))
    image = operation(image, choices.choice((-1, 1)) * MAGNITUDE / 10)
  scale, offset = normalisation(size)
  place[...] = image
  rows = place.reshape(size, size * 3)
  np.multiply(rows, scale, out=rows)
  np.add(rows, offset, out=rows)


@functools.cache
def normalisation(size):
  """Returns factors and summands for a row of pixels."""
  mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
  rows = np.tile(1 / (255 * std), size), np.tile(-mean / std, size)
  return tuple(row.astype(np.float32) for row in rows)


def random_window(width, height, choices):
  """Draws left, top, width and height as `preprocessing` does."""
  aspect = choices.uniform(3 / 4, 4 / 3)
  most = min(height, int(width / aspect))
  least = min(most, round(math.sqrt(LEAST_AREA * width * height / aspect)))
  rows = max(1, choices.randint(least, most))
  columns = min(width, max(1, round(rows * aspect)))
  left = choices.randint(0, width - columns)
  top = choices.randint(0, height - rows)
  return left, top, columns, rows


def affine(image, *matrix):
  kind = Image.Transform.AFFINE
  return image.transform(image.size, kind, matrix, fillcolor=GREY)


def enhance(kind):
  return lambda image, s: kind(image).enhance(1 + 0.9 * s)


SHIFT = 150 / 331
# The same as halonet/data/randaugment.py's, with its ranges; s is −1 … 1.
OPERATIONS = {
  "identity": lambda im, s: im,
  "autocontrast": lambda im, s: ImageOps.autocontrast(im),
  "equalize": lambda im, s: ImageOps.equalize(im),
  "rotate": lambda im, s: im.rotate(30 * s, fillcolor=GREY),
  "solarize": lambda im, s: ImageOps.solarize(im, 256 - 256 * abs(s)),
  "color": enhance(ImageEnhance.Color),
  "posterize": lambda im, s: ImageOps.posterize(im, 8 - round(4 * abs(s))),
  "contrast": enhance(ImageEnhance.Contrast),
  "brightness": enhance(ImageEnhance.Brightness),
  "sharpness": enhance(ImageEnhance.Sharpness),
  "shear_x": lambda im, s: affine(im, 1, 0.3 * s, 0, 0, 1, 0),
  "shear_y": lambda im, s: affine(im, 1, 0, 0, 0.3 * s, 1, 0),
  "translate_x": lambda im, s: affine(im, 1, 0, SHIFT * s * im.width, 0, 1, 0),
  "translate_y": lambda im, s: affine(im, 1, 0, 0, 0, 1, SHIFT * s * im.height),
}


if __name__ == "__main__":
  command.run(main)
