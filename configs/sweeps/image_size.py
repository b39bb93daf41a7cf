r"""Accuracy against the size of the images: Figure 6 of the paper.

  python scripts/sweep.py --config=configs/sweeps/image_size.py:halonet50 \
    --workdir=gs://BUCKET/image_size_halonet50 --storage=URL \
    --config.data.data_dir=gs://BUCKET/tfds

and the same with resnet50 in place of halonet50: the gap between the two stays
as the images grow. Not yet run. Model and recipe are those of the first row of
table 3. The text of the paper gives neither the sizes nor the block and the
halo at each of them: four sizes with blocks of 8 and halos of 3 are our choice.
The test crop keeps its share of the image.
"""

from typing import Any

VARIANTS = ("halonet50", "resnet50")


def get_config(variant: str = "") -> dict[str, Any]:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return dict(
    base=f"configs/imagenet/components.py:{variant}",
    set={},
    grid={"data.image_size": (128, 256, 384, 512)},
    seeds=(0,),
  )
