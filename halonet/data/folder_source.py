"""Folders of image files: `DIR/SPLIT/CLASS/image.jpg`."""

import logging
import os
import pathlib
from collections.abc import Mapping

import ml_collections

from halonet.data.runtime import tf
from halonet.data.sources import Source, Split
from halonet.errors import UsageError

_LOGGER = logging.getLogger(__name__)

# The formats that TensorFlow decodes.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp")


class FolderSource(Source):
  """A folder, local or `gs://`, with a folder for each split and class."""

  features = {"image": "Image", "label": "ClassLabel"}  # noqa: RUF012

  def __init__(self, data: ml_collections.ConfigDict, needs: Mapping[str, str]):
    if data.data_dir is None:
      raise UsageError(
        "config.data.data_dir is None; with config.data.name=folder it must be"
        " the folder that holds one for each split"
      )
    self.name = f"folder {pathlib.PurePath(data.data_dir).name}"
    self.location = str(data.data_dir)
    self._train = data.train_split
    self._needs = needs
    self._skip_corrupt = data.get("skip_corrupt", False)
    self._strangers = set()  # Paths that are no files.
    train = self._list("train_split", data.train_split)
    self._listed = {data.train_split: train}
    self.classes = {"label": list(train)}
    self._warn(train)

  def split(self, field: str, name: str) -> Split:
    folder, labels = f"{self.location}/{name}", self.classes["label"]
    if name not in self._listed:
      self._listed[name] = self._list(field, name)
    listed = self._listed[name]
    strangers = sorted(set(listed) - set(labels))
    if strangers:
      raise UsageError(
        f"config.data.{field}: {folder} has the class {strangers[0]}, which the"
        " training split has not"
      )
    pairs = [
      (file, number)
      for number, label in enumerate(labels)
      for file in listed.get(label, ())
    ]
    if not pairs:
      raise UsageError(
        f"config.data.{field}: {folder} holds no image files"
        f" ({', '.join(SUFFIXES)})"
      )
    files, numbers = zip(*pairs, strict=True)
    # What is no file is never opened: an empty one is just as corrupt.
    names = [os.devnull if file in self._strangers else file for file in files]
    names, numbers = tf.constant(names), tf.constant(numbers, tf.int64)

    def read_one(shard):
      example = {"image": tf.io.read_file(tf.gather(names, shard))}
      if "label" in self._needs:
        example["label"] = tf.gather(numbers, shard)
      return example

    return Split.of_files(files, read_one)

  def _list(self, field, name):
    """Lists a split's image files by class, both sorted by name."""
    folder = f"{self.location}/{name}"
    try:
      # On gs://, names of folders end with a slash.
      names = sorted(item.rstrip("/") for item in _names(folder))
      held = {
        item: sorted(_names(f"{folder}/{item}"))
        for item in names
        if tf.io.gfile.isdir(f"{folder}/{item}")
      }
    except tf.errors.NotFoundError:
      raise UsageError(
        f"config.data.{field}: there is no folder {folder}"
      ) from None
    except tf.errors.OpError as error:
      raise UsageError(
        f"config.data.{field}: {folder} cannot be read:"
        f" {error.message.splitlines()[0]}"
      ) from None
    except UnicodeDecodeError as error:
      raise UsageError(
        f"config.data.{field}: {folder} holds the name {error.object!r}, which"
        " is no UTF-8; rename the file"
      ) from None
    if not held:
      raise UsageError(
        f"config.data.{field}: {folder} holds no folders of classes"
      )
    classes, others = {}, []
    for label, names in held.items():
      images = [name for name in names if name.lower().endswith(SUFFIXES)]
      classes[label] = [f"{folder}/{label}/{name}" for name in images]
      others += sorted(f"{label}/{name}" for name in set(names) - set(images))
    for label, files in classes.items():
      if len(label.splitlines()) > 1:
        raise UsageError(
          f"config.data.{field}: {folder} has a class with a line break in its"
          f" name, {label!r}; rename the folder"
        )
      strangers = _no_files(f"{folder}/{label}").intersection(files)
      if strangers and not self._skip_corrupt:
        first = min(strangers)
        what = "a dangling link" if os.path.islink(first) else "no file"
        raise UsageError(
          f"config.data.{field}: {first} is {what}; remove it, or set"
          " config.data.skip_corrupt=true to count and leave out such images"
        )
      self._strangers |= strangers
    if others:
      _LOGGER.warning(
        "%s: left out, as their names do not end in %s: %d, such as %s",
        folder,
        ", ".join(SUFFIXES),
        len(others),
        ", ".join(others[:3]),
      )
    return classes

  def _warn(self, train):
    empty = [label for label, files in train.items() if not files]
    folder = f"{self.location}/{self._train}"
    if empty and len(empty) < len(train):
      _LOGGER.warning(
        "%s: classes without images, which the model has all the same: %d, such"
        " as %s",
        folder,
        len(empty),
        empty[0],
      )
    if len(train) == 1 and "label" in self._needs:
      _LOGGER.warning(
        "%s holds one class only, %s: there is nothing to tell apart",
        folder,
        *train,
      )


def _names(folder):
  """Lists a folder without what is hidden."""
  return [item for item in tf.io.gfile.listdir(folder) if item[0] != "."]


def _no_files(folder):
  """Lists the paths in a folder that lead to no file; gs:// has only files."""
  if "://" in folder:
    return set()
  with os.scandir(folder) as entries:
    # A listing tells files from others at no cost, but not where links lead.
    return {
      f"{folder}/{entry.name}"
      for entry in entries
      if not entry.is_file(follow_symlinks=False)
      and not (entry.is_symlink() and os.path.isfile(entry.path))
    }
