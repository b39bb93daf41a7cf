#!/usr/bin/env python
"""Prepares a data set ahead of a training, or checks one that is there.

python scripts/prepare_data.py imagenet2012 --data_dir=gs://BUCKET/tfds
python scripts/prepare_data.py folder --data_dir=DIR --test_split=val
python scripts/prepare_data.py coco_json --data_dir=DIR --verify
"""

import collections
import os
import shlex
import time

from halonet import command
from halonet.errors import RunError, UsageError

# Files that TFDS cannot download by itself, and their sizes in bytes.
_MANUAL = {
  "imagenet2012": {
    "ILSVRC2012_img_train.tar": 147_897_477_120,
    "ILSVRC2012_img_val.tar": 6_744_924_160,
  }
}


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument(
    "name",
    help='value of config.data.name: a TFDS name, "folder" or "coco_json"',
  )
  parser.add_argument(
    "--data_dir", metavar="DIR", help="value of config.data.data_dir"
  )
  parser.add_argument("--train_split", default="train", metavar="SPLIT")
  parser.add_argument(
    "--test_split",
    metavar="SPLIT",
    help='"validation" by default if there is one, else "test"',
  )
  parser.add_argument(
    "--verify", action="store_true", help="read and decode every image as well"
  )
  arguments = parser.parse_args()

  import ml_collections

  from halonet.data import sources

  names = "name", "data_dir", "train_split"
  data = ml_collections.ConfigDict({x: getattr(arguments, x) for x in names})
  data.skip_corrupt = arguments.verify  # It names them all.
  source = sources.describe(data, needs={})
  builder = getattr(source, "builder", None)
  if builder and not builder.is_prepared():
    check_manual_files(builder)
    print(
      f"Next: {builder.name} is downloaded and written as TFRecord files to"
      f" {builder.data_dir}, which may take hours for a large one",
      flush=True,
    )
  source.prepare()
  test_split = arguments.test_split or default_test_split(data, source)
  splits = {"train_split": arguments.train_split, "test_split": test_split}
  print(f"{source.name} in {source.location}: {', '.join(source.features)}")
  bad = {}
  for field, name in splits.items():
    split = source.split(field, name)
    check_files(split)
    print(
      f"{name}: {split.size} images in {len(split.files)} files; all are there",
      flush=True,
    )
    for line in source.report(field, name):
      print(line, flush=True)
    if arguments.verify:
      bad |= verify(name, split)
  problems = []
  if bad:
    places = "; ".join(list(bad)[:10]) + ("; …" if len(bad) > 10 else "")
    problems.append(
      f"{sum(bad.values())} images cannot be decoded: {places}. Mend them, or"
      " train with config.data.skip_corrupt=true"
    )
  if arguments.verify:
    for field, name in splits.items():
      try:
        source.check(field, name)
      except UsageError as error:
        problems.append(str(error))
  if problems:
    raise (RunError if bad else UsageError)(". ".join(problems))
  options = [f"--config.data.name={arguments.name}"]
  if arguments.data_dir:
    options.append(f"--config.data.data_dir={arguments.data_dir}")
  options += [f"--config.data.{key}={value}" for key, value in splits.items()]
  print(f"Next: scripts/train.sh --config=CONFIG {shlex.join(options)}")


def default_test_split(data, source) -> str:
  """Returns the split that a data set's publishers measure on."""
  for name in ("validation", "val", "test"):
    try:
      source.split("test_split", name)
    except UsageError as error:
      if "there is no" in str(error):
        continue
      raise
    return name
  raise UsageError(
    f"{data.name} has no split called validation, val or test; name one with"
    " --test_split"
  )


def check_manual_files(builder) -> None:
  """Raises UsageError if files that TFDS cannot download are missing."""
  import tensorflow as tf

  wanted = _MANUAL.get(builder.name, {})
  root = str(builder.data_dir).rsplit(f"/{builder.name}/", 1)[0]
  folder = f"{root}/downloads/manual"
  problems = []
  for name, size in wanted.items():
    path = f"{folder}/{name}"
    if not tf.io.gfile.exists(path):
      problems.append(f"{name} is missing")
    elif (found := tf.io.gfile.stat(path).length) != size:
      problems.append(f"{name} has {found} bytes and should have {size}")
  if problems:
    raise UsageError(
      f"{builder.name} cannot be downloaded without an account:"
      f" {', '.join(problems)}. Get {' and '.join(wanted)} from image-net.org,"
      f" put them in {folder}, and give this command again"
    )
  instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if instructions and not wanted:
    print(
      f"{builder.name} needs files that cannot be downloaded automatically, in"
      f" {folder}:\n{instructions.strip()}",
      flush=True,
    )


def check_files(split) -> None:
  """Raises RunError if a file of a split is missing."""
  import tensorflow as tf

  by_folder = collections.defaultdict(set)
  for path in split.files.tolist():
    by_folder[os.path.dirname(path)].add(os.path.basename(path))
  missing = [
    f"{folder}/{name}"
    for folder, names in by_folder.items()
    for name in sorted(names - set(tf.io.gfile.listdir(folder)))
  ]
  if missing:
    raise RunError(
      f"{len(missing)} files are missing, such as {missing[0]}; move the"
      " folder away and give this command again to prepare it anew"
    )


def verify(name, split) -> dict[str, int]:
  """Decodes every image of a split; counts those that cannot be, by place."""
  import numpy as np

  from halonet.data import preprocessing
  from halonet.data.runtime import CORES, tf

  def corrupt(number, example):
    image = tf.data.Dataset.from_tensors(example["image"])
    image = image.map(preprocessing.decode_stored).ignore_errors()
    return number, tf.equal(image.reduce(0, lambda count, _: count + 1), 0)

  numbers = np.cumsum(split.sizes) - split.sizes
  shards = np.arange(len(split.sizes), dtype=np.int64)
  parts = tf.data.Dataset.from_tensor_slices(
    (shards, split.skips, split.sizes, numbers)
  )

  def examples(shard, skip, take, number):
    # After an error, nothing of a file is left to read.
    return split.read(shard, skip, take).ignore_errors().enumerate(number)

  results = (
    parts.flat_map(examples)
    .map(corrupt, num_parallel_calls=CORES)
    .prefetch(CORES)
  )
  read, bad = np.zeros(split.size, bool), {}

  def say(now):
    rate = read.sum() / (now - started)
    left = f"{(split.size - read.sum()) / rate:.0f} s left" if rate else ""
    print(
      f"{name}: {read.sum()} of {split.size} decoded, {len(bad)} corrupt,"
      f" {rate:.0f} images/s, {left}",
      flush=True,
    )

  started = said = time.perf_counter()
  for number, is_corrupt in results.as_numpy_iterator():
    read[number] = True
    if is_corrupt:
      bad[split.where(int(number))] = 1
    if (now := time.perf_counter()) - said > 5:
      said = now
      say(now)
  say(time.perf_counter())
  for shard, lost in enumerate(np.add.reduceat(~read, numbers, dtype=int)):
    if lost:
      first = numbers[shard] + split.sizes[shard] - lost
      rest = " and the rest of it" if lost > 1 else ""
      bad[split.where(int(first)) + rest] = int(lost)
  return bad


if __name__ == "__main__":
  command.run(main)
