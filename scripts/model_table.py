"""Prints the table of models, or writes it into docs/models.md.

  python scripts/model_table.py [--write]

Parameters are counted, and so are the operations of one image's forward pass (a
multiplication and an addition are two), at the image size of the model's
source. Padding to whole blocks and the relative positions are part of them.
"""

import collections
import pathlib

import reproduce

import halonet
from halonet import command
from halonet.cost import model as model_cost
from halonet.models.registry import get_entry

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"

# Parameters in millions and ImageNet top-1 in per cent that timm publishes. The
# papers' figures are in docs/reproduce.md.
TIMM = {
  "halonet_h1_timm": "8.10 M",
  "halonet26t": "12.48 M, 79.134",
  "sehalonet33ts": "13.69 M, 80.976",
  "halonet50ts": "22.73 M, 81.640",
  "eca_halonext26ts": "10.76 M, 79.518",
  "lamhalobotnet50ts_256": "22.57 M, 81.5",
  "halo2botnet50ts_256": "22.64 M, 82.084",
  "haloregnetz_b": "11.68 M, 81.058",
  "swin_tiny_patch4_window7_224": "28.29 M",
  "swin_small_patch4_window7_224": "49.61 M",
  "swin_base_patch4_window7_224": "87.77 M",
  "pvt_v2_b0": "3.67 M",
  "pvt_v2_b1": "14.01 M",
  "pvt_v2_b2": "25.36 M",
  "pvt_v2_b3": "45.24 M",
  "pvt_v2_b4": "62.56 M",
  "pvt_v2_b5": "81.96 M",
  "resnet50": "25.56 M",
  "resnet101": "44.55 M",
  "resnet152": "60.19 M",
}

HEADER = "model", "size", "parameters", "GFLOPs", "source"


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
  arguments = parser.parse_args()
  origins = sources()
  names = command.progress(halonet.list_models(), "models")
  lines = [row(name, origins[name]) for name in names]
  text = command.table(HEADER, lines, len(HEADER))
  if arguments.write:
    command.write_section(PAGE, "models", text)
  else:
    print(text)


def sources() -> dict[str, list[str]]:
  """Returns the tables of the papers, or timm, that each model stands in."""
  found = collections.defaultdict(list)
  for table in reproduce.read_tables():
    if table.trains:
      source = f"{table.paper}: {table.name.partition(':')[0]}"
      for line in filter(table.command, table.rows):
        models = found[reproduce.load(table, line).model.name]
        if source not in models:
          models.append(source)
  for name, published in TIMM.items():
    found[name].append(f"timm: {published}")
  return found


def row(name: str, origins: list[str]) -> tuple:
  size = get_entry(name).image_size
  cost = model_cost.count(halonet.create_model(name), size).total
  return (
    *(f"`{name}`", size, f"{cost.parameters:,}", f"{cost.flops / 1e9:.2f}"),
    "; ".join(origins) or "–",
  )


if __name__ == "__main__":
  command.run(main)
