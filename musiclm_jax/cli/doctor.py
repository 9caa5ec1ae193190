# SPDX-License-Identifier: Apache-2.0
"""Checks a machine or a cluster before a job is put on it; 1 on a fault.

Versions and code on all hosts, devices and one sum over all of them, the
mesh, disk space, reading and writing of folders and buckets, and clocks. Start
it on every host, as the job itself. `musiclm prepare` has the doctor of audio.
"""

import argparse

TAKES_URLS = True
EPILOG = """examples:
  musiclm doctor --path=runs
  musiclm doctor --path=gs://bucket/runs --path=/gcs/bucket \\
    --num_devices=64 --num_processes=16
  musiclm launch slice ... -- doctor --path=/gcs/bucket --num_devices=64"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options."""
  from musiclm_jax.cli import arguments, cluster_arguments

  parser.add_argument(
    "--path",
    action="append",
    default=[],
    help="folder or bucket the job uses (etils or fsspec path); repeatable",
  )
  parser.add_argument(
    "--min_free_gib", type=float, default=10.0, help="least free disk space"
  )
  parser.add_argument(
    "--max_skew_secs", type=float, default=2.0, help="between two clocks"
  )
  parser.add_argument(
    "--num_devices", type=int, default=0, help="devices expected in all"
  )
  parser.add_argument(
    "--json", metavar="PATH", help="also write the table here"
  )
  arguments.add_gin_arguments(parser, required=False)
  cluster_arguments.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  from musiclm_jax.cli import cluster_arguments

  return cluster_arguments.run(args, lambda: _examine(args))


def _examine(args: argparse.Namespace) -> int:
  import dataclasses
  import json
  import pathlib

  from musiclm_jax.cli import cluster_doctor
  from musiclm_jax.training import distributed

  mesh = None
  if args.gin_file:
    from musiclm_jax.cli import experiment

    mesh = experiment.load(args)[0].make_partitioner().config
  table, hosts = cluster_doctor.examine(
    args.path,
    cluster_doctor.Limits(
      args.min_free_gib,
      args.max_skew_secs,
      args.num_devices,
      args.num_processes or 0,
    ),
    mesh,
  )
  faults = [row for row in table if not row.is_ok]
  if distributed.is_main():
    print(cluster_doctor.describe(table, hosts))
    print(
      f"{len(hosts)} processes, {len(faults)} faults"
      if faults
      else f"{len(hosts)} processes, no fault"
    )
    if args.json:
      rows = [dataclasses.asdict(row) for row in table]
      text = json.dumps({"hosts": hosts, "rows": rows}, indent=2)
      pathlib.Path(args.json).write_text(text + "\n")
  if faults:
    # Every process has the same table and ends with the same code.
    distributed.refuse_together()
    return 1
  return 0
