r"""ResNet-50 on ImageNet by SASA's recipe: the baseline that checks the set-up.

  scripts/train.sh --config=configs/imagenet/resnet50.py \
    --workdir=gs://BUCKET/resnet50 \
    --config.data.data_dir=gs://BUCKET/tfds

Expected top-1 accuracy: 76.9 per cent (SASA, table 1). Ours: not yet measured.
A device computes 32 images at a time when there are 128 of them; on N < 128
devices add --config.accumulation_steps=128/N.

The ResNet-50 of HaloNet's table 3 is configs/imagenet/components.py:resnet50.

"SASA" is appendix A.2 of "Stand-Alone Self-Attention in Vision Models"
(Ramachandran et al., NeurIPS 2019); the rest is our choice.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      steps="130 epochs",  # SASA.
      batch_size=4096,  # SASA.
      model=dict(
        name="resnet50",
        dtype="bfloat16",  # Our choice.
        # SASA has 4096 images on 128 cores; that each core normalised by its
        # own 32 is our reading.
        batch_norm_group=32,
        # Our choice. SASA's 0.9999 is reached by `ema_decay`, which averages
        # the statistics, too; the raw ones follow the raw weights.
        batch_norm_momentum=0.99,
      ),
      data=dict(
        name="imagenet2012",
        test_split="validation",
        image_size=224,  # Our choice, as all that follows: the usual figures.
        crop_fraction=0.875,
        image_dtype="bfloat16",
      ),
      optimizer=dict(
        name="sgd",  # SASA, with Nesterov momentum.
        learning_rate=0.1,  # SASA: 1.6 for 4096 images.
        warmup_steps="10 epochs",  # SASA, as the cosine after it.
        momentum=0.9,  # Our choice.
        weight_decay=1e-4,  # Our choice: that of the first ResNets.
      ),
      label_smoothing=0.0,  # Our choice: SASA names none.
      ema_decay=0.9999,  # SASA.
      log_every=100,
      eval_every="5 epochs",
      checkpoint_every="1 epochs",
    )
  )
