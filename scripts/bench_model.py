"""Measures a model: images per second, peak memory, compile time.

  python scripts/bench_model.py [--model=halonet_h1] [--image_size=256]
      [--batch_size=8] [--task=detection] [--model.FIELD=VALUE ...]
      [--json=FILE] [--peer=timm|torchvision | --other.FIELD=VALUE ...]

Two things are run: the forward pass of an inference, and the whole training
step of this project, from images to updated weights. A detector sees 20 random
boxes in each image, and its forward pass ends with the detections. Two parts
are also run alone: `matching` of anchors to boxes, and `suppression`, from the
outputs to the detections.

With --peer also that library's model, whose training step is the same: loss,
gradients, SGD with momentum. timm has classifiers; ours is then the same
network, NAME_timm where there is one. On a GPU timm's runs as fast as timm
makes it: compiled by torch.compile, channels last, and with AMP if the dtype is
bfloat16. torchvision has retinanet_resnet50, whose batch norms are trained,
too. Ours then has its 9 anchors around a pixel; it alone has batch norms in
pyramid and heads. With --other.FIELD=VALUE also another form of our model,
which has these fields instead, and takes turns with it.

Each contender has a process of its own, and all cores while the others wait.
They take turns in rounds, and medians are compared. Peak memory is that of the
device where it counts, else that of the process with all its libraries.
"""

import contextlib
import functools
import importlib
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

# Steps, and what of a detector's is not the network.
PARTS = {"forward": "suppression", "train": "matching"}
SETTINGS = ("task", "model", "image_size", "batch_size", "dtype", "fields")
CLASSES = {"classification": 1000, "detection": 90}
PEERS = {"classification": "timm", "detection": "torchvision"}


def main() -> None:
  parser = benchmark.parser(__doc__)
  parser.add_argument(
    "--step", action="append", choices=PARTS, help="(default: both)"
  )
  parser.add_argument("--task", choices=CLASSES, default="classification")
  parser.add_argument("--peer", choices=PEERS.values())
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
  model = benchmark.create_model("--model", arguments, arguments.fields)
  configured(arguments)[1].check_model(model)
  contenders = {"ours": run_jax}
  if arguments.other:
    fields = arguments.fields | arguments.other
    benchmark.create_model("--other", arguments, fields)
    contenders["other"] = run_other
  if arguments.peer:
    check_peer(arguments)
    contenders[arguments.peer] = run_torch
    if arguments.peer == "torchvision":
      arguments.fields["anchor_scales"] = 3
    elif f"{arguments.model}_timm" in halonet.list_models():
      arguments.model += "_timm"

  print(benchmark.words(arguments), flush=True)
  detects, found = arguments.task == "detection", {}
  for step in arguments.step or PARTS:
    part = {PARTS[step]: functools.partial(run_jax, part=True)}
    each = contenders | part if detects else contenders
    found[step] = measure(step, each, arguments)
  print(table(found))
  settings = {name: getattr(arguments, name) for name in (*SETTINGS, "other")}
  command.write_json(arguments.json, {"settings": settings, "found": found})


