"""Models by name."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import halonet
from halonet.fields import field
from halonet.layers import operators
from halonet.layers.base import Operator
from halonet.models import registry


def test_names_match_patterns():
  family = [f"halonet_h{i}" for i in range(8)]
  assert halonet.list_models("halonet_h?") == family
  assert set(family) <= set(halonet.list_models())
  assert halonet.list_models("nothing*") == []


def test_overrides_reach_the_model():
  model = halonet.create_model("halonet_h4", num_classes=10, block_size=5)
  assert (model.spec.num_classes, model.spec.rb) == (10, 3.0)
  assert model.window == 5 + 2 * 2
  masked = halonet.create_model("halonet_h4", block_size=5, mask_window=True)
  assert masked.window == 1 + 2 * 2


def test_unknown_names_are_answered_with_the_nearest_and_the_list():
  with pytest.raises(ValueError, match="did you mean halonet_h1.*halonet_h7"):
    halonet.create_model("halonet-h1")
  with pytest.raises(ValueError, match="did you mean block_size"):
    halonet.create_model("halonet_h1", blocksize=4)


def test_fields_are_what_create_model_takes():
  fields = registry.model_fields("halonet_h3")
  assert fields["df"].default == 1024 and fields["block_size"].default == 10
  values = {name: field.default for name, field in fields.items()}
  model = halonet.create_model("halonet_h3", **values)
  assert model == halonet.create_model("halonet_h3")


@pytest.mark.parametrize("name", halonet.list_models())
def test_all_fields_of_a_row_are_the_models(name):
  assert (
    registry.get_entry(name).fields.keys() <= registry.model_fields(name).keys()
  )


@pytest.mark.parametrize(
  "name, fields, words",
  [
    (
      "halonet_h1",
      dict(window_size=3),
      r"no field of halonet_h1, window_size; .*known: activation.*"
      r"\(window_size belongs to operator per_pixel, operator window\)",
    ),
    ("resnet50", dict(heads=(2, 2, 2, 2)), "heads; .*operator halo"),
    ("halonet_h0", dict(se_ratio=0.25), "channel_attention se"),
    ("halonet_h0", dict(stem="patch4", stem_pool=False), "stem conv7"),
    ("halonet_h0", dict(operators=("hallo",)), "did you mean halo?"),
    ("halonet_h0", dict(channel_attention="se"), "which follows convolutions"),
  ],
)
def test_fields_that_a_model_ignores_are_refused(name, fields, words):
  with pytest.raises(ValueError, match=words):
    halonet.create_model(name, **fields)


def test_chosen_parts_decide_what_fields_there_are():
  fields = registry.model_fields("halonet_h1", dict(operators=("per_pixel",)))
  assert "window_size" in fields and "block_size" not in fields
  assert fields["operators"].default == ("halo",)  # The name's, all the same.
  mixed = ("per_pixel,halo",)
  fields = registry.model_fields("halonet_h1", dict(operators=mixed))
  assert {"window_size", "block_size"} <= fields.keys()
  assert "direct" in fields["attention_implementation"].choices


class Linear(nn.Module):
  """A host from outside."""

  num_classes: int = 1000
  width: int = field(8, "Width.", least=1)

  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(self.num_classes)(nn.Dense(self.width)(images.mean((1, 2))))


@dataclasses.dataclass(frozen=True)
class Shift(Operator):
  """An operator from outside, without parameters."""

  name = "shift"
  pixels: int = field(1, "Distance of the shift.", least=0)

  def layer(self, block, norm, dtype):
    step = block.stride
    return lambda x: jnp.roll(x, self.pixels, 1)[:, ::step, ::step]

  def window(self, block):
    return 2 * self.pixels + 1


def test_hosts_and_operators_from_outside(monkeypatch):
  monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
  monkeypatch.setattr(operators, "_OPERATORS", dict(operators._OPERATORS))
  halonet.register_model("linear", Linear, 32, width=4)
  assert halonet.create_model("linear", num_classes=3) == Linear(3, 4)
  assert registry.get_entry("linear").image_size == 32
  with pytest.raises(ValueError, match="width is 0; it must be at least 1"):
    halonet.create_model("linear", width=0)
  with pytest.raises(ValueError, match="field of other, wdth; did you mean wi"):
    halonet.register_model("other", Linear, wdth=1)
  with pytest.raises(ValueError, match="already a model linear"):
    halonet.register_model("linear", Linear)
  halonet.register_operator("shift", Shift)
  model = halonet.create_model(
    "resnet26", operators=("conv,shift",), depths=(2,), pixels=3, base_width=8
  )
  images = jnp.ones((1, 32, 32, 3))
  logits, variables = model.init_with_output(jax.random.key(0), images)
  assert logits.shape == (1, 1000) and model.window == 7
  assert "shift_norm" in variables["params"]["stage1_block2"]
  with pytest.raises(ValueError, match="'conv': the name is taken"):
    halonet.register_operator("conv", Shift)


def test_import_is_light():
  code = (
    "import sys, halonet; heavy = {'tensorflow', 'tensorflow_datasets',"
    " 'orbax.checkpoint.v1', 'safetensors', 'huggingface_hub', 'torch',"
    " 'matplotlib', 'sklearn', 'clu', 'PIL'};"
    " print(sorted(heavy & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
