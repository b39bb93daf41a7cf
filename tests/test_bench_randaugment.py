"""scripts/bench_randaugment.py: what it prints."""

import importlib
import pathlib
import re

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


def test_it_reports_every_policy(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_randaugment")
  monkeypatch.setattr(bench, "LAYERS", 1)
  monkeypatch.setattr(bench, "IMAGES", 3)
  words = ["bench_randaugment.py", "--image_size=16", "--rounds=2"]
  monkeypatch.setattr("sys.argv", words)
  bench.main()
  _, _, *rows = capsys.readouterr().out.strip().splitlines()
  names = (
    "autoaugment, magnitude 10",
    "tpu, magnitude 10",
    "tpu, magnitude 31",
    "timm, magnitude 9",
  )
  for name, row in zip(names, rows, strict=True):
    assert re.fullmatch(rf"\| {name} \| \d+ µs \| \d+ µs \| \d+\.\d s \|", row)
