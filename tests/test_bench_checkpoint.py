"""scripts/bench_checkpoint.py: what it prints."""

import importlib
import pathlib
import re

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


def test_it_reports_the_share_of_checksums(monkeypatch, run_main, tmp_path):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  bench = importlib.import_module("bench_checkpoint")
  code, output, _ = run_main(
    bench.main, "--model=pvt_v2_b0", "--rounds=1", f"--folder={tmp_path}"
  )
  assert code == 0 and output.startswith("pvt_v2_b0: 28 MiB")
  rows = re.findall(
    r"\| (save|restore) \| (?:clock|processor) \| ([\d.]+) \| ([\d.]+) ", output
  )
  assert [name for name, *_ in rows] == ["save"] * 2 + ["restore"] * 2
  assert all(0 < float(own) < float(whole) for _, whole, own in rows)
  assert not list(tmp_path.iterdir())
