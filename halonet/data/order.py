"""The order in which training and evaluation read examples.

Training reads an endless stream that is a pure function of (seed, position):
epoch after epoch, each in an order of its own. It depends neither on the number
of processes nor on that of devices, and yet each process reads its own files.

A batch has L lanes of equally many rows, and each lane is a stream of its own.
In every epoch the files are put in a random order, one after the other, and cut
into L ranges of equal length, one for each lane. Within its range a lane
shuffles window after window. Processes divide the rows of a batch among
themselves, hence the lanes, hence the files. The position in a lane tells which
files and windows are passed, and they are not read again.
"""

import functools

import jax
import ml_collections
import numpy as np

from halonet.data.runtime import tf
from halonet.data.sources import Split

# Enough for the processes of a large pod. Each lane keeps a file open.
_MOST_LANES = 256
# A lane skips the beginning of its first file, an eighth of all that it reads.
_FILES_PER_LANE = 4

# Branches of the config's seed: no two purposes draw the same numbers.
_ORDER, _EXAMPLE = 0, 1

# Entries for some files: the shard, examples to skip in its file, examples to
# take, and the number of the first of these in the split; int64 each.
Segments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def num_lanes(batch_size: int, files: int) -> int:
  """Returns the number of lanes of a batch, a divisor of the batch size."""
  most = min(_MOST_LANES, max(1, files // _FILES_PER_LANE))
  return max(n for n in range(1, most + 1) if batch_size % n == 0)


def _passed_before(epoch, lane, lanes, size):
  """Counts the examples of a lane in all epochs before one.

  Example i of the whole stream, over all epochs, belongs to lane i mod `lanes`.
  """
  return -((lane - epoch * size) // lanes)


def plan(
  split: Split, seed: int, epoch: int, lane: int, lanes: int, passed: int
) -> Segments:
  """Lists what a lane reads in an epoch after its first `passed` examples."""
  up_to = np.arange(lane + 1)
  lengths = _passed_before(epoch + 1, up_to, lanes, split.size)
  lengths -= _passed_before(epoch, up_to, lanes, split.size)
  end = lengths.sum()
  order, starts = _file_order(split, seed, epoch)
  return _segments(split, order, starts, end - lengths[-1] + passed, end)


def _segments(split, order, starts, begin, end) -> Segments:
  """Lists the examples `begin` … `end` of the files in some order."""
  first = np.searchsorted(starts, begin, side="right") - 1
  last = np.searchsorted(starts, end, side="left")
  shards, starts = order[first:last], starts[first:last]
  before = np.maximum(begin - starts, 0)
  takes = np.minimum(split.sizes[shards], end - starts) - before
  numbers = _first_numbers(split)[shards] + before
  return shards, split.skips[shards] + before, takes, numbers


@functools.lru_cache(maxsize=4)
def _file_order(split, seed, epoch):
  # The raw stream of this generator is the same in all versions of NumPy.
  bits = np.random.Philox(key=(seed << 32) + epoch).random_raw(len(split.sizes))
  order = np.argsort(bits, kind="stable")
  sizes = split.sizes[order]
  return order, np.cumsum(sizes) - sizes


@functools.lru_cache(maxsize=4)
def _first_numbers(split):
  return np.cumsum(split.sizes) - split.sizes


def train_records(
  split: Split, config: ml_collections.ConfigDict, *, start: int = 0
) -> tf.data.Dataset:
  """Reads this process's part of the shuffled, endless stream of examples.

  Args:
    split: the split to read.
    config: complete training config.
    start: number of batches consumed before.

  Returns:
    A dataset of the split's examples, each with `number`, its place in the
    split, and `epoch`; int64.
  """
  lanes = num_lanes(config.batch_size, len(split.files))
  rows = config.batch_size // lanes
  # Files of one example each are shuffled as files.
  lone = split.sizes.max() == 1
  window = 1 if lone else max(1, config.data.shuffle_buffer // lanes)
  # The rows of a batch: lane after lane. A process has consecutive ones.
  local = config.batch_size // jax.process_count()
  first_row = local * jax.process_index()
  mine = np.arange(first_row // rows, -(-(first_row + local) // rows))
  first_epochs = (start * config.batch_size + mine) // split.size
  passed = _passed_before(first_epochs, mine, lanes, split.size)

  def files(lane, epoch, passed):
    return plan(split, config.seed, int(epoch), int(lane), lanes, int(passed))

  def epoch_of_lane(lane, epoch, passed):
    first_window = passed // window
    segments = tf.numpy_function(
      files, [lane, epoch, first_window * window], [tf.int64] * 4
    )
    examples = _read(
      split, [tf.ensure_shape(item, [None]) for item in segments]
    )
    if window > 1:
      seed = _fold(config.seed, _ORDER, epoch, lane)
      # The next window is read while this one is used up. Features of several
      # lengths, such as an image's boxes, are batched as ragged tensors.
      batch = examples.ragged_batch if _is_ragged(examples) else examples.batch
      windows = batch(window).prefetch(1).enumerate(first_window)
      examples = windows.flat_map(
        lambda number, batch: _shuffled(batch, fold_in(seed, number))
      )
    examples = examples.skip(passed - first_window * window)
    return examples.map(lambda example: example | {"epoch": epoch})

  def stream_of_lane(lane, first_epoch, passed):
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    return epochs.flat_map(
      lambda epoch: epoch_of_lane(
        lane, epoch, tf.where(epoch == first_epoch, passed, 0)
      )
    )

  stream = tf.data.Dataset.from_tensor_slices(
    (mine, first_epochs, start * rows - passed)
  ).interleave(
    stream_of_lane,
    cycle_length=len(mine),
    block_length=rows,
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  if local % rows:
    # Two processes read a lane where they meet; each takes its own rows.
    around, skip = len(mine) * rows, first_row % rows
    stream = (
      stream.enumerate()
      .filter(lambda i, _: (i % around >= skip) & (i % around < skip + local))
      .map(lambda _, example: example)
    )
  return stream


def test_part(split: Split) -> tuple[int, int, int]:
  """Returns this process's part of a split that is read once.

  Returns:
    The number of its first example, that of the first after it, and the size
    of the largest part of any process.
  """
  count, index = jax.process_count(), jax.process_index()
  begins = [split.size * part // count for part in range(count + 1)]
  return begins[index], begins[index + 1], int(np.diff(begins).max())


def test_records(split: Split, begin: int, end: int) -> tf.data.Dataset:
  """Reads the examples `begin` … `end` of a split, in the order of its files.

  Returns:
    A dataset of the split's examples, each with `number`, its place in the
    split; int64.
  """
  starts = _first_numbers(split)
  order = np.arange(len(starts))
  return _read(split, _segments(split, order, starts, begin, end))


def _read(split, segments):
  def file(shard, skip, take, number):
    # Not by enumerate, which costs a millisecond for each file.
    numbers = tf.data.Dataset.range(number, number + take)
    examples = split.read(shard, skip, take)
    return tf.data.Dataset.zip(examples, numbers).map(_numbered)

  segments = tf.data.Dataset.from_tensor_slices(tuple(segments))
  if split.read_one:
    return segments.map(
      lambda shard, skip, take, number: _numbered(split.read_one(shard), number)
    )
  return segments.flat_map(file)


def _numbered(example, number):
  return example | {"number": number}


def example_seed(seed: int, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
  """Returns two int32 numbers that decide all random choices for an example."""
  return _fold(seed, _EXAMPLE, epoch, number)


def fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
  """Returns a branch of a seed of two numbers, another for each `number`."""
  return tf.random.experimental.stateless_fold_in(seed, number)


def _fold(seed, *numbers):
  seed = tf.stack([tf.constant(seed, tf.int32), 0])
  for number in numbers:
    seed = fold_in(seed, number)
  return seed


def _is_ragged(dataset):
  shapes = [spec.shape for spec in tf.nest.flatten(dataset.element_spec)]
  return not all(shape.is_fully_defined() for shape in shapes)


def _shuffled(batch, seed):
  """Returns the examples of a batch as a dataset in random order."""
  size = tf.shape(batch["number"])[0]
  keys = tf.random.stateless_uniform([size], seed, None, None, tf.int64)
  order = tf.argsort(keys, stable=True)
  batch = tf.nest.map_structure(lambda item: tf.gather(item, order), batch)
  return tf.data.Dataset.from_tensor_slices(batch)
