"""Where images come from: TFDS records, or folders of image files.

Both become the same thing: splits made of shards, each of which can be read
from any of its examples on. `halonet.data.pipeline` decides the order.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import halonet.data.digits  # noqa: F401  Makes "digits" known to TFDS.
from halonet.errors import UsageError, unknown

# Named when a data set is not found; TFDS knows some hundreds more.
_WELL_KNOWN = (
  "folder",
  "digits",
  "mnist",
  "cifar10",
  "cifar100",
  "imagenet2012",
  "imagenette",
  "oxford_flowers102",
  "food101",
)
# What TensorFlow decodes.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

# JAX owns the accelerators; TensorFlow reads files and decodes images.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A part of a data set, as shards in a fixed order.

  Attributes:
    files: path of every shard's file.
    skips: examples at the beginning of a file that are not of this split.
    sizes: examples of every shard.
    read: from scalar tensors (shard, skip, take) to a `tf.data.Dataset` of
      `take` examples of that shard's file after its first `skip`: dicts of
      `image`, the bytes of a file, and `label`, int64.
    read_one: where each shard is a file of one example, from a scalar tensor
      shard to that example, which is quicker than a dataset of it; else None.
  """

  files: np.ndarray
  skips: np.ndarray
  sizes: np.ndarray
  read: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset]
  read_one: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None

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
    """A number that differs between different listings of files."""
    # With the folder above: that of the class, if files are images.
    names = "\n".join("/".join(name.split("/")[-2:]) for name in self.files)
    sizes = ",".join(map(str, self.sizes.tolist()))
    return zlib.crc32(f"{names}\n{sizes}".encode())


@dataclasses.dataclass(frozen=True)
class Source:
  """An image classification data set.

  Attributes:
    name: as the source itself calls it, with its version if it has one.
    location: the folder that holds it.
    classes: names of the classes of each feature that has classes.
    split: from the config's field (`train_split` or `test_split`) and its
      value to a Split; UsageError if there is no such split, or it is empty.
  """

  name: str
  location: str
  classes: dict[str, list[str]]
  split: Callable[[str, str], Split]


def open_source(data: ml_collections.ConfigDict) -> Source:
  """Opens the data set that the `data` part of a training config names.

  A TFDS data set that has not been prepared is downloaded and prepared.

  Raises:
    UsageError: if there is none, it cannot be prepared, or it has no images
      with labels.
  """
  if data.name == "folder":
    return _folder_source(data)
  builder = prepare(data.name, data.data_dir)
  return Source(
    name=builder.info.full_name,
    location=str(builder.data_dir),
    classes={"label": list(builder.info.features["label"].names)},
    split=lambda field, name: _records(builder, field, name),
  )


# -------------------------------------------------------------------- TFDS


def load_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Finds an image classification data set of TFDS.

  Args:
    name: a TFDS name, `cifar10` or `cifar10:3.*.*`, or `digits`.
    data_dir: where TFDS keeps prepared data, local or `gs://`; if None, where
      TFDS does by itself (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

  Raises:
    UsageError: if there is no such data set, or it has no images with labels.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ImportError):
    everything = {
      *tfds.list_builders(with_community_datasets=False),
      *_WELL_KNOWN,
    }
    near = unknown("data set", name, everything).split("known:")[0]
    raise UsageError(
      f"config.data.name: {near}known: {', '.join(_WELL_KNOWN)}, and all"
      f" {len(everything)} of tensorflow.org/datasets/catalog"
    ) from None
  except Exception as error:  # A wrong version, a wrong variant, a bad folder.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UsageError(
      f"config.data.name: {name!r} cannot be opened: {reason[:300]}"
    ) from error
  features = builder.info.features
  for feature, kind in (
    ("image", tfds.features.Image),
    ("label", tfds.features.ClassLabel),
  ):
    found = features[feature] if feature in (features or ()) else None
    if not isinstance(found, kind):
      raise UsageError(
        f"config.data.name is {name!r}, which is no image classification data"
        f" set: it has no feature {feature!r} of the kind {kind.__name__}"
      )
  return builder


def count_classes(data: ml_collections.ConfigDict) -> int:
  """Classes of a config's data set, which need not be prepared.

  Raises:
    UsageError: if only the data would tell, and they are not there.
  """
  if data.name == "folder":
    try:
      return len(open_source(data).classes["label"])
    except UsageError:
      raise UsageError(
        "the number of classes is that of a folder which is not here; give it"
        " as --num_classes"
      ) from None
  builder = load_builder(data.name, data.data_dir)
  return builder.info.features["label"].num_classes


