# SPDX-License-Identifier: Apache-2.0
"""The melody report: melodies and prompts to scores, sounds and a page."""

import argparse
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.cli import prompt_files
from musiclm_jax.core import atomic_files, errors, progress
from musiclm_jax.evaluation import (
  chroma_similarity,
  melody_page,
  mulan_consistency,
  summary,
)
from musiclm_jax.systems import melody_prompt, musiclm

FILE_NAME = "melody.json"
PAGE_NAME = "index.html"


def _spread(total: int, count: int) -> list[int]:
  count = min(total, count)
  return [index * total // count for index in range(count)]


def _from_corpus(
  args: argparse.Namespace,
) -> tuple[list[melody_prompt.Melody], list[str]]:
  """A clip of each work, and the captions of the clips half a turn away."""
  from musiclm_jax.data import clips

  reader = clips.ClipReader(args.corpus_dir, args.split)
  first_of_work: dict[str, int] = {}
  for index in range(len(reader)):
    record = reader.record(index)
    first_of_work.setdefault(record.work_id or record.clip_id, index)
  indices = list(first_of_work.values())
  indices = [indices[n] for n in _spread(len(indices), args.num_melodies)]
  found = [reader[index] for index in indices]
  melodies = [
    melody_prompt.Melody(clip.waveform, clip.sample_rate_hz, clip.clip_id)
    for clip in found
  ]
  captions = [clip.captions[0] for clip in found if clip.captions]
  turn = len(captions) // 2
  return melodies, captions[turn:] + captions[:turn]


def _from_files(args: argparse.Namespace) -> list[melody_prompt.Melody]:
  paths = []
  for name in args.melody:
    path = pathlib.Path(name)
    if path.is_dir():
      inside = [path / one for one in files.list_names(path)]
      paths += [one for one in inside if one.is_file()]
    else:
      paths.append(path)
  if not paths:
    raise errors.UserError(f"--melody={args.melody}: no audio file there")
  chosen = [paths[n] for n in _spread(len(paths), args.num_melodies)]
  return [melody_prompt.read(path) for path in chosen]


def read_inputs(
  args: argparse.Namespace,
) -> tuple[list[melody_prompt.Melody], list[str]]:
  """Melodies and prompts that the command line names.

  Raises:
    UserError: if there are fewer than two melodies, or no prompt, or a number
      is out of range.
  """
  for name in ("num_melodies", "prompts_per_melody", "batch_size"):
    if getattr(args, name) < 1:
      raise errors.UserError(f"--{name}={getattr(args, name)}: expected >= 1")
  if bool(args.melody) == bool(args.corpus_dir):
    raise errors.UserError("expected either --melody or --corpus_dir")
  prompts = list(args.prompt)
  if args.prompts:
    prompts += prompt_files.read(args.prompts)
  if args.melody:
    melodies, captions = _from_files(args), []
  else:
    melodies, captions = _from_corpus(args)
  prompts = prompts or captions
  if len(melodies) < 2:
    raise errors.UserError(
      f"{len(melodies)} melodies: expected at least 2, to shuffle them"
    )
  if not prompts:
    raise errors.UserError("no prompt given: pass --prompt or --prompts")
  return melodies, prompts


def _generate(
  system: musiclm.MusicLM,
  args: argparse.Namespace,
  texts: Sequence[str],
  melodies: Sequence[melody_prompt.Melody] | None,
  bar: progress.Progress,
) -> np.ndarray:
  """float32 `[items, samples]`; item i has seed `args.seed + i`."""
  made = []
  for start in range(0, len(texts), args.batch_size):
    rows = slice(start, min(start + args.batch_size, len(texts)))
    seeds = [args.seed + index for index in range(rows.start, rows.stop)]
    result = system.generate(
      texts[rows],
      args.seconds,
      seeds,
      melody=None if melodies is None else melodies[rows],
    )
    made.append(result.waveform)
    bar.update(len(result.waveform))
  return np.concatenate(made)


def _text_scores(
  system: musiclm.MusicLM, texts: Sequence[str], waveforms: np.ndarray
) -> np.ndarray:
  audio = system.mulan.embed_audio(waveforms, system.codec.sample_rate_hz)
  return mulan_consistency.cosines(system.mulan.embed_text(texts), audio)


def run(args: argparse.Namespace) -> None:
  """Makes all results, scores them, and writes JSON, sounds and page.

  Raises:
    UserError: for bad inputs, or a bundle that takes no melody.
  """
  melodies, prompts = read_inputs(args)
  system = musiclm.MusicLM.load(args.bundle)
  system.check_melody()
  melody_of, prompt_of = [], []
  for index in range(len(melodies)):
    for copy in range(args.prompts_per_melody):
      melody_of.append(index)
      prompt_of.append((index * args.prompts_per_melody + copy) % len(prompts))
  texts = [prompts[index] for index in prompt_of]
  given = [melodies[index] for index in melody_of]
  with progress.Progress("melody", 2 * len(texts), unit="clip") as bar:
    results = _generate(system, args, texts, given, bar)
    plain = _generate(system, args, texts, None, bar)
  rate_hz = system.codec.sample_rate_hz
  heard = [
    melody_page.Sound(
      waveform := melody.repeated(args.seconds),
      melody.sample_rate_hz,
      chroma_similarity.chromagram(waveform, melody.sample_rate_hz),
    )
    for melody in melodies
  ]
  made, made_plain = (
    [
      melody_page.Sound(
        one, rate_hz, chroma_similarity.chromagram(one, rate_hz)
      )
      for one in waveforms
    ]
    for waveforms in (results, plain)
  )
  report = chroma_similarity.melody_scores(
    [sound.chroma for sound in heard],
    [sound.chroma for sound in made],
    [sound.chroma for sound in made_plain],
    melody_of,
    _text_scores(system, texts, results),
    _text_scores(system, texts, plain),
    prompt_of,
  )
  report |= {
    "prompts": prompts,
    "melodies": [melody.name for melody in melodies],
    "seconds": args.seconds,
    "seed": args.seed,
    "fingerprints": system.fingerprints,
    "versions": summary.versions(),
  }
  folder = pathlib.Path(args.output_dir)
  atomic_files.write_text(
    folder / FILE_NAME, json.dumps(report, indent=2) + "\n"
  )
  trios = [
    melody_page.Trio(
      texts[item],
      melodies[melody_of[item]].name,
      heard[melody_of[item]],
      made[item],
      made_plain[item],
      report["items"][item],
    )
    for item in _spread(len(texts), args.num_shown)
  ]
  page = melody_page.write(folder / PAGE_NAME, report, trios)
  _print(report)
  print(page)


def _print(report: dict) -> None:
  """The scores, for a terminal."""
  for part in ("chroma", "text"):
    for name, one in report[part].items():
      print(
        f"{part} {name}: {one['mean']:.3f} [{one['low']:.3f}, "
        f"{one['high']:.3f}]"
      )
  for name, verdict in report["verdicts"].items():
    print(f"{name}: {'yes' if verdict else 'no'}")
