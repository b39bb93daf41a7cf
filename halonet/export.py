"""Writes a trained model as StableHLO, to be served without this library.

  python -m halonet.export --workdir=DIR [--step=STEP] OUT
  python -m halonet.export --model=NAME [--weights=FILE] OUT

The first is the model of a training run, the second one of timm's with its
published or other weights. OUT becomes a folder with
  model.stablehlo  the network and its weights, by `jax.export`, for any number
                   of images, on CPU, CUDA and TPU;
  model.json       the names of the classes, and how an image is prepared.

The network takes uint8 pixels and returns float32 outputs, such as logits. A
detector's refer to anchors.npy, beside these: top, left, bottom and right of
each anchor in pixels. docs/models.md says how.

  import jax.export, numpy as np
  with open("OUT/model.stablehlo", "rb") as file:
    model = jax.export.deserialize(file.read())
  images = np.zeros((2, 256, 256, 3), np.uint8)  # As model.json says.
  logits = model.call(images)
"""

import json
import pathlib
import tempfile

import numpy as np

from halonet import command
from halonet.errors import UsageError

PLATFORMS = "cpu", "cuda", "tpu"


def main() -> None:
  parser = command.parser(__doc__)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--workdir", metavar="DIR", help="folder of a run")
  source.add_argument("--model", metavar="NAME", help="one of timm's models")
  parser.add_argument(
    "--weights", metavar="FILE", help="a file or hf-hub:OWNER/NAME, for --model"
  )
  parser.add_argument(
    "--step", type=int, help="checkpoint of --workdir (the latest)"
  )
  parser.add_argument("out", metavar="OUT", type=pathlib.Path)
  arguments = parser.parse_args()
  if arguments.weights is not None and arguments.model is None:
    raise UsageError("--weights is for --model=NAME")
  if arguments.step is not None and arguments.workdir is None:
    raise UsageError("--step is for --workdir=DIR")
  out = arguments.out
  if out.exists():
    raise UsageError(f"{out} exists; name another folder")
  if not out.absolute().parent.is_dir():
    raise UsageError(f"there is no folder {out.parent}")

  from halonet import serving

  if arguments.model is not None:
    network = serving.of_published(arguments.model, arguments.weights)
  else:
    network = serving.of_run(arguments.workdir, arguments.step)
  size = network.description["image_size"]
  shape = f"uint8 images [n, {size}, {size}, 3]"
  print(f"Exporting for {', '.join(PLATFORMS)}: {shape}", flush=True)
  program = serving.export(network, PLATFORMS)
  files = [
    f"model.stablehlo ({len(program) / 1e6:.1f} MB)",
    "model.json",
    *(["anchors.npy"] if network.anchors is not None else []),
  ]
  try:
    # Beside OUT, so that OUT appears as a whole or not at all.
    with tempfile.TemporaryDirectory(
      prefix=f"{out.name}.", suffix=".partial", dir=out.parent
    ) as folder:
      partial = pathlib.Path(folder, out.name)
      partial.mkdir()
      (partial / "model.stablehlo").write_bytes(program)
      text = json.dumps(network.description, indent=2) + "\n"
      (partial / "model.json").write_text(text)
      if network.anchors is not None:
        np.save(partial / "anchors.npy", network.anchors)
      partial.rename(out)
  except OSError as error:
    raise UsageError(f"{out} cannot be written: {error.strerror}") from None
  command.wrote(out, ", ".join(files))
  print("Next: python -m halonet.export --help shows how to load it")


if __name__ == "__main__":
  command.run(main)
