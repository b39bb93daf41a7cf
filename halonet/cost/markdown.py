"""Formats Table 1 and a model's costs as Markdown tables."""

from collections.abc import Sequence

from halonet.cost.model import Counts
from halonet.cost.table1 import LayerSetting, MethodCost

# Memory of one tensor, receptive field, FLOPs per pixel.
_FORMULAS = {
  "global": ("HWc", "H×W", "4HWc"),
  "per-pixel windows": ("HWk²c", "k×k", "4k²c"),
  "SASA": ("(HW/b²)(b+2⌊k/2⌋)²c", "k×k", "4(b+2⌊k/2⌋)²c"),
  "blocked local": ("(HW/b²)(b+2h)²c", "(b+2h)×(b+2h)", "4(b+2h)²c"),
}


def describe_attention(
  setting: LayerSetting, rows: Sequence[MethodCost]
) -> str:
  """Describes Table 1 of the HaloNet paper, formulas next to counts."""

  def table(column, header, cells):
    return _table(
      ("method", "formula", "of Table 1", *header),
      [
        [row.method, _FORMULAS[row.method][column], *cells(row)] for row in rows
      ],
    )

  terms = ("formula", "padding", "values", "places", "logits")
  memory = table(
    0,
    ("+ padding", "= counted", "beside the keys: places", "logits"),
    lambda row: [_number(row.memory[term]) for term in terms],
  )
  fields = table(
    1,
    ("counted",),
    lambda row: [
      "×".join(map(str, field))
      for field in (row.field_formula, row.field_counted)
    ],
  )
  if any(row.field_formula != row.field_counted for row in rows):
    fields += "\n\nThe map is smaller than a neighbourhood: the border cuts it."
  flops = table(
    2,
    (
      "+ padding",
      "= products counted",
      "+ relative",
      "+ masks",
      "+ softmax",
      "= program",
    ),
    lambda row: [f"{x / setting.pixels:,.2f}" for x in row.flops.values()],
  )
  unexplained = sum(row.unexplained for row in rows)
  parts = [
    f"H×W = {setting.height}×{setting.width}, c = {setting.channels},"
    f" k = {setting.window}, b = {setting.block_size},"
    f" h = {setting.halo_size}, {setting.heads} heads",
    "Neighbourhood memory: numbers gathered of the keys, and as many of the"
    " values (4 bytes each in float32)",
    memory,
    "Receptive field: pixels on which an output pixel depends",
    fields,
    "FLOPs per pixel",
    flops,
    "The paper's 4(HW)²c of global attention is that of the whole map; per"
    " pixel it is 4HWc.\n"
    f"Formulas, padding and named terms leave {unexplained} of"
    f" {sum(row.flops['program'] for row in rows):,} FLOPs unexplained.",
  ]
  return "\n\n".join(parts)


def describe_model(counts: Counts) -> str:
  """Describes what a model costs, by stage and by kind of layer."""
  header = (
    "parameters",
    "MFLOPs",
    "share",
    "activations, M",
    "activations, MB",
    "attention memory, MB",
    "exponentials, M",
  )

  def table(attribute):
    costs = counts.by(attribute) | {"total": counts.total}
    return _table(
      (attribute, *header),
      [
        [
          label,
          _number(cost.parameters),
          f"{cost.flops / 1e6:,.2f}",
          f"{cost.flops / counts.total.flops:.1%}",
          f"{cost.activations / 1e6:,.3f}",
          f"{cost.activation_bytes / 1e6:,.3f}",
          f"{cost.attention_bytes / 1e6:,.3f}",
          f"{cost.transcendentals / 1e6:,.3f}",
        ]
        for label, cost in costs.items()
      ],
    )

  total = counts.total
  lines = [
    table("stage"),
    table("kind"),
    f"{total.parameters:,} parameters; {total.flops:,} FLOPs per image,"
    " forward. Attention memory: all layers together, in the form `xla` (per"
    " pixel `direct`); the largest layer's is"
    f" {counts.largest_attention_bytes / 1e6:,.3f} MB.",
  ]
  if counts.unknown:
    lines.append(f"Not counted, unknown to XLA: {', '.join(counts.unknown)}.")
  return "\n\n".join(lines)


def _number(value):
  return f"{int(value):,}" if value == int(value) else f"{float(value):,.2f}"


def _table(header, rows):
  """Formats a Markdown table whose columns line up."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  lines = []
  for line in [header, ["-" * width for width in widths], *rows]:
    cells = [
      cell.ljust(width) if not column else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    if len(lines) == 1:
      cells = [cells[0], *(f"{cell[:-1]}:" for cell in cells[1:])]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)
