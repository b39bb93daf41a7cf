"""Compares the ResNets with torchvision's, weights drawn at random.

  pip install torch torchvision
  python scripts/parity_resnet.py [MODEL...]

torchvision reads the weights, strictly, from a file that we write, and so do we
from a file of its own. The table has the largest difference over the largest
value, of all four stages and the logits, in float32 and float64 on the CPU
(allowed: 1e-6; in float32 for the logits alone).
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import halonet
from halonet import command
from halonet.interop.pretrained import save_timm
from halonet.models.timm_models import TIMM_RESNETS

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from tests.interop.drawn import draw_images, draw_state_dict

SIZES = (224, 224), (97, 131)
STAGES = "stage1", "stage2", "stage3", "stage4"


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("models", nargs="*", metavar="MODEL")
  arguments = parser.parse_args()
  try:
    import torch
    import torchvision
  except ImportError as error:
    sys.exit(f"error: {error}; pip install torch torchvision")

  print(f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}")
  titles = "".join(f"{title:>10}" for title in (*STAGES, "logits"))
  print(f"{'model':12}{'size':>9}{'dtype':>9}{titles}")
  failed = False
  for name in arguments.models or TIMM_RESNETS:
    theirs, variables = load(name, torch, torchvision)
    for size in SIZES:
      for dtype in ("float32", "float64"):
        images = np.asarray(draw_images(2, size), dtype)
        expected = run_torchvision(theirs.to(getattr(torch, dtype)), images)
        actual = run(name, variables, images, dtype)
        figures = [
          np.abs(x - y).max() / np.abs(y).max()
          for x, y in zip(actual, expected, strict=True)
        ]
        counted = figures if dtype == "float64" else figures[-1:]
        failed |= bool(not max(counted) <= 1e-6)
        shape = f"{size[0]}×{size[1]}"
        figures = "".join(f"{figure:10.1e}" for figure in figures)
        print(f"{name:12}{shape:>9}{dtype:>9}{figures}", flush=True)
  if failed:
    sys.exit("error: beyond what is allowed")


def load(name, torch, torchvision):
  """Makes torchvision's model with drawn weights, and our variables."""
  from safetensors.torch import load_file, save_file

  theirs = torchvision.models.get_model(name).eval()
  shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  drawn = draw_state_dict(shapes)
  theirs.load_state_dict({k: torch.tensor(x) for k, x in drawn.items()})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "torchvision.safetensors"
    save_file(theirs.state_dict(), path)
    model, variables = halonet.load_pretrained(name, str(path))
    path = path.with_name("ours.safetensors")
    save_timm(path, variables, model)
    theirs.load_state_dict(load_file(path), strict=True)
  for k, array in theirs.state_dict().items():
    np.testing.assert_array_equal(array.numpy(), drawn[k], err_msg=k)
  return theirs, variables


def run_torchvision(theirs, images):
  """Features of all stages, NHWC, and logits."""
  import torch
  from torchvision.models._utils import IntermediateLayerGetter

  x = torch.tensor(images.transpose(0, 3, 1, 2))
  layers = {f"layer{number}": str(number) for number in (1, 2, 3, 4)}
  with torch.no_grad():
    maps = IntermediateLayerGetter(theirs, layers).eval()(x).values()
    return [x.permute(0, 2, 3, 1).numpy() for x in maps] + [theirs(x).numpy()]


def run(name, variables, images, dtype):
  """Features of all stages, and logits."""
  model = halonet.create_model(name, dtype=dtype)
  with jax.enable_x64(dtype == "float64"):
    variables, images = jax.tree.map(
      lambda x: jnp.asarray(x, dtype), (variables, images)
    )
    maps = jax.jit(lambda *x: model.apply(*x, method="features"))(
      variables, images
    )
    logits = jax.jit(model.apply)(variables, images)
    return [np.asarray(x) for x in (*(maps[s] for s in STAGES), logits)]


if __name__ == "__main__":
  main()
