"""COCO's figures of a detector, by faster-coco-eval."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halonet.errors import UsageError
from halonet.tasks.task import Evaluator

# COCO's 12 figures in its own order: mean precision over overlaps from 0.5 to
# 0.95, at 0.5, at 0.75, of small, medium and large objects; mean recall with 1,
# 10 and 100 detections an image, and of small, medium and large objects.
FIGURES = (
  *("box_ap", "box_ap50", "box_ap75"),
  *("box_ap_small", "box_ap_medium", "box_ap_large"),
  *("box_ar1", "box_ar10", "box_ar100"),
  *("box_ar_small", "box_ar_medium", "box_ar_large"),
)


class CocoEvaluator(Evaluator):
  """Gathers detections and objects, and compares them at the end."""

  def __init__(self, labels: Sequence[str], class_ids: Sequence[int]):
    self._tool = load_tool()  # Before any work is lost.
    # The tool counts in doubles, which do not hold every id of a JSON.
    self._categories = [
      {"id": place, "name": name} for place, name in enumerate(labels, start=1)
    ]
    self._ids = list(class_ids)
    self._images, self._objects = [], []
    self._detections: list[dict[str, Any]] = []
    self._finite = True

  def add(self, measured: Mapping[str, Any]) -> None:
    """Adds a batch: what `Detection.measure` returns."""
    objects, found = measured["objects"], measured["detections"]
    for row in np.flatnonzero(objects["weight"] > 0):
      self._finite &= bool(measured["finite"][row])
      upper, lower = objects["image_id"][row].tolist()
      image = upper * 2**31 + lower
      self._images.append({"id": image})
      real = np.flatnonzero(objects["labels"][row] >= 0)
      for at in real:
        self._objects.append(
          {
            "id": len(self._objects) + 1,
            "image_id": image,
            "category_id": int(objects["labels"][row, at]) + 1,
            "bbox": corner_and_sides(objects["boxes"][row, at]),
            "area": float(objects["area"][row, at]),
            "iscrowd": int(objects["crowd"][row, at]),
          }
        )
      for at in np.flatnonzero(found["labels"][row] >= 0):
        self._detections.append(
          {
            "image_id": image,
            "category_id": int(found["labels"][row, at]) + 1,
            "bbox": corner_and_sides(found["boxes"][row, at]),
            "score": float(found["scores"][row, at]),
          }
        )

  def figures(self, images: int) -> dict[str, float]:
    """Returns COCO's 12 figures; −1 where there are no such objects.

    All are NaN if an output of the model was not finite.
    """
    del images
    if not self._finite:
      return dict.fromkeys(FIGURES, math.nan)
    coco, evaluation = self._tool
    with contextlib.redirect_stdout(io.StringIO()):
      truth = coco()
      truth.dataset = {
        "info": {},
        "images": self._images,
        "annotations": self._objects,
        "categories": self._categories,
      }
      truth.createIndex()
      if self._detections:
        answers = truth.loadRes(self._detections)
      else:  # The tool takes no empty list.
        answers = coco()
        answers.dataset = truth.dataset | {"annotations": []}
        answers.createIndex()
      found = evaluation(truth, answers, "bbox")
      found.evaluate()
      found.accumulate()
      found.summarize()
    values = np.asarray(found.stats, np.float64)[: len(FIGURES)]
    return dict(zip(FIGURES, values.tolist(), strict=True))

  def records(self) -> list[dict[str, Any]]:
    """Returns detections in COCO's format for results."""
    return [
      each | {"category_id": int(self._ids[each["category_id"] - 1])}
      for each in self._detections
    ]


def load_tool() -> tuple[Any, Any]:
  """Returns the classes of the data set and of the evaluation.

  Raises:
    UsageError: if the tool is not installed.
  """
  try:
    from faster_coco_eval import COCO, COCOeval_faster
  except ImportError:
    raise UsageError(
      "config.task=detection is evaluated by faster-coco-eval, which is not"
      " installed; run pip install -e '.[detection]'"
    ) from None
  return COCO, COCOeval_faster


def corner_and_sides(box: np.ndarray) -> list[float]:
  """Turns top, left, bottom, right into COCO's left, top, width, height."""
  top, left, bottom, right = box.tolist()
  return [left, top, right - left, bottom - top]
