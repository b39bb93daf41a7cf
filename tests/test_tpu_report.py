"""scripts/tpu_report.py: what it prints, and that its table goes on."""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib

import pytest

from halonet.tpu import step_cost
from halonet.tpu.hlo import Collective, KernelCall, LayerCycles

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
GIB = 1 << 30


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module("tpu_report")


@pytest.fixture
def compiler(monkeypatch):
  """Stands in for the TPU compiler: half a GiB an image, 10 ms each."""
  asked = []

  def compile_step(config, topology, *, step, per_core_batch, num_classes):
    asked.append((config.model.name, topology, step, per_core_batch))
    found = step_cost.StepCost(
      topology=topology,
      step=step,
      per_core_batch=per_core_batch,
      device_kind="TPU v5 lite",
      devices=step_cost.topology_devices(topology),
      hbm_bytes=per_core_batch * GIB // 2,
      hbm_capacity=15 * GIB,
      fits=per_core_batch <= 30,
      compile_seconds=3.0,
    )
    if not found.fits:
      return found
    return dataclasses.replace(
      found,
      cycles=15_000_000 * per_core_batch,
      seconds=0.01 * per_core_batch,
      flops=197e9 * per_core_batch,
      images=per_core_batch,
      bytes_accessed=8_190_000 * per_core_batch,
      roofline_seconds=0.001 * per_core_batch,
      collectives=(Collective("all-reduce", 2, 5_000_000),),
      layers=(
        LayerCycles("stage1_block1/attention", 12_000_000 * per_core_batch),
        *(LayerCycles(f"layer{number}", 1) for number in range(20)),
      ),
      waiting_seconds=0.001 * per_core_batch,
      kernels=(
        KernelCall("fused", "stage1_block1/attention", 3, "", 9900, 819_000),
      ),
    )

  monkeypatch.setattr(step_cost, "compile_step", compile_step)
  monkeypatch.setattr(step_cost, "available", lambda: True)
  return asked


WORDS = ("--config=configs/imagenet/halonet.py:h0", "--topology=v5e:4x4")


def test_it_reports_a_step_and_the_largest_batch(
  script, compiler, run_main, tmp_path
):
  file = tmp_path / "report.json"
  code, printed, complaints = run_main(
    script.main, *WORDS, "--per_core_batch=16", f"--json={file}",
    "--config.model.halo_size=2",
  )  # fmt: skip
  assert (code, complaints) == (0, "")
  for text in (
    "halonet_h0 at 256 pixels, bfloat16, train step on v5e:4x4: 16 cores",
    "Compiling for 16 images a core ... 3 s: fits, needs 8.00 of 15.00 GiB",
    "largest that fits  28 images a core, 14.00 GiB",
    "160 ms a step, 100 images/s a core (240,000,000 cycles at 1.50 GHz)",
    "3.15 T a core and step, 197 G an image; 16.0 ms",
    "131 MB a core and step; 0.160 ms",
    "no step is faster than 16.0 ms, for its FLOPs",
    "2 × all-reduce, 5 MB a step",
    "fused in stage1_block1/attention: 3 calls, 9,900 cycles by static"
    " schedule: 0.00660 ms; 819 kB: 0.00100 ms",
    "176 ms a step, if each kernel takes no less time than its bytes",
    "80.0%    128 ms  stage1_block1/attention",
    "compile time       3 s",
    "Next: scripts/train.sh --config=configs/imagenet/halonet.py:h0"
    " --config.model.halo_size=2 --config.batch_size=256, on such a slice",
  ):
    assert text in printed, printed
  assert "layer8" in printed and "layer9" not in printed
  written = json.loads(file.read_text())
  assert written["report"]["hbm_bytes"] == 8 * GIB
  assert written["largest"]["per_core_batch"] == 28


def test_a_step_that_does_not_fit_is_told_by_one_that_does(
  script, compiler, run_main
):
  code, printed, _ = run_main(script.main, *WORDS, "--step=eval")
  assert code == 0
  assert "HBM a core         does not fit, needs 16.00 of 15.00 GiB" in printed
  assert "from here on       of 28 images a core" in printed
  assert "280 ms a step" in printed
  assert {step for _, _, step, _ in compiler} == {"eval"}


