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


@pytest.mark.parametrize(
  "option, words",
  [
    ("--implementation=slice", "did you mean slices"),
    ("--implementation=slices", "add --fixed"),
    ("--implementation=pallas_tpu", "needs --topology"),
    ("--window=4", "--window is 4; it must be odd"),
  ],
)
def test_slips(monkeypatch, run_main, option, words):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_slide")
  code, _, complaint = run_main(bench.main, option)
  assert code == 2 and words in complaint
