"""The benchmark of detection's input: whose images it reads."""

import importlib
import json
import pathlib

from PIL import Image

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


def test_all_pipelines_read_the_images_of_the_json(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_boxes")
  folder = tmp_path / "images"
  folder.mkdir()
  for name in ("a.png", "b.jpg", "unnamed.jpg"):
    Image.new("RGB", (40, 30)).save(folder / name)
  images = [
    dict(id=number, file_name=name, width=40, height=30)
    for number, name in enumerate(("a.png", "b.jpg"))
  ]
  boxes = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9])]
  classes = [dict(id=1, name="cat")]
  parts = dict(images=images, annotations=boxes, categories=classes)
  path = tmp_path / "annotations" / "instances_train.json"
  path.parent.mkdir()
  path.write_text(json.dumps(parts))
  file = tmp_path / "result.json"
  arguments = f"{tmp_path} --seconds=0.1 --image_size=32 --json={file}"
  monkeypatch.setattr("sys.argv", ["bench_boxes.py", *arguments.split()])
  bench.main()
  assert "2 images of" in capsys.readouterr().out
  result = json.loads(file.read_text())
  assert result["images_per_second"].keys() == {"decode", "bare", "full"}
  assert result["images"] == 2 and min(result["rounds"]["full"]) > 0
