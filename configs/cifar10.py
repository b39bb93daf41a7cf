r"""HaloNet, and the networks beside it, on the photographs of CIFAR-10.

  scripts/train.sh --config=configs/cifar10.py --workdir=runs/cifar10

trains a HaloNet of 222,202 parameters for ten epochs, on 50,000 images of 32×32
pixels. Two of its three stages have convolutions, as in table 4 of the paper.
TFDS downloads the images (170 MB). Test accuracy, of 10,000 images: 0.7955 and
0.7881 with seeds 0 and 1, each in 40 minutes of one slow CPU core. By the time
of a step, two such cores need 22 minutes.

  scripts/train.sh --config=configs/cifar10.py:folder \
    --workdir=runs/cifar10 --config.data.data_dir=DIR

reads the same from DIR/train/CLASS/ and DIR/test/CLASS/. Other arguments, each
also as folder_NAME:

  long    a HaloNet of twice the width, with RandAugment, for 80 epochs; not yet
          run
  small, attention, sasa, resnet, slide
          for four epochs, networks with maps of the same sizes, as many blocks
          and nearly as many parameters: HaloNets with convolutions in the first
          stage (88,282) and with attention in all (85,498), SASA (85,114), a
          ResNet (84,646) and Slide (88,996)

The first stage has maps of 16×16 pixels, the others make them 8×8 and 4×4.
configs/sweeps/cifar10.py compares the networks, and parts of them.
"""

import ml_collections

_STEM = dict(depths=(2, 2, 2), stem="cifar", stem_stride=2)
_RESNET = dict(rb=2.0, activation="silu", **_STEM)
_HALONET = dict(name="halonet_h1", block_size=4, halo_size=1, **_RESNET)
_EARLY = dict(operators=("conv", "conv", "halo"), heads=(2, 4, 8))
_SMALL = dict(base_width=16, heads=(1, 2, 4))
_MODELS = {
  "": _HALONET | _EARLY | dict(base_width=24),
  "long": _HALONET | _EARLY | dict(base_width=48),
  "small": _HALONET | _SMALL | dict(operators=("conv", "halo")),
  "attention": _HALONET | _SMALL,
  "sasa": _RESNET | _SMALL | dict(name="sasa_resnet26", window_size=5),
  "resnet": _RESNET | dict(name="resnet26", base_width=12),
  "slide": _STEM
  | dict(
    name="slide_swin_tiny",
    operators=("slide",),
    widths=(12, 24, 48),
    heads=(1, 2, 4),
    drop_path=0.0,
  ),
}
_EPOCHS = {"": 10, "long": 80}
VARIANTS = (
  *_MODELS,
  *("_".join(filter(None, ("folder", name))) for name in _MODELS),
)
_SGD = dict(name="sgd", learning_rate=1.6, weight_decay=5e-4)
_ADAMW = dict(name="adamw", learning_rate=0.016, weight_decay=0.05)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  name = variant.removeprefix("folder").removeprefix("_")
  long = name == "long"
  often = "5 epochs" if long else "1 epochs"
  return ml_collections.ConfigDict(
    dict(
      steps=f"{_EPOCHS.get(name, 4)} epochs",
      batch_size=64,
      model=_MODELS[name],
      data=dict(
        name="folder" if variant.startswith("folder") else "cifar10",
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        crop_area=1.0,
        crop_padding=4,
        randaugment_layers=2 if long else 0,
        randaugment_magnitude=5.0,
      ),
      optimizer=dict(
        warmup_steps="0.5 epochs", **(_ADAMW if name == "slide" else _SGD)
      ),
      label_smoothing=0.1,
      log_every=50,
      eval_every=often,
      checkpoint_every=often,
    )
  )
