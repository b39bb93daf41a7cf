"""Compares slide attention with the authors' layer, weights drawn at random.

  git clone https://github.com/LeapLabTHU/Slide-Transformer AUTHORS
  pip install torch
  python scripts/parity_slide.py --authors=AUTHORS [--write]

Everything is in float64 on the CPU. The table has, for the layers of a training
(deformed shifts) and of an inference (merged shifts), the largest difference of
the outputs over the largest output, and of the gradients of a weighted sum of
the outputs likewise, over input and parameters (allowed: 1e-10). The authors'
layer ends in an output projection, which ours leaves to its host; it is the
identity here. `--write` stores the authors' answers for
tests/layers/test_slide.py, which needs no PyTorch.
"""

import ast
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from halonet import command
from halonet.errors import UsageError
from halonet.layers.slide import SlideAttention, merge

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.layers.slide_drawn import (  # noqa: E402
  CASES,
  GOLDEN,
  draw,
  from_authors,
  key,
  projected,
  run,
)

SOURCE = "slide_transformer/models/slide_swin.py"
LAYER = "SlideAttention"
ALLOWED = 1e-10


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--authors", required=True, metavar="FOLDER")
  parser.add_argument(
    "--write", action="store_true", help=f"writes {GOLDEN.name}"
  )
  arguments = parser.parse_args()
  try:
    import torch
  except ImportError as error:
    raise UsageError(f"{error}: pip install torch") from None
  layer_class = authors_layer(pathlib.Path(arguments.authors), torch)
  jax.config.update("jax_enable_x64", True)

  golden, failed = {}, False
  print(f"PyTorch {torch.__version__}, JAX {jax.__version__}, float64")
  print(f"{'map':>8}{'channels':>10}{'heads':>7}{'window':>8}  ", end="")
  print(f"{'shifts':10}{'outputs':>10}{'gradients':>11}")
  for case in CASES:
    height, width, channels, heads, window = case
    shapes, state, x, weight = draw(case)
    theirs = layer_class((height, width), channels, heads, window).double()
    theirs.proj = torch.nn.Identity()
    check_names(theirs, shapes)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    tokens = torch.tensor(x).reshape(len(x), -1, channels).requires_grad_()
    expected = theirs(tokens).reshape(x.shape)
    (expected * torch.tensor(weight)).sum().backward()
    expected = expected.detach().numpy()
    gradients = {
      name: parameter.grad.numpy()
      for name, parameter in theirs.named_parameters()
      if parameter.requires_grad
    }
    of_x = tokens.grad.numpy().reshape(x.shape)
    # A change of layout serves gradients as it serves weights.
    wanted = from_authors(gradients, case)
    # The kernel and bias of the sum have the gradients of the learned one.
    wanted_merged = {k: v for k, v in wanted.items() if k != "fixed_bias"}
    wanted_merged["shift"] = wanted_merged.pop("deformed_shift")
    params = from_authors(state, case)
    for shifts, given, gradient in (
      ("deformed", params, wanted),
      ("merged", merge(params), wanted_merged),
    ):
      layer = SlideAttention(heads, window, shifts=shifts, dtype=jnp.float64)
      output, ours, ours_x = run(layer, given, x, weight)
      errors = [difference(output, expected), difference(ours_x, of_x)]
      errors += jax.tree.leaves(jax.tree.map(difference, ours, gradient))
      failed |= not max(errors) <= ALLOWED
      print(
        f"{f'{height}×{width}':>8}{channels:10}{heads:7}{window:8}  ", end=""
      )
      print(f"{shifts:10}{errors[0]:10.1e}{max(errors[1:]):11.1e}", flush=True)
    golden[key(case, "output")] = expected
    golden[key(case, "gradient")] = projected(wanted, of_x)
  if failed:
    sys.exit("error: beyond what is allowed")
  if arguments.write:
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden)
    command.wrote(GOLDEN)


def authors_layer(folder, torch):
  """Returns the class of the authors' attention, without the rest of its file,
  which asks for an old timm."""
  path = folder / SOURCE
  if not path.exists():
    raise UsageError(f"--authors: {folder} has no {SOURCE}; clone it first")
  found = [
    node
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name == LAYER
  ]
  if not found:
    raise UsageError(f"--authors: {path} has no class {LAYER}")
  module = types.ModuleType("authors")
  module.torch, module.nn = torch, torch.nn
  module.trunc_normal_ = torch.nn.init.trunc_normal_
  exec(compile(ast.Module(found, []), str(path), "exec"), vars(module))
  return getattr(module, LAYER)


def check_names(theirs, shapes):
  """Stops with a line if the authors' parameters are not those we draw."""
  actual = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  if actual != shapes:
    sys.exit(f"error: the authors' layer has parameters {actual}, not {shapes}")


def difference(actual, expected) -> float:
  scale = max(np.abs(expected).max(), 1e-6)
  return float(np.abs(np.asarray(actual) - expected).max() / scale)


if __name__ == "__main__":
  command.run(main)
