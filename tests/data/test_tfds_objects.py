"""Data sets of TFDS with boxes, of the structure of its coco/2017."""

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

from halonet.data import order, sources
from halonet.data.runtime import tf
from halonet.errors import UsageError

NEEDS = {
  "image/id": "Tensor",
  "objects/area": "Tensor",
  "objects/bbox": "BBoxFeature",
  "objects/is_crowd": "Tensor",
  "objects/label": "ClassLabel",
}
COUNTS = (2, 0, 5, 1, 3)  # Objects of the five images.


def objects_of(number):
  """Objects of an image, each with numbers of its own."""
  return [
    {
      "area": 100 * number + place,
      "bbox": tfds.features.BBox(place / 10, number / 10, 0.6, 0.7),
      "id": 1000 * number + place,
      "is_crowd": place == 1,
      "label": (number + place) % 3,
    }
    for place in range(COUNTS[number])
  ]


class Crates(tfds.core.GeneratorBasedBuilder):
  """Five images with the features of TFDS's coco/2017."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "image/filename": tfds.features.Text(),
      "image/id": np.int64,
      "objects": tfds.features.Sequence(
        {
          "area": np.int64,
          "bbox": tfds.features.BBoxFeature(),
          "id": np.int64,
          "is_crowd": np.bool_,
          "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        }
      ),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number in range(len(COUNTS)):
      yield (
        number,
        {
          "image": np.full((8, 9, 3), number, np.uint8),
          "image/filename": f"{number}.png",
          "image/id": 77 + number,
          "objects": objects_of(number),
        },
      )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return str(tmp_path_factory.mktemp("crates"))


def open_source(root, needs, name="crates"):
  data = ml_collections.ConfigDict(dict(name=name, data_dir=root))
  return sources.open_source(data, needs)


def check(example, number):
  expected = objects_of(number)
  assert int(example["image/id"]) == 77 + number
  objects = example["objects"]
  assert objects["bbox"].shape == (len(expected), 4)
  for place, one in enumerate(expected):
    box = one["bbox"]
    np.testing.assert_allclose(
      objects["bbox"][place],
      [box.ymin, box.xmin, box.ymax, box.xmax],
      atol=1e-6,
    )
    for key in ("area", "is_crowd", "label"):
      assert objects[key][place] == one[key]


@pytest.mark.parametrize(
  "needs", [NEEDS, {"image/id": "Tensor", "objects": "Sequence"}]
)
def test_objects_are_read(root, needs):
  source = open_source(root, needs)
  assert source.classes == {"objects/label": ["a", "b", "c"]}
  assert source.class_ids == {}
  split = source.split("train_split", "train")
  (example,) = split.read(0, 0, 1)
  assert set(example) == {"image", "image/id", "objects"}
  asked = {key.partition("/")[2] for key in needs if key.startswith("objects/")}
  assert set(example["objects"]) == (asked or {*objects_of(0)[0]})
  for example in split.read(0, 0, len(COUNTS)).as_numpy_iterator():
    check(example, int(example["image/id"]) - 77)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_objects_are_shuffled_with_their_image(root, window):
  split = open_source(root, NEEDS).split("train_split", "train")
  config = ml_collections.ConfigDict(
    dict(batch_size=5, seed=3, data=dict(shuffle_buffer=window))
  )
  records = order.train_records(split, config).take(15)
  seen = []
  for example in records.as_numpy_iterator():
    check(example, int(example["image/id"]) - 77)
    seen.append((int(example["epoch"]), int(example["image/id"]) - 77))
  assert sorted(seen) == [(e, i) for e in range(3) for i in range(5)]
  # From the second batch on, after a restart.
  again = order.train_records(split, config, start=1).take(10)
  assert [int(each["image/id"]) - 77 for each in again] == [
    number for _, number in seen[5:]
  ]


def test_windows_without_variable_lengths_are_plain():
  records = tf.data.Dataset.range(3).map(lambda i: {"number": i})
  assert not order._is_ragged(records)


def test_other_structures_are_refused(tmp_path):
  with pytest.raises(UsageError, match=r"'voc', .*no feature '.*' of the kind"):
    open_source(str(tmp_path), NEEDS, "voc")
  with pytest.raises(UsageError, match="no feature 'objects/bbox' of the kind"):
    open_source(str(tmp_path), {"objects/bbox": "BBoxFeature"}, "digits")


def test_coco_has_its_own_class_ids(tmp_path):
  data = ml_collections.ConfigDict(
    dict(name="coco/2017", data_dir=str(tmp_path))
  )
  source = sources.describe(data, NEEDS)
  (names,) = source.classes.values()
  ids = source.class_ids["objects/label"]
  assert len(names) == len(ids) == 80
  # Places of some names in TFDS's list, and the numbers that COCO gives them:
  # person, stop sign, cow, backpack, tie, bottle, dining table, toilet, tv,
  # book and toothbrush.
  places = [0, 11, 19, 24, 27, 39, 60, 61, 62, 73, 79]
  numbers = [1, 13, 21, 27, 32, 44, 67, 70, 72, 84, 90]
  assert [ids[place] for place in places] == numbers
