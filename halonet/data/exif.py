"""The orientation tag (EXIF) of image files: how to turn a photograph.

A camera stores the pixels as its sensor lies and notes how to turn them. The
tag is read from the bytes of a JPEG, a PNG or a WebP. Training, evaluation and
`predict` all read it here.
"""

import struct

import numpy as np

_ORIENTATION, _SHORT = 0x0112, 3  # The tag and its type.

# An upright image is the stored one, transposed if the orientation's entry says
# so, and then reversed along rows and columns as its entries say. There is no
# orientation 0.
TRANSPOSED = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], bool)
REVERSED = np.array(
  # 0, 1    2       3       4       5       6       7       8
  [(0, 0)] * 2 + [(0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)],
  bool,
)


def read_orientation(encoded: bytes) -> int:
  """Reads how an image is to be turned.

  The tag counts where the EXIF standard and PNG's have it: in one of the
  application segments that a JPEG begins with, in a PNG's eXIf chunk before the
  pixels, or in a WebP's EXIF chunk. Tags elsewhere, in XMP for example, do not
  count.

  Returns:
    1 … 8: 1 is upright, and what an image has without a valid tag.
  """
  block = _exif_block(encoded)
  turn = _tag(block) if block else 1
  return turn if 1 <= turn <= 8 else 1


def turn_upright(image: np.ndarray, turn: int) -> np.ndarray:
  """Turns stored pixels `[height, width, channels]` by their orientation."""
  if TRANSPOSED[turn]:
    image = image.swapaxes(0, 1)
  return np.flip(image, np.flatnonzero(REVERSED[turn]))


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
  elif encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
    place = 12
    # Chunks: name, length of the content, content of an even length.
    while len(head := encoded[place : place + 8]) == 8:
      name, length = struct.unpack("<4sI", head)
      if name == b"EXIF":
        block = encoded[place + 8 : place + 8 + length]
        return block.removeprefix(b"Exif\0\0")
      place += 8 + length + length % 2
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