def prepare(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Finds a data set; downloads and writes its records unless they are there.

  Raises:
    UsageError: if that fails, with TFDS's reason; or as for `load_builder`.
  """
  builder = load_builder(name, data_dir)
  if not builder.is_prepared():
    print(
      f"Preparing data set {builder.name} in {builder.data_dir}", flush=True
    )
    try:
      builder.download_and_prepare(file_format="tfrecord")
    except Exception as error:  # Any of TFDS's, of the network's, the disk's.
      # Another process may have been faster.
      again = load_builder(name, data_dir)
      if not again.is_prepared():
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
          f"config.data.name: {builder.name} could not be prepared in"
          f" {builder.data_dir}: {reason[0]}. See"
          f" scripts/prepare_data.py {name}"
        ) from error
      builder = again
  file_format = builder.info.file_format
  if file_format is not None and file_format.value != "tfrecord":
    raise UsageError(
      f"config.data.data_dir: {builder.data_dir} holds {file_format.value}"
      " files; prepare the data set as tfrecord"
    )
  return builder


def _records(builder, field, name):
  try:
    instructions = builder.info.splits[name].file_instructions
  except (KeyError, ValueError, AssertionError, TypeError):
    message = unknown("split", name, builder.info.splits)
    raise UsageError(f"config.data.{field}: {message}") from None
  instructions = [item for item in instructions if item.take > 0]
  if not instructions:
    raise UsageError(f"config.data.{field}: split {name} is empty")
  files = np.array([str(item.filename) for item in instructions])
  features = builder.info.features

  def parse(serialized):
    example = features.deserialize_example(
      serialized, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {"image": example["image"], "label": example["label"]}

  names = tf.constant(files)

  def read(shard, skip, take):
    records = tf.data.TFRecordDataset(tf.gather(names, shard))
    return records.skip(skip).take(take).map(parse)

  return Split(
    files=files,
    skips=np.array([item.skip for item in instructions], np.int64),
    sizes=np.array([item.take for item in instructions], np.int64),
    read=read,
  )


# ----------------------------------------------------------------- folders


def _folder_source(data):
  if data.data_dir is None:
    raise UsageError(
      "config.data.data_dir is None; with config.data.name=folder it must be"
      " the folder that holds one for each split"
    )
  train = list_folder("train_split", data.data_dir, data.train_split)
  labels = list(train)

  def split(field, name):
    listed = (
      train
      if name == data.train_split
      else list_folder(field, data.data_dir, name)
    )
    return _files(field, data.data_dir, name, labels, listed)

  return Source(
    name=f"folder {pathlib.PurePath(data.data_dir).name}",
    location=str(data.data_dir),
    classes={"label": labels},
    split=split,
  )


def list_folder(field: str, root: str, name: str) -> dict[str, list[str]]:
  """Lists a split's image files by class, both sorted by name.

  Args:
    field: of the config, to be named in errors.
    root: the folder of the data set, local or `gs://`.
    name: of the split, a folder in `root`.

  Raises:
    UsageError: if there is no such folder, or there are no classes in it.
  """
  folder = f"{root}/{name}"
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


def _files(field, root, name, labels, listed: dict[str, Iterable[str]]):
  strangers = sorted(set(listed) - set(labels))
  if strangers:
    raise UsageError(
      f"config.data.{field}: {root}/{name} has the class {strangers[0]}, which"
      " the training split has not"
    )
  files = [file for label in labels for file in listed.get(label, ())]
  if not files:
    raise UsageError(
      f"config.data.{field}: {root}/{name} holds no image files"
      f" ({', '.join(_SUFFIXES)})"
    )
  numbers = [
    number for number, label in enumerate(labels) for _ in listed.get(label, ())
  ]
  names, numbers = tf.constant(files), tf.constant(numbers, tf.int64)

  def read_one(shard):
    image = tf.io.read_file(tf.gather(names, shard))
    return {"image": image, "label": tf.gather(numbers, shard)}

  def read(shard, skip, take):
    return tf.data.Dataset.from_tensors(read_one(shard)).skip(skip).take(take)

  return Split(
    files=np.array(files),
    skips=np.zeros(len(files), np.int64),
    sizes=np.ones(len(files), np.int64),
    read=read,
    read_one=read_one,
  )
