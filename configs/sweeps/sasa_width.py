r"""Accuracy against the width of the network: Figure 5 of SASA's paper.

  python scripts/sweep.py --config=configs/sweeps/sasa_width.py:sasa_resnet50 \
    --workdir=gs://BUCKET/width_sasa_resnet50 --storage=URL \
    --config.data.data_dir=gs://BUCKET/tfds

and the same with sasa_resnet50_full and resnet50 in place of sasa_resnet50. Not
yet run. All layers scale with the base width, 64 in a ResNet-50. The text gives
no factors: a half to one and a half are our choice.
"""

from typing import Any

VARIANTS = ("sasa_resnet50", "sasa_resnet50_full", "resnet50")


def get_config(variant: str = "") -> dict[str, Any]:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return dict(
    base=f"configs/imagenet/sasa.py:{variant}",
    set={},
    grid={"model.base_width": (32, 48, 64, 80, 96)},
    seeds=(0,),
  )
