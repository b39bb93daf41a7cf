"""Growth: its exponents, on maps that take no time."""

import os

import pytest

from halonet.cost import growth
from halonet.cost.table1 import METHODS, LayerSetting

SMALL = LayerSetting(channels=8, window=3, block_size=4, halo_size=1, heads=1)


@pytest.fixture(scope="module")
def points():
  return list(growth.measure(SMALL, 8, (128, 256), seconds=0))


def test_local_attention_is_linear_and_global_quadratic(points):
  powers = {
    method: growth.slope([p for p in points if p.method == method], "bytes")
    for method in METHODS
  }
  assert powers["blocked local"] == pytest.approx(1, abs=0.05)
  assert powers["SASA"] == pytest.approx(1, abs=0.05)
  assert powers["per-pixel windows"] == pytest.approx(1, abs=0.05)
  assert powers["global"] == pytest.approx(2, abs=0.1)


def test_points_are_per_image(points):
  assert [(p.map_side, p.images) for p in points[:2]] == [(16, 4), (32, 1)]
  assert all(p.seconds > 0 for p in points)
  # The logits of one image alone.
  assert points[1].bytes >= 4 * 32**4


def test_what_does_not_fit_is_not_run(monkeypatch):
  monkeypatch.setattr(os, "sysconf", lambda _: 8)
  point = next(growth.measure(SMALL, 8, (64,)))
  assert point.seconds is None and point.bytes > 0


def test_slope_is_that_of_a_power():
  made = [
    growth.Measurement("global", 8 * side, side, 1, 3.0 * side**5, None)
    for side in (16, 24, 64)
  ]
  assert growth.slope(made, "bytes") == pytest.approx(2.5)


def test_a_picture_is_drawn(points, tmp_path):
  file = tmp_path / "growth.png"
  growth.draw(points, SMALL, 8, file)
  assert file.read_bytes().startswith(b"\x89PNG")
