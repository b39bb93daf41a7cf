"""The exact number of parameters of every registered model."""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import halonet

ROOT = pathlib.Path(__file__).parents[2]

# Exact, from the specification counted by hand; in millions they round to the
# counts of Table 2 (H3's published 12.3 is a slip for its published d_f).
PARAMETERS = {
  "halonet_h0": 5_485_352,
  "halonet_h1": 8_085_512,
  "halonet_h2": 9_384_488,
  "halonet_h3": 11_817_928,
  "halonet_h4": 19_079_944,
  "halonet_h5": 30_679_016,
  "halonet_h6": 43_417_096,
  "halonet_h7": 67_393_288,
}
MILLIONS = (5.49, 8.09, 9.38, 11.82, 19.08, 30.68, 43.42, 67.39)


def abstract_variables(model, shape=(1, 64, 64, 3)):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# timm's by timm, the ResNets by torchvision; the others follow from these and
# from the H models by the layers that differ.
OTHERS = {
  # Table 4: about 67 M each, says the paper; docs/departures.md says what else
  # would come nearer.
  "halonet_h7_conv1": 67_302_064,
  "halonet_h7_conv12": 66_942_640,
  "halonet_h7_conv123": 54_535_856,
  # Table 6: 85, 85, 87 M.
  "halonet_h4_base128": 85_138_760,
  "halonet_h4_base128_patch4": 85_132_424,
  "halonet_h4_base128_conv12": 87_002_280,
  # Table 3: 18.0 and 25.5 M without a gate.
  "halonet50": 18_017_576,
  "halonet50_se": 18_180_320,
  "halonet50_se_silu": 18_180_320,
  "resnet50": 25_557_032,
  "resnet50_se": 25_719_776,
  "resnet50_se_silu": 25_719_776,
  # Without the 16 pairs of tables, each of 21 offsets and two halves of 16.
  "halonet50_absolute": 18_012_200,
  # Table A1: about 30 M each.
  "halonet50_layers98": 29_904_608,
  "halonet50_rv3": 32_038_712,
  "halonet50_rw125": 27_745_432,
  "halonet50_rb65": 29_857_120,
  "halonet50_rqk65": 32_042_080,
  # Table 5.
  "resnet50_se8": 25_875_648,
  "resnet50_se8_halo_b8": 20_962_752,
  "resnet50_se8_halo_b32": 20_971_968,
  "resnet101": 44_549_160,
  "resnet152": 60_192_808,
  "resnet101_se8": 45_151_200,
  "resnet101_se8_halo_b8": 40_238_304,
  # SASA, tables 1, 3 and 6; see test_sasa.py.
  "resnet26": 13_696_552,
  "resnet38": 19_626_792,
  "sasa_resnet26": 10_331_264,
  "sasa_resnet38": 14_173_384,
  "sasa_resnet50": 18_015_504,
  "sasa_resnet26_full": 10_323_200,
  "sasa_resnet38_full": 14_165_320,
  "sasa_resnet50_full": 18_007_440,
  "sasa_resnet50_full_linear": 18_006_672,
  "sasa_resnet50_full_conv": 18_008_208,
  "sasa_resnet50_stages1": 25_483_472,
  "sasa_resnet50_stages12": 25_090_704,
  "sasa_resnet50_stages123": 22_732_752,
  "sasa_resnet50_stages234": 18_089_064,
  "sasa_resnet50_stages34": 18_481_832,
  "sasa_resnet50_stages4": 20_839_784,
  "sasa_resnet50_absolute": 18_012_200,
  "sasa_resnet50_no_position": 18_012_200,
  "sasa_resnet50_no_content": 16_758_032,
  "halonet_h1_timm": 8_100_056,
  "halonet26t": 12_480_288,
  "sehalonet33ts": 13_691_712,
  "halonet50ts": 22_733_280,
  "eca_halonext26ts": 10_756_885,
  "halo2botnet50ts_256": 22_635_360,
  "haloregnetz_b": 11_680_072,
  "lamhalobotnet50ts_256": 22_569_824,
  # The authors' figures have 81 · head_dim more for each block with slide
  # attention: the one-hot kernels, which are no parameters here.
  "slide_swin_tiny": 28_298_146,
  "slide_swin_small": 49_616_050,
  "slide_swin_base": 87_777_056,
  "slide_pvt_tiny": 12_204_958,
  "slide_pvt_small": 22_693_195,
  "slide_pvt_v2_b1": 12_984_670,
  "slide_pvt_v2_b2": 23_570_187,
  # timm's, and for PVT the published 13.2, 24.5, 44.2 and 61.4 M.
  "swin_tiny": 28_288_354,
  "swin_small": 49_606_258,
  "swin_base": 87_768_224,
  "swin_tiny_patch4_window7_224": 28_288_354,
  "swin_small_patch4_window7_224": 49_606_258,
  "swin_base_patch4_window7_224": 87_768_224,
  "pvt_tiny": 13_229_288,
  "pvt_small": 24_485_864,
  "pvt_medium": 44_208_104,
  "pvt_large": 61_369_320,
  "pvt_v2_b0": 3_666_760,
  "pvt_v2_b1": 14_009_000,
  "pvt_v2_b2": 25_362_856,
  "pvt_v2_b3": 45_238_696,
  "pvt_v2_b4": 62_556_072,
  "pvt_v2_b5": 81_956_008,
  # SASA, table 2: 33.4, 25.9 and 22.0 M; see test_retinanet.py.
  "retinanet_resnet50": 33_420_404,
  "retinanet_sasa_resnet50": 25_878_876,
  "retinanet_sasa_resnet50_full": 25_870_812,
  "retinanet_sasa_resnet50_attention": 21_971_484,
  "retinanet_sasa_resnet50_full_attention": 21_963_420,
}


@pytest.mark.parametrize("name", halonet.list_models())
def test_parameter_count(name):
  variables = abstract_variables(halonet.create_model(name))
  assert count(variables["params"]) == (PARAMETERS | OTHERS)[name]


# While tests are collected: later tests register models from outside.
REGISTERED = set(halonet.list_models())


@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
def test_the_pages_have_these_counts(page):
  found = re.findall(
    r"^\| `(\w+)` \| \d+ \| ([\d,]+) \|", (ROOT / page).read_text(), re.M
  )
  assert len(found) >= 10
  if page == "docs/models.md":
    assert {name for name, _ in found} == REGISTERED
  for name, number in found:
    assert int(number.replace(",", "")) == (PARAMETERS | OTHERS)[name], name


def test_no_count_is_of_a_model_that_is_gone():
  assert (PARAMETERS | OTHERS).keys() == REGISTERED
