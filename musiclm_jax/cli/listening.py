# SPDX-License-Identifier: Apache-2.0
"""The jobs of a listening test: options to a test, a reference, scores."""

import argparse
import math
import pathlib
import re
import secrets

from musiclm_jax.core import errors
from musiclm_jax.evaluation import listening_files

SCORES_NAME = "listening.json"
_MAX_SYSTEMS = 8
# Clips are held one at a time, but raters have patience for few seconds.
_MAX_SECS = 60.0
_SEED_BITS = 62


def _systems(given: list[str]) -> dict[str, str]:
  """Folders by name, of `NAME=DIR`."""
  found: dict[str, str] = {}
  for one in given:
    name, equals, folder = one.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]{1,40}", name) or not folder:
      raise errors.UserError(
        f"--system={one}: expected NAME=DIR, the name of letters, digits, '.', "
        "'-' and '_'"
      )
    if name in found:
      raise errors.UserError(f"--system={one}: {name} is given twice")
    found[name] = folder
  if not 2 <= len(found) <= _MAX_SYSTEMS:
    raise errors.UserError(
      f"{len(found)} systems: expected --system 2 to {_MAX_SYSTEMS} times"
    )
  return found


def _check_build(args: argparse.Namespace) -> None:
  """Raises UserError for numbers that are out of range."""
  for name, low, high in (
    ("seconds", 0.5, _MAX_SECS),
    ("min_played_share", 0.0, 1.0),
    ("lufs", -60.0, 0.0),
    ("sample_rate_hz", 4000, 192000),
    ("num_raters", 1, 10000),
    ("raters_per_comparison", 1, 10000),
    ("comparisons_per_rater", 1, 10000),
    ("num_checks", 0, 1000),
    ("seed", 0, 2**_SEED_BITS),
  ):
    value = getattr(args, name)
    if value is not None and not (
      math.isfinite(value) and low <= value <= high
    ):
      raise errors.UserError(f"--{name}={value}: expected {low:g} to {high:g}")
  for name in ("title", "question"):
    text = getattr(args, name)
    if not text.strip() or len(text) > 500:
      raise errors.UserError(f"--{name}: expected 1 to 500 characters")


def build(args: argparse.Namespace) -> None:
  """Builds a test, and says what it is.

  Raises:
    UserError: for bad options, folders or files.
  """
  from musiclm_jax.evaluation import listening_build, listening_clips

  folders = _systems(args.system)
  _check_build(args)
  captions = {}
  if args.captions:
    captions = listening_clips.read_captions(args.captions)
  seed = args.seed
  plan = listening_build.Plan(
    folders=folders,
    captions=captions,
    title=args.title,
    question=args.question,
    seconds=args.seconds,
    sample_rate_hz=args.sample_rate_hz,
    lufs=None if args.keep_loudness else args.lufs,
    num_raters=args.num_raters,
    comparisons_per_rater=args.comparisons_per_rater,
    raters_per_comparison=args.raters_per_comparison,
    num_checks=args.num_checks,
    min_played_share=args.min_played_share,
    seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
  )
  made = listening_build.build(plan, args.output_dir)
  level = "as in the files"
  if made["lufs"] is not None:
    low, high = made["lufs"]
    level = f"{low:.1f} to {high:.1f} LUFS, the same for each text"
  print(
    f"{made['num_raters']} raters, each {made['comparisons_per_rater']} "
    f"comparisons of {made['num_pairs']} pairs and {made['num_checks']} "
    "attention checks"
  )
  print(
    f"{made['num_clips']} clips of {made['num_prompts']} texts: "
    f"{args.seconds:g} s, {made['sample_rate_hz']} Hz, "
    f"{made['num_channels']} channel(s), {level}"
  )
  for name, count in made["not_compared"].items():
    if count:
      print(f"{name}: {count} files are not used, for want of a common text")
  for path in made["silent"]:
    print(f"{path} is silent")
  print(f"test {made['fingerprint'][:12]} in {args.output_dir}")
  print(f"keep {listening_files.KEY_NAME} from raters: it names the systems")


def score(args: argparse.Namespace) -> None:
  """Scores a test, prints tables, writes JSON and a page.

  Raises:
    UserError: if the test is damaged, or answers are missing or of another one.
  """
  from musiclm_jax.evaluation import (
    listening_answers,
    listening_page,
    listening_scores,
  )

  settings = listening_scores.Settings(
    args.max_failed_share, args.alpha, args.num_resamples, args.seed
  )
  folder = pathlib.Path(args.test_dir)
  test = listening_files.read_test(folder)
  key = listening_files.read_key(folder, test)
  path = args.answers or folder / listening_files.ANSWERS_NAME
  log = listening_answers.read(path, test)
  expected = sum(
    not key.items[item.item].is_check for sheet in test.sheets for item in sheet
  )
  scores = listening_scores.score(key, log, expected, settings)
  target = pathlib.Path(args.output_dir or folder / "score")
  listening_files.write_json(
    target / SCORES_NAME,
    {"title": test.title, "question": test.question, **scores},
  )
  page = listening_page.write(target, scores, test.title, test.question)
  print(listening_page.table(scores))
  print(page)


def reference(args: argparse.Namespace) -> None:
  """Writes the clips that prompts are captions of.

  Raises:
    UserError: if a prompt names a clip that the split does not have.
  """
  from musiclm_jax.audio import files
  from musiclm_jax.cli import prompt_files
  from musiclm_jax.data import clips
  from musiclm_jax.evaluation import listening_clips

  wanted = prompt_files.read_rows(args.prompts)
  reader = clips.ClipReader(args.corpus_dir, args.split)
  places = {reader.clip_id(index): index for index in range(len(reader))}
  folder = pathlib.Path(args.output_dir)
  records = []
  for number, row in enumerate(wanted):
    source = row.source.get("clip_id")
    if source is None:
      raise errors.UserError(
        f"{args.prompts}: prompt {row.prompt!r} has no source: expected the id "
        "of the clip that it describes"
      )
    if source not in places:
      raise errors.UserError(
        f"{args.prompts}: no clip {source!r} in split {args.split} of "
        f"{args.corpus_dir}{errors.nearest(source, places)}"
      )
    clip = reader[places[source]]
    name = f"{number:03d}.wav"
    files.write_wav(folder / name, clip.waveform, clip.sample_rate_hz)
    records.append({"file": name, "prompt": row.prompt, "source": source})
  prompt_files.write(folder / listening_clips.CAPTIONS_NAME, records)
  print(f"{len(records)} clips in {folder}")
