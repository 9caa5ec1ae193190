# SPDX-License-Identifier: Apache-2.0
"""The doctor of audio files: which are usable, and what ails the others.

A folder of files flows in; one finding per file and a report (JSON and a page
of text) flow out. Nothing is changed or deleted.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files, fingerprint
from musiclm_jax.core import errors
from musiclm_jax.data import folders

OK, UNREADABLE, SILENT = "ok", "unreadable", "silent"
CLIPPED, TOO_SHORT, DUPLICATE = "clipped", "too_short", "duplicate"
UNUSUAL, NEAR_DUPLICATE = "unusual", "near_duplicate"
# Of no use at all; past a fraction of them the job fails.
BAD = (UNREADABLE, SILENT, TOO_SHORT)
# A copy is left out as well, but does not mean that something is wrong.
SKIPPED = (*BAD, DUPLICATE, NEAR_DUPLICATE)
_EXPLANATION = {
  OK: "usable",
  CLIPPED: "kept, but many samples are at full scale",
  UNUSUAL: "kept, but of a kind that is rarely meant",
  UNREADABLE: "skipped: not audio, truncated, empty or not finite",
  SILENT: "skipped: nothing is heard",
  TOO_SHORT: "skipped: shorter than the minimum",
  DUPLICATE: "skipped: same samples as a file before it",
  NEAR_DUPLICATE: "skipped: same recording as another, encoded or cut anew",
}
_MAX_LISTED = 15
_FULL_SCALE = 0.999
# Outside of these, or with samples of 8 bits, a file is named but kept.
_MAX_CHANNELS, _MIN_RATE_HZ, _MAX_RATE_HZ = 2, 16_000, 96_000


@dataclasses.dataclass(frozen=True)
class Limits:
  """What counts as healthy.

  Attributes:
    min_secs: shorter files are skipped.
    silent_db: files whose root mean square is below are skipped, in dB below
      full scale.
    max_clipped_fraction: share of samples at full scale from which a file is
      reported as clipped.
    max_bad_fraction: share of bad files past which the job fails.
  """

  min_secs: float = 1.0
  silent_db: float = -60.0
  max_clipped_fraction: float = 0.01
  max_bad_fraction: float = 0.1

  def __post_init__(self):
    if not self.min_secs > 0:
      raise ValueError(f"min_secs={self.min_secs}: expected > 0")
    if not self.silent_db < 0:
      raise ValueError(f"silent_db={self.silent_db}: expected < 0")
    for field in ("max_clipped_fraction", "max_bad_fraction"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(f"{field}={getattr(self, field)}: expected in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Finding:
  """What the doctor says of one file.

  Attributes:
    file: path relative to the folder, with forward slashes.
    status: `OK`, `CLIPPED`, `UNUSUAL` or one of `SKIPPED`.
    detail: why, for a reader.
    secs: length, 0 if unknown.
    sample_rate_hz: as stored, 0 if unknown.
    num_channels: as stored, 0 if unknown.
    content_hash: of the decoded samples, '' if unreadable; the same for a WAV
      and its FLAC copy.
    duplicate_of: the file that is kept in place of this one, or ''.
  """

  file: str
  status: str
  detail: str = ""
  secs: float = 0.0
  sample_rate_hz: int = 0
  num_channels: int = 0
  content_hash: str = ""
  duplicate_of: str = ""


def list_audio(folder: str | os.PathLike) -> list[str]:
  """Audio files of a tree by ending, relative, sorted.

  A folder or a broken link that is named like a file is listed as well, for
  the doctor to report.

  Raises:
    UserError: if there is no such folder, or no audio file in it.
  """
  root = folders.to_path(folder)
  if not root.is_dir():
    raise errors.UserError(f"no folder at {root}: expected a tree of audio")
  found = folders.list_audio(folder)
  if not found:
    raise errors.UserError(
      f"{root} holds no audio: expected files ending in "
      f"{', '.join(files.ENDINGS)}"
    )
  return found


def examine(job: tuple[str, str, Limits]) -> Finding:
  """Examines one file.

  Args:
    job: (folder, file in it, limits); one argument, so that a worker pool can
      take it.

  Returns:
    A finding; duplicates are found later, by `mark_duplicates`.
  """
  return _examine(*job)[0]


def examine_and_print(
  job: tuple[str, str, Limits],
) -> tuple[Finding, fingerprint.Fingerprint | None]:
  """As `examine`, and the fingerprint of a file that is not bad."""
  finding, waveform = _examine(*job)
  if waveform is None or finding.status in BAD:
    return finding, None
  return finding, fingerprint.make_fingerprint(waveform, finding.sample_rate_hz)


def _examine(
  folder: str, file: str, limits: Limits
) -> tuple[Finding, np.ndarray | None]:
  """A finding, and float32 `[samples, channels]` if the file can be read."""
  try:
    waveform, rate = folders.read_audio(folder, file, mono=False)
  except errors.UserError as error:
    return Finding(file, UNREADABLE, str(error)), None
  # 16 bit samples come out as they are stored, whatever the container.
  pcm = np.clip(np.round(waveform * 32768.0), -32768, 32767).astype("<i2")
  digest = hashlib.sha256(f"{rate}/{pcm.shape[1]}/".encode() + pcm.tobytes())
  secs = len(waveform) / rate
  status, detail = judge(waveform, rate, limits)
  path = folders.to_path(folder) / file
  is_local = isinstance(path, pathlib.Path)  # no second reading of a bucket
  odd = oddities(path if is_local else None, rate, waveform.shape[1])
  if odd and status in (OK, CLIPPED):
    status = UNUSUAL if status == OK else status
    detail = "; ".join(filter(None, [detail, *odd]))
  finding = Finding(
    file=file,
    status=status,
    detail=detail,
    secs=round(secs, 3),
    sample_rate_hz=rate,
    num_channels=waveform.shape[1],
    content_hash=digest.hexdigest()[:32],
  )
  return finding, waveform


def judge(
  waveform: np.ndarray, sample_rate_hz: int, limits: Limits
) -> tuple[str, str]:
  """What samples are good for.

  Args:
    waveform: float32 `[samples, channels]`, not empty, finite.
    sample_rate_hz: its rate.
    limits: to judge by.

  Returns:
    `OK`, `CLIPPED`, `TOO_SHORT` or `SILENT`, and the detail for a reader.
  """
  secs = len(waveform) / sample_rate_hz
  rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
  clipped = float(np.mean(np.abs(waveform) >= _FULL_SCALE))
  if secs < limits.min_secs:
    return TOO_SHORT, f"{secs:.2f} s: expected at least {limits.min_secs:g} s"
  if rms < 10 ** (limits.silent_db / 20):
    level = f"{20 * np.log10(rms):.0f} dB" if rms > 0 else "no signal"
    return SILENT, f"{level}: expected at least {limits.silent_db:g} dB"
  if clipped > limits.max_clipped_fraction:
    return CLIPPED, f"{100 * clipped:.1f} % at full scale"
  return OK, ""


def oddities(
  audio: bytes | os.PathLike | None, sample_rate_hz: int, num_channels: int
) -> list[str]:
  """What is rarely meant, and is made usable all the same.

  Args:
    audio: bytes or path of the file; None leaves out what only they tell.
    sample_rate_hz: as stored.
    num_channels: as stored.
  """
  found = []
  if num_channels > _MAX_CHANNELS:
    found.append(f"{num_channels} channels, averaged to one")
  if not _MIN_RATE_HZ <= sample_rate_hz <= _MAX_RATE_HZ:
    found.append(f"{sample_rate_hz} Hz")
  if audio is not None and files.has_eight_bits(audio):
    found.append("samples of 8 bits")
  return found


def mark_duplicates(findings: Iterable[Finding]) -> list[Finding]:
  """Findings by file name, all but the first of equal content as duplicates."""
  first: dict[str, str] = {}
  marked = []
  for finding in sorted(findings, key=lambda finding: finding.file):
    if finding.status not in BAD:
      original = first.setdefault(finding.content_hash, finding.file)
      if original != finding.file:
        finding = dataclasses.replace(
          finding,
          status=DUPLICATE,
          detail=f"same as {original}",
          duplicate_of=original,
        )
    marked.append(finding)
  return marked


def make_report(
  folder: str | os.PathLike,
  findings: Sequence[Finding],
  limits: Limits,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """All findings and their sums, JSON-compatible.

  Args:
    folder: what was examined.
    findings: of all files.
    limits: they were judged by.
    notes: more lines for the reader (captions without a file).
  """
  counts = collections.Counter(finding.status for finding in findings)
  num_bad = sum(counts[status] for status in BAD)
  kept = [item for item in findings if item.status not in SKIPPED]
  return {
    "folder": str(folder),
    "num_files": len(findings),
    "num_kept": len(kept),
    "num_bad": num_bad,
    "bad_fraction": num_bad / max(len(findings), 1),
    "counts": {status: counts[status] for status in _EXPLANATION},
    "kept_secs": round(sum(item.secs for item in kept), 3),
    "limits": dataclasses.asdict(limits),
    "notes": list(notes),
    "files": [dataclasses.asdict(finding) for finding in findings],
  }


def report_text(report: dict[str, Any]) -> str:
  """The report as a page of text."""
  lines = [
    f"Audio in {report['folder']}",
    "",
    f"{report['num_files']} files, {report['num_kept']} kept "
    f"({report['kept_secs'] / 60:.1f} min), {report['num_bad']} bad "
    f"({100 * report['bad_fraction']:.1f} %; the job fails past "
    f"{100 * report['limits']['max_bad_fraction']:g} %)",
    "",
  ]
  lines += [
    f"{count:6d}  {status:<14} {_EXPLANATION[status]}"
    for status, count in report["counts"].items()
  ]
  lines += ["", *report["notes"]] if report["notes"] else []
  for status, count in report["counts"].items():
    if status == OK or not count:
      continue
    lines += ["", f"{status} ({count}):"]
    named = [item for item in report["files"] if item["status"] == status]
    lines += [
      f"  {item['file']}: {item['detail']}" for item in named[:_MAX_LISTED]
    ]
    if count > _MAX_LISTED:
      lines.append(f"  and {count - _MAX_LISTED} more, see the JSON report")
  return "\n".join(lines) + "\n"


def write_report(
  directory: str | os.PathLike, report: dict[str, Any]
) -> os.PathLike:
  """Writes `doctor.json` and `doctor.txt`; returns the path of the text."""
  root = folders.to_path(directory)
  root.mkdir(parents=True, exist_ok=True)
  (root / "doctor.json").write_text(json.dumps(report, indent=2) + "\n")
  path = root / "doctor.txt"
  path.write_text(report_text(report))
  return path


def check(report: dict[str, Any], report_path: str | os.PathLike) -> None:
  """Fails the job if too much is bad.

  Raises:
    UserError: if bad files exceed the set fraction, or no file is usable; the
      message names the report and the first bad file.
  """
  bad = next((f for f in report["files"] if f["status"] in BAD), None)
  limit = report["limits"]["max_bad_fraction"]
  is_too_bad = report["bad_fraction"] > limit
  if not is_too_bad and report["num_kept"]:
    return
  example = f"; the first: {bad['file']} ({bad['detail']})" if bad else ""
  raise errors.UserError(
    f"{report['num_bad']} of {report['num_files']} files in "
    f"{report['folder']} are bad: expected at most {100 * limit:g} %"
    f"{example}; all are listed in {report_path}"
  )
