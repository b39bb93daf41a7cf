"""Data sets of TFDS, and what is said when they cannot be had."""

import ml_collections
import pytest

from halonet.data import sources, tfds_source
from halonet.errors import UsageError

TEST_SIZE = 450


def open_source(name, data_dir, needs=("label",)):
  data = ml_collections.ConfigDict(dict(name=name, data_dir=str(data_dir)))
  return sources.open_source(data, dict.fromkeys(needs, "ClassLabel"))


def test_records_are_read_from_any_example_on(data_dir):
  source = open_source("digits", data_dir)
  assert source.name == "digits/1.0.0"
  assert source.location == f"{data_dir}/digits/1.0.0"
  assert source.classes == {"label": list("0123456789")}
  split = source.split("test_split", "test")
  assert split.size == TEST_SIZE and len(split.files) == 1
  whole = list(split.read(0, 0, TEST_SIZE).as_numpy_iterator())
  part = list(split.read(0, 100, 3).as_numpy_iterator())
  assert part == whole[100:103]
  assert [int(example["label"]) for example in whole] == [
    int(example["label"])
    for example in source.builder.as_dataset(split="test").as_numpy_iterator()
  ]


def test_only_what_is_needed_is_read(data_dir):
  source = open_source("digits", data_dir, needs=())
  assert source.classes == {}
  (example,) = source.split("test_split", "test").read(0, 0, 1)
  assert set(example) == {"image"}


def test_a_part_of_a_split_begins_where_it_begins(data_dir):
  part = open_source("digits", data_dir).split("test_split", "test[100:103]")
  assert (part.size, part.skips.tolist()) == (3, [100])
  assert part.where(1).startswith("record 101 of ")


def test_an_unknown_split_is_answered_with_names(data_dir):
  split = open_source("digits", data_dir).split
  with pytest.raises(UsageError, match="config.data.test_split.*test, train"):
    split("test_split", "validation")
  for name in ("train[:0]", "train[10:5]"):
    with pytest.raises(UsageError, match="config.data.train_split.*is empty"):
      split("train_split", name)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("digit", "did you mean digits.*cifar10"),
    ("foldre", "did you mean folder"),
    ("digits:2.0.0", ""),
    ("digits/large", ""),
    ("", ""),
    ("a:b:c", ""),
  ],
)
def test_names_that_cannot_be_opened_are_one_clear_error(
  data_dir, name, message
):
  with pytest.raises(UsageError, match=f"config.data.name: .*{message}"):
    tfds_source.load_builder(name, data_dir)


def test_data_that_cannot_be_prepared_says_why(data_dir, monkeypatch):
  builder = tfds_source.load_builder("mnist", data_dir)

  def refuse(*args, **kwargs):
    raise OSError("no route to host\nmore")

  monkeypatch.setattr(type(builder), "download_and_prepare", refuse)
  with pytest.raises(UsageError, match=r"mnist could not be.*no route to host"):
    open_source("mnist", data_dir)


def test_another_process_may_be_faster_to_prepare(tmp_path, monkeypatch):
  kind = type(tfds_source.load_builder("digits", str(tmp_path)))
  prepare = kind.download_and_prepare

  def overtaken(self, **options):
    prepare(self, **options)
    raise OSError("the destination exists")

  monkeypatch.setattr(kind, "download_and_prepare", overtaken)
  source = open_source("digits", tmp_path)
  assert source.split("test_split", "test").size == TEST_SIZE


def test_other_files_than_tfrecord_are_refused(data_dir, monkeypatch):
  from tensorflow_datasets.core.file_adapters import FileFormat

  builder = tfds_source.load_builder("digits", data_dir)
  monkeypatch.setattr(
    type(builder.info), "file_format", FileFormat.ARRAY_RECORD
  )
  with pytest.raises(UsageError, match="holds array_record files; prepare"):
    open_source("digits", data_dir)
