"""Joins the processes of one run, on hosts with an accelerator each.

On a TPU pod, under Slurm and under Open MPI, JAX finds the processes by
itself; elsewhere flags or environment variables name them.
"""

import argparse
import os

from halonet.errors import UsageError

_VARIABLES = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "processes": "JAX_NUM_PROCESSES",
  "process": "JAX_PROCESS_ID",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --coordinator, --processes and --process to a command."""
  group = parser.add_argument_group(
    "several processes",
    "A TPU pod needs none of these: give the same command on every host."
    " Elsewhere give all three on every host (or the environment variables"
    f" {', '.join(_VARIABLES.values())}).",
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="a free port of process 0's host"
  )
  group.add_argument(
    "--processes", type=int, metavar="N", help="how many there are"
  )
  group.add_argument(
    "--process", type=int, metavar="I", help="which one this is, from 0"
  )


def initialize(arguments: argparse.Namespace) -> None:
  """Joins this process to the others, if there are any.

  To be called before JAX computes anything.

  Args:
    arguments: with what `add_arguments` defines.

  Raises:
    UsageError: if not all three are given, or the others cannot be reached.
  """
  given = {
    name: getattr(arguments, name)
    if getattr(arguments, name) is not None
    else os.environ.get(variable)
    for name, variable in _VARIABLES.items()
  }
  if any(value is not None for value in given.values()):
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UsageError(
        f"--{missing[0]} (or {_VARIABLES[missing[0]]}) is missing; several"
        " processes need all of --coordinator, --processes and --process"
      )
    try:
      number, index = int(given["processes"]), int(given["process"])
    except ValueError:
      raise UsageError(
        f"--processes is {given['processes']} and --process"
        f" {given['process']}; both must be whole numbers"
      ) from None
    if not 0 <= index < number:
      raise UsageError(
        f"--process is {index}; it must be at least 0 and below --processes,"
        f" {number}"
      )
    options = dict(
      coordinator_address=given["coordinator"],
      num_processes=number,
      process_id=index,
    )
  else:
    options = {}
  import jax  # After --help.

  try:
    jax.distributed.initialize(**options)
  except ValueError as error:
    # Nothing around says that there are others.
    if "coordinator_address should be defined" not in str(error):
      raise UsageError(f"processes cannot be joined: {error}") from error
  except RuntimeError as error:
    reason = str(error).strip().splitlines()[0]
    index = given["process"]
    which = "this process" if index is None else f"process {index}"
    raise UsageError(f"{which} cannot join the others: {reason}") from error
