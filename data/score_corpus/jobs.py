# SPDX-License-Identifier: Apache-2.0
"""What the worker processes do: parse a score, make a clip.

Kept apart from the builder, so that workers do not import TensorFlow.
"""

from typing import Any

from . import arrange, captions, plans, render, works


def parse(work: works.Work) -> works.Piece | str:
  """The piece, or why its score is unusable."""
  try:
    return works.read_piece(work)
  except works.UnusableScore as error:
    return str(error)


def make_clip(job: tuple[works.Piece, plans.Plan]) -> dict[str, Any]:
  """One example, as the builder's features want it."""
  piece, plan = job
  tracks, facts = arrange.arrange(piece, plan)
  waveform = render.finish(
    render.synthesize(tracks, plan.secs), plan.secs, plan.loudness
  )
  return {
    "id": plan.clip_id,
    "audio": render.to_flac(waveform),
    "sample_rate_hz": render.SAMPLE_RATE_HZ,
    "num_samples": len(waveform),
    "work_id": plan.work_id,
    "arrangement": plan.arrangement,
    "captions": captions.captions(facts, plan.seed),
    "aspects": captions.aspects(facts),
  }
