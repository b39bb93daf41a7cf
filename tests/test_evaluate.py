"""Evaluating a checkpoint from the command line."""

import json

from halonet import evaluate


def test_it_is_what_training_reported(run_main, trained):
  workdir, _ = trained
  results = json.loads((workdir / "results.json").read_text())
  code, output, complaint = run_main(evaluate.main, f"--workdir={workdir}")
  assert code == 0, complaint
  assert "Evaluating step 24 on split test of digits/1.0.0" in output
  raw, averaged = output.splitlines()[-2:]
  assert averaged == (
    f"moving averages: test accuracy: {results['test_accuracy']:.4f}"
    f" ({results['test_correct']} of 450 images), loss"
    f" {results['test_loss']:.4f}"
  )
  assert raw.startswith(f"test accuracy: {results['raw_test_accuracy']:.4f} (")
  assert raw.endswith(f"loss {results['raw_test_loss']:.4f}")
  assert raw not in averaged


def test_an_earlier_checkpoint(run_main, trained):
  workdir, _ = trained
  code, output, _ = run_main(evaluate.main, f"--workdir={workdir}", "--step=20")
  assert code == 0 and "Evaluating step 20" in output
  results = json.loads((workdir / "results.json").read_text())
  # Not the last one's figures under another name.
  assert f"loss {results['test_loss']:.4f}" not in output


def test_slips_are_answered_in_one_line(run_main, trained, tmp_path):
  workdir, _ = trained
  code, _, complaint = run_main(evaluate.main, f"--workdir={tmp_path}")
  assert code == 2 and "is not the folder of a run" in complaint
  code, _, complaint = run_main(
    evaluate.main, f"--workdir={workdir}", "--step=21"
  )
  assert code == 2
  assert "there is no checkpoint of step 21" in complaint
  assert complaint.strip().endswith("known: 15, 20, 24")


def test_a_run_without_checkpoints(run_main, trained, tmp_path):
  workdir, _ = trained
  (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
  code, _, complaint = run_main(evaluate.main, f"--workdir={tmp_path}")
  assert code == 2 and "has no checkpoints yet" in complaint
