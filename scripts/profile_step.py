"""Shows in which parts of a model the time of its training step goes.

  python scripts/profile_step.py --config=configs/cifar10.py [--classes=10]
      [--config.FIELD=VALUE ...] [--rounds=5] [--json=FILE]

The config is one of scripts/train.sh. No data is read: the images are random.
The time of the input is that which a training prints as "input wait".

JAX's profiler records the operations of --rounds steps after the first. The
name of an operation says which module it comes from. Forward and backward pass
meet under one name, and so do all blocks: attention/softmax is that of every
attention of the model. What belongs to no module is "other": the loss, the
optimizer and the moving averages.

The times are of threads: on two cores they add up to more than the step takes.
"""

import collections
import itertools
import pathlib
import re
import tempfile
import time
import warnings

import benchmark
import jax

from halonet import command, fields
from halonet.errors import RunError
from halonet.tpu import hlo_text
from halonet.training import config as config_lib

# Their time is that of the operations in them.
CONTROL = ("call", "conditional", "while")
# Parts of a name that say how an operation was made, or of which block.
_IGNORED = re.compile(
  r"train_step|stage\d+_block\d+|while|body|cond|closed_call|eval_jaxpr"
  r"|_.*|.*[()].*|.*->.*|.*\._\w+|"
)
OTHER = "other"


def main() -> None:
  parser = command.parser(__doc__)
  parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
  for flag, default in (("--classes", 10), ("--rounds", 5)):
    parser.add_argument(
      flag, type=command.positive(int), default=default, metavar="N"
    )
  command.add_output(parser, "--json")
  arguments, rest = parser.parse_known_args()
  changes = fields.parse_overrides(rest)
  config = config_lib.load_config(
    arguments.config, [f"{field}={text}" for field, text in changes.items()]
  )
  config = config_lib.in_steps(config, 10**6)  # Rates do not matter here.
  task = benchmark.task_of(config, arguments.classes)
  print(
    f"{config.model.name}, {config.data.image_size} pixels, batches of"
    f" {config.batch_size}: compiling",
    flush=True,
  )
  seconds, threads = measure(config, task, arguments.rounds)
  print(f"A step takes {seconds * 1e3:.1f} ms; its threads are busy with")
  total = sum(threads.values())
  rows = [
    (part, f"{busy * 1e3:.1f}", f"{busy / total:.1%}")
    for part, busy in sorted(threads.items(), key=lambda each: -each[1])
  ]
  print(command.table(("part", "ms", "share"), rows, left=1))
  found = {"step_seconds": seconds, "thread_seconds": threads}
  command.write_json(arguments.json, found)


def measure(config, task, rounds: int) -> tuple[float, dict[str, float]]:
  """Runs the step; returns its seconds, and those of threads in each part."""
  *_, train_step, state, given = benchmark.training(config, task)
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
      for _ in range(rounds):
        state, _ = jax.block_until_ready(program(state, given))
      seconds = (time.perf_counter() - begin) / rounds
    (file,) = pathlib.Path(folder).glob("**/*.xplane.pb")
    trace = jax.profiler.ProfileData.from_file(str(file))
  threads = collections.Counter()
  with warnings.catch_warnings():
    # Python 3.13 deprecates types without __module__; JAX has such a type.
    warnings.simplefilter("ignore", DeprecationWarning)
    lines = [line for plane in trace.planes for line in plane.lines]
    for event in itertools.chain.from_iterable(x.events for x in lines):
      operation = dict(event.stats).get("hlo_op")
      if operation in names:
        part = part_of(names[operation])
        threads[part] += event.duration_ns / 1e9 / rounds
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
