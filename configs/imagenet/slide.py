r"""Slide-Transformers and their hosts from scratch on ImageNet.

  scripts/train.sh --config=configs/imagenet/slide.py:slide_swin_tiny \
    --workdir=gs://BUCKET/slide_swin_tiny \
    --config.data.data_dir=gs://BUCKET/tfds

with any of these in place of slide_swin_tiny. "Expected" is the paper's top-1
accuracy, in per cent; that of a host is from the host's own paper, and was
trained by its own recipe.

  variant           expected  ours
  slide_swin_tiny   82.3      not yet measured
  swin_tiny         81.3      not yet measured
  slide_swin_small  83.7      not yet measured
  swin_small        83.0      not yet measured
  slide_swin_base   84.2      not yet measured
  swin_base         83.5      not yet measured
  slide_pvt_tiny    78.0      not yet measured
  pvt_tiny          75.1      not yet measured
  slide_pvt_small   81.7      not yet measured
  pvt_small         79.8      not yet measured
  slide_pvt_v2_b1   79.5      not yet measured
  pvt_v2_b1         78.7      not yet measured
  slide_pvt_v2_b2   82.7      not yet measured
  pvt_v2_b2         82.0      not yet measured

A device computes 32 images at a time when there are 32 of them; on N < 32
devices add --config.accumulation_steps=32/N.

The recipe is the paper's (Slide-Transformer, Pan et al., CVPR 2023). What it
leaves open is said beside each value: "code" is the authors', which is Swin's
with few changes, and the rest is our choice. Hosts have the same recipe, so
that a difference is that of the attention. PVT's own differs in five epochs of
warm-up, no clipping and repeated augmentation.

The code begins the warm-up at 1/1000 of the peak, not at 0, and counts it as
part of the cosine, which goes on at 0.989 of the peak. It mixes all pairs of a
batch alike, resizes crops bicubically, and squeezes test images into a square
before it crops them. Here every pair is mixed in its own way, and the crop is
of the central square. docs/departures.md has what all recipes here share.
"""

import ml_collections

# Probability of skipping the last block: of Swin and Slide-Swin, code, and of
# PVT, its own code. That of Slide-PVT, its host's, is our choice.
_DROP_PATH = {
  "swin_tiny": 0.2,
  "swin_small": 0.3,
  "swin_base": 0.5,
  "pvt_tiny": 0.1,
  "pvt_small": 0.1,
  "pvt_v2_b1": 0.1,
  "pvt_v2_b2": 0.1,
}
VARIANTS = tuple(
  f"{slide}{host}" for host in _DROP_PATH for slide in ("slide_", "")
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return ml_collections.ConfigDict(
    dict(
      steps="300 epochs",
      # Code: 128 on each of 8 devices. Slide-Swin-B has 64 there; the learning
      # rate is in proportion.
      batch_size=1024,
      model=dict(
        name=variant,
        dtype="bfloat16",  # Our choice.
        drop_path=_DROP_PATH[variant.removeprefix("slide_")],
      ),
      data=dict(
        name="imagenet2012",
        test_split="validation",
        image_size=224,
        # timm's rand-m9-mstd0.5-inc1.
        randaugment_policy="timm",
        randaugment_layers=2,
        randaugment_magnitude=9.0,
        randaugment_std=0.5,
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        crop_fraction=0.875,  # Code.
        interpolation="bicubic",  # Code; of test images.
        image_dtype="bfloat16",  # Our choice.
      ),
      optimizer=dict(
        name="adamw",
        learning_rate=2.5e-4,  # 5e-4 for 512 images.
        warmup_steps="20 epochs",
        final_learning_rate_ratio=0.01,  # Code: 5e-6 for 512 images.
        weight_decay=0.05,
        clip_norm=5.0,
      ),
      label_smoothing=0.1,
      log_every=100,
      eval_every="5 epochs",
      checkpoint_every="1 epochs",
    )
  )
