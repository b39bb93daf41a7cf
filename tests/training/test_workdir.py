"""A workdir belongs to one config and to one process at a time."""

import subprocess
import sys

import pytest

from halonet.errors import UsageError
from halonet.training.workdir import Workdir


def test_a_claim_is_for_one_config(tmp_path, small_config):
  workdir = Workdir(str(tmp_path / "a" / "b"))
  for _ in range(2):
    with workdir.claim(small_config()):
      workdir.write_config(small_config())
  assert workdir.config().to_dict() == small_config().to_dict()
  with pytest.raises(UsageError, match=r"\(batch_size: 128 → 64, steps: 24"):
    workdir.claim(small_config("batch_size=64", "steps=25")).__enter__()


def test_a_claim_excludes_other_processes(tmp_path, small_config):
  workdir = Workdir(str(tmp_path))
  with workdir.claim(small_config()):
    workdir.write_config(small_config())
    code = (
      "import sys; from halonet.training.workdir import Workdir;"
      "from halonet.errors import UsageError\n"
      "workdir = Workdir(sys.argv[1])\n"
      "try: workdir.claim(workdir.config()).__enter__()\n"
      "except UsageError as error: print(error)"
    )
    done = subprocess.run(
      [sys.executable, "-c", code, str(tmp_path)],
      capture_output=True,
      text=True,
      check=True,
    )
  assert "another process is training in" in done.stdout


def test_a_folder_of_something_else_is_refused(tmp_path, small_config):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UsageError, match=r"holds thesis\.tex but no config"):
    Workdir(str(tmp_path)).claim(small_config()).__enter__()


def test_an_unwritable_folder_is_refused(tmp_path, small_config):
  (tmp_path / "file").write_text("")
  with pytest.raises(UsageError, match="cannot be written: Not a directory"):
    Workdir(str(tmp_path / "file" / "run")).claim(small_config()).__enter__()
  with pytest.raises(UsageError, match="must be a local folder or gs://BUCK"):
    Workdir("s3://bucket/run")


def test_a_damaged_config_is_named(tmp_path, small_config):
  refusal = "is not the folder of a run"
  with pytest.raises(UsageError, match=f"{refusal}: it has no config.json$"):
    Workdir(str(tmp_path)).config()
  (tmp_path / "config.json").write_text("{")
  refusal += ": config.json cannot be read"
  with pytest.raises(UsageError, match=f"{refusal}: Expecting"):
    Workdir(str(tmp_path)).config()
  (tmp_path / "config.json").unlink()
  (tmp_path / "config.json").mkdir()
  with pytest.raises(UsageError, match=f"{refusal}: Is a directory$"):
    Workdir(str(tmp_path)).config()


def test_a_claim_alone_leaves_the_folder_to_the_next_config(
  tmp_path, small_config
):
  for overrides in ([], ["batch_size=64"]):
    with Workdir(str(tmp_path)).claim(small_config(*overrides)):
      pass


def test_damaged_files_are_named(tmp_path):
  workdir = Workdir(str(tmp_path))
  (tmp_path / "results.json").write_text("")
  with pytest.raises(UsageError, match=r"results\.json is damaged"):
    workdir.results()
  with pytest.raises(UsageError, match=r"metadata\.json cannot be read"):
    workdir.metadata()


def test_small_files_come_back(tmp_path):
  workdir = Workdir(str(tmp_path))
  assert workdir.results() is None
  workdir.write_results({"steps": 3})
  workdir.write_metadata({"labels": ["cat", "dog"]})
  assert workdir.results() == {"steps": 3}
  assert workdir.metadata() == {"labels": ["cat", "dog"]}
  assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_what_is_not_learned_may_change(tmp_path, small_config):
  workdir = Workdir(str(tmp_path))
  with workdir.claim(small_config()) as changed:
    assert not changed
    workdir.write_config(small_config())
  with workdir.claim(small_config("log_every=3")) as changed:
    assert changed == ["log_every: 1 → 3"]


def test_other_data_is_refused(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.check_data({"training files": "3, abc"})  # It has none yet.
  workdir.write_data({"training files": "3, abc", "classes": "2, d"})
  workdir.check_data({"training files": "3, abc", "classes": "2, d"})
  with pytest.raises(UsageError, match=r"the training files are not .*2, abd"):
    workdir.check_data({"training files": "2, abd", "classes": "2, d"})


def test_other_metadata_are_refused(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.check_metadata({"labels": ["cat"]})  # It has none yet.
  # JSON has no tuples; the run's own must not look like another's.
  workdir.write_metadata({"labels": ("cat", "dog")})
  workdir.check_metadata({"labels": ("cat", "dog")})
  with pytest.raises(UsageError, match="labels are not those that the run in"):
    workdir.check_metadata({"labels": ("dog", "cat")})


def test_labels_of_a_run_before_there_were_tasks(tmp_path):
  (tmp_path / "labels.txt").write_text("cat\ndog\n")
  workdir = Workdir(str(tmp_path))
  assert workdir.metadata() == {"labels": ["cat", "dog"]}
  workdir.check_metadata({"labels": ["cat", "dog"]})
  with pytest.raises(UsageError, match="labels are not those"):
    workdir.check_metadata({"labels": ["cat"]})


def test_an_empty_folder_inside_is_no_strangers_work(tmp_path, small_config):
  (tmp_path / "checkpoints").mkdir()
  with Workdir(str(tmp_path)).claim(small_config()):
    pass


def test_a_bucket_is_written_without_locks_and_renames(tmp_path, small_config):
  # A folder in place of the bucket: no bucket can be reached from a test.
  workdir = Workdir("gs://bucket/run")
  assert not workdir.is_local and str(workdir.metrics).startswith("gs://bucket")
  workdir = Workdir(str(tmp_path))
  workdir.is_local = False
  with workdir.claim(small_config()), workdir.claim(small_config()):
    workdir.write_config(small_config())
  assert workdir.config().to_dict() == small_config().to_dict()
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
