"""Sources by name, and what a task may ask of them."""

import ml_collections
import numpy as np
import pytest

from halonet.data import sources
from halonet.data.runtime import tf
from halonet.errors import UsageError

NEEDS = {"label": "ClassLabel"}


class Turned(sources.Source):
  """A source from outside: grey squares, each with an angle."""

  name, location = "turned", "memory"
  features = {"image": "Image", "angle": "Scalar"}  # noqa: RUF012

  def __init__(self, data, needs):
    del data, needs

  def split(self, field, name):
    image = tf.io.encode_png(tf.zeros([8, 8, 1], tf.uint8))
    return sources.Split.of_files(
      [f"{name}/{number}" for number in range(3)],
      lambda shard: {"image": image, "angle": tf.cast(shard, tf.float32)},
    )


@pytest.fixture
def outside():
  yield
  sources.SOURCES.pop("turned", None)


def test_a_source_from_outside_is_known_by_its_name(outside, data_dir):
  sources.register("turned", Turned)
  sources.register("turned", Turned)  # As a module that is imported twice does.
  with pytest.raises(ValueError, match="there is a source 'turned' already"):
    sources.register("turned", sources.Source)
  data = ml_collections.ConfigDict({"name": "turned"})
  split = sources.open_source(data, {"angle": "Scalar"}).split("", "train")
  assert split.size == 3 and split.where(2) == "train/2"
  (example,) = split.read(2, 0, 1).as_numpy_iterator()
  assert example["angle"] == split.read_one(np.int64(2))["angle"] == 2
  data = ml_collections.ConfigDict(dict(name="turnd", data_dir=data_dir))
  with pytest.raises(
    UsageError, match="did you mean turned.*known: folder, coco_json, t"
  ):
    sources.open_source(data, {})


@pytest.mark.parametrize(
  ("name", "needs", "feature"),
  [
    ("digits", {"angle": "Scalar"}, "'angle' of the kind Scalar"),
    ("digits", {"label": "Scalar"}, "'label' of the kind Scalar"),
    ("folder", {"angle": "Scalar"}, "'angle' of the kind Scalar"),
    ("iris", NEEDS, "'image' of the kind Image"),
    ("oxford_flowers102", {"box": "BBoxFeature"}, "'box' of the kind BBoxF"),
  ],
)
def test_a_data_set_without_a_feature_is_refused(
  data_dir, photos, name, needs, feature
):
  root = photos if name == "folder" else data_dir
  data = ml_collections.ConfigDict(
    dict(name=name, data_dir=root, train_split="train")
  )
  message = f"config.data.name is '{name}', .* config.task: .* {feature}"
  with pytest.raises(UsageError, match=message):
    sources.open_source(data, needs)


def test_classes_are_known_of_data_that_are_not_here(tmp_path):
  data = ml_collections.ConfigDict(
    dict(name="cifar10", data_dir=str(tmp_path), train_split="train")
  )
  assert len(sources.describe(data, NEEDS).classes["label"]) == 10
  assert not list(tmp_path.iterdir())
  data.name = "folder"
  with pytest.raises(UsageError, match="train_split: there is no folder"):
    sources.describe(data, NEEDS)
