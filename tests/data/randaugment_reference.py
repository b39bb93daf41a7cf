"""What RandAugment's operations must give: Pillow's own, and loops."""

import numpy as np
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)
MEAN = (124, 116, 104)  # round(255 · mean) of ImageNet.


def photographs():
  """Crops of two photographs: odd, not square, grey, dull, one-coloured."""
  china, flower = sklearn.datasets.load_sample_images().images
  grey = Image.fromarray(flower[100:164, 200:264]).convert("L").convert("RGB")
  return {
    "square": china[100:292, 200:392],
    "odd": flower[51:150, 301:374],
    "grey": np.asarray(grey),
    "dull": china[300:364, 100:164] // 4 + 90,
    "uniform": np.full((9, 12, 3), (3, 200, 77), np.uint8),
  }


def affine(matrix, resample=Image.Resampling.NEAREST, fill=GREY):
  """Pillow's transform by the matrix that an image and an argument give."""

  def transform(image, argument):
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix(image, argument),
      resample,
      fillcolor=fill,
    )

  return transform


REFERENCES = {
  "identity": lambda image, _: image,
  "autocontrast": lambda image, _: ImageOps.autocontrast(image),
  "equalize": lambda image, _: ImageOps.equalize(image),
  "rotate": lambda image, degrees: image.rotate(degrees, fillcolor=GREY),
  "solarize": ImageOps.solarize,
  "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
  "posterize": lambda image, bits: ImageOps.posterize(image, round(bits)),
  "contrast": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
  "brightness": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
  "sharpness": lambda image, f: ImageEnhance.Sharpness(image).enhance(f),
  "shear_x": affine(lambda image, factor: (1, factor, 0, 0, 1, 0)),
  "shear_y": affine(lambda image, factor: (1, 0, 0, factor, 1, 0)),
  "translate_x": affine(lambda i, share: (1, 0, share * i.width, 0, 1, 0)),
  "translate_y": affine(lambda i, share: (1, 0, 0, 0, 1, share * i.height)),
}


TPU_REFERENCES = REFERENCES | {
  "invert": lambda image, _: ImageOps.invert(image),
  # A shift by 8 is one by 7 in TensorFlow, and one by less than 0 is none.
  "posterize": lambda image, bits: ImageOps.posterize(
    image, int(min(max(bits, 1), 8))
  ),
  "translate_x": affine(lambda _, distance: (1, 0, distance, 0, 1, 0)),
  "translate_y": affine(lambda _, distance: (1, 0, 0, 0, 1, distance)),
}


def solarize_add(image, addition):
  levels = np.array(image).astype(int)
  dark = levels < 128
  levels[dark] = np.minimum(levels[dark] + int(addition), 255)
  return levels.astype(np.uint8)


def cutout(image, reach, place):
  levels, reach = np.array(image), int(reach)
  row, column = (int(place[axis] * levels.shape[axis]) for axis in (0, 1))
  top, left = max(0, row - reach), max(0, column - reach)
  levels[top : row + reach, left : column + reach] = GREY
  return levels


TPU_REFERENCES["solarize_add"] = solarize_add


def bicubic(matrix):
  return affine(matrix, Image.Resampling.BICUBIC, MEAN)


def drop_bits(image, bits):
  """What Pillow's posterize gave for 8 − bits when it still took 0."""
  kept = [level & ~(2 ** int(bits) - 1) for level in range(256)]
  return image.point(kept * 3)


TIMM_REFERENCES = TPU_REFERENCES | {
  "posterize": drop_bits,
  "solarize": lambda image, lower: ImageOps.solarize(image, 256 - lower),
  "rotate": lambda image, degrees: image.rotate(
    degrees, Image.Resampling.BICUBIC, fillcolor=MEAN
  ),
  "shear_x": bicubic(lambda image, factor: (1, factor, 0, 0, 1, 0)),
  "shear_y": bicubic(lambda image, factor: (1, 0, 0, factor, 1, 0)),
  "translate_x": bicubic(lambda i, share: (1, 0, share * i.width, 0, 1, 0)),
  "translate_y": bicubic(lambda i, share: (1, 0, 0, 0, 1, share * i.height)),
}
REFERENCES_OF = {
  "autoaugment": REFERENCES,
  "tpu": TPU_REFERENCES,
  "timm": TIMM_REFERENCES,
}


def seeds(count):
  return tf.stack([tf.range(count), tf.fill([count], 7)], -1)
