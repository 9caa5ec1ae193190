# SPDX-License-Identifier: Apache-2.0
"""What a process says and checks before it trains.

Versions and fingerprints flow in from the installation and the experiment; a
first log line comes out, and an error where processes differ.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Mapping

import jax
from absl import logging

from musiclm_jax import __version__
from musiclm_jax.core import errors
from musiclm_jax.training import agreement, distributed

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "libtpu")


@functools.cache
def code_fingerprint() -> str:
  """Hex hash over the source files of this package."""
  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
  """Versions of Python, this package and what it computes with."""
  found = {
    "musiclm_jax": __version__,
    "python": ".".join(map(str, sys.version_info[:3])),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def facts(
  config_fingerprint: str, artifacts: Mapping[str, str]
) -> dict[str, str]:
  """What all processes of a job must have in common."""
  return {
    "code fingerprint": code_fingerprint(),
    "config fingerprint": config_fingerprint,
    **{f"artefact {name}": mark for name, mark in sorted(artifacts.items())},
    **{f"version of {name}": text for name, text in versions().items()},
    "backend": jax.default_backend(),
    "local devices": str(jax.local_device_count()),
  }


def announce(
  mesh: jax.sharding.Mesh, config_fingerprint: str, artifacts: Mapping[str, str]
) -> None:
  """Logs who this is, then makes sure that all processes agree.

  Raises:
    UserError: if another process differs; every process raises it.
  """
  kinds = sorted({device.device_kind for device in jax.devices()})
  logging.info(
    "process %d of %d: %d of %d devices (%s), mesh %s, config %s, code %s, %s",
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
    ", ".join(kinds),
    dict(mesh.shape),
    config_fingerprint,
    code_fingerprint(),
    ", ".join(f"{name} {text}" for name, text in versions().items()),
  )
  try:
    hosts = agreement.check_agreement(facts(config_fingerprint, artifacts))
  except errors.UserError:
    distributed.refuse_together()
    raise
  if len(hosts) > 1 and distributed.is_main():
    logging.info(
      "%d processes agree: %s",
      len(hosts),
      ", ".join(f"{index} on {host}" for index, host in enumerate(hosts)),
    )
