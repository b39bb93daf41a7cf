"""Batches: which images, how often, and what is said of damaged ones."""

import collections
import itertools
import os
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from halonet.data import pipeline, sources
from halonet.errors import RunError
from halonet.parallel import batch_sharding, make_mesh
from halonet.tasks.classification import Classification

TRAIN_SIZE, TEST_SIZE = 1347, 450


def opened(config):
  """Opens both splits of a config."""
  source = sources.open_source(config.data, Classification.needs)
  return (
    source.split("train_split", config.data.train_split),
    source.split("test_split", config.data.test_split),
  )


@pytest.fixture
def digits(small_config):
  return opened(small_config())[0]


@pytest.fixture
def digits_test(small_config):
  return opened(small_config())[1]


@pytest.fixture
def photo_config(small_config, photos):
  def make(*overrides):
    return small_config(
      "data.name=folder",
      f"data.data_dir={photos}",
      "data.test_split=val",
      "batch_size=8",
      *overrides,
    )

  return make


def task(config):
  return Classification(config, {"labels": list("0123456789")})


def take(split, config, count, start=0):
  batches = pipeline.train_batches(split, task(config), start=start)
  return list(itertools.islice(batches, count))


def evaluated(split, config):
  return list(pipeline.test_batches(split, task(config)))


def flat(batches):
  return np.concatenate([batch["image"] for batch in batches])


def names(images):
  """Identifies images, where preprocessing is deterministic."""
  return [image.tobytes() for image in images]


# ------------------------------------------------------------------- order


def test_batches_have_their_shapes(digits, small_config):
  (batch,) = take(digits, small_config(), 1)
  assert batch["image"].shape == (128, 16, 16, 3)
  assert batch["image"].dtype == np.float32
  assert batch["label"].shape == (128,) and batch["label"].dtype == np.int32
  assert set(batch) == {"image", "label"}


def test_an_epoch_holds_every_image_once(digits, small_config):
  config = small_config("data.crop_area=1", "data.shuffle_buffer=100")
  images = flat(take(digits, config, 22))  # Two epochs and a bit.
  expected = flat(evaluated(digits, config))
  expected = collections.Counter(names(expected[:TRAIN_SIZE]))
  for epoch in range(2):
    part = images[epoch * TRAIN_SIZE : (epoch + 1) * TRAIN_SIZE]
    assert collections.Counter(names(part)) == expected
  first, second = images[:TRAIN_SIZE], images[TRAIN_SIZE : 2 * TRAIN_SIZE]
  assert names(first) != names(second)


@pytest.mark.parametrize("start", [1, 11])
def test_starting_later_gives_the_same_pixels(digits, small_config, start):
  config = small_config("data.shuffle_buffer=64")
  whole = take(digits, config, 14)
  rest = take(digits, config, 14 - start, start=start)
  for expected, actual in zip(whole[start:], rest, strict=True):
    np.testing.assert_array_equal(actual["image"], expected["image"])
    np.testing.assert_array_equal(actual["label"], expected["label"])


