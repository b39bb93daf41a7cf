"""Flags and variables that name the processes of a run."""

import argparse

import pytest

from halonet import distributed
from halonet.errors import UsageError


def parse(*words):
  parser = argparse.ArgumentParser()
  distributed.add_arguments(parser)
  return parser.parse_args(words)


@pytest.fixture
def joined(monkeypatch):
  """What JAX is told."""
  calls = []
  monkeypatch.setattr(
    "jax.distributed.initialize", lambda **options: calls.append(options)
  )
  return calls


def test_flags_and_variables_may_be_mixed(joined, monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "9")
  distributed.initialize(parse("--processes=4", "--process=0"))
  assert joined == [
    dict(coordinator_address="host:1234", num_processes=4, process_id=0)
  ]


def test_without_any_jax_looks_around(joined):
  distributed.initialize(parse())
  assert joined == [{}]


@pytest.mark.parametrize(
  "words, message",
  [
    (["--processes=2", "--process=0"], "--coordinator .or JAX_COORDINATOR"),
    (["--coordinator=h:1", "--process=0"], "--processes .or JAX_NUM"),
    (["--coordinator=h:1", "--processes=2", "--process=2"], "--process is 2"),
    (["--coordinator=h:1", "--processes=2", "--process=-1"], "--process is -1"),
  ],
)
def test_a_slip_is_named(joined, words, message):
  with pytest.raises(UsageError, match=message):
    distributed.initialize(parse(*words))
  assert not joined


def test_variables_must_be_numbers(joined, monkeypatch):
  monkeypatch.setenv("JAX_PROCESS_ID", "first")
  with pytest.raises(UsageError, match="both must be whole numbers"):
    distributed.initialize(parse("--coordinator=h:1", "--processes=2"))
