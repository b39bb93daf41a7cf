r"""Backbones of the detectors in table 5 of the paper, on ImageNet.

  scripts/train.sh --config=configs/imagenet/backbones.py:resnet50_se8 \
    --workdir=gs://BUCKET/resnet50_se8 \
    --config.data.data_dir=gs://BUCKET/tfds

with any of these in place of resnet50_se8. Squeeze-and-excitation, an eighth as
wide, follows the 3×3 convolution of a block; local attention takes the place of
the last stage's three. The paper gives no accuracy on ImageNet. Ours: not yet
measured.

  resnet50_se8           table 5, row 2
  resnet50_se8_halo_b8   row 3: blocks of 8, halos of 3
  resnet50_se8_halo_b32  row 4: blocks of 32, halos of 3
  resnet101_se8          row 5
  resnet101_se8_halo_b8  row 6

A device computes 32 images at a time when there are 128 of them; on N < 128
devices add --config.accumulation_steps=128/N.

The recipe is the paper's (HaloNet, Vaswani et al., CVPR 2021, section 4.6 and
appendix C.4): that of configs/imagenet/halonet.py but for the size, the
magnitude, the stochastic depth, and dropout, which it does not name here. What
it leaves open is said beside each value, as there.
"""

import ml_collections

VARIANTS = (
  "resnet50_se8",
  "resnet50_se8_halo_b8",
  "resnet50_se8_halo_b32",
  "resnet101_se8",
  "resnet101_se8_halo_b8",
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return ml_collections.ConfigDict(
    dict(
      steps="350 epochs",
      batch_size=4096,
      model=dict(
        name=variant,
        dtype="bfloat16",  # Our choice.
        # SASA has 4096 images on 128 cores; that each core normalised by its
        # own 32 is our reading.
        batch_norm_group=32,
        # Our choice. SASA's 0.9999 is reached by `ema_decay`, which averages
        # the statistics, too; the raw ones follow the raw weights.
        batch_norm_momentum=0.99,
        drop_path=0.1,
        remat="block",  # Our choice, for the memory.
      ),
      data=dict(
        name="imagenet2012",
        test_split="validation",
        image_size=512,
        randaugment_policy="tpu",
        randaugment_layers=2,  # Our choice, the usual number.
        randaugment_magnitude=15.0,
        # EfficientNet's: the centre, but for a border of 16 pixels.
        crop_fraction=512 / (512 + 32),
        image_dtype="bfloat16",  # Our choice.
      ),
      optimizer=dict(
        name="sgd",  # With Nesterov momentum.
        learning_rate=0.1,  # 1.6 for 4096 images.
        warmup_steps="10 epochs",
        final_learning_rate_ratio=1 / 128,
        momentum=0.9,  # Our choice.
        weight_decay=2e-5,
      ),
      label_smoothing=0.1,  # The amount is our choice, the usual one.
      ema_decay=0.9999,  # SASA.
      log_every=100,
      eval_every="5 epochs",
      checkpoint_every="1 epochs",
    )
  )
