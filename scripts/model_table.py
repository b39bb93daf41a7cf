"""Prints the README's table of models, or writes it into the README.

  python scripts/model_table.py [--write]

Parameters are counted, and so are the operations of one image's forward pass,
in the program as JAX hands it to the compiler (a multiplication and an addition
are two), at the image size of the model's source. Padding to whole blocks and
the relative positions are part of them.
"""

import argparse
import math
import pathlib

import jax
import jax.numpy as jnp

import halonet
from halonet.interop.pretrained import PRETRAINED
from halonet.models.registry import get_entry

README = pathlib.Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"

# ImageNet top-1 as published: by the paper (Table 4's rows, and a secondary
# source for H0 to H6; at the sizes of the table), and by timm for its weights.
PUBLISHED = {
  "halonet_h0": "77.9",
  "halonet_h1": "79.9",
  "halonet_h2": "80.4",
  "halonet_h3": "81.9",
  "halonet_h4": "83.3",
  "halonet_h5": "84.0",
  "halonet_h6": "84.4",
  "halonet_h7": "84.9",
  "halonet_h7_conv1": "84.6",
  "halonet_h7_conv12": "84.7",
  "halonet_h7_conv123": "83.8",
  "halonet_h4_base128": "85.6 (21k, at 384)",
  "halonet_h4_base128_patch4": "85.4 (21k, at 384)",
  "halonet_h4_base128_conv12": "85.5 (21k, at 384)",
  "halonet50": "78.6",
  "halonet50_se": "78.6",
  "halonet50_se_silu": "79.0",
  "resnet50": "77.6",
  "resnet50_se": "78.6",
  "resnet50_se_silu": "78.9",
  "halonet26t": "79.134",
  "sehalonet33ts": "80.976",
  "halonet50ts": "81.640",
  "eca_halonext26ts": "79.518",
  "halo2botnet50ts_256": "82.084",
  "haloregnetz_b": "81.058",
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--write", action="store_true", help=f"between the marks in {README.name}"
  )
  arguments = parser.parse_args()
  lines = [
    "| model | size | parameters | GFLOPs | source | published top-1 | ours |",
    "|---|---|---|---|---|---|---|",
    *(row(name) for name in halonet.list_models()),
  ]
  if not arguments.write:
    print("\n".join(lines))
    return
  before, rest = README.read_text().split(BEGIN)
  _, after = rest.split(END)
  README.write_text("\n".join([before + BEGIN, *lines, END + after]))
  print(f"Wrote {README}")


def row(name: str) -> str:
  model = halonet.create_model(name)
  size = get_entry(name).image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  params = jax.tree.leaves(variables["params"])
  count = sum(math.prod(leaf.shape) for leaf in params)
  lowered = jax.jit(model.apply).lower(variables, images)
  flops = lowered.cost_analysis()["flops"]
  if name in PRETRAINED:
    source = "timm, with weights"
  else:
    source = "timm" if model.spec.timm else "the paper"
  published = PUBLISHED.get(name, "–")
  return (
    f"| `{name}` | {size} | {count:,} | {flops / 1e9:.2f} | {source} |"
    f" {published} | not yet measured |"
  )


if __name__ == "__main__":
  main()
