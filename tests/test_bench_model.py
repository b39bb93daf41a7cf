"""scripts/bench_model.py: what it prints, writes and refuses."""

import importlib
import json
import pathlib
from types import SimpleNamespace

import pytest

from halonet.errors import RunError, UsageError

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
SMALL = (
  "--image_size=32",
  "--batch_size=2",
  "--rounds=2",
  "--seconds=0.1",
  "--model.depths=(1,)",
  "--model.heads=(2,)",
  "--model.base_width=8",
)


@pytest.fixture
def bench(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  module = importlib.import_module("bench_model")

  def run(*words):
    monkeypatch.setattr("sys.argv", ["bench_model.py", *words])
    module.main()

  run.module = module
  return run


def test_measures_our_step(bench, tmp_path, capsys):
  step, file = "train", tmp_path / "found it.json"
  bench(*SMALL, f"--step={step}", f"--json={file}")
  output = capsys.readouterr().out
  assert f"{step}: round 2/2 ours" in output
  assert output.endswith(f"Wrote '{file}'\n")
  result = json.loads(file.read_text())
  assert result["settings"]["fields"]["depths"] == [1]
  own = result["found"][step]["ours"]
  assert len(own["rates"]) == 2 and own["images_per_second"] > 0
  assert own["compile_seconds"] > 0 and own["peak_memory_bytes"] > 1e8


def test_measures_two_forms_of_the_model(bench, tmp_path, capsys):
  file = tmp_path / "found it.json"
  bench(*SMALL, "--step=forward", "--other.halo_size=4", f"--json={file}")
  output = capsys.readouterr().out
  assert "| step | model | images/s | ÷ other | peak memory, GiB" in output
  result = json.loads(file.read_text())
  assert result["settings"]["other"] == {"halo_size": 4}
  for name in ("ours", "other"):
    found = result["found"]["forward"][name]
    assert len(found["rates"]) == 2 and found["images_per_second"] > 0


def test_measures_a_detector_and_its_parts(bench, tmp_path, capsys):
  file = tmp_path / "found it.json"
  bench(
    *("--task=detection", "--model=retinanet_resnet50", "--image_size=32"),
    *("--batch_size=2", "--rounds=1", "--seconds=0.1", f"--json={file}"),
    *("--model.depths=(1,1)", "--model.base_width=8", "--model.levels=(2,3)"),
    *("--model.fpn_width=16", "--model.head_depth=0", "--step=train"),
  )
  assert "% of ours | " in capsys.readouterr().out
  result = json.loads(file.read_text())
  assert result["settings"]["task"] == "detection"
  found = result["found"]["train"]
  assert found.keys() == {"ours", "matching"}
  assert all(each["images_per_second"] > 0 for each in found.values())
  given = SimpleNamespace(**result["settings"])
  for part in (False, True):  # The forward pass, and suppression.
    call, *_ = bench.module.run_jax("forward", given, part)
    assert call()["detections"]["boxes"].shape == (2, 100, 4)


def test_the_other_form_has_its_fields(bench, monkeypatch):
  monkeypatch.setattr(bench.module, "run_jax", lambda _, given: given.fields)
  given = SimpleNamespace(fields={"a": 1, "b": 1}, other={"b": 2})
  assert bench.module.run_other("train", given) == {"a": 1, "b": 2}


def test_ratios_are_those_of_the_medians(bench):
  own = dict(images_per_second=60, peak_memory_bytes=2**29, compile_seconds=1)
  peer = dict(images_per_second=20, peak_memory_bytes=2**30, compile_seconds=2)
  table = bench.module.table({"forward": {"ours": own, "timm": peer}})
  assert "| forward | ours | 60.00 | 3.00 | 0.50 | 0.50 | 1.0 s |" in table
  assert "| forward | timm | 20.00 | – | 1.00 | – | 2.0 s |" in table


def test_parts_have_shares_of_our_step(bench):
  found = dict(peak_memory_bytes=2**30, compile_seconds=1)
  rates = {"ours": 2, "torchvision": 4, "matching": 80}
  table = bench.module.table(
    {"train": {k: found | {"images_per_second": v} for k, v in rates.items()}}
  )
  assert "| step | model | images/s | ÷ torchvision |" in table
  assert "| train | ours | 2.00 | 0.50 |" in table
  assert "| train | matching, 2.50% of ours | 80.00 | – |" in table


def fail(step, arguments):
  del step, arguments
  raise ValueError("no room\nfor more")


def test_a_contender_that_fails_is_said(bench):
  contender = bench.module.started("timm", fail, "train", None)
  with pytest.raises(RunError, match="^timm failed: no room$"), contender:
    pass


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--model=halonet_h9", "--model: .*did you mean halonet_h"),
    ("--model.block_size=0", "--model: block_size is 0"),
    ("--model.dtype=bfloat16", "dtype is no field to set so"),
    ("--other.block_size=0", "--other: block_size is 0"),
    ("--other.block_size", "write --other.block_size=VALUE"),
    ("--other.name=resnet50", "name is no field to set so"),
    ("--model=retinanet_resnet50", "which is a detector"),
    ("--task=detection", "'halonet_h1', which is no detector"),
    ("--peer=torchvision", "--peer=torchvision: the peer in classification is"),
    ("--wrong", "unknown argument --wrong"),
    ("--json=nowhere/x.json", "--json: there is no folder nowhere"),
  ],
)
def test_slips(bench, word, message):
  with pytest.raises(UsageError, match=message):
    bench(word)
