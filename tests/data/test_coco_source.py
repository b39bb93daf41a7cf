"""Folders with a COCO JSON: what is read, and what is said of wrong ones."""

import copy
import io
import json

import ml_collections
import numpy as np
import pytest
from PIL import Image, ImageOps

from halonet.data import order, pipeline, sources
from halonet.data.runtime import tf
from halonet.errors import RunError, UsageError
from tests.data.test_tfds_objects import NEEDS

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
IMAGES = [
  {"id": 12, "file_name": "a.png", "width": 40, "height": 20},
  {"id": 5, "file_name": "deep/b.png", "width": 30, "height": 60},
  {"id": 99, "file_name": "c.jpg", "width": 16, "height": 16},
]
# Not by image; the second image has no objects.
ANNOTATIONS = [
  {"id": 1, "image_id": 99, "category_id": 3, "bbox": [0, 0, 16, 8]},
  {
    "id": 2,
    "image_id": 12,
    "category_id": 7,
    "bbox": [10, 5, 20.5, 10],
    "area": 99.5,
    "iscrowd": 0,
    "segmentation": [[10, 5, 30, 5, 30, 15]],
  },
  {
    "id": 3,
    "image_id": 99,
    "category_id": 7,
    "bbox": [4, 4, 8, 8],
    "area": 50,
    "iscrowd": 1,
    "segmentation": {"size": [16, 16], "counts": [68, 8, 180]},
  },
]


def content(categories=CATEGORIES, images=IMAGES, annotations=ANNOTATIONS):
  parts = dict(categories=categories, images=images, annotations=annotations)
  return copy.deepcopy(parts | {"info": {"description": "unknown to us"}})


def write_json(root, split="train", **parts):
  path = root / f"instances_{split}.json"
  path.write_text(json.dumps(content(**parts)))
  return path


