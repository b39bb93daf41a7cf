"""Prints the table of models, or writes it into docs/models.md.

  python scripts/model_table.py [--write]

Parameters are counted, and so are the operations of one image's forward pass (a
multiplication and an addition are two), at the image size of the model's
source. Padding to whole blocks and the relative positions are part of them.
"""

import pathlib

import halonet
from halonet import command
from halonet.cost import model as model_cost
from halonet.models.registry import get_entry

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"

# Where a model is described, its published parameters in millions, and its
# published ImageNet top-1 with the source. Tables are HaloNet's unless SASA's
# are named. [2]: a secondary source. "21k": pre-trained on ImageNet-21k at 384.
# "held out": on a part of the training images. Unpublished models have no row.
PUBLISHED = {
  "halonet_h0": ("Table 2", "5.5", "77.9 [2]"),
  "halonet_h1": ("Table 2", "8.1", "79.9 [2]"),
  "halonet_h2": ("Table 2", "9.4", "80.4 [2]"),
  "halonet_h3": ("Table 2", "12.3", "81.9 [2]"),
  "halonet_h4": ("Table 2", "19.1", "83.3 [2]"),
  "halonet_h5": ("Table 2", "30.7", "84.0 [2]"),
  "halonet_h6": ("Table 2", "43.4", "84.4 [2]"),
  "halonet_h7": ("Table 2", "67", "84.9, Table 4"),
  "halonet_h7_conv1": ("Table 4", "~67", "84.6, Table 4"),
  "halonet_h7_conv12": ("Table 4", "~67", "84.7, Table 4"),
  "halonet_h7_conv123": ("Table 4", "~67", "83.8, Table 4"),
  "halonet_h4_base128": ("Table 6", "85", "85.6, Table 6, 21k"),
  "halonet_h4_base128_patch4": ("Table 6", "85", "85.4, Table 6, 21k"),
  "halonet_h4_base128_conv12": ("Table 6", "87", "85.5, Table 6, 21k"),
  "halonet50": ("Table 3", "18.0", "78.6, Table 3"),
  "halonet50_se": ("Table 3", "–", "78.6, Table 3"),
  "halonet50_se_silu": ("Table 3", "–", "79.0, Table 3"),
  "halonet50_absolute": ("Appendix", "–", "77.5, appendix"),
  "halonet50_layers98": ("Table A1", "~30", "81.4, Table A1"),
  "halonet50_rv3": ("Table A1", "~30", "81.0, Table A1"),
  "halonet50_rw125": ("Table A1", "~30", "80.9, Table A1"),
  "halonet50_rb65": ("Table A1", "~30", "80.6, Table A1"),
  "halonet50_rqk65": ("Table A1", "~30", "80.3, Table A1"),
  "resnet50": ("Table 3", "25.5", "77.6, Table 3"),
  "resnet50_se": ("Table 3", "–", "78.6, Table 3"),
  "resnet50_se_silu": ("Table 3", "–", "78.9, Table 3"),
  "resnet50_se8": ("Table 5", "–", "–"),
  "resnet50_se8_halo_b8": ("Table 5", "–", "–"),
  "resnet50_se8_halo_b32": ("Table 5", "–", "–"),
  "resnet101": ("ResNet", "44.5", "–"),
  "resnet101_se8": ("Table 5", "–", "–"),
  "resnet101_se8_halo_b8": ("Table 5", "–", "–"),
  "resnet26": ("SASA, Table 1", "13.7", "74.5"),
  "resnet38": ("SASA, Table 1", "19.6", "76.2"),
  "sasa_resnet26": ("SASA, Table 1", "10.3", "75.8"),
  "sasa_resnet38": ("SASA, Table 1", "14.1", "77.1"),
  "sasa_resnet50": ("SASA, Table 1", "18.0", "77.4"),
  "sasa_resnet26_full": ("SASA, Table 1", "10.3", "74.8"),
  "sasa_resnet38_full": ("SASA, Table 1", "14.1", "76.9"),
  "sasa_resnet50_full": ("SASA, Table 1", "18.0", "77.6"),
  "sasa_resnet50_full_linear": ("SASA, Table 7", "–", "76.2"),
  "sasa_resnet50_full_conv": ("SASA, Table 7", "–", "77.2"),
  "sasa_resnet50_stages1": ("SASA, Table 3", "25.5", "79.7, held out"),
  "sasa_resnet50_stages12": ("SASA, Table 3", "25.0", "79.6, held out"),
  "sasa_resnet50_stages123": ("SASA, Table 3", "22.7", "79.9, held out"),
  "sasa_resnet50_stages234": ("SASA, Table 3", "18.1", "80.7, held out"),
  "sasa_resnet50_stages34": ("SASA, Table 3", "18.5", "80.7, held out"),
  "sasa_resnet50_stages4": ("SASA, Table 3", "20.8", "80.2, held out"),
  "sasa_resnet50_absolute": ("SASA, Table 5", "–", "78.2, held out"),
  "sasa_resnet50_no_position": ("SASA, Table 5", "–", "77.6, held out"),
  "sasa_resnet50_no_content": ("SASA, Table 6", "16.7", "76.9"),
  "halonet_h1_timm": ("timm", "8.10", "–"),
  "halonet26t": ("timm, weights", "12.48", "79.134, timm"),
  "sehalonet33ts": ("timm, weights", "13.69", "80.976, timm"),
  "halonet50ts": ("timm, weights", "22.73", "81.640, timm"),
  "eca_halonext26ts": ("timm, weights", "10.76", "79.518, timm"),
  "lamhalobotnet50ts_256": ("timm, weights", "22.57", "81.5, timm"),
  "halo2botnet50ts_256": ("timm, weights", "22.64", "82.084, timm"),
  "haloregnetz_b": ("timm, weights", "11.68", "81.058, timm"),
}


HEADER = (
  *("model", "size", "parameters", "published, M", "GFLOPs", "source"),
  *("published top-1", "ours"),
)


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
  arguments = parser.parse_args()
  text = command.table(HEADER, map(row, halonet.list_models()), len(HEADER))
  if arguments.write:
    command.write_section(PAGE, "models", text)
  else:
    print(text)


def row(name: str) -> tuple:
  size = get_entry(name).image_size
  cost = model_cost.count(halonet.create_model(name), size).total
  source, millions, accuracy = PUBLISHED.get(name, ("–",) * 3)
  return (
    *(f"`{name}`", size, f"{cost.parameters:,}", millions),
    *(f"{cost.flops / 1e9:.2f}", source, accuracy, "not yet measured"),
  )


if __name__ == "__main__":
  main()
