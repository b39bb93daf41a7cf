"""Reads image files of any kind and size, and prepares them for a model.

No TensorFlow here: it would take most of the time that one image takes.
"""

import io
import pathlib
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from halonet.data.exif import read_orientation, turn_upright
from halonet.data.resampling import resize
from halonet.errors import UsageError


def read_image(path: str | pathlib.Path) -> Image.Image:
  """Reads an image file as RGB.

  The orientation that cameras record is applied, as in training, and
  transparency is laid on white. Grey of 16 bits keeps the upper 8.
  Floating-point grey of 0 … 1 is scaled to 0 … 255, and kept if it goes
  beyond 1.

  Raises:
    UsageError: if there is no such file, or it holds no image or one of more
      than 178,956,970 pixels.
  """
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    # A pipe would be waited for without end.
    raise UsageError(f"{path} is no file; name an image file")
  try:
    with warnings.catch_warnings():
      # Pillow warns from half of its limit on.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      return _upright_rgb(path.read_bytes())
  except FileNotFoundError:
    raise UsageError(f"there is no file {path}") from None
  except UnidentifiedImageError:
    raise UsageError(f"{path} is not an image that Pillow can read") from None
  except Image.DecompressionBombError:
    raise UsageError(
      f"image {path} has more than 178,956,970 pixels; make it smaller"
    ) from None
  except (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's, of a broken PNG.
  ) as error:
    raise UsageError(f"image {path} cannot be read: {error}") from None


def _upright_rgb(encoded):
  with Image.open(io.BytesIO(encoded)) as image:
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP"):
      # Training reads no other format that has an orientation.
      return _rgb(ImageOps.exif_transpose(image))
    turn = read_orientation(encoded)
    return Image.fromarray(turn_upright(np.asarray(_rgb(image)), turn))


def _rgb(image):
  if image.mode in ("I", "F") or image.mode.startswith("I;16"):
    grey = _eight_bits(np.asarray(image, np.float64), image.mode)
    return Image.fromarray(grey).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _eight_bits(grey, mode):
  if mode == "F" and grey.max() <= 1:
    grey = grey * 255
  elif mode.startswith("I;16") or grey.max() > 255:
    grey = grey / 256
  return np.clip(grey, 0, 255).astype(np.uint8)


def square_input(
  image: Image.Image, config: ml_collections.ConfigDict
) -> np.ndarray:
  """Prepares an image as evaluation does: float32 `[size, size, 3]`.

  The numbers are those of `preprocessing.test_image` and `normalise`.

  Args:
    image: RGB, of any size; its central square is used.
    config: the `data` part of a training config.
  """
  side = np.float32(min(image.size)) * np.float32(config.crop_fraction)
  side = max(int(np.round(side)), 1)
  left, top = ((length - side) // 2 for length in image.size)
  square = np.asarray(image)[top : top + side, left : left + side]
  size = config.image_size
  return _normalised(_levels(square, (size, size), config), config)


def padded_input(
  image: Image.Image, config: ml_collections.ConfigDict
) -> np.ndarray:
  """Prepares an image as evaluation of a detector does: float32 `[size, size,
  3]`, padded at the bottom and the right.

  The numbers are those of `detection_images.test_image` and `normalise`.

  Args:
    image: RGB, of any size; its longer side is scaled to `image_size`.
    config: the `data` part of a training config.
  """
  size = config.image_size
  sides = padded_sides(image.height, image.width, size)
  levels = np.empty((size, size, 3), np.uint8)
  levels[:] = padding(config.mean)
  levels[: sides[0], : sides[1]] = _levels(np.asarray(image), sides, config)
  return _normalised(levels, config)


def padded_sides(height: int, width: int, size: int) -> tuple[int, int]:
  """Returns height and width of an image in a detector's input of that size."""
  scale = np.float32(size) / np.float32(max(height, width))
  height, width = (
    max(1, int(np.floor(np.float32(side) * scale + np.float32(0.5))))
    for side in (height, width)
  )
  return height, width


def padding(mean: Sequence[float]) -> np.ndarray:
  """Returns the colour that is zero for the model, in levels, float32 `[3]`."""
  return np.floor(255 * np.array(mean) + 0.5).astype(np.float32)


def _levels(pixels, sides, config):
  """Resizes uint8 pixels to uint8."""
  levels = resize(pixels, sides, config.interpolation)
  return (np.clip(levels, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _normalised(levels, config):
  mean, scale = normalisation(config.mean, config.std)
  pixels = (levels.astype(np.float32) - mean) * scale
  # First to the config's image_dtype, for the same numbers as evaluation's.
  dtype = jnp.dtype(config.image_dtype)
  return pixels.astype(dtype).astype(np.float32)


def normalisation(
  mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what is subtracted from levels of 0 … 255, and then the factor.

  Args:
    mean: mean of each channel, after scaling to 0 … 1.
    std: standard deviation of each channel, after scaling to 0 … 1.

  Returns:
    Two float32 arrays, with a number for each channel.
  """
  mean, std = 255 * np.array(mean), 255 * np.array(std)
  return mean.astype(np.float32), (1 / std).astype(np.float32)


def published_input(
  image: Image.Image,
  *,
  image_size: int,
  crop: float,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  interpolation: str,
) -> np.ndarray:
  """Prepares an image as timm's evaluation does: float32 `[size, size, 3]`.

  The shorter side is resized to `image_size / crop`, rounded
  down; then the centre is cut out and normalised.
  """
  target = int(image_size / crop)
  scale = target / min(image.size)
  # The longer side is cut down, not rounded, as torchvision does.
  size = [
    target if x == min(image.size) else int(x * scale) for x in image.size
  ]
  image = image.resize(size, Image.Resampling[interpolation.upper()])
  left, top = (round((x - image_size) / 2) for x in image.size)
  image = image.crop((left, top, left + image_size, top + image_size))
  pixels = np.asarray(image, np.float32) / 255
  return (pixels - np.float32(mean)) / np.float32(std)
