"""Measures slide attention, between its projections, by implementation.

  python scripts/bench_slide.py [--size=56] [--heads=3] [--window=3]
      [--batch_size=1] [--dtype=float32] [--rounds=5] [--fixed]
      [--implementation=NAME ...] [--topology=v5e:2x2] [--json=FILE]

The maps are square, with heads of 32 channels; by default those of stage 1 of
Slide-Swin-T. Kernel, bias and table are learned; with --fixed, there is no
kernel. Measured are the forward pass alone, and the value and gradients of all
arrays. Implementations take turns in one process; the fastest round of the
first one, the paper's convolution, is divided by that of each. Memory is what
the compiled program holds between its steps, beside arguments and results.

With --topology, nothing runs: the TPU compiler, which needs no TPU, estimates
the cycles of a core of that chip; those of Pallas kernels are counted in its
schedules. "pallas_tpu" is measured only there, as elsewhere it is interpreted.
"""

import functools
import importlib.metadata
import os
import tempfile
import time

from halonet import command
from halonet.errors import UsageError, unknown

HEAD_DIM = 32
PASSES = ("forward", "with gradients")


def main() -> None:
  parser = command.parser(__doc__)
  for flag, default in (
    ("--size", 56),
    ("--heads", 3),
    ("--window", 3),
    ("--batch_size", 1),
    ("--rounds", 5),
  ):
    parser.add_argument(
      flag, type=command.positive(int), default=default, metavar="N"
    )
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument("--fixed", action="store_true")
  parser.add_argument(
    "--implementation", action="append", metavar="NAME", help="(default: all)"
  )
  parser.add_argument("--topology", metavar="GENERATION:SHAPE")
  command.add_output(parser, "--json")
  arguments = parser.parse_args()
  from halonet.ops.shifted import check_window  # Heavy: after --help.

  try:
    check_window(arguments.window, "--window")
  except ValueError as error:
    raise UsageError(str(error)) from None
  names = implementations(arguments)
  if arguments.topology:
    with tempfile.TemporaryDirectory(prefix="bench_slide") as dump:
      rows = estimate(arguments, names, dump)
    header = "pass", "implementation", "M cycles", "ms", "ratio"
  else:
    rows = measure(arguments, names)
    header = "pass", "implementation", "ms", "ratio"
  header = (*header, "temporaries, MiB", "compiled in")
  rows.sort(key=lambda row: PASSES.index(row["pass"]))
  print(command.table(header, [line(row, rows) for row in rows], left=2))
  command.write_json(arguments.json, rows)


def implementations(arguments) -> list[str]:
  """Returns the forms that were asked for, or all that serve the kernel."""
  from halonet.ops.shifted import IMPLEMENTATIONS

  known = [name for name in reversed(IMPLEMENTATIONS) if name != "auto"]
  asked = arguments.implementation or ()
  if not arguments.topology:
    known.remove("pallas_tpu")
    if "pallas_tpu" in asked:
      raise UsageError("--implementation=pallas_tpu needs --topology")
  for name in asked:
    if name not in known:
      raise UsageError(
        f"--implementation: {unknown('implementation', name, known)}"
      )
  if not arguments.fixed:
    known.remove("slices")
    if "slices" in asked:
      raise UsageError(
        "--implementation=slices serves fixed shifts alone; add --fixed"
      )
  return asked or known


def functions(arguments, names):
  """Yields pass, name, and the function that is measured."""
  import jax
  import jax.numpy as jnp

  from halonet.ops.shifted import slide_attention

  # Flat maps, as projections put them out.
  side, batch = arguments.size, arguments.batch_size
  split = batch, side, side, arguments.heads, HEAD_DIM

  for name in names:

    def attend(query, key, value, *parameters, name=name):
      maps = [x.reshape(split) for x in (query, key, value)]
      bias, table, *kernel = parameters
      with jax.named_scope("layer"):  # Keeps the names of kernels whole.
        output = slide_attention(
          *maps,
          *(kernel or (None,)),
          bias,
          table,
          window_size=arguments.window,
          implementation=name,
        )
      return output.reshape(query.shape)

    def total(*arrays, attend=attend):
      return attend(*arrays).astype(jnp.float32).sum()

    count = 5 if arguments.fixed else 6
    gradients = jax.value_and_grad(total, argnums=range(count))
    yield PASSES[0], name, attend
    yield PASSES[1], name, gradients


