"""Compares slide attention and Slide-Swins with the authors' code.

  git clone https://github.com/LeapLabTHU/Slide-Transformer AUTHORS
  pip install torch
  python scripts/parity_slide.py --authors=AUTHORS [--write]
      [--model=slide_swin_tiny ...]

Weights are drawn at random, the same for both; everything is in float64 on the
CPU. The table has, for the layers and models of a training (deformed shifts)
and of an inference (merged shifts), the largest difference of the outputs over
the largest output, and of the gradients of a weighted sum of the outputs
likewise, over input and parameters (allowed: 1e-10). The authors' layer ends in
an output projection, which ours leaves to its host; it is the identity here.
Models are narrow ones and, with --model, published ones, each with windows of 7
and with the windows of the authors' configs, which are whole maps. `--write`
stores the authors' answers to the layers and narrow models for the tests, which
need no PyTorch.
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
from tests.layers import slide_drawn  # noqa: E402
from tests.models import slide_swin_drawn  # noqa: E402

SOURCE = "slide_transformer/models/slide_swin.py"
MODELS = ("slide_swin_tiny", "slide_swin_small", "slide_swin_base")
ALLOWED = 1e-10


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--authors", required=True, metavar="FOLDER")
  parser.add_argument("--model", action="append", default=[], choices=MODELS)
  parser.add_argument(
    "--write", action="store_true", help="writes the tests' answers"
  )
  arguments = parser.parse_args()
  path = pathlib.Path(arguments.authors) / SOURCE
  if not path.exists():
    raise UsageError(f"--authors: there is no file {path}; clone it first")
  try:
    import torch
  except ImportError as error:
    raise UsageError(f"{error}: pip install torch") from None
  authors = authors_module(path, torch)
  jax.config.update("jax_enable_x64", True)
  print(f"PyTorch {torch.__version__}, JAX {jax.__version__}, float64")
  print(f"{'':40}{'shifts':10}{'outputs':>10}{'gradients':>11}")

  errors, layers, models = [], {}, {}
  for case in slide_drawn.CASES:
    errors += compare_layer(case, authors, layers, torch)
  for title, case in slide_swin_drawn.CASES.items():
    errors += compare_model(title, case, authors, models, torch)
  for name in arguments.model:
    for words, fields, window in (
      ("windows of 7", {}, 7),
      ("whole maps", slide_swin_drawn.WHOLE, 56),
    ):
      case = name, 224, fields, window
      errors += compare_model(f"{name}, {words}", case, authors, {}, torch)
  if not all(error <= ALLOWED for error in errors):  # NaN is not, either.
    sys.exit("error: beyond what is allowed")
  if arguments.write:
    write(slide_drawn.GOLDEN, layers)
    write(slide_swin_drawn.GOLDEN, models)


def compare_layer(case, authors, golden, torch):
  """Compares a layer; returns the errors and keeps the answers."""
  *size, channels, heads, window = case
  shapes, state, x, weight = slide_drawn.draw(case)
  theirs = authors.SlideAttention(tuple(size), channels, heads, window)
  theirs = theirs.double()
  theirs.proj = torch.nn.Identity()
  actual = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  if actual != shapes:
    sys.exit(f"error: the authors' layer has parameters {actual}, not {shapes}")
  theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  tokens = torch.tensor(x).reshape(len(x), -1, channels).requires_grad_()
  output, gradients = answer(theirs, tokens, weight, torch)
  gradient_x = tokens.grad.numpy().reshape(x.shape)
  expected = (
    output.reshape(x.shape),
    slide_drawn.from_authors(gradients, case),
    gradient_x,
  )
  golden[slide_drawn.key(case, "output")] = expected[0]
  golden[slide_drawn.key(case, "gradient")] = slide_drawn.projected(
    *expected[1:]
  )
  params = slide_drawn.from_authors(state, case)

  def run(shifts, params):
    layer = SlideAttention(heads, window, shifts=shifts, dtype=jnp.float64)
    return slide_drawn.run(layer, params, x, weight)

  title = f"{'×'.join(map(str, size))}, {channels} channels, window {window}"
  return compare(title, run, params, expected)


def compare_model(title, case, authors, golden, torch):
  """Compares a whole model; returns the errors and keeps the answers."""
  name, side, fields, window = case
  model = slide_swin_drawn.create(name, fields)
  spec = model.spec
  # One image of a large model is enough to compare with.
  images = 2 if side < 224 else 1
  variables, x, weight = slide_swin_drawn.draw(model, side, images)
  theirs = authors.SlideSwinTransformer(
    img_size=side,
    num_classes=spec.num_classes,
    embed_dim=spec.widths[0],
    depths=list(spec.depths),
    num_heads=list(spec.parts["operator slide"].heads),
    window_size=window,
    drop_path_rate=0.0,
    ka=spec.parts["operator slide"].slide_window,
    num_slide_stages=spec.operators.index("window"),
  ).double()
  entries = slide_swin_drawn.entries(model, variables)
  state = slide_drawn.export(entries, variables)
  check_count(title, theirs, variables)
  trained = {k for k, v in theirs.named_parameters() if v.requires_grad}
  if trained != state.keys():
    sys.exit(f"error: the authors' names differ: {trained ^ state.keys()}")
  theirs.load_state_dict(
    {k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()},
    strict=False,  # It keeps its one-hot kernels and its constants.
  )
  # Channels first.
  given = torch.tensor(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
  output, gradients = answer(theirs, given, weight, torch)
  expected = (
    output,
    slide_drawn.read(entries, gradients)["params"],
    given.grad.numpy().transpose(0, 2, 3, 1),
  )
  golden[f"{title}/output"] = output
  golden[f"{title}/gradient"] = slide_drawn.projected(*expected[1:])

  def run(shifts, params):
    model = slide_swin_drawn.create(name, fields | {"slide_shifts": shifts})
    return slide_drawn.run(model, params, x, weight)

  return compare(title, run, variables["params"], expected)


def check_count(title, theirs, variables):
  """Prints how many parameters the authors count, and how many are ours."""
  ours = sum(leaf.size for leaf in jax.tree.leaves(variables))
  counted = list(theirs.parameters())
  total = sum(each.numel() for each in counted)
  frozen = sum(each.numel() for each in counted if not each.requires_grad)
  print(f"{title}: {total:,} parameters, {frozen:,} of them frozen", end="; ")
  print(f"ours {ours:,}", flush=True)
  if ours + frozen != total:
    sys.exit("error: the counts differ")


def answer(theirs, given, weight, torch):
  """Returns the authors' output, and gradients of its weighted sum by name."""
  output = theirs(given)
  (output * torch.tensor(weight).reshape(output.shape)).sum().backward()
  gradients = {
    name: parameter.grad.numpy()
    for name, parameter in theirs.named_parameters()
    if parameter.requires_grad
  }
  return output.detach().numpy(), gradients


