"""Reading optimised programs, on a short one whose figures are known."""

import pathlib

import pytest

from halonet.tpu import hlo

# As the compiler writes them, with less in them. 8 × 100 floats of a (8, 128)
# tile are 4096 bytes; S(1) is memory on the core.
PROGRAM = (pathlib.Path(__file__).parent / "program.hlo").read_text()
MODULES = ("stage1_block1", "attention", "query", "stem", "reduce")


@pytest.fixture
def program():
  return hlo.read_program(PROGRAM, "Network", MODULES)


def test_layers_are_modules_to_two_levels_forward_and_backward(program):
  # 100 once, and 10 in each turn of the loop.
  assert [(layer.name, layer.cycles) for layer in program.layers] == [
    ("stage1_block1/attention", 150),
    (hlo.BETWEEN, 7),
    (hlo.OUTSIDE, 3),
    ("stem", 2),
  ]


def test_collectives_are_counted_in_loops_and_by_what_is_in_them(program):
  assert program.collectives == (
    hlo.Collective("all-gather", 5, 5 * 32 * 100 * 4),
    hlo.Collective("all-reduce", 1, 64 * 2 + 10 * 2 * 4),
    hlo.Collective("reduce-scatter", 1, 4 * 4 * 4),
  )


def test_bytes_pass_through_memory_padded_and_only_what_is_read(program):
  tile = 8 * 128 * 4
  expected = (
    2 * tile  # The slice, read from 64 rows, and written.
    + 5 * (tile + tile)  # Read by the tanh and by the gathering,
    + 5 * (8 + 32) * 100 * 4  # which writes, here untiled.
    + tile  # Copied to the core.
    + tile  # The kernel's second operand, which is also its third.
    + 256 * 2 + 16 * 128 * 4  # Written by the reduction.
    + 4 * 4  # And by the other.
    + tile  # The result.
    + 5 * (4 + 4 + 1)  # The loop's condition.
  )  # fmt: skip
  assert program.hbm_bytes == expected
  assert sum(layer.hbm_bytes for layer in program.layers) == expected


def test_kernels_are_known_by_name_and_shapes(program):
  shapes = f"{','.join(3 * ['f32[8,100]'])}>f32[8,100]"
  assert program.kernels == (
    hlo.KernelCall("fused_attention", "stem", 1, shapes),
  )


def test_a_loop_of_unknown_length_is_said():
  unknown = PROGRAM.replace(
    "constant(5)", "get-tuple-element(%state.1), index=0"
  )
  program = hlo.read_program(unknown, "Network", MODULES)
  assert program.unknown_loops == 1
  assert program.layers[0].cycles == 110
  assert hlo.read_program(PROGRAM, "Network", MODULES).unknown_loops == 0
