"""Data sets by name: `config.data.name`.

A source offers splits made of shards, each of which can be read from any of
its examples on. `halonet.data.order` decides the order. This module does not
import TensorFlow, which takes seconds.
"""

import abc
import dataclasses
import importlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from halonet.errors import UsageError

if TYPE_CHECKING:
  import ml_collections


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A part of a data set, as shards in a fixed order.

  Attributes:
    files: path of every shard's file.
    skips: number of examples before this split's in every file.
    sizes: number of examples in every shard.
    read: function that turns scalar tensors (shard, skip, take) into a
      `tf.data.Dataset` of `take` examples of that shard's file after its first
      `skip`. An example has `image`, the bytes of an encoded image, and the
      features that were asked for.
    read_one: if every shard is a file of one example, a function from a scalar
      tensor, the shard, to that example. It is faster than a dataset.
    content: number that differs where the targets differ that are not in the
      files, such as boxes of images; 0 if there are none.
  """

  files: np.ndarray
  skips: np.ndarray
  sizes: np.ndarray
  read: Callable[[Any, Any, Any], Any]
  read_one: Callable[[Any], dict[str, Any]] | None = None
  content: int = 0

  @classmethod
  def of_files(
    cls,
    files: Iterable[str],
    read_one: Callable[[Any], dict[str, Any]],
    content: int = 0,
  ) -> "Split":
    """Makes a split of files that hold one example each."""
    from halonet.data.runtime import tf

    def read(shard, skip, take):
      # Mapped, so that a file that cannot be read fails as its example does.
      example = tf.data.Dataset.from_tensors(shard).map(read_one)
      return example.skip(skip).take(take)

    files = np.array(files)
    zeros = np.zeros(len(files), np.int64)
    return cls(files, zeros, zeros + 1, read, read_one, content)

  @property
  def size(self) -> int:
    return int(self.sizes.sum())

  def where(self, number: int) -> str:
    """Names the file of an example, and the record in it if it has several."""
    ends = np.cumsum(self.sizes)
    shard = int(np.searchsorted(ends, number, side="right"))
    record = number - int(ends[shard] - self.sizes[shard])
    record += int(self.skips[shard])
    name = str(self.files[shard])
    return f"record {record} of {name}" if self.sizes.max() > 1 else name

  @property
  def fingerprint(self) -> int:
    """A number that differs between listings of files, and their targets."""
    # The last folder is included: it is the class if files are images.
    names = "\n".join("/".join(name.split("/")[-2:]) for name in self.files)
    sizes = ",".join(map(str, self.sizes.tolist()))
    return zlib.crc32(f"{names}\n{sizes}".encode(), self.content)


class Source(abc.ABC):
  """A data set of images and what belongs to each of them.

  A subclass, or any function that returns a source, is made known by
  `register`. It is called with the `data` part of a training config and the
  features that the task needs, and raises UsageError if there is no such data.

  Attributes:
    name: name of the data set, with its version if it has one.
    location: folder that holds it.
    features: kind of each feature, `image` included, as the name of a class of
      `tfds.features`, such as "ClassLabel". What the items of a sequence have
      is listed as well: `objects/bbox` beside `objects`.
    classes: names of the classes of each feature that has classes.
    class_ids: the data set's own numbers of these classes, where it has some
      that are not 0, 1, 2, …
  """

  name: str
  location: str
  features: Mapping[str, str]
  classes: Mapping[str, list[str]] = {}
  class_ids: Mapping[str, list[int]] = {}

  def prepare(self) -> None:  # noqa: B027  Optional.
    """Downloads the data and writes them to disk unless they are there."""

  @abc.abstractmethod
  def split(self, field: str, name: str) -> Split:
    """Opens a split.

    Args:
      field: config field that names it, `train_split` or `test_split`.
      name: the field's value.

    Raises:
      UsageError: if there is no such split, or it is empty.
    """

  def report(self, field: str, name: str) -> list[str]:
    """Says in lines what there is to know of a split beside its files.

    Args and errors are those of `split`.
    """
    del field, name
    return []

  def check(self, field: str, name: str) -> None:  # noqa: B027  Optional.
    """Compares all images of a split with what is known of them.

    Args are those of `split`. It may take as long as reading the split.

    Raises:
      UsageError: if an image is another than the one described.
    """


Opener = Callable[["ml_collections.ConfigDict", Mapping[str, str]], Source]

# Name → the opener, or where it is. All other names are those of TFDS.
SOURCES: dict[str, Opener | str] = {
  "folder": "halonet.data.folder_source:FolderSource",
  "coco_json": "halonet.data.coco_source:CocoJsonSource",
}
_TFDS = "halonet.data.tfds_source:TfdsSource"


def register(name: str, opener: Opener) -> None:
  """Makes a source known by name, a subclass of `Source` for example.

  Raises:
    ValueError: if the name is taken by another source.
  """
  if SOURCES.get(name, opener) is not opener:
    raise ValueError(f"there is a source {name!r} already")
  SOURCES[name] = opener


def open_source(
  data: "ml_collections.ConfigDict", needs: Mapping[str, str]
) -> Source:
  """Opens a data set, which is downloaded and prepared if need be.

  Args:
    data: the `data` part of a training config.
    needs: features beside `image` that every example must have, with their
      kinds: `Task.needs`.

  Raises:
    UsageError: if there is no such data set, it cannot be prepared, or it
      lacks a feature.
  """
  source = describe(data, needs)
  source.prepare()
  return source


def describe(
  data: "ml_collections.ConfigDict", needs: Mapping[str, str]
) -> Source:
  """Finds a data set without preparing it, for its name and its classes.

  Args and errors are those of `open_source`.
  """
  opener: Any = SOURCES.get(data.name, _TFDS)
  if isinstance(opener, str):
    module, _, attribute = opener.partition(":")
    opener = getattr(importlib.import_module(module), attribute)
  source = opener(data, needs)
  for feature, kind in {"image": "Image", **needs}.items():
    if source.features.get(feature) != kind:
      raise UsageError(
        f"config.data.name is {data.name!r}, which does not suit config.task:"
        f" it has no feature {feature!r} of the kind {kind}"
      )
  return source
