"""Draws the picture of blocks and halos in README.md and docs/attention.md.

python scripts/draw_block_and_halo.py [FILE.png]
"""

import argparse
import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from halonet.ops.neighbourhood import Neighbourhood

MAP_SIZE, BLOCK_SIZE, HALO_SIZE = 24, 8, 3
COLORS = {
  "block: queries, and keys": "#2a6fbb",
  "halo: keys alone": "#9cc9f0",
  "beyond the border: masked": "#d9534f",
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "file",
    nargs="?",
    type=pathlib.Path,
    default=pathlib.Path("docs/figures/block_and_halo.png"),
  )
  path = parser.parse_args().file

  figure = Figure(figsize=(9, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  draw(panels[0], 1, 1, "A block in the middle")
  draw(panels[1], 0, 2, "A block in the corner")
  figure.legend(
    handles=[
      Patch(facecolor=color, edgecolor="gray", label=label)
      for label, color in COLORS.items()
    ],
    loc="outside lower center",
    ncols=3,
    frameon=False,
  )
  figure.savefig(path, dpi=110)
  print(f"Wrote {path}")


def draw(panel, row: int, col: int, title: str) -> None:
  """Draws the map, cut into blocks, and the neighbourhood of one block."""
  block, halo, border = COLORS.values()
  layer = Neighbourhood(
    height=MAP_SIZE, width=MAP_SIZE, block_size=BLOCK_SIZE, halo_size=HALO_SIZE
  )
  # The same mask that the attention uses.
  hidden = layer.hides(0, pixel=layer.key_pixels(0))
  for i, j in np.ndindex(layer.window, layer.window):
    y = row * BLOCK_SIZE - HALO_SIZE + i
    x = col * BLOCK_SIZE - HALO_SIZE + j
    inner = range(HALO_SIZE, HALO_SIZE + BLOCK_SIZE)
    if hidden[row, i] or hidden[col, j]:
      color = border
    elif i in inner and j in inner:
      color = block
    else:
      color = halo
    panel.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
  for line in range(MAP_SIZE + 1):
    heavy = line % BLOCK_SIZE == 0
    style = dict(
      color="black" if heavy else "lightgray",
      linewidth=1.6 if heavy else 0.5,
      zorder=2 if heavy else 0,
    )
    panel.plot([0, MAP_SIZE], [line, line], **style)
    panel.plot([line, line], [0, MAP_SIZE], **style)
  panel.set_xlim(-HALO_SIZE - 0.5, MAP_SIZE + HALO_SIZE + 0.5)
  panel.set_ylim(MAP_SIZE + HALO_SIZE + 0.5, -HALO_SIZE - 0.5)
  panel.set_aspect("equal")
  panel.set_axis_off()
  panel.set_title(title)


if __name__ == "__main__":
  main()
