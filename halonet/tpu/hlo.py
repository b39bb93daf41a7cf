"""Reads what the TPU compiler says about a program it has compiled.

The optimised program is text: computations of instructions, one a line. An
instruction that takes time on the core carries the compiler's estimate of its
cycles and the name of the operation in our code that it comes from, such as
`jit(train_step)/jvp(Network)/Network._forward/stage1_block1/reduce/dot_general`.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

from halonet.tpu.hlo_text import parse

# Time outside of all modules: pooling and activations of the model itself, and
# loss, optimizer and moving averages.
BETWEEN, OUTSIDE = "(between the modules)", "(outside the model)"

# These move no data.
# fmt: off
_FREE = frozenset((
  "after-all", "bitcast", "call", "conditional", "constant",
  "get-tuple-element", "optimization-barrier", "parameter", "partition-id",
  "replica-id", "tuple", "while",
))
# fmt: on

_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a kind, in one run of the program.

  Attributes:
    kind: such as "all-reduce".
    count: how often one is executed.
    bytes: size of a device's arrays in all of them.
  """

  kind: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class LayerCycles:
  """The compiler's estimate for a module, forward and backward.

  Attributes:
    name: path in the model, to two levels: "stage1_block2/attention".
    cycles: for one run of the program on one device.
    hbm_bytes: read from and written to memory, padding of tiles included.
  """

  name: str
  cycles: int
  hbm_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class KernelCall:
  """A Pallas kernel in a program.

  Attributes:
    name: name of the kernel.
    layer: module that calls it.
    executions: how often it is executed.
    shapes: operands and results, such as "bf16[8,16],s32[4]>f32[8,8]".
    cycles: of all executions, from `halonet.tpu.schedules`; the compiler gives
      none. None if unknown.
    hbm_bytes: loaded and stored in all executions, likewise.
  """

  name: str
  layer: str
  executions: int
  shapes: str
  cycles: int | None = None
  hbm_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
  """One run of a program on one device.

  Attributes:
    layers: modules, the most expensive first.
    hbm_bytes: the sum of theirs.
    collectives: by kind.
    kernels: Pallas kernels, whose cycles are not in `layers`.
    unknown_loops: loops of unknown length, of which one turn was counted.
  """

  layers: tuple[LayerCycles, ...]
  hbm_bytes: int
  collectives: tuple[Collective, ...]
  kernels: tuple[KernelCall, ...]
  unknown_loops: int


def read_program(text: str, model: str, modules: Iterable[str]) -> Program:
  """Adds up what the text of an optimised program says.

  Args:
    text: from `compiled.as_text()`, of a program compiled for TPU.
    model: name of the model's class.
    modules: names of the model's modules, without their parents' names.
  """
  computations, entry = parse(text)
  times, fused, unknown_loops = _executions(computations, entry)
  modules = frozenset(modules)
  cycles, moved = collections.Counter(), collections.Counter()
  counts, sizes = collections.Counter(), collections.Counter()
  kernels = []
  for called, runs in times.items():
    computation = computations[called]
    for instruction in computation.values():
      kind = instruction.collective
      if kind:
        counts[kind] += runs
        sizes[kind] += runs * instruction.collective_bytes
      if called in fused:
        continue
      layer = _layer_of(instruction.op_name, model, modules)
      cycles[layer] += runs * instruction.cycles
      moved[layer] += runs * _hbm_bytes(instruction, computation, computations)
      if _is_kernel(instruction):
        name = re.sub(r"/pallas_call$", "", instruction.op_name)
        name = name.rpartition("/")[2]
        kernels.append(KernelCall(name, layer, runs, instruction.signature))
  return Program(
    layers=tuple(
      LayerCycles(name, count, moved[name])
      for name, count in cycles.most_common()
      if count or moved[name]
    ),
    hbm_bytes=moved.total(),
    collectives=tuple(
      Collective(kind, counts[kind], sizes[kind]) for kind in sorted(counts)
    ),
    kernels=tuple(kernels),
    unknown_loops=unknown_loops,
  )


