"""Reads and checks the text of a COCO JSON: images, their boxes and classes.

The format is that of cocodataset.org/#format-data, "object detection". Masks
(`segmentation`) may be there and are left out of account.
"""

import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# COCO's own training set has two boxes without height among 860,001. So few do
# not stop a training; a conversion that went wrong has more.
_FEW = 1 / 10_000
# Pixels by which boxes may leave their image, as those rounded to whole ones.
_ROUNDING = 1.0
# Pixels of an object's area, beyond any image's.
_MOST_AREA = 1e15
# Pixels that are not worth a word: COCO's boxes have two decimals.
_EXACT = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """The objects of a split's images, all in one array after the other.

  Attributes:
    classes: names of the classes, in the order of their ids.
    class_ids: the JSON's ids of the classes, int64.
    files: names of the images' files.
    image_ids: the JSON's ids of the images, int64.
    sizes: heights and widths of the images, int64 `[images, 2]`.
    splits: where each image's objects begin, and the end, int64 `[images + 1]`.
    boxes: top, left, bottom and right as shares of the image's height and
      width, float32 `[objects, 4]`.
    labels: places of the objects' classes in `classes`, int64.
    crowds: whether a box is around a group of objects, bool.
    areas: pixels of the objects, or of their boxes where the JSON does not say,
      float32.
    warnings: what a person should know of the data.
  """

  classes: list[str]
  class_ids: np.ndarray
  files: list[str]
  image_ids: np.ndarray
  sizes: np.ndarray
  splits: np.ndarray
  boxes: np.ndarray
  labels: np.ndarray
  crowds: np.ndarray
  areas: np.ndarray
  warnings: list[str]

  @property
  def checksum(self) -> int:
    """A number that differs between different annotations."""
    result = zlib.crc32("\n".join([*self.classes, *self.files]).encode())
    for field in dataclasses.fields(self):
      array = getattr(self, field.name)
      if isinstance(array, np.ndarray):
        result = zlib.crc32(np.ascontiguousarray(array), result)
    return result


def parse(text: str | bytes) -> Annotations:
  """Reads a COCO JSON of instances.

  Raises:
    ValueError: if the text is not a COCO JSON of instances, or contradicts
      itself. The message is one line that counts what is wrong and names the
      first of it.
  """
  categories, images, objects = _parts(text)
  class_ids = _ids(categories, "categories", "id")
  names = _column(categories, "categories", "name", _is_text, "a text")
  image_ids = _ids(images, "images", "id")
  files = _column(images, "images", "file_name", _is_text, "a text")
  sizes = [
    _column(images, "images", side, _is_side, "a number of pixels")
    for side in ("height", "width")
  ]
  sizes = np.array(sizes, np.int64).T
  object_ids = _ids(objects, "annotations", "id")
  of_image = _ids(objects, "annotations", "image_id")
  of_class = _ids(objects, "annotations", "category_id")
  boxes = _column(objects, "annotations", "bbox", _is_box, "four numbers")
  boxes = np.array(boxes, np.float64).reshape(-1, 4)
  crowds = _column(objects, "annotations", "iscrowd", _is_flag, "0 or 1", 0)
  # Where it is missing, it is that of the box.
  areas = _column(
    objects, "annotations", "area", _is_area, "a number of pixels", -1
  )
  areas = np.array(areas, np.float64)

  problems = [
    *_repeated(class_ids, "category ids"),
    *_repeated(image_ids, "image ids"),
    *_repeated(files, "file names"),
    *_repeated(object_ids, "annotation ids"),
  ]
  image, label = _places(of_image, image_ids), _places(of_class, class_ids)
  for places, what in ((image, "images"), (label, "categories")):
    problems += _found(object_ids[places < 0], f"annotations of unknown {what}")
  known = image >= 0
  wrong, warnings = _check_boxes(boxes[known], sizes[image[known]])
  for which, what in wrong:
    problems += _found(object_ids[known][which], what)
  if problems:
    raise ValueError("; ".join(problems))
  areas = np.where(areas < 0, boxes[:, 2] * boxes[:, 3], areas)
  warnings = [
    *_repeated(names, "names of categories"),
    *(_found(object_ids[which], what)[0] for which, what in warnings),
    *_without_objects(names, label),
  ]

  # Sorted by image, and within an image in the JSON's order.
  order = np.argsort(image, kind="stable")
  counts = np.bincount(image, minlength=len(images))
  rank = np.argsort(class_ids, kind="stable")
  height, width = sizes[image].T
  left, top, across, down = boxes.T
  shares = [top / height, left / width]
  shares += [(top + down) / height, (left + across) / width]
  return Annotations(
    classes=[names[place] for place in rank],
    class_ids=class_ids[rank],
    files=files,
    image_ids=image_ids,
    sizes=sizes,
    splits=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    boxes=np.stack(shares, -1)[order].astype(np.float32),
    labels=np.argsort(rank)[label][order].astype(np.int64),
    crowds=np.array(crowds, bool)[order],
    areas=areas[order].astype(np.float32),
    warnings=warnings,
  )


