"""Weights from files and from the hub, and what goes wrong with them."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import halonet
from halonet import predict
from halonet.errors import UsageError
from halonet.interop import pretrained
from halonet.models.registry import get_entry
from halonet.models.timm_models import TIMM_NAMES
from halonet.training import initialise
from tests.interop.drawn import draw_images
from tests.interop.test_timm import make


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A safetensors file of drawn weights of halonet26t."""
  _, state_dict = make("halonet26t")
  path = tmp_path_factory.mktemp("weights") / "halonet26t.safetensors"
  safetensors.numpy.save_file(state_dict, path)
  return path


def test_a_file_there_and_back(weights, tmp_path):
  model, variables = pretrained.load_pretrained("halonet26t", str(weights))
  copy = tmp_path / "copy.safetensors"
  pretrained.save_timm(copy, variables, model)
  _, again = pretrained.load_pretrained("halonet26t", str(copy))
  jax.tree.map(np.testing.assert_array_equal, variables, again)
  with pytest.raises(UsageError, match="exists; name another"):
    pretrained.save_timm(copy, variables, model)


@pytest.mark.parametrize(
  "name, window_size",
  [("swin_tiny_patch4_window7_224", 8), ("pvt_v2_b0", None)],
)
def test_transformers_are_read_for_other_classes_and_windows(
  tmp_path, name, window_size
):
  _, state_dict = make(name, num_classes=3)
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(state_dict, path)
  overrides = {"window_size": window_size} if window_size else {}
  saved, given = pretrained.load_as_saved(
    name, str(path), num_classes=10, **overrides
  )
  assert saved.spec.num_classes == 3
  model = halonet.create_model(name, num_classes=10, **overrides)
  target = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    jax.eval_shape(model.init, jax.random.key(0), draw_images(1, (64, 64))),
  )
  _, notes = initialise.transfer(given, target, saved, model)
  assert notes[0] == "The classifier is new: 10 classes in place of 3"
  assert notes[1:] == (
    ["12 relative tables are resized from 13 to 15 rows"] if window_size else []
  )


def test_the_hub_is_asked_for_safetensors(weights, monkeypatch):
  asked = []

  def download(repository, file):
    asked.append((repository, file))
    return str(weights)

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  pretrained.load_pretrained("halonet26t")
  pretrained.load_pretrained("halonet26t", "hf-hub:me/mine")
  assert asked == [
    ("timm/halonet26t.a1h_in1k", "model.safetensors"),
    ("me/mine", "model.safetensors"),
  ]


def test_offline_is_one_clear_line(monkeypatch):
  def download(*_):
    raise OSError("no route\nto host")

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  with pytest.raises(UsageError, match=r"cannot be fetched \(no route\); go"):
    pretrained.load_pretrained("halonet26t")


def test_offline_for_real(tmp_path):
  """The hub's own client, without a network and with an empty cache."""
  code = (
    "from halonet import command, load_pretrained\n"
    "command.run(lambda: load_pretrained('halonet26t'))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: weights: hf-hub:timm/halonet26t.a1h")
  assert done.stderr.count("\n") == 1


def test_preprocessing_is_what_the_weights_say(weights, tmp_path):
  own = pretrained.load_preprocessing("halonet26t")
  assert (own.image_size, own.crop) == (256, 0.95)
  copy = tmp_path / "copy.safetensors"
  assert pretrained.load_preprocessing("halonet26t", str(copy)) == own
  config = tmp_path / "config.json"
  config.write_text(
    json.dumps(
      {
        "pretrained_cfg": {
          "input_size": [3, 288, 288],
          "crop_pct": 1.0,
          "mean": [0.5, 0.5, 0.5],
          "std": [0.25, 0.25, 0.25],
          "interpolation": "bilinear",
        }
      }
    )
  )
  assert pretrained.load_preprocessing(
    "halonet26t", str(copy)
  ) == pretrained.Preprocessing(288, 1.0, (0.5,) * 3, (0.25,) * 3, "bilinear")
  config.write_text("{}")
  with pytest.raises(UsageError, match="does not say what images"):
    pretrained.load_preprocessing("halonet26t", str(copy))


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("crop_mode", "squash", "crop_mode is 'squash'; only 'center'"),
    ("crop_mode", "border", "crop_mode is 'border'; only 'center'"),
    ("input_size", [3, 256, 384], r"input_size is \[3, 256, 384\]; .* square"),
    ("input_size", [1, 256, 256], r"input_size is \[1, 256, 256\]; .* 3 chan"),
    ("input_size", [256, 256], "does not say what images"),
    ("interpolation", "random", "there is no interpolation random; known"),
    ("input_size", [3, 10**8, 10**8], "input_size is 100000000; it must"),
    ("crop_pct", "abc", "crop_pct is 'abc'; it must"),
    ("crop_pct", 0, "crop_pct is 0.0; it must"),
    ("crop_pct", 1.5, "crop_pct is 1.5; it must"),
    ("crop_pct", float("nan"), "crop_pct is nan; it must"),
    ("mean", [0.5], r"mean is .*0.5.*; it must"),
    ("std", [0.0, 1.0, 1.0], r"std is .*; it must"),
  ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(
  tmp_path, field, value, message
):
  source = str(tmp_path / "model.safetensors")
  fields = {
    "input_size": [3, 256, 256],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
  }
  config = tmp_path / "config.json"
  config.write_text(json.dumps(fields))
  assert pretrained.load_preprocessing("halonet26t", source).crop == 0.9
  config.write_text(json.dumps(fields | {field: value}))
  with pytest.raises(UsageError, match=message):
    pretrained.load_preprocessing("halonet26t", source)


