r"""Wide HaloNets on ImageNet-21k, to be fine-tuned: table 6 of the paper.

  scripts/train.sh --config=configs/imagenet/imagenet21k.py:base128 \
    --workdir=gs://BUCKET/base128_21k \
    --config.data.data_dir=gs://BUCKET/imagenet21k

with any of these in place of base128; configs/imagenet/finetune.py goes on.

  variant         parameters  what is different
  base128         85 M        H4 with stage widths from 128, four blocks in
                              stage 2, r_b = 4 and no last 1×1 convolution
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

The recipe is the paper's (HaloNet, Vaswani et al., CVPR 2021, section 4.5 and
appendix E): no label smoothing, averaging or other regularisation is named but
weight decay, so there is none. What else it leaves open is said beside each
value: "SASA" is appendix A.2 of its authors' earlier paper (Ramachandran et
al., NeurIPS 2019), and the rest is our choice.
"""

import ml_collections

VARIANTS = ("base128", "base128_patch4", "base128_conv12")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return ml_collections.ConfigDict(
    dict(
      steps="90 epochs",
      batch_size=4096,
      model=dict(
        name=f"halonet_h4_{variant}",
        dtype="bfloat16",  # Our choice.
        # SASA has 4096 images on 128 cores; that each core normalised by its
        # own 32 is our reading.
        batch_norm_group=32,
        batch_norm_momentum=0.99,  # Our choice.
      ),
      data=dict(
        name="folder",
        test_split="validation",
        image_size=256,
        # EfficientNet's: the centre, but for a border of 16 pixels.
        crop_fraction=256 / (256 + 32),
        image_dtype="bfloat16",  # Our choice.
        # Our choice: some of the 14 million files are damaged.
        skip_corrupt=True,
      ),
      optimizer=dict(
        name="sgd",  # With Nesterov momentum.
        # The paper's "base learning rate". That it is for 256 images is our
        # reading: so it is in the authors' code base.
        learning_rate=0.16,
        warmup_steps="2 epochs",  # A cosine follows.
        momentum=0.9,  # Our choice.
        weight_decay=8e-5,
      ),
      label_smoothing=0.0,
      log_every=100,
      eval_every="1 epochs",
      checkpoint_every=1000,
    )
  )
