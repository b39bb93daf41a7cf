"""Folders of images with boxes in a COCO JSON for each split.

The JSON is `DIR/instances_SPLIT.json`, or lies in `DIR/annotations/`, as COCO's
own do. An image is the first file of `DIR/images/NAME`,
`DIR/images/SPLIT/NAME`, `DIR/SPLIT/NAME` and `DIR/NAME`, where NAME is its
`file_name`.
"""

import io
import logging
import os
import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np
from PIL import Image

from halonet.data import coco_annotations
from halonet.data.coco_annotations import Annotations, first
from halonet.data.exif import TRANSPOSED, read_orientation
from halonet.data.folder_source import SUFFIXES
from halonet.data.orientation import upright_boxes
from halonet.data.runtime import CORES, tf
from halonet.data.sources import Source, Split
from halonet.errors import UsageError

_LOGGER = logging.getLogger(__name__)


class CocoJsonSource(Source):
  """A data set of images with boxes, local or on `gs://`.

  An example has `image`, `image/id`, and `objects` with `bbox`, `label`,
  `is_crowd` and `area`, as in TFDS's `coco`. Classes are in the order of their
  ids. Images without objects belong to the split.

  Boxes are those of the upright image if its size is the JSON's. If only the
  size of the image as it is stored is the JSON's, they are turned with it. An
  image of another size ends the run.
  """

  features = {  # noqa: RUF012
    "image": "Image",
    "image/id": "Tensor",
    "objects": "Sequence",
    "objects/area": "Tensor",
    "objects/bbox": "BBoxFeature",
    "objects/is_crowd": "Tensor",
    "objects/label": "ClassLabel",
  }

  def __init__(self, data: ml_collections.ConfigDict, needs: Mapping[str, str]):
    if data.data_dir is None:
      raise UsageError(
        "config.data.data_dir is None; with config.data.name=coco_json it must"
        " be the folder that holds instances_SPLIT.json"
      )
    self.location = str(data.data_dir).rstrip("/")
    self.name = f"coco_json {pathlib.PurePath(self.location).name}"
    self._train = data.train_split
    self._needs = needs
    self._skip_corrupt = data.get("skip_corrupt", False)
    self._most = data.get("max_objects")
    self._known = {}  # What was read, by split: a large JSON takes long.
    train = self._read("train_split", data.train_split)
    self.classes = {"objects/label": train.classes}
    self.class_ids = {"objects/label": train.class_ids.tolist()}

  def split(self, field: str, name: str) -> Split:
    found = self._annotations(field, name)
    files = self._find(field, name, found.files)
    self._check_most(field, name, found, files)
    names, sizes, ids, splits = map(
      tf.constant, (files, found.sizes, found.image_ids, found.splits)
    )
    objects = {
      "area": tf.constant(found.areas),
      "bbox": tf.constant(found.boxes),
      "is_crowd": tf.constant(found.crowds),
      "label": tf.constant(found.labels),
    }
    if "objects" not in self._needs:
      objects = {
        key: array
        for key, array in objects.items()
        if f"objects/{key}" in self._needs
      }

    def read_one(shard):
      encoded = tf.io.read_file(tf.gather(names, shard))
      example = {"image": encoded}
      if "image/id" in self._needs:
        example["image/id"] = tf.gather(ids, shard)
      if objects:
        begin, end = splits[shard], splits[shard + 1]
        own = {key: array[begin:end] for key, array in objects.items()}
        if "bbox" in own:
          size = tf.gather(sizes, shard)
          turn = tf.numpy_function(_turn, [encoded, size], tf.int32, False)
          turn = tf.ensure_shape(turn, [])
          boxes = own["bbox"]
          own["bbox"] = tf.cond(
            turn > 1, lambda: upright_boxes(boxes, turn), lambda: boxes
          )
        example["objects"] = own
      return example

    return Split.of_files(files, read_one, found.checksum)

  def report(self, field: str, name: str) -> list[str]:
    found = self._annotations(field, name)
    counts = np.bincount(found.labels, minlength=len(found.classes))
    classes = ", ".join(
      f"{each} {count}"
      for each, count in zip(found.classes, counts, strict=True)
    )
    objects = np.diff(found.splits)
    if field == "test_split":
      self._warn_of_files()
    return [
      f"{name}: {len(found.labels)} objects of {len(found.classes)} classes:"
      f" {classes}",
      f"{name}: {(objects == 0).sum()} images without objects,"
      f" {found.crowds.sum()} crowds; at most {objects.max()} objects in an"
      f" image: config.data.max_objects={objects.max()} keeps all",
    ]

  def check(self, field: str, name: str) -> None:
    found = self._annotations(field, name)
    files = self._find(field, name, found.files)

    def compare(path, size):
      # What is no image is left to the decoder's check.
      encoded = tf.io.read_file(path)
      types = tf.string, tf.bool
      words, either = tf.numpy_function(_check_size, [encoded, size], types)
      return path, tf.ensure_shape(words, []), tf.ensure_shape(either, [])

    checked = tf.data.Dataset.from_tensor_slices((files, found.sizes)).map(
      compare, num_parallel_calls=CORES
    )
    wrong, turned = [], []
    for path, words, either in checked.as_numpy_iterator():
      if words:
        wrong.append(f"{path.decode()}: {words.decode()}")
      if either:
        turned.append(path.decode())
    if turned:
      _LOGGER.warning(
        "%s: %d images have an EXIF tag that turns them and keeps their size:"
        " their boxes are read as those of the upright image (%s)",
        name,
        len(turned),
        first(turned),
      )
    if wrong:
      raise UsageError(
        f"config.data.{field}: {len(wrong)} images of split {name} have"
        f" another size than in the JSON, such as {first(wrong)}; mend the"
        " JSON, or put back its images"
      )

  def _warn_of_files(self):
    """Warns of images that no split names, and of those that two do."""
    seen, twice = set(), []
    for name, found in self._known.items():
      paths = self._find("test_split", name, found.files)
      twice += sorted(seen.intersection(paths))
      seen.update(paths)
    unnamed = [
      path
      for folder in sorted({path.rpartition("/")[0] for path in seen})
      for path in (f"{folder}/{base}" for base in sorted(_listing(folder)))
      if path not in seen and path.lower().endswith(SUFFIXES)
    ]
    for paths, what in (
      (twice, "are in both splits"),
      (unnamed, "are in neither split's JSON, and left out"),
    ):
      if paths:
        _LOGGER.warning("%d images %s (%s)", len(paths), what, first(paths))

  def _annotations(self, field, name) -> Annotations:
    """Returns what the split's JSON says; its classes are the training's."""
    found, train = self._read(field, name), self._read(field, self._train)
    own, others = (
      set(zip(each.class_ids.tolist(), each.classes, strict=True))
      for each in (found, train)
    )
    if own != others:
      number, label = min(own ^ others)
      raise UsageError(
        f"config.data.{field}: the categories of split {name} are not those of"
        f" the training split {self._train}: {number} ({label}) is in one only;"
        " make both the same"
      )
    return found

  def _read(self, field, name) -> Annotations:
    if name not in self._known:
      path, text = self._open(field, name)
      try:
        found = coco_annotations.parse(text)
      except ValueError as error:
        raise UsageError(f"config.data.{field}: {path}: {error}") from None
      for warning in found.warnings:
        _LOGGER.warning("%s: %s", path, warning)
      self._known[name] = found
    return self._known[name]

  def _open(self, field, name) -> tuple[str, bytes]:
    tried = (
      f"{self.location}/instances_{name}.json",
      f"{self.location}/annotations/instances_{name}.json",
    )
    for path in tried:
      try:
        with tf.io.gfile.GFile(path, "rb") as file:
          return path, file.read()
      except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
        continue
      except tf.errors.OpError as error:
        raise UsageError(
          f"config.data.{field}: {path} cannot be read:"
          f" {error.message.splitlines()[0]}"
        ) from None
    raise UsageError(
      f"config.data.{field}: there is no file {tried[0]}, and none in"
      " annotations/ beside it"
    )

  def _check_most(self, field, name, found, files):
    """Raises UsageError if the evaluation would lose objects."""
    objects = np.diff(found.splits)
    most = objects.max()
    if field == "test_split" and self._most is not None and most > self._most:
      file = files[objects.argmax()]
      raise UsageError(
        f"config.data.max_objects is {self._most}, and {file} of split {name}"
        f" has {most} objects; set it to {most} or more"
      )

  def _find(self, field, name, files) -> list[str]:
    """Returns the paths of a split's images."""
    roots = [
      f"{self.location}/{folder}"
      for folder in ("images", f"images/{name}", name)
    ]
    roots.append(self.location)
    listings, paths, missing, empty = {}, [], [], []
    for file in files:
      for root in roots:
        path = f"{root}/{file}"
        folder, _, base = path.rpartition("/")
        if folder not in listings:
          listings[folder] = _listing(folder)
        if base in listings[folder]:
          paths.append(path)
          if listings[folder][base] == 0:
            empty.append(path)
          break
      else:
        missing.append(file)
    if missing:
      raise UsageError(
        f"config.data.{field}: {len(missing)} of the {len(files)} images of"
        f" split {name} are missing, such as {first(missing)}, in"
        f" {', '.join(roots)}; put them there"
      )
    if empty and not self._skip_corrupt:
      raise UsageError(
        f"config.data.{field}: {len(empty)} images of split {name} have 0"
        f" bytes, such as {first(empty)}; put back whole ones, or set"
        " config.data.skip_corrupt=true to count and leave out such images"
      )
    return paths


