"""Fields of configs that earlier versions wrote."""

import pytest

from halonet.models.registry import create_model, model_fields
from halonet.models.upgrade import upgrade

# All fields that a config had, with their defaults.
OLD = dict(
  block_size=8,
  halo_size=3,
  rv=1.0,
  rb=1.0,
  depths=(3, 3, 10, 3),
  heads=(4, 8, 8, 8),
  base_width=64,
  df=None,
  operators=("h",),
  stem="conv7",
  stem_pool=True,
  activation="relu",
  channel_attention="none",
  se_ratio=1 / 16,
  group_width=0,
  qk_ratio=1.0,
  qk_head_dim=None,
  project_first=True,
  inverted=False,
  out_widths=(),
  timm=False,
  window_size=7,
  position="relative",
  content=True,
  mask_padding=True,
  mask_window=False,
  attention_implementation="auto",
  global_size=8,
  zero_init_residual=True,
  drop_path=0.0,
  dropout=0.0,
  batch_norm_group=0,
  batch_norm_momentum=0.9,
  remat="none",
  dtype="float32",
)
TIMM = dict(
  name="halo2botnet50ts_256",
  heads=(8, 8, 8, 4),
  depths=(3, 4, 6, 3),
  rb=4.0,
  stem="tiered",
  stem_pool=False,
  project_first=False,
  timm=True,
  mask_padding=False,
  operators=("c", "ch", "ch", "cg"),
  activation="silu",
)
REGNETZ = dict(
  name="haloregnetz_b",
  heads=(8, 8, 8, 8),
  depths=(2, 6, 12, 2),
  operators=("c", "c", "ccch", "h"),
  out_widths=[48, 96, 192, 288],
  rb=3.0,
  inverted=True,
  stem="conv3",
  stem_pool=False,
  base_width=32,
  activation="silu",
  channel_attention="se",
  se_ratio=0.25,
  group_width=16,
  block_size=7,
  halo_size=2,
  qk_ratio=0.33,
  df=1536,
  project_first=False,
  timm=True,
  mask_padding=False,
)


@pytest.mark.parametrize(
  "old",
  [
    dict(name="halonet_h1", activation="silu"),
    dict(name="halonet_h4_base128_patch4", stem="patch4", stem_pool=False)
    | dict(block_size=8, halo_size=2, base_width=128, rb=4.0)
    | dict(depths=(3, 4, 12, 3), activation="silu"),
    dict(name="sasa_resnet26", operators=("p",), rb=4.0, heads=(8, 8, 8, 8))
    | dict(depths=(1, 2, 4, 1)),
    dict(name="resnet50", operators=("c",), rb=4.0, depths=(3, 4, 6, 3)),
    TIMM,
    REGNETZ,
  ],
  ids=lambda old: old["name"],
)
def test_a_model_of_an_earlier_version_is_the_same_today(old):
  fields = upgrade(OLD | old)
  assert upgrade(fields) == fields
  name = fields.pop("name")
  later = model_fields(name).keys() - fields.keys() - {"num_classes"}
  assert later <= {"rqk", "zero_init_classifier", "stem_width", "downsampling"}
  # Stems were as wide as stage 1.
  assert create_model(name, **fields) == create_model(name, stem_width=None)


def test_changed_fields_are_kept():
  old = OLD | dict(name="halonet_h1", operators=("ch", "p"), window_size=5)
  fields = upgrade(old | dict(attention_implementation="direct"))
  assert fields["operators"] == ("conv,halo", "per_pixel")
  assert (fields["window_size"], fields["block_size"]) == (5, 8)
  create_model(**fields)


@pytest.mark.parametrize(
  "change, words",
  [
    (TIMM | dict(mask_padding=True), "has mask_padding True"),
    (dict(name="halonet_h1", qk_ratio=0.5), "has qk_ratio 0.5"),
    (
      dict(name="halonet_h1", operators=("p", "h"), position="absolute"),
      "position absolute was that of per_pixel alone",
    ),
  ],
)
def test_models_that_are_no_more_are_named(change, words):
  with pytest.raises(ValueError, match=words):
    upgrade(OLD | change)


def test_halos_of_an_earlier_version_had_no_absolute_positions():
  """A field of the first version that they ignored."""
  old = OLD | dict(name="halonet_h1", position="absolute")
  assert upgrade(old)["position"] == "relative"
  new = dict(name="halonet_h1", position="absolute", rqk=1.0)
  assert upgrade(new) == new


@pytest.mark.parametrize(
  "name, operators",
  [
    ("resnet50_se_halo_b8", ("conv", "conv", "conv", "halo")),
    ("resnet101_se", ("conv",)),
  ],
)
def test_models_whose_names_are_gone_are_still_made(name, operators):
  resnet, *_ = name.split("_")
  depths = model_fields(resnet)["depths"].default
  fields = dict(depths=depths, operators=operators, rb=4.0)
  fields |= dict(channel_attention="se_last", se_ratio=1 / 16)
  model = create_model(**upgrade(dict(name=name) | fields))
  assert model == create_model(resnet, **fields)