def compare(title, run, params, expected):
  """Prints the errors of both kinds of shifts and returns them."""
  output, gradients, gradient_x = expected
  found = []
  for shifts, given, wanted in (
    ("deformed", params, gradients),
    ("merged", merge(params), merged_gradients(gradients)),
  ):
    actual, ours, ours_x = run(shifts, given)
    errors = [difference(actual, output), difference(ours_x, gradient_x)]
    # The bias of a window's keys has no gradient but rounding.
    wanted, tree = jax.tree.flatten(wanted)
    least = 1e-4 * max(np.abs(leaf).max() for leaf in wanted)
    errors += [
      difference(each, other, least)
      for each, other in zip(tree.flatten_up_to(ours), wanted, strict=True)
    ]
    worst = np.max(errors[1:])
    print(f"{title:40}{shifts:10}{errors[0]:10.1e}{worst:11.1e}", flush=True)
    found += errors
  return found


def merged_gradients(gradients):
  """Returns the gradients of merged shifts: those of the learned kernel."""
  merged = {
    name.removeprefix("deformed_"): merged_gradients(each)
    if isinstance(each, dict)
    else each
    for name, each in gradients.items()
  }
  merged.pop("fixed_bias", None)
  return merged


def authors_module(path, torch):
  """Returns the classes and functions of the authors' file, without its
  imports, which ask for an old timm."""
  found = [
    node
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
  ]
  module = types.ModuleType("authors")
  module.torch, module.nn = torch, torch.nn
  module.F = torch.nn.functional
  module.trunc_normal_ = torch.nn.init.trunc_normal_
  module.to_2tuple = lambda side: (side, side)
  exec(compile(ast.Module(found, []), str(path), "exec"), vars(module))
  for name in ("SlideAttention", "SlideSwinTransformer"):
    if not hasattr(module, name):
      raise UsageError(f"--authors: {path} has no class {name}")
  return module


def write(path, golden):
  path.parent.mkdir(exist_ok=True)
  np.savez_compressed(path, **golden)
  command.wrote(path)


def difference(actual, expected, least=0.0) -> float:
  """Returns the largest difference over the largest number, or over `least`."""
  scale = max(np.abs(expected).max(), least)
  return float(np.abs(np.asarray(actual) - expected).max() / scale)


if __name__ == "__main__":
  command.run(main)