def check_peer(arguments) -> None:
  """Raises UsageError, before any process starts, if it has no such model."""
  peer, task = arguments.peer, arguments.task
  if arguments.other:
    raise UsageError("--other and --peer: one of them at a time")
  if peer != PEERS[task]:
    raise UsageError(f"--peer={peer}: the peer in {task} is {PEERS[task]}")
  if set(arguments.fields) - {"attention_implementation"}:
    raise UsageError(f"--peer={peer} has its fields; leave out --model.FIELD")
  try:
    library = importlib.import_module(peer)
  except ImportError as error:
    raise UsageError(
      f"--peer={peer}: {error}; pip install torch torchvision timm"
    ) from None
  name = arguments.model.removesuffix("_timm")
  known = library.list_models() if peer == "timm" else ["retinanet_resnet50"]
  if name not in known:
    raise UsageError(f"--peer={peer}: {peer} has no model {name}")


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
  names = [n for n in next(iter(found.values())) if n not in PARTS.values()]
  against = [*names, "–"][1]
  header = f"step,model,images/s,÷ {against}".split(",")
  header += ["peak memory, GiB", f"÷ {against}", "compiled in"]
  rows = []
  for step, contenders in found.items():
    peer = contenders.get(against)
    for name, own in contenders.items():
      ratios = dict.fromkeys(("images_per_second", "peak_memory_bytes"), "–")
      if peer and name == "ours":
        ratios = {key: f"{own[key] / peer[key]:.2f}" for key in ratios}
      speed, memory = ratios.values()
      rate = own["images_per_second"]
      if name == PARTS[step]:
        share = contenders["ours"]["images_per_second"] / rate
        name = f"{name}, {share:.2%} of ours"
      rows.append(
        (
          *(step, name, f"{rate:.2f}", speed),
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


def configured(arguments):
  """Returns the config of a training, and its task."""
  from halonet.training import config as config_lib

  chosen = {"name": arguments.model, "dtype": arguments.dtype}
  settings = {
    "task": arguments.task,
    "batch_size": arguments.batch_size,
    "data": {"image_size": arguments.image_size},
    "model": chosen | arguments.fields,
    "optimizer": {},
  }
  config = config_lib.from_json(json.dumps(settings))
  return config, benchmark.task_of(config, CLASSES[arguments.task])


def run_jax(step, arguments, part=False):
  """Returns a call of our step, or of its part, which waits for its end."""
  import jax

  from halonet.training.memory import peak_memory

  config, task = configured(arguments)
  model, mesh, train_step, state, given = benchmark.training(config, task)
  variables = state.variables

  @jax.jit
  def apply(variables, images):
    # As in training, so that the attention knows its device.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.apply(variables, images)

  def train():
    nonlocal state
    state, metrics = train_step(state, given)
    return metrics["loss"]

  images = given["image"]
  detect = jax.jit(lambda v, x: task.measure(apply(v, x["image"]), x))
  if step == "train":
    run = functools.partial(jax.jit(task.prepare), given) if part else train
  elif part:
    outputs = apply(variables, images)
    run = functools.partial(jax.jit(task.measure), outputs, given)
  elif arguments.task == "detection":
    run = functools.partial(detect, variables, given)
  else:
    run = functools.partial(apply, variables, images)
  device = jax.devices()[0].device_kind
  return lambda: jax.block_until_ready(run()), device, lambda: peak_memory()[0]


def run_other(step, arguments):
  """Returns a call of our step with the other form of the model."""
  arguments.fields |= arguments.other
  return run_jax(step, arguments)


def run_torch(step, arguments):
  """Returns a call of the peer on the same device; it waits for its end."""
  import torch

  from halonet.training.memory import peak_memory

  cuda = torch.cuda.is_available()
  device = torch.device("cuda" if cuda else "cpu")
  layout = torch.channels_last if cuda else torch.contiguous_format
  arrays = benchmark.batch(*configured(arguments))
  given = {k: torch.tensor(v).to(device) for k, v in arrays.items()}
  if arguments.task == "detection":
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(
      weights_backbone=None,
      num_classes=CLASSES["detection"],
      detections_per_img=100,  # As ours.
      min_size=arguments.image_size,  # It would resize images.
      max_size=arguments.image_size,
      size_divisible=1,
    )
    boxes = given["boxes"][:, : benchmark.OBJECTS, [1, 0, 3, 2]]
    pairs = zip(
      boxes, given["labels"][:, : benchmark.OBJECTS].long(), strict=True
    )
    targets = [[{"boxes": one, "labels": other} for one, other in pairs]]
  else:
    import timm

    model = timm.create_model(arguments.model.removesuffix("_timm"))
    labels, targets = given["label"].long(), []
  model = model.to(device, memory_format=layout)
  model = model.train() if step == "train" else model.eval()
  images = given["image"].permute(0, 3, 1, 2).contiguous(memory_format=layout)
  optimizer = torch.optim.SGD(
    model.parameters(), lr=1e-3, momentum=0.9, nesterov=True
  )
  compiled = torch.compile(model) if cuda and not targets else model

  def cast():
    narrow = arguments.dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow)

  def memory():
    return torch.cuda.max_memory_allocated() if cuda else peak_memory()[0]

  def forward():
    with torch.inference_mode(), cast():
      compiled(images)
    if cuda:
      torch.cuda.synchronize()

  def train():
    optimizer.zero_grad(set_to_none=True)
    with cast():
      outputs = compiled(images, *targets)
      if targets:  # Then it returns its losses.
        loss = sum(outputs.values())
      else:
        loss = torch.nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    optimizer.step()
    loss.item()  # Waits.

  name = torch.cuda.get_device_name() if cuda else "cpu"
  return (forward if step == "forward" else train), name, memory


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
