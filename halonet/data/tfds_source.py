"""Data sets of TFDS (tensorflow.org/datasets), read from their records."""

from collections.abc import Mapping

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

import halonet.data.digits  # noqa: F401  Makes "digits" known to TFDS.
from halonet.data.runtime import tf
from halonet.data.sources import SOURCES, Source, Split
from halonet.errors import UsageError, unknown

# Named when a data set is not found; TFDS knows some hundreds more.
_WELL_KNOWN = (
  "digits, mnist, cifar10, cifar100, imagenet2012, imagenette,"
  " oxford_flowers102, food101"
)

# COCO's numbers of its 80 classes, in the order of their names in TFDS.
_COCO_IDS = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})


class TfdsSource(Source):
  """A data set of TFDS; `builder` is TFDS's own description of it."""

  def __init__(self, data: ml_collections.ConfigDict, needs: Mapping[str, str]):
    self._given = data.name, data.data_dir
    self._needs = needs
    self.builder = load_builder(*self._given)
    self.name = self.builder.info.full_name
    self.location = str(self.builder.data_dir)
    self.features = {
      name: type(feature).__name__
      for name, feature in _flat(self.builder.info.features).items()
    }

  @property
  def classes(self) -> dict[str, list[str]]:
    # Before a data set is prepared, TFDS may name its classes by numbers.
    return {
      name: list(feature.names)
      for name, feature in _flat(self.builder.info.features).items()
      if {name, name.partition("/")[0]} & set(self._needs)
      and isinstance(feature, tfds.features.ClassLabel)
      and feature.num_classes
    }

  @property
  def class_ids(self) -> dict[str, list[int]]:
    if self.builder.name != "coco":
      return {}
    return {
      name: _COCO_IDS
      for name, labels in self.classes.items()
      if len(labels) == len(_COCO_IDS)
    }

  def prepare(self) -> None:
    builder = self.builder
    if not builder.is_prepared():
      print(
        f"Preparing data set {builder.name} in {builder.data_dir}", flush=True
      )
      try:
        builder.download_and_prepare(file_format="tfrecord")
      except Exception as error:  # Any of TFDS's, of the network's, the disk's.
        # Another process may have been faster.
        self.builder = load_builder(*self._given)
        if not self.builder.is_prepared():
          reason = str(error).strip().splitlines() or [type(error).__name__]
          raise UsageError(
            f"config.data.name: {builder.name} could not be prepared in"
            f" {builder.data_dir}: {reason[0]}. See"
            f" scripts/prepare_data.py {self._given[0]}"
          ) from error
    file_format = self.builder.info.file_format
    if file_format is not None and file_format.value != "tfrecord":
      raise UsageError(
        f"config.data.data_dir: {builder.data_dir} holds {file_format.value}"
        " files; prepare the data set as tfrecord"
      )

  def split(self, field: str, name: str) -> Split:
    info = self.builder.info
    try:
      instructions = info.splits[name].file_instructions
    except (KeyError, ValueError, AssertionError, TypeError):
      message = unknown("split", name, info.splits)
      raise UsageError(f"config.data.{field}: {message}") from None
    instructions = [item for item in instructions if item.take > 0]
    if not instructions:
      raise UsageError(f"config.data.{field}: split {name} is empty")
    files = np.array([str(item.filename) for item in instructions])
    names = tf.constant(files)
    # Other features are not even parsed.
    wanted = _select(info.features, ("image", *self._needs))

    def parse(serialized):
      return wanted.deserialize_example(
        serialized, decoders={"image": tfds.decode.SkipDecoding()}
      )

    def read(shard, skip, take):
      records = tf.data.TFRecordDataset(tf.gather(names, shard))
      return records.skip(skip).take(take).map(parse)

    skips = np.array([item.skip for item in instructions], np.int64)
    sizes = np.array([item.take for item in instructions], np.int64)
    return Split(files, skips, sizes, read)


def _items(feature):
  """Returns the features of a sequence's items; {} if it has none."""
  if isinstance(feature, tfds.features.Sequence) and isinstance(
    feature.feature, tfds.features.FeaturesDict
  ):
    return dict(feature.feature.items())
  return {}


def _flat(features):
  """Returns features by name, with those of a sequence's items as `a/b`."""
  if not isinstance(features, tfds.features.FeaturesDict):
    return {}
  flat = dict(features.items())
  for name, feature in features.items():
    flat |= {f"{name}/{key}": item for key, item in _items(feature).items()}
  return flat


def _select(features, names):
  """Keeps the features of some names, those of `_flat`."""
  kept = {name: features[name] for name in names if name in features}
  for name, feature in features.items():
    items = _items(feature)
    wanted = {key: items[key] for key in items if f"{name}/{key}" in names}
    if wanted and name not in kept:
      kept[name] = tfds.features.Sequence(wanted)
  return tfds.features.FeaturesDict(kept)


def load_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Finds a data set of TFDS.

  Args:
    name: a TFDS name, `cifar10` or `cifar10:3.*.*`, or `digits`.
    data_dir: folder of prepared data, local or `gs://`; if None, that of TFDS
      (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

  Raises:
    UsageError: if there is no such data set.
  """
  try:
    return tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ImportError):
    builders = tfds.list_builders(with_community_datasets=False)
    everything = {*builders, *SOURCES}
    near = unknown("data set", name, everything).split("known:")[0]
    raise UsageError(
      f"config.data.name: {near}known: {', '.join(SOURCES)}, {_WELL_KNOWN}, and"
      f" all {len(everything)} of tensorflow.org/datasets/catalog"
    ) from None
  except Exception as error:  # A wrong version, a wrong variant, a bad folder.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UsageError(
      f"config.data.name: {name!r} cannot be opened: {reason[:300]}"
    ) from error
