"""COCO's figures against a plain computation of them."""

import operator

import jax
import numpy as np
import pytest

from halonet.tasks.coco_evaluation import FIGURES, CocoEvaluator

ROWS, DETECTIONS, CLASSES = 6, 12, 3
OVERLAPS = np.linspace(0.5, 0.95, 10)
IDS = (7, 2**61 + 1, 2**61 + 2)  # Doubles take the last two for one.


def draw(seed, images, crowds=False):
  """Objects and detections of a batch, as `Detection.measure` returns them."""
  rng = np.random.default_rng(seed)

  def boxes(count):
    corner = rng.uniform(0, 200, (images, count, 2))
    return np.concatenate([corner, corner + rng.uniform(9, 99, (2,))], -1)

  objects = boxes(ROWS)
  which = rng.integers(0, ROWS, DETECTIONS)
  near = objects[:, which]
  near = near + rng.normal(0, 3, near.shape)
  labels = rng.integers(-1, CLASSES, (images, ROWS))
  found = np.where(
    rng.uniform(size=near.shape[:2]) < 0.7,
    labels[:, which],
    rng.integers(-1, CLASSES, near.shape[:2]),
  )
  sides = objects[..., 2:] - objects[..., :2]
  return {
    "finite": np.ones(images, bool),
    "objects": {
      "weight": (np.arange(images) != 1).astype(np.float32),
      "image_id": np.stack(
        [np.full(images, 3), np.arange(images)], -1
      ),  # Beyond 32 bits.
      "labels": labels,
      "boxes": objects.astype(np.float32),
      "area": sides.prod(-1).astype(np.float32),
      "crowd": rng.uniform(size=labels.shape) < 0.2 * crowds,
    },
    "detections": {
      "boxes": near.astype(np.float32),
      "scores": np.sort(rng.uniform(size=near.shape[:2]))[:, ::-1],
      "labels": found,
    },
  }


def recall(measured, label, overlap, most):
  """Share of the objects found by the best detections of each image."""
  hits, total = match(measured, label, overlap, most)
  return sum(hit for _, hit in hits) / total if total else np.nan


def precision(measured, label, overlap):
  """Mean of the interpolated precision at 101 recalls."""
  hits, total = match(measured, label, overlap)
  if not total:
    return np.nan
  hits = np.array([hit for _, hit in sorted(hits, key=lambda x: -x[0])], bool)
  right, seen = hits.cumsum(), np.arange(1, len(hits) + 1)
  values = []
  for level in np.linspace(0, 1, 101):
    enough = right / total >= level
    values.append((right / seen)[enough].max() if enough.any() else 0)
  return np.mean(values)


def match(measured, label, overlap, most=None):
  """Returns score and success of detections, and how many objects there are."""
  hits, total = [], 0
  for row in np.flatnonzero(measured["objects"]["weight"]):
    objects, found = (
      {key: value[row] for key, value in part.items()}
      for part in (measured["objects"], measured["detections"])
    )
    own = np.flatnonzero(objects["labels"] == label)
    total += (~objects["crowd"][own]).sum()
    taken = set()
    for at in np.flatnonzero(found["labels"] == label)[:most]:
      best, chosen = overlap, None
      for each in own:
        if each in taken or objects["crowd"][each]:
          continue
        share = iou(found["boxes"][at], objects["boxes"][each])
        if share >= best:
          best, chosen = share, each
      covered = [
        inner(found["boxes"][at], objects["boxes"][each])
        for each in own
        if objects["crowd"][each]
      ]
      if chosen is not None:
        taken.add(chosen)
      elif max(covered, default=0) >= overlap:
        continue  # In a crowd: neither right nor wrong.
      hits.append((found["scores"][at], chosen is not None))
  return hits, total


def iou(a, b):
  both = shared(a, b)
  return both / (area(a) + area(b) - both)


def inner(a, b):
  return shared(a, b) / area(a)


def shared(a, b):
  sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  return sides.clip(0).astype(np.float64).prod()


def area(box):
  return (box[2:] - box[:2]).astype(np.float64).prod()


@pytest.mark.parametrize("crowds", [False, True])
def test_figures_are_those_of_a_plain_computation(crowds):
  measured = draw(0, 8, crowds)
  evaluator = CocoEvaluator(["cat", "dog", "cow"], IDS)
  for rows in (slice(0, 3), slice(3, 8)):
    evaluator.add(jax.tree.map(operator.itemgetter(rows), measured))
  figures = evaluator.figures(7)
  assert tuple(figures) == FIGURES
  expected = np.array(
    [
      [precision(measured, label, overlap) for overlap in OVERLAPS]
      for label in range(CLASSES)
    ]
  )
  assert 0.1 < np.nanmean(expected) < 0.9
  by_overlap = np.nanmean(expected, axis=0)
  np.testing.assert_allclose(
    [figures["box_ap"], figures["box_ap50"], figures["box_ap75"]],
    [np.nanmean(expected), by_overlap[0], by_overlap[5]],
    atol=1e-9,
  )
  for most in (1, 10, 100):
    recalls = [
      [recall(measured, label, overlap, most) for overlap in OVERLAPS]
      for label in range(CLASSES)
    ]
    np.testing.assert_allclose(
      figures[f"box_ar{most}"], np.nanmean(recalls), atol=1e-9
    )


def test_detections_are_in_the_format_of_results():
  measured = draw(1, 3)
  evaluator = CocoEvaluator(["cat", "dog", "cow"], IDS)
  evaluator.add(measured)
  assert {each["image_id"] for each in evaluator.records()} == {
    3 * 2**31,
    3 * 2**31 + 2,
  }
  first = evaluator.records()[0]
  row, at = 0, np.flatnonzero(measured["detections"]["labels"][0] >= 0)[0]
  top, left, bottom, right = measured["detections"]["boxes"][row, at]
  np.testing.assert_allclose(
    first["bbox"], [left, top, right - left, bottom - top], rtol=1e-6
  )
  assert first["category_id"] == IDS[measured["detections"]["labels"][row, at]]


def test_nothing_found_is_zero():
  measured = draw(2, 2)
  measured["detections"]["labels"][:] = -1
  evaluator = CocoEvaluator(["cat", "dog", "cow"], IDS)
  evaluator.add(measured)
  figures = evaluator.figures(2)
  assert figures["box_ap"] == figures["box_ar100"] == 0
  areas = measured["objects"]["area"][measured["objects"]["labels"] >= 0]
  kinds = (areas < 32**2), (areas >= 32**2) & (areas < 96**2), areas >= 96**2
  for kind, name in zip(kinds, ("small", "medium", "large"), strict=True):
    # Row 1 of the batch does not count.
    assert figures[f"box_ap_{name}"] == (0 if kind.any() else -1), name


def test_outputs_that_are_not_finite_have_no_figures():
  measured = draw(3, 4)
  measured["finite"][1] = False  # Of a row that does not count.
  evaluator = CocoEvaluator(["cat", "dog", "cow"], IDS)
  evaluator.add(measured)
  assert np.isfinite(list(evaluator.figures(3).values())).all()
  measured["finite"][2] = False
  evaluator.add(measured)
  assert np.isnan(list(evaluator.figures(6).values())).all()
