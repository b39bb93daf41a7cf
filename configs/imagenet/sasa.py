r"""SASA on ImageNet: tables 1 and 3 to 7 of its paper, and its ResNets.

  scripts/train.sh --config=configs/imagenet/sasa.py:sasa_resnet50 \
    --workdir=gs://BUCKET/sasa_resnet50 \
    --config.data.data_dir=gs://BUCKET/tfds

The argument is one of these models; resnet50 is the one to check a set-up with.
(That of HaloNet's table 3 is configs/imagenet/components.py:resnet50.) Expected
is the paper's top-1 accuracy, in per cent; ours are not yet measured.

                            top-1  its table
  resnet26                   74.5  1
  resnet38                   76.2  1
  resnet50                   76.9  1, and 79.5 in 3
  sasa_resnet26              75.8  1: a convolution for a stem
  sasa_resnet38              77.1  1
  sasa_resnet50              77.4  1, 4 and 6, and 80.2 in 3 and 5
  sasa_resnet26_full         74.8  1: a stem of attention, too
  sasa_resnet38_full         76.9  1
  sasa_resnet50_full         77.6  1 and 7
  sasa_resnet50_stages1      79.7  3: attention in these stages alone
  sasa_resnet50_stages12     79.6  3
  sasa_resnet50_stages123    79.9  3
  sasa_resnet50_stages234    80.7  3
  sasa_resnet50_stages34     80.7  3
  sasa_resnet50_stages4      80.2  3
  sasa_resnet50_no_position  77.6  5
  sasa_resnet50_absolute     78.2  5
  sasa_resnet50_no_content   76.9  6: logits from the relative positions alone
  sasa_resnet50_full_linear  76.2  7: values of the stem
  sasa_resnet50_full_conv    77.2  7

Tables 3 and 5 are of a random 4 % of the training images, held back:
--config.data.train_split='train[:96%]' --config.data.test_split='train[96%:]'.
TFDS shuffles the images when it prepares them, so that a slice is random. Table
4, 76.4, 77.2, 77.4, 77.7 and 77.6 for windows of 3, 5, 7, 9 and 11 pixels, is
sasa_resnet50 with --config.model.window_size=3 and so on; figure 5 scales
--config.model.base_width. configs/sweeps/window.py and
configs/sweeps/sasa_width.py run them as grids.

A device computes 32 images at a time when there are 128 of them; on N < 128
devices add --config.accumulation_steps=128/N.

"SASA" is appendix A.2 of "Stand-Alone Self-Attention in Vision Models"
(Ramachandran et al., NeurIPS 2019); the rest is our choice.
"""

import ml_collections

_ABOUT_50 = (  # Tables 3 and 5 to 7.
  "stages1",
  "stages12",
  "stages123",
  "stages234",
  "stages34",
  "stages4",
  "absolute",
  "no_position",
  "no_content",
  "full_linear",
  "full_conv",
)
VARIANTS = (
  "resnet26",
  "resnet38",
  "resnet50",
  *(
    f"sasa_resnet{layers}{stem}"
    for layers in (26, 38, 50)
    for stem in ("", "_full")
  ),
  *(f"sasa_resnet50_{name}" for name in _ABOUT_50),
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return ml_collections.ConfigDict(
    dict(
      steps="130 epochs",  # SASA.
      batch_size=4096,  # SASA.
      model=dict(
        name=variant,
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
