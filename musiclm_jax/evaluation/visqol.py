# SPDX-License-Identifier: Apache-2.0
"""ViSQOL by its own program: pairs of waveforms in, MOS-LQO out.

The program (github.com/google/visqol) is C++ built by Bazel and no Python
package of ours brings it: it is used where the user has it.
"""

import csv
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors

PROGRAM = "visqol"
# Audio mode, the one for music, takes this rate only.
SAMPLE_RATE_HZ = 48000
_MODEL = "libsvm_nu_svr_model.txt"
_TIMEOUT_SECS = 3600


def find(program: str | None = None) -> str | None:
  """Path of the program: the named one, or what PATH has, or None.

  Raises:
    UserError: if a program is named that cannot be run.
  """
  found = shutil.which(program or PROGRAM)
  if program and found is None:
    raise errors.UserError(
      f"visqol={program}: no program there that can be run; build it from "
      "github.com/google/visqol"
    )
  return found


def missing() -> str:
  """What to say where there is no program."""
  return (
    f"ViSQOL was left out: no program {PROGRAM!r} on PATH and none named with "
    "--visqol (build it from github.com/google/visqol)"
  )


def _model_of(program: str, model: str | None) -> str | None:
  """The named model, or the one in the source tree around the program."""
  if model is not None:
    if not pathlib.Path(model).is_file():
      raise errors.UserError(f"visqol_model={model}: no such file")
    return model
  for folder in pathlib.Path(program).resolve().parents[:3]:
    for place in (folder / "model" / _MODEL, folder / _MODEL):
      if place.is_file():
        return str(place)
  return None


def _read(path: pathlib.Path, count: int) -> np.ndarray:
  with path.open(newline="") as file:
    rows = list(csv.DictReader(file))
  if len(rows) != count or "moslqo" not in (rows[0] if rows else {}):
    raise errors.UserError(
      f"visqol wrote {len(rows)} results: expected {count} with a column "
      "'moslqo'"
    )
  return np.array([float(row["moslqo"]) for row in rows])


def mos_lqo(
  references: Sequence[np.ndarray],
  estimates: Sequence[np.ndarray],
  sample_rate_hz: int,
  program: str | None = None,
  model: str | None = None,
) -> np.ndarray:
  """Scores pairs in audio mode, in one run of the program.

  Args:
    references: float32 `[samples]` each, in [-1, 1].
    estimates: the same.
    sample_rate_hz: of all of them; they are resampled to 48 kHz.
    program: path of ViSQOL; by default the one on PATH.
    model: its SVR model; by default the one in the program's source tree.

  Returns:
    float64 `[pairs]`, 1 (bad) to about 4.75.

  Raises:
    UserError: if there is no program, or it fails.
  """
  found = find(program)
  if found is None:
    raise errors.UserError(missing())
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    pairs = folder / "pairs.csv"
    lines = ["reference,degraded"]
    for index, sounds in enumerate(zip(references, estimates, strict=True)):
      names = []
      for kind, sound in zip(("reference", "degraded"), sounds):
        path = folder / f"{index:05d}_{kind}.wav"
        sound = files.resample(sound, sample_rate_hz, SAMPLE_RATE_HZ)
        files.write_wav(path, sound, SAMPLE_RATE_HZ)
        names.append(str(path))
      lines.append(",".join(names))
    pairs.write_text("\n".join(lines) + "\n")
    command = [
      found,
      f"--batch_input_csv={pairs}",
      f"--results_csv={folder / 'results.csv'}",
    ]
    svr = _model_of(found, model)
    if svr is not None:
      command.append(f"--similarity_to_quality_model={svr}")
    _run(command)
    return _read(folder / "results.csv", len(lines) - 1)


def _run(command: list[str]) -> None:
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT_SECS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise errors.UserError(f"visqol could not be run: {error}") from error
  results = pathlib.Path(command[2].split("=", 1)[1])
  if done.returncode or not results.is_file():
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    raise errors.UserError(
      f"visqol failed with exit code {done.returncode}: "
      f"{said[-1] if said else 'it said nothing'}"
    )
