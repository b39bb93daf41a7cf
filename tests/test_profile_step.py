"""scripts/profile_step.py: the parts of a step and their times."""

import importlib
import json
import pathlib

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.fixture
def profile(monkeypatch):
  monkeypatch.chdir(SCRIPTS.parent)
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module("profile_step")


def test_times_of_parts(profile, monkeypatch, tmp_path, capsys):
  file = tmp_path / "found.json"
  monkeypatch.setattr(
    "sys.argv",
    [
      *("profile_step.py", "--config=configs/cifar10.py:attention"),
      *("--config.batch_size=2", "--rounds=2", f"--json={file}"),
      *("--config.model.depths=(1,)", "--config.model.heads=(2,)"),
    ],
  )
  profile.main()
  output = capsys.readouterr().out
  found = json.loads(file.read_text())
  assert 0 < found["step_seconds"] < 60
  threads = found["thread_seconds"]
  assert {"stem", "reduce", "attention/logits", "expand", "other"} <= set(
    threads
  )
  assert min(threads.values()) > 0
  share = threads["attention/logits"] / sum(threads.values())
  milliseconds = threads["attention/logits"] * 1e3
  assert f"| attention/logits | {milliseconds:.1f} | {share:.1%} |" in output


def test_parts_by_name(profile):
  block = "Net._forward/stage1_block1"
  for name, part in (
    (f"jit(train_step)/jvp(Net)/{block}/reduce/dot_general", "reduce"),
    (f"jit(train_step)/transpose(jvp(Net))/{block}/jit(silu)/mul", "silu"),
    (
      f"jit(train_step)/jvp(Net)/{block}/attention/while/body/closed_call/"
      "softmax/sub;other/name",
      "attention/softmax",
    ),
    (f"jit(train_step)/jvp(Net)/{block}/expand/...c,...f->cf/dot", "expand"),
    ("jit(train_step)/add", profile.OTHER),
    ("", profile.OTHER),
  ):
    assert profile.part_of(name) == part
