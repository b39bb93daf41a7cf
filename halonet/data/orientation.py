"""Turns photographs upright in TensorFlow; `halonet.data.exif` reads how."""

import numpy as np

from halonet.data.exif import REVERSED, TRANSPOSED, read_orientation
from halonet.data.runtime import tf

# How most images without a tag begin: a JPEG by a JFIF segment and a table of
# quantisation, a PNG by its header and its pixels. 0 stands for any byte.
_BEGINNINGS = (
  b"\xff\xd8\xff\xe0\0\x10JFIF".ljust(20, b"\0") + b"\xff\xdb",
  b"\x89PNG".ljust(37, b"\0") + b"IDAT",
)
_PLAIN = np.array(
  [list(each.ljust(41, b"\0")) for each in _BEGINNINGS], np.uint8
)
_FIXED = np.where(_PLAIN > 0, 255, 0).astype(np.uint8)
_FIXED[0, 4] = 255  # The upper byte of the JFIF segment's length is 0.

_SIDES = np.where(TRANSPOSED[:, None], [1, 0], [0, 1])


def orientation(encoded: tf.Tensor) -> tf.Tensor:
  """Reads how an image is to be turned.

  Args:
    encoded: bytes of an image file, a scalar string.

  Returns:
    1 … 8, an int32 scalar: 1 is upright, and what an image has without a valid
    tag.
  """
  first = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PLAIN.shape[1])
  same = tf.bitwise.bitwise_and(first, _FIXED) == _PLAIN
  plain = tf.reduce_any(tf.reduce_all(same, 1))

  def search():
    # In Python: the same steps as TensorFlow's operations take longer, and as
    # many of them in a branch cost time where it is not taken, too.
    turn = tf.numpy_function(_search, [encoded], tf.int32, stateful=False)
    return tf.ensure_shape(turn, [])

  none = tf.constant(1)
  return tf.cond(plain, lambda: none, search)


def _search(encoded):
  if isinstance(encoded, np.ndarray):  # Outside of a graph.
    encoded = encoded.item()
  return np.int32(read_orientation(encoded))


def upright(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
  """Turns stored pixels `[height, width, channels]` by their orientation."""
  sides = tf.concat([tf.gather(_SIDES, turn), [2]], 0)
  dims = tf.concat([tf.gather(REVERSED, turn), [False]], 0)
  return tf.raw_ops.Reverse(tensor=tf.transpose(image, sides), dims=dims)


def upright_boxes(boxes: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
  """Turns boxes in the stored image by its orientation.

  Args:
    boxes: top, left, bottom and right as shares of the stored image's height
      and width, float32 `[n, 4]`.
    turn: the orientation, 1 … 8.

  Returns:
    The same as shares of the upright image's height and width.
  """
  corners = tf.gather(
    tf.reshape(boxes, [-1, 2, 2]), tf.gather(_SIDES, turn), axis=2
  )
  corners = tf.where(tf.gather(REVERSED, turn), 1 - corners, corners)
  ends = tf.reduce_min(corners, 1), tf.reduce_max(corners, 1)
  return tf.concat(ends, -1)


def upright_size(size: tf.Tensor, turn: tf.Tensor | None) -> tf.Tensor:
  """Returns the height and width `[2]` that stored ones have upright.

  Without a `turn`, they are upright as they are.
  """
  return size if turn is None else tf.gather(size, tf.gather(_SIDES, turn))


def stored_window(
  window: tf.Tensor, size: tf.Tensor, turn: tf.Tensor | None
) -> tf.Tensor:
  """Finds the stored pixels that a window of the upright image shows.

  Args:
    window: row, column, height and width in the upright image, int32 `[4]`.
    size: height and width of the upright image, int32 `[2]`.
    turn: the orientation; if None, the image is upright as it is stored.

  Returns:
    Row, column, height and width in the stored image, int32 `[4]`.
  """
  if turn is None:
    return window
  begin, sides = window[:2], window[2:]
  begin = tf.where(tf.gather(REVERSED, turn), size - sides - begin, begin)
  order = tf.gather(_SIDES, turn)
  return tf.reshape(tf.gather(tf.stack([begin, sides]), order, axis=1), [4])
