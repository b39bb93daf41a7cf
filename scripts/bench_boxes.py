"""Measures how many images with boxes per second the input pipeline makes.

  python scripts/bench_boxes.py FOLDER [--image_size=640]

FOLDER is a data set of the kind coco_json with a split `train`, or holds JPEGs
at any depth, which then get 20 random boxes each. The pipelines take turns, and
images are counted, as in scripts/bench_input.py:

  decode  every image is decoded whole, and nothing else.
  bare    this project's decoding of the part that is shown, at a reduced size
          where its scale allows, and the resize: the least that training needs.
  full    the training stream of detection: shuffled, decoded, scaled, cropped,
          padded, flipped, boxes moved, in batches of 64, normalised to float32.
"""

# No TensorFlow up here, as in bench_input.
import argparse
import functools
import os
import pathlib
import statistics

import bench_input
import numpy as np

from halonet import command
from halonet.errors import RunError

BOXES = 20
CONFIG = f"{pathlib.Path(__file__).parents[1]}/configs/detection/small.py"


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
  positive = command.positive
  parser.add_argument(
    "--image_size", type=positive(int), default=640, metavar="PIXELS"
  )
  parser.add_argument(
    "--scale_jitter",
    type=positive(float),
    nargs=2,
    default=(0.5, 2.0),
    metavar=("LEAST", "MOST"),
    help="config.data.scale_jitter (default: 0.5 2)",
  )
  parser.add_argument(
    "--randaugment_layers",
    type=int,
    default=0,
    metavar="N",
    help="colour operations per image in full (default: 0)",
  )
  parser.add_argument(
    "--seconds",
    type=positive(float),
    default=10.0,
    help=f"per pipeline and round, of {bench_input.ROUNDS} (default: 10)",
  )
  command.add_output(parser, "--json")
  arguments = parser.parse_args()

  os.environ["JAX_PLATFORMS"] = "cpu"
  if split := json_split(arguments.folder, needs={}):
    files = split.files.tolist()
    size = sum(map(os.path.getsize, files))
  else:
    files, size = bench_input.read_files(arguments.folder)
  cores = len(os.sched_getaffinity(0))
  about = f"{len(files)} images of {size / len(files) / 1e3:.0f} kB on average"
  print(f"{about}; {cores} cores; {arguments.image_size} pixels", flush=True)
  given = argparse.Namespace(**vars(arguments), files=files)
  pipelines = {
    "decode": (functools.partial(decoded_batches, given, whole=True), 1),
    "bare": (functools.partial(decoded_batches, given, whole=False), 1),
    "full": (functools.partial(train_batches, given), 1),
  }
  rates = bench_input.in_turns(pipelines, arguments.seconds)
  medians = {name: statistics.median(rates[name]) for name in rates}
  rows = [
    (name, f"{medians[name]:.1f}", " ".join(f"{x:.0f}" for x in rates[name]))
    for name in rates
  ]
  ratios = {}
  for other in ("decode", "bare"):
    ratios[f"full_to_{other}"] = medians["full"] / medians[other]
    rows.append((f"full ÷ {other}", f"{ratios[f'full_to_{other}']:.2f}", "–"))
  print(command.table(("pipeline", "images/s", "rounds"), rows, left=3))
  result = vars(arguments) | {
    "folder": str(arguments.folder),
    "json": str(arguments.json),
    "images": len(files),
    "bytes": size,
    "cores": cores,
    "rounds": rates,
    "images_per_second": medians,
  }
  command.write_json(arguments.json, result | ratios)


def decoded_batches(given, number, *, whole):
  from halonet.data import detection_images, preprocessing
  from halonet.data.runtime import tf

  size, jitter = given.image_size, given.scale_jitter

  def part(path, seed):
    encoded = tf.io.read_file(path)
    if whole:
      image = preprocessing.decode(encoded)
    else:
      image, *_ = detection_images.random_scale(encoded, size, jitter, seed)
    return image[0, 0, 0]  # One number, so that batching costs nothing.

  stream = tf.data.Dataset.from_tensor_slices(given.files).repeat()
  stream = stream.shuffle(len(given.files)).enumerate()
  stream = stream.map(
    lambda index, path: part(
      path, tf.stack([number, tf.cast(index, tf.int32)])
    ),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  stream = stream.batch(bench_input.BATCH_SIZE).prefetch(2)
  try:
    yield from stream.as_numpy_iterator()
  except tf.errors.OpError as error:
    line = error.message.strip().splitlines()[0]
    raise RunError(f"an image cannot be read: {line}") from None


def train_batches(given, number):
  """Returns the stream that a training on these images reads."""
  from halonet.data import pipeline
  from halonet.tasks.task import make_task
  from halonet.training.config import load_config

  least, most = given.scale_jitter
  overrides = f"""seed={number} batch_size={bench_input.BATCH_SIZE}
    data.image_size={given.image_size} data.image_dtype=float32
    data.scale_jitter=({least},{most}) data.randaugment_policy=color
    data.randaugment_layers={given.randaugment_layers}"""
  task = make_task(load_config(CONFIG, overrides.split()))
  return pipeline.train_batches(split_of(given, task), task)


def json_split(folder, needs):
  """Returns the split `train` of a COCO JSON, or None if there is none."""
  places = folder, folder / "annotations"
  if not any((place / "instances_train.json").exists() for place in places):
    return None
  import ml_collections

  from halonet.data.coco_source import CocoJsonSource

  data = dict(name="coco_json", data_dir=str(folder), train_split="train")
  source = CocoJsonSource(ml_collections.ConfigDict(data), needs)
  return source.split("train_split", "train")


def split_of(given, task):
  """Returns the images many times over, so that an epoch begins rarely."""
  from halonet.data.runtime import tf
  from halonet.data.sources import Split

  files = given.files
  if split := json_split(given.folder, task.needs):
    one = split.read_one
  else:
    ends = np.random.default_rng(0).random((len(files), BOXES, 2, 2), "f")
    boxes = np.concatenate([ends.min(2), ends.max(2)], -1)
    names, boxes = tf.constant(files), tf.constant(boxes)

    def one(shard):
      return {
        "image": tf.io.read_file(tf.gather(names, shard)),
        "objects": {
          "bbox": tf.gather(boxes, shard),
          "label": tf.zeros([BOXES], tf.int64),
          "is_crowd": tf.zeros([BOXES], tf.bool),
        },
      }

  names = np.resize(np.array(files, object), bench_input.EXAMPLES)
  return Split.of_files(names, lambda shard: one(shard % len(files)))


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
