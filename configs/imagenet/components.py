r"""What each component brings a HaloNet and a ResNet-50: table 3 of the paper.

  scripts/train.sh --config=configs/imagenet/components.py:halonet50_ls_ra \
    --workdir=gs://BUCKET/halonet50_ls_ra \
    --config.data.data_dir=gs://BUCKET/tfds
  scripts/train.sh --config=configs/imagenet/components.py:resnet50_se_silu \
    --workdir=gs://BUCKET/resnet50_se_silu \
    --config.data.data_dir=gs://BUCKET/tfds

The argument is halonet50 or resnet50, with one of these behind it: ls is label
smoothing, ra RandAugment, se squeeze-and-excitation, silu the activation.
Expected is the paper's top-1 accuracy, in per cent; ours are not yet measured.

  behind it       halonet50  resnet50
                  78.6       77.6
  _ls             79.7       78.1
  _ls_ra          79.9       78.4
  _se             78.6       78.6
  _se_silu        79.0       78.9
  _ls_se          79.7       78.9
  _ls_se_silu     79.9       79.1
  _ls_se_silu_ra  80.5       79.5

A device computes 32 images at a time when there are 128 of them; on N < 128
devices add --config.accumulation_steps=128/N.

The paper does not give the block and the halo of this HaloNet, nor the size of
the images: 8, 3 and 256 (224 for the ResNet) are our choice. What the
hyper-parameters come from is said beside each: "paper" is HaloNet (Vaswani et
al., CVPR 2021), "SASA" is appendix A.2 of its authors' earlier paper
(Ramachandran et al., NeurIPS 2019), "secondary" is what others report of the
paper's training, and the rest is our choice. All rows share them, so that a
difference is that of the component.
"""

import ml_collections

_ROWS = (
  "",
  "_ls",
  "_ls_ra",
  "_se",
  "_se_silu",
  "_ls_se",
  "_ls_se_silu",
  "_ls_se_silu_ra",
)
_SIZES = {"halonet50": 256, "resnet50": 224}
VARIANTS = tuple(f"{network}{row}" for network in _SIZES for row in _ROWS)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  network, *components = variant.split("_")
  size = _SIZES[network]
  layers = [name for name in ("se", "silu") if name in components]
  return ml_collections.ConfigDict(
    dict(
      steps="350 epochs",  # Secondary.
      batch_size=4096,  # SASA.
      model=dict(
        name="_".join([network, *layers]),
        dtype="bfloat16",  # Our choice.
        # SASA has 4096 images on 128 cores; that each core normalised by its
        # own 32 is our reading.
        batch_norm_group=32,
        # Our choice. SASA's 0.9999 is reached by `ema_decay`, which averages
        # the statistics, too; the raw ones follow the raw weights.
        batch_norm_momentum=0.99,
        remat="block",  # Our choice, for the memory.
      ),
      data=dict(
        name="imagenet2012",
        test_split="validation",
        image_size=size,
        # Paper: with or without. How much is our choice.
        randaugment_layers=2 if "ra" in components else 0,
        randaugment_magnitude=6.0,
        # EfficientNet's: the centre, but for a border of 16 pixels.
        crop_fraction=size / (size + 32),
        image_dtype="bfloat16",  # Our choice.
      ),
      optimizer=dict(
        name="sgd",  # SASA, with Nesterov momentum.
        learning_rate=0.1,  # SASA: 1.6 for 4096 images.
        warmup_steps="10 epochs",  # SASA, as the cosine after it.
        momentum=0.9,  # Our choice.
        weight_decay=5e-5,  # Our choice.
      ),
      # Paper: with or without; the amount is secondary.
      label_smoothing=0.1 if "ls" in components else 0.0,
      ema_decay=0.9999,  # SASA.
      log_every=100,
      eval_every="5 epochs",
      checkpoint_every="1 epochs",
    )
  )
