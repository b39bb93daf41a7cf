"""Compares every model of timm's with timm itself, weights drawn at random.

  pip install torch torchvision timm
  python scripts/parity_timm.py [--write] [MODEL...]

Parameters and batch-norm statistics are drawn by name, so nothing needs to be
downloaded; timm reads them, strictly, from a file that we write. The first
table has the largest difference of the logits over the largest logit, in
float32 on the CPU at two sizes (allowed: 1e-4). The second has the loss and its
gradient in training mode for some models (relative L2 distance, allowed: 1e-3).
They are in float64: with such weights PyTorch's own gradient of halonet26t
differs by 6e-3 between float32 and float64, as rounding turns signs at ReLUs.
The last columns of the first table say how far float32 logits, ours and timm's,
are from timm's in float64 (relative L2 distance). The third table has the
features of the ResNets, all stages, and their logits, in float64: largest
difference over largest value (allowed: 1e-6).
`--write` stores timm's answers for tests/interop/test_timm.py, which needs no
PyTorch; those of models that were not run stay, and those of models that only
this script compares are left out.
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import halonet
from halonet import command
from halonet.interop import timm as interop
from halonet.interop.pretrained import save_timm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from tests.interop.drawn import (
  CASES,
  FEATURE_CASES,
  GRADIENT_CASES,
  LARGE_CASES,
  draw_images,
  draw_labels,
  draw_state_dict,
  key,
  loss_and_gradients,
  project,
  sample,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "tests/interop/golden/timm.npz"


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("models", nargs="*", metavar="MODEL")
  parser.add_argument(
    "--write", action="store_true", help=f"writes {GOLDEN.name}"
  )
  arguments = parser.parse_args()
  try:
    import timm
    import torch
  except ImportError as error:
    sys.exit(f"error: {error}; pip install torch torchvision timm")
  torch.manual_seed(0)

  golden = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
  failed = False
  print(f"timm {timm.__version__}, PyTorch {torch.__version__}")
  print(
    f"{'model':30}{'size':>9}{'max |Δ|':>12}{'relative':>12}"
    f"{'ours, f64':>12}{'timm, f64':>12}"
  )
  for case in (*CASES, *LARGE_CASES):
    name, size, overrides, timm_options = case
    if arguments.models and name not in arguments.models:
      continue
    model = halonet.create_model(name, **overrides)
    theirs = timm.create_model(name.removesuffix("_timm"), **timm_options)
    drawn = load(theirs, model, torch)
    images = draw_images(2, size)
    with torch.no_grad():
      expected = theirs.eval()(to_torch(images, torch)).numpy()
      exact = theirs.double()(to_torch(images, torch).double()).numpy()
    actual = jax.jit(model.apply)(interop.from_timm(drawn, model), images)
    difference = np.abs(actual - expected).max()
    relative = difference / np.abs(expected).max()
    failed |= bool(not relative <= 1e-4)
    if case in CASES:
      golden[key(name, size, "logits")] = expected
    distances = (
      np.linalg.norm(logits - exact) / np.linalg.norm(exact)
      for logits in (actual, expected)
    )
    report(name, size, difference, relative, *distances)

  print(f"\n{'model':30}{'size':>9}{'loss':>12}{'gradient':>12}")
  for name, size, overrides, timm_options in GRADIENT_CASES:
    if arguments.models and name not in arguments.models:
      continue
    model = halonet.create_model(name, dtype="float64", **overrides)
    theirs = timm.create_model(name.removesuffix("_timm"), **timm_options)
    drawn = load(theirs, model, torch)
    images, labels = draw_images(4, size), draw_labels(4)
    loss = torch.nn.functional.cross_entropy(
      theirs.train().double()(to_torch(images, torch).double()),
      torch.tensor(labels),
    )
    loss.backward()
    expected = {k: p.grad.numpy() for k, p in theirs.named_parameters()}
    our_loss, actual = loss_and_gradients(model, drawn, images, labels)
    distance = np.sqrt(
      sum(((actual[k] - expected[k]) ** 2).sum() for k in expected)
    )
    distance /= np.sqrt(sum((x**2).sum() for x in expected.values()))
    loss = loss.item()
    loss_error = abs(our_loss - loss) / loss
    failed |= bool(not max(distance, loss_error) <= 1e-3)
    golden[key(name, size, "loss")] = np.array(loss)
    golden[key(name, size, "gradient")] = project(expected)
    report(name, size, loss_error, distance)

  stages = tuple(f"stage{number}" for number in (1, 2, 3, 4))
  titles = "".join(f"{title:>12}" for title in (*stages, "logits"))
  print(f"\n{'model':30}{'size':>9}{titles}")
  for name, size in FEATURE_CASES:
    if arguments.models and name not in arguments.models:
      continue
    model = halonet.create_model(name, dtype="float64")
    theirs = timm.create_model(name)
    drawn = load(theirs, model, torch)
    images = draw_images(2, size)
    expected = []
    with torch.no_grad():
      x = to_torch(images, torch).double()
      expected.append(theirs.eval().double()(x).numpy())
      theirs = timm.create_model(
        name, features_only=True, out_indices=(1, 2, 3, 4)
      )
      theirs.load_state_dict(
        {
          k: torch.tensor(array)
          for k, array in drawn.items()
          if not k.startswith("fc.")
        },
        strict=True,
      )
      for feature in theirs.eval().double()(x):
        expected.append(feature.permute(0, 2, 3, 1).numpy())
    logits, *maps = expected
    if name in {case[0] for case in CASES}:
      golden[key(name, size, "features")] = sample(maps).astype(np.float32)
    ours, our_logits = features_and_logits(model, drawn, images)
    pairs = [(ours[stage], x) for stage, x in zip(stages, maps, strict=True)]
    figures = [
      np.abs(actual - wanted).max() / np.abs(wanted).max()
      for actual, wanted in (*pairs, (our_logits, logits))
    ]
    failed |= bool(not max(figures) <= 1e-6)
    report(name, size, *figures)

  if failed:
    sys.exit("error: beyond what is allowed")
  if arguments.write:
    np.savez_compressed(GOLDEN, **golden)
    command.wrote(GOLDEN)


def features_and_logits(model, drawn, images):
  """All stages by name, and the logits, in float64."""
  with jax.enable_x64(True):
    images = jnp.asarray(np.asarray(images), jnp.float64)
    variables = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64), interop.from_timm(drawn, model)
    )
    features = jax.jit(
      lambda *arguments: model.apply(*arguments, method="features")
    )(variables, images)
    logits = jax.jit(model.apply)(variables, images)
    return jax.tree.map(np.asarray, (features, logits))


def report(name, size, *figures):
  shape = f"{size[0]}×{size[1]}"
  figures = "".join(f"{figure:12.2e}" for figure in figures)
  print(f"{name:30}{shape:>9}{figures}", flush=True)


def load(theirs, model, torch):
  """Gives timm's model drawn weights through our file, and returns them."""
  from safetensors.torch import load_file

  shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  drawn = draw_state_dict(shapes)
  variables = interop.from_timm(drawn, model)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "exported.safetensors"
    save_timm(path, variables, model)
    theirs.load_state_dict(load_file(path), strict=True)
  for name, array in theirs.state_dict().items():
    np.testing.assert_array_equal(array.numpy(), drawn[name], err_msg=name)
  return drawn


def to_torch(images, torch):
  return torch.tensor(np.asarray(jnp.transpose(images, (0, 3, 1, 2))))


if __name__ == "__main__":
  main()
