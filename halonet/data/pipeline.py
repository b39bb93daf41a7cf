"""The batches that training and evaluation read.

The state of the training stream is one number, the batches delivered so far:
restoring it rebuilds the stream from there. `halonet.data.order` says how.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from halonet.data import order, preprocessing
from halonet.data.runtime import CORES, tf
from halonet.data.sources import Split
from halonet.errors import RunError

Batch = dict[str, np.ndarray]


# What is mapped is traced as it is: rewriting it by AutoGraph would take most
# of the time until the first batch.
@tf.autograph.experimental.do_not_convert
def train_batches(
  split: Split, task: Any, *, start: int = 0
) -> Iterator[Batch]:
  """Iterates without end over the shuffled training split.

  Args:
    split: the split to read.
    task: a `halonet.tasks.task.Task` with its config; its `batch_spec` says
      what a batch holds.
    start: number of batches consumed before, by a run that goes on.

  Returns:
    An iterator over this process's part of every global batch, which is the
    same batch whatever the number of processes. An epoch holds every example
    once; a batch may span two epochs.

  Raises:
    RunError: from the iterator, if an image cannot be decoded; it names the
      file.
  """
  config = task.config

  def example(record):
    # (seed, epoch, example) decide every random choice.
    seed = order.example_seed(config.seed, record["epoch"], record["number"])
    return task.example(record, seed, train=True)

  local = config.batch_size // jax.process_count()
  records = order.train_records(split, config, start=start)
  stream = _examples(records, example, config.data)

  def records_of(split, batch):
    records = order.train_records(split, config, start=start + batch)
    return records.take(local)

  stream = _in_batches(stream, local, task, True)
  return _batches(stream, task, split, records_of)


@tf.autograph.experimental.do_not_convert
def test_batches(split: Split, task: Any) -> Iterator[Batch]:
  """Iterates once over the test split, in batches of one size.

  Rows of weight 0 complete the last batches, so that every process sees the
  same number of them.

  Args, Returns and Raises as for `train_batches`.
  """
  config = task.config
  # As many rows as training computes at once, for the same memory.
  local = config.batch_size // config.accumulation_steps // jax.process_count()
  begin, end, largest = order.test_part(split)
  missing = -(-largest // local) * local - (end - begin)
  records = order.test_records(split, begin, end)
  stream = _examples(
    records, lambda record: task.example(record, None, train=False), config.data
  )
  fillers = tf.data.Dataset.from_tensors(_zeros(stream)).repeat(missing)
  # Deterministic maps keep the fillers last.
  stream = stream.concatenate(fillers)

  def records_of(split, batch):
    first = min(begin + batch * local, end)
    return order.test_records(split, first, min(first + local, end))

  stream = _in_batches(stream, local, task, False)
  return _batches(stream, task, split, records_of)


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


def _examples(records, example, data):
  """Maps records in parallel; with `skip_corrupt`, bad ones become blanks."""

  def make(record):
    return {"weight": 1.0, "skipped": 0.0} | example(record)

  def attempt(record):
    good = tf.data.Dataset.from_tensors(record).map(make)
    blank = _zeros(good) | {"skipped": 1.0}
    # What cannot be decoded drops out, and the blank comes first.
    good = good.ignore_errors().concatenate(tf.data.Dataset.from_tensors(blank))
    return good.take(1).get_single_element()

  function = attempt if data.skip_corrupt else make
  return records.map(function, num_parallel_calls=CORES)


def _zeros(dataset):
  return tf.nest.map_structure(
    lambda spec: tf.zeros(spec.shape, spec.dtype), dataset.element_spec
  )


def _in_batches(stream, local, task, train):
  """Gathers examples into batches of `local` rows, as `batch_spec` says."""

  def finish(batch):
    images = preprocessing.normalise(batch["image"], task.config.data)
    batch = batch | {"image": images}
    batch = task.finish(batch, train)
    return {name: batch[name] for name in task.batch_spec(train)}

  stream = stream.batch(local, drop_remainder=True)
  return stream.map(finish, num_parallel_calls=CORES).prefetch(2)


def _batches(stream, task, split, records_of):
  """Iterates over batches; `records_of(split, number)` reads one undecoded."""
  batches = stream.as_numpy_iterator()
  for number in itertools.count():
    try:
      batch = next(batches)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise RunError(_what_is_wrong(split, records_of, number, error)) from None
    if problem := task.problem(batch):
      raise RunError(f"images in {_folder(split)} have {problem}")
    yield batch


def _what_is_wrong(split, records_of, number, error):
  """Finds the image that failed among the records of a batch; or the file."""
  opened = []

  def note(shard):
    opened.append(int(shard))
    return shard

  def read(shard, skip, take):
    noted = tf.numpy_function(note, [shard], tf.int64)
    return split.read(tf.ensure_shape(noted, []), skip, take)

  try:
    noting = dataclasses.replace(split, read=read, read_one=None)
    for record in records_of(noting, number):
      try:
        preprocessing.decode(record["image"])
      except tf.errors.OpError as failure:
        where = split.where(int(record["number"]))
        return (
          f"{where} cannot be decoded: {_first_line(failure)}. Mend it, or set"
          " config.data.skip_corrupt=true to count and leave out such images"
        )
  except tf.errors.OpError:
    for shard in opened:
      try:
        for _ in split.read(shard, split.skips[shard], split.sizes[shard]):
          pass
      except tf.errors.OpError as failure:
        what = f"{split.files[shard]} cannot be read: {_first_line(failure)}"
        if split.read_one:  # It is a file of one example.
          return what
        return f"{what}. Nothing after that place can; put back a whole one"
  return f"the data in {_folder(split)} cannot be read: {_first_line(error)}"


def _first_line(error):
  line = error.message.strip().splitlines()[0]
  if "Number of channels inherent in the image" in line:
    # A BMP's bits a pixel, divided by 8.
    return "a BMP must have 8, 24 or 32 bits a pixel"
  if "Number of channels requested" in line or "WebP Animation" in line:
    return "a WebP must have no transparency and one image only"
  # Without the names of TensorFlow's own parts around it.
  return re.sub(r"^(\{\{.*\}\} )?(.*ValueError: )?| \[Op:.*$", "", line)


def _folder(split):
  return str(split.files[0]).rpartition("/")[0]
