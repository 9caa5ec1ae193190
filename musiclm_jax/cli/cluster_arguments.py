# SPDX-License-Identifier: Apache-2.0
"""Options of verbs that may run as several processes; imports nothing heavy."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Where a process stands in its job; named as in jax.distributed."""
  group = parser.add_argument_group(
    "several processes",
    "On TPU pods, Slurm and Open MPI all of it is found out. Elsewhere give "
    "the first three, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
    "JAX_PROCESS_ID.",
  )
  group.add_argument(
    "--coordinator_address", metavar="HOST:PORT", help="of process 0"
  )
  group.add_argument("--num_processes", type=int, help="processes in all")
  group.add_argument("--process_id", type=int, help="of this one, from 0")
  group.add_argument(
    "--start_timeout_secs",
    type=int,
    default=300,
    help="how long all processes may take to come (default: %(default)s)",
  )
  group.add_argument(
    "--peer_timeout_secs",
    type=int,
    default=100,
    help="silence after which a peer is lost (default: %(default)s)",
  )
  group.add_argument(
    "--skip_distributed_init",
    action="store_true",
    help="one process, whatever the environment says",
  )


def run(
  args: argparse.Namespace,
  work: Callable[[], int],
  command: Sequence[str] | None = None,
) -> int:
  """Runs `work` as this process' part of the job the options describe.

  A process of several becomes the parent of a child that does the work
  (`training/supervisor.py`); the child does not return from here.

  Args:
    args: parsed options.
    work: returns an exit code or raises.
    command: starts this program again; the verb by default.

  Returns:
    The exit code.
  """
  from musiclm_jax.training import distributed, supervisor

  cluster = None
  if not args.skip_distributed_init:
    cluster = distributed.find_cluster(
      distributed.ClusterConfig(
        args.coordinator_address,
        args.num_processes,
        args.process_id,
        args.start_timeout_secs,
        args.peer_timeout_secs,
      )
    )
  if cluster is None:
    return _alone(work)
  if not os.environ.get(supervisor.SUPERVISED_VARIABLE):
    if command is None:
      command = [sys.executable, "-m", "musiclm_jax.cli.main", *args.argv]
    return supervisor.run(
      command, cluster.process_id, cluster.coordinator_address
    )
  distributed.initialize(cluster)
  code, message = _outcome(work, cluster.peer_timeout_secs)
  distributed.leave(code, message, cluster.peer_timeout_secs)
  # Not through exit handlers: JAX's waits for peers that may be gone.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _outcome(
  work: Callable[[], int], peer_timeout_secs: int
) -> tuple[int, str]:
  """Exit code of `work`, and its error in one line."""
  from musiclm_jax.cli import main as main_lib
  from musiclm_jax.training import distributed

  try:
    return work(), ""
  except KeyboardInterrupt:
    return 130, "interrupted"
  except Exception as error:
    if distributed.is_infrastructure(error):
      error = distributed.explain_collective_error(error, peer_timeout_secs)
    code = main_lib.report(error)
    return code, str(error).strip().split("\n")[0]


def _alone(work: Callable[[], int]) -> int:
  """Runs `work` as a single process; a device that fails is worth a retry."""
  from musiclm_jax.core import errors
  from musiclm_jax.training import distributed

  try:
    return work()
  except Exception as error:
    if distributed.is_infrastructure(error):
      first = str(error).strip().split("\n")[0]
      raise errors.RetryError(f"the device runtime failed: {first}") from error
    raise
