"""Classifying image files, and the picture of where the model looks."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from halonet import inference, predict
from halonet.data import pipeline, sources
from halonet.data.images import read_image
from halonet.data.tfds_source import load_builder
from halonet.errors import UsageError
from halonet.inference import of_run
from halonet.ops import dispatch
from halonet.pictures import (
  attention_of_pixel,
  draw_attention,
  parse_pixel,
)
from halonet.tasks.task import make_task
from halonet.training.workdir import Workdir


@pytest.fixture
def digit(tmp_path, data_dir):
  """The first test image, as a file."""
  builder = load_builder("digits", data_dir)
  example = next(builder.as_dataset(split="test").as_numpy_iterator())
  path = tmp_path / "digit.png"
  Image.fromarray(example["image"][..., 0]).save(path)
  return path


@pytest.fixture(scope="module")
def predictor(trained):
  return of_run(str(trained[0]))


def test_classes_with_probabilities(run_main, trained, digit):
  code, output, complaint = run_main(
    predict.main, f"--workdir={trained[0]}", "--top=10", str(digit), str(digit)
  )
  assert code == 0, complaint
  lines = output.splitlines()
  assert len(lines) == 22 and lines[0] == lines[11] == str(digit)
  shown = [float(line.split()[0].rstrip("%")) for line in lines[1:11]]
  assert shown == sorted(shown, reverse=True)
  assert abs(sum(shown) - 100) < 0.1
  assert sorted(line.split()[1] for line in lines[1:11]) == list("0123456789")


def test_it_imports_no_library_that_it_does_not_use(trained, digit):
  script = (
    "import sys; from halonet import predict; predict.main();"
    " assert not {'tensorflow', 'matplotlib', 'sklearn'} & {*sys.modules}"
  )
  words = [f"--workdir={trained[0]}", str(digit)]
  command = [sys.executable, "-c", script, *words]
  subprocess.run(command, check=True, timeout=300)


def test_a_file_is_seen_as_the_test_split_is(predictor, trained, digit):
  workdir = Workdir(str(trained[0]))
  task = make_task(workdir.config(), workdir.metadata())
  source = sources.open_source(task.config.data, task.needs)
  split = source.split("test_split", "test")
  batch = next(pipeline.test_batches(split, task))
  image = predictor.prepare(read_image(digit))
  np.testing.assert_allclose(image, batch["image"][0], atol=1e-6)
  logits = predictor.model.apply(predictor.variables, jnp.asarray(image)[None])
  logits = np.asarray(logits[0], np.float64)
  expected = np.exp(logits) / np.exp(logits).sum()
  answers, found = predictor.predict(read_image(digit), top=10)
  assert found == [] and not predictor.task.finds
  for line in answers:
    probability, label = line.split()
    np.testing.assert_allclose(
      float(probability.rstrip("%")), 100 * expected[int(label)], atol=0.006
    )


def test_attention_is_that_of_one_device_where_there_are_more(
  predictor, digit, monkeypatch
):
  chosen, choose = set(), dispatch.choose

  def note(*arguments):
    form = choose(*arguments)
    chosen.add(form.name)
    return form

  monkeypatch.setattr(dispatch, "choose", note)
  assert jax.device_count() > 1
  dataclasses.replace(predictor).predict(read_image(digit), 1)
  assert chosen == {"xla_chunked"}  # For many it would be "xla".


@pytest.mark.parametrize("size, mode", [((70, 41), "RGB"), ((1, 1), "RGBA")])
def test_files_of_any_size_and_mode(run_main, trained, tmp_path, size, mode):
  path = tmp_path / "image.png"
  Image.new(mode, size, "gray").save(path)
  code, output, complaint = run_main(
    predict.main, f"--workdir={trained[0]}", str(path)
  )
  assert code == 0, complaint
  assert len(output.splitlines()) == 6


def test_a_name_may_be_no_utf8(run_main, trained, digit):
  path = digit.with_name(os.fsdecode(b"\xff.png"))
  digit.rename(path)
  words = f"--workdir={trained[0]}", str(path)
  code, output, complaint = run_main(predict.main, *words)
  assert code == 0, complaint
  assert output.splitlines()[0].endswith(r"\udcff.png")


def test_attention_is_drawn(run_main, trained, digit, tmp_path):
  picture = tmp_path / "the attention.png"
  words = (f"--workdir={trained[0]}", f"--attention={picture}", str(digit))
  code, output, complaint = run_main(predict.main, *words, "--pixel=5,3")
  assert code == 0, complaint
  assert output.splitlines()[-1] == f"Wrote '{picture}'"
  pixels = np.asarray(Image.open(picture).convert("RGB"))
  assert pixels.shape[1] > 800 and len(np.unique(pixels)) > 50
  code, _, complaint = run_main(predict.main, *words)
  assert code == 2 and f"--attention: {picture} exists" in complaint


def test_attention_of_a_pixel_is_its_querys(predictor, digit):
  weights, geometry = predictor.last_attention(read_image(digit))
  # The only block of stage 2 strides over the 4×4 map of stage 1.
  map_size, stride = 4, 2
  assert geometry.tolist() == [map_size, map_size, 2, 1, stride]
  assert weights.shape == (2, 2, 2, 1, 1, 4, 4)
  on_map, block, query = attention_of_pixel(
    weights, stride, map_size, (0.1, 0.9), halo_size=1
  )
  assert block == (0, 2) and query == (0, 2)
  np.testing.assert_allclose(on_map.sum(), 1.0, rtol=1e-5)
  # Rows 0–2 and columns 1–3 are in reach of this corner's block.
  np.testing.assert_array_equal(
    on_map[:3, 1:], weights[0, 1].mean(0)[0, 0, 1:, :3]
  )
  assert on_map[3].sum() == 0 and on_map[:, 0].sum() == 0


def test_pixels_are_checked(predictor):
  image = Image.new("RGB", (30, 10))
  assert parse_pixel(None, image, predictor) == (15, 5)
  assert parse_pixel("10,9", image, predictor) == (10, 9)
  # The centre of an image of even width and odd height lies beside a pixel.
  for size in ((30, 10), (10, 30), (2, 1), (1, 2), (1, 1), (640, 481)):
    for crop in (1.0, 0.94):
      seen = dataclasses.replace(predictor, crop=crop)
      image = Image.new("RGB", size)
      x, y = parse_pixel(None, image, seen)
      assert parse_pixel(f"{x},{y}", image, seen) == (x, y)
  image = Image.new("RGB", (30, 10))
  with pytest.raises(UsageError, match="sees x from 10 to 19 and y from 0"):
    parse_pixel("9,0", image, predictor)
  for text in ("9", ""):
    with pytest.raises(UsageError, match=f"--pixel is '{text}'; write X,Y"):
      parse_pixel(text, image, predictor)


def test_a_runs_crop_counts(trained, monkeypatch):
  restore = inference.restore_model

  def half(*arguments):
    run = restore(*arguments)
    run.config.data.crop_fraction = 0.5
    return run

  monkeypatch.setattr(inference, "restore_model", half)
  seen = of_run(str(trained[0])).seen(Image.new("RGB", (30, 10)))
  assert seen == (12, 2, 5)


def test_colours_are_those_of_the_bar(predictor, digit, tmp_path):
  """Whatever the image: it does not shine through."""
  weights = predictor.last_attention(read_image(digit))
  fixed = dataclasses.replace(predictor)
  object.__setattr__(fixed, "last_attention", lambda image: weights)
  drawn = []
  for name, colour in (("black", 0), ("white", 255)):
    blank = Image.new("RGB", (8, 8), (colour,) * 3)
    path = tmp_path / f"{name}.png"
    draw_attention(fixed, blank, (4, 4), str(path))
    drawn.append(np.asarray(Image.open(path).convert("RGB")))
  right = drawn[0].shape[1] // 2
  np.testing.assert_array_equal(drawn[0][:, right:], drawn[1][:, right:])
  assert (drawn[0][:, :right] != drawn[1][:, :right]).any()


@pytest.mark.parametrize(
  "words, message",
  [
    (["--top=0", "IMAGE"], "--top is 0"),
    (["--pixel=1,1", "IMAGE"], "--pixel is for the picture"),
    (["--pixel=", "IMAGE"], "--pixel is for the picture"),
    (["--attention=a.png", "IMAGE", "IMAGE"], "--attention draws one image"),
    (["--attention=a.png", "--pixel=99,0", "IMAGE"], "--pixel is 99,0"),
    (["--attention=none/a.png", "IMAGE"], "there is no folder none"),
    (["--attention=a.what", "IMAGE"], "--attention a.what"),
    (["none.png"], "there is no file none.png"),
    (["--weights=a.safetensors", "IMAGE"], "--weights is for --model"),
  ],
)
def test_slips_are_answered_in_one_line(
  run_main, trained, digit, words, message
):
  words = [str(digit) if word == "IMAGE" else word for word in words]
  code, _, complaint = run_main(predict.main, f"--workdir={trained[0]}", *words)
  assert code == 2 and message in complaint
  assert complaint.startswith("error: ") and complaint.count("\n") == 1
