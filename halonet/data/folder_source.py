"""Folders of image files: `DIR/SPLIT/CLASS/image.jpg`."""

import pathlib
from collections.abc import Mapping

import ml_collections

from halonet.data.runtime import tf
from halonet.data.sources import Source, Split
from halonet.errors import UsageError

# The formats that TensorFlow decodes.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


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
    self._listed = self._list("train_split", data.train_split)
    self.classes = {"label": list(self._listed)}

  def split(self, field: str, name: str) -> Split:
    folder, labels = f"{self.location}/{name}", self.classes["label"]
    listed = self._listed if name == self._train else self._list(field, name)
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
        f" ({', '.join(_SUFFIXES)})"
      )
    files, numbers = zip(*pairs, strict=True)
    names, numbers = tf.constant(files), tf.constant(numbers, tf.int64)

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
      names = tf.io.gfile.listdir(folder)
      # On gs://, names of folders end with a slash.
      names = sorted(item.rstrip("/") for item in names if item[0] != ".")
      classes = {
        item: sorted(
          f"{folder}/{item}/{file}"
          for file in tf.io.gfile.listdir(f"{folder}/{item}")
          if file.lower().endswith(_SUFFIXES) and file[0] != "."
        )
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
    if not classes:
      raise UsageError(
        f"config.data.{field}: {folder} holds no folders of classes"
      )
    return classes
