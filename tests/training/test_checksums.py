"""Checksums of files: every change is found and named."""

import numpy as np
import pytest
from etils import epath

from halonet.training import checksums

PIECE = checksums._PIECE
CHANGED = "has changed since it was written"


@pytest.fixture
def folder(tmp_path):
  """Three files; one is of two pieces and a bit."""
  random = np.random.default_rng(0)
  (tmp_path / "part" / "deep").mkdir(parents=True)
  (tmp_path / "part" / "deep" / "large").write_bytes(
    random.bytes(2 * PIECE + 13)
  )
  (tmp_path / "part" / "empty").write_bytes(b"")
  (tmp_path / "small").write_bytes(b"words")
  checksums.write(epath.Path(tmp_path))
  return epath.Path(tmp_path)


def test_nothing_has_changed(folder):
  assert checksums.exist(folder)
  assert checksums.compare(folder) == ({}, [])


@pytest.mark.parametrize(
  "place", [0, 7, 8, PIECE - 1, PIECE, 2 * PIECE, 2 * PIECE + 12]
)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found(folder, place, bit):
  file = folder / "part" / "deep" / "large"
  content = bytearray(file.read_bytes())
  content[place] ^= 1 << bit
  file.write_bytes(content)
  assert checksums.compare(folder) == ({"part/deep/large": CHANGED}, [])


def test_what_is_missing_cut_or_new_is_named(folder):
  (folder / "small").unlink()
  (folder / "part" / "empty").write_bytes(b"x")
  file = folder / "part" / "deep" / "large"
  file.write_bytes(file.read_bytes()[:PIECE])
  (folder / "other").write_bytes(b"")
  damage = {
    "small": "is missing",
    "part/empty": "has 1 bytes, not 0",
    "part/deep/large": f"has {PIECE} bytes, not {2 * PIECE + 13}",
  }
  assert checksums.compare(folder) == (damage, ["other"])
  assert checksums.compare(folder, skip=("other",)) == (damage, [])
  del damage["small"]
  assert checksums.compare(folder, part="part") == (damage, [])


@pytest.mark.parametrize(
  "before, after",
  [
    (np.full(PIECE // 8, 1 << 63, np.uint64), np.zeros(PIECE // 8, np.uint64)),
    (np.ones(PIECE // 4, np.float32), np.zeros(PIECE // 4, np.float32)),
    (np.tile(np.float32([0, 2]), PIECE // 8), np.zeros(PIECE // 4, "f4")),
    (np.arange(PIECE // 8), np.roll(np.arange(PIECE // 8), 1)),
    (np.arange(PIECE // 8), np.roll(np.arange(PIECE // 8), 1031)),
    (np.arange(PIECE // 8), np.arange(PIECE // 8)[::-1].copy()),
  ],
)
def test_patterns_whose_sums_could_agree(folder, before, after):
  file = folder / "small"
  file.write_bytes(before.tobytes())
  checksums.write(folder)
  file.write_bytes(after.tobytes())
  assert checksums.compare(folder) == ({"small": CHANGED}, [])


def test_every_byte_of_the_checksums_counts(folder):
  file = folder / "checksums.json"
  content = file.read_bytes()
  for place in range(len(content)):
    damaged = bytearray(content)
    damaged[place] ^= 1 << place % 8
    file.write_bytes(damaged)
    assert checksums.compare(folder) == ({"checksums.json": "is damaged"}, [])
  for damaged in (b"", b"[]", b"{}", content[:-40], b"\0" * len(content)):
    file.write_bytes(damaged)
    assert checksums.compare(folder) == ({"checksums.json": "is damaged"}, [])
