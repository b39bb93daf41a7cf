"""What a COCO JSON may not hold, and what is said of it."""

import math
import re

import numpy as np
import pytest

from halonet.errors import UsageError
from tests.data.test_coco_source import (
  ANNOTATIONS,
  CATEGORIES,
  IMAGES,
  changed,
  make,
  open_source,
  split_of,
  write_json,
)


@pytest.fixture
def root(tmp_path):
  return make(tmp_path)


WRONG = [
  (dict(categories=[]), "its categories are no list, or an empty one"),
  (dict(annotations=[]), "its annotations are no list, or an empty one"),
  (dict(images={"a": 1}), "its images are no list"),
  (dict(images=["a.png"]), "its images are not all objects"),
  (
    dict(images=changed(IMAGES, 1, width=None)),
    "1 of its images have no width that is a number of pixels, such as number"
    " 2, which has 'None'",
  ),
  (
    dict(images=changed(IMAGES, 1, height=0)),
    "1 of its images have no height that is a number of pixels",
  ),
  (
    dict(images=[{"id": 1, "width": 1, "height": 1}]),
    "1 of its images have no file_name that is a text.*'nothing'",
  ),
  (
    dict(images=changed(IMAGES, 0, id="12")),
    "1 of its images have no id that is a whole number.*'12'",
  ),
  (
    dict(categories=changed(CATEGORIES, 0, name="a\nb")),
    "1 of its categories have no name that is a text",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 2, bbox=[1, 2, 3])),
    r"1 of its annotations have no bbox that is four numbers.*\[1, 2, 3\]",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 2, bbox=[1, 2, 3, "4"])),
    "1 of its annotations have no bbox that is four numbers",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 2, iscrowd=2)),
    "1 of its annotations have no iscrowd that is 0 or 1",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 2, area=-1)),
    "1 of its annotations have no area that is a number of pixels",
  ),
  (
    dict(images=[*IMAGES, IMAGES[0]]),
    r"1 image ids that are there more than once \(12\); 1 file names that are"
    r" there more than once \(a.png\)",
  ),
  (
    dict(annotations=[*ANNOTATIONS, *ANNOTATIONS[:2]]),
    r"2 annotation ids that are there more than once \(1, 2\)",
  ),
  (
    dict(categories=[*CATEGORIES, {"id": 3, "name": "fox"}]),
    r"1 category ids that are there more than once \(3\)",
  ),
  (
    dict(images=IMAGES[:2]),
    r"2 annotations of unknown images \(1, 3\)$",
  ),
  (
    dict(categories=CATEGORIES[:1]),
    r"1 annotations of unknown categories \(1\)$",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[0, 0, math.nan, 4])),
    r"1 annotations whose box is not finite \(2\)",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[0, -math.inf, 4, 4])),
    r"1 annotations whose box is not finite \(2\)",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[9, 9, -2, 4])),
    r"1 annotations whose box is inverted: \[x, y, width, height\] \(2\)",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[9, 9, 2, 0])),
    r"1 annotations whose box is empty \(2\)",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[30, 9, 11, 4])),
    r"1 annotations whose box reaches beyond the image \(2\)",
  ),
  (
    dict(annotations=changed(ANNOTATIONS, 1, bbox=[3, -1, 11, 4])),
    r"1 annotations whose box reaches beyond the image \(2\)",
  ),
]


@pytest.mark.parametrize("parts, message", WRONG)
def test_what_cannot_be_right_is_counted_and_named(root, parts, message):
  path = write_json(root, **parts)
  with pytest.raises(UsageError) as caught:
    open_source(root)
  text = str(caught.value)
  assert text.startswith(f"config.data.train_split: {path}: ")
  assert re.search(message, text) and "\n" not in text


def test_all_that_is_wrong_is_said_at_once(root):
  annotations = [*ANNOTATIONS]
  for number in range(5):
    annotations.append(ANNOTATIONS[0] | {"id": 20 + number, "image_id": 1})
  annotations.append(ANNOTATIONS[0] | {"id": 40, "bbox": [0, 0, 0, 0]})
  write_json(root, annotations=annotations)
  with pytest.raises(
    UsageError,
    match=r"5 annotations of unknown images \(20, 21, 22, 23, 24\);"
    r" 1 annotations whose box is empty \(40\)",
  ):
    open_source(root)


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "it is not JSON: Expecting"),
    ("", "it is not JSON: Expecting value"),
    ("[]", "it has no categories, no images, no annotations; a COCO JSON"),
    ('{"images": [], "annotations": []}', "it has no categories; a COCO"),
    ('{"images": [], "categories": []}', "it has no annotations; a COCO"),
    ("\xff".encode("latin1"), "it is not JSON: "),
  ],
)
def test_what_is_no_coco_json(root, text, message):
  text = text if isinstance(text, bytes) else text.encode()
  (root / "instances_train.json").write_bytes(text)
  with pytest.raises(UsageError, match=message) as caught:
    open_source(root)
  assert "\n" not in str(caught.value)


def test_boxes_that_rounding_moved_get_a_warning(root, caplog):
  annotations = changed(ANNOTATIONS, 0, bbox=[0, 0, 16.9, 8])
  write_json(root, annotations=annotations)
  split = split_of(root)
  (message,) = caplog.messages
  assert message.endswith(
    "instances_train.json: 1 annotations whose box reaches beyond the image by"
    " less than 1 (1)"
  )
  # It stays as it is.
  box = split.read_one(2)["objects"]["bbox"][0].numpy()
  np.testing.assert_allclose(box, [0, 0, 0.5, 16.9 / 16])
  caplog.clear()
  write_json(root, annotations=changed(ANNOTATIONS, 0, bbox=[0, 0, 16.009, 8]))
  open_source(root)
  assert not caplog.messages


@pytest.mark.parametrize("count, fine", [(10_000, True), (9_999, False)])
def test_a_few_empty_boxes_as_cocos_own_get_a_warning(
  root, caplog, count, fine
):
  many = [ANNOTATIONS[0] | {"id": number} for number in range(count)]
  many[7]["bbox"] = [3, 3, 1.03, 0.0]
  write_json(root, annotations=many)
  if fine:
    open_source(root)
    assert (
      "1 annotations whose box is empty, which training leaves out (7)"
      in (caplog.messages[0])
    )
  else:
    with pytest.raises(UsageError, match=r"1 annotations whose box is empty"):
      open_source(root)


def test_classes_without_objects_get_a_word(root, caplog):
  write_json(root, categories=[*CATEGORIES, {"id": 1, "name": "fox"}])
  open_source(root)
  assert caplog.messages[0].endswith(
    "1 classes without objects, which the model has all the same (fox)"
  )
