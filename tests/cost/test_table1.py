"""Table 1, against XLA's analysis and against numbers worked out by hand."""

import dataclasses

import jax
import pytest

from halonet.cost import table1
from halonet.cost.table1 import LayerSetting
from halonet.errors import UsageError

SETTINGS = {
  "whole blocks": LayerSetting(
    height=16, width=24, channels=16, window=5, block_size=4, halo_size=1
  ),
  "padded": LayerSetting(
    height=13,
    width=9,
    channels=12,
    window=3,
    block_size=5,
    halo_size=2,
    heads=3,
  ),
  "halo beyond the block": LayerSetting(
    height=10, width=11, channels=8, window=7, block_size=2, halo_size=3
  ),
}


@pytest.mark.parametrize("name", ["padded", "halo beyond the block"])
def test_formulas_and_named_terms_are_the_whole_program(name):
  for row in table1.table(SETTINGS[name]):
    assert row.unexplained == 0, row.method
    function, shapes = table1.program(row.method, SETTINGS[name])
    analysis = jax.jit(function).lower(*shapes).cost_analysis()
    assert row.flops["program"] == analysis["flops"] < 2**24
    assert (
      row.exponentials == row.memory["logits"] == analysis["transcendentals"]
    )


def test_a_table_by_hand():
  setting = SETTINGS["padded"]  # 3×2 blocks of 5×5; 13×9 pixels.
  rows = {row.method: row for row in table1.table(setting)}
  assert list(rows) == list(table1.METHODS)

  row = rows["blocked local"]
  assert row.memory["values"] == 3 * 2 * 9**2 * 12
  assert row.memory["formula"] == pytest.approx(13 * 9 / 25 * 9**2 * 12)
  assert row.flops["formula"] == 4 * 9**2 * 12 * 13 * 9
  assert row.flops["padding"] == 4 * 9**2 * 12 * (15 * 10 - 13 * 9)
  assert row.field_formula == (9, 9)
  # A query meets 2·9 offsets with 2 channels of each head, and in the product
  # with the keys 9 + 9 more terms a key.
  queries = 15 * 10 * 3
  assert row.flops["relative"] == queries * (2 * 18 * 2 + 2 * 81 * 18)
  assert row.memory["places"] == 6 * 3 * 81 * 18

  row = rows["SASA"]
  assert row.memory["values"] == 3 * 2 * 7**2 * 12
  assert row.flops["formula"] == 4 * 7**2 * 12 * 13 * 9
  assert row.field_formula == row.field_counted == (3, 3)

  row = rows["per-pixel windows"]
  assert row.memory["values"] == row.memory["formula"] == 13 * 9 * 3**2 * 12
  assert row.flops["formula"] == row.flops["products"] == 4 * 9 * 12 * 13 * 9
  assert row.field_counted == (3, 3)

  row = rows["global"]
  assert row.memory["values"] == 13 * 9 * 12
  assert row.flops["products"] == 4 * (13 * 9) ** 2 * 12
  assert row.field_counted == (13, 9)
  # What does not agree is left over.
  flops = row.flops | {"formula": row.flops["formula"] + 1}
  wrong = dataclasses.replace(row, flops=flops)
  assert (row.unexplained, wrong.unexplained) == (0, 1)


def test_formulas_hold_without_a_halo():
  # XLA is not given the zeros for a padding of nothing, four in number.
  setting = LayerSetting(
    height=6, width=8, channels=8, window=1, block_size=2, halo_size=0, heads=1
  )
  rows = table1.table(setting)
  assert [row.unexplained for row in rows] == [0] * 4
  assert rows[-1].field_counted == (2, 2)


def test_the_receptive_field_is_cut_only_where_the_border_is():
  setting = SETTINGS["whole blocks"]
  assert table1.receptive_field("blocked local", setting) == (6, 6)
  small = dataclasses.replace(setting, height=5)
  assert table1.receptive_field("blocked local", small) == (5, 6)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("height", 0, "--height is 0; it must be at least 1"),
    ("halo_size", -1, "--halo_size is -1; it must be at least 0"),
    ("window", 4, "--window is 4; it must be odd"),
    ("channels", 20, "--channels is 20; it must be a multiple of .* 8"),
  ],
)
def test_slips_are_named(field, value, message):
  with pytest.raises(UsageError, match=message):
    LayerSetting(**{field: value})
