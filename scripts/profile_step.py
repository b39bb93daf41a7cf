"""Shows in which parts of a model the time of its training step goes.

  python scripts/profile_step.py [--model=halonet_h1] [--image_size=256]
      [--batch_size=8] [--task=detection] [--model.FIELD=VALUE ...]
      [--json=FILE]

JAX's profiler records the operations of --rounds steps after the first. The
name of an operation says which module it comes from. Forward and backward pass
meet under one name, and so do all blocks: attention/softmax is that of every
attention of the model. What belongs to no module is "other": the loss, the
optimizer and the moving averages.

The times are of threads: on two cores they add up to more than the step takes.
"""

import argparse
import collections
import itertools
import pathlib
import re
import tempfile
import time
import warnings

import bench_model
import benchmark

from halonet import command
from halonet.errors import RunError
from halonet.tpu import hlo_text

# Their time is that of the operations in them.
CONTROL = ("call", "conditional", "while")
# Parts of a name that say how an operation was made, or of which block.
_IGNORED = re.compile(
  r"train_step|stage\d+_block\d+|while|body|cond|closed_call|eval_jaxpr"
  r"|_.*|.*[()].*|.*->.*|.*\._\w+|"
)
OTHER = "other"


def main() -> None:
  parser = benchmark.parser(__doc__)
  parser.add_argument(
    "--task", choices=bench_model.CLASSES, default="classification"
  )
  arguments, rest = parser.parse_known_args()
  arguments.fields = command.model_fields(rest)
  model = benchmark.create_model("--model", arguments, arguments.fields)
  bench_model.configured(arguments)[1].check_model(model)
  print(f"{benchmark.words(arguments)}: compiling", flush=True)
  seconds, threads = measure(arguments)
  print(f"A step takes {seconds * 1e3:.1f} ms; its threads are busy with")
  total = sum(threads.values())
  rows = [
    (part, f"{busy * 1e3:.1f}", f"{busy / total:.1%}")
    for part, busy in sorted(threads.items(), key=lambda each: -each[1])
  ]
  print(command.table(("part", "ms", "share"), rows, left=1))
  found = {"step_seconds": seconds, "thread_seconds": threads}
  command.write_json(arguments.json, found)


def measure(arguments: argparse.Namespace) -> tuple[float, dict[str, float]]:
  """Runs the step; returns its seconds, and those of threads in each part."""
  import jax

  *_, train_step, state, given = bench_model.training(arguments)
  program = train_step.lower(state, given).compile()
  names = {
    instruction.name: instruction.op_name
    for computation in hlo_text.parse(program.as_text())[0].values()
    for instruction in computation.values()
    if instruction.opcode not in CONTROL
  }
  state, _ = jax.block_until_ready(program(state, given))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      begin = time.perf_counter()
      for _ in range(arguments.rounds):
        state, _ = jax.block_until_ready(program(state, given))
      seconds = (time.perf_counter() - begin) / arguments.rounds
    (file,) = pathlib.Path(folder).glob("**/*.xplane.pb")
    trace = jax.profiler.ProfileData.from_file(str(file))
  threads = collections.Counter()
  with warnings.catch_warnings():
    # That of a type of JAX without __module__, which Python 3.13 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    lines = [line for plane in trace.planes for line in plane.lines]
    for event in itertools.chain.from_iterable(x.events for x in lines):
      operation = dict(event.stats).get("hlo_op")
      if operation in names:
        part = part_of(names[operation])
        threads[part] += event.duration_ns / 1e9 / arguments.rounds
  if not threads:
    raise RunError("JAX's profiler recorded no operation of the step")
  return seconds, dict(threads)


def part_of(name: str) -> str:
  """Returns the part of a block that an operation is of.

  Args:
    name: of the operation, such as
      "jit(train_step)/jvp(Net)/Net._forward/stage1_block1/attention/softmax/sub".
  """
  first = name.split(";")[0]
  *path, _ = re.sub(r"jit\((\w+)\)", r"\1", first).split("/")
  known = [part for part in path if not _IGNORED.fullmatch(part)]
  return "/".join(known[:2]) or OTHER


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
