# SPDX-License-Identifier: Apache-2.0
"""The seams job: long items of a bundle to figures at seams, and memory."""

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import prompt_files
from musiclm_jax.core import errors, progress
from musiclm_jax.evaluation import (
  mulan_consistency,
  report_figures,
  seams,
  summary,
)
from musiclm_jax.systems import cascade, musiclm, streaming

FILE_NAME = "seams.json"
PLOT_NAME = "memory.svg"
_MEGABYTE = 2**20


def _resident_bytes() -> int:
  """What the process holds in memory now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def _stream(
  system: musiclm.MusicLM, request: cascade.Request, bar: progress.Progress
) -> tuple[np.ndarray, list[tuple[float, int]], float]:
  """One item.

  Returns:
    float32 `[samples]`; after each piece (seconds of audio so far, bytes of
    the process); and seconds until the first piece.
  """
  rate_hz = system.codec.sample_rate_hz
  # Touched before anything is made, so that it is not counted as growth.
  whole = np.full(round(request.seconds * rate_hz), np.nan, np.float32)
  memory, done, first_secs = [], 0, 0.0
  started = time.perf_counter()
  for piece in streaming.Stream(system, request):
    part = piece.waveform[0]
    part = part if part.ndim == 1 else part.mean(-1)
    whole[done : done + len(part)] = part
    done += len(part)
    first_secs = first_secs or time.perf_counter() - started
    memory.append((done / rate_hz, _resident_bytes()))
  bar.update(1)
  return whole, memory, first_secs


def _scorer(
  system: musiclm.MusicLM, text: str
) -> Callable[[np.ndarray], np.ndarray]:
  """MuLan cosine of pieces of audio with a text."""
  wanted = system.mulan.embed_text([text])
  rate_hz = system.codec.sample_rate_hz

  def score(waveforms: np.ndarray) -> np.ndarray:
    audio = system.mulan.embed_audio(waveforms, rate_hz)
    return mulan_consistency.cosines(np.repeat(wanted, len(audio), 0), audio)

  return score


def growth_bytes(memory: Sequence[tuple[float, int]]) -> int:
  """Memory at the end beyond the most of the first third.

  In the first third all programs are compiled and all buffers there.
  """
  ends = memory[-1][0] / 3
  first = [held for secs, held in memory if secs <= ends] or [memory[0][1]]
  return memory[-1][1] - max(first)


def _texts(args: argparse.Namespace) -> list[str]:
  texts = list(args.prompt)
  if args.prompts:
    texts += prompt_files.read(args.prompts)
  if not texts:
    raise errors.UserError("no prompt given: pass --prompt or --prompts")
  return texts


def run(args: argparse.Namespace) -> None:
  """Makes the items, writes them, `seams.json` and `memory.svg`.

  Raises:
    UserError: for bad inputs, or items so short that nothing joins.
  """
  texts = _texts(args)
  system = musiclm.MusicLM.load(args.bundle).with_acoustic(args.acoustic)
  folder = pathlib.Path(args.output_dir)
  folder.mkdir(parents=True, exist_ok=True)
  requests = [
    system.request(text, args.seconds, args.seed + index)
    for index, text in enumerate(texts)
  ]
  places: dict[str, list[tuple[float, ...]]] = {}
  for request in requests:
    for name, times in cascade.seam_secs(system, request):
      places.setdefault(name, []).append(times)
  if not any(any(rows) for rows in places.values()):
    raise errors.UserError(
      f"--seconds={args.seconds:g}: nothing joins in items so short"
    )
  bar = progress.Progress("seams", len(texts), unit="item")
  rate_hz = system.codec.sample_rate_hz
  started = time.perf_counter()
  waveforms, memories, firsts = [], [], []
  for index, request in enumerate(requests):
    waveform, memory, first_secs = _stream(system, request, bar)
    files.write_wav(folder / f"{index:03d}.wav", waveform, rate_hz)
    waveforms.append(waveform)
    memories.append(memory)
    firsts.append(first_secs)
  secs = time.perf_counter() - started
  scores = [_scorer(system, text) for text in texts]
  found: dict[str, Any] = {
    "prompts": texts,
    "seconds": args.seconds,
    "seed": args.seed,
    "acoustic": args.acoustic,
    "fingerprints": system.fingerprints,
    "first_audio_secs": firsts,
    "real_time_factor": args.seconds * len(texts) / secs,
    "memory": memories,
    "growth_bytes": [growth_bytes(memory) for memory in memories],
    "seams": {},
  }
  for name, rows in places.items():
    if any(rows):
      figures = seams.compare(waveforms, rate_hz, rows, scores)
      found["seams"][name] = {
        "num_seams": sum(map(len, rows)),
        **{key: figure.to_dict() for key, figure in figures.items()},
      }
  summary.write_summary(folder / FILE_NAME, found)
  curves = {
    f"item {index}": [(at, held / _MEGABYTE) for at, held in memory]
    for index, memory in enumerate(memories[:3])
  }
  plot = report_figures.curve(
    "memory", curves, "Resident memory (MiB)", "Seconds of audio"
  )
  plot = plot.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
  (folder / PLOT_NAME).write_text(plot)
  print(table(found))


def table(found: dict[str, Any]) -> str:
  """The figures of `seams.json` as Markdown."""
  lines = [
    "| stage | figure | at seams | inside | difference (95 %) |",
    "|---|---|---|---|---|",
  ]
  for stage, figures in found["seams"].items():
    for name, figure in figures.items():
      if name == "num_seams":
        continue
      more = figure["difference"]
      lines.append(
        f"| {stage}, {figures['num_seams']} seams | {name} "
        f"| {figure['seams']['mean']:.3f} | {figure['inside']['mean']:.3f} "
        f"| {more['mean']:.3f} ({more['low']:.3f} to {more['high']:.3f}) |"
      )
  growth = max(found["growth_bytes"]) / _MEGABYTE
  lines.append("")
  lines.append(
    f"{found['real_time_factor']:.2f} s of audio per second; first audio after "
    f"{found['first_audio_secs'][0]:.1f} s; memory grew by {growth:.0f} MiB "
    "after the first third"
  )
  return "\n".join(lines)
