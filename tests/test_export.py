"""halonet.export: the same outputs, loaded without this library."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from halonet import export, inference, serving
from halonet.interop.pretrained import save_timm
from halonet.models.registry import create_model

LOAD = """
import jax.export, numpy as np, sys
with open("model.stablehlo", "rb") as file:
  model = jax.export.deserialize(file.read())
logits = model.call(np.load("images.npy"))
np.save("logits.npy", logits)
assert "halonet" not in sys.modules
"""


def call(folder, images):
  """Runs an exported network in a process that does not know this library."""
  np.save(folder / "images.npy", images)
  subprocess.run([sys.executable, "-I", "-c", LOAD], cwd=folder, check=True)
  return np.load(folder / "logits.npy")


# The type checker does not know sizes that are symbols.
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_run(trained, run_main, tmp_path):
  workdir, _ = trained
  out = tmp_path / "the model"
  code, printed, complaint = run_main(
    export.main, f"--workdir={workdir}", str(out)
  )
  assert code == 0, complaint
  assert f"Wrote '{out}': model.stablehlo (" in printed
  said = json.loads((out / "model.json").read_text())
  assert said["labels"] == [str(digit) for digit in range(10)]
  assert (said["image_size"], said["step"]) == (16, 24)
  images = sklearn.datasets.load_digits().images[:3].astype(np.uint8) * 15
  images = np.repeat(
    np.kron(images, np.ones((1, 2, 2), np.uint8))[..., None], 3, 3
  )
  predictor = inference.of_run(str(workdir))
  expected = [
    jax.device_get(
      predictor._apply(
        predictor.variables, predictor.prepare(Image.fromarray(image))[None]
      )
    )[0]
    for image in images
  ]
  assert np.ptp(expected) > 0.1
  # Any number of images.
  for count in (1, 3):
    logits = call(out, images[:count])
    np.testing.assert_allclose(logits, expected[:count], atol=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
def test_timms_weights(run_main, tmp_path):
  model = create_model("halonet26t")
  variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 64, 3)))
  path = tmp_path / "weights.safetensors"
  save_timm(path, variables, model)
  out = tmp_path / "out"
  words = "--model=halonet26t", f"--weights={path}", str(out)
  assert run_main(export.main, *words)[0] == 0
  said = json.loads((out / "model.json").read_text())
  assert len(said["labels"]) == 1000 and "269 pixels, bicubic" in said["crop"]
  images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
  inputs = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  expected = model.apply(variables, inputs.astype(np.float32))
  np.testing.assert_allclose(call(out, images), expected, atol=1e-5)


class Nothing:
  """A network to be written, of no content."""

  anchors = None
  description = {"image_size": 1}  # noqa: RUF012


def test_the_work_of_another_export_stays(run_main, tmp_path, monkeypatch):
  monkeypatch.setattr(serving, "of_run", lambda *words: Nothing)
  monkeypatch.setattr(serving, "export", lambda *words: b"")
  (tmp_path / "OUT.partial").mkdir()
  words = "--workdir=x", str(tmp_path / "OUT")

  def full_disk(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "rename", full_disk)
    code, _, complaint = run_main(export.main, *words)
  assert code == 2
  assert "OUT cannot be written: No space left on device" in complaint
  assert os.listdir(tmp_path) == ["OUT.partial"]
  code, _, complaint = run_main(export.main, *words)
  assert code == 0, complaint
  assert sorted(os.listdir(tmp_path)) == ["OUT", "OUT.partial"]


@pytest.mark.parametrize(
  "words, message",
  [
    (("OUT",), "one of the arguments --workdir --model is required"),
    (("--workdir=x", "--weights=y", "OUT"), "--weights is for --model=NAME"),
    (("--workdir=x", "."), ". exists; name another folder"),
    (("--workdir=x", "no/where"), "there is no folder no"),
    (("--model=halonet_h0", "OUT"), "there is no published model halonet_h0"),
  ],
)
def test_slips(run_main, words, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, _, complaint = run_main(export.main, *words)
  assert code == 2 and message in complaint
  assert not (tmp_path / "OUT").exists()
