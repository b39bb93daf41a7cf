"""The input benchmark: its processes, its Pillow side, and its report."""

import functools
import importlib
import itertools
import json
import os
import pathlib
import random
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from halonet.data import randaugment
from halonet.errors import RunError, UsageError

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
    assert f"| full ÷ {name} | {result[field]:.2f} | – |" in printed


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
  image = np.full((32, 32, 3), np.nan, np.float32)
  bench.pillow_image(path, image, random.Random(0), draft=draft)
  pixels = (image * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)) * 255
  np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)
  assert 0 <= round(pixels.min()) < round(pixels.max()) <= 255


def test_pillow_fills_two_batches_in_turn(bench, folder):
  path = str(folder / "0" / "photograph.JPEG")
  steps = bench.pillow_batches([path], 8, 0, draft=True)
  batches = []
  for _ in range(3):
    assert list(itertools.islice(steps, bench.BATCH_SIZE)) == (
      [None] * bench.BATCH_SIZE
    )
    batches.append(next(steps))
    assert batches[-1].shape == (64, 8, 8, 3)
    assert batches[-1].dtype == np.float32
    assert (batches[-1].std((1, 2, 3)) > 0).all()  # None is left out.
    batches[-1][:] = 0
  assert not np.shares_memory(batches[0], batches[1])
  assert np.shares_memory(batches[0], batches[2])


def test_rates_of_processes_add_up_and_the_rest_does_not_count(
  bench, tmp_path, monkeypatch
):
  # A module of its own: this one would bring TensorFlow to the processes.
  (tmp_path / "slow.py").write_text(
    "import time\n"
    "def batches(number):\n"
    "  while True:\n"
    "    yield None\n"
    "    time.sleep(0.2 * (1 + number))\n"
    "    yield 'batch'\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  make = importlib.import_module("slow").batches
  with bench.started("slow", make, 2) as rate:
    for _ in range(2):
      # 0.7 s are no whole number of batches of either.
      assert rate(0.1, 0.7) == pytest.approx(64 * (5 + 2.5), rel=0.1)
      time.sleep(0.5)


def test_a_corrupt_file_ends_it_with_one_line(bench, tmp_path):
  path = tmp_path / "corrupt.jpg"
  path.write_bytes(b"\xff\xd8\xff" + b"no image" * 9)
  make = functools.partial(bench.pillow_batches, [str(path)], 8, draft=False)
  with (
    pytest.raises(RunError, match="pipeline other has ended: .*") as caught,
    bench.started("other", make, 1) as rate,
  ):
    rate(0.1, 0.1)
  assert f"{path} cannot be decoded" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_process_that_ends_without_a_word_is_an_error(bench):
  with (
    pytest.raises(RunError, match="pipeline full has ended: exit code 0"),
    bench.started("full", os._exit, 1) as rate,
  ):
    rate(0.1, 0.1)


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
  for number, name in enumerate(randaugment.OPERATIONS):
    _, rest, up, down = randaugment.OPERATIONS[name]
    value = rest + abs(strength) * ((up if strength > 0 else down) - rest)
    ours = randaugment.apply(
      np.asarray(image),
      tf.constant(False),
      tf.constant([number]),
      tf.constant([value], tf.float32),
    )
    theirs = bench.OPERATIONS[name](image, strength)
    np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=name)
