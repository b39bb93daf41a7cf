"""A detector from photographs with boxes to predictions, by the commands."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from halonet import evaluate, predict
from tests.conftest import finish, losses, run_command, run_processes

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Grey photographs with coloured rectangles, and their COCO JSONs."""
  root = tmp_path_factory.mktemp("boxes")
  (root / "images").mkdir()
  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("val", 5)):
    images, annotations = [], []
    for number in range(1, count + 1):
      name = f"{split}_{number}.png"
      image = Image.new("RGB", (60, 40), "grey")
      pen = ImageDraw.Draw(image)
      for _ in range(number % 4):  # Some have no objects.
        label = int(rng.integers(2))
        left, top = rng.integers(0, 25, 2).tolist()
        width, height = rng.integers(9, 15, 2).tolist()
        box = (left, top, left + width - 1, top + height - 1)
        pen.rectangle(box, fill=list(COLORS.values())[label])
        annotations.append(
          {
            "id": len(annotations) + 1,
            "image_id": number,
            "category_id": label + 5,
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
          }
        )
      image.save(root / "images" / name)
      images.append(
        {"id": number, "file_name": name, "width": 60, "height": 40}
      )
    content = {
      "images": images,
      "annotations": annotations,
      "categories": [
        {"id": number, "name": name} for number, name in enumerate(COLORS, 5)
      ],
    }
    (root / f"instances_{split}.json").write_text(json.dumps(content))
  return root


def words(folder, workdir):
  overrides = [
    f"data.data_dir={folder}",
    "data.image_size=64",
    "data.max_objects=4",
    "model.depths=(1,1,1,1)",
    "model.base_width=4",
    "model.fpn_width=8",
    "model.head_depth=1",
    "batch_size=8",
    "steps=6",
    "optimizer.warmup_steps=1",
    "ema_decay=0.9",
    "log_every=1",
    "eval_every=6",
    "checkpoint_every=3",
  ]
  return [
    "--config=configs/detection/small.py",
    f"--workdir={workdir}",
    *(f"--config.{each}" for each in overrides),
  ]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "detector"
  code, output = finish(run_command(*words(folder, workdir), devices=2))
  assert code == 0, output
  return workdir, output


def test_a_detector_is_trained_and_resumed_with_the_same_bits(
  trained, folder, tmp_path
):
  workdir, output = trained
  assert "2 classes of objects/label" in output
  assert "moving averages: test box_ap" in output
  results = json.loads((workdir / "results.json").read_text())
  assert results["best"] == "box_ap" and results["test_images"] == 5
  assert 0 <= results["test_box_ap"] <= 1
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  (again / "results.json").unlink()
  (again / "metrics.jsonl").unlink()
  shutil.rmtree(again / "checkpoints" / "6")
  code, output = finish(run_command(*words(folder, again), devices=2))
  assert code == 0 and "Going on from step 3" in output, output
  first, second = losses(workdir), losses(again)
  assert second == {step: first[step] for step in (4, 5, 6)}
  resumed = json.loads((again / "results.json").read_text())
  for name in ("test_box_ap", "raw_test_box_ap", "test_box_ar100"):
    assert resumed[name] == results[name]


@pytest.mark.slow
def test_two_processes_are_one(trained, folder, tmp_path):
  workdir, _ = trained
  both = tmp_path / "both"
  for process in run_processes(*words(folder, both)):
    code, output = finish(process)
    assert code == 0, output
  one, two = losses(workdir), losses(both)
  assert sorted(one) == sorted(two) == list(range(1, 7))
  # Sums are taken in another order.
  np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)
  one, two = (
    json.loads((each / "results.json").read_text()) for each in (workdir, both)
  )
  figures = [name for name in one if "test_box_a" in name]
  assert len(figures) == 24 and two["test_images"] == 5
  for name in figures:
    assert two[name] == pytest.approx(one[name], abs=1e-3), name


def test_detections_are_written_and_drawn(trained, folder, tmp_path, run_main):
  workdir, _ = trained
  code, output, _ = run_main(evaluate.main, f"--workdir={workdir}")
  assert code == 0 and "5 images" in output
  detections = json.loads((workdir / "detections_6.json").read_text())
  assert {each["category_id"] for each in detections} <= {5, 6}
  assert {each["image_id"] for each in detections} <= set(range(1, 6))
  image = folder / "images" / "val_3.png"
  target = tmp_path / "pictures"
  command = f"--workdir={workdir}", f"--output={target}", str(image)
  code, output, _ = run_main(predict.main, *command)
  assert code == 0
  (record,) = json.loads((target / "predictions.json").read_text())
  with Image.open(target / record["picture"]) as picture:
    assert picture.size == (60, 40)
  code, _, error = run_main(predict.main, *command)
  assert code == 2 and "exists; name a new folder" in error
  code, _, error = run_main(
    predict.main, f"--workdir={workdir}", "--attention=a.png", str(image)
  )
  assert code == 2 and "draws classifiers alone" in error
