# SPDX-License-Identifier: Apache-2.0
"""A JobSet manifest for TPU slices on GKE, as plain data and as YAML."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.cli import launch_config

CONTAINER = "musiclm"
_FINAL_EXIT_CODES = (1, 2)  # The user has to act.
# Ports libtpu uses between hosts and slices, and jax's coordinator.
_PORTS = (8080, 8431, 8471, 8476)


def to_yaml(value: Any, indent: int = 0) -> str:
  """Nested dicts, lists and scalars as block YAML; texts are quoted."""
  pad = "  " * indent
  if isinstance(value, Mapping) and value:
    lines = []
    for key, item in value.items():
      if isinstance(item, (Mapping, list, tuple)) and item:
        lines.append(f"{pad}{key}:\n{to_yaml(item, indent + 1)}")
      else:
        lines.append(f"{pad}{key}: {_scalar(item)}")
    return "\n".join(lines)
  if isinstance(value, (list, tuple)) and value:
    lines = []
    for item in value:
      if isinstance(item, (Mapping, list, tuple)) and item:
        body = to_yaml(item, indent + 1)
        lines.append(f"{pad}- {body[len(pad) + 2 :]}")
      else:
        lines.append(f"{pad}- {_scalar(item)}")
    return "\n".join(lines)
  return pad + _scalar(value)


def _scalar(value: Any) -> str:
  # JSON scalars and empty collections are YAML.
  return json.dumps(value, default=dict, ensure_ascii=False)


def _pod(
  accelerator: launch_config.Accelerator,
  image: str,
  bucket: str,
  service_account: str,
  spot: bool,
  grace_secs: int,
  command: Sequence[str],
  environment: Mapping[str, str],
) -> dict[str, Any]:
  container: dict[str, Any] = {
    "name": CONTAINER,
    "image": image,
    "command": ["python", "-m", "musiclm_jax.cli.main"],
    "args": list(command),
    "ports": [{"containerPort": port} for port in _PORTS],
    "resources": {
      "requests": {"google.com/tpu": accelerator.chips_per_host},
      "limits": {"google.com/tpu": accelerator.chips_per_host},
    },
  }
  if environment:
    container["env"] = [
      {"name": key, "value": value} for key, value in environment.items()
    ]
  selector = {
    "cloud.google.com/gke-tpu-accelerator": (
      accelerator.generation.gke_accelerator
    ),
    "cloud.google.com/gke-tpu-topology": accelerator.topology,
  }
  if spot:
    selector["cloud.google.com/gke-spot"] = "true"
  spec: dict[str, Any] = {
    # A pod never restarts alone: its slice has to start together.
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": grace_secs,
    "nodeSelector": selector,
    "containers": [container],
  }
  if service_account:
    spec["serviceAccountName"] = service_account
  metadata = {}
  if bucket:
    metadata = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    container["volumeMounts"] = [
      {"name": "bucket", "mountPath": f"/gcs/{bucket}"}
    ]
    spec["volumes"] = [
      {
        "name": "bucket",
        "csi": {
          "driver": "gcsfuse.csi.storage.gke.io",
          "volumeAttributes": {
            "bucketName": bucket,
            "mountOptions": "implicit-dirs",
          },
        },
      }
    ]
  return {**({"metadata": metadata} if metadata else {}), "spec": spec}


def jobset(
  name: str,
  accelerator: launch_config.Accelerator,
  num_slices: int,
  image: str,
  command: Sequence[str],
  bucket: str = "",
  namespace: str = "",
  service_account: str = "",
  spot: bool = False,
  grace_secs: int = 300,
  max_restarts: int = 100,
  environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """A JobSet that restarts as a whole after 42 and 143, and not after 1.

  Exit code 1 or 2 makes the job fail with the reason PodFailurePolicy, which
  the JobSet does not retry. 42, 143, a crash, an eviction or a lost node
  exceed the backoff limit of 0, which it does.

  Args:
    name: of the JobSet.
    accelerator: of each slice.
    num_slices: slices joined over the data-centre network.
    image: container image with the package installed.
    command: verb and options.
    bucket: mounted at /gcs/BUCKET by the Cloud Storage FUSE driver.
    namespace: of Kubernetes; '' for the current one.
    service_account: Kubernetes account that may use the bucket.
    spot: run on spot nodes.
    grace_secs: from SIGTERM to SIGKILL; a checkpoint must be saved in it.
    max_restarts: of the whole JobSet.
    environment: variables of the container.

  Returns:
    The manifest as nested dicts and lists.
  """
  job = {
    "backoffLimit": 0,
    "completionMode": "Indexed",
    "parallelism": accelerator.num_hosts,
    "completions": accelerator.num_hosts,
    "podFailurePolicy": {
      "rules": [
        # A pre-empted pod may die of any code: look at that first.
        {
          "action": "Count",
          "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "In",
            "values": list(_FINAL_EXIT_CODES),
          },
        },
      ]
    },
    "template": _pod(
      accelerator,
      image,
      bucket,
      service_account,
      spot,
      grace_secs,
      command,
      environment or {},
    ),
  }
  metadata: dict[str, Any] = {"name": name}
  if namespace:
    metadata["namespace"] = namespace
  # One slice per node pool: pods of two slices must not mix in one.
  metadata["annotations"] = {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": (
      "cloud.google.com/gke-nodepool"
    )
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "failurePolicy": {
        "maxRestarts": max_restarts,
        "rules": [
          {
            "name": "noRetryAfterUserError",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {
          "name": "slice",
          "replicas": num_slices,
          "template": {"spec": job},
        }
      ],
    },
  }
