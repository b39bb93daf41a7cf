"""Weights from files and from the hub, and what goes wrong with them."""

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
    assert get_entry(name).image_size == published.image_size
    assert halonet.create_model(name).spec.timm


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
  for words, message in (
    (["--model=halonet27t"], "did you mean halonet26t"),
    (["--model=halonet50ts", f"--weights={weights}"], "do not fit"),
    (["--model=halonet26t", "--step=3"], "--step is for --workdir"),
  ):
    code, _, complaint = run_main(predict.main, *words, str(path))
    assert code == 2 and message in complaint
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