def write_image(path, width, height, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


def make(root):
  """Writes a data set of three images, with train and val alike."""
  for each in IMAGES:
    write_image(
      root / "images" / each["file_name"], each["width"], each["height"]
    )
  for split in ("train", "val"):
    write_json(root, split)
  return root


@pytest.fixture
def root(tmp_path):
  return make(tmp_path)


def open_source(root, needs=NEEDS, **fields):
  data = dict(name="coco_json", data_dir=root and str(root))
  data |= {"train_split": "train"} | fields
  return sources.open_source(ml_collections.ConfigDict(data), needs)


def split_of(root, name="train", **fields):
  return open_source(root, **fields).split("train_split", name)


def changed(entries, number, **values):
  entries = copy.deepcopy(entries)
  entries[number] |= values
  return entries


def test_images_have_their_objects(root):
  source = open_source(root)
  assert source.name == f"coco_json {root.name}"
  assert source.classes == {"objects/label": ["dog", "cat"]}
  assert source.class_ids == {"objects/label": [3, 7]}
  split = source.split("train_split", "train")
  assert split.size == len(split.files) == 3
  assert split.where(1) == f"{root}/images/deep/b.png"
  first, second, third = (split.read_one(number) for number in range(3))
  assert [int(each["image/id"]) for each in (first, second, third)] == [
    *(12, 5, 99)
  ]
  with open(split.files[2], "rb") as file:
    assert third["image"] == file.read()
  expected = {
    "bbox": [[0.25, 0.25, 0.75, 30.5 / 40]],
    "label": [1],
    "is_crowd": [False],
    "area": [99.5],
  }
  check(first["objects"], expected)
  check(second["objects"], dict(bbox=[], label=[], is_crowd=[], area=[]))
  expected = {
    "bbox": [[0, 0, 0.5, 1], [0.25, 0.25, 0.75, 0.75]],
    "label": [0, 1],
    "is_crowd": [False, True],
    "area": [128, 50],  # Without an area, it is that of the box.
  }
  check(third["objects"], expected)
  (same,) = split.read(2, 0, 1)
  check(same["objects"], expected)


def check(objects, expected):
  dtypes = {"bbox": "float32", "label": "int64", "is_crowd": "bool"}
  assert objects.keys() == expected.keys()
  for name, values in expected.items():
    array = objects[name].numpy()
    assert array.dtype == dtypes.get(name, "float32")
    shape = (len(values), 4) if name == "bbox" else (len(values),)
    np.testing.assert_allclose(array, np.reshape(values, shape), rtol=1e-6)


def test_only_what_is_needed_is_read(root):
  assert set(split_of(root, needs={}).read_one(0)) == {"image"}
  only = split_of(root, needs={"objects/label": "ClassLabel"}).read_one(0)
  assert only.keys() == {"image", "objects"}
  assert only["objects"].keys() == {"label"}
  whole = split_of(root, needs={"objects": "Sequence"}).read_one(0)
  assert set(whole["objects"]) == {"area", "bbox", "is_crowd", "label"}


def test_every_image_is_once_in_an_epoch_and_a_restart_goes_on(root):
  split = split_of(root)
  config = ml_collections.ConfigDict(
    dict(batch_size=3, seed=1, data=dict(shuffle_buffer=10))
  )
  ids = [
    int(each["image/id"]) for each in order.train_records(split, config).take(9)
  ]
  for epoch in range(3):
    assert sorted(ids[3 * epoch : 3 * epoch + 3]) == [5, 12, 99]
  again = order.train_records(split, config, start=1).take(6)
  assert [int(each["image/id"]) for each in again] == ids[3:]


def test_cocos_own_folders_and_a_folder_of_the_split_do(tmp_path):
  (tmp_path / "annotations").mkdir()
  for split, folder in (("train2017", ""), ("val2017", "images/")):
    write_json(tmp_path / "annotations", split)
    for each in IMAGES:
      path = tmp_path / f"{folder}{split}" / each["file_name"]
      write_image(path, each["width"], each["height"])
  source = open_source(f"{tmp_path}/", train_split="train2017")
  train, val = (
    source.split("test_split", name) for name in ("train2017", "val2017")
  )
  assert train.files[0] == f"{tmp_path}/train2017/a.png"
  assert val.files[0] == f"{tmp_path}/images/val2017/a.png"


def test_the_fingerprint_follows_the_annotations(root):
  first = split_of(root).fingerprint
  assert split_of(root).fingerprint == first
  others = [
    dict(annotations=changed(ANNOTATIONS, 0, bbox=[0, 0, 16, 8.5])),
    dict(annotations=changed(ANNOTATIONS, 0, category_id=7)),
    dict(annotations=changed(ANNOTATIONS, 0, iscrowd=1)),
    dict(annotations=changed(ANNOTATIONS, 1, area=98.5)),
    dict(annotations=changed(ANNOTATIONS, 0, image_id=5)),
    dict(annotations=ANNOTATIONS[:2]),
    dict(images=changed(IMAGES, 0, id=13), annotations=ANNOTATIONS[::2]),
    dict(categories=changed(CATEGORIES, 0, name="cats")),
  ]
  seen = {first}
  for parts in others:
    write_json(root, **parts)
    seen.add(split_of(root).fingerprint)
  assert len(seen) == 1 + len(others)
  # Masks are not used.
  write_json(root, annotations=changed(ANNOTATIONS, 1, segmentation=[]))
  assert split_of(root).fingerprint == first


@pytest.mark.parametrize(
  "categories, what",
  [
    ([*CATEGORIES, {"id": 9, "name": "fox"}], r"9 \(fox\)"),
    (changed(CATEGORIES, 0, name="lion"), r"7 \(cat\)"),
  ],
)
def test_splits_have_the_same_categories(root, categories, what):
  write_json(root, "val", categories=categories)
  source = open_source(root)
  with pytest.raises(
    UsageError,
    match="config.data.test_split: the categories of split val are not those of"
    f" the training split train: {what} is in one only",
  ):
    source.split("test_split", "val")
  # Another order is the same.
  write_json(root, "val", categories=CATEGORIES[::-1])
  split = open_source(root).split("test_split", "val")
  assert split.read_one(0)["objects"]["label"].numpy().tolist() == [1]


def test_missing_files_are_counted_and_named(root):
  with pytest.raises(UsageError, match="data_dir is None; with"):
    open_source(None)
  with pytest.raises(
    UsageError, match="test_split: there is no file .*instances_none.json, and"
  ):
    open_source(root).split("test_split", "none")
  (root / "images" / "deep" / "b.png").unlink()
  (root / "images" / "c.jpg").unlink()
  (root / "images" / "c.jpg").symlink_to("nowhere")
  with pytest.raises(
    UsageError,
    match="config.data.train_split: 2 of the 3 images of split train are"
    " missing, such as deep/b.png, c.jpg, in .*images, .*images/train, .*train",
  ):
    split_of(root)


def test_images_of_no_bytes_are_counted_and_named(root):
  (root / "images" / "a.png").write_bytes(b"")
  with pytest.raises(
    UsageError, match="1 images of split train have 0 bytes, such as .*a.png; "
  ):
    split_of(root)
  # They count as corrupt, as in other sources.
  split = split_of(root, skip_corrupt=True)
  assert split.read_one(0)["image"] == b""


# ----------------------------------------------------- orientation and sizes


def exif(turn):
  tags = Image.Exif()
  tags[0x0112] = turn
  return tags


# Where a box at rows 2 … 6 and columns 8 … 20 of a stored image, 40×16, is in
# the upright one: top, left, bottom and right in pixels. By hand.
UPRIGHT = {
  5: (8, 2, 20, 6),
  6: (8, 10, 20, 14),
  7: (20, 10, 32, 14),
  8: (20, 2, 32, 6),
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_boxes_of_the_stored_image_are_turned_with_it(root, turn, kind):
  name = f"turned.{kind}"
  write_image(root / "images" / name, 40, 16, exif=exif(turn))
  box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [8, 2, 12, 4]}

  def boxes(width, height):
    image = {"id": 1, "file_name": name, "width": width, "height": height}
    write_json(root, images=[image], annotations=[box])
    return split_of(root).read_one(0)["objects"]["bbox"].numpy()

  # The JSON has the size of the stored image.
  top, left, bottom, right = UPRIGHT.get(turn, (2, 8, 6, 20))
  height, width = (40, 16) if turn in UPRIGHT else (16, 40)
  expected = [top / height, left / width, bottom / height, right / width]
  np.testing.assert_allclose(boxes(40, 16), [expected], rtol=1e-5)
  # It has the size of the upright image: boxes are right as they are.
  if turn in UPRIGHT:
    box["bbox"] = [left, top, right - left, bottom - top]
    np.testing.assert_allclose(boxes(16, 40), [expected], rtol=1e-5)


def test_turned_boxes_show_the_same_pixels():
  """The table above against Pillow, with the box drawn."""
  for turn, (top, left, bottom, right) in UPRIGHT.items():
    pixels = np.zeros((16, 40), np.uint8)
    pixels[2:6, 8:20] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif(turn))
    with Image.open(file) as image:
      upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright[top:bottom, left:right].all()
    assert (upright > 0).sum() == (bottom - top) * (right - left)


