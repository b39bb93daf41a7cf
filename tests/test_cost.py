"""scripts/cost.py: what it prints, writes and refuses."""

import importlib
import json
import pathlib

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
SMALL = (
  "--height=13",
  "--width=9",
  "--channels=12",
  "--heads=3",
  "--window=3",
  "--block_size=5",
  "--halo_size=2",
)


@pytest.fixture
def cost(monkeypatch, run_main):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  module = importlib.import_module("cost")
  return lambda *words: run_main(module.main, *words)


def test_table_1(cost, tmp_path):
  file = tmp_path / "table.json"
  code, output, _ = cost(*SMALL, f"--json={file}")
  assert code == 0
  cells = [
    [cell.strip() for cell in line.split("|")[2:4]]
    for line in output.splitlines()
    if line.startswith("| blocked local")
  ]
  assert cells == [
    ["(HW/b²)(b+2h)²c", "4,548.96"],  # 13·9/25·9²·12
    ["(b+2h)×(b+2h)", "9×9"],
    ["4(b+2h)²c", "3,888.00"],  # 4·9²·12
  ]
  assert "leave 0 of" in output and "border cuts it" in output
  result = json.loads(file.read_text())
  assert result["unexplained"] == 0 and len(result["rows"]) == 4


def test_a_model(cost, tmp_path):
  file = tmp_path / "model.json"
  code, output, _ = cost(
    "--model=halonet_h0",
    "--image_size=64",
    "--num_classes=10",
    "--model.depths=(1,1)",
    "--model.heads=(2,2)",
    "--model.mask_padding=false",
    f"--json={file}",
  )
  assert code == 0 and "| classifier" in output and "| stage2" in output
  result = json.loads(file.read_text())
  assert result["image_size"] == [64, 64] and result["num_classes"] == 10
  for name, total in result["total"].items():
    assert total == sum(part["cost"][name] for part in result["parts"])
  assert f"{result['total']['parameters']:,} parameters" in output


def test_the_model_of_a_config(cost):
  code, output, _ = cost("--config=configs/digits.py", "--config.model.rb=2.0")
  assert code == 0 and "10 classes" in output
  assert output.endswith(
    "-m halonet.train --config=configs/digits.py --config.model.rb=2.0\n"
  )


@pytest.mark.parametrize(
  "words, message",
  [
    (["--blok_size=3"], "unknown argument --blok_size=3"),
    (["--model.rb=2"], "--model.rb=2 is of a model; say which"),
    (["--model=halonet_h0", "--model.rb"], "write --model.rb=VALUE"),
    (["--model=halonet_h9"], "did you mean halonet_h"),
    (["--model=halonet_h0", "--model.rb=x"], "rb is 'x'; it must be a number"),
    (["--model=halonet_h0", "--config.x=1"], "does not go with --model"),
    (["--model=halonet_h0", "--config=a.py"], "exclude each other"),
    (["--model=halonet_h0", "--image_size=0"], "--image_size is 0"),
    (["--model=halonet_h0", "--figure=a.png"], "--figure is of attention"),
    (["--figure=nowhere/a.png"], "--figure: there is no folder nowhere"),
    (["--json=nowhere/a.json"], "--json: there is no folder nowhere"),
    (["--config=configs/digits.py", "--image_size=0"], "--image_size is 0"),
    (["--image_size=0"], "--image_size is of a model"),
    (["--num_classes=9"], "--num_classes is of a model"),
    (["--figure=a.svg"], "--figure is a.svg; it must end in .png"),
    (["--json=."], "--json: . is a folder"),
    (["--model=resnet50", "--heads=2"], "--heads is of attention alone; a mod"),
    (["--window=2"], "--window is 2; it must be odd"),
  ],
)
def test_slips_are_answered_in_one_line(cost, words, message):
  code, _, errors = cost(*words)
  assert code == 2 and errors.count("\n") == 1
  assert message in errors
