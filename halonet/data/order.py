"""The order in which training and evaluation read examples.

Training reads an endless stream that is a pure function of (seed, position):
epoch after epoch, each in an order of its own. Neither the number of processes
nor of devices matters, and yet each process reads its own files: a batch has L
lanes, each of the same number of rows, and a lane is a stream of its own. In
every epoch the files are put in a random order, one after the other, and cut
into L ranges of the same length, one for each lane; within its range a lane
shuffles window after window. Processes share out the rows of a batch, hence
the lanes, hence the files. The place in a lane says which files and windows are
passed, and they are not read again.
"""

import dataclasses
import functools

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from halonet.data.sources import Split

# Enough for the processes of a large pod; each is an open file in a process.
_MOST_LANES = 256
# A lane begins in the middle of a file and reads over what comes before: with
# four files a lane, an eighth of what it reads.
_FILES_PER_LANE = 4

# Branches of the config's seed: no two purposes draw the same numbers.
_ORDER, _EXAMPLE = 0, 1


def num_lanes(batch_size: int, files: int) -> int:
  """How many lanes a batch has: a divisor of the batch size."""
  most = min(_MOST_LANES, max(1, files // _FILES_PER_LANE))
  return max(n for n in range(1, most + 1) if batch_size % n == 0)


def lane_begin(epoch: int, lane: int, lanes: int, size: int) -> int:
  """Counts the examples of a lane in all the epochs before one.

  Example i of the whole stream, over all epochs, is of lane i mod `lanes`.
  """
  return max(0, -((lane - epoch * size) // lanes))


def plan(
  split: Split, seed: int, epoch: int, lane: int, lanes: int, passed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """What a lane reads in an epoch, after its first `passed` examples.

  Returns:
    Four int64 arrays with an entry per file: the shard, examples to skip in
    its file, examples to take, and the number of the first in the split.
  """
  lengths = [
    lane_begin(epoch + 1, other, lanes, split.size)
    - lane_begin(epoch, other, lanes, split.size)
    for other in range(lane + 1)
  ]
  end = sum(lengths)
  begin = end - lengths[lane] + passed
  order, starts = _file_order(split, seed, epoch)
  # Files in the order of the epoch that overlap [begin, end).
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


@dataclasses.dataclass(frozen=True)
class _Position:
  """This process's lanes at some place of the stream.

  Attributes:
    lanes: of a whole batch.
    rows: of a lane in a batch.
    window: examples that a lane shuffles at once.
    mine: the lanes that this process has rows of.
    epochs: the epoch that each of those is in.
    passed: what is passed of it in that epoch.
  """

  lanes: int
  rows: int
  window: int
  mine: np.ndarray
  epochs: np.ndarray
  passed: np.ndarray


def _position(split, config, start):
  lanes = num_lanes(config.batch_size, len(split.sizes))
  rows = config.batch_size // lanes
  # Files of one example each are shuffled as files.
  window = max(1, config.data.shuffle_buffer // lanes)
  window = 1 if split.sizes.max() == 1 else window
  # Rows of a batch: lane after lane. A process has some rows in a row.
  local = config.batch_size // jax.process_count()
  first_row = local * jax.process_index()
  last_lane = -(-(first_row + local) // rows)
  mine = np.arange(first_row // rows, last_lane, dtype=np.int64)
  epochs = (start * config.batch_size + mine) // split.size
  before = [
    lane_begin(int(epoch), int(lane), lanes, split.size)
    for epoch, lane in zip(epochs, mine, strict=True)
  ]
  passed = start * rows - np.array(before, np.int64)
  return _Position(lanes, rows, window, mine, epochs, passed)


def train_records(
  split: Split, config: ml_collections.ConfigDict, *, start: int = 0
) -> tf.data.Dataset:
  """This process's part of the shuffled, endless stream of encoded examples.

  Args:
    split: of a data set.
    config: a training config.
    start: how many batches have been consumed before.

  Returns:
    A dataset of `image` (bytes), `label`, `number` (of the example in the
    split) and `epoch`.
  """
  position = _position(split, config, start)
  rows, window = position.rows, position.window

  def files(lane, epoch, passed):
    return plan(
      split, config.seed, int(epoch), int(lane), position.lanes, int(passed)
    )

  def epoch_of_lane(lane, epoch, passed):
    first_window = passed // window
    segments = tf.numpy_function(
      files, [lane, epoch, first_window * window], [tf.int64] * 4
    )
    segments = [tf.ensure_shape(item, [None]) for item in segments]
    examples = _numbered(split, segments)
    if window > 1:
      seed = _fold(config.seed, _ORDER, epoch, lane)
      # The next window is read while this one is used up.
      windows = examples.batch(window).prefetch(1).enumerate(first_window)
      examples = windows.flat_map(
        lambda number, batch: _shuffled(batch, fold_in(seed, number))
      )
    examples = examples.skip(passed - first_window * window)
    return examples.map(
      lambda number, example: example | {"number": number, "epoch": epoch}
    )

  def stream_of_lane(lane, first_epoch, passed):
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    return epochs.flat_map(
      lambda epoch: epoch_of_lane(
        lane, epoch, tf.where(epoch == first_epoch, passed, 0)
      )
    )

  stream = tf.data.Dataset.from_tensor_slices(
    (position.mine, position.epochs, position.passed)
  ).interleave(
    stream_of_lane,
    cycle_length=len(position.mine),
    block_length=rows,
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  local = config.batch_size // jax.process_count()
  skip = local * jax.process_index() % rows
  if local % rows or skip:
    # Lanes at the edges are read by two processes; each takes its own rows.
    around = len(position.mine) * rows
    stream = (
      stream.enumerate()
      .filter(lambda i, _: (i % around >= skip) & (i % around < skip + local))
      .map(lambda _, example: example)
    )
  return stream


def train_files(
  split: Split, config: ml_collections.ConfigDict, *, start: int
) -> list[int]:
  """The shards that this process reads for a batch, and just after it."""
  position = _position(split, config, start)
  shards = []
  for lane, epoch, passed in zip(
    position.mine, position.epochs, position.passed, strict=True
  ):
    wanted = position.rows + 2 * position.window
    passed = passed // position.window * position.window
    while wanted > 0:
      segments = plan(
        split, config.seed, int(epoch), int(lane), position.lanes, int(passed)
      )
      for shard, take in zip(segments[0], segments[2], strict=True):
        if wanted > 0:
          shards.append(int(shard))
        wanted -= int(take)
      epoch, passed = epoch + 1, 0
  return shards


def test_part(split: Split) -> tuple[int, int, int]:
  """This process's part of a split that is read once.

  Returns:
    The number of its first example, that of the first after it, and how many
    examples the largest part of any process has.
  """
  count = jax.process_count()
  begins = [split.size * index // count for index in range(count + 1)]
  sizes = np.diff(begins)
  index = jax.process_index()
  return begins[index], begins[index + 1], int(sizes.max())


def test_records(split: Split, begin: int, end: int) -> tf.data.Dataset:
  """Encoded examples `begin` … `end` of a split, in the order of its files.

  Returns:
    A dataset of `image` (bytes), `label` and `number`.
  """
  firsts = _first_numbers(split)
  before = np.clip(begin - firsts, 0, split.sizes)
  takes = np.clip(end - firsts, 0, split.sizes) - before
  shards = np.flatnonzero(takes > 0)
  segments = (
    shards,
    (split.skips + before)[shards],
    takes[shards],
    (firsts + before)[shards],
  )

  examples = _numbered(split, segments)
  return examples.map(lambda number, example: example | {"number": number})


def _numbered(split, segments):
  """Reads what `plan` says: the number of each example in the split, and it."""

  def file(shard, skip, take, number):
    # Not by enumerate, which costs a millisecond for each file.
    numbers = tf.data.Dataset.range(number, number + take)
    return tf.data.Dataset.zip(numbers, split.read(shard, skip, take))

  segments = tf.data.Dataset.from_tensor_slices(tuple(segments))
  if split.read_one:
    return segments.map(
      lambda shard, skip, take, number: (number, split.read_one(shard))
    )
  return segments.flat_map(file)


def example_seed(seed: int, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
  """What decides every random choice for an example: two int32 numbers."""
  return _fold(seed, _EXAMPLE, epoch, number)


def fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
  """A branch of a seed of two numbers, for each `number` another."""
  return tf.random.experimental.stateless_fold_in(seed, number)


def _fold(seed, *numbers):
  seed = tf.stack([tf.constant(seed, tf.int32), 0])
  for number in numbers:
    seed = fold_in(seed, number)
  return seed


def _shuffled(batch, seed):
  """The examples of a batch, as a dataset in random order."""
  size = tf.shape(tf.nest.flatten(batch)[0])[0]
  keys = tf.random.stateless_uniform([size], seed, None, None, tf.int64)
  order = tf.argsort(keys, stable=True)
  batch = tf.nest.map_structure(lambda item: tf.gather(item, order), batch)
  return tf.data.Dataset.from_tensor_slices(batch)
