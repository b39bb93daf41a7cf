"""The embedded data set is what scikit-learn ships, on disk as TFDS records."""

import collections

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from halonet.data import tfds_source


def test_records_hold_every_digit_once(data_dir):
  # The name suffices, as for any other data set.
  builder = tfds.builder("digits", data_dir=data_dir)
  assert builder.info.splits["train"].num_examples == 1347
  assert builder.info.splits["test"].num_examples == 450
  read = collections.Counter()
  for split in ("train", "test"):
    for example in builder.as_dataset(split=split).as_numpy_iterator():
      assert example["image"].shape == (8, 8, 1)
      read[example["image"].tobytes(), int(example["label"])] += 1
  digits = sklearn.datasets.load_digits()
  images = np.round(digits.images / 16 * 255).astype(np.uint8)
  expected = collections.Counter(
    (image.tobytes(), int(label))
    for image, label in zip(images, digits.target, strict=True)
  )
  assert read == expected


def test_images_are_stored_as_png(data_dir):
  builder = tfds_source.load_builder("digits", data_dir)
  (file,) = builder.info.splits["test"].filepaths
  assert "tfrecord" in file.name
  record = next(iter(tf.data.TFRecordDataset(str(file))))
  assert b"\x89PNG" in record.numpy()


def test_test_split_has_every_class_alike(data_dir):
  builder = tfds_source.load_builder("digits", data_dir)
  labels = [
    int(example["label"])
    for example in builder.as_dataset(split="test").as_numpy_iterator()
  ]
  counts = np.bincount(labels, minlength=10)
  assert counts.min() >= 43 and counts.max() <= 46
