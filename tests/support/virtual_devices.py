# SPDX-License-Identifier: Apache-2.0
"""Scripts in a process of their own, which sees several devices of the CPU."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_SUPPORT = pathlib.Path(__file__).resolve().parent
_ROOT = _SUPPORT.parents[1]


def run(
  script: str | os.PathLike, *args: Any, num_devices: int = 8, flags: str = ""
) -> Any:
  """What a script prints last, as JSON.

  Args:
    script: a file.
    *args: what it is called with.
    num_devices: that it sees.
    flags: of XLA, in place of those of this process.

  Returns:
    The parsed last line.
  """
  devices = f"--xla_force_host_platform_device_count={num_devices}"
  child = subprocess.run(
    [sys.executable, script, *map(str, args)],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, _SUPPORT))),
      "XLA_FLAGS": f"{devices} {flags}",
    },
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    timeout=1800,
  )
  return json.loads(child.stdout.splitlines()[-1])
