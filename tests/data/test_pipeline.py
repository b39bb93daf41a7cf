"""Batches: which examples, in which order, how often."""

import collections
import itertools

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from halonet.data import pipeline
from halonet.errors import RunError, UsageError
from halonet.training.state import batch_sharding, make_mesh

TRAIN_SIZE, TEST_SIZE = 1347, 450


@pytest.fixture
def builder(data_dir):
  return pipeline.load_builder("digits", data_dir)


def take(builder, config, count, start=0):
  batches = pipeline.train_batches(builder, config, start=start)
  return list(itertools.islice(batches, count))


def flat(batches):
  return np.concatenate([batch["image"] for batch in batches])


def names(images):
  """Identifies images, where preprocessing is deterministic."""
  return [image.tobytes() for image in images]


def test_batches_have_their_shapes(builder, small_config):
  (batch,) = take(builder, small_config(), 1)
  assert batch["image"].shape == (128, 16, 16, 3)
  assert batch["image"].dtype == np.float32
  assert batch["label"].shape == (128,) and batch["label"].dtype == np.int32


def test_an_epoch_holds_every_image_once(builder, small_config):
  config = small_config("data.crop_area=1", "data.shuffle_buffer=100")
  images = flat(take(builder, config, 22))  # Two epochs and a bit.
  expected = flat(pipeline.test_batches(builder, train_as_test(config)))
  expected = collections.Counter(names(expected[:TRAIN_SIZE]))
  for epoch in range(2):
    part = images[epoch * TRAIN_SIZE : (epoch + 1) * TRAIN_SIZE]
    assert collections.Counter(names(part)) == expected
  first, second = images[:TRAIN_SIZE], images[TRAIN_SIZE : 2 * TRAIN_SIZE]
  assert names(first) != names(second)


def train_as_test(config):
  config = config.copy_and_resolve_references()
  config.data.test_split = "train"
  return config


@pytest.mark.parametrize("start", [1, 10, 11, 25])
def test_starting_later_is_the_same_stream(builder, small_config, start):
  config = small_config("data.shuffle_buffer=64")
  whole = take(builder, config, 28)
  rest = take(builder, config, 28 - start, start=start)
  for expected, actual in zip(whole[start:], rest, strict=True):
    np.testing.assert_array_equal(actual["image"], expected["image"])
    np.testing.assert_array_equal(actual["label"], expected["label"])


