# SPDX-License-Identifier: Apache-2.0
"""The report job: the folders of a run to `summary.json` and the page."""

import json
import os
import pathlib
from typing import Any

from musiclm_jax.audio import files
from musiclm_jax.cli import steps as steps_lib
from musiclm_jax.core import errors
from musiclm_jax.evaluation import curves, report, summary
from musiclm_jax.systems import provenance

RUNS = "models"
SAMPLES = "samples"
EVALUATION = "evaluation"
_ORDER = ("soundstream", "w2v_bert", "mulan", "semantic", "coarse", "fine")


def read_samples(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """`{'file', 'prompt', 'seconds', 'seed'}` of every sample."""
  return [
    {
      "file": path.relative_to(workdir).as_posix(),
      "prompt": record["prompt"],
      "seconds": record["seconds"],
      "seed": record["seed"],
    }
    for path, record in provenance.sidecars(workdir / SAMPLES)
  ]


def _reconstructions(folder: pathlib.Path) -> list[report.Reconstruction]:
  found = []
  names = folder / "names.json"
  if not names.is_file():
    return found
  for row, name in enumerate(json.loads(names.read_text())):
    original, rate_hz = files.read_audio(folder / f"{row}_original.wav")
    decoded = {}
    for path in folder.glob(f"{row}_[0-9]*.wav"):
      decoded[int(path.stem.split("_")[1])] = files.read_audio(path)[0]
    found.append(
      report.Reconstruction(
        name, original, dict(sorted(decoded.items())), rate_hz
      )
    )
  return found


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `summary.json` and `report/index.html` below `workdir`.

  Raises:
    UserError: if the run has not been evaluated.
  """
  root = pathlib.Path(workdir)
  path = root / EVALUATION / "evaluation.json"
  if not path.is_file():
    raise errors.UserError(f"no evaluation at {path}: run `musiclm evaluate`")
  evaluation = json.loads(path.read_text())
  samples = read_samples(root)
  made = summary.build_summary(
    steps=steps_lib.finished(root),
    codec=evaluation["codec"],
    mulan=evaluation["mulan"],
    stages=evaluation["stages"],
    mcc=evaluation["mcc"],
    samples=samples,
    fingerprints=evaluation["fingerprints"],
    peak_memory=steps_lib.peak_memory_bytes(root),
  )
  summary.write_summary(root / summary.FILE_NAME, made)
  runs = {
    name: root / RUNS / name
    for name in _ORDER
    if (root / RUNS / name / "metrics.jsonl").is_file()
  }
  return report.write_report(
    root / "report",
    made,
    samples,
    curves.loss_curves(runs),
    _reconstructions(root / EVALUATION / "reconstructions"),
    run_directory=root,
  )
