# SPDX-License-Identifier: Apache-2.0
"""The run's `summary.json`: parts in, one file and its verdicts out.

Everything the report page shows as a number is in the summary, so that a
script can read what a person sees.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from musiclm_jax.core import atomic_files, errors

FILE_NAME = "summary.json"
FORMAT_VERSION = 1
STAGES = ("semantic", "coarse", "fine")
DIRECTIONS = ("text_to_audio", "audio_to_text")
# R@10 must be this many times its chance level.
RETRIEVAL_FACTOR = 5.0
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Criterion(NamedTuple):
  """A verdict: short name, whether it holds, and the numbers in words."""

  name: str
  passed: bool
  text: str


def peak_memory_bytes() -> int:
  """Largest resident memory of this process or of an ended child so far."""
  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * max(
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that decide the numbers."""
  found = {"python": platform.python_version(), "system": platform.platform()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def build_summary(
  *,
  steps: Sequence[Mapping[str, Any]],
  codec: Mapping[str, Any],
  mulan: Mapping[str, Any],
  stages: Mapping[str, Mapping[str, Any]],
  mcc: Mapping[str, Any],
  samples: Sequence[Mapping[str, Any]],
  fingerprints: Mapping[str, str],
  peak_memory: int | None = None,
  extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Puts the parts of an evaluation together, with the verdicts on them.

  Args:
    steps: `{'name', 'seconds'}` of each step of the run, in order.
    codec: of `codec_metrics.codec_table`.
    mulan: of `retrieval.retrieval`.
    stages: of `stage_scores.stage_scores`, by stage name.
    mcc: of `mulan_consistency.mulan_consistency`.
    samples: `{'file', 'prompt', 'seconds', 'seed'}` of each generated file,
      `file` relative to the run's folder.
    fingerprints: of the frozen artefacts, by name.
    peak_memory: bytes; measured here by default.
    extra: more top-level entries (experiment, corpus, seed).

  Returns:
    The JSON-compatible summary.
  """
  summary = {
    "format_version": FORMAT_VERSION,
    **dict(extra or {}),
    "steps": [dict(step) for step in steps],
    "peak_memory_bytes": (
      peak_memory_bytes() if peak_memory is None else int(peak_memory)
    ),
    "codec": dict(codec),
    "mulan": dict(mulan),
    "stages": {name: dict(scores) for name, scores in stages.items()},
    "mcc": dict(mcc),
    "samples": [dict(sample) for sample in samples],
    "fingerprints": dict(fingerprints),
    "versions": versions(),
  }
  summary["criteria"] = [
    criterion._asdict() for criterion in check_criteria(summary)
  ]
  return _plain(summary)


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
  """Writes the summary, whole or not at all.

  Args:
    path: the file; its folder is made if needed.
    summary: JSON-compatible; NaN and Inf become null.
  """
  text = json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
  atomic_files.write_text(path, text)


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a summary, from the file or the folder that holds it.

  Raises:
    UserError: if it is missing or damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE_NAME
  if not path.is_file():
    raise errors.UserError(f"no summary at {path}: evaluate the run first")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise errors.UserError(f"damaged summary at {path}: {error}") from error


def check_criteria(summary: Mapping[str, Any]) -> list[Criterion]:
  """Whether the run works, as far as numbers tell.

  - The codec's log-mel distance falls with every row of its table.
  - Each stage's held-out cross-entropy is below the bigram's.
  - R@10 is at least 5 times chance, both ways.
  - Matched MCC is above shuffled, the paired interval clear of zero.

  Args:
    summary: of `build_summary`; a missing number fails its criterion.
  """
  stages = summary.get("stages", {})
  return [
    _codec_criterion(summary.get("codec", {})),
    *(
      _stage_criterion(name, stages.get(name, {}))
      for name in dict.fromkeys((*STAGES, *stages))
    ),
    *(
      _retrieval_criterion(name, summary.get("mulan", {}).get(name, {}))
      for name in DIRECTIONS
    ),
    _mcc_criterion(summary.get("mcc", {})),
  ]


def _number(values: Mapping[str, Any], name: str) -> float:
  value = values.get(name)
  return float("nan") if value is None else float(value)


def _words(value: float) -> str:
  return "not measured" if math.isnan(value) else f"{value:.3f}"


def _codec_criterion(codec: Mapping[str, Any]) -> Criterion:
  table = codec.get("log_mel_distance", {})
  row = [(int(count), _number(table, count)) for count in table]
  row.sort()
  falls = [later[1] < sooner[1] for sooner, later in zip(row, row[1:])]
  text = ", ".join(f"{count}: {_words(value)}" for count, value in row)
  return Criterion(
    "Codec distance falls with every added group of codebooks",
    bool(falls) and all(falls),
    f"log-mel distance by codebooks: {text or 'not measured'}",
  )


def _stage_criterion(name: str, scores: Mapping[str, Any]) -> Criterion:
  stage, bigram, unigram = (
    _number(scores, f"{model}_cross_entropy")
    for model in ("heldout", "bigram", "unigram")
  )
  return Criterion(
    f"{name.capitalize()} stage beats the bigram on held-out audio",
    stage < bigram,
    f"nats per token: stage {_words(stage)}, bigram {_words(bigram)}, "
    f"unigram {_words(unigram)}",
  )


def _retrieval_criterion(name: str, scores: Mapping[str, Any]) -> Criterion:
  recall = _number(scores, "recall_at_10")
  chance = _number(scores, "chance_at_10")
  text = f"R@10 {_words(recall)}, chance {_words(chance)}"
  if chance > 0 and not math.isnan(recall):
    text += (
      f": {recall / chance:.1f} times chance among "
      f"{scores.get('num_items')} items"
    )
  if chance * RETRIEVAL_FACTOR > 1:
    text += f"; out of reach, as {RETRIEVAL_FACTOR:g} times chance exceeds 1"
  return Criterion(
    f"{name.replace('_', '-').capitalize()} R@10 is at least "
    f"{RETRIEVAL_FACTOR:g} times chance",
    recall >= RETRIEVAL_FACTOR * chance,
    text,
  )


def _mcc_criterion(mcc: Mapping[str, Any]) -> Criterion:
  matched, shuffled = (
    _number(mcc.get(name, {}), "mean") for name in ("matched", "shuffled")
  )
  difference = mcc.get("difference", {})
  mean, low, high = (
    _number(difference, field) for field in ("mean", "low", "high")
  )
  return Criterion(
    "Generated music fits its own prompt better than another",
    low > 0,
    f"MCC matched {_words(matched)}, shuffled {_words(shuffled)}, difference "
    f"{_words(mean)}"
    + ("" if math.isnan(low + high) else f" [{low:.3f}, {high:.3f}]"),
  )


def _plain(value: Any) -> Any:
  """JSON values only: numpy numbers become Python's, NaN and Inf null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
