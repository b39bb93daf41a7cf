"""scripts/bench_attention.py: which layers it finds, prints and refuses."""

import importlib
import json
import pathlib

import pytest

from halonet.errors import UsageError
from halonet.ops import forms

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  module = importlib.import_module("bench_attention")

  def run(*words):
    monkeypatch.setattr("sys.argv", ["bench_attention.py", *words])
    module.main()

  return run


def test_every_distinct_layer_by_every_implementation(
  bench, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(forms.chunked, "LOGITS", 1)  # So two images at a time.
  file = tmp_path / "found.json"
  bench(
    "--image_size=32",
    "--batch_size=4",
    "--rounds=1",
    "--model.depths=(3, 1)",
    "--model.heads=(2, 2)",
    "--model.base_width=8",
    "--implementation=xla",
    "--implementation=xla_chunked",
    f"--json={file}",
  )
  output = capsys.readouterr().out
  assert "4 layers, 2 distinct, of halonet_h1 at 32 pixels" in output
  rows = json.loads(file.read_text())
  assert [(row["layer"], row["count"], row["pass"]) for row in rows] == [
    ("8×8, 8 channels, 2 heads, b 8, h 3", 3, "forward"),
    ("8×8, 8 channels, 2 heads, b 8, h 3", 3, "with gradients"),
    ("8×8, 16 channels, 2 heads, b 8, h 3, stride 2", 1, "forward"),
    ("8×8, 16 channels, 2 heads, b 8, h 3, stride 2", 1, "with gradients"),
  ]
  for row in rows:
    plain, chunked = row["xla"], row["xla_chunked"]
    assert min(plain["seconds"], chunked["seconds"]) > 0
    assert chunked["temporary_bytes"] < plain["temporary_bytes"]
  total = 3 * rows[0]["xla"]["seconds"] + rows[2]["xla"]["seconds"]
  assert f"| all | 4 | forward | xla | {total * 1e3:.2f} | 1.00 |" in output


def test_per_pixel_attention_has_the_plain_form_beside_it(bench, capsys):
  bench(
    "--model=sasa_resnet26",
    "--image_size=32",
    "--batch_size=1",
    "--rounds=1",
    "--model.depths=(1,)",
    "--model.heads=(2,)",
    "--model.base_width=8",
    "--implementation=gathered",
    "--implementation=direct",
  )
  output = capsys.readouterr().out
  assert "| 8×8, 8 channels, 2 heads, k 7 | 1 | forward | gathered |" in output
  assert (
    "| 8×8, 8 channels, 2 heads, k 7 | 1 | with gradients | direct" in output
  )


def test_costs_against_the_window_are_drawn(bench, tmp_path, monkeypatch):
  monkeypatch.setattr("bench_attention.HALOS", (0, 1))
  figure, file = tmp_path / "costs.png", tmp_path / "found.json"
  bench(
    "--image_size=16",
    "--batch_size=1",
    "--rounds=1",
    "--model.base_width=8",
    "--implementation=xla",
    f"--figure={figure}",
    f"--json={file}",
  )
  assert figure.read_bytes().startswith(b"\x89PNG")
  rows = json.loads(file.read_text())
  assert [row["window"] for row in rows] == [8, 8, 10, 10]
  memory = [row["xla"]["temporary_bytes"] for row in rows]
  assert memory[0] < memory[2] and memory[1] < memory[3]


def test_what_would_be_interpreted_is_left_out(bench):
  module = importlib.import_module("bench_attention")
  plain = ["xla", "xla_chunked", "xla_packed"]
  assert module.implementations(None, False) == plain
  assert module.implementations(None, True) == ["gathered", "direct", *plain]
  assert module.implementations(["pallas_gpu"], False) == ["pallas_gpu"]


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--implementation=cuda", "--implementation: .*cuda"),
    ("--model=resnet50", "--model: resnet50 has no local attention"),
    ("--model.block_size=0", "--model: block_size is 0"),
    ("--model=sasa_resnet50_no_content", "--model: per-pixel attention is"),
    ("--figure=costs.pdf", "--figure is costs.pdf; it must end in .png"),
    ("--wrong", "unknown argument --wrong"),
  ],
)
def test_slips(bench, word, message):
  with pytest.raises(UsageError, match=message):
    bench(word)
