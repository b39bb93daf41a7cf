"""timm's weights and logits, without timm.

The logits, losses and gradients are timm's, stored by scripts/parity_timm.py;
the weights that led to them are drawn again here, by name.
"""

import pathlib

import jax
import numpy as np
import pytest

import halonet
from halonet.interop import timm
from halonet.models.timm_models import TIMM_MODELS, TIMM_NAMES
from tests.interop.drawn import (
  CASES,
  FEATURE_CASES,
  GRADIENT_CASES,
  LARGE_CASES,
  draw_images,
  draw_labels,
  draw_state_dict,
  key,
  loss_and_gradients,
  project,
  sample,
)

GOLDEN = np.load(
  pathlib.Path(__file__).parent / "golden" / "timm.npz", allow_pickle=False
)


def make(name, **overrides):
  """A model, and drawn weights by timm's names."""
  model = halonet.create_model(name, **overrides)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), draw_images(1, (64, 64))
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
  shapes = {k: v.shape for k, v in timm.to_timm(zeros, model).items()}
  return model, draw_state_dict(shapes)


@pytest.mark.parametrize("name, size, overrides, _", CASES)
def test_logits_are_timms(name, size, overrides, _):
  model, state_dict = make(name, **overrides)
  variables = timm.from_timm(state_dict, model)
  # Two images were seen by timm; at inference they are independent.
  images = draw_images(2, size)[:1]
  logits = jax.jit(model.apply)(variables, images)
  expected = GOLDEN[key(name, size, "logits")][:1]
  assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name, size, overrides, _", GRADIENT_CASES)
def test_training_is_timms(name, size, overrides, _):
  _, state_dict = make(name, **overrides)
  model = halonet.create_model(name, dtype="float64", **overrides)
  images, labels = draw_images(4, size), draw_labels(4)
  loss, gradients = loss_and_gradients(model, state_dict, images, labels)
  np.testing.assert_allclose(loss, GOLDEN[key(name, size, "loss")], rtol=1e-6)
  names = [k for k in gradients if not k.endswith(STATISTICS)]
  actual = project({k: gradients[k] for k in names})
  expected = GOLDEN[key(name, size, "gradient")]
  error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
  assert error <= 1e-3


@pytest.mark.parametrize(
  "name, size", [case for case in FEATURE_CASES if case[0] == "resnet50"]
)
def test_features_are_timms(name, size):
  model, state_dict = make(name)
  variables = timm.from_timm(state_dict, model)
  features = jax.jit(lambda *x: model.apply(*x, method="features"))(
    variables, draw_images(2, size)[:1]
  )
  for feature in model.spec.feature_info:
    height, width = (-(-side // feature.stride) for side in size)
    assert features[feature.name].shape == (1, height, width, feature.channels)
  actual = sample([features[f"stage{number}"] for number in (1, 2, 3, 4)])
  expected = GOLDEN[key(name, size, "features")]
  assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_there_and_back_is_the_identity(name):
  model, state_dict = make(name)
  again = timm.to_timm(timm.from_timm(state_dict, model), model)
  assert again.keys() == state_dict.keys()
  for k, array in state_dict.items():
    np.testing.assert_array_equal(again[k], array, err_msg=k)
    assert again[k].dtype == array.dtype


def test_every_misfit_is_listed():
  model, state_dict = make("halonet26t")
  state_dict["head.fc.weight"] = state_dict["head.fc.weight"][:10]
  state_dict["stem.other"] = state_dict.pop("stem.conv1.conv.weight")
  with pytest.raises(ValueError, match="3 problems") as caught:
    timm.from_timm(state_dict, model)
  message = str(caught.value)
  assert "missing: stem.conv1.conv.weight" in message
  assert "unexpected: stem.other" in message
  assert "head.fc.weight: (10, 2048), not (1000, 2048)" in message


def test_counters_belong_to_a_batch_norm():
  model, state_dict = make("halonet26t")
  state_dict["other.num_batches_tracked"] = np.zeros((), np.int64)
  with pytest.raises(ValueError, match="unexpected: other.num_batches"):
    timm.from_timm(state_dict, model)


def test_misfits_of_our_variables_are_listed_too():
  model, state_dict = make("halonet26t")
  variables = timm.from_timm(state_dict, model)
  variables["params"]["classifier"]["bias"] = np.zeros(10)
  variables["params"]["other"] = {"scale": np.zeros(3)}
  del variables["params"]["stem1"]
  with pytest.raises(ValueError, match="3 problems") as caught:
    timm.to_timm(variables, model)
  assert "missing: params/stem1/kernel" in str(caught.value)
  assert "unexpected: params/other/scale" in str(caught.value)


def test_what_timm_has_no_place_for_is_not_dropped():
  model = halonet.create_model("halonet26t", channel_attention="se_last")
  with pytest.raises(ValueError, match="no place for .*/se/"):
    timm.from_timm({}, model)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(activation="silu"), "activation is silu, and a plain ResNet's is re"),
    (dict(stem="tiered"), "stem is tiered, and a plain ResNet's is conv7"),
    (dict(stem_pool=False), "stem_pool is False, and a plain ResNet's is True"),
    (
      dict(operators=("conv", "halo"), heads=(1, 1)),
      "operators is .*'halo'.*, and a plain ResNet's is {'conv'}",
    ),
    (dict(channel_attention="se_all"), "no place for .*/se/"),
    (dict(df=64), "no place for params/final/kernel"),
  ],
)
def test_only_plain_resnets_are_timms(fields, message):
  fields = dict(depths=(1, 1), base_width=16) | fields
  with pytest.raises(ValueError, match=message):
    timm.from_timm({}, halonet.create_model("resnet50", **fields))


def test_every_model_of_timms_is_compared():
  assert set(TIMM_NAMES) == {name for name, *_ in (*CASES, *LARGE_CASES)}
  assert TIMM_MODELS.keys() <= {name for name, *_ in CASES}
