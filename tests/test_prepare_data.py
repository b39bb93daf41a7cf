"""scripts/prepare_data.py prepares, checks, and says what is missing."""

import importlib.util
import json
import os
import pathlib
import shutil

import pytest
from PIL import Image


@pytest.fixture
def prepare_data(run_main):
  path = pathlib.Path(__file__).parents[1] / "scripts" / "prepare_data.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return lambda *words: run_main(module.main, *words)


def test_it_prepares_and_verifies(prepare_data, tmp_path):
  options = ("digits", f"--data_dir={tmp_path}", "--verify")
  code, output, complaint = prepare_data(*options)
  assert code == 0, complaint
  lines = output.splitlines()
  assert any(line.startswith("Next: digits is downloaded") for line in lines)
  assert "train: 1347 images in 1 files; all are there" in lines
  assert any("test: 450 of 450 decoded, 0 corrupt" in line for line in lines)
  assert lines[-1] == (
    "Next: scripts/train.sh --config=CONFIG --config.data.name=digits"
    f" --config.data.data_dir={tmp_path} --config.data.train_split=train"
    " --config.data.test_split=test"
  )


def test_imagenets_files_are_asked_for(prepare_data, tmp_path):
  folder = tmp_path / "downloads" / "manual"
  words = ("imagenet2012", f"--data_dir={tmp_path}")
  code, _, complaint = prepare_data(*words)
  assert code == 2 and complaint.count("\n") == 1
  assert "train.tar is missing, ILSVRC2012_img_val.tar is missing" in complaint
  assert f"put them in {folder}, and give this command again" in complaint
  folder.mkdir(parents=True)
  (folder / "ILSVRC2012_img_train.tar").write_bytes(b"half")
  _, _, complaint = prepare_data(*words)
  assert "train.tar has 4 bytes and should have 147897477120" in complaint


def test_a_folder_is_verified(prepare_data, photos, tmp_path):
  shutil.copytree(photos, tmp_path / "photos")
  words = ("folder", f"--data_dir={tmp_path / 'photos'}")
  code, output, complaint = prepare_data(*words, "--verify")
  assert code == 0, complaint
  assert "train: 37 images in 37 files; all are there" in output
  assert "--config.data.test_split=val" in output.splitlines()[-1]
  damaged = tmp_path / "photos" / "val" / "china" / "002.JPEG"
  damaged.write_bytes(b"\xff\xd8\xff no more")
  assert prepare_data(*words)[0] == 0  # Without looking inside.
  code, output, complaint = prepare_data(*words, "--verify")
  assert code == 1 and "val: 11 of 11 decoded, 1 corrupt" in output
  assert f"error: 1 images cannot be decoded: {damaged}. Mend" in complaint


def test_every_damaged_file_of_a_folder_is_counted(
  prepare_data, photos, tmp_path
):
  shutil.copytree(photos, tmp_path / "photos")
  folder = tmp_path / "photos" / "train" / "china"
  (folder / "002.JPEG").write_bytes(b"no image")
  (folder / "003a.jpg").symlink_to("nowhere")
  (folder / "003b.jpg").mkdir()
  os.mkfifo(folder / "003c.jpg")
  (folder / "004.JPEG").write_bytes(b"")
  Image.new("1", (9, 9)).save(folder / "005.bmp")
  words = ("folder", f"--data_dir={tmp_path / 'photos'}")
  code, output, complaint = prepare_data(*words, "--verify")
  assert code == 1 and complaint.count("\n") == 1
  assert "train: 41 of 41 decoded, 6 corrupt" in output
  assert "val: 11 of 11 decoded, 0 corrupt" in output
  names = ("002.JPEG", "003a.jpg", "003b.jpg", "003c.jpg", "004.JPEG")
  places = "; ".join(f"{folder / name}" for name in (*names, "005.bmp"))
  assert f"error: 6 images cannot be decoded: {places}. Mend them" in complaint
  # Without looking inside, only the first that is no file.
  code, _, complaint = prepare_data(*words)
  assert code == 2 and f"{folder / '003a.jpg'} is a dangling link" in complaint


