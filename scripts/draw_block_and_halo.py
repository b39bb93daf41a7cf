"""Draws the picture of blocks and halos in README.md and docs/attention.md.

python scripts/draw_block_and_halo.py [FILE.png]
"""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from halonet import command
from halonet.ops.neighbourhood import Neighbourhood

FILE = pathlib.Path(__file__).parents[1] / "docs/figures/block_and_halo.png"
MAP_SIZE, BLOCK_SIZE, HALO_SIZE = 24, 8, 3
COLORS = {
  "block: queries, and keys": "#2a6fbb",
  "halo: keys alone": "#9cc9f0",
  "beyond the border: masked": "#d9534f",
}


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("file", nargs="?", type=pathlib.Path, default=FILE)
  path = parser.parse_args().file

  figure = Figure(figsize=(9, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  draw(panels[0], 1, 1, "A block in the middle")
  draw(panels[1], 0, 2, "A block in the corner")
  handles = [
    Patch(facecolor=color, edgecolor="gray", label=label)
    for label, color in COLORS.items()
  ]
  figure.legend(
    handles=handles, loc="outside lower center", ncols=3, frameon=False
  )
  figure.savefig(path, dpi=110)
  command.wrote(path)


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
    color = block if i in inner and j in inner else halo
    if hidden[row, i] or hidden[col, j]:
      color = border
    panel.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
  for line in range(MAP_SIZE + 1):
    style = dict(color="lightgray", linewidth=0.5, zorder=0)
    if line % BLOCK_SIZE == 0:
      style = dict(color="black", linewidth=1.6, zorder=2)
    panel.plot([0, MAP_SIZE], [line, line], **style)
    panel.plot([line, line], [0, MAP_SIZE], **style)
  panel.set_xlim(-HALO_SIZE - 0.5, MAP_SIZE + HALO_SIZE + 0.5)
  panel.set_ylim(MAP_SIZE + HALO_SIZE + 0.5, -HALO_SIZE - 0.5)
  panel.set_aspect("equal")
  panel.set_axis_off()
  panel.set_title(title)


if __name__ == "__main__":
  main()