class _Plain:
  """A task that only hands the image's pixels on."""

  def __init__(self, config):
    self.config = config

  def batch_spec(self, train):
    return {"image": ((8, 8, 3), "float32")}

  def example(self, record, seed, train):
    del record
    return {"image": tf.zeros([8, 8, 3], tf.uint8)}

  def finish(self, batch, train):
    return batch

  def problem(self, batch):
    return None


def test_images_of_another_size_end_the_run(root):
  write_json(root, images=changed(IMAGES, 1, width=60, height=120))
  config = ml_collections.ConfigDict(
    dict(batch_size=3, accumulation_steps=1, seed=1)
  )
  config.data = dict(
    skip_corrupt=False,
    shuffle_buffer=1,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    image_dtype="float32",
  )
  batches = pipeline.train_batches(split_of(root), _Plain(config))
  with pytest.raises(
    RunError,
    match=r"images/deep/b.png cannot be read: it has another size than in the"
    r" JSON: 30×60, in the JSON 60×120$",
  ):
    next(batches)
  source = open_source(root)
  source.check("test_split", "val")
  with pytest.raises(
    UsageError,
    match="config.data.train_split: 1 images of split train have another size"
    " than in the JSON, such as .*deep/b.png: 30×60, in the JSON 60×120; mend",
  ):
    source.check("train_split", "train")


def test_the_report_counts(root):
  lines = open_source(root).report("train_split", "train")
  assert lines == [
    "train: 3 objects of 2 classes: dog 1, cat 2",
    "train: 1 images without objects, 1 crowds; at most 2 objects in an image:"
    " config.data.max_objects=2 keeps all",
  ]


def test_images_worth_a_word(root, caplog):
  # It looks the same size upright, and boxes may be of either.
  write_image(root / "images" / "c.jpg", 16, 16, exif=exif(6))
  source = open_source(root)
  source.check("train_split", "train")
  assert "1 images have an EXIF tag that turns them and keeps" in caplog.text
  write_image(root / "images" / "spare.JPG", 16, 16)
  source.report("test_split", "val")
  assert "3 images are in both splits" in caplog.text
  assert "1 images are in neither split's JSON" in caplog.text
  assert "spare.JPG" in caplog.text
