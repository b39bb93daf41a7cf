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

Each contender has a process of its own, and all cores while the others wait.
They take turns in rounds, and medians are compared. Peak memory is that of the
device where it counts, else that of the process with all its libraries.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import benchmark

import halonet
from halonet import command
from halonet.errors import RunError, UsageError

STEPS = ("forward", "train")
SETTINGS = ("model", "image_size", "batch_size", "dtype", "fields", "other")
CLASSES = 1000


def main() -> None:
  parser = benchmark.parser(__doc__)
  parser.add_argument(
    "--step", action="append", choices=STEPS, help="(default: both)"
  )
  parser.add_argument("--peer", choices=("timm",))
  parser.add_argument(
    "--seconds",
    type=command.positive(float),
    default=5.0,
    help="per contender and round (5)",
  )
  arguments, rest = parser.parse_known_args()
  others = [word for word in rest if word.startswith("--other.")]
  rest = [word for word in rest if word not in others]
  arguments.other = command.model_fields(others, "--other.")
  arguments.fields = command.model_fields(rest)
  benchmark.create_model("--model", arguments, arguments.fields)
  contenders = {"ours": run_jax}
  if arguments.other:
    fields = arguments.fields | arguments.other
    benchmark.create_model("--other", arguments, fields)
    contenders["other"] = run_other
  if arguments.peer:
    check_peer(arguments)
    contenders["timm"] = run_timm
    if f"{arguments.model}_timm" in halonet.list_models():
      arguments.model += "_timm"

  print(benchmark.words(arguments), flush=True)
  steps = arguments.step or STEPS
  found = {step: measure(step, contenders, arguments) for step in steps}
  print(table(found))
  settings = {name: getattr(arguments, name) for name in SETTINGS}
  command.write_json(arguments.json, {"settings": settings, "found": found})


def check_peer(arguments) -> None:
  """Raises UsageError, before any process starts, if timm has no such model."""
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
  """Runs contenders in turns; returns images per second and memory of each."""
  with contextlib.ExitStack() as stack:
    turns, found = {}, {}
    for name, make in contenders.items():
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
        done = f"{step}: round {number + 1}/{arguments.rounds}"
        print(f"{done} {name:8} {rate:8.2f} images/s", flush=True)
  for each in found.values():
    each["images_per_second"] = statistics.median(each["rates"])
  return found


def table(found: dict[str, dict[str, dict]]) -> str:
  # All steps have the same contenders; ours is the first of one or two.
  against = [*next(iter(found.values())), "–"][1]
  header = f"step,model,images/s,÷ {against}".split(",")
  header += ["peak memory, GiB", f"÷ {against}", "compiled in"]
  rows = []
  for step, contenders in found.items():
    peer = contenders.get(against)
    for name, own in contenders.items():
      ratios = dict.fromkeys(("images_per_second", "peak_memory_bytes"), "–")
      if peer and own is not peer:
        ratios = {key: f"{own[key] / peer[key]:.2f}" for key in ratios}
      speed, memory = ratios.values()
      rows.append(
        (
          *(step, name, f"{own['images_per_second']:.2f}", speed),
          *(f"{own['peak_memory_bytes'] / 2**30:.2f}", memory),
          f"{own['compile_seconds']:.1f} s",
        )
      )
  return command.table(header, rows, left=2)


# ------------------------------------------------------------------- processes


@contextlib.contextmanager
def started(name, make, step, arguments) -> Iterator[tuple[dict, Callable]]:
  """Starts a contender, and ends it.

  Yields what it reports when it is ready, and a function that takes seconds and
  returns its calls, the seconds they took, and its peak memory in bytes.
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
  # The contenders share the memory of the device.
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
  except Exception as error:  # The parent reports it in one line.
    lines = str(error).strip().splitlines()
    pipe.send(lines[0] if lines else repr(error))


# ------------------------------------------------------------------ contenders


def run_jax(step, arguments):
  """Returns a call of our step, which waits for its end."""
  import jax

  from halonet.parallel import batch_sharding, make_mesh
  from halonet.tasks.task import make_task
  from halonet.training import config as config_lib
  from halonet.training import optimizer as optimizer_lib
  from halonet.training.memory import peak_memory
  from halonet.training.state import make_init
  from halonet.training.step import make_train_step

  chosen = {"name": arguments.model, "dtype": arguments.dtype}
  settings = {
    "task": "classification",
    "batch_size": arguments.batch_size,
    "data": {"image_size": arguments.image_size},
    "model": chosen | arguments.fields,
    "optimizer": {},
  }
  config = config_lib.from_json(json.dumps(settings))
  task = make_task(config, {"labels": [str(n) for n in range(CLASSES)]})
  model = config_lib.create_model(config, task)
  mesh = make_mesh(jax.devices()[:1])
  optimizer = optimizer_lib.make_optimizer(config)
  state = make_init(model, optimizer, config, mesh)(0)
  given = dict(zip(("image", "label"), batch(arguments), strict=True))
  given = jax.device_put(given, batch_sharding(mesh))
  variables = state.variables
  train_step = make_train_step(model, task, optimizer, config, mesh)

  @jax.jit
  def apply(variables, images):
    # As in training, so that the attention knows its device.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.apply(variables, images)

  def forward():
    apply(variables, given["image"]).block_until_ready()

  def train():
    nonlocal state
    state, metrics = train_step(state, given)
    metrics["loss"].block_until_ready()

  call = forward if step == "forward" else train
  return call, jax.devices()[0].device_kind, lambda: peak_memory()[0]


def run_other(step, arguments):
  """Returns a call of our step with the other form of the model."""
  arguments.fields |= arguments.other
  return run_jax(step, arguments)


def run_timm(step, arguments):
  """Returns a call of timm's model on the same device; it waits for its end."""
  import timm
  import torch

  from halonet.training.memory import peak_memory

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
    return peak_memory()[0]

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
  """Returns images and labels, drawn at random."""
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
