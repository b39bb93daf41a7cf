"""The benchmark of detection's input: whose images it reads."""

import importlib
import json
import pathlib

import pytest
from PIL import Image

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("place", [None, "annotations"])
def test_all_pipelines_read_the_same_images(
  place, tmp_path, monkeypatch, capsys
):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_boxes")
  folder = tmp_path / "images"
  folder.mkdir()
  for name in ("a.png", "b.jpg", "c.jpg"):
    Image.new("RGB", (40, 30)).save(folder / name)
  if place is not None:
    images = [
      dict(id=number, file_name=name, width=40, height=30)
      for number, name in enumerate(("a.png", "b.jpg"))
    ]
    boxes = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9])]
    classes = [dict(id=1, name="cat")]
    parts = dict(images=images, annotations=boxes, categories=classes)
    (tmp_path / place).mkdir()
    path = tmp_path / place / "instances_train.json"
    path.write_text(json.dumps(parts))
  file = tmp_path / "result.json"
  arguments = f"{tmp_path} --seconds=0.1 --image_size=32 --json={file}"
  monkeypatch.setattr("sys.argv", ["bench_boxes.py", *arguments.split()])
  bench.main()
  # Those of the JSON, or the JPEGs.
  assert "2 images of" in capsys.readouterr().out
  result = json.loads(file.read_text())
  assert result["images_per_second"].keys() == {"decode", "bare", "full"}
  assert result["images"] == 2 and min(result["rounds"]["full"]) > 0
