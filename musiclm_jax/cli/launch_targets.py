# SPDX-License-Identifier: Apache-2.0
"""One function per kind of cluster: options in, shell commands out."""

import argparse
import shlex

from musiclm_jax.cli import launch_config, launch_manifest, launch_scripts
from musiclm_jax.core import errors

_SCOPES = "https://www.googleapis.com/auth/cloud-platform"


def _line(*words: str) -> str:
  """One command, broken after its second option onto further lines."""
  quoted = [shlex.quote(word) for word in words if word]
  text, width = quoted[0], len(quoted[0])
  for word in quoted[1:]:
    if width + len(word) > 76:
      text, width = f"{text} \\\n  {word}", len(word) + 2
    else:
      text, width = f"{text} {word}", width + 1 + len(word)
  return text + "\n"


def _need(args: argparse.Namespace, *names: str) -> None:
  for name in names:
    if not getattr(args, name):
      raise errors.UserError(
        f"--{name} is missing: `musiclm launch {args.kind} "
        f"--action={args.action}` needs it"
      )


def _at(args: argparse.Namespace) -> tuple[str, str]:
  launch_config.check_place("zone", args.zone)
  return f"--project={args.project}", f"--zone={args.zone}"


def _host_script(args: argparse.Namespace) -> str:
  _need(args, "accelerator_type", "source")
  if args.bucket:
    launch_config.check_bucket(args.bucket)
  return launch_scripts.host_script(
    args.name,
    args.source,
    args.bucket,
    launch_config.check_command(args.command),
    launch_config.environment(args.env),
    args.max_restarts,
  )


def _create_options(args: argparse.Namespace) -> list[str]:
  accelerator = launch_config.parse_accelerator(args.accelerator_type)
  if args.spot and args.reserved:
    raise errors.UserError("--spot and --reserved: expected at most one")
  return [
    *_at(args),
    f"--accelerator-type={accelerator.name}",
    f"--scopes={_SCOPES}",
    f"--network={args.network}" if args.network else "",
    f"--service-account={args.service_account}" if args.service_account else "",
    "--spot" if args.spot else "",
    "--reserved" if args.reserved else "",
  ]


def _version(args: argparse.Namespace) -> str:
  accelerator = launch_config.parse_accelerator(args.accelerator_type)
  return args.runtime_version or accelerator.generation.runtime_version


def _tpu_vm(args: argparse.Namespace) -> str:
  """One TPU VM: everything the slice launcher does, with one host.

  Raises:
    UserError: for an accelerator of several hosts.
  """
  if args.action == "up":
    _need(args, "accelerator_type")
    found = launch_config.parse_accelerator(args.accelerator_type)
    if found.num_hosts > 1:
      raise errors.UserError(
        f"--accelerator_type={found.name} has {found.num_hosts} hosts: use "
        "`musiclm launch slice` or `queued`"
      )
  return _ssh_slice(args)


def _ssh_slice(args: argparse.Namespace) -> str:
  """A slice whose hosts are all started by ssh."""
  vm, at = ("gcloud", "compute", "tpus", "tpu-vm"), _at(args)
  log = f"{args.name}.log"
  if args.action == "status":
    return _line(*vm, "describe", args.name, *at)
  if args.action == "down":
    return _line(*vm, "delete", args.name, *at, "--quiet")
  if args.action == "logs":
    return _line(
      *vm,
      *("ssh", args.name, *at, "--worker=0"),
      f"--command=tail -n 100 -F {log}",
    )
  host = f"{args.name}_host.sh"
  text = launch_scripts.file_command(host, _host_script(args))
  text += _line(
    *(*vm, "create", args.name, *_create_options(args)),
    f"--version={_version(args)}",
  )
  text += _line(*(*vm, "scp", host, f"{args.name}:{host}", *at, "--worker=all"))
  # Detached: the job outlives the connection that starts it.
  return text + _line(
    *(*vm, "ssh", args.name, *at, "--worker=all"),
    f"--command=nohup setsid bash {host} >{log} 2>&1 </dev/null &",
  )


