"""Parses a compiled program into instructions with shapes and layouts."""

import dataclasses
import functools
import math
import re

# fmt: off
_COLLECTIVES = (
  "all-gather", "all-reduce", "all-to-all", "collective-broadcast",
  "collective-permute", "ragged-all-to-all", "reduce-scatter",
)
# fmt: on
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_LAYOUTS = re.compile(r"operand_layout_constraints=\{((?:[^{}]|\{[^}]*\})*)\}")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a program, and its place in memory.

  Attributes:
    dtype: the compiler's name for it, such as "bf16".
    dims: shape.
    layout: order of the axes, tiles and memory, "1,0:T(8,128)S(1)".
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str

  @property
  def in_hbm(self) -> bool:
    # S(1) and others are memories on the core.
    return not re.search(r"S\([1-9]", self.layout)

  @property
  def item_bits(self) -> int:
    if self.dtype == "pred":
      return 8
    digits = re.search(r"\d+", self.dtype)
    return int(digits[0]) if digits else 0  # A token has none.

  @functools.cached_property
  def bytes(self) -> int:
    """Bytes without padding."""
    return math.prod(self.dims) * self.item_bits // 8

  @functools.cached_property
  def tiled_bytes(self) -> int:
    """Bytes with the padding that the layout's first tile asks for."""
    order, _, tiling = self.layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", tiling)
    if not tile or not self.dims:
      return self.bytes
    minor = [int(axis) for axis in order.split(",") if axis]
    dims = [self.dims[axis] for axis in minor]  # The fastest first.
    for axis, side in enumerate(reversed(tile[1].split(","))):
      if axis < len(dims):
        dims[axis] = -(-dims[axis] // int(side)) * int(side)
    return math.prod(dims) * self.item_bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction; `rest` is its text from the operands on."""

  name: str
  opcode: str
  shape: str
  rest: str

  @functools.cached_property
  def arrays(self) -> list[Array]:
    return [
      Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout)
      for dtype, dims, layout in _SHAPE.findall(self.shape)
    ]

  @functools.cached_property
  def operands(self) -> list[str]:
    # Shapes of operands, which hold parentheses, are not in the text.
    return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

  @property
  def op_name(self) -> str:
    found = _OP_NAME.search(self.rest)
    return found[1] if found else ""

  @property
  def cycles(self) -> int:
    found = _CYCLES.search(self.rest)
    return int(found[1]) if found else 0

  @property
  def called(self) -> list[str]:
    names = _CALLED.findall(self.rest)
    for branches in _BRANCHES.findall(self.rest):
      names += re.findall(r"[\w.\-]+", branches)
    return names

  @property
  def collective(self) -> str | None:
    kind = self.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else None

  @property
  def collective_bytes(self) -> int:
    sizes = [array.bytes for array in self.arrays]
    if self.opcode.endswith("-start") and self.collective != "all-reduce":
      return max(sizes, default=0)  # Beside the operand and flags.
    if self.collective == "reduce-scatter":
      return sum(sizes) * self._group_size
    return sum(sizes)

  @property
  def signature(self) -> str:
    given = _LAYOUTS.search(self.rest)
    return ">".join(
      ",".join(f"{dtype}[{dims}]" for dtype, dims, _ in _SHAPE.findall(side))
      for side in (given[1] if given else "", self.shape)
    )

  @property
  def _group_size(self):
    if found := _IOTA_GROUPS.search(self.rest):
      return int(found[1])
    found = _GROUPS.search(self.rest)
    return len(found[1].split(",")) if found else 1


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Returns {computation: {name: instruction}}, and the entry's name."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
      continue
    name = _NAME.match(line)
    if not name or current is None:
      continue
    if opcode := _OPCODE.search(line, name.end() - 1):
      shape, rest = line[name.end() : opcode.start()], line[opcode.end() - 1 :]
      current[name[1]] = Instruction(name[1], opcode[1], shape, rest)
  return computations, entry
