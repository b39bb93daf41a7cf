"""The order of examples: any number of processes, one stream."""

import hypothesis
import hypothesis.strategies as st
import jax
import ml_collections
import numpy as np
import pytest
import tensorflow as tf

from halonet.data import order, sources


def shards(sizes, skip=0):
  """Invents a split, whose examples say where they come from."""

  def example(shard, record):
    parts = [tf.strings.as_string(shard), tf.strings.as_string(record)]
    return {"image": tf.strings.join(parts, "/"), "label": record}

  def read(shard, skip, take):
    records = tf.data.Dataset.range(skip, skip + take)
    return records.map(lambda record: example(shard, record))

  def read_one(shard):
    return example(shard, tf.constant(skip, tf.int64))

  sizes = np.array(sizes, np.int64)
  files = np.array([f"file{number}" for number in range(len(sizes))])
  skips = np.full(len(sizes), skip, np.int64)
  lone = read_one if sizes.max() == 1 else None
  return sources.Split(files, skips, sizes, read, lone)


def order_config(batch_size, buffer=100):
  """What the order of the examples depends on."""
  data = dict(shuffle_buffer=buffer)
  return ml_collections.ConfigDict(
    dict(seed=0, batch_size=batch_size, data=data)
  )


def stream(split, config, steps, start=0):
  """Reads (epoch, number) of this process's rows, `[steps, local batch, 2]`."""
  local = config.batch_size // jax.process_count()
  records = order.train_records(split, config, start=start)
  rows = []
  for record in records.take(steps * local).as_numpy_iterator():
    rows.append((int(record["epoch"]), int(record["number"])))
    where, _, index = record["image"].decode().partition("/")
    first = int(split.sizes[: int(where)].sum())
    assert first + int(index) - split.skips[0] == rows[-1][1]
  return np.array(rows).reshape(steps, local, 2)


@hypothesis.settings(max_examples=5)
@hypothesis.given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=50),
  batch_size=st.sampled_from([1, 6, 12, 24]),
  buffer=st.integers(1, 60),
  start=st.integers(0, 5),
  skip=st.integers(0, 3),
)
@hypothesis.example(  # Four lanes, which begin within files.
  sizes=[5, 3, 7, 11, 2, 9, 13, 4, 6, 8, 1, 3, 7, 7, 7, 7, 7],
  batch_size=12,
  buffer=40,
  start=5,
  skip=2,
)
@hypothesis.example(  # Files of one example each, without a shuffle buffer.
  sizes=[1] * 37, batch_size=12, buffer=40, start=5, skip=0
)
def test_any_number_of_processes_reads_the_same_stream(
  sizes, batch_size, buffer, start, skip
):
  config = order_config(batch_size, buffer)
  split = shards(sizes, skip)
  steps = start + 2 * split.size // batch_size + 1
  whole = stream(split, config, steps)
  for epoch in range(2):
    numbers = [number for at, number in whole.reshape(-1, 2) if at == epoch]
    assert sorted(numbers) == list(range(split.size))
  for count in (2, 3, 4):
    if batch_size % count:
      continue
    parts = []
    for index in range(count):
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_index", lambda index=index: index)
        patch.setattr(jax, "process_count", lambda count=count: count)
        # Also when it begins later, as a run that goes on does.
        parts.append(stream(split, config, steps - start, start))
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole[start:])


def test_each_process_reads_its_own_files(processes):
  config = order_config(16)
  split = shards([20] * 64)
  seen = []
  for index in range(4):
    processes(index, 4)
    rows = stream(split, config, split.size // 16)
    seen.append({number // 20 for _, number in rows.reshape(-1, 2)})
  assert all(len(files) == 16 for files in seen)
  assert set.union(*seen) == set(range(64))


def test_what_is_passed_is_not_read_again():
  split = shards([20] * 64)
  opened = []
  lanes = order.num_lanes(16, 64)
  for lane in range(lanes):
    files, _, takes, _ = order.plan(split, 0, 0, lane, lanes, 60)
    opened += files.tolist()
    assert takes.sum() == 20
  assert lanes == 16 and len(set(opened)) <= 32


def test_the_order_is_mixed():
  config = order_config(16, buffer=400)
  split = shards([20] * 64)
  rows = stream(split, config, 80).reshape(-1, 2)
  files = rows[:, 1] // 20
  # A batch mixes many files, and neighbours in a file are apart.
  assert np.mean([len(set(part)) for part in files.reshape(80, 16)]) > 12
  again = stream(split, config, 160)[80:].reshape(-1, 2)
  assert abs(np.corrcoef(rows[:, 1], again[:, 1])[0, 1]) < 0.1
  config.seed = 1
  assert (stream(split, config, 80).reshape(-1, 2) != rows).any()


@pytest.mark.parametrize(
  "batch_size, files, lanes",
  [(4096, 1024, 256), (128, 1, 1), (64, 40, 8), (96, 1024, 96), (7, 1024, 7)],
)
def test_lanes(batch_size, files, lanes):
  assert order.num_lanes(batch_size, files) == lanes
