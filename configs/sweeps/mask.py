r"""With a 7×7 window around each pixel, and without: Figure 5 of the paper.

  python scripts/sweep.py --config=configs/sweeps/mask.py:halonet50_ls \
    --workdir=gs://BUCKET/mask_ls --storage=URL \
    --config.data.data_dir=gs://BUCKET/tfds

and the same with halonet50 and halonet50_ls_ra in place of halonet50_ls:
without the mask the accuracy is higher, the more so with more regularisation.
Not yet run. Blocks of 8 and halos of 3 are the paper's. The text does not say
which regularisations the figure has: no label smoothing, label smoothing, and
RandAugment with it are our choice.
"""

from typing import Any

VARIANTS = ("halonet50", "halonet50_ls", "halonet50_ls_ra")


def get_config(variant: str = "") -> dict[str, Any]:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return dict(
    base=f"configs/imagenet/components.py:{variant}",
    set={},
    grid={"model.mask_window": (False, True)},
    seeds=(0,),
  )
