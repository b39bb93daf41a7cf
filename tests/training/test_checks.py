"""How a batch must split over devices, parts, groups and pairs."""

import pytest

from halonet.errors import UsageError
from halonet.training.checks import check_devices
from halonet.training.config import load_config


def config(*overrides):
  return load_config("configs/digits.py", overrides)


@pytest.mark.parametrize(
  "overrides, devices",
  [
    (["batch_size=64"], 8),
    (["batch_size=64", "model.batch_norm_group=16"], 8),  # Spans devices.
    (
      [
        "batch_size=64",
        "model.batch_norm_group=4",
        "accumulation_steps=2",
        "data.mixup=0.2",
      ],
      8,
    ),
  ],
)
def test_what_splits_evenly_is_taken(overrides, devices):
  check_devices(config(*overrides), devices)


@pytest.mark.parametrize(
  "overrides, devices, message",
  [
    (["batch_size=60"], 8, "8 devices do not divide evenly; take 56 or 64"),
    (["batch_size=3"], 8, "take 8$"),
    (
      ["batch_size=64", "accumulation_steps=3"],
      8,
      "8 devices × 3 accumulation_steps do not divide evenly; take 48 or 72",
    ),
    (
      ["batch_size=64", "accumulation_steps=2"],
      8,
      "batch_norm_group is 0; with config.accumulation_steps 2 it must divide"
      " the 4 images",
    ),
    (
      ["batch_size=64", "accumulation_steps=2", "model.batch_norm_group=8"],
      8,
      "batch_norm_group is 8; with",
    ),
    (
      ["batch_size=64", "model.batch_norm_group=24"],
      8,
      "batch_norm_group is 24, which does not divide config.batch_size, 64",
    ),
    (["batch_size=24", "data.cutmix=1"], 8, "3 images are computed at once"),
  ],
)
def test_what_does_not_split_is_named(overrides, devices, message):
  with pytest.raises(UsageError, match=message):
    check_devices(config(*overrides), devices)
