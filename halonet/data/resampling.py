"""Resizes images in NumPy, with the numbers of TensorFlow's filters.

With it, `predict` sees what evaluation saw without importing TensorFlow. Sums
are taken in TensorFlow's order, in float32; on x86-64 all bits are the same.
"""

import numpy as np

_ONE = np.float32(1)


def resize(
  image: np.ndarray, sides: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Does what `tf.image.resize` with `antialias` does.

  Args:
    image: uint8 `[height, width, channels]`.
    sides: height and width of the result.
    interpolation: "bilinear" or "bicubic".

  Returns:
    float32 `[*sides, channels]`; "bicubic" overshoots at edges.
  """
  image = image.astype(np.float32)
  for axis, side in enumerate(sides):
    places, weights = _taps(image.shape[axis], side, interpolation)
    image = image.swapaxes(0, axis)
    resized = np.zeros((side, *image.shape[1:]), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
      resized += weight[:, None, None] * image[place]
    image = resized.swapaxes(0, axis)
  return image


def _taps(length, size, interpolation):
  """Returns which pixels make each new one and their weights `[size, taps]`."""
  kernel, radius = {"bilinear": (_triangle, 1), "bicubic": (_keys, 2)}[
    interpolation
  ]
  step = _ONE / (np.float32(size) / np.float32(length))
  stretch = max(step, _ONE)
  reach = np.float32(radius) * stretch
  half = np.float32(0.5)
  centre = (np.arange(size, dtype=np.float32) + half) * step
  first = np.clip(np.ceil(centre - reach - half), 0, length - 1).astype(int)
  last = np.clip(np.floor(centre + reach - half), 0, length - 1).astype(int)
  taps = min(2 * int(np.ceil(reach)) + 1, length)
  places = first[:, None] + np.arange(taps)
  away = places.astype(np.float32) + half - centre[:, None]
  weights = kernel(np.abs(away * (_ONE / stretch)))
  weights = np.where(places <= last[:, None], weights, np.float32(0))
  total = np.zeros(size, np.float32)
  for weight in weights.T:  # NumPy's own sum would take another order.
    total += weight
  return places.clip(max=length - 1), weights * (_ONE / total)[:, None]


def _triangle(x):
  return np.maximum(_ONE - x, np.float32(0))


def _keys(x):
  """Evaluates the cubic of Keys (1981) with a = −1/2, for x ≥ 0."""
  near = (np.float32(1.5) * x - np.float32(2.5)) * x * x + _ONE
  far = (np.float32(-0.5) * x + np.float32(2.5)) * x - np.float32(4)
  far = far * x + np.float32(2)
  return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
