r"""Wide HaloNets on ImageNet-21k, to be fine-tuned: table 6 of the paper.

  scripts/train.sh --config=configs/imagenet/imagenet21k.py:base128 \
    --workdir=gs://BUCKET/base128_21k \
    --config.data.data_dir=gs://BUCKET/imagenet21k

with any of these in place of base128; configs/imagenet/finetune.py goes on.

  variant         parameters  what is different
  base128         85 M        H4 with stage widths from 128
  base128_patch4  85 M        its stem projects 4×4 patches
  base128_conv12  87 M        its first two stages are convolutional

The paper gives no accuracy on ImageNet-21k. Ours: not yet measured.

TFDS has no ImageNet-21k (its issue 3414 asks for it), so it is read from a
folder. image-net.org gives one tar file for each class, n01440764.tar and so
on; unpack each into a folder of its name, and move some images of each class
aside to test on (there is no official split):

  gs://BUCKET/imagenet21k/train/n01440764/*.JPEG
  gs://BUCKET/imagenet21k/validation/n01440764/*.JPEG

The number of classes is that of the folders. A device computes 32 images at a
time when there are 128 of them; on N < 128 devices add
--config.accumulation_steps=128/N.

What the hyper-parameters come from is said beside each: "paper" is HaloNet
(Vaswani et al., CVPR 2021), "SASA" is appendix A.2 of its authors' earlier
paper (Ramachandran et al., NeurIPS 2019), and the rest is our choice: the paper
says little about this training.
"""

import ml_collections

VARIANTS = ("base128", "base128_patch4", "base128_conv12")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return ml_collections.ConfigDict(
    dict(
      steps="90 epochs",  # Our choice.
      batch_size=4096,  # SASA; the paper's table times 32 images a core.
      model=dict(
        name=f"halonet_h4_{variant}",
        dtype="bfloat16",  # Our choice.
        # SASA has 4096 images on 128 cores; that each core normalised by its
        # own 32 is our reading.
        batch_norm_group=32,
        # Our choice. SASA's 0.9999 is reached by `ema_decay`, which averages
        # the statistics, too; the raw ones follow the raw weights.
        batch_norm_momentum=0.99,
        drop_path=0.1,  # Our choice: little, with so many images.
        remat="block",  # Our choice, for the memory.
      ),
      data=dict(
        name="folder",
        test_split="validation",
        image_size=256,  # Paper.
        # EfficientNet's: the centre, but for a border of 16 pixels.
        crop_fraction=256 / (256 + 32),
        image_dtype="bfloat16",  # Our choice.
        # Our choice: some of the 14 million files are damaged.
        skip_corrupt=True,
      ),
      optimizer=dict(
        name="sgd",  # SASA, with Nesterov momentum.
        learning_rate=0.1,  # SASA: 1.6 for 4096 images.
        warmup_steps=10_000,  # Our choice; epochs are long here.
        momentum=0.9,  # Our choice.
        weight_decay=5e-5,  # Our choice.
      ),
      label_smoothing=0.1,  # Our choice.
      ema_decay=0.9999,  # SASA.
      log_every=100,
      eval_every="1 epochs",
      checkpoint_every=1000,
    )
  )
