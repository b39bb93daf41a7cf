"""RandAugment (Cubuk et al. 2020): a few operations on an image, at random.

Four policies say which operations there are and what a magnitude means. All
choices follow from a seed; no random state is kept.

Every pass over the pixels takes time, and so does every node of TensorFlow's
graph, executed or not. XLA therefore compiles all operations of the policy and
the choice among them into one node, once for each image size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from halonet.data import randaugment_bicubic as bicubic
from halonet.data import randaugment_operations as do
from halonet.data.runtime import tf

# Magnitude at which the arguments in the tables below hold.
FULL_MAGNITUDE = 10.0


def randaugment(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  flip: tf.Tensor,
  policy: str = "autoaugment",
  layers: int,
  magnitude: float,
  magnitude_std: float,
) -> tf.Tensor:
  """Applies `layers` operations, each drawn from the policy's.

  Args:
    image: uint8, or float32 of 0 … 255, `[height, width, 3]`.
    seed: two int32 numbers; the same seed gives the same operations.
    flip: whether to mirror the image first, a boolean scalar.
    policy: a name in `POLICIES`.
    layers: operations in a row, with repetition.
    magnitude: their strength, from 0 to the policy's `most`.
    magnitude_std: standard deviation of normal noise on the magnitude, drawn
      for each operation; the sum is clipped to 0 … `most`.

  Returns:
    uint8 `[height, width, 3]`.
  """
  choices, arguments = draw(
    seed,
    policy=policy,
    layers=layers,
    magnitude=magnitude,
    magnitude_std=magnitude_std,
  )
  places = None
  if "cutout" in POLICIES[policy].operations:
    places = draw_places(seed, layers=layers)
  augmented = apply(image, flip, choices, arguments, places, policy=policy)
  return tf.ensure_shape(augmented, image.shape)


def draw(
  seed: tf.Tensor,
  *,
  policy: str = "autoaugment",
  layers: int,
  magnitude: float,
  magnitude_std: float,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Draws an image's operations; the arguments are those of `randaugment`.

  Returns:
    Their indices in the policy's operations, int32 `[layers]`, and their
    arguments, float32 `[layers]`.
  """
  operations, probability, most, whole, dtype = POLICIES[policy]
  seeds = tf.random.experimental.stateless_split(seed, 2)
  drawn = tf.random.stateless_uniform([2, layers], seeds[0])
  kinds = len(operations) - (probability < 1)
  choices = tf.cast(drawn[0] * (kinds / probability), tf.int32)
  choices = tf.minimum(choices, len(operations) - 1)
  strengths = tf.fill([layers], tf.constant(magnitude / FULL_MAGNITUDE, dtype))
  if magnitude_std:
    noise = tf.random.stateless_normal([layers], seeds[1])
    strengths += magnitude_std / FULL_MAGNITUDE * tf.cast(noise, dtype)
  strengths = tf.clip_by_value(strengths, 0.0, most / FULL_MAGNITUDE)
  table = np.array([row[1:] for row in operations.values()], dtype)
  rest, up, down = tf.unstack(tf.gather(table, choices), axis=1)
  greatest = tf.where(drawn[1] < 0.5, down, up)
  # Not compiled: XLA would fuse product and sum on some machines only.
  arguments = rest + strengths * (greatest - rest)
  if whole:
    cut = tf.gather([name in whole for name in operations], choices)
    arguments = tf.where(cut, tf.floor(arguments), arguments)
  return choices, tf.cast(arguments, tf.float32)


def draw_places(seed: tf.Tensor, *, layers: int) -> tf.Tensor:
  """Draws where Cutout takes place, uniform in 0 … 1, float32 `[layers, 2]`."""
  # The first two seeds are those of `draw`.
  seeds = tf.random.experimental.stateless_split(seed, 3)
  return tf.random.stateless_uniform([layers, 2], seeds[2])


@functools.partial(tf.function, jit_compile=True, autograph=False)
def apply(
  image: tf.Tensor,
  flip: tf.Tensor,
  choices: tf.Tensor,
  arguments: tf.Tensor,
  places: tf.Tensor | None = None,
  *,
  policy: str = "autoaugment",
) -> tf.Tensor:
  """Rounds an image, mirrors it if `flip` holds, and applies operations.

  Args:
    image: uint8, or float32 of 0 … 255, `[height, width, 3]`.
    flip: a boolean scalar.
    choices: indices in the policy's operations, int32 `[layers]`.
    arguments: one number for each of them, float32 `[layers]`.
    places: two numbers of 0 … 1 for each, which Cutout needs, float32
      `[layers, 2]`; not for a policy without it.
    policy: a name in `POLICIES`.

  Returns:
    uint8 `[height, width, 3]`.
  """
  levels = tf.cast(tf.cast(image, tf.float32) + 0.5, tf.int32)
  pixels = do.join(tf.unstack(levels, axis=-1))
  pixels = tf.cond(flip, lambda: tf.reverse(pixels, [1]), lambda: pixels)

  for layer in range(choices.shape[0]):
    branches = []
    for operation, *_ in POLICIES[policy].operations.values():
      given = [pixels, arguments[layer]]
      if operation is do.cutout:
        given.append(places[layer])
      branches.append(functools.partial(operation, *given))
    pixels = tf.switch_case(choices[layer], branches)
  return tf.bitcast(pixels, tf.uint8)[:, :, :3]


