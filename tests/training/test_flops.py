"""FLOPs: of a model, and of devices."""

import types

import pytest

import halonet
from halonet.training.flops import peak_flops, training_flops


def test_a_resnet_has_its_published_flops():
  # 4.1 billion multiply-adds at 224 (He et al. 2016 count 3.8, with the stride
  # elsewhere); three passes of them, two operations each.
  model = halonet.create_model("resnet50")
  assert training_flops(model, 224) == pytest.approx(6 * 4.1e9, rel=0.05)


def test_masked_keys_are_no_work_of_the_model():
  # Table 1 of SASA: 4.5 billion operations, which the blocks exceed by far.
  model = halonet.create_model("sasa_resnet26")
  assert training_flops(model, 224) == pytest.approx(3 * 4.5e9, rel=0.03)


def test_rematerialisation_is_no_work_of_the_model():
  plain, again = (
    training_flops(halonet.create_model("halonet_h0", remat=remat), 64)
    for remat in ("none", "block")
  )
  assert again == plain


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("cpu", None),
  ],
)
def test_peaks_go_by_the_kind_of_device(kind, peak):
  assert peak_flops(types.SimpleNamespace(device_kind=kind)) == peak
