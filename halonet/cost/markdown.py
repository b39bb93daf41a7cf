"""Table 1 and a model's costs as Markdown tables, for people."""

from collections.abc import Sequence

from halonet.cost.model import Counts
from halonet.cost.table1 import MethodCost, Setting

# Memory of one tensor, receptive field, FLOPs per pixel.
_FORMULAS = {
  "global": ("HWc", "H×W", "4HWc"),
  "per-pixel windows": ("HWk²c", "k×k", "4k²c"),
  "SASA": ("(HW/b²)(b+2⌊k/2⌋)²c", "k×k", "4(b+2⌊k/2⌋)²c"),
  "blocked local": ("(HW/b²)(b+2h)²c", "(b+2h)×(b+2h)", "4(b+2h)²c"),
}


def describe_attention(setting: Setting, rows: Sequence[MethodCost]) -> str:
  """Table 1 of the HaloNet paper, formulas beside counts, in lines."""
  memory = _table(
    (
      "method",
      "formula",
      "of Table 1",
      "+ padding",
      "= counted",
      "beside the keys: places",
      "logits",
    ),
    [
      [
        row.method,
        _FORMULAS[row.method][0],
        _number(row.memory_formula),
        _number(row.memory_padding),
        _number(row.memory_values),
        _number(row.memory_places),
        _number(row.logits),
      ]
      for row in rows
    ],
  )
  fields = _table(
    ("method", "formula", "of Table 1", "counted"),
    [
      [
        row.method,
        _FORMULAS[row.method][1],
        "×".join(map(str, row.field_formula)),
        "×".join(map(str, row.field_counted)),
      ]
      for row in rows
    ],
  )
  if any(row.field_formula != row.field_counted for row in rows):
    fields += "\n\nThe map is smaller than a neighbourhood: the border cuts it."
  flops = _table(
    (
      "method",
      "formula",
      "of Table 1",
      "+ padding",
      "= products counted",
      "+ relative",
      "+ masks",
      "+ softmax",
      "= program",
    ),
    [
      [
        row.method,
        _FORMULAS[row.method][2],
        *(
          f"{flops / setting.pixels:,.2f}"
          for flops in (
            row.flops_formula,
            row.flops_padding,
            row.flops_products,
            row.flops_relative,
            row.flops_masks,
            row.flops_softmax,
            row.flops_program,
          )
        ),
      ]
      for row in rows
    ],
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
    f" {sum(row.flops_program for row in rows):,} FLOPs unexplained.",
  ]
  return "\n\n".join(parts)


def describe_model(counts: Counts) -> str:
  """What a model costs by stage, by kind of layer and in all, in lines."""
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

  return "\n\n".join(
    [
      table("stage"),
      table("kind"),
      f"{counts.total.parameters:,} parameters; {counts.total.flops:,} FLOPs"
      " per image,"
      " forward. Attention memory: all layers together, in the form `xla` (per"
      " pixel `direct`);"
      " the largest layer's is"
      f" {counts.largest_attention_bytes / 1e6:,.3f} MB.",
    ]
  )


def _number(value):
  return f"{int(value):,}" if value == int(value) else f"{float(value):,.2f}"


def _table(header, rows):
  """A Markdown table whose columns line up."""
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