def _layer_of(op_name, model, modules):
  """Returns the module of an operation, to two levels, from its name's path.

  Anything else in the path, such as `transpose(jvp(Network))` and
  `rematted_computation`, is no module, so forward and backward pass and
  recomputation meet under one name.
  """
  first = op_name.split(";")[0].replace("\\'", "'")
  parts = re.split(r"[/\[\]']+", first)
  # The last one is the operation, whose name may be that of a module.
  found = [part for part in parts[:-1] if part in modules]
  if found:
    return "/".join(found[:2])
  return BETWEEN if re.search(rf"\b{model}\b", first) else OUTSIDE


def _executions(computations, entry):
  """Returns runs of each computation, the fused ones, and unknown loops."""
  times, fused = collections.Counter(), set()
  unknown_loops = 0

  def visit(name, runs, inside):
    nonlocal unknown_loops
    times[name] += runs
    if inside:
      fused.add(name)
    for instruction in computations[name].values():
      if instruction.collective:
        continue  # What it calls adds two numbers.
      turns = 1
      if instruction.opcode == "while":
        turns = _turns(computations, instruction)
        unknown_loops += turns is None
      for called in instruction.called:
        if called in computations:
          # Only these run their instructions one by one.
          steps = instruction.opcode in ("while", "conditional", "call")
          steps = steps or instruction.opcode == "async-start"
          visit(called, runs * (turns or 1), inside or not steps)

  visit(entry, 1, False)
  return times, fused, unknown_loops


def _turns(computations, loop):
  """Returns the turns of a loop that counts from 0 to a constant, or None.

  JAX's scans and loops of known length are such.
  """
  condition = _CONDITION.search(loop.rest)[1]
  names, constants = [condition], []
  while names:
    for instruction in computations[names.pop()].values():
      names += instruction.called
      if instruction.opcode == "constant":
        constants.append(instruction.rest.partition(")")[0].strip("("))
  known = len(constants) == 1 and constants[0].isdigit()
  return int(constants[0]) if known else None


# ----------------------------------------------------------------- the bytes


def _is_kernel(instruction):
  return 'custom_call_target="tpu_custom_call"' in instruction.rest


def _hbm_bytes(instruction, computation, computations):
  """Returns the bytes that an instruction reads from and writes to HBM."""
  opcode = instruction.opcode
  free = opcode in _FREE or opcode.endswith("-done")
  if free or 'custom_call_target="ConcatBitcast"' in instruction.rest:
    return 0
  if opcode in ("copy-start", "slice-start"):
    # (source, target, flag), in either order: what moves is the smaller.
    ends = [array for array in instruction.arrays if array.dims]
    moved = min((array.tiled_bytes for array in ends), default=0)
    return moved * sum(array.in_hbm for array in ends)
  total = sum(a.tiled_bytes for a in instruction.arrays if a.in_hbm)
  body = {}
  if opcode == "fusion":
    body = computations.get(next(iter(instruction.called), None), {})
  # A Pallas kernel takes a map once for each part of which it reads blocks.
  kernel, seen = _is_kernel(instruction), set()
  for number, name in enumerate(instruction.operands):
    source = computation.get(name)
    if source is None or (kernel and name in seen):
      continue
    seen.add(name)
    arrays = [array for array in source.arrays if array.in_hbm]
    size = sum(array.tiled_bytes for array in arrays)
    if size and body:
      size = min(size, _read_of(body, number, size))
    total += size
  return total


def _read_of(body, number, whole):
  """Returns the bytes that a fusion reads of an operand, or of its slices."""
  parameters = [
    name
    for name, each in body.items()
    if each.opcode == "parameter" and each.rest.startswith(f"({number})")
  ]
  users = [x for x in body.values() if {*parameters} & {*x.operands}]
  if not users or {x.opcode for x in users} - {"slice", "dynamic-slice"}:
    return whole
  return sum(array.tiled_bytes for user in users for array in user.arrays)
