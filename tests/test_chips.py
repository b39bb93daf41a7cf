"""The table of chips."""

import pytest

from halonet.chips import GENERATIONS, find_kind


@pytest.mark.parametrize(
  "kind, mxu_flops",
  [
    # Matrix units of a device, their sides, and two operations a cell. (Of v6e
    # the maker's page names two units; its peak is that of four.)
    ("TPU v2", 1 * 128 * 128 * 2),
    ("TPU v3", 2 * 128 * 128 * 2),
    ("TPU v4", 2 * 4 * 128 * 128 * 2),
    ("TPU v5 lite", 4 * 128 * 128 * 2),
    ("TPU v5", 2 * 4 * 128 * 128 * 2),
    ("TPU v6 lite", 4 * 256 * 256 * 2),
  ],
)
def test_peak_and_clock_agree(kind, mxu_flops):
  chip = find_kind(kind)
  assert chip.clock_hz * mxu_flops == pytest.approx(chip.peak_flops, rel=0.03)


def test_chips_with_slices_have_a_clock():
  assert all(chip.clock_hz for chip in GENERATIONS.values())


def test_the_longest_name_counts():
  assert find_kind("TPU v5p") is find_kind("TPU v5")
  assert find_kind("TPU v5 lite") is not find_kind("TPU v5")
  assert find_kind("NVIDIA H100 80GB HBM3").peak_flops == 989e12
  # Cards of this name are slower than the modules.
  assert find_kind("NVIDIA H100 PCIe").peak_flops == 756e12
  assert find_kind("NVIDIA H100 NVL") is None
  assert find_kind("cpu") is None
