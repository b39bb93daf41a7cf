"""Classifying image files, and the picture of where the model looks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halonet.prediction import (
  attention_of_pixel,
  last_attention,
  of_run,
  parse_pixel,
)
from PIL import Image

from halonet import predict
from halonet.data import pipeline, sources
from halonet.data.images import read_image
from halonet.data.tfds_source import load_builder
from halonet.errors import UsageError
from halonet.ops import dispatch
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
def classifier(trained):
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


def test_a_file_is_seen_as_the_test_split_is(classifier, trained, digit):
  config = Workdir(str(trained[0])).config()
  split = sources.open_source(config.data).split("test_split", "test")
  batch = next(pipeline.test_batches(split, config))
  image = classifier.prepare(read_image(digit))
  np.testing.assert_allclose(image, batch["image"][0], atol=1e-6)
  logits = classifier.model.apply(
    classifier.variables, jnp.asarray(image)[None]
  )
  logits = np.asarray(logits[0], np.float64)
  expected = np.exp(logits) / np.exp(logits).sum()
  actual = classifier.predict(read_image(digit))
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_attention_is_that_of_one_device_where_there_are_more(
  classifier, digit, monkeypatch
):
  chosen, choose = set(), dispatch.choose

  def note(*arguments):
    form = choose(*arguments)
    chosen.add(form.name)
    return form

  monkeypatch.setattr(dispatch, "choose", note)
  assert jax.device_count() > 1
  dataclasses.replace(classifier).predict(read_image(digit))
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


def test_attention_is_drawn(run_main, trained, digit, tmp_path):
  picture = tmp_path / "attention.png"
  words = (f"--workdir={trained[0]}", f"--attention={picture}", str(digit))
  code, output, complaint = run_main(predict.main, *words, "--pixel=5,3")
  assert code == 0, complaint
  assert output.splitlines()[-1] == f"Wrote {picture}"
  pixels = np.asarray(Image.open(picture).convert("RGB"))
  assert pixels.shape[1] > 800 and len(np.unique(pixels)) > 50
  code, _, complaint = run_main(predict.main, *words)
  assert code == 2 and f"--attention: {picture} exists" in complaint


def test_attention_of_a_pixel_is_its_querys(classifier, digit):
  image = classifier.prepare(read_image(digit))
  weights, stride, map_size = last_attention(classifier, image)
  # The only block of stage 2 strides over the 4×4 map of stage 1.
  assert (stride, map_size) == (2, 4)
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


def test_pixels_are_checked(classifier):
  image = Image.new("RGB", (30, 10))
  assert parse_pixel(None, image, classifier) == (15, 5)
  assert parse_pixel("10,9", image, classifier) == (10, 9)
  with pytest.raises(UsageError, match="sees x from 10 to 19 and y from 0"):
    parse_pixel("9,0", image, classifier)
  with pytest.raises(UsageError, match="write X,Y"):
    parse_pixel("9", image, classifier)


@pytest.mark.parametrize(
  "words, message",
  [
    (["--top=0", "IMAGE"], "--top is 0"),
    (["--pixel=1,1", "IMAGE"], "--pixel is for the picture"),
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
