"""Data sets by name, and the batches that training and evaluation read.

The training stream is a pure function of (seed, position): epoch after epoch,
each in an order of its own that follows from the seed. Its state is therefore
one number, the batches delivered so far, and restoring it rebuilds the stream
from there. Records that are passed over are read but not decoded.
"""

import itertools
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import halonet.data.digits  # noqa: F401  Makes "digits" known to TFDS.
from halonet.data import preprocessing
from halonet.errors import RunError, UsageError, unknown

# Named when a data set is not found; TFDS knows some hundreds more.
_WELL_KNOWN = (
  "digits",
  "mnist",
  "cifar10",
  "cifar100",
  "imagenet2012",
  "imagenette",
  "oxford_flowers102",
  "food101",
)

# JAX owns the accelerators; TensorFlow reads files and decodes images.
tf.config.set_visible_devices([], "GPU")

Batch = dict[str, np.ndarray]


def load_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Finds an image classification data set.

  Args:
    name: a TFDS name, `cifar10` or `cifar10:3.*.*`, or `digits`.
    data_dir: where TFDS keeps prepared data, local or `gs://`; if None, where
      TFDS does by itself (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

  Raises:
    UsageError: if there is no such data set, or it has no images with labels.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ImportError):
    everything = {*tfds.list_builders(with_community_datasets=False), "digits"}
    near = unknown("data set", name, everything).split("known:")[0]
    raise UsageError(
      f"config.data.name: {near}known: {', '.join(_WELL_KNOWN)}, and all"
      f" {len(everything)} of tensorflow.org/datasets/catalog"
    ) from None
  except Exception as error:  # A wrong version, a wrong variant, a bad folder.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UsageError(
      f"config.data.name: {name!r} cannot be opened: {reason[:300]}"
    ) from error
  features = builder.info.features
  for feature, kind in (
    ("image", tfds.features.Image),
    ("label", tfds.features.ClassLabel),
  ):
    found = features[feature] if feature in (features or ()) else None
    if not isinstance(found, kind):
      raise UsageError(
        f"config.data.name is {name!r}, which is no image classification data"
        f" set: it has no feature {feature!r} of the kind {kind.__name__}"
      )
  return builder


def prepare(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Finds a data set; downloads and writes its records unless they are there.

  Raises:
    UsageError: if that fails, with TFDS's reason; or as for `load_builder`.
  """
  builder = load_builder(name, data_dir)
  if builder.is_prepared():
    return builder
  print(f"Preparing data set {builder.name} in {builder.data_dir}", flush=True)
  try:
    builder.download_and_prepare(file_format="tfrecord")
  except Exception as error:  # Any of TFDS's, of the network's, of the disk's.
    # Another process may have been faster.
    again = load_builder(name, data_dir)
    if again.is_prepared():
      return again
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UsageError(
      f"config.data.name: {builder.name} could not be prepared in"
      f" {builder.data_dir}: {reason[0]}"
    ) from error
  return builder


def split_size(
  builder: tfds.core.DatasetBuilder, field: str, split: str
) -> int:
  """Counts a split's examples; `field` is named if the split is wrong.

  Raises:
    UsageError: if there is no such split, or it is empty.
  """
  try:
    size = builder.info.splits[split].num_examples
  except (KeyError, ValueError, AssertionError, TypeError):
    message = unknown("split", split, builder.info.splits)
    raise UsageError(f"config.data.{field}: {message}") from None
  if size <= 0:
    raise UsageError(f"config.data.{field}: split {split} is empty")
  return size


def train_batches(
  builder: tfds.core.DatasetBuilder,
  config: ml_collections.ConfigDict,
  *,
  start: int = 0,
) -> Iterator[Batch]:
  """Iterates without end over the shuffled training split.

  Args:
    builder: a prepared data set.
    config: a training config.
    start: how many batches have been consumed before, by a run that goes on.

  Returns:
    An iterator of dicts of `image`, float32 `[local batch, image_size,
    image_size, 3]`, and `label`, int32 `[local batch]`. An epoch holds every
    example once; a batch may span two epochs. With several processes each
    gets its own part of every global batch.
  """
  data = config.data
  epoch_size = split_size(builder, "train_split", data.train_split)
  first_epoch, passed = divmod(start * config.batch_size, epoch_size)
  examples = _records(builder, data.train_split).enumerate()

  def epoch(number):
    seed = tf.random.stateless_uniform(
      [], [config.seed, number], None, None, tf.int64
    )
    order = examples.shuffle(min(epoch_size, data.shuffle_buffer), seed=seed)
    return order.map(lambda index, example: (number, index, example))

  def preprocess(number, index, example):
    # (seed, epoch, example) decide every random choice.
    seed = tf.cast([config.seed, number], tf.int32)
    seed = tf.random.experimental.stateless_fold_in(seed, index)
    return {
      "image": preprocessing.train_image(example["image"], data, seed),
      "label": tf.cast(example["label"], tf.int32),
    }

  stream = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
  stream = stream.flat_map(epoch).skip(passed)
  stream = stream.shard(jax.process_count(), jax.process_index())
  stream = stream.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
  stream = stream.batch(config.batch_size // jax.process_count())
  return _iterate(stream.prefetch(2))


def test_batches(
  builder: tfds.core.DatasetBuilder, config: ml_collections.ConfigDict
) -> Iterator[Batch]:
  """Iterates once over the test split, in batches of one size.

  Beside `image` and `label`, as for training, a batch has `weight`, float32
  `[local batch]`: 1 for every image of the split, 0 for the fillers that make
  the last batches whole, so that every process sees the same number of them.
  """
  data = config.data
  size = split_size(builder, "test_split", data.test_split)

  def preprocess(example):
    return {
      "image": preprocessing.test_image(example["image"], data),
      "label": tf.cast(example["label"], tf.int32),
      "weight": 1.0,
    }

  stream = _records(builder, data.test_split)
  filler = {
    "image": tf.zeros((data.image_size, data.image_size, 3)),
    "label": 0,
    "weight": 0.0,
  }
  fillers = tf.data.Dataset.from_tensors(filler).repeat(
    -size % config.batch_size
  )
  # Deterministic maps keep the fillers last.
  stream = stream.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
  stream = stream.concatenate(fillers)
  stream = stream.shard(jax.process_count(), jax.process_index())
  stream = stream.batch(config.batch_size // jax.process_count())
  return _iterate(stream.prefetch(2))


def on_device(
  batches: Iterator[Batch], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
  """Moves batches to the devices, a few ahead of their use.

  Each process gives its part; together they are one global array, split along
  its first axis as `sharding` says.
  """

  def move(batch):
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )

  waiting = [move(batch) for batch in itertools.islice(batches, ahead)]
  while waiting:
    yield waiting.pop(0)
    waiting.extend(move(batch) for batch in itertools.islice(batches, 1))


def _records(builder, split):
  """Encoded examples in the order of the files, the same every time."""
  return builder.as_dataset(
    split=split,
    shuffle_files=False,
    decoders={"image": tfds.decode.SkipDecoding()},
    read_config=tfds.ReadConfig(try_autocache=False),
  ).map(lambda example: {key: example[key] for key in ("image", "label")})


def _iterate(dataset):
  batches = iter(dataset.as_numpy_iterator())
  while True:
    try:
      yield next(batches)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      reason = error.message.strip().splitlines()[0]
      raise RunError(f"a record cannot be read: {reason}") from error
