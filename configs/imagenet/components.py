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

Two more tables of the appendix belong to this study: absolute positions in
place of relative ones, against the first row (section F), and the five ways to
enlarge the HaloNet of the last row to about 30 M parameters (table A1).

  halonet50_absolute  77.5  sinusoids in place of relative positions
  halonet50_layers98  81.4  98 layers in place of 50
  halonet50_rv3       81.0  values three times as wide
  halonet50_rw125     80.9  stages 1.25 times as wide
  halonet50_rb65      80.6  r_b of 6.5 in place of 4
  halonet50_rqk65     80.3  queries and keys 6.5 times as wide

A device computes 32 images at a time when there are 128 of them; on N < 128
devices add --config.accumulation_steps=128/N.

The recipe is the paper's (HaloNet, Vaswani et al., CVPR 2021, section 4.2 and
appendix C.1). What it leaves open is said beside each value: "H0-H7" is its
recipe for those models, "SASA" is appendix A.2 of its authors' earlier paper
(Ramachandran et al., NeurIPS 2019), and the rest is our choice. All rows share
these, so that a difference is that of the component.
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
_ENLARGED = ("layers98", "rv3", "rw125", "rb65", "rqk65")
VARIANTS = (
  *(
    f"{network}{row}" for network in ("halonet50", "resnet50") for row in _ROWS
  ),
  "halonet50_absolute",
  *(f"halonet50_{way}" for way in _ENLARGED),
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
  network, *components = variant.split("_")
  layers = [name for name in components if name not in ("ls", "ra")]
  if components and components[0] in _ENLARGED:
    components = ["ls", "ra"]  # These models have se and silu.
  augmented = "ra" in components
  return ml_collections.ConfigDict(
    dict(
      steps="150 epochs",
      batch_size=4096,  # H0-H7.
      model=dict(
        name="_".join([network, *layers]),
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
        image_size=256,
        randaugment_policy="tpu",
        # Two operations are our choice, the usual number.
        randaugment_layers=2 if augmented else 0,
        randaugment_magnitude=10.0,
        # EfficientNet's: the centre, but for a border of 16 pixels.
        crop_fraction=256 / (256 + 32),
        image_dtype="bfloat16",  # Our choice.
      ),
      optimizer=dict(
        name="sgd",  # H0-H7, with Nesterov momentum.
        learning_rate=0.1,
        warmup_steps="10 epochs",  # H0-H7, as the cosine after it.
        momentum=0.9,  # Our choice.
        weight_decay=4e-5 if augmented else 8e-5,
      ),
      # The amount is our choice, the usual one.
      label_smoothing=0.1 if "ls" in components else 0.0,
      ema_decay=0.9999,  # SASA.
      log_every=100,
      eval_every="5 epochs",
      checkpoint_every="1 epochs",
    )
  )