def test_seed_decides_order_and_augmentation(builder, small_config):
  plain = [
    flat(take(builder, small_config(f"seed={seed}", "data.crop_area=1"), 1))
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(plain[0], plain[1])
  assert (plain[0] != plain[2]).any()
  # Another seed is not the same order, an epoch later.
  config = small_config("data.crop_area=1")
  later = flat(take(builder, config, 22))[TRAIN_SIZE : TRAIN_SIZE + 128]
  assert names(later) != names(plain[2])


def test_an_image_is_augmented_anew_in_every_epoch(builder, small_config):
  config = small_config("data.train_split=train[:1]", "batch_size=1")
  images = flat(take(builder, config, 5))
  assert len(set(names(images))) == 5


@pytest.mark.parametrize("batch_size", [7, 128, 450, 1000])
def test_evaluation_counts_every_image_once(builder, small_config, batch_size):
  config = small_config(f"batch_size={batch_size}")
  batches = list(pipeline.test_batches(builder, config))
  assert {len(batch["label"]) for batch in batches} == {batch_size}
  weight = np.concatenate([batch["weight"] for batch in batches])
  assert weight.sum() == TEST_SIZE and set(weight) <= {0.0, 1.0}
  labels = np.concatenate([batch["label"] for batch in batches])
  expected = [
    int(example["label"])
    for example in builder.as_dataset(split="test").as_numpy_iterator()
  ]
  assert labels[weight == 1].tolist() == expected


def test_processes_share_every_batch(builder, small_config, monkeypatch):
  config = small_config()
  whole = take(builder, config, 3)
  tested = list(pipeline.test_batches(builder, config))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  parts, tested_parts = [], []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    parts.append(take(builder, config, 3))
    tested_parts.append(list(pipeline.test_batches(builder, config)))
  for index, part in enumerate(parts):
    for expected, actual in zip(whole, part, strict=True):
      np.testing.assert_array_equal(
        actual["image"], expected["image"][index::2]
      )
  weights = [batch["weight"] for part in tested_parts for batch in part]
  assert np.concatenate(weights).sum() == TEST_SIZE
  assert [len(part) for part in tested_parts] == [len(tested)] * 2


def test_on_device_splits_over_the_mesh(builder, small_config):
  config = small_config()
  mesh = make_mesh()
  batches = pipeline.train_batches(builder, config)
  moved = next(pipeline.on_device(batches, batch_sharding(mesh)))
  assert moved["image"].shape == (128, 16, 16, 3)
  assert len(moved["image"].sharding.device_set) == 8
  assert moved["image"].addressable_shards[0].data.shape == (16, 16, 16, 3)
  (expected,) = take(builder, config, 1)
  np.testing.assert_array_equal(moved["image"], expected["image"])


def test_on_device_ends_with_its_input(builder, small_config):
  batches = pipeline.test_batches(builder, small_config())
  moved = list(pipeline.on_device(batches, batch_sharding(make_mesh())))
  assert len(moved) == 4


def test_unknown_data_set_is_answered_with_names(data_dir):
  with pytest.raises(UsageError, match="did you mean digits.*cifar10"):
    pipeline.load_builder("digit", data_dir)


def test_data_without_labels_is_refused(data_dir):
  with pytest.raises(UsageError, match="no feature 'image'"):
    pipeline.load_builder("iris", data_dir)


def test_data_that_cannot_be_prepared_says_why(data_dir, monkeypatch):
  builder = pipeline.load_builder("mnist", data_dir)

  def refuse(*args, **kwargs):
    raise OSError("no route to host\nmore")

  monkeypatch.setattr(type(builder), "download_and_prepare", refuse)
  with pytest.raises(UsageError, match=r"mnist could not be.*no route to host"):
    pipeline.prepare("mnist", data_dir)


def test_another_process_may_be_faster_to_prepare(tmp_path, monkeypatch):
  builder = pipeline.load_builder("digits", str(tmp_path))
  prepare = type(builder).download_and_prepare

  def overtaken(self, **options):
    prepare(self, **options)
    raise OSError("the destination exists")

  monkeypatch.setattr(type(builder), "download_and_prepare", overtaken)
  builder = pipeline.prepare("digits", str(tmp_path))
  assert builder.info.splits["test"].num_examples == TEST_SIZE


def test_unknown_split_is_answered_with_names(builder):
  with pytest.raises(UsageError, match="config.data.test_split.*test, train"):
    pipeline.split_size(builder, "test_split", "validation")
  with pytest.raises(UsageError, match=r"train\[:0\] is empty"):
    pipeline.split_size(builder, "train_split", "train[:0]")
  with pytest.raises(UsageError, match=r"train\[10:5\] is empty"):
    pipeline.split_size(builder, "train_split", "train[10:5]")


@pytest.mark.parametrize("name", ["digits:2.0.0", "digits/large", "", "a:b:c"])
def test_names_that_cannot_be_opened_are_one_clear_error(data_dir, name):
  with pytest.raises(UsageError, match="config.data.name: "):
    pipeline.load_builder(name, data_dir)


class Broken(tfds.core.GeneratorBasedBuilder):
  """One image, whose bytes are none."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "label": tfds.features.ClassLabel(num_classes=2),
        }
      )
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    import io

    yield 0, {"image": io.BytesIO(b"\x89PNG, but no more"), "label": 0}


def test_a_corrupt_record_is_one_clear_error(tmp_path, small_config):
  builder = Broken(data_dir=tmp_path)
  builder.download_and_prepare()
  config = small_config("batch_size=1")
  with pytest.raises(RunError, match="a record cannot be read"):
    take(builder, config, 1)
