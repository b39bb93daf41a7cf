"""Measures how memory and time of attention grow with the image.

One layer of each kind of Table 1 is compiled for the CPU at growing maps. What
the compiler sets aside tells the memory, without running anything; the time is
measured where the memory suffices. Small maps come in batches, with as many
pixels as the largest map: otherwise they would fit into the processor's caches,
larger ones would not, and the time would grow by that as well.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from halonet.cost import table1

IMAGE_SIDES = (128, 192, 256, 384, 512, 768, 1024)


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A layer at one size.

  Attributes:
    method: one of `halonet.cost.table1.METHODS`.
    image_side: side of the image in pixels.
    map_side: side of the feature map in its pixels.
    images: images in the batch.
    bytes: per image, what the compiled program holds between its steps, without
      arguments and result.
    seconds: per image, the shortest forward pass of several; None where the
      batch takes more memory than this machine can spare.
  """

  method: str
  image_side: int
  map_side: int
  images: int
  bytes: float
  seconds: float | None


def measure(
  setting: table1.LayerSetting,
  stride: int,
  image_sides: Sequence[int] = IMAGE_SIDES,
  seconds: float = 1.0,
) -> Iterator[Measurement]:
  """Measures every method at every size, one point after another.

  Args:
    setting: the layer; its height and width do not matter.
    stride: image pixels per pixel of the feature map.
    image_sides: sides of the images in pixels.
    seconds: least time to measure a point, which runs at least twice.
  """
  spare = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
  cpu = jax.devices("cpu")[0]
  for method in table1.METHODS:
    for image_side in image_sides:
      side = -(-image_side // stride)
      images = max(1, round((max(image_sides) / image_side) ** 2))
      function, shapes = table1.program(
        method, dataclasses.replace(setting, height=side, width=side), images
      )
      with jax.default_device(cpu):
        compiled = jax.jit(function).lower(*shapes).compile()
        held = compiled.memory_analysis().temp_size_in_bytes
        taken = None
        if held <= spare:
          taken = _time(compiled, shapes, seconds) / images
      yield Measurement(method, image_side, side, images, held / images, taken)


def _time(compiled, shapes, seconds):
  random = np.random.default_rng(0)
  arrays = [
    jax.device_put(random.standard_normal(each.shape, each.dtype))
    for each in shapes
  ]
  compiled(*arrays).block_until_ready()
  times, begin = [], time.perf_counter()
  while len(times) < 2 or time.perf_counter() - begin < seconds:
    start = time.perf_counter()
    compiled(*arrays).block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times)


def slope(points: Sequence[Measurement], quantity: str) -> float:
  """Fits the power of the map's pixels with which a quantity grows.

  Least squares on the logarithms: 1 is linear in height × width, 2 quadratic.
  """
  known = [
    (point.map_side**2, getattr(point, quantity))
    for point in points
    if getattr(point, quantity)
  ]
  pixels, values = np.log(known).T
  return float(np.polyfit(pixels, values, 1)[0])


# Okabe and Ito's colours, which the colour-blind can tell apart.
_STYLES = {
  "global": dict(color="#d55e00", marker="o"),
  "per-pixel windows": dict(color="#cc79a7", marker="s"),
  "blocked local": dict(color="#0072b2", marker="D"),
  # Where it costs what blocked local attention does, both are to be seen.
  "SASA": dict(
    color="#009e73", marker="o", markersize=12, fillstyle="none", linestyle=":"
  ),
}


def draw(
  points: Sequence[Measurement],
  setting: table1.LayerSetting,
  stride: int,
  path: pathlib.Path,
) -> None:
  """Draws memory and time against the image's side into a PNG file."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

  figure = Figure(figsize=(9, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  sides = sorted({point.image_side for point in points})
  for panel, quantity, title, scale in (
    (panels[0], "bytes", "Memory per image, MB", 1e-6),
    (panels[1], "seconds", "Time per image on the CPU, ms", 1e3),
  ):
    for method, style in _STYLES.items():
      own = [point for point in points if point.method == method]
      known = [point for point in own if getattr(point, quantity)]
      if not known:
        continue
      panel.plot(
        [point.image_side for point in known],
        [getattr(point, quantity) * scale for point in known],
        label=f"{method}: (HW)$^{{{slope(own, quantity):.2f}}}$",
        linewidth=2,
        **style,
      )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(sides))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    panel.set_title(title)
    panel.set_xlabel(f"side of the image ({stride} times the map's)")
    panel.grid(color="lightgray", linewidth=0.5)
    panel.legend(fontsize=9)
  figure.suptitle(
    f"One attention layer: c = {setting.channels},"
    f" {setting.heads} heads, b = {setting.block_size},"
    f" h = {setting.halo_size}, k = {setting.window}",
    fontsize=11,
  )
  figure.savefig(path, dpi=110)
