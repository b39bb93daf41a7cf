"""Turns photographs upright, as the camera's orientation tag (EXIF) says.

A camera stores the pixels as its sensor lies and notes how to turn them. The
tag is read from the first bytes of a JPEG or PNG. Training, evaluation and
`predict` all read it here.
"""

import functools

import numpy as np

from halonet.data.runtime import tf

# Bytes of a file that are searched: a JFIF segment, one segment of the largest
# size, and the beginning of an EXIF segment.
_SEARCHED = 1 << 17
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
  the pixels. Both must begin in the first 128 KiB. Tags elsewhere, in XMP for
  example, do not count.

  Args:
    encoded: bytes of an image file, a scalar string.

  Returns:
    1 … 8, an int32 scalar: 1 is upright, and what an image has without a valid
    tag.
  """
  first = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PLAIN.shape[1])
  same = tf.bitwise.bitwise_and(first, _FIXED) == _PLAIN
  plain = tf.reduce_any(tf.reduce_all(same, 1))
  none = tf.constant(1)
  return tf.cond(plain, lambda: none, lambda: _search(encoded))


# A function of its own: TensorFlow would walk through all of it for every
# plain image, too.
@functools.partial(
  tf.function, autograph=False, experimental_attributes={"_noinline": True}
)
def _search(encoded):
  head = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_SEARCHED)
  begin, end = _find(head)
  none = tf.constant(1)
  return tf.cond(begin > 0, lambda: _read(head, begin, end), lambda: none)


# Compiled, a walk takes less than half of the time that it takes in
# TensorFlow's own executor.
@functools.partial(tf.function, jit_compile=True, autograph=False)
def _find(head):
  """Returns begin and end of the EXIF block; 0 if there is none."""

  def at(place):
    """The eight bytes from a place on; the last ones if it lies beyond."""
    return tf.cast(tf.slice(head, [place], [8]), tf.int32)

  def walk(begin, goes_on, step):
    """Goes from segment to segment as long as `goes_on`."""

    def move(place, octets):
      place += step(octets)
      return place, at(place)

    # No slice follows on a loop: XLA would take its place for a constant, and
    # compile anew for every image.
    return tf.while_loop(
      lambda place, octets: (
        (place >= 0) & (place < _SEARCHED) & goes_on(octets)
      ),
      move,
      (tf.constant(begin), at(begin)),
    )

  def says(octets, word):
    return tf.reduce_all(octets == tf.constant(list(word)))

  # A JPEG's segments: marker, length (itself included), content.
  def is_exif(octets):
    return says(octets[:2], b"\xff\xe1") & says(octets[4:], b"Exif")

  def is_other(octets):
    application = octets[1] // 16 == 0xE
    comment = octets[1] == 0xFE
    return (octets[0] == 0xFF) & (application | comment) & ~is_exif(octets)

  def segment(octets):
    return 2 + octets[2] * 256 + octets[3]

  # A PNG's chunks: length of the content, name, content, checksum.
  def is_chunk(octets):
    # A length of 2³¹ or more is none, and would lead backwards.
    pixels, exif = says(octets[4:], b"IDAT"), says(octets[4:], b"eXIf")
    return (octets[0] < 128) & ~pixels & ~exif

  def chunk(octets):
    first, second, third, fourth = tf.unstack(octets[:4])
    return 12 + ((first * 256 + second) * 256 + third) * 256 + fourth

  first = at(0)
  is_jpeg, is_png = says(first[:2], b"\xff\xd8"), says(first[1:4], b"PNG")
  jpeg, in_jpeg = walk(2, lambda octets: is_jpeg & is_other(octets), segment)
  png, in_png = walk(8, lambda octets: is_png & is_chunk(octets), chunk)
  ends = jpeg + segment(in_jpeg), png + chunk(in_png) - 4
  in_jpeg = is_jpeg & (jpeg < _SEARCHED) & is_exif(in_jpeg)
  in_png = is_png & (png < _SEARCHED) & says(in_png[4:], b"eXIf")
  begin = tf.where(in_jpeg, jpeg + 10, tf.where(in_png, png + 8, 0))
  end = tf.where(in_jpeg, *ends)
  return begin, tf.minimum(end, _SEARCHED)


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _read(head, begin, end):
  """Reads the orientation from an EXIF block."""

  def number(place):
    """Two bytes, the first of them higher."""
    # Not a slice: XLA would compile anew for every place where one begins.
    octets = tf.cast(tf.gather(head, place + np.arange(2)), tf.int32)
    return octets[0] * 256 + octets[1]

  # A TIFF: byte order, 42, the place of a table of tags.
  little = number(begin) == int.from_bytes(b"II")
  found = little | (number(begin) == int.from_bytes(b"MM"))

  def short(place):
    big = number(place)
    return tf.where(little, big // 256 + big % 256 * 256, big)

  found &= short(begin + 2) == 42
  first, second = short(begin + 4), short(begin + 6)
  low, high = tf.where(little, first, second), tf.where(little, second, first)
  table = begin + low + high * 65536
  found &= (table >= begin) & (table < end)
  last = tf.minimum(table + 2 + 12 * short(table), end - 11)
  tag = tf.while_loop(
    lambda place: (place < last) & (short(place) != _ORIENTATION),
    lambda place: (place + 12,),
    (tf.where(found, table + 2, end),),
  )[0]
  found &= (tag < last) & (short(tag) == _ORIENTATION)
  found &= (short(tag + 2) == _SHORT) & (short(tag + 8) < 9)
  return tf.where(found, tf.maximum(short(tag + 8), 1), 1)


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