def _listing(folder):
  """Returns the sizes of a folder's files in bytes; on gs:// they are None."""
  if "://" in folder:
    try:
      return dict.fromkeys(tf.io.gfile.listdir(folder))
    except tf.errors.NotFoundError:
      return {}
    except tf.errors.OpError as error:
      line = error.message.splitlines()[0]
      raise UsageError(f"{folder} cannot be read: {line}") from None
  try:
    with os.scandir(folder) as entries:
      # A dangling link is no file.
      return {
        each.name: each.stat().st_size for each in entries if each.is_file()
      }
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError) as error:  # A name may hold what none can.
    raise UsageError(f"{folder} cannot be read: {error}") from None


def _header(encoded):
  """Returns height and width as stored, and the orientation; None without."""
  if isinstance(encoded, np.ndarray):  # Outside of a graph.
    encoded = encoded.item()
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      return image.size[::-1], read_orientation(encoded)
  # Pillow raises many kinds. The decoder reports what is not an image.
  except Exception:
    return None


def _check_size(encoded, size):
  """Words how the size differs, and says whether a turn leaves it the same."""
  words, _, either = _compare(encoded, size)
  return words.encode(), either


def _turn(encoded, size):
  """Returns the orientation by which the JSON's boxes are to be turned."""
  words, turn, _ = _compare(encoded, size)
  if words:
    raise ValueError(f"it has another size than in the JSON: {words}")
  return np.int32(turn)


def _compare(encoded, size):
  """Compares an image with its size in the JSON.

  Returns:
    How they differ, in words, or ""; the orientation by which boxes are to be
    turned; and whether a tag turns the image without changing its size.
  """
  header = _header(encoded)
  if header is None:
    return "", 1, False
  (height, width), turn = header
  upright = (width, height) if TRANSPOSED[turn] else (height, width)
  if tuple(size) == upright:
    return "", 1, turn > 1 and upright == (height, width)
  if tuple(size) == (height, width):
    return "", turn, False
  return f"{width}×{height}, in the JSON {size[1]}×{size[0]}", 1, False
