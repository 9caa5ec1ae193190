# SPDX-License-Identifier: Apache-2.0
"""The seams job: long items of a bundle to figures at seams, along the items
(story score, drift, repetition), and memory."""

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import prompt_files
from musiclm_jax.core import errors, progress
from musiclm_jax.evaluation import (
  clip_files,
  embedders,
  hearing,
  long_form_figures,
  mulan_consistency,
  report_figures,
  seams,
  summary,
)
from musiclm_jax.systems import audio_prompt, cascade, musiclm, streaming
from musiclm_jax.systems import story as story_lib

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


def _items(
  args: argparse.Namespace,
) -> tuple[list[str], list[story_lib.Story | None]]:
  """What each item is told: its text, and its story if it has one."""
  texts = list(args.prompt)
  if args.prompts:
    texts += prompt_files.read(args.prompts)
  stories = [story_lib.read(path) for path in args.story]
  if stories and texts:
    raise errors.UserError(
      f"--story={args.story[0]} with a prompt: expected one of them"
    )
  if args.num_items < 1:
    raise errors.UserError(f"--num_items={args.num_items}: expected >= 1")
  told: list[Any] = [None] * len(texts)
  if stories:
    texts, told = [" / ".join(one.texts) for one in stories], stories
  if not texts:
    raise errors.UserError(
      "no prompt given: pass --prompt, --prompts or --story"
    )
  return texts * args.num_items, told * args.num_items


def _read_reference(
  folder: str, seconds: float
) -> tuple[list[audio_prompt.AudioPrompt], dict[str, Any]]:
  """The begins of real pieces, and what is said of them.

  Raises:
    UserError: if there is no folder, a file is no audio, or all are shorter.
  """
  pieces, short = [], []
  for clip in clip_files.of_folder(folder):
    waveform, rate_hz = clip.decode(clip.read())
    if len(waveform) < round(seconds * rate_hz):
      short.append(clip.name)
      continue
    waveform = waveform[: round(seconds * rate_hz)]
    pieces.append(audio_prompt.AudioPrompt(waveform, rate_hz, clip.name))
  if not pieces:
    raise errors.UserError(
      f"--reference={folder}: none of {len(short)} files has --seconds="
      f"{seconds:g} of audio"
    )
  about = {"folder": folder, "num_files": len(pieces), "too_short": short}
  return pieces, about


def _heard(
  system: musiclm.MusicLM,
  listener: embedders.MuLan,
  piece: audio_prompt.AudioPrompt,
) -> long_form_figures.Heard:
  """What the bundle's own networks hear in a piece, generated or real."""
  waveform, rate_hz = piece.waveform, piece.sample_rate_hz
  codes, _ = audio_prompt.encode(system, piece)
  streams = (system.semantic_tokenizer.stream, system.codec.stream)
  return long_form_figures.Heard(
    waveform,
    rate_hz,
    listener.embed_audio_windows(waveform[None], rate_hz)[0],
    listener.window_secs,
    listener.hop_secs,
    # Of acoustic codes the first codebook: all of them hardly ever repeat.
    {s.name: (codes[s.name][0, :, 0], s.frame_rate_hz) for s in streams},
  )


def _told(
  system: musiclm.MusicLM, story: story_lib.Story | None
) -> long_form_figures.Told | None:
  if story is None:
    return None
  return long_form_figures.Told(
    system.mulan.embed_text(list(story.texts)),
    [scene.at for scene in story.scenes],
    [scene.at + scene.transition_secs for scene in story.scenes],
  )


def _long_form(
  system: musiclm.MusicLM,
  pieces: Sequence[audio_prompt.AudioPrompt],
  stories: Sequence[story_lib.Story | None],
) -> dict[str, Any]:
  """Figures along pieces: means, those of each, and what is missing."""
  listener = embedders.MuLan(system.mulan)
  rows, missing = [], {}
  bar = progress.Progress("listen", len(pieces), unit="item")
  for piece, story in zip(pieces, stories):
    heard = _heard(system, listener, piece)
    figures, lacks = long_form_figures.of_piece(heard, _told(system, story))
    rows.append(figures)
    missing |= {name: f"{piece.name}: {why}" for name, why in lacks.items()}
    bar.update(1)
  return {
    "listener": hearing.describe(listener, hearing.EMBED),
    "figures": long_form_figures.over_pieces(rows),
    "items": rows,
    "not_computed": missing,
  }


def _requests(
  args: argparse.Namespace,
  system: musiclm.MusicLM,
  texts: Sequence[str],
  stories: Sequence[story_lib.Story | None],
) -> list[cascade.Request]:
  """What the system makes of each item."""
  return [
    system.request(text, args.seconds, args.seed + index)
    if story is None
    else story_lib.request(system, story, args.seconds, args.seed + index)
    for index, (text, story) in enumerate(zip(texts, stories))
  ]