def test_narrower_weights_are_widened_and_whole_numbers_refused(tmp_path):
  _, state_dict = make("halonet26t")
  name = "head.fc.bias"
  path = tmp_path / "half.safetensors"
  half = state_dict | {name: state_dict[name].astype(np.float16)}
  safetensors.numpy.save_file(half, path)
  _, variables = pretrained.load_pretrained("halonet26t", str(path))
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
  assert dtypes == {np.dtype("float32")}
  path = tmp_path / "whole.safetensors"
  safetensors.numpy.save_file(state_dict | {name: np.arange(1000)}, path)
  with pytest.raises(UsageError, match="head.fc.bias holds int64"):
    pretrained.load_pretrained("halonet26t", str(path))


NORM = "stem.conv1.bn.running_var"
IMPOSSIBLE = [
  ("stem.conv1.conv.weight", np.nan, "holds NaN"),
  ("head.fc.bias", np.inf, "holds infinity"),
  ("stem.conv1.bn.running_mean", -np.inf, "holds infinity"),
  (NORM, -1e-6, "is a running variance, and holds values below 0"),
]


@pytest.mark.parametrize("name, value, problem", IMPOSSIBLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_impossible_values_are_refused(tmp_path, name, value, problem, dtype):
  _, state_dict = make("halonet26t")
  array = state_dict[name].astype(dtype)
  array.flat[-1] = value
  path = tmp_path / "weights.safetensors"
  safetensors.numpy.save_file(state_dict | {name: array}, path)
  message = re.escape(f"weights: {path}: {name} {problem}; they are damaged")
  for load in (pretrained.load_pretrained, pretrained.load_as_saved):
    with pytest.raises(UsageError, match=message):
      load("halonet26t", str(path))


def test_values_that_are_possible_pass():
  arrays = {
    "bn.running_var": np.zeros(2, np.float32),
    "bn.running_mean": np.float32([-1, 1]),
    "bn.num_batches_tracked": np.int64(3),
    "params/var": np.float32([-1]),
  }
  pretrained.check_values(arrays, "here")
  for name in ("batch_stats/stem/norm/var", "batch_stats/var"):
    with pytest.raises(UsageError, match=f"here: {name} is a running"):
      pretrained.check_values({name: np.float32([0, -1])}, "here")


def test_only_timms_models_are_saved_for_it(tmp_path):
  model = halonet.create_model("halonet_h0")
  with pytest.raises(ValueError, match="timm has no such model"):
    pretrained.save_timm(tmp_path / "h0.safetensors", {}, model)


def test_bad_sources_are_named(tmp_path):
  with pytest.raises(UsageError, match="there is no file none.safetensors"):
    pretrained.load_pretrained("halonet26t", "none.safetensors")
  broken = tmp_path / "broken.safetensors"
  broken.write_bytes(b"not a tensor")
  with pytest.raises(UsageError, match=r"broken\.safetensors cannot be read"):
    pretrained.load_pretrained("halonet26t", str(broken))
  pickled = tmp_path / "weights.pth"
  pickled.write_bytes(b"a pickle, perhaps")
  with pytest.raises(UsageError, match=r"weights\.pth"):
    pretrained.load_pretrained("halonet26t", str(pickled))
  with pytest.raises(UsageError, match="the paper's own weights were never"):
    pretrained.load_pretrained("halonet_h1")
  with pytest.raises(UsageError, match="no weights of halonet_h1_timm"):
    pretrained.load_pretrained("halonet_h1_timm")


def test_weights_of_another_model_are_refused(weights):
  with pytest.raises(ValueError, match="problems"):
    pretrained.load_pretrained("halonet50ts", str(weights))


def test_published_models_are_in_the_registry():
  assert len(set(pretrained.imagenet_classes())) == 1000
  for name, published in pretrained.PRETRAINED.items():
    assert get_entry(name).image_size == published.preprocessing.image_size
    assert name in TIMM_NAMES


def test_top_five_by_name(run_main, weights, tmp_path):
  path = tmp_path / "image.png"
  Image.fromarray(
    np.random.default_rng(0).integers(255, size=(200, 300, 3), dtype=np.uint8)
  ).save(path)
  picture = tmp_path / "attention.png"
  code, output, complaint = run_main(
    predict.main,
    "--model=halonet26t",
    f"--weights={weights}",
    f"--attention={picture}",
    str(path),
  )
  assert code == 0, complaint
  lines = output.splitlines()
  assert len(lines) == 7 and picture.exists()
  names = pretrained.imagenet_classes()
  assert all(line.split("%  ")[1] in names for line in lines[1:6])


def test_slips_are_answered_in_one_line(run_main, weights, tmp_path):
  path = tmp_path / "image.png"
  Image.new("RGB", (8, 8)).save(path)
  _, state_dict = make("halonet26t")
  broken = tmp_path / "broken.safetensors"
  bias = np.full_like(state_dict["head.fc.bias"], np.nan)
  safetensors.numpy.save_file(state_dict | {"head.fc.bias": bias}, broken)
  for words, message in (
    (["--model=halonet26t", f"--weights={broken}"], "head.fc.bias holds NaN"),
    (["--model=halonet27t"], "did you mean halonet26t"),
    (["--model=halonet50ts", f"--weights={weights}"], "do not fit"),
    (["--model=halonet26t", "--step=3"], "--step is for --workdir"),
  ):
    code, _, complaint = run_main(predict.main, *words, str(path))
    assert code == 2 and message in complaint
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