def _parts(text):
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    line = str(error).splitlines()[0]
    raise ValueError(f"it is not JSON: {line}") from None
  parts = "categories", "images", "annotations"
  if not isinstance(content, dict):
    content = {}
  if missing := [part for part in parts if part not in content]:
    raise ValueError(
      f"it has no {', no '.join(missing)}; a COCO JSON of instances has"
      " categories, images and annotations"
    )
  for part in parts:
    entries = content[part]
    if not isinstance(entries, list) or not entries:
      raise ValueError(f"its {part} are no list, or an empty one")
    if not all(type(entry) is dict for entry in entries):
      raise ValueError(f"its {part} are not all objects in {{}}")
  return [content[part] for part in parts]


_MISSING: Any = object()


def _column(entries, part, key, is_good, what, default=_MISSING):
  """Returns the value of a key in all entries, after checking its type."""
  bad = [
    number
    for number, entry in enumerate(entries)
    if not (is_good(entry[key]) if key in entry else default is not _MISSING)
  ]
  if bad:
    value = entries[bad[0]].get(key, "nothing")
    raise ValueError(
      f"{len(bad)} of its {part} have no {key} that is {what}, such as number"
      f" {bad[0] + 1}, which has {str(value)[:60]!r}"
    )
  return [entry.get(key, default) for entry in entries]


def _ids(entries, part, key):
  values = _column(entries, part, key, _is_id, "a whole number below 2^62")
  return np.array(values, np.int64)


# The type is compared, since True is an int of Python, too; this is fastest.
def _is_id(value):
  # The pipeline carries an id as two int32 numbers of 31 bits.
  return type(value) is int and abs(value) < 2**62


def _is_text(value):
  return type(value) is str and len(value.splitlines()) == 1


def _is_side(value):
  return (
    type(value) in (int, float) and 1 <= value < 2**31 and value == int(value)
  )


def _is_number(value):
  # An int may be larger than any float.
  return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_box(value):
  return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _is_flag(value):
  return value in (0, 1)


def _is_area(value):
  return _is_number(value) and 0 <= value < _MOST_AREA


def _places(values, known):
  """Returns where each value is among the known ones, −1 if it is not."""
  order = np.argsort(known, kind="stable")
  at = np.searchsorted(known, values, sorter=order)
  place = order[np.minimum(at, len(known) - 1)]
  return np.where(known[place] == values, place, -1)


def _repeated(values, what):
  unique, counts = np.unique(values, return_counts=True)
  return _found(unique[counts > 1], f"{what} that are there more than once")


def _found(items: Sequence[Any], what: str) -> list[str]:
  """Words how many items there are, and the first; [] without any."""
  return [f"{len(items)} {what} ({first(items)})"] if len(items) else []


def first(items: Sequence[Any]) -> str:
  """Returns the first ten items as text."""
  return ", ".join(map(str, items[:10])) + (", …" if len(items) > 10 else "")


def _check_boxes(boxes, sizes):
  """Finds boxes that are wrong, and those that get a warning.

  Returns:
    Two lists of pairs: which boxes, bool `[n]`, and what is said of them.
  """
  finite = np.isfinite(boxes).all(1)
  left, top, width, height = np.where(finite[:, None], boxes, 1).T
  inverted = (width < 0) | (height < 0)
  empty = ((width == 0) | (height == 0)) & ~inverted
  rows, columns = sizes.T
  with np.errstate(over="ignore"):
    beyond = np.max(
      [-left, -top, left + width - columns, top + height - rows], axis=0
    )
  beyond = np.where(finite & ~inverted, beyond, 0)
  wrong = [
    (~finite, "annotations whose box is not finite"),
    (inverted, "annotations whose box is inverted: [x, y, width, height]"),
    (beyond >= _ROUNDING, "annotations whose box reaches beyond the image"),
  ]
  rounded = (beyond > _EXACT) & (beyond < _ROUNDING)
  warnings = [
    (rounded, "annotations whose box reaches beyond the image by less than 1"),
  ]
  few = empty.sum() <= _FEW * len(boxes)
  words = "annotations whose box is empty"
  if few:
    warnings.append((empty, f"{words}, which training leaves out"))
  else:
    wrong.append((empty, words))
  return wrong, [(which, what) for which, what in warnings if which.any()]


def _without_objects(names, label):
  counts = np.bincount(label, minlength=len(names))
  none = [name for name, count in zip(names, counts, strict=True) if not count]
  return _found(
    none, "classes without objects, which the model has all the same"
  )
