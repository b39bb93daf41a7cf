"""Turns photographs upright, as the camera's orientation tag (EXIF) says.

A camera stores the pixels as its sensor lies and notes how to turn them. The
tag is read from the first bytes of a JPEG or PNG. Training, evaluation and
`predict` all read it here.
"""

import struct

import numpy as np

from halonet.data.runtime import tf

_ORIENTATION, _SHORT = 0x0112, 3  # The tag and its type.

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
_FIXED[0, 4] = 255  # Of the JFIF segment's length, the upper byte is 0.

# An upright image is the stored one, transposed if the orientation's entry says
# so, and then reversed along rows and columns as its entries say. There is no
# orientation 0.
_TRANSPOSED = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], bool)
_REVERSED = np.array(
  # 0, 1    2       3       4       5       6       7       8
  [(0, 0)] * 2 + [(0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)],
  bool,
)
_SIDES = np.where(_TRANSPOSED[:, None], [1, 0], [0, 1])


def orientation(encoded: tf.Tensor) -> tf.Tensor:
  """Reads how an image is to be turned.

  The tag counts where the EXIF standard and PNG's have it: in one of the
  application segments that a JPEG begins with, or in a PNG's eXIf chunk before
  the pixels. Tags elsewhere, in XMP for example, do not count.

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
  block = _exif_block(encoded)
  turn = _tag(block) if block else 1
  return np.int32(turn if 1 <= turn <= 8 else 1)


def _exif_block(encoded):
  """Returns an image's EXIF block, or None."""
  if encoded.startswith(b"\xff\xd8"):
    place = 2
    # Segments: marker, length (itself included), content.
    while len(head := encoded[place : place + 10]) == 10:
      marker, length = struct.unpack(">HH", head[:4])
      if marker == 0xFFE1 and head[4:] == b"Exif\0\0":
        return encoded[place + 10 : place + 2 + length]
      if marker & 0xFFF0 != 0xFFE0 and marker != 0xFFFE:  # Nor a comment.
        return None
      place += 2 + length
  elif encoded.startswith(b"\x89PNG"):
    place = 8
    # Chunks: length of the content, name, content, checksum.
    while len(head := encoded[place : place + 8]) == 8:
      length, name = struct.unpack(">I4s", head)
      if name == b"eXIf":
        return encoded[place + 8 : place + 8 + length]
      if name == b"IDAT":
        return None
      place += 12 + length
  return None


def _tag(block):
  """Returns the value of the tag in an EXIF block, which is a TIFF; or 0."""
  order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
  if order is None or len(block) < 10:
    return 0
  (table,) = struct.unpack_from(f"{order}I", block, 4)
  entries = block[table + 2 :]
  count = int.from_bytes(
    block[table : table + 2], {"<": "little", ">": "big"}[order]
  )
  for entry in range(min(count, len(entries) // 12)):
    tag, kind, _, value = struct.unpack_from(
      f"{order}HHIH", entries, 12 * entry
    )
    if tag == _ORIENTATION:
      return value if kind == _SHORT else 0
  return 0


def upright(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
  """Turns stored pixels `[height, width, channels]` by their orientation."""
  sides = tf.concat([tf.gather(_SIDES, turn), [2]], 0)
  dims = tf.concat([tf.gather(_REVERSED, turn), [False]], 0)
  return tf.raw_ops.Reverse(tensor=tf.transpose(image, sides), dims=dims)


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
  begin = tf.where(tf.gather(_REVERSED, turn), size - sides - begin, begin)
  order = tf.gather(_SIDES, turn)
  return tf.reshape(tf.gather(tf.stack([begin, sides]), order, axis=1), [4])
