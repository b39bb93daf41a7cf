"""A detector from photographs with boxes to predictions, by the commands."""

import json
import shutil

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image, ImageDraw

from halonet import (
  box_pictures,
  evaluate,
  export,
  inference,
  predict,
  train,
)
from halonet.tasks import coco_evaluation
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
    "steps=60",
    "optimizer.learning_rate=0.3",
    "optimizer.warmup_steps=1",
    "ema_decay=0.9",
    "log_every=1",
    "eval_every=60",
    "checkpoint_every=30",
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


def begin_again(workdir, copy):
  """Copies a run as it was at half of its steps."""
  shutil.copytree(workdir, copy)
  (copy / "results.json").unlink()
  (copy / "metrics.jsonl").unlink()
  shutil.rmtree(copy / "checkpoints" / "60")
  return copy


def test_a_detector_is_trained_and_resumed_with_the_same_bits(
  trained, folder, tmp_path
):
  workdir, output = trained
  assert "2 classes of objects/label" in output
  assert "moving averages: test box_ap" in output
  results = json.loads((workdir / "results.json").read_text())
  assert results["best"] == "box_ap" and results["test_images"] == 5
  assert 0 < results["test_box_ap"] <= results["test_box_ap50"] <= 1
  again = begin_again(workdir, tmp_path / "again")
  code, output = finish(run_command(*words(folder, again), devices=2))
  assert code == 0 and "Going on from step 30" in output, output
  first, second = losses(workdir), losses(again)
  assert second == {step: first[step] for step in range(31, 61)}
  resumed = json.loads((again / "results.json").read_text())
  for name in ("test_box_ap", "raw_test_box_ap", "test_box_ar100"):
    assert resumed[name] == results[name]


@pytest.mark.slow
def test_two_processes_are_one(trained, folder, tmp_path, run_main):
  workdir, _ = trained
  both = begin_again(workdir, tmp_path / "both")
  for process in run_processes(*words(folder, both)):
    code, output = finish(process)
    assert code == 0, output
  one, two = losses(workdir), losses(both)
  assert sorted(two) == list(range(31, 61))
  # Sums are taken in another order, and descent amplifies it.
  for step in range(31, 36):
    assert two[step] == pytest.approx(one[step], rel=1e-4)
  # What both find is what one finds.
  code, _, _ = run_main(evaluate.main, f"--workdir={both}")
  assert code == 0
  results = json.loads((both / "results.json").read_text())
  for name, value in json.loads((both / "figures_60.json").read_text()).items():
    assert results[f"test_{name}"] == pytest.approx(value, abs=1e-6), name


def test_detections_are_written_and_drawn(trained, folder, tmp_path, run_main):
  workdir, _ = trained
  code, output, _ = run_main(evaluate.main, f"--workdir={workdir}")
  assert code == 0 and "5 images" in output
  detections = json.loads((workdir / "detections_60.json").read_text())
  assert {each["category_id"] for each in detections} == {5, 6}
  assert {each["image_id"] for each in detections} == set(range(1, 6))
  figures = json.loads((workdir / "figures_60.json").read_text())
  results = json.loads((workdir / "results.json").read_text())
  assert len(figures) == 13  # And the number of images.
  for name, value in figures.items():
    assert value == results[f"test_{name}"], name
  # The standard tool, by hand, in its own order of figures.
  coco, evaluation = coco_evaluation.load_tool()
  truth = coco(str(folder / "instances_val.json"))
  answers = truth.loadRes(str(workdir / "detections_60.json"))
  by_hand = evaluation(truth, answers, "bbox")
  by_hand.evaluate()
  by_hand.accumulate()
  by_hand.summarize()
  np.testing.assert_allclose(
    by_hand.stats[:12],
    [figures[name] for name in coco_evaluation.FIGURES],
    atol=1e-6,  # The JSON's boxes are not rounded to float32.
  )
  image = folder / "images" / "val_3.png"
  target = tmp_path / "pictures"
  command = (
    f"--workdir={workdir}",
    f"--output={target}",
    "--score=0.05",
    str(image),
  )
  code, output, _ = run_main(predict.main, *command)
  assert code == 0
  (record,) = json.loads((target / "predictions.json").read_text())
  assert record["objects"]
  with Image.open(target / record["picture"]) as picture:
    assert picture.size == (60, 40)
  code, _, error = run_main(predict.main, *command)
  assert code == 2 and "exists; name a new folder" in error
  lost = f"--output={tmp_path / 'none' / 'pictures'}"
  code, _, error = run_main(predict.main, command[0], lost, str(image))
  assert code == 2 and "there is no folder" in error
  code, _, error = run_main(
    predict.main, f"--workdir={workdir}", "--attention=a.png", str(image)
  )
  assert code == 2 and "draws classifiers alone" in error


def test_letters_beyond_ascii_are_drawn():
  found = {"score": 0.5, "box": [5, 30, 40, 20]}
  pictures = [
    box_pictures.draw(
      Image.new("RGB", (90, 60)), [found | {"label": label}], {label: "#e69f00"}
    ).tobytes()
    for label in ("ü", "é", "Я")
  ]
  assert len(set(pictures)) == 3


def test_a_detector_is_exported(trained, folder, tmp_path, run_main):
  workdir, _ = trained
  out = tmp_path / "exported"
  code, _, _ = run_main(export.main, f"--workdir={workdir}", str(out))
  assert code == 0
  program = jax.export.deserialize((out / "model.stablehlo").read_bytes())
  description = json.loads((out / "model.json").read_text())
  assert "longer side resized to 64 pixels" in description["crop"]
  predictor = inference.of_run(str(workdir))
  with Image.open(folder / "images" / "val_3.png") as image:
    prepared = predictor.task.input(image)
  std, mean = (np.array(predictor.task.config.data[x]) for x in ("std", "mean"))
  pixels = np.round((prepared * std + mean) * 255).astype(np.uint8)
  expected = predictor._apply(predictor.variables, prepared[None])
  actual = program.call(pixels[None])
  for name, array in expected.items():
    np.testing.assert_allclose(actual[name], array, rtol=1e-3, atol=1e-4)
  anchors = np.load(out / "anchors.npy")
  assert anchors.dtype == np.float32
  np.testing.assert_array_equal(anchors, predictor.model.anchors(64, 64))


def test_data_that_changed_is_refused(trained, folder, tmp_path, run_main):
  workdir, _ = trained
  command = words(folder, tmp_path / "new"), words(folder, workdir)
  few = "--config.data.max_objects=2"
  code, _, error = run_main(train.main, *command[0], few)
  assert (
    code == 2 and "val_3.png of split val has 3 objects; set it to" in error
  )
  begun = tmp_path / "begun"
  shutil.copytree(workdir, begun)
  (begun / "results.json").unlink()
  before = {path: path.read_text() for path in folder.glob("*.json")}
  try:
    for path, text in before.items():
      path.write_text(text.replace('"red"', '"green"'))
    message = "the data set's labels, class_ids are not those"
    code, _, error = run_main(evaluate.main, f"--workdir={workdir}")
    assert code == 2 and message in error
    code, _, error = run_main(train.main, *words(folder, begun))
    assert code == 2 and message in error
  finally:
    for path, text in before.items():
      path.write_text(text)
