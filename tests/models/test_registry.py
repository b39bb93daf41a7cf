"""Models by name."""

import subprocess
import sys

import pytest

import halonet
from halonet.models import registry


def test_names_match_patterns():
  family = [f"halonet_h{i}" for i in range(8)]
  assert halonet.list_models("halonet_h?") == family
  assert set(family) <= set(halonet.list_models())
  assert halonet.list_models("nothing*") == []


def test_overrides_reach_the_model():
  model = halonet.create_model("halonet_h4", num_classes=10, block_size=5)
  assert (model.spec.num_classes, model.spec.block_size, model.spec.rb) == (
    10,
    5,
    3.0,
  )


def test_unknown_names_are_answered_with_the_nearest_and_the_list():
  with pytest.raises(ValueError, match="did you mean halonet_h1.*halonet_h7"):
    halonet.create_model("halonet-h1")
  with pytest.raises(ValueError, match="did you mean block_size"):
    halonet.create_model("halonet_h1", blocksize=4)


def test_fields_are_what_create_model_takes():
  fields = registry.model_fields("halonet_h3")
  assert fields["df"] == 1024 and fields["block_size"] == 10
  assert halonet.create_model("halonet_h3", **fields) == halonet.create_model(
    "halonet_h3"
  )


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
