"""What a config takes from the weights that its training begins with."""

import json

import pytest

from halonet.errors import UsageError
from halonet.interop.pretrained import PRETRAINED
from halonet.training.config import load_config
from tests.test_configs import module_of

FILE = "configs/finetune.py"


def test_the_variants_are_timms():
  assert set(module_of(FILE).VARIANTS) == PRETRAINED.keys()


@pytest.mark.parametrize("name", PRETRAINED)
def test_images_are_prepared_as_timms_weights_expect(name):
  config = load_config(f"{FILE}:{name}")
  expected = PRETRAINED[name].preprocessing
  data = config.data
  assert (config.init_from, config.model.name) == ("timm", name)
  assert data.image_size == expected.image_size
  assert (data.mean, data.std) == (expected.mean, expected.std)
  assert data.crop_fraction == expected.crop
  assert data.interpolation == expected.interpolation
  assert config.model.zero_init_classifier


def test_what_is_set_is_not_taken(trained):
  config = load_config(
    f"{FILE}:haloregnetz_b",
    ["data.image_size=160", "data.mean=(0.1,0.2,0.3)", "model.block_size=4"],
  )
  assert (config.data.image_size, config.model.block_size) == (160, 4)
  assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.5,) * 3)


def test_a_run_gives_its_model_too(trained):
  workdir, _ = trained
  origin = json.loads((workdir / "config.json").read_text())
  config = load_config(FILE, [f"init_from={workdir}", "model.drop_path=0.1"])
  model = config.model.to_dict()
  changed = {"zero_init_classifier": True, "drop_path": 0.1}
  assert json.loads(json.dumps(model)) == origin["model"] | changed
  assert config.data.image_size == origin["data"]["image_size"]
  assert list(config.data.mean) == origin["data"]["mean"]
  # What is learned from is the config's own.
  assert (config.data.name, config.steps) == ("folder", "10 epochs")


def test_a_file_says_what_it_expects(tmp_path):
  said = dict(input_size=[3, 192, 192], crop_pct=0.9, mean=[0.5] * 3)
  said |= dict(std=[0.25] * 3, interpolation="bilinear", crop_mode="center")
  (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
  path = tmp_path / "model.safetensors"
  path.touch()
  words = [f"init_from={path}", "model.name=halonet26t"]
  data = load_config(FILE, words).data
  assert (data.image_size, data.crop_fraction) == (192, 0.9)
  assert (data.std, data.interpolation) == ((0.25,) * 3, "bilinear")


@pytest.mark.parametrize(
  "overrides, message",
  [
    ((), "config.init_from is None and config.like_weights True; name the"),
    (("init_from=nowhere",), "nowhere: it is no workdir .* no config.json"),
    (
      ("init_from=timm", "model.name=halonet_h0"),
      "config.model.name is halonet_h0; timm has weights of halonet26t",
    ),
  ],
)
def test_slips(overrides, message):
  with pytest.raises(UsageError, match=message) as caught:
    load_config(FILE, overrides)
  assert "\n" not in str(caught.value)
