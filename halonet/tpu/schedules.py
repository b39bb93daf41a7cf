"""Counts cycles and bytes of Pallas kernels, for which the compiler has none.

The compiler gives no estimate for a kernel, but it decides at which cycle each
instruction is issued, and writes that down on request: bundles, one a cycle, in
loops. Every kernel of a step is compiled alone, and its bundles are counted,
those in a loop once per turn. Waiting for memory is left out and branches that
are not taken are included, so only ratios mean something.

Bytes are those of the blocks that the steps of a kernel's grid load and store,
each once for as long as consecutive steps see the same block.
"""

import functools
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

# The compiler's names of dtypes.
_DTYPES = {"bool": "pred", "bfloat16": "bf16"}
_KINDS = {"float": "f", "int": "s", "uint": "u"}
_ADDRESS = re.compile(r"^ *(0x[0-9a-f]+|0) [^:]*: ")
_BRANCH = re.compile(r"sbr\.rel \(!?(\S+)\) target bundleno = (\d+)")
# An outer loop may test its end before an inner loop ends.
_EXIT = re.compile(
  r"(\S+) = scmp\S*totalorder (?:\(\S+\), )?\S+, (\S+) /\* loop exit test"
)
# Turns of the loop over the grid that only load or only store data.
_PIPELINE = 2


def measure(
  step: Any, arguments: tuple[Any, ...], mesh: Mesh, dump: str
) -> dict[str, dict[str, int | None]]:
  """Compiles the Pallas kernels of a step, one by one, and counts.

  `halonet.tpu.step_cost.environment(dump)` must have been set before the
  compiler was loaded.

  Args:
    step: a jitted function.
    arguments: the shapes of its arguments.
    mesh: mesh of the slice.
    dump: folder for the compiler's files; its contents are removed.

  Returns:
    From "NAME SHAPES", as `halonet.tpu.hlo.KernelCall` has them, to `cycles`
    and `hbm_bytes` of one call. Cycles are None where the compiler left no
    schedule that can be read.
  """
  counts = {}
  for equation in _kernels(step.trace(*arguments).jaxpr.jaxpr):
    name = equation.params["name"]
    shapes = ">".join(
      ",".join(_shape(variable.aval) for variable in side)
      for side in (equation.invars, equation.outvars)
    )
    key = f"{name} {shapes}"
    if key in counts:
      continue
    shutil.rmtree(dump, ignore_errors=True)
    os.makedirs(dump)
    _compile(equation, mesh)
    steps = math.prod(equation.params["grid_mapping"].grid)
    found = [path.read_text() for path in _schedules(pathlib.Path(dump))]
    counts[key] = {
      "cycles": count_cycles(found[0], steps) if len(found) == 1 else None,
      "hbm_bytes": _hbm_bytes(equation.params["grid_mapping"]),
    }
  return counts


def count_cycles(schedule: str, steps: int) -> int | None:
  """Returns the cycles in which a kernel issues its instructions.

  Args:
    schedule: text of the compiler's "packed-bundles-post-ra".
    steps: steps of the kernel's grid. Where a chip's two cores share them, the
      cycles are those of one core.

  Returns:
    None if the length of a loop is not known before the kernel runs.
  """
  last, limits = -1, {}
  loops = []  # (first bundle, last bundle, turns)
  for line in schedule.splitlines():
    address = _ADDRESS.match(line)
    if address:
      last = int(address[1], 16)
    limits |= _EXIT.findall(line)
    for condition, branch in _BRANCH.findall(line):
      if int(branch) > last:
        continue  # A branch forwards.
      limit = limits.get(condition, "")
      if not limit.isdigit():
        return None
      loops.append((int(branch), last, int(limit)))
  cycles = [1] * (last + 1)
  for first, end, turns in loops:
    outermost = not any(
      low <= first and end <= high and (low, high) != (first, end)
      for low, high, _ in loops
    )
    if outermost and turns - _PIPELINE in (steps, -(-steps // 2)):
      turns -= _PIPELINE
    for bundle in range(first, end + 1):
      cycles[bundle] *= turns
  return sum(cycles)


def _hbm_bytes(mapping):
  """Returns the bytes that a kernel loads and stores, in whole tiles."""
  places = np.indices(mapping.grid).reshape(len(mapping.grid), -1)
  total = 0
  for block in mapping.block_mappings:
    jaxpr = block.index_map_jaxpr
    index = functools.partial(
      jax.core.eval_jaxpr,
      getattr(jaxpr, "jaxpr", jaxpr),
      getattr(jaxpr, "consts", ()),
    )
    seen = np.stack(jax.vmap(index)(*places))
    loads = 1 + (seen[:, 1:] != seen[:, :-1]).any(axis=0).sum()
    *leading, rows, lanes = (1, *block.transformed_block_aval.shape)
    size = math.prod(leading) * -(-rows // 8) * 8 * -(-lanes // 128) * 128
    total += int(loads) * size * block.array_aval.dtype.itemsize
  return total


def _schedules(folder):
  """Yields the files with kernels' bundles among what the compiler wrote."""
  for path in folder.glob("*-schedule-analysis_packed-bundles-post-ra.txt"):
    text = path.read_text()
    call = re.search(r'%(\S+) = [^\n]*"tpu_custom_call"', text)
    # The whole program has an analysis, too, and other names.
    if call and f"-{call[1]}-" in path.name:
      yield from folder.glob(f"*-{call[1]}-[0-9]*-packed-bundles-post-ra.txt")


def _kernels(jaxpr: Any) -> Iterator[Any]:
  """Yields the calls of Pallas kernels in a jaxpr and in all that it calls."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "pallas_call":
      yield equation
      continue
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from _kernels(inner)


def _shape(aval):
  name = _DTYPES.get(aval.dtype.name)
  if name is None:
    kind, bits = re.fullmatch(r"([a-z]+)(\w+)", aval.dtype.name).groups()
    name = _KINDS[kind] + bits.replace("_", "")
  return f"{name}[{','.join(map(str, aval.shape))}]"


def _compile(equation, mesh):
  """Compiles one kernel, as each device of the slice runs it."""

  def call(*arguments):
    return equation.primitive.bind(*arguments, **equation.params)

  everywhere = PartitionSpec()
  sharded = jax.shard_map(
    call, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
  )
  avals = [variable.aval for variable in equation.invars]
  given = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
  jax.jit(sharded).lower(*given).compile()
