"""Folders of image files, and what is said of wrong ones."""

import os

import ml_collections
import numpy as np
import pytest
from PIL import Image

from halonet.data import preprocessing, sources
from halonet.errors import UsageError


@pytest.fixture
def folder(photos):
  """Opens the photographs, or another folder."""

  def open_folder(path=photos, needs=("label",), **fields):
    data = dict(name="folder", data_dir=path and str(path), train_split="train")
    data |= fields
    return sources.open_source(
      ml_collections.ConfigDict(data), dict.fromkeys(needs, "ClassLabel")
    )

  return open_folder


def write(root, *names):
  """Makes empty files, which are images by their names."""
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"")


def test_a_folder_has_classes_by_name(folder):
  source = folder()
  assert source.name.startswith("folder photos")
  assert source.classes == {"label": ["china", "flower"]}
  split = source.split("train_split", "train")
  assert split.size == len(split.files) == 37
  (example,) = split.read(20, 0, 1).as_numpy_iterator()
  assert int(example["label"]) == 1
  with open(split.files[20], "rb") as file:
    assert example["image"] == file.read()
  for name, value in split.read_one(20).items():
    assert value.numpy() == example[name]
  assert split.where(20) == split.files[20]


@pytest.mark.parametrize(
  "name", ["1.JPG", "1.jpeg", "1.jfif", "1.png", "1.bmp", "1.gif", "1.webp"]
)
def test_every_format_of_the_listing_is_decoded(folder, tmp_path, caplog, name):
  path = tmp_path / "train/a" / name
  write(tmp_path, f"train/a/{name}", "train/b/1.png")
  Image.new("RGB", (40, 30), (0, 128, 255)).save(path)
  with Image.open(path) as image:
    expected = np.asarray(image.convert("RGB"))
  example = folder(tmp_path).split("train_split", "train").read_one(0)
  # JPEGs by another arithmetic than Pillow's.
  actual = preprocessing.decode(example["image"])
  np.testing.assert_allclose(actual, expected, atol=1)
  assert not caplog.messages


def test_what_is_left_out_is_named_once_for_each_split(
  folder, tmp_path, caplog
):
  others = [f"train/b/{name}" for name in ("1.tif", "2.HEIC", "3", "4.txt")]
  write(tmp_path, "train/a/1.jpg", "train/a/.hidden", "train/b/1.jpg", *others)
  write(tmp_path, "val/a/1.jpg", "val/a/Thumbs.db")
  source = folder(tmp_path)
  for name in ("train", "val", "val"):
    source.split("test_split", name)
  train, val = caplog.messages
  assert train.startswith(f"{tmp_path}/train: left out, as their names do not")
  assert train.endswith(".webp: 4, such as b/1.tif, b/2.HEIC, b/3")
  assert val.startswith(f"{tmp_path}/val: left out, as their names do not")
  assert val.endswith(".webp: 1, such as a/Thumbs.db")


def test_only_what_is_needed_is_read(folder):
  split = folder(needs=()).split("train_split", "train")
  assert set(split.read_one(20)) == {"image"}


def test_a_test_split_may_lack_a_class_but_not_add_one(folder, tmp_path):
  write(
    tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png", "val2/c/1.png"
  )
  source = folder(tmp_path)
  (example,) = source.split("test_split", "val").read(0, 0, 1)
  assert int(example["label"]) == 1
  with pytest.raises(UsageError, match="val2 has the class c, which the train"):
    source.split("test_split", "val2")


def test_folders_that_are_no_data_set(folder, tmp_path):
  with pytest.raises(UsageError, match="there is no folder .*/train$"):
    folder(tmp_path)
  write(tmp_path, "train/notes.txt")
  with pytest.raises(UsageError, match="holds no folders of classes"):
    folder(tmp_path)
  write(tmp_path, "train/a/notes.txt")
  with pytest.raises(UsageError, match="train_split: .* holds no image files"):
    folder(tmp_path).split("train_split", "train")
  with pytest.raises(UsageError, match="config.data.data_dir is None; with"):
    folder(None)


def make_stranger(kind, path):
  if kind == "link":
    path.symlink_to("nowhere")
  elif kind == "loop":
    path.symlink_to(path)
  elif kind == "folder":
    path.mkdir()
  else:
    os.mkfifo(path)


@pytest.mark.parametrize(
  "kind, message",
  [
    (
      "link",
      r"train/a/2\.jpg is a dangling link; remove it, or set .*skip_corr",
    ),
    ("loop", r"train/a/2\.jpg is a dangling link"),
    ("folder", r"train/a/2\.jpg is no file; remove it"),
    ("pipe", r"train/a/2\.jpg is no file; remove it"),
  ],
)
def test_what_is_no_file_is_refused_or_read_as_empty(
  folder, tmp_path, kind, message
):
  write(tmp_path, "train/a/1.jpg", "train/a/3.jpg", "train/b/1.jpg")
  (tmp_path / "train/a/1.jpg").write_bytes(b"first")
  path = tmp_path / "train/a/2.jpg"
  make_stranger(kind, path)
  with pytest.raises(UsageError, match=f"config.data.train_split: .*{message}"):
    folder(tmp_path)
  split = folder(tmp_path, skip_corrupt=True).split("train_split", "train")
  images = [split.read_one(i)["image"].numpy() for i in range(split.size)]
  assert images == [b"first", b"", b"", b""]
  assert split.where(1) == str(path)


def test_links_to_files_are_files(folder, tmp_path):
  write(tmp_path, "elsewhere.jpg", "train/b/1.jpg", "train/a/1.jpg")
  (tmp_path / "train/a/2.jpg").symlink_to(tmp_path / "elsewhere.jpg")
  assert folder(tmp_path).split("train_split", "train").size == 3


@pytest.mark.parametrize("name", [b"train/a/\xff.jpg", b"train/\xff"])
def test_names_must_be_utf8(folder, tmp_path, name):
  write(tmp_path, "train/a/1.jpg")
  os.mkdir(os.path.join(os.fsencode(tmp_path), name))
  with pytest.raises(
    UsageError, match=r"the name .*\\xff.*, which is no UTF-8"
  ):
    folder(tmp_path)


def test_classes_that_look_wrong_get_a_word(folder, tmp_path, caplog):
  write(tmp_path / "two", "train/a/1.jpg", "train/b/1.jpg")
  folder(tmp_path / "two")
  assert not caplog.messages
  (tmp_path / "two/train/c").mkdir()
  folder(tmp_path / "two")
  (message,) = caplog.messages
  assert message.endswith("which the model has all the same: 1, such as c")
  caplog.clear()
  write(tmp_path / "one", "train/a/1.jpg")
  folder(tmp_path / "one")
  (message,) = caplog.messages
  assert "train holds one class only, a: there is nothing to" in message
  caplog.clear()
  folder(tmp_path / "one", needs=())  # Classes are not asked for.
  assert not caplog.messages
  write(tmp_path / "one", "train/b\nc/1.jpg")
  with pytest.raises(
    UsageError, match=r"a line break in its name, 'b\\nc'; re"
  ):
    folder(tmp_path / "one")


def test_fingerprints_tell_listings_apart(folder, tmp_path):
  def fingerprint(name):
    return folder(tmp_path / name).split("train_split", "train").fingerprint

  for name in ("one", "two"):
    write(tmp_path / name, "train/a/1.png", "train/a/2.png")
  first = fingerprint("one")
  assert fingerprint("two") == first  # Another place, the same files.
  write(tmp_path, "two/train/a/3.png")
  assert fingerprint("two") != first
