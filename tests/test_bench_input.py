"""The input benchmark: its Pillow side does our work, and its report."""

import importlib
import json
import pathlib
import random

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from halonet.data import randaugment
from halonet.errors import UsageError

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
  # Its worker processes import it by this name, too.
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module("bench_input")


@pytest.fixture
def folder(tmp_path):
  """Two photographs in folders, and a file that is no JPEG."""
  folder = tmp_path / "photographs"
  for number, array in enumerate(load_sample_images().images):
    (folder / str(number)).mkdir(parents=True)
    Image.fromarray(array).save(folder / str(number) / "photograph.JPEG")
  Image.fromarray(array[:50, :50]).save(folder / "small.png")
  return folder


def test_it_reports_every_pipeline(
  bench, folder, tmp_path, monkeypatch, capsys
):
  file = tmp_path / "result.json"
  arguments = f"{folder} --seconds=0.1 --image_size=32"
  monkeypatch.setattr(
    "sys.argv", ["bench_input.py", *arguments.split(), f"--json={file}"]
  )
  bench.main()
  printed = capsys.readouterr().out
  assert "2 JPEGs" in printed
  result = json.loads(file.read_text())
  rates = result["images_per_second"]
  assert rates.keys() == {
    "bare",
    "full",
    "full bfloat16",
    "Pillow",
    "Pillow draft",
  }
  assert min(rates.values()) > 0
  assert all(len(rounds) == 3 for rounds in result["rounds"].values())
  assert result["full_to_bare"] == rates["full"] / rates["bare"]
  for name, field in (
    ("Pillow", "full_to_pillow"),
    ("Pillow draft", "full_to_pillow_draft"),
  ):
    assert result[field] == rates["full"] / rates[name]
    assert f"| full ÷ {name} | {result[field]:.2f} | |" in printed


def test_a_folder_without_jpegs_is_one_clear_error(bench, tmp_path):
  (tmp_path / "text.jpg").write_text("no image")
  with pytest.raises(UsageError, match="holds no JPEG, at any depth"):
    bench.read_files(tmp_path)
  with pytest.raises(UsageError, match="there is no folder"):
    bench.read_files(tmp_path / "none")


@pytest.mark.parametrize("draft", [False, True])
def test_pillows_images_are_normalised_crops(bench, folder, monkeypatch, draft):
  path = str(folder / "0" / "photograph.JPEG")
  monkeypatch.setattr(bench, "LAYERS", 0)
  # 427 pixels are several times 32: the reduced decoding takes part.
  image = bench.pillow_image(path, 32, random.Random(0), draft=draft)
  assert image.shape == (32, 32, 3) and image.dtype == np.float32
  pixels = (image * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)) * 255
  np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)
  assert 0 <= round(pixels.min()) < round(pixels.max()) <= 255


def test_pillows_windows_are_distributed_as_ours(bench):
  choices = random.Random(0)
  windows = [bench.random_window(640, 480, choices) for _ in range(3000)]
  left, top, width, height = np.array(windows).T
  assert min(left) >= 0 and max(left + width) <= 640
  assert min(top) >= 0 and max(top + height) <= 480
  area = width * height / (640 * 480)
  assert min(area) > 0.078 and max(area) > 0.93
  # The mean over 1500 of preprocessing.random_window is 0.368.
  assert 0.35 < area.mean() < 0.39


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0])
def test_pillows_operations_are_randaugments(bench, strength):
  assert bench.OPERATIONS.keys() == randaugment.OPERATIONS.keys()
  image = Image.fromarray(load_sample_images().images[0][100:190, 100:220])
  for name, (operation, argument) in randaugment.OPERATIONS.items():
    arguments = () if argument is None else (argument(strength),)
    ours = operation(np.asarray(image), *arguments)
    theirs = bench.OPERATIONS[name](image, strength)
    np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=name)