def test_damaged_records_do_not_end_the_check(prepare_data, data_dir, tmp_path):
  shutil.copytree(f"{data_dir}/digits", tmp_path / "digits")
  (file,) = (tmp_path / "digits").rglob("*-train.tfrecord*")
  # The second record's length no longer fits its checksum.
  whole = file.read_bytes()
  second = 16 + int.from_bytes(whole[:8], "little")
  file.write_bytes(whole[:second] + b"\1" + whole[second + 1 :])
  words = ("digits", f"--data_dir={tmp_path}", "--verify")
  code, output, complaint = prepare_data(*words)
  assert code == 1 and complaint.count("\n") == 1
  assert "train: 1 of 1347 decoded, 0 corrupt" in output
  assert "test: 450 of 450 decoded, 0 corrupt" in output
  place = f"record 1 of {file} and the rest of it"
  assert f"error: 1346 images cannot be decoded: {place}. Mend" in complaint


def test_missing_files_are_noticed(prepare_data, data_dir, tmp_path):
  shutil.copytree(f"{data_dir}/digits", tmp_path / "digits")
  (file,) = (tmp_path / "digits").rglob("*-test.tfrecord*")
  file.unlink()
  code, _, complaint = prepare_data("digits", f"--data_dir={tmp_path}")
  assert code == 1 and f"1 files are missing, such as {file}" in complaint


@pytest.fixture
def boxes(tmp_path):
  """Two splits of two images each, with a JSON of boxes."""
  root = tmp_path / "boxes"
  for split in ("train", "val"):
    images, annotations = [], []
    for number in range(2):
      name = f"{split}{number}.png"
      image = {"id": number, "file_name": name, "width": 30, "height": 20}
      images.append(image)
      path = root / "images" / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (30, 20)).save(path)
    for number in range(3):
      box = {"id": number, "image_id": 1, "category_id": 4 + number // 2}
      annotations.append(box | {"bbox": [number, 1, 9, 5]})
    annotations[2]["iscrowd"] = 1
    categories = [{"id": 4, "name": "cup"}, {"id": 5, "name": "plate"}]
    parts = dict(images=images, annotations=annotations, categories=categories)
    (root / f"instances_{split}.json").write_text(json.dumps(parts))
  return root


def test_boxes_are_counted_and_verified(prepare_data, boxes):
  words = ("coco_json", f"--data_dir={boxes}")
  Image.new("RGB", (30, 20)).save(boxes / "images" / "spare.PNG")
  code, output, complaint = prepare_data(*words, "--verify")
  assert code == 0, complaint
  spare = f"({boxes}/images/spare.PNG)"
  assert f"1 images are in neither split's JSON, and left out {spare}" in (
    complaint
  )
  lines = output.splitlines()
  for split in ("train", "val"):
    place = lines.index(f"{split}: 2 images in 2 files; all are there")
    assert lines[place + 1 : place + 3] == [
      f"{split}: 3 objects of 2 classes: cup 2, plate 1",
      f"{split}: 1 images without objects, 1 crowds; at most 3 objects in an"
      " image: config.data.max_objects=3 keeps all",
    ]
    assert any(f"{split}: 2 of 2 decoded, 0 corrupt" in line for line in lines)
  assert "--config.data.test_split=val" in lines[-1]


def test_what_is_wrong_with_boxes_is_one_line(prepare_data, boxes):
  words = ("coco_json", f"--data_dir={boxes}")
  path = boxes / "instances_train.json"
  right = path.read_text()
  parts = json.loads(right)
  parts["annotations"][1]["image_id"] = 9
  path.write_text(json.dumps(parts))
  code, _, complaint = prepare_data(*words)
  assert code == 2 and complaint.count("\n") == 1
  assert f"{path}: 1 annotations of unknown images (1)" in complaint
  path.write_text(right)
  Image.new("RGB", (20, 30)).save(boxes / "images" / "val1.png")
  assert prepare_data(*words)[0] == 0  # Without looking inside.
  code, _, complaint = prepare_data(*words, "--verify")
  assert code == 2 and complaint.count("\n") == 1
  assert "1 images of split val have another size than in the JSON" in complaint
  assert "val1.png: 20×30, in the JSON 30×20" in complaint
  (boxes / "images" / "train0.png").write_bytes(b"")
  code, _, complaint = prepare_data(*words)
  assert code == 2 and "1 images of split train have 0 bytes" in complaint
  code, output, complaint = prepare_data(*words, "--verify")
  assert code == 1 and "train: 2 of 2 decoded, 1 corrupt" in output
  assert "error: 1 images cannot be decoded" in complaint
  assert "1 images of split val have another size" in complaint
