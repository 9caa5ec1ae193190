# SPDX-License-Identifier: Apache-2.0
"""The memorization audit: a bundle and its token cache to a report and a gate.

Parts of the work are written first (`memorization_parts.py`); threshold,
curves and the list of matches are made of them.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import numpy as np

from musiclm_jax.cli import memorization_parts, prompt_files, stage_examples
from musiclm_jax.core import artifacts, errors
from musiclm_jax.data import token_cache
from musiclm_jax.evaluation import (
  memorization,
  memorization_page,
  optimal_transport,
  summary,
)
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import greedy_stage, stage_lm

FILE_NAME = "memorization.json"
MATCHES_NAME = "matches.jsonl"
PAGE_NAME = "index.html"
STAGE = "stage_semantic"
FORMAT_VERSION = 1
# In the JSON; all of them are in `matches.jsonl`.
_MAX_LISTED = 1000


def fit_lengths(
  prompt_tokens: str, continuation_tokens: int, crop_frames: int
) -> tuple[list[int], int, list[str]]:
  """Lengths that a stage can be asked for.

  A stage is asked for what a crop it was trained on holds, no more: prompts are
  cut to what the continuation leaves, the continuation to half of a crop that
  is shorter than it.

  Args:
    prompt_tokens: comma-separated.
    continuation_tokens: of the protocol.
    crop_frames: of the stage.

  Returns:
    Prompt lengths, ascending; length of the continuation; what was cut, in
    words.

  Raises:
    UserError: if a length is no number >= 0.
  """
  try:
    asked = sorted({int(text) for text in prompt_tokens.split(",")})
  except ValueError:
    asked = []
  if not asked or asked[0] < 0:
    raise errors.UserError(
      f"--prompt_tokens={prompt_tokens}: expected numbers >= 0 with commas"
    )
  notes, frames = [], continuation_tokens
  if frames > crop_frames:
    frames = max(1, crop_frames // 2)
    notes.append(
      f"continuations have {frames} tokens, not {continuation_tokens}: the "
      f"stage was trained on crops of {crop_frames}"
    )
  most = crop_frames - frames
  cut = [length for length in asked if length > most]
  if cut:
    notes.append(
      f"prompts of {', '.join(map(str, cut))} tokens are cut to {most}: the "
      f"stage was trained on crops of {crop_frames}, and {frames} follow"
    )
  return sorted({min(length, most) for length in asked}), frames, notes


@dataclasses.dataclass
class _Found:
  """Numbers of all examples.

  Attributes:
    exact: bool `[examples, lengths]`.
    costs: float64 `[examples, lengths]`.
    entropies: float64 `[examples, lengths]`, bits.
    too_short: ids of clips that were left out.
  """

  exact: np.ndarray
  costs: np.ndarray
  entropies: np.ndarray
  too_short: list[str]


def _collect(parts: memorization_parts.Parts) -> _Found:
  columns: dict[str, list[np.ndarray]] = {
    name: [] for name in ("exact", "costs", "entropies")
  }
  too_short: list[str] = []
  for part in parts.read():
    for name, arrays in columns.items():
      arrays.append(part[name])
    too_short += part["too_short"].tolist()
  joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
  return _Found(**joined, too_short=too_short)


def _calibrate(
  parts: memorization_parts.Parts,
  transport: optimal_transport.Transport,
  num_examples: int,
  args: argparse.Namespace,
) -> memorization.Calibration:
  """Sets the threshold on pairs of some of the examples."""
  rng = np.random.default_rng(args.seed)
  chosen = np.sort(rng.permutation(num_examples)[: args.num_control_examples])
  generated, targets, works, first = [], [], [], 0
  for part in parts.read():
    rows = chosen[(chosen >= first) & (chosen < first + len(part["codes"]))]
    rows = rows - first
    first += len(part["codes"])
    generated.append(part["generated"][rows])
    targets.append(
      memorization_parts.targets_of(
        part["codes"][rows],
        parts.settings["prompt_tokens"],
        parts.settings["continuation_tokens"],
      )
    )
    works += part["work_ids"][rows].tolist()
  return memorization.calibrate(
    transport,
    np.concatenate(generated),
    np.concatenate(targets),
    works,
    args.num_control_pairs,
    args.seed,
    args.tau,
  )


def _matches(
  parts: memorization_parts.Parts, tau: float, frame_rate_hz: float
) -> list[dict[str, Any]]:
  """Examples with a match at any prompt length, worst first.

  An exact match after less of a prompt is worse, and so is one of richer
  tokens; approximate ones come behind, the cheapest first.
  """
  lengths = parts.settings["prompt_tokens"]
  frames = parts.settings["continuation_tokens"]
  found = []
  for part in parts.read():
    near = part["exact"] | (part["costs"] < tau)
    for row in np.flatnonzero(near.any(1)):
      exact, costs = part["exact"][row], part["costs"][row]
      column = int(exact.argmax() if exact.any() else costs.argmin())
      length = lengths[column]
      found.append(
        {
          "clip_id": str(part["clip_ids"][row]),
          "work_id": str(part["work_ids"][row]),
          "start_secs": round(float(part["starts"][row]) / frame_rate_hz, 3),
          "prompt_tokens": length,
          "exact": bool(exact[column]),
          "cost": float(costs[column]),
          "entropy_bits": float(part["entropies"][row, column]),
          "exact_at": [lengths[k] for k in np.flatnonzero(exact)],
          "approximate_at": [lengths[k] for k in np.flatnonzero(near[row])],
          "target": part["codes"][row, length : length + frames].tolist(),
          "generated": part["generated"][row, column].tolist(),
        }
      )

  def badness(one):
    if one["exact"]:
      return (0, one["prompt_tokens"], -one["entropy_bits"], one["clip_id"])
    return (1, one["cost"], -one["entropy_bits"], one["clip_id"])

  return sorted(found, key=badness)


def _print(report: dict[str, Any]) -> None:
  """The curve, for a terminal."""
  print("prompt  examples  exact                     approximate")
  for row in report["curve"]:
    cells = [
      f"{row[name]['mean']:7.3%} [{row[name]['low']:.3%}, "
      f"{row[name]['high']:.3%}]"
      for name in ("exact", "approximate")
    ]
    print(
      f"{row['prompt_tokens']:6d}  {row['num_examples']:8d}  {cells[0]:24s}  "
      f"{cells[1]}"
    )
  one = report["calibration"]
  print(
    f"tau {one['tau']:.4g} ({one['source']}), "
    f"{report['protocol']['tau_in_mean_distances']:.3f} mean centroid "
    f"distances; false matches of permuted pairs: {one['num_false']} of "
    f"{one['num_pairs']} that set it, {one['num_check_false']} of "
    f"{one['num_check_pairs']} others"
  )
  for note in (*report["protocol"]["notes"], *one["warnings"]):
    print(f"note: {note}")


def run(args: argparse.Namespace) -> int:
  """Runs an audit, or goes on with it.

  Returns:
    The exit code.

  Raises:
    UserError: if parts do not belong together, nothing can be measured, or a
      limit is exceeded; the report is written then all the same.
  """
  bundle = bundle_lib.open_bundle(args.bundle)
  reader = token_cache.TokenCacheReader(args.cache_dir)
  stage = stage_lm.StageLM.load(bundle.paths[STAGE])
  if not stage.spec.is_timed:
    raise errors.UserError(
      f"{STAGE} of {args.bundle} works without repeated codes: expected one "
      "that keeps them, for prompts and continuations are compared in time"
    )
  streams = (*stage.spec.conditioning_streams, stage.target_stream.name)
  stage_examples.check_cache(bundle, streams, reader.config, args.cache_dir)
  semantic = artifacts.load(bundle.paths["semantic"], "semantic")
  config = optimal_transport.SinkhornConfig(args.regularization)
  transport = optimal_transport.Transport(
    semantic.arrays["quantizer"]["centroids"], config
  )
  lengths, frames, notes = fit_lengths(
    args.prompt_tokens, args.continuation_tokens, stage.window_frames
  )
  examples = stage_examples.StageExamples(
    reader,
    args.split,
    stage,
    args.num_examples,
    args.seed,
    lengths[-1] + frames,
  )
  settings = {
    "stage": bundle.fingerprints[STAGE],
    "tokenizers": {
      name: reader.config.fingerprints[name] for name in sorted(set(streams))
    },
    "inputs": reader.config.inputs,
    "split": args.split,
    "num_clips": examples.num_clips,
    "num_examples": len(examples),
    "seed": args.seed,
    "prompt_tokens": lengths,
    "continuation_tokens": frames,
    "part_size": args.part_size,
    "sinkhorn": dataclasses.asdict(config),
  }
  folder = pathlib.Path(args.output_dir)
  parts = memorization_parts.Parts(folder, settings, len(examples))
  parts.fill(examples, greedy_stage.GreedyStage(stage), transport)
  found = _collect(parts)
  if not len(found.exact):
    raise errors.UserError(
      f"no clip of split {args.split!r} has the {lengths[-1] + frames} tokens "
      "of the longest prompt and what follows: expected fewer --prompt_tokens"
    )
  calibration = _calibrate(parts, transport, len(found.exact), args)
  rate_hz = stage.target_stream.frame_rate_hz
  matches = _matches(parts, calibration.tau, rate_hz)
  curve = memorization.curve(
    lengths, found.exact, found.costs, found.entropies, calibration.tau
  )
  if found.too_short:
    notes.append(
      f"{len(found.too_short)} clips are shorter than "
      f"{lengths[-1] + frames} tokens and left out"
    )
  exceeded = memorization.check_gate(
    curve, args.max_exact, args.max_approximate
  )
  report = {
    "format_version": FORMAT_VERSION,
    "protocol": {
      **settings,
      "frame_rate_hz": rate_hz,
      "told": list(stage.spec.conditioning_streams),
      "mean_centroid_distance": transport.mean_distance,
      "tau_in_mean_distances": calibration.tau / transport.mean_distance,
      "notes": notes,
    },
    "calibration": dataclasses.asdict(calibration),
    "curve": curve,
    "num_matching_examples": len(matches),
    "matches": [_short(one) for one in matches[:_MAX_LISTED]],
    "gate": {
      "max_exact": args.max_exact,
      "max_approximate": args.max_approximate,
      "exceeded": exceeded,
    },
    "fingerprints": bundle.fingerprints,
    "versions": summary.versions(),
  }
  summary.write_summary(folder / FILE_NAME, report)
  prompt_files.write(folder / MATCHES_NAME, matches)
  page = memorization_page.write(
    folder / PAGE_NAME, report, matches[: args.num_shown], found.costs
  )
  _print(report)
  print(page)
  if exceeded:
    raise errors.UserError("; ".join(exceeded))
  return 0


def _short(match: dict[str, Any]) -> dict[str, Any]:
  """A match without its tokens."""
  return {k: v for k, v in match.items() if k not in ("target", "generated")}
