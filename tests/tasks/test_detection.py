"""Losses of detection against loops, and what is found in the source image."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import halonet
from halonet.errors import UsageError
from halonet.tasks.detection import Detection
from halonet.training import config as config_lib
from tests.ops.test_boxes import iou_of_pair

SIZE, MOST, LABELS = 64, 5, ["cat", "dog", "cow"]
MODEL = dict(
  name="retinanet_resnet50",
  depths=(1, 1, 1, 1),
  base_width=4,
  fpn_width=8,
  head_depth=1,
)


def make(**data):
  data = dict(image_size=SIZE, max_objects=MOST) | data
  settings = dict(task="detection", model=MODEL, data=data, optimizer={})
  config = config_lib.from_json(json.dumps(settings))
  return Detection(config, {"labels": LABELS, "class_ids": [4, 9, 2]})


def draw_batch(seed=0, rows=4):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 24, (rows, MOST, 2))
  # The smallest anchors have 32: smaller boxes lie as well in several.
  sides = rng.uniform(33, 40, corner.shape)
  boxes = np.concatenate([corner, corner + sides], -1)
  labels = rng.integers(-1, len(LABELS), (rows, MOST))
  labels[1] = -1  # An image without objects.
  boxes[labels < 0] = 0
  return {
    "image": jnp.zeros((rows, SIZE, SIZE, 3)),
    "boxes": jnp.asarray(boxes, jnp.float32),
    "labels": jnp.asarray(labels, jnp.int32),
    # The third image has more than there is room for.
    "objects": jnp.asarray((labels >= 0).sum(1), jnp.int32).at[2].add(4),
    "weight": jnp.asarray([1, 1, 1, 0], jnp.float32),
  }


def draw_outputs(task, seed=1, rows=4):
  rng = np.random.default_rng(seed)
  count = len(task._model.anchors(SIZE, SIZE))
  return {
    "class_logits": jnp.asarray(
      rng.normal(-2, 2, (rows, count, len(LABELS))), jnp.float32
    ),
    "box_deltas": jnp.asarray(
      rng.normal(0, 0.5, (rows, count, 4)), jnp.float32
    ),
  }


def plain_loss(anchors, batch, outputs):
  """Class loss and box loss, anchor by anchor in float64."""
  positives, class_loss, box_loss = 0, 0.0, 0.0
  for row in range(3):  # The last does not count.
    real = np.flatnonzero(np.asarray(batch["labels"][row]) >= 0)
    boxes = np.asarray(batch["boxes"][row], np.float64)
    overlaps = np.array(
      [
        [iou_of_pair(boxes[each], anchor) for anchor in anchors]
        for each in real
      ]
    ).reshape(len(real), len(anchors))
    owner = np.full(len(anchors), -1)
    if len(real):
      best = overlaps.argmax(0)
      owner = np.where(overlaps.max(0) >= 0.5, real[best], -1)
      for at in reversed(range(len(real))):
        if overlaps[at].max() > 0:
          owner[overlaps[at].argmax()] = real[at]
    logits = np.asarray(outputs["class_logits"][row], np.float64)
    for at, object_ in enumerate(owner):
      for label, logit in enumerate(logits[at]):
        p = 1 / (1 + np.exp(-logit))
        hit = object_ >= 0 and batch["labels"][row, object_] == label
        share, factor = (p, 0.25) if hit else (1 - p, 0.75)
        class_loss -= factor * (1 - share) ** 1.5 * np.log(share)
      if object_ < 0:
        continue
      positives += 1
      side, own = (x[2:] - x[:2] for x in (anchors[at], boxes[object_]))
      middle = (
        boxes[object_][:2] + own / 2 - anchors[at][:2] - side / 2
      ) / side
      wanted = np.concatenate([middle, np.log(own / side)])
      error = np.abs(np.asarray(outputs["box_deltas"][row, at]) - wanted)
      box_loss += np.where(
        error <= 0.1,
        error**2 / 2,
        0.1 * (error - 0.1 / 2),
      ).mean()
  return class_loss / (1 + positives), box_loss / (1 + positives), positives


def test_losses_are_those_of_a_loop_over_anchors():
  task = make()
  batch, outputs = draw_batch(), draw_outputs(task)
  loss, metrics = task.loss(outputs, task.prepare(batch))
  anchors = np.asarray(task._model.anchors(SIZE, SIZE), np.float64)
  class_loss, box_loss, positives = plain_loss(anchors, batch, outputs)
  assert positives > 10
  np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["box_loss"], box_loss, rtol=1e-5)
  np.testing.assert_allclose(loss, class_loss + 50 * box_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["matched"], positives / 3, rtol=1e-6)
  assert metrics["objects_left_out"] == max(int(batch["objects"][2]) - MOST, 0)


def test_losses_of_parts_add_up():
  task = make()
  outputs, rows = draw_outputs(task), task.prepare(draw_batch())
  whole = task.loss(outputs, rows)
  parts = [
    task.loss(*jax.tree.map(lambda x, part=part: x[part], (outputs, rows)))
    for part in (slice(0, 2), slice(2, 4))
  ]
  summed = jax.tree.map(lambda *x: sum(x), *parts)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), summed, whole
  )


@pytest.mark.parametrize("counts", [1.0, 0.0])
def test_a_batch_without_objects_has_finite_gradients(counts):
  task = make()
  batch, outputs = draw_batch(), draw_outputs(task)
  batch["labels"] = jnp.full_like(batch["labels"], -1)
  batch["boxes"] = jnp.zeros_like(batch["boxes"])
  batch["weight"] = jnp.full(4, counts)

  def loss(outputs):
    return task.loss(outputs, task.prepare(batch))[0]

  value, gradients = jax.value_and_grad(loss)(outputs)
  assert np.isfinite(value) and (value > 0) == (counts > 0)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_boxes_are_found_in_pixels_of_the_source_image():
  task = make()
  outputs = draw_outputs(task, rows=1)
  outputs["class_logits"] = jnp.full_like(outputs["class_logits"], -9)
  anchors = np.asarray(task._model.anchors(SIZE, SIZE))
  inside = (anchors > 0).all(1) & (anchors[:, 2:] < (48, 64)).all(1)
  at = int(np.flatnonzero(inside)[3])
  outputs["class_logits"] = outputs["class_logits"].at[0, at, 2].set(4.0)
  outputs["box_deltas"] = outputs["box_deltas"].at[0, at].set(0.0)
  # 90 × 120 pixels become 48 × 64.
  output = {name: np.asarray(x[0]) for name, x in outputs.items()}
  found, *others = task.find(output, 200, (90, 120))
  assert found["label"] == "cow" and len(others) == 199
  assert max(each["score"] for each in others) < 0.001
  top, left, bottom, right = anchors[at] * 120 / 64
  np.testing.assert_allclose(
    found["box"], [left, top, right - left, bottom - top], rtol=1e-5
  )
  measured = task.measure(
    outputs,
    {
      "image": jnp.zeros((1, SIZE, SIZE, 3)),
      "content": jnp.asarray([[48.0, 64.0]]),
      "to_source": jnp.full((1, 4), 120 / 64),
      "labels": jnp.zeros((1, MOST), jnp.int32),
    },
  )
  np.testing.assert_allclose(
    measured["detections"]["boxes"][0, 0], [top, left, bottom, right], rtol=1e-5
  )


def test_a_detection_of_the_evaluation_exceeds_the_threshold():
  task = make()
  task.config.score_threshold = 0.6
  outputs = draw_outputs(task)
  batch = draw_batch() | {
    "content": jnp.full((4, 2), float(SIZE)),
    "to_source": jnp.ones((4, 4)),
  }
  found = task.measure(outputs, batch)["detections"]
  scores = np.asarray(found["scores"])[np.asarray(found["labels"]) >= 0]
  assert len(scores) and scores.min() > 0.6


def test_what_cannot_be_is_said():
  with pytest.raises(UsageError, match="the first must not be above"):
    make(scale_jitter=(2.0, 1.0)).check()
  batch = {"crowd": 0, "objects": np.array([3, 7])}
  assert "config.data.max_objects is 5" in make().problem(batch)
  assert make().problem({"objects": np.array([3, 7])}) is None
  source = types.SimpleNamespace(classes={}, name="nameless")
  with pytest.raises(UsageError, match="what its classes are"):
    make().describe(source)
  for policy in ("autoaugment", "tpu", "timm"):
    with pytest.raises(UsageError, match=f"policy is '{policy}', which moves"):
      make(randaugment_layers=1, randaugment_policy=policy).check()
  make(randaugment_layers=1, randaugment_policy="color").check()
  for name, value in (("area", 0.5), ("fraction", 0.9), ("padding", 4)):
    with pytest.raises(UsageError, match=f"crop_{name} is {value}, which is"):
      make(**{f"crop_{name}": value}).check()
  with pytest.raises(UsageError, match="which is no detector"):
    make().check_model(halonet.create_model("resnet50"))
  make().check_model(make()._model)
