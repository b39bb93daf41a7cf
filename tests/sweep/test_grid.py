"""A sweep's file and arguments: the points they make, and their slips."""

import itertools

import pytest

from halonet.errors import UsageError
from halonet.sweep.grid import differences, read_sweep

WINDOW = "configs/sweeps/window.py"


def write(tmp_path, body):
  path = tmp_path / "mine.py"
  path.write_text(f"def get_config():\n  return {body}\n")
  return str(path)


def test_the_points_are_all_combinations(tmp_path):
  source = write(
    tmp_path,
    "dict(base='configs/digits.py', set={'steps': '2 epochs'}, seeds=(0, 1),"
    " grid={'model.block_size': (2, 4), 'model.depths': ((1, 1), (2, 2)),"
    " 'optimizer.name': ('sgd', 'adamw')})",
  )
  sweep = read_sweep(source)
  points = sweep.points()
  wanted = itertools.product((2, 4), ((1, 1), (2, 2)), ("sgd", "adamw"), (0, 1))
  found = []
  for point in points:
    config = sweep.config(point)
    assert config.steps == "2 epochs"
    model = config.model
    found.append(
      (model.block_size, model.depths, config.optimizer.name, config.seed)
    )
  assert found == list(wanted)
  names = [point.name for point in points]
  assert len(set(names)) == 16
  assert all("/" not in name and " " not in name for name in names)
  assert points[0].setting == points[1].setting != points[2].setting


def test_the_command_line_replaces_and_adds():
  sweep = read_sweep(
    WINDOW,
    changes={"steps": "60"},
    grid={"model.halo_size": "0,2,3", "model.heads": "(2,2),(4,4)"},
    seeds="5,6",
  )
  assert sweep.grid == {
    "model.block_size": ("2", "4"),
    "model.halo_size": ("0", "2", "3"),
    "model.heads": ("(2, 2)", "(4, 4)"),
    "seed": ("5", "6"),
  }
  last = sweep.config(sweep.points()[-1])
  assert (last.steps, last.model.halo_size, last.seed) == (60, 3, 6)
  assert last.model.heads == (4, 4)
  words = read_sweep(WINDOW, grid={"optimizer.name": "sgd,adamw"})
  assert words.grid["optimizer.name"] == ("sgd", "adamw")


def test_config_files_may_be_compared(tmp_path):
  bases = "configs/digits.py", "configs/digits.py:sasa"
  source = write(
    tmp_path, f"dict(base={bases}, set={{'steps': 90}}, seeds=(0, 1))"
  )
  sweep = read_sweep(source)
  points = sweep.points()
  found = [(sweep.base_of(point), point.values["seed"]) for point in points]
  assert found == [(base, seed) for base in bases for seed in "01"]
  names = [sweep.config(point).model.name for point in points]
  assert names == ["halonet_h1"] * 2 + ["sasa_resnet26"] * 2
  assert all("/" not in point.name for point in points)
  with pytest.raises(UsageError, match="in configs.*sasa there is no field"):
    read_sweep(source, grid={"model.block_size": "2,4"})
  # The command line compares config files, too.
  other = read_sweep(WINDOW, grid={"base": "configs/digits.py"})
  assert other.points()[0].values["base"] == "configs/digits.py"
  longer = read_sweep(source, {"steps": "95"}).to_dict()
  assert differences(sweep.to_dict(), longer) == (["steps: 90 → 95"], [])
  fewer = read_sweep(source, grid={"base": bases[1]}).to_dict()
  refused = [f"grid base: {' '.join(bases)} → {bases[1]}"]
  assert differences(sweep.to_dict(), fewer) == (refused, [])
  with pytest.raises(UsageError, match="of the tasks .*; compare config files"):
    tasks = bases[0], "configs/detection/small.py"
    read_sweep(write(tmp_path, f"dict(base={tasks})"))


def test_fields_of_one_name_stay_apart(tmp_path):
  source = write(
    tmp_path,
    "dict(base='configs/digits.py',"
    " grid={'model.name': ('halonet_h0',), 'optimizer.name': ('sgd',)})",
  )
  (point,) = read_sweep(source).points()
  assert point.name == "model.name=halonet_h0,optimizer.name=sgd,seed=0"


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("dict(bases=1)", "there is no field bases; did you mean base"),
    ("dict(grid={})", "base is None; it must be a config file"),
    ("dict(base=3)", "base is 3; it must be a config file"),
    ("dict(base='x', set={'base': 'y'})", "write --grid.base=y"),
    ("dict(base=('x', 3))", "base is ('x', 3); it must be a config file"),
    (
      "dict(base='x', grid={'steps': 3})",
      "--grid.steps is 3; it must be a tup",
    ),
    ("dict(base='x', grid={'steps': ()})", "--grid.steps lacks a value"),
    ("dict(base='x', grid={'steps': (1, 1)})", "1, 1: one stands twice"),
    ("dict(base='x', seeds=3)", "seeds is 3; it must be a tuple"),
    ("dict(base='x', grid={'seed': (1,)})", "its values are those of seeds"),
    ("dict(base='x', set={'a': 1}, grid={'a': (2,)})", "write --grid.a=1"),
    ("3", "gives 3; it must be a dict"),
  ],
)
def test_slips_in_the_file(tmp_path, body, message):
  with pytest.raises(UsageError) as caught:
    read_sweep(write(tmp_path, body))
  assert message in str(caught.value)


def test_slips_on_the_command_line():
  with pytest.raises(UsageError, match="--grid.model.rb lacks a value"):
    read_sweep(WINDOW, grid={"model.rb": ""})
  with pytest.raises(UsageError, match="config.seed is 3 .*write --seeds=3"):
    read_sweep(WINDOW, changes={"seed": "3"})
  with pytest.raises(UsageError, match="no field model.blocksize; did you"):
    read_sweep(WINDOW, grid={"model.blocksize": "2"})


def test_differences():
  old = read_sweep(WINDOW)
  assert differences(old.to_dict(), old.to_dict()) == ([], [])
  new = read_sweep(
    WINDOW, changes={"steps": "90", "log_every": "3"}, seeds="0,1"
  )
  refused, changed = differences(old.to_dict(), new.to_dict())
  assert refused == ["grid seed: 0 → 0 1", "steps: 150 → 90"]
  assert changed == ["log_every: 25 → 3"]
  before = old.to_dict()  # As a version stored it that knew one config file.
  before["config"] = before.pop("configs")[0]
  assert differences(before, old.to_dict()) == ([], [])
