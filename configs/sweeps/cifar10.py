r"""The papers' questions in small, on CIFAR-10.

  python scripts/sweep.py --config=configs/sweeps/cifar10.py:window \
    --workdir=runs/cifar10_window

TFDS downloads the images. For those of a folder add
--config.data.name=folder --config.data.data_dir=DIR. The networks are those
of configs/cifar10.py that have 84,646 to 88,996 parameters. "networks" trains
for four epochs and all others for two, so that a trial takes some minutes of
one CPU core. Each point has three seeds where nothing else is said. The
arguments:

  networks      HaloNet with and without convolutions in its first stage, SASA,
                ResNet and Slide, with about as many parameters
  window        blocks of 2, 4 and 8, halos of 0, 1 and 2 (HaloNet, figure 7)
  mask          with a window around each pixel, and without (figure 5)
  position      relative, absolute, or none (SASA, table 5)
  downsampling  HaloNet's own, or a pool as in SASA
  early         convolutions in no, the first, and the first two stages, as in
                table 4
  components, components_resnet
                label smoothing, RandAugment, squeeze-and-excitation and SiLU,
                all combinations, with one seed each (table 3)

docs/evidence.md has what came out, and what is not yet run.
"""

from typing import Any

_SHORT = {"steps": "2 epochs", "eval_every": "2 epochs"}
_COMPONENTS = {
  "label_smoothing": (0.0, 0.1),
  "data.randaugment_layers": (0, 2),
  "model.channel_attention": ("none", "se_all"),
  "model.activation": ("relu", "silu"),
}
_SWEEPS = {
  "networks": dict(
    base=tuple(
      f"configs/cifar10.py:{network}"
      for network in ("small", "attention", "sasa", "resnet", "slide")
    ),
    set={},
  ),
  "window": dict(
    grid={"model.block_size": (2, 4, 8), "model.halo_size": (0, 1, 2)}
  ),
  "mask": dict(
    grid={"model.mask_window": (False, True), "model.halo_size": (1, 2)}
  ),
  "position": dict(grid={"model.position": ("relative", "absolute", "none")}),
  "downsampling": dict(grid={"model.downsampling": ("attention", "pool")}),
  "early": dict(
    grid={
      "model.operators": (
        ("halo",),
        ("conv", "halo"),
        ("conv", "conv", "halo"),
      )
    }
  ),
  "components": dict(grid=_COMPONENTS, seeds=(0,)),
  "components_resnet": dict(
    base="configs/cifar10.py:resnet", grid=_COMPONENTS, seeds=(0,)
  ),
}
VARIANTS = tuple(_SWEEPS)


def get_config(variant: str = "window") -> dict[str, Any]:
  if variant not in _SWEEPS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  attention = "configs/cifar10.py:attention"
  common = dict(base=attention, set=_SHORT, grid={}, seeds=(0, 1, 2))
  return common | _SWEEPS[variant]