def test_seed_decides_order_and_augmentation(digits, small_config):
  plain = [
    flat(take(digits, small_config(f"seed={seed}", "data.crop_area=1"), 1))
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(plain[0], plain[1])
  assert (plain[0] != plain[2]).any()
  # Another seed is not the same order, an epoch later.
  config = small_config("data.crop_area=1")
  later = flat(take(digits, config, 22))[TRAIN_SIZE : TRAIN_SIZE + 128]
  assert names(later) != names(plain[2])


def test_an_image_is_augmented_anew_in_every_epoch(small_config):
  config = small_config("data.train_split=train[:1]", "batch_size=1")
  images = flat(take(opened(config)[0], config, 12))
  # An image of 8×8 pixels has only so many crops.
  assert len(set(names(images))) >= 5


def test_mixing_is_drawn_for_pairs(digits, small_config):
  config = small_config("data.mixup=0.8", "data.cutmix=1.0")
  first, second = take(digits, config, 2)
  assert first["mix_share"].shape == (128,)
  assert first["mix_box"].shape == (128, 4)
  pairs = first["mix_share"].reshape(64, 2)
  np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
  assert len(set(pairs[:, 0].tolist())) > 40
  assert (first["mix_share"] != second["mix_share"]).any()


def test_images_may_be_bfloat16(digits, small_config):
  config = small_config("data.image_dtype=bfloat16")
  (batch,) = take(digits, config, 1)
  assert batch["image"].dtype == jax.numpy.bfloat16
  (exact,) = take(digits, small_config(), 1)
  np.testing.assert_array_equal(
    batch["image"], exact["image"].astype(jax.numpy.bfloat16)
  )
  test = evaluated(digits, config)[0]
  assert test["image"].dtype == jax.numpy.bfloat16


# -------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [7, 128, 450, 1000])
def test_evaluation_counts_every_image_once(
  digits_test, small_config, batch_size
):
  config = small_config(f"batch_size={batch_size}")
  batches = evaluated(digits_test, config)
  assert {len(batch["label"]) for batch in batches} == {batch_size}
  weight = np.concatenate([batch["weight"] for batch in batches])
  assert weight.sum() == TEST_SIZE and set(weight) <= {0.0, 1.0}
  labels = np.concatenate([batch["label"] for batch in batches])
  expected = digits_test.read(0, 0, TEST_SIZE).as_numpy_iterator()
  expected = [int(example["label"]) for example in expected]
  assert labels[weight == 1].tolist() == expected


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_the_evaluation(
  digits_test, small_config, processes, count
):
  config = small_config("batch_size=96")
  whole = evaluated(digits_test, config)
  expected = np.concatenate(
    [batch["image"][batch["weight"] == 1] for batch in whole]
  )
  parts, lengths = [], []
  for index in range(count):
    processes(index, count)
    batches = evaluated(digits_test, config)
    lengths.append(len(batches))
    parts += [batch["image"][batch["weight"] == 1] for batch in batches]
  assert len(set(lengths)) == 1
  np.testing.assert_array_equal(np.concatenate(parts), expected)


# --------------------------------------------------------- folders, damage


def test_a_folder_takes_the_same_path(photo_config):
  config = photo_config("data.image_size=32")
  split, test = opened(config)
  batches = take(split, config, 9)
  assert {batch["image"].shape for batch in batches} == {(8, 32, 32, 3)}
  labels = np.concatenate([batch["label"] for batch in batches])
  assert collections.Counter(labels[:37]) == {0: 19, 1: 18}
  weights = [batch["weight"] for batch in evaluated(test, config)]
  assert np.concatenate(weights).sum() == 11


def test_a_missing_file_is_named(photo_config, photos, tmp_path):
  shutil.copytree(photos, tmp_path / "photos")
  config = photo_config(f"data.data_dir={tmp_path / 'photos'}")
  train, _ = opened(config)
  (tmp_path / "photos/train/flower/007.JPEG").unlink()
  with pytest.raises(RunError, match=r"train/flower/007.JPEG cannot be read"):
    take(train, config, 5)


@pytest.fixture
def damaged(photo_config, photos, tmp_path):
  """The photographs, two of them cut short, and what opens them."""
  shutil.copytree(photos, tmp_path / "photos")
  for name in ("train/flower/007.JPEG", "val/china/002.JPEG"):
    path = tmp_path / "photos" / name
    path.write_bytes(path.read_bytes()[:200])

  def make(*overrides):
    config = photo_config(f"data.data_dir={tmp_path / 'photos'}", *overrides)
    return config, *opened(config)

  return make


def test_a_corrupt_image_is_named(damaged):
  config, train, test = damaged()
  with pytest.raises(RunError, match=r"train/flower/007.JPEG cannot be dec"):
    take(train, config, 5)
  with pytest.raises(RunError, match=r"val/china/002.JPEG.*skip_corrupt=true"):
    evaluated(test, config)


def test_a_corrupt_image_is_counted_and_skipped(damaged, photo_config):
  config, train, test = damaged("data.skip_corrupt=true")
  batches = take(train, config, 9)
  weight = np.concatenate([batch["weight"] for batch in batches])[:37]
  assert (weight == 0).sum() == 1
  # The others are where they would be without it.
  config = photo_config()
  expected = flat(take(opened(config)[0], config, 9))
  actual = flat(batches)
  np.testing.assert_array_equal(
    actual[:37][weight == 1], expected[:37][weight == 1]
  )
  blank = actual[:37][weight == 0]
  assert (blank == blank[:, :1, :1]).all()  # Of one colour.
  batches = evaluated(test, damaged("data.skip_corrupt=true")[0])
  assert sum(batch["skipped"].sum() for batch in batches) == 1
  assert sum(batch["weight"].sum() for batch in batches) == 10


def test_what_is_no_file_is_counted_and_skipped(photo_config, photos, tmp_path):
  shutil.copytree(photos, tmp_path / "photos")
  folder = tmp_path / "photos" / "train" / "china"
  (folder / "link.jpg").symlink_to("nowhere")
  (folder / "folder.jpg").mkdir()
  os.mkfifo(folder / "pipe.jpg")
  place = f"data.data_dir={tmp_path / 'photos'}"
  config = photo_config(place, "data.skip_corrupt=true")
  batches = take(opened(config)[0], config, 5)  # 40 images, as there are.
  weight = np.concatenate([batch["weight"] for batch in batches])
  assert (len(weight), weight.sum()) == (40, 37)


def test_a_bmp_of_one_bit_is_named(photo_config, photos, tmp_path):
  shutil.copytree(photos, tmp_path / "photos")
  path = tmp_path / "photos" / "train" / "china" / "one.bmp"
  Image.new("1", (9, 9)).save(path)
  config = photo_config(f"data.data_dir={tmp_path / 'photos'}")
  with pytest.raises(RunError, match=r"one.bmp cannot .* 8, 24 or 32 bits a p"):
    take(opened(config)[0], config, 5)


@pytest.mark.parametrize("mode, frames", [("RGBA", 1), ("RGB", 2)])
def test_a_webp_that_is_not_read_is_named(
  photo_config, photos, tmp_path, mode, frames
):
  shutil.copytree(photos, tmp_path / "photos")
  path = tmp_path / "photos" / "train" / "china" / "one.webp"
  first, *others = (Image.new(mode, (9, 9), 99 * i) for i in range(frames))
  first.save(path, save_all=True, append_images=others)
  config = photo_config(f"data.data_dir={tmp_path / 'photos'}")
  with pytest.raises(RunError, match=r"one.webp cannot .* no transparency and"):
    take(opened(config)[0], config, 5)


def test_a_corrupt_record_is_named(small_config, data_dir, tmp_path):
  shutil.copytree(f"{data_dir}/digits", tmp_path / "digits")
  config = small_config(f"data.data_dir={tmp_path}")
  split, _ = opened(config)
  path = str(split.files[0])
  records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
  records[10] = records[10].replace(b"\x89PNG", b"\x89GNP")
  with tf.io.TFRecordWriter(path) as writer:
    for record in records:
      writer.write(record)
  with pytest.raises(RunError, match=r"record 10 of .*digits-train.tfrecord"):
    take(split, config, 11)
  # Broken in itself, not only in its image: no record after it can be read.
  with open(path, "r+b") as file:
    file.seek(1000)
    file.write(b"\0" * 100)
  match = r"/digits-train.tfrecord-00000-of-00001 cannot be read: corrupted"
  with pytest.raises(RunError, match=match):
    take(split, config, 11)


# ----------------------------------------------------------------- devices


def test_on_device_splits_over_the_mesh(digits, small_config):
  config = small_config()
  mesh = make_mesh()
  batches = pipeline.train_batches(digits, task(config))
  moved = next(pipeline.on_device(batches, batch_sharding(mesh)))
  assert moved["image"].shape == (128, 16, 16, 3)
  assert len(moved["image"].sharding.device_set) == 8
  assert moved["image"].addressable_shards[0].data.shape == (16, 16, 16, 3)
  (expected,) = take(digits, config, 1)
  np.testing.assert_array_equal(moved["image"], expected["image"])


def test_on_device_ends_with_its_input(digits_test, small_config):
  batches = iter(evaluated(digits_test, small_config()))
  moved = list(pipeline.on_device(batches, batch_sharding(make_mesh())))
  assert len(moved) == 4
