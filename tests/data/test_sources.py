"""Where images come from, and what is said when they do not."""

import pytest
import tensorflow as tf

from halonet.data import sources
from halonet.errors import UsageError

TEST_SIZE = 450


@pytest.fixture
def folder(small_config, photos):
  """Opens the photographs, or another folder."""

  def open_folder(path=photos, test_split="val"):
    config = small_config(
      "data.name=folder",
      f"data.data_dir={path}",
      f"data.test_split={test_split}",
    )
    return sources.open_source(config.data)

  return open_folder


def test_records_are_read_from_any_example_on(small_config):
  source = sources.open_source(small_config().data)
  assert source.name == "digits/1.0.0" and source.labels == list("0123456789")
  split = source.split("test_split", "test")
  assert split.size == TEST_SIZE and len(split.files) == 1
  whole = list(split.read(0, 0, TEST_SIZE).as_numpy_iterator())
  part = list(split.read(0, 100, 3).as_numpy_iterator())
  assert part == whole[100:103]
  builder = sources.load_builder(
    "digits", source.location.rpartition("/")[0][:-7]
  )
  assert [int(example["label"]) for example in whole] == [
    int(example["label"])
    for example in builder.as_dataset(split="test").as_numpy_iterator()
  ]


def test_a_part_of_a_split_begins_where_it_begins(small_config):
  source = sources.open_source(small_config().data)
  part = source.split("test_split", "test[100:103]")
  assert (part.size, part.skips.tolist()) == (3, [100])
  assert part.where(1).startswith("record 101 of ")


def test_an_unknown_split_is_answered_with_names(small_config):
  split = sources.open_source(small_config().data).split
  with pytest.raises(UsageError, match="config.data.test_split.*test, train"):
    split("test_split", "validation")
  for name in ("train[:0]", "train[10:5]"):
    with pytest.raises(UsageError, match="config.data.train_split.*is empty"):
      split("train_split", name)


def test_unknown_data_set_is_answered_with_names(data_dir):
  with pytest.raises(UsageError, match="did you mean digits.*cifar10"):
    sources.load_builder("digit", data_dir)
  with pytest.raises(UsageError, match="did you mean folder"):
    sources.load_builder("foldre", data_dir)


def test_data_without_labels_is_refused(data_dir):
  with pytest.raises(UsageError, match="no feature 'image'"):
    sources.load_builder("iris", data_dir)


def test_data_that_cannot_be_prepared_says_why(data_dir, monkeypatch):
  builder = sources.load_builder("mnist", data_dir)

  def refuse(*args, **kwargs):
    raise OSError("no route to host\nmore")

  monkeypatch.setattr(type(builder), "download_and_prepare", refuse)
  with pytest.raises(UsageError, match=r"mnist could not be.*no route to host"):
    sources.prepare("mnist", data_dir)


def test_another_process_may_be_faster_to_prepare(tmp_path, monkeypatch):
  builder = sources.load_builder("digits", str(tmp_path))
  prepare = type(builder).download_and_prepare

  def overtaken(self, **options):
    prepare(self, **options)
    raise OSError("the destination exists")

  monkeypatch.setattr(type(builder), "download_and_prepare", overtaken)
  builder = sources.prepare("digits", str(tmp_path))
  assert builder.info.splits["test"].num_examples == TEST_SIZE


def test_other_files_than_tfrecord_are_refused(data_dir, monkeypatch):
  from tensorflow_datasets.core.file_adapters import FileFormat

  builder = sources.load_builder("digits", data_dir)
  monkeypatch.setattr(
    type(builder.info), "file_format", FileFormat.ARRAY_RECORD
  )
  with pytest.raises(UsageError, match="holds array_record files; prepare"):
    sources.prepare("digits", data_dir)


@pytest.mark.parametrize("name", ["digits:2.0.0", "digits/large", "", "a:b:c"])
def test_names_that_cannot_be_opened_are_one_clear_error(data_dir, name):
  with pytest.raises(UsageError, match="config.data.name: "):
    sources.load_builder(name, data_dir)


def test_a_folder_has_classes_by_name(folder):
  source = folder()
  assert source.name.startswith("folder photos")
  assert source.labels == ["china", "flower"]
  split = source.split("train_split", "train")
  assert split.size == len(split.files) == 37
  (example,) = split.read(20, 0, 1).as_numpy_iterator()
  assert int(example["label"]) == 1
  with open(split.files[20], "rb") as file:
    assert example["image"] == file.read()
  for name, value in split.read_one(tf.constant(20)).items():
    assert value.numpy() == example[name]
  assert split.where(20) == split.files[20]


def test_a_test_split_may_lack_a_class_but_not_add_one(folder, tmp_path):
  for name in ("train/a", "train/b", "val/b", "val2/c"):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "1.png").write_bytes(b"")
  split = folder(tmp_path).split("test_split", "val")
  (example,) = split.read(0, 0, 1).as_numpy_iterator()
  assert int(example["label"]) == 1
  with pytest.raises(UsageError, match="val2 has the class c, which the train"):
    folder(tmp_path, "val2").split("test_split", "val2")


def test_folders_that_are_no_data_set(folder, tmp_path, small_config):
  with pytest.raises(UsageError, match="there is no folder .*/train$"):
    folder(tmp_path)
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "notes.txt").write_text("")
  with pytest.raises(UsageError, match="holds no folders of classes"):
    folder(tmp_path)
  (tmp_path / "train" / "a").mkdir()
  (tmp_path / "train" / "a" / "notes.txt").write_text("")
  with pytest.raises(UsageError, match="train_split: .* holds no image files"):
    folder(tmp_path).split("train_split", "train")
  config = small_config("data.name=folder", "data.data_dir=None")
  with pytest.raises(UsageError, match="config.data.data_dir is None; with"):
    sources.open_source(config.data)


def test_fingerprints_tell_listings_apart(folder, tmp_path):
  for name in ("one", "two"):
    for file in ("1.png", "2.png"):
      path = tmp_path / name / "train" / "a" / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(b"")
  prints = [
    folder(tmp_path / name).split("train_split", "train").fingerprint
    for name in ("one", "two")
  ]
  assert prints[0] == prints[1]  # Another place, the same files.
  (tmp_path / "two" / "train" / "a" / "3.png").write_bytes(b"")
  other = folder(tmp_path / "two").split("train_split", "train").fingerprint
  assert other != prints[0]