@pytest.mark.parametrize(
  "words, message",
  [
    ((WORDS[0],), "--topology is missing"),
    ((*WORDS, "--per_core_bach=8"), "unknown argument --per_core_bach=8"),
    ((WORDS[0], "--topology=v9:2"), "topology is 'v9:2'"),
    ((*WORDS, "--per_core_batch=1"), "batch_norm_group is 32"),
    ((*WORDS, "--json=nowhere/x.json"), "--json: there is no folder nowhere"),
    ((*WORDS, "--write"), "--write belongs to --table"),
    ((*WORDS, "--table"), "--table computes its own rows"),
  ],
)
def test_slips_are_answered_in_one_line(script, run_main, words, message,
                                        monkeypatch):  # fmt: skip
  monkeypatch.setattr(step_cost, "available", lambda: True)
  code, _, complaints = run_main(script.main, *words)
  assert code == 2 and complaints.count("\n") == 1
  assert message in complaints


def test_without_the_compiler_it_says_what_to_install(
  script, run_main, monkeypatch
):
  monkeypatch.setattr(step_cost, "available", lambda: False)
  code, printed, complaints = run_main(script.main, *WORDS)
  assert (code, printed) == (2, "") and complaints.count("\n") == 1
  assert "pip install 'libtpu==" in complaints


def test_the_table_goes_on_where_it_was(
  script, compiler, run_main, monkeypatch, tmp_path
):
  # The stand-in for the compiler needs none to be installed.
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
  names = {variant: script.HALONETS[variant] for variant in ("h0", "h1")}
  monkeypatch.setattr(script, "HALONETS", names)
  rows = [row for row in script.rows() if row.model in names.values()]
  monkeypatch.setattr(script, "rows", lambda: rows)
  monkeypatch.setattr(script, "ROWS", tmp_path / "rows" / "tpu.jsonl")
  monkeypatch.setattr(script, "PAGE", tmp_path / "tpu.md")
  monkeypatch.setattr(script, "SLIDE_PAGE", tmp_path / "slide.md")
  for page in (script.PAGE, script.SLIDE_PAGE):
    page.write_text("Before\n<!-- tpu: begin -->\n<!-- tpu: end -->\nAfter\n")
  code, printed, _ = run_main(script.main, "--table")
  assert code == 0 and "10 of 10 rows are missing" in printed
  computed = script.ROWS.read_text().splitlines()
  assert len(computed) == 10
  # Interrupted after the first nine.
  script.ROWS.write_text("\n".join(computed[:9]) + "\n")
  compiler.clear()
  code, printed, _ = run_main(script.main, "--table")
  assert "1 of 10 rows are missing" in printed
  assert {name for name, *_ in compiler} == {"halonet_h1"}
  assert script.ROWS.read_text().splitlines() == computed
  marked = json.loads(computed[0]) | {"note": "an older one"}
  script.ROWS.write_text("\n".join([json.dumps(marked), *computed[1:9]]) + "\n")
  code, _, _ = run_main(script.main, "--table", "--write")
  page = script.PAGE.read_text()
  assert page.startswith("Before\n") and page.endswith("After\n")
  h0, h1 = (line for line in page.splitlines() if line.startswith("| h"))
  assert h0.count("14.0 GiB, 280 to 308 ms (**28** a core)") == 5
  assert h0.count("(an older one)") == 1
  assert h1.count("not yet computed") == 1
  code, printed, _ = run_main(script.main, "--table")
  assert "2 of 10 rows are missing" in printed  # The older one, too.
  code, _, _ = run_main(script.main, "--table", "--write")
  assert "older" not in script.PAGE.read_text()


def test_every_row_has_a_config_of_its_own(script):
  from halonet.training.config import load_config

  rows = script.rows()
  assert len({row.key for row in rows}) == len(rows) == 63
  for config in {(row.config, row.overrides) for row in rows}:
    load_config(*config)