def _places(
  system: musiclm.MusicLM, requests: Sequence[cascade.Request]
) -> dict[str, list[tuple[float, ...]]]:
  """Where windows join: seconds, of each item, by stage.

  Raises:
    UserError: if nothing joins in any of them.
  """
  places: dict[str, list[tuple[float, ...]]] = {}
  for request in requests:
    for name, times in cascade.seam_secs(system, request):
      places.setdefault(name, []).append(times)
  if not any(any(rows) for rows in places.values()):
    raise errors.UserError(
      f"--seconds={requests[0].seconds:g}: nothing joins in items so short"
    )
  return places


@dataclasses.dataclass(frozen=True, eq=False)
class _Made:
  """The items, and what making them took.

  Attributes:
    pieces: what was written.
    memories: of each item, see `_stream`.
    first_secs: until the first piece of each item.
    secs: for all of them.
  """

  pieces: list[audio_prompt.AudioPrompt]
  memories: list[list[tuple[float, int]]]
  first_secs: list[float]
  secs: float


def _make(
  system: musiclm.MusicLM,
  requests: Sequence[cascade.Request],
  folder: pathlib.Path,
) -> _Made:
  """Makes and writes the items."""
  bar = progress.Progress("seams", len(requests), unit="item")
  rate_hz = system.codec.sample_rate_hz
  started = time.perf_counter()
  pieces, memories, firsts = [], [], []
  for index, request in enumerate(requests):
    waveform, memory, first_secs = _stream(system, request, bar)
    name = f"{index:03d}.wav"
    files.write_wav(folder / name, waveform, rate_hz)
    pieces.append(audio_prompt.AudioPrompt(waveform, rate_hz, name))
    memories.append(memory)
    firsts.append(first_secs)
  return _Made(pieces, memories, firsts, time.perf_counter() - started)


def _seam_figures(
  pieces: Sequence[audio_prompt.AudioPrompt],
  places: Mapping[str, Sequence[tuple[float, ...]]],
  scores: Sequence[Callable[[np.ndarray], np.ndarray]] | None,
) -> dict[str, dict[str, Any]]:
  """Figures at seams against inside, by stage that has seams."""
  waveforms = [piece.waveform for piece in pieces]
  rate_hz = pieces[0].sample_rate_hz
  found = {}
  for name, rows in places.items():
    if any(rows):
      figures = seams.compare(waveforms, rate_hz, rows, scores)
      found[name] = {
        "num_seams": sum(map(len, rows)),
        **{key: figure.to_dict() for key, figure in figures.items()},
      }
  return found


def _write_plot(
  path: pathlib.Path, memories: Sequence[Sequence[tuple[float, int]]]
) -> None:
  """Memory along the first items, as a picture of its own."""
  curves = {
    f"item {index}": [(at, held / _MEGABYTE) for at, held in memory]
    for index, memory in enumerate(memories[:3])
  }
  plot = report_figures.curve(
    "memory", curves, "Resident memory (MiB)", "Seconds of audio"
  )
  plot = plot.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
  path.write_text(plot)


def run(args: argparse.Namespace) -> None:
  """Makes the items, writes them, `seams.json` and `memory.svg`.

  Raises:
    UserError: for bad inputs, or items so short that nothing joins.
  """
  texts, stories = _items(args)
  system = musiclm.MusicLM.load(args.bundle).with_acoustic(args.acoustic)
  requests = _requests(args, system, texts, stories)
  places = _places(system, requests)
  real, about_real = [], {}
  if args.reference:
    real, about_real = _read_reference(args.reference, args.seconds)
  folder = pathlib.Path(args.output_dir)
  folder.mkdir(parents=True, exist_ok=True)
  made = _make(system, requests, folder)
  # The text changes along a story; its score is a figure of the long form.
  scores = None if args.story else [_scorer(system, text) for text in texts]
  found: dict[str, Any] = {
    "prompts": texts,
    "stories": [one.to_list() for one in stories if one is not None],
    "seconds": args.seconds,
    "seed": args.seed,
    **system.describe_acoustic(),
    "fingerprints": system.fingerprints,
    "first_audio_secs": made.first_secs,
    "real_time_factor": args.seconds * len(texts) / made.secs,
    "memory": made.memories,
    "growth_bytes": [growth_bytes(memory) for memory in made.memories],
    "seams": _seam_figures(made.pieces, places, scores),
    "long_form": _long_form(system, made.pieces, stories),
  }
  if real:
    found["long_form_reference"] = {
      **about_real,
      **_long_form(system, real, [None] * len(real)),
    }
  summary.write_summary(folder / FILE_NAME, found)
  _write_plot(folder / PLOT_NAME, made.memories)
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
  columns = {
    title: found[name]["figures"]
    for title, name in (
      ("generated", "long_form"),
      ("reference", "long_form_reference"),
    )
    if name in found
  }
  lines += ["", long_form_figures.table(columns), ""]
  for name, why in found["long_form"]["not_computed"].items():
    lines.append(f"{name} was not computed: {why}")
  growth = max(found["growth_bytes"]) / _MEGABYTE
  lines.append(
    f"{found['real_time_factor']:.2f} s of audio per second; first audio after "
    f"{found['first_audio_secs'][0]:.1f} s; memory grew by {growth:.0f} MiB "
    "after the first third"
  )
  return "\n".join(lines)
