"""scripts/bench_slide.py: what it prints."""

import importlib
import itertools
import pathlib
import re

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize(
  "words, names",
  [
    ([], ["convolution", "side_by_side", "products"]),
    (["--fixed", "--implementation=slices"], ["slices"]),
  ],
)
def test_it_compares_implementations(monkeypatch, run_main, words, names):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_slide")
  code, output, _ = run_main(
    bench.main, "--size=6", "--heads=2", "--rounds=1", *words
  )
  assert code == 0
  rows = re.findall(r"\| (forward|with gradients) \| (\w+) \| [\d.]+", output)
  assert rows == list(itertools.product(("forward", "with gradients"), names))


def test_an_implementation_that_is_none(monkeypatch, run_main):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_slide")
  code, _, complaint = run_main(bench.main, "--implementation=slices")
  assert code == 2 and "there is no implementation slices" in complaint
