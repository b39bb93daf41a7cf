"""A training that takes no time, for the tests of the workers.

Takes the arguments of `python -m halonet.train`. It keeps a workdir as a
training does: locks it, saves its step, goes on from there, saves and leaves
when it is told to. `model.rb` says how it ends.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time

STEPS = 20
ENDINGS = {
  "2.0": ("error: loss is nan at step 3", 1),
  "3.0": ("error: config.batch_size is odd", 2),
  # What is largest follows, as of a TPU.
  "4.0": ("E0000 RESOURCE_EXHAUSTED: 9 GB\n" + "Size: 1 GB\n" * 200, 1),
  "5.0": ("", -signal.SIGKILL),
}


def main():
  options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
  workdir = pathlib.Path(options["workdir"])
  workdir.mkdir(exist_ok=True)
  parent, stopped = os.getppid(), []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
  with open(workdir / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    saved = workdir / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    with open(workdir.parent / "starts", "a") as starts:
      starts.write(f"{workdir.name} {step} {parent}\n")
    (workdir / "base").write_text(options["config"])
    print(f"Going on from step {step}", flush=True)
    ending = ENDINGS.get(options.get("config.model.rb"))
    if ending:
      if ending[1] < 0:
        os.kill(os.getpid(), -ending[1])
      print(ending[0])
      sys.exit(ending[1])
    while step < STEPS:
      time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
      step += 1
      saved.write_text(str(step))
      print(f"step {step}/{STEPS}  loss 1.0  ETA 0:00:09", flush=True)
      if stopped or os.getppid() != parent:
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        print("saving", flush=True)
        saved.write_text("15")
        sys.exit(128 + signal.SIGTERM)
    results = dict(
      test_accuracy=int(options["config.model.halo_size"]) / 10,
      test_loss=0.5,
      images_per_second=7.0,
      device="1 × none",
      peak_memory_bytes=2**20,
      peak_memory_of="device",
    )
    lines = ({"step": n, "test_accuracy": n / STEPS} for n in (10, STEPS))
    lines = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(lines + '{"step": 20, "loss": 1}\n')
    (workdir / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
  main()
