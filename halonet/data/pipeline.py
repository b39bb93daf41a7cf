"""The batches that training and evaluation read.

The state of the training stream is one number, the batches delivered so far:
restoring it rebuilds the stream from there. `halonet.data.order` says how.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from halonet.data import order, preprocessing
from halonet.data.sources import Split
from halonet.errors import RunError

Batch = dict[str, np.ndarray]

# Images are made side by side, one by each thread. Threads within an operation
# would only take turns with these: a tenth of the time.
with contextlib.suppress(RuntimeError):  # TensorFlow may run already.
  tf.config.threading.set_intra_op_parallelism_threads(1)

# As many images at once: tf.data's own choice of the number made 5 % fewer.
if hasattr(os, "sched_getaffinity"):
  _CORES = len(os.sched_getaffinity(0))
else:  # macOS.
  _CORES = os.cpu_count()


def train_batches(
  split: Split, config: ml_collections.ConfigDict, task: Any, *, start: int = 0
) -> Iterator[Batch]:
  """Iterates without end over the shuffled training split.

  Args:
    split: of a data set.
    config: complete training config.
    task: a `halonet.tasks.task.Task`; its `batch_spec` says what a batch holds.
    start: batches consumed before, by a run that goes on.

  Returns:
    An iterator over this process's part of every global batch, which is the
    same batch whatever the number of processes. An epoch holds every example
    once; a batch may span two epochs.

  Raises:
    RunError: from the iterator, if an image cannot be decoded; it names the
      file.
  """
  data = config.data

  def preprocess(example):
    # (seed, epoch, example) decide every random choice.
    seed = order.example_seed(config.seed, example["epoch"], example["number"])
    return task.example(example, seed, train=True)

  def finish(batch):
    batch["image"] = preprocessing.normalise(batch["image"], data)
    batch.pop("skipped", None)  # The weight says it.
    return task.finish(batch, train=True)

  records = order.train_records(split, config, start=start)
  stream = _decoded(records, preprocess, data)
  local = config.batch_size // jax.process_count()
  stream = stream.batch(local, drop_remainder=True)
  stream = stream.map(finish, num_parallel_calls=_CORES)

  def undecoded(delivered):
    here = start + delivered
    records = order.train_records(split, config, start=here).take(local)
    return records, order.train_files(split, config, start=here)

  return _iterate(stream.prefetch(2), split, task, undecoded)


def test_batches(
  split: Split, config: ml_collections.ConfigDict, task: Any
) -> Iterator[Batch]:
  """Iterates once over the test split, in batches of one size.

  Rows of weight 0 complete the last batches, so that every process sees the
  same number of them.

  Args and Returns as for `train_batches`.

  Raises:
    RunError: as for `train_batches`.
  """
  data = config.data
  # In the parts that training takes, for the same memory.
  local = config.batch_size // config.accumulation_steps // jax.process_count()

  def preprocess(example):
    return {"weight": 1.0} | task.example(example, None, train=False)

  begin, end, largest = order.test_part(split)
  batches = -(-largest // local)
  records = order.test_records(split, begin, end)
  stream = _decoded(records, preprocess, data)
  fillers = tf.data.Dataset.from_tensors(_zeros(stream))

  def finish(batch):
    batch["image"] = preprocessing.normalise(batch["image"], data)
    return task.finish(batch, train=False)

  # Deterministic maps keep the fillers last.
  stream = stream.concatenate(fillers.repeat(batches * local - (end - begin)))
  stream = stream.batch(local, drop_remainder=True)
  stream = stream.map(finish, num_parallel_calls=_CORES)

  def undecoded(delivered):
    first = min(begin + delivered * local, end)
    records = order.test_records(split, first, min(first + local, end))
    return records, range(len(split.files))

  return _iterate(stream.prefetch(2), split, task, undecoded)


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


def _decoded(
  records: tf.data.Dataset,
  preprocess: Callable[[dict], dict],
  data: ml_collections.ConfigDict,
) -> tf.data.Dataset:
  """Maps records in parallel; with `skip_corrupt`, bad ones become blanks."""
  if not data.skip_corrupt:
    return records.map(preprocess, num_parallel_calls=_CORES)

  def attempt(example):
    good = tf.data.Dataset.from_tensors(example).map(
      lambda example: {"weight": 1.0, "skipped": 0.0} | preprocess(example)
    )
    blank = _zeros(good) | {"skipped": 1.0}
    # What cannot be decoded drops out, and the blank comes first.
    good = good.ignore_errors().concatenate(tf.data.Dataset.from_tensors(blank))
    return good.take(1).get_single_element()

  return records.map(attempt, num_parallel_calls=_CORES)


def _zeros(dataset):
  return tf.nest.map_structure(
    lambda spec: tf.zeros(spec.shape, spec.dtype), dataset.element_spec
  )


def _iterate(dataset, split, task, undecoded):
  batches = iter(dataset.as_numpy_iterator())
  for delivered in itertools.count():
    try:
      batch = next(batches)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise RunError(
        _what_is_wrong(split, *undecoded(delivered), error)
      ) from None
    if problem := task.problem(batch):
      raise RunError(f"images in {_folder(split)} have {problem}")
    yield batch


def _what_is_wrong(split, records, shards, error):
  """Finds the image that failed among the records of a batch; or the file."""
  try:
    for example in records:
      try:
        preprocessing.decode(example["image"])
      except tf.errors.OpError as failure:
        where = split.where(int(example["number"]))
        return (
          f"{where} cannot be decoded: {_first_line(failure)}. Mend it, or set"
          " config.data.skip_corrupt=true to count and leave out such images"
        )
  except tf.errors.OpError:
    for shard in shards:
      skip, take = split.skips[shard], split.sizes[shard]
      try:
        for _ in split.read(shard, skip, take):
          pass
      except tf.errors.OpError as failure:
        return (
          f"{split.files[shard]} cannot be read: {_first_line(failure)}."
          " Nothing after that place can; put back a whole one"
        )
  return f"the data in {_folder(split)} cannot be read: {_first_line(error)}"


def _first_line(error):
  line = error.message.strip().splitlines()[0]
  # Without the names of TensorFlow's own parts around it.
  return re.sub(r"^\{\{.*\}\} | \[Op:.*$", "", line)


def _folder(split):
  return str(split.files[0]).rpartition("/")[0]