# An operation with its argument at magnitude 0, and at `FULL_MAGNITUDE` in both
# directions. Operations of one direction repeat it.
Operation = tuple[Callable[..., tf.Tensor], float, float, float]

# The 14 operations of the paper. The ranges are those of AutoAugment (Cubuk et
# al. 2019, table 6).
OPERATIONS: dict[str, Operation] = {
  "identity": (lambda pixels, _: tf.identity(pixels), 0, 0, 0),
  "autocontrast": (do.autocontrast, 0, 0, 0),
  "equalize": (do.equalize, 0, 0, 0),
  "rotate": (do.rotate, 0, 30, -30),
  "solarize": (do.solarize, 256, 0, 0),
  "color": (do.color, 1, 1.9, 0.1),
  "posterize": (do.posterize, 8, 4, 4),
  "contrast": (do.contrast, 1, 1.9, 0.1),
  "brightness": (do.brightness, 1, 1.9, 0.1),
  "sharpness": (do.sharpness, 1, 1.9, 0.1),
  "shear_x": (do.shear_x, 0, 0.3, -0.3),
  "shear_y": (do.shear_y, 0, 0.3, -0.3),
  "translate_x": (do.translate_x, 0, 150 / 331, -150 / 331),
  "translate_y": (do.translate_y, 0, 150 / 331, -150 / 331),
}

# The 16 operations of the TPU reference models. Solarize and Posterize change
# less as the magnitude grows, and the blends are weakest at 5.
TPU_OPERATIONS: dict[str, Operation] = {
  "autocontrast": (do.autocontrast, 0, 0, 0),
  "equalize": (do.equalize, 0, 0, 0),
  "invert": (do.invert, 0, 0, 0),
  "rotate": (do.rotate, 0, 30, -30),
  "posterize": (do.posterize, 0, 4, 4),
  "solarize": (do.solarize, 0, 256, 256),
  "color": (do.color, 0.1, 1.9, 1.9),
  "contrast": (do.contrast, 0.1, 1.9, 1.9),
  "brightness": (do.brightness, 0.1, 1.9, 1.9),
  "sharpness": (do.sharpness, 0.1, 1.9, 1.9),
  "shear_x": (do.shear_x, 0, 0.3, -0.3),
  "shear_y": (do.shear_y, 0, 0.3, -0.3),
  "translate_x": (do.move_left, 0, 100, -100),
  "translate_y": (do.move_up, 0, 100, -100),
  "cutout": (do.cutout, 0, 40, 40),
  "solarize_add": (do.solarize_add, 0, 110, 110),
}

# The 15 operations of timm's "rand-m9-mstd0.5-inc1", by which Swin and
# Slide-Transformer are trained; "inc" is for increasing: all of them change
# more as the magnitude grows. Each has a probability of 1/2, or nothing is done
# in its place. Geometric operations interpolate as the crops of that training.
TIMM_OPERATIONS: dict[str, Operation] = {
  "autocontrast": (do.autocontrast, 0, 0, 0),
  "equalize": (do.equalize, 0, 0, 0),
  "invert": (do.invert, 0, 0, 0),
  "rotate": (bicubic.rotate, 0, 30, -30),
  "posterize": (do.drop_bits, 4, 8, 8),
  "solarize": (
    lambda pixels, lower: do.solarize(pixels, 256 - lower),
    *(0, 256, 256),
  ),
  "solarize_add": (do.solarize_add, 0, 110, 110),
  "color": (do.color, 1, 1.9, 0.1),
  "contrast": (do.contrast, 1, 1.9, 0.1),
  "brightness": (do.brightness, 1, 1.9, 0.1),
  "sharpness": (do.sharpness, 1, 1.9, 0.1),
  "shear_x": (bicubic.shear_x, 0, 0.3, -0.3),
  "shear_y": (bicubic.shear_y, 0, 0.3, -0.3),
  "translate_x": (bicubic.translate_x, 0, 0.45, -0.45),
  "translate_y": (bicubic.translate_y, 0, 0.45, -0.45),
  "identity": (lambda pixels, _: tf.identity(pixels), 0, 0, 0),
}


# Those of the paper's operations that move no pixels: boxes stay right.
COLOR_OPERATIONS: dict[str, Operation] = {
  name: operation
  for name, operation in OPERATIONS.items()
  if not name.startswith(("rotate", "shear", "translate"))
}


class Policy(NamedTuple):
  """What RandAugment chooses from.

  Attributes:
    operations: by name.
    probability: chance that a drawn operation is applied. If it is below 1, the
      last of `operations` is the identity, which stands in for those that are
      not, and is not drawn itself.
    most: greatest magnitude; noise does not lead beyond it.
    whole: names of operations whose argument is rounded down.
    dtype: type in which arguments are computed. float64 rounds down as the
      original's Python does.
  """

  operations: dict[str, Operation]
  probability: float
  most: float
  whole: tuple[str, ...]
  dtype: Any


POLICIES = {
  "autoaugment": Policy(OPERATIONS, 1.0, FULL_MAGNITUDE, (), np.float32),
  "color": Policy(COLOR_OPERATIONS, 1.0, FULL_MAGNITUDE, (), np.float32),
  "tpu": Policy(
    TPU_OPERATIONS,
    1.0,
    math.inf,
    ("posterize", "solarize", "cutout", "solarize_add"),
    np.float64,
  ),
  "timm": Policy(
    TIMM_OPERATIONS,
    0.5,
    FULL_MAGNITUDE,
    ("posterize", "solarize", "solarize_add"),
    np.float64,
  ),
}