def _queued(args: argparse.Namespace) -> str:
  """Queued resources: the hosts start the job themselves at every boot."""
  queue = ("gcloud", "compute", "tpus", "queued-resources")
  at, text = _at(args), ""
  launch_config.check_at_least("num_slices", args.num_slices, 1)
  if args.action == "status":
    return _line(*queue, "describe", args.name, *at)
  if args.action == "down":
    return _line(*queue, "delete", args.name, *at, "--force", "--quiet")
  if args.action == "logs":
    node = args.name if args.num_slices == 1 else f"{args.name}-0"
    return _line(
      *("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *at),
      "--worker=0",
      "--command=sudo journalctl -n 100 -f -u google-startup-scripts.service",
    )
  host = f"{args.name}_host.sh"
  text += launch_scripts.file_command(host, _host_script(args))
  nodes = [f"--node-id={args.name}"]
  if args.num_slices > 1:
    nodes = [f"--node-count={args.num_slices}", f"--node-prefix={args.name}"]
  create = _line(
    *(*queue, "create", args.name, *_create_options(args), *nodes),
    f"--runtime-version={_version(args)}",
    f"--valid-until-duration={args.valid_until}" if args.valid_until else "",
    f"--metadata-from-file=startup-script={host}",
  )
  if args.action == "up":
    if args.bucket:
      marks = f"gs://{args.bucket}/{args.name}/launch/exit_code.*"
      text += "# Marks of an earlier job of this name.\n"
      text += f"gcloud storage rm {shlex.quote(marks)} 2>/dev/null || true\n"
    return text + create
  _need(args, "bucket")
  text += launch_scripts.assign("NAME", args.name) + "\n"
  text += launch_scripts.assign("BUCKET", args.bucket) + "\n"
  text += launch_scripts.assign("AT", at) + "\n"
  text += f"create() {{\n{create}}}\n"
  # An absent mark or resource is an answer here, not an error.
  return text + "set +e +o pipefail\n" + launch_scripts.watch_loop()


def _gke(args: argparse.Namespace) -> str:
  """A JobSet, applied with kubectl."""
  kubectl = [
    "kubectl",
    f"--context={args.context}" if args.context else "",
    f"--namespace={args.namespace}" if args.namespace else "",
  ]
  label = f"--selector=jobset.sigs.k8s.io/jobset-name={args.name}"
  if args.action == "status":
    return _line(*kubectl, "get", "jobset", args.name, "-o", "yaml") + _line(
      *kubectl, "get", "pods", label, "-o", "wide"
    )
  if args.action == "down":
    return _line(*kubectl, "delete", "jobset", args.name)
  if args.action == "logs":
    return _line(
      *(*kubectl, "logs", "-f", "--tail=100"),
      f"--container={launch_manifest.CONTAINER}",
      f"{label},batch.kubernetes.io/job-completion-index=0",
      "--max-log-requests=64",
    )
  _need(args, "accelerator_type", "image")
  launch_config.check_at_least("num_slices", args.num_slices, 1)
  launch_config.check_at_least("grace_secs", args.grace_secs, 1)
  if args.bucket:
    launch_config.check_bucket(args.bucket)
  manifest = launch_manifest.jobset(
    args.name,
    launch_config.parse_accelerator(args.accelerator_type),
    args.num_slices,
    args.image,
    launch_config.check_command(args.command),
    args.bucket,
    args.namespace,
    args.service_account,
    args.spot,
    args.grace_secs,
    args.max_restarts,
    launch_config.environment(args.env),
  )
  path = f"{args.name}.yaml"
  text = launch_scripts.file_command(path, launch_manifest.to_yaml(manifest))
  return text + _line(*kubectl, "apply", "-f", path)


def _slurm(args: argparse.Namespace) -> str:
  """A batch job with one task per GPU."""
  if args.action == "status":
    return _line("squeue", f"--name={args.name}", "--me", "--long")
  if args.action == "down":
    return _line("scancel", f"--name={args.name}", "--me")
  if args.action == "logs":
    return f"tail -n 100 -F {shlex.quote(args.name)}-*.log\n"
  _need(args, "python")
  for option in ("num_nodes", "gpus_per_node", "cpus_per_task", "grace_secs"):
    launch_config.check_at_least(option, getattr(args, option), 1)
  directives = {
    "job-name": args.name,
    "nodes": str(args.num_nodes),
    "ntasks-per-node": str(args.gpus_per_node),
    "gpus-per-node": str(args.gpus_per_node),
    "cpus-per-task": str(args.cpus_per_task),
    "time": args.time_limit,
    "signal": f"TERM@{args.grace_secs}",
    "output": f"{args.name}-%j.log",
    "open-mode": "append",
    "requeue": "",
  }
  if args.partition:
    directives["partition"] = args.partition
  if args.account:
    directives["account"] = args.account
  path = f"{args.name}.sbatch"
  return launch_scripts.file_command(
    path,
    launch_scripts.slurm_script(
      args.name,
      directives,
      args.python,
      launch_config.check_command(args.command),
      launch_config.environment(args.env),
      args.max_restarts,
    ),
  ) + _line("sbatch", path)


BUILDERS = {
  "tpu_vm": _tpu_vm,
  "slice": _ssh_slice,
  "queued": _queued,
  "gke": _gke,
  "slurm": _slurm,
}
