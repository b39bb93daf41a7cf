"""Measures a model: images per second, peak memory, compile time.

  python scripts/bench_model.py [--model=halonet_h1] [--image_size=256]
      [--batch_size=8] [--model.FIELD=VALUE ...] [--json=FILE]
      [--peer=timm | --other.FIELD=VALUE ...]

Two things are run: the forward pass of an inference, and the whole training
step of this project, from images to updated weights. With --peer=timm also
timm's model, whose training step is the same: loss, gradients, SGD with
momentum; ours is then the same network, NAME_timm where there is one. On a GPU
timm's runs as fast as timm makes it: compiled by torch.compile, channels last,
and with AMP if the dtype is bfloat16. With --other.FIELD=VALUE also another
form of our model, which has these fields instead, and takes turns with it.

Each contender is a process of its own, and all cores are its own while the
others wait. They take turns in rounds, and medians are compared. Peak memory is
that of the device where it counts, else of the process, with all libraries.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import halonet
from halonet import command
from halonet.errors import RunError, UsageError

STEPS = ("forward", "train")
SETTINGS = ("model", "image_size", "batch_size", "dtype", "fields", "other")
CLASSES = 1000


def main() -> None:
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=form, allow_abbrev=False
  )
  parser.add_argument("--model", default="halonet_h1", metavar="NAME")
  parser.add_argument("--image_size", type=int, default=256, metavar="PIXELS")
  parser.add_argument("--batch_size", type=int, default=8, metavar="N")
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument(
    "--step", action="append", choices=STEPS, help="(default: both)"
  )
  parser.add_argument("--peer", choices=("timm",))
  parser.add_argument("--rounds", type=int, default=5, metavar="N")
  parser.add_argument(
    "--seconds", type=float, default=5.0, help="per contender and round (5)"
  )
  parser.add_argument("--json", type=pathlib.Path, help="also write it here")
  arguments, rest = parser.parse_known_args()
  for name in ("image_size", "batch_size", "rounds", "seconds"):
    if getattr(arguments, name) <= 0:
      parser.error(f"--{name} must be above 0")
  command.check_output("--json", arguments.json)
  others = [word for word in rest if word.startswith("--other.")]
  rest = [word for word in rest if word not in others]
  arguments.other = command.model_fields(others, "--other.")
  arguments.fields = command.model_fields(rest)
  check(arguments)
  if arguments.peer and f"{arguments.model}_timm" in halonet.list_models():
    arguments.model += "_timm"

  steps = arguments.step or STEPS
  contenders = [("ours", run_jax)]
  if arguments.peer:
    contenders.append(("timm", run_timm))
  if arguments.other:
    contenders.append(("other", run_other))
  print(
    f"{arguments.model} at {arguments.image_size} pixels, batches of"
    f" {arguments.batch_size}, {arguments.dtype}",
    flush=True,
  )
  found = {step: measure(step, contenders, arguments) for step in steps}
  print(table(found))
  if arguments.json:
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    result = json.dumps({"settings": settings, "found": found}, indent=2)
    arguments.json.write_text(result + "\n")
    print(f"Wrote {arguments.json}")


def check(arguments: argparse.Namespace) -> None:
  """Says what is wrong before any process starts."""
  from halonet.models import registry

  forms = {"--model": arguments.fields}
  if arguments.other:
    forms["--other"] = arguments.fields | arguments.other
  for option, fields in forms.items():
    try:
      registry.create_model(arguments.model, dtype=arguments.dtype, **fields)
    except ValueError as error:
      raise UsageError(f"{option}: {error}") from None
  if arguments.peer:
    if arguments.other:
      raise UsageError("--other and --peer: one of them at a time")
    if set(arguments.fields) - {"attention_implementation"}:
      raise UsageError("--peer=timm has timm's fields; leave out --model.FIELD")
    try:
      import timm
    except ImportError as error:
      raise UsageError(
        f"--peer=timm: {error}; pip install torch torchvision timm"
      ) from None
    name = arguments.model.removesuffix("_timm")
    if name not in timm.list_models():
      raise UsageError(f"--peer=timm: timm has no model {name}")


def measure(step, contenders, arguments) -> dict[str, dict]:
  """Runs contenders in turns; images per second and memory of each."""
  with contextlib.ExitStack() as stack:
    turns, found = {}, {}
    for name, make in contenders:
      print(f"{step}: starting {name} ...", end=" ", flush=True)
      first, turn = stack.enter_context(started(name, make, step, arguments))
      print(f"compiled in {first['compile_seconds']:.1f} s", flush=True)
      turns[name], found[name] = turn, first | {"rates": []}
    for number in range(arguments.rounds):
      for name, turn in turns.items():
        calls, seconds, memory = turn(arguments.seconds)
        rate = calls * arguments.batch_size / seconds
        found[name]["rates"].append(rate)
        found[name]["peak_memory_bytes"] = memory
        print(
          f"{step}: round {number + 1}/{arguments.rounds} {name:8}"
          f" {rate:8.2f} images/s",
          flush=True,
        )
  for each in found.values():
    each["images_per_second"] = statistics.median(each["rates"])
  return found


def table(found: dict[str, dict[str, dict]]) -> str:
  # All steps have the same contenders; ours is the first of one or two.
  against = [*next(iter(found.values())), "–"][1]
  lines = [
    f"| step | | images/s | ÷ {against} | peak memory, GiB | ÷ {against} |"
    " compiled in |",
    "|---|---|--:|--:|--:|--:|--:|",
  ]
  for step, contenders in found.items():
    peer = contenders.get(against)
    for name, own in contenders.items():
      speed = memory = "–"
      if peer and own is not peer:
        speed = own["images_per_second"] / peer["images_per_second"]
        memory = own["peak_memory_bytes"] / peer["peak_memory_bytes"]
        speed, memory = f"{speed:.2f}", f"{memory:.2f}"
      lines.append(
        f"| {step} | {name} | {own['images_per_second']:.2f} | {speed} |"
        f" {own['peak_memory_bytes'] / 2**30:.2f} | {memory} |"
        f" {own['compile_seconds']:.1f} s |"
      )
  return "\n".join(lines)


# ------------------------------------------------------------------- processes


@contextlib.contextmanager
def started(name, make, step, arguments) -> Iterator[tuple[dict, Callable]]:
  """Starts a contender, and ends it.

  Yields what it says when it is ready, and a function from seconds to calls,
  the seconds they took, and its peak memory in bytes.
  """
  context = multiprocessing.get_context("spawn")  # A fork has our threads.
  here, there = context.Pipe()
  process = context.Process(
    target=work, args=(make, step, arguments, there), daemon=True
  )

  def answer():
    try:
      said = here.recv()
    except EOFError:
      process.join()
      said = f"exit code {process.exitcode}"
    if isinstance(said, str):
      raise RunError(f"{name} failed: {said}")
    return said

  def turn(seconds):
    with contextlib.suppress(BrokenPipeError):  # Then it has ended.
      here.send(seconds)
    return answer()

  process.start()
  there.close()  # So that its end is noticed.
  try:
    yield answer(), turn
  finally:
    process.kill()
    process.join()


def work(make, step, arguments, pipe) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent's to handle.
  # While others take their turns, their memory is theirs.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  try:
    call, device, peak_memory = make(step, arguments)
    times = []
    for _ in range(2):
      begin = time.perf_counter()
      call()
      times.append(time.perf_counter() - begin)
    pipe.send({"compile_seconds": times[0] - times[1], "device": device})
    while True:
      seconds, calls, begin = pipe.recv(), 0, time.perf_counter()
      while (passed := time.perf_counter() - begin) < seconds or calls < 2:
        call()
        calls += 1
      pipe.send((calls, passed, peak_memory()))
  except EOFError:  # The parent is gone.
    return
  except Exception as error:  # Said by the parent, in a line.
    lines = str(error).strip().splitlines()
    pipe.send(lines[0] if lines else repr(error))


# ------------------------------------------------------------------ contenders


def run_jax(step, arguments):
  """A call of our step, which waits for its end."""
  import jax
  import numpy as np

  from halonet.training import config as config_lib
  from halonet.training import optimizer as optimizer_lib
  from halonet.training import state as state_lib
  from halonet.training.memory import peak_memory
  from halonet.training.step import make_train_step

  config = config_lib.default_config()
  config.batch_size = arguments.batch_size
  config.data.image_size = arguments.image_size
  config.model = {
    "name": arguments.model,
    "dtype": arguments.dtype,
    **arguments.fields,
  }
  model = config_lib.create_model(config, CLASSES)
  mesh = state_lib.make_mesh(jax.devices()[:1])
  optimizer = optimizer_lib.make_optimizer(config)
  state = state_lib.make_init(
    model, optimizer, arguments.image_size, mesh, ema=False
  )(0)
  images, labels = batch(arguments)
  images, labels = jax.device_put((images, labels), mesh.devices.flat[0])
  device = jax.devices()[0].device_kind

  def memory():
    return peak_memory()[0]

  if step == "forward":
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    @jax.jit
    def forward(variables, images):
      # As in training, so that the attention knows its device.
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return model.apply(variables, images)

    return (
      lambda: forward(variables, images).block_until_ready(),
      device,
      memory,
    )
  train_step = make_train_step(model, optimizer, config, mesh)
  given = {"image": images, "label": np.asarray(labels)}
  given = jax.device_put(given, state_lib.batch_sharding(mesh))

  def call():
    nonlocal state
    state, metrics = train_step(state, given)
    metrics["loss"].block_until_ready()

  return call, device, memory


def run_other(step, arguments):
  """A call of our step with the other form of the model."""
  arguments.fields |= arguments.other
  return run_jax(step, arguments)


def run_timm(step, arguments):
  """A call of timm's model on the same device, which waits for its end."""
  import timm
  import torch

  cuda = torch.cuda.is_available()
  device = torch.device("cuda" if cuda else "cpu")
  layout = torch.channels_last if cuda else torch.contiguous_format
  model = timm.create_model(arguments.model.removesuffix("_timm"))
  model = model.to(device, memory_format=layout)
  model = model.train() if step == "train" else model.eval()
  images, labels = batch(arguments)
  images = torch.tensor(images).permute(0, 3, 1, 2).to(device)
  images = images.contiguous(memory_format=layout)
  labels = torch.tensor(labels, dtype=torch.long).to(device)
  narrow = arguments.dtype == "bfloat16"
  optimizer = torch.optim.SGD(
    model.parameters(), lr=0.1, momentum=0.9, nesterov=True
  )
  compiled = torch.compile(model) if cuda else model

  def cast():
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow)

  def memory():
    if cuda:
      return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  def forward():
    with torch.inference_mode(), cast():
      compiled(images)
    if cuda:
      torch.cuda.synchronize()

  def train():
    optimizer.zero_grad(set_to_none=True)
    with cast():
      logits = compiled(images)
      loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
    loss.item()  # Waits.

  name = torch.cuda.get_device_name() if cuda else "cpu"
  return (forward if step == "forward" else train), name, memory


def batch(arguments):
  """Images and labels, drawn at random."""
  import numpy as np

  generator = np.random.default_rng(0)
  size = arguments.image_size
  images = generator.standard_normal(
    (arguments.batch_size, size, size, 3), np.float32
  )
  labels = generator.integers(CLASSES, size=arguments.batch_size)
  return images, labels.astype(np.int32)


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