def shapes(arguments):
  """Returns the shapes of maps, bias, table and, unless fixed, the kernel."""
  side, window, heads = arguments.size, arguments.window, arguments.heads
  maps = [(arguments.batch_size, side, side, heads * HEAD_DIM)] * 3
  found = [*maps, (HEAD_DIM, window**2), (heads, window**2)]
  if not arguments.fixed:
    found.append((window, window, HEAD_DIM, window**2))
  return found


def measure(arguments, names) -> list[dict]:
  """Times all functions in turns on this machine."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  random = np.random.default_rng(0)
  arrays = [
    jnp.asarray(random.standard_normal(shape, np.float32), arguments.dtype)
    for shape in shapes(arguments)
  ]
  rows, calls = [], []
  for what, name, function in functions(arguments, names):
    row, compiled = compile_row(what, name, function, arrays)
    rows.append(row | {"seconds": float("inf")})
    calls.append(functools.partial(compiled, *arrays))
    jax.block_until_ready(calls[-1]())
  for _ in range(arguments.rounds):
    for row, call in zip(rows, calls, strict=True):
      begin, turns = time.perf_counter(), 0
      while turns < 2 or time.perf_counter() - begin < 0.1:
        jax.block_until_ready(call())
        turns += 1
      seconds = (time.perf_counter() - begin) / turns
      row["seconds"] = min(row["seconds"], seconds)
  return rows


def estimate(arguments, names, dump) -> list[dict]:
  """Compiles all functions for a TPU and adds up the compiler's estimates."""
  from halonet.chips import GENERATIONS, find_kind
  from halonet.ops.dispatch import Unserved
  from halonet.tpu import hlo, schedules, step_cost

  step_cost.check_available()
  step_cost.topology_devices(arguments.topology)
  os.environ.update(step_cost.environment(dump))

  import jax
  from jax.experimental import topologies

  from halonet.parallel import make_mesh, replicated

  generation = arguments.topology.partition(":")[0]
  topology = topologies.get_topology_desc(
    platform="tpu",
    topology_name=arguments.topology,
    **GENERATIONS[generation].compiler_options,
  )
  device = topology.devices[0]
  print(f"{device.device_kind}, libtpu {importlib.metadata.version('libtpu')}")
  mesh = make_mesh([device])
  structs = [
    jax.ShapeDtypeStruct(shape, arguments.dtype, sharding=replicated(mesh))
    for shape in shapes(arguments)
  ]
  rows = []
  for what, name, function in functions(arguments, names):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      try:
        row, compiled = compile_row(what, name, function, structs)
      except Unserved as error:
        print(f"  {what}, {name}: {error}", flush=True)
        continue
      program = hlo.read_program(compiled.as_text(), "", [])
      kernels = schedules.measure(jax.jit(function), structs, mesh, dump)
    cycles = sum(layer.cycles for layer in program.layers)
    for call in program.kernels:
      count = kernels[f"{call.name} {call.shapes}"]["cycles"]
      print(f"  {call.name}: {count / 1e6:.3f} M cycles")
      cycles += count * call.executions
    row["cycles"] = cycles
    row["seconds"] = cycles / find_kind(device.device_kind).clock_hz
    rows.append(row)
    print(f"  {what}, {name}: {cycles / 1e6:.2f} M cycles", flush=True)
  return rows


def compile_row(what, name, function, arrays):
  import jax

  begin = time.perf_counter()
  compiled = jax.jit(function).lower(*arrays).compile()
  return {
    "pass": what,
    "implementation": name,
    "compile_seconds": time.perf_counter() - begin,
    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
  }, compiled


def line(row, rows) -> tuple[str, ...]:
  """Words a row; its ratio is that of the first row of its pass over it."""
  first = next(each for each in rows if each["pass"] == row["pass"])
  cycles = [f"{row['cycles'] / 1e6:.2f}"] if "cycles" in row else []
  return (
    row["pass"],
    row["implementation"],
    *cycles,
    f"{row['seconds'] * 1e3:.2f}",
    f"{first['seconds'] / row['seconds']:.2f}",
    f"{row['temporary_bytes'] / 2**20:.1f}",
    f"{row['compile_seconds']:.1f} s",
  )


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
