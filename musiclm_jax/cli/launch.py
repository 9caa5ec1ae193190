# SPDX-License-Identifier: Apache-2.0
"""Prints the commands that put a job on a cluster; with --go, runs them.

Everything after -- is a verb with its options, which each host runs with
`python -m musiclm_jax.cli.main`.
"""

import argparse

TAKES_COMMAND = True
TAKES_URLS = True
# kind -> (actions, one line of help)
KINDS = {
  "tpu_vm": (("up", "status", "logs", "down"), "one TPU VM"),
  "slice": (("up", "status", "logs", "down"), "all hosts of a slice, by ssh"),
  "queued": (
    ("up", "watch", "status", "logs", "down"),
    "queued resources with a start-up script; `watch` asks again for what "
    "was taken away",
  ),
  "gke": (("up", "status", "logs", "down"), "a JobSet on GKE"),
  "slurm": (("up", "status", "logs", "down"), "GPUs under Slurm"),
}

EPILOG = """examples:
  musiclm launch queued --name=coarse --project=PROJECT --zone=us-east5-a \\
    --accelerator_type=v5p-128 --spot --bucket=BUCKET \\
    --source=gs://BUCKET/musiclm.tar.gz -- \\
    train --gin_file=experiments/musiclm_coarse_tiny_score_corpus.gin \\
    --gin.CACHE_DIR=/gcs/BUCKET/tokens --gin.TRAIN_STEPS=1000 \\
    --model_dir=/gcs/BUCKET/coarse
  musiclm launch queued --name=coarse --project=PROJECT --zone=us-east5-a \\
    --action=down --go

docs/launch/ has a page for each kind."""


def _add_common(parser: argparse.ArgumentParser, kind: str) -> None:
  parser.add_argument("--name", required=True, help="of the job")
  parser.add_argument(
    "--action",
    default="up",
    choices=KINDS[kind][0],
    help="what the commands do (default: %(default)s)",
  )
  parser.add_argument(
    "--go", action="store_true", help="run the commands instead of printing"
  )
  parser.add_argument(
    "--env",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="variable of the run; repeatable",
  )
  parser.add_argument(
    "--max_restarts",
    type=int,
    default=100,
    help="after all exit codes but 0 to 2",
  )


def _add_cloud(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--project", required=True, help="Google Cloud project")
  parser.add_argument("--zone", required=True, help="as us-east5-a")
  parser.add_argument("--accelerator_type", help="as v5p-128 or v6e-256")
  parser.add_argument("--runtime_version", help="image; by TPU generation")
  parser.add_argument("--network", help="VPC network")
  parser.add_argument("--service_account", help="of the VMs")
  parser.add_argument("--spot", action="store_true", help="may be pre-empted")
  parser.add_argument(
    "--reserved", action="store_true", help="take it from a reservation"
  )
  parser.add_argument(
    "--source",
    help="the code: gs:// archive of a checkout (git archive), or a git "
    "address with an optional #revision",
  )
  parser.add_argument(
    "--bucket", default="", help="name of a bucket, mounted at /gcs/NAME"
  )


def _add_gke(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--accelerator_type", help="as v5p-128 or v6e-256")
  parser.add_argument("--num_slices", type=int, default=1)
  parser.add_argument("--image", help="container image, see launch/Dockerfile")
  parser.add_argument(
    "--bucket", default="", help="name of a bucket, mounted at /gcs/NAME"
  )
  parser.add_argument("--namespace", default="", help="of Kubernetes")
  parser.add_argument("--context", default="", help="of kubectl")
  parser.add_argument(
    "--service_account", default="", help="Kubernetes service account"
  )
  parser.add_argument("--spot", action="store_true", help="on spot nodes")
  parser.add_argument(
    "--grace_secs", type=int, default=300, help="from SIGTERM to SIGKILL"
  )


def _add_slurm(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--num_nodes", type=int, default=1)
  parser.add_argument("--gpus_per_node", type=int, default=8)
  parser.add_argument("--cpus_per_task", type=int, default=8)
  parser.add_argument("--time_limit", default="24:00:00", help="H:MM:SS")
  parser.add_argument("--partition", default="")
  parser.add_argument("--account", default="")
  parser.add_argument(
    "--python", help="interpreter with the package, on all nodes"
  )
  parser.add_argument(
    "--grace_secs", type=int, default=300, help="SIGTERM so long before the end"
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the verb's options, which differ by kind."""
  kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
  for kind, (_, text) in KINDS.items():
    one = kinds.add_parser(kind, help=text, description=text)
    _add_common(one, kind)
    if kind in ("tpu_vm", "slice", "queued"):
      _add_cloud(one)
    if kind == "queued":
      one.add_argument("--num_slices", type=int, default=1)
      one.add_argument("--valid_until", help="give up after, as 12h")
    elif kind == "gke":
      _add_gke(one)
    elif kind == "slurm":
      _add_slurm(one)


def script(args: argparse.Namespace) -> str:
  """The shell script of a command line.

  Raises:
    UserError: for an option that is missing or does not fit.
  """
  from musiclm_jax.cli import launch_config, launch_targets

  launch_config.check_name(args.name)
  launch_config.check_at_least("max_restarts", args.max_restarts, 0)
  head = f"#!/usr/bin/env bash\n# musiclm launch {args.kind}: {args.action}\n"
  return f"{head}set -euo pipefail\n{launch_targets.BUILDERS[args.kind](args)}"


def main(args: argparse.Namespace) -> int:
  """Runs the verb."""
  text = script(args)
  if not args.go:
    print(text)
    return 0
  import subprocess

  # From standard input, a child that reads it would eat the rest.
  return subprocess.run(["bash", "-c", text]).returncode
