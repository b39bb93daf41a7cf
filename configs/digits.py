r"""A small HaloNet on scikit-learn's handwritten digits, embedded.

  scripts/train.sh

Test accuracy, of 450 images: 0.98 to 0.995. By Python 3.11 and JAX 0.10.2 it is
0.9933, 0.9822 and 0.9889 with seeds 0, 1 and 2. docs/benchmarks.md has those of
other implementations of the attention, and of Python 3.13, with their commits.

  scripts/train.sh --config=configs/digits.py:sasa --workdir=runs/digits_sasa

trains a narrow SASA: windows of 3×3 pixels, where queries of the HaloNet see
4×4. Test accuracy 0.9822.

  scripts/train.sh --config=configs/digits.py:slide --workdir=runs/digits_slide

trains a narrow Slide-Swin. digits.py:swin is the same with Swin's shifted
windows, and digits.py:swin_halo with HaloNet's attention, in blocks of a pixel
with a halo of 1. A query sees 3×3 pixels in all of them. Test accuracy:
0.9733, 0.9600 and 0.9778 with seed 0; docs/slide.md has more.
"""

import ml_collections

# All have two stages, on maps of 8×8 and 4×4: the images are small.
_RESNET = dict(depths=(2, 2), heads=(4, 4), base_width=32, rb=2.0)
_TRANSFORMER = dict(depths=(2, 2), heads=(2, 4), widths=(32, 64), drop_path=0.1)
_RESNETS = {
  "": dict(name="halonet_h1", block_size=2, halo_size=1, **_RESNET),
  "sasa": dict(name="sasa_resnet26", window_size=3, **_RESNET),
}
_TRANSFORMERS = {
  "slide": dict(name="slide_swin_tiny", operators=("slide",), **_TRANSFORMER),
  "swin": dict(name="swin_tiny", window_size=3, **_TRANSFORMER),
  "swin_halo": dict(
    name="swin_tiny",
    operators=("halo",),
    block_size=1,
    halo_size=1,
    **_TRANSFORMER,
  ),
}
_MODELS = _RESNETS | _TRANSFORMERS
VARIANTS = tuple(_MODELS)
_SGD = dict(
  name="sgd",
  learning_rate=0.4,
  warmup_steps=50,
  weight_decay=5e-4,
)
_ADAMW = dict(
  name="adamw",
  learning_rate=0.004,
  warmup_steps=50,
  weight_decay=0.05,
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in _MODELS:
    known = ", ".join(filter(None, _MODELS))
    raise ValueError(f"{variant!r} is none of {known}")
  return ml_collections.ConfigDict(
    dict(
      seed=0,
      steps=1200,
      batch_size=64,
      model=_MODELS[variant],
      data=dict(
        name="digits",
        image_size=32,
        mean=(0.3, 0.3, 0.3),
        std=(0.35, 0.35, 0.35),
        crop_area=0.6,
        flip=False,
      ),
      optimizer=_ADAMW if variant in _TRANSFORMERS else _SGD,
      label_smoothing=0.1,
      log_every=50,
      eval_every=250,
      checkpoint_every=250,
    )
  )
