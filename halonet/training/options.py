"""Every field of a training config but those of its task and its model."""

import ml_collections

from halonet.errors import UsageError
from halonet.fields import (
  MOST_BATCH,
  MOST_SIDE,
  MOST_STEPS,
  Duration,
  Field,
)

FIELDS = {
  "seed": Field(
    0,
    "Decides everything random: parameters, order, augmentation.",
    least=0,
    most=2**31 - 1,
  ),
  "steps": Field(
    1000, "Optimizer steps.", kind=Duration, least=1, most=MOST_STEPS
  ),
  "batch_size": Field(
    64, "Images per step, over all devices.", least=1, most=MOST_BATCH
  ),
  "accumulation_steps": Field(
    1,
    "Parts in which a device computes its share of a batch, one after another,"
    " to need less memory.",
    least=1,
    most=MOST_BATCH,  # A part has at least an image.
    changeable=True,
  ),
  "task": Field("classification", "What is learned."),
  "packages": Field(
    (),
    "Python packages to import first, which register operators, models, tasks"
    " or sources.",
    kind=tuple[str, ...],
    changeable=True,
  ),
  "model.name": Field("halonet_h0", "Name of a registered model."),
  "init_from": Field(
    None,
    "Weights to begin with: the workdir of another run, a .safetensors file of"
    " timm's or torchvision's, hf-hub:OWNER/NAME, or \"timm\" for what timm"
    " publishes. A detector may take those of its backbone.",
    kind=str | None,
    example="runs/pretrained",
  ),
  "like_weights": Field(
    False,
    "Takes from init_from what the config does not set: how images are prepared"
    " (image_size, mean, std, crop_fraction, interpolation), and from a run its"
    " model, too.",
  ),
  "data.name": Field(
    "digits",
    'Name of a TFDS data set or of a registered source. "folder" reads a'
    " folder for each split with a folder for each class.",
  ),
  "data.data_dir": Field(
    None,
    "Folder of the data, local or gs://; TFDS's own place if None.",
    kind=str | None,
    example="gs://bucket/data",
    changeable=True,
  ),
  "data.train_split": Field("train", "Split to train on."),
  "data.test_split": Field("test", "Split to evaluate on."),
  "data.image_size": Field(
    None,
    "Side of the model's input in pixels; the model's own if None.",
    kind=int | None,
    least=1,
    most=MOST_SIDE,
    example=224,
  ),
  "data.mean": Field(
    (0.485, 0.456, 0.406),
    "Mean of each channel, after scaling to 0 … 1.",
    length=3,
  ),
  "data.std": Field(
    (0.229, 0.224, 0.225),
    "Standard deviation of each channel, after scaling to 0 … 1.",
    length=3,
    above=0,
  ),
  "data.crop_area": Field(
    0.08,
    "Smallest share of an image that a random crop takes; 1: no crops.",
    above=0,
    most=1,
  ),
  "data.crop_padding": Field(
    0,
    "Pixels of black on every side of a whole resized image, out of which a"
    " random square of image_size is cut; needs crop_area=1.",
    least=0,
    most=MOST_SIDE,
  ),
  "data.flip": Field(True, "Mirrors every other image at random."),
  "data.randaugment_layers": Field(
    0,
    "RandAugment's operations per image; 0: off.",
    least=0,
    most=100,  # RandAugment's own search ends at 3.
  ),
  "data.randaugment_policy": Field(
    "autoaugment",
    "RandAugment's operations: the paper's 14 in AutoAugment's ranges, its 9"
    " that move no pixels, the 16 of the TPU reference models, or timm's 15,"
    " each skipped half of the time.",
    choices=("autoaugment", "color", "tpu", "timm"),
  ),
  "data.randaugment_magnitude": Field(
    10.0,
    "Magnitude of RandAugment's operations; at most 10 unless the policy is"
    " tpu.",
    least=0,
    most=100,  # The scale's full strength is 10; models are published up to 31.
  ),
  "data.randaugment_std": Field(
    0.0,
    "Standard deviation of RandAugment's magnitude.",
    least=0,
    most=100,  # As the magnitude itself.
  ),
  "data.random_erasing": Field(
    0.0,
    "Probability that a random rectangle of an image becomes noise.",
    least=0,
    most=1,
  ),
  "data.crop_fraction": Field(
    1.0,
    "Side of the central square of a test image over its shorter side.",
    above=0,
    most=1,
  ),
  "data.interpolation": Field(
    "bilinear",
    "Filter that resizes whole images and test images.",
    choices=("bilinear", "bicubic"),
  ),
  "data.image_dtype": Field(
    "float32",
    "Type of the images on their way to the devices.",
    choices=("float32", "bfloat16"),
  ),
  "data.skip_corrupt": Field(
    False,
    "Leaves out and counts images that cannot be decoded. Otherwise the first"
    " one ends the run with its file's name.",
    changeable=True,
  ),
  "data.shuffle_buffer": Field(
    10_000,
    "Encoded images held in memory to be shuffled, over all processes.",
    least=1,
    most=10**9,  # More than the largest data sets have.
  ),
  "optimizer.name": Field(
    "sgd", "SGD with Nesterov momentum, or AdamW.", choices=("sgd", "adamw")
  ),
  "optimizer.learning_rate": Field(
    0.1,
    "Peak for 256 images a step, scaled in proportion for other batches. A"
    " linear warm-up leads to it, and a cosine follows.",
    least=0,
  ),
  "optimizer.final_learning_rate_ratio": Field(
    0.0,
    "Learning rate at the end of the cosine over that of the peak.",
    least=0,
    most=1,
  ),
  "optimizer.warmup_steps": Field(
    100, "Steps of the warm-up.", kind=Duration, least=0, most=MOST_STEPS
  ),
  "optimizer.momentum": Field(0.9, "Momentum of SGD.", least=0, below=1),
  "optimizer.weight_decay": Field(
    5e-5,
    "Weight decay of kernels alone; decoupled from the gradient in AdamW.",
    least=0,
  ),
  "optimizer.clip_norm": Field(
    0.0, "Largest norm of the gradients; 0: no clipping.", least=0
  ),
  "ema_decay": Field(
    0.0,
    "Decay of the moving averages of weights and statistics, which are"
    " evaluated beside the raw ones; 0: none.",
    least=0,
    below=1,
  ),
  "log_every": Field(
    50,
    "Steps between lines of progress.",
    kind=Duration,
    least=1,
    most=MOST_STEPS,
    changeable=True,
  ),
  "eval_every": Field(
    500,
    "Steps between evaluations.",
    kind=Duration,
    least=1,
    most=MOST_STEPS,
    changeable=True,
  ),
  "checkpoint_every": Field(
    500,
    "Steps between checkpoints.",
    kind=Duration,
    least=1,
    most=MOST_STEPS,
    changeable=True,
  ),
  "keep_checkpoints": Field(
    3,
    "Latest checkpoints to keep, beside the best one that was evaluated.",
    least=1,
    most=MOST_STEPS,
    changeable=True,
  ),
  "compilation_cache": Field(
    True,
    "Keeps compiled programs on disk for later starts: below ~/.cache/halonet,"
    " or in a workdir on gs://. The environment variable"
    " JAX_COMPILATION_CACHE_DIR names another folder.",
    changeable=True,
  ),
  "profile_steps": Field(
    (),
    "First and last step of a profiler trace, or ().",
    kind=tuple[int, ...],
    least=1,
    most=MOST_STEPS,
    changeable=True,
  ),
}
DURATIONS = tuple(
  name for name, field in FIELDS.items() if field.kind is Duration
)


def check_randaugment(data: ml_collections.ConfigDict) -> None:
  """Raises UsageError if the magnitude is none of the policy's."""
  magnitude, policy = data.randaugment_magnitude, data.randaugment_policy
  if policy != "tpu" and magnitude > 10:
    raise UsageError(
      f"config.data.randaugment_magnitude is {magnitude}; it must be at"
      " most 10, or config.data.randaugment_policy must be tpu"
    )
