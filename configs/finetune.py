r"""Fine-tunes trained weights on images of one's own.

  scripts/train.sh --config=configs/finetune.py:halonet26t \
    --workdir=runs/mine --config.data.data_dir=DIR

reads the photographs in DIR/train/CLASS/ and DIR/val/CLASS/. It begins with the
weights that timm publishes for one of its models, the argument; halonet26t is
one of the small ones. Without an argument it begins with a run of this
library's, and takes its model:

  scripts/train.sh --config=configs/finetune.py --workdir=runs/mine \
    --config.data.data_dir=DIR --config.init_from=runs/pretrained

The size of the images, their mean and standard deviation, and the crop are
those of the weights. The classifier is new and starts at zero. For a data set
of TFDS, add --config.data.name=cifar10 --config.data.test_split=test.

The hyperparameters are our choice, and nothing was tuned: ten epochs with a
small learning rate, and little augmentation beside crops and flips. Accuracies
are not yet measured.
"""

import ml_collections

VARIANTS = (
  "halonet26t",
  "sehalonet33ts",
  "halonet50ts",
  "eca_halonext26ts",
  "lamhalobotnet50ts_256",
  "halo2botnet50ts_256",
  "haloregnetz_b",
  "swin_tiny_patch4_window7_224",
  "swin_small_patch4_window7_224",
  "swin_base_patch4_window7_224",
  "pvt_v2_b0",
  "pvt_v2_b1",
  "pvt_v2_b2",
  "pvt_v2_b3",
  "pvt_v2_b4",
  "pvt_v2_b5",
  "resnet50",
  "resnet101",
  "resnet152",
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in ("", *VARIANTS):
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  config = ml_collections.ConfigDict(
    dict(
      steps="10 epochs",
      batch_size=32,
      like_weights=True,
      model=dict(zero_init_classifier=True),
      data=dict(
        name="folder",
        test_split="val",
        # Crops of the usual 0.08 may miss what a photograph is of.
        crop_area=0.35,
      ),
      optimizer=dict(
        name="sgd",
        learning_rate=0.05,  # 0.006 for 32 images.
        warmup_steps="1 epochs",
        weight_decay=0.0,
        clip_norm=1.0,
      ),
      label_smoothing=0.1,
      log_every=10,
      eval_every="1 epochs",
      checkpoint_every="1 epochs",
    )
  )
  if variant:
    config.init_from = "timm"
    config.model.name = variant
  return config
