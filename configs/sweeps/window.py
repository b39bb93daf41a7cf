r"""Accuracy against the window of the attention: Figure 7 of the paper.

  python scripts/sweep.py --config=configs/sweeps/window.py

trains the embedded digits with 2 blocks × 2 halos × 1 seed, in 1 min 52 s on
two CPU cores: test accuracy 0.9333, 0.9511, 0.9444 and 0.9511. They show how it
is done and little of the paper's question: the maps are 8×8 and 4×4 pixels.

  python scripts/sweep.py --config=configs/sweeps/window.py:imagenet \
    --workdir=gs://BUCKET/window --storage=URL \
    --config.data.data_dir=gs://BUCKET/tfds

is the paper's question, on ImageNet. Not yet run. The model and the recipe are
the paper's, the first row of its table 3. The text of the paper names only some
of the figure's points, such as (4, 1) and (8, 0); blocks of 4, 8 and 16 and
halos of 0 to 4 are our choice. Each of the 15 trials is a training of 150
epochs. A TPU VM of one host trains one of them at a time; the same command on
more of them shares them.

  python scripts/sweep.py --config=configs/sweeps/window.py:sasa \
    --workdir=runs/window_sasa

is the question of SASA's table 4, on the digits: windows of 3, 5 and 7 pixels
around each one, in 1 min 56 s; test accuracy 0.9489, 0.9444 and 0.9667.
window.py:sasa_imagenet is the table itself, with the options of the command
above. Not yet run.

window.py:slide and window.py:slide_imagenet ask the same of Slide-Transformer,
on the digits and on ImageNet. The paper's window is 3; 5 and 7 are our choice.
On the digits: test accuracy 0.6844, 0.6800 and 0.7044, as 150 steps are few for
this model. The other is not yet run.

A sweep's file holds
  base    the config that is trained, as --config of scripts/train.sh takes it,
          or a tuple of several
  set     fields of it that have another value in all trials
  grid    fields of it, each with the values that are combined
  seeds   values of its field seed: repetitions, for mean and spread
"""

from typing import Any

# The accuracy is not that of the whole training.
_SHORT = {
  "steps": 150,
  "eval_every": 150,
  "checkpoint_every": 50,
  "log_every": 25,
}
_WINDOW = {
  "digits": dict(
    base="configs/digits.py",
    set=_SHORT,
    grid={"model.block_size": (2, 4), "model.halo_size": (0, 1)},
    seeds=(0,),
  ),
  "imagenet": dict(
    base="configs/imagenet/components.py:halonet50",
    set={},
    grid={"model.block_size": (4, 8, 16), "model.halo_size": (0, 1, 2, 3, 4)},
    seeds=(0,),
  ),
  "sasa": dict(
    base="configs/digits.py:sasa",
    set=_SHORT,
    grid={"model.window_size": (3, 5, 7)},
    seeds=(0,),
  ),
  "sasa_imagenet": dict(
    base="configs/imagenet/sasa.py:sasa_resnet50",
    set={},
    grid={"model.window_size": (3, 5, 7, 9, 11)},
    seeds=(0,),
  ),
  "slide": dict(
    base="configs/digits.py:slide",
    set=_SHORT,
    grid={"model.slide_window": (3, 5, 7)},
    seeds=(0,),
  ),
  "slide_imagenet": dict(
    base="configs/imagenet/slide.py:slide_swin_tiny",
    set={},
    grid={"model.slide_window": (3, 5, 7)},
    seeds=(0,),
  ),
}
VARIANTS = tuple(_WINDOW)


def get_config(variant: str = "digits") -> dict[str, Any]:
  if variant not in _WINDOW:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  return _WINDOW[variant]
