# SPDX-License-Identifier: Apache-2.0
"""Builds a listening test: folders of several systems in, a test folder out.

Names of clips and questions, and by default the seed, come from the system's
source of secrets: nothing that raters get tells which system made a clip.
"""

import dataclasses
import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors, progress
from musiclm_jax.evaluation import (
  listening_clips,
  listening_design,
  listening_files,
)

ASSETS = pathlib.Path(__file__).with_name("listening_assets")
# Of names: nobody finds one by trying.
_NAME_BYTES = 12


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be built.

  Attributes:
    folders: of audio, by the name of the system; the first one's clips are
      set against noise in attention checks.
    captions: texts by the stem of a file, for files without one of their own.
    title: of the page.
    question: asked of each pair.
    seconds: length of the clips.
    sample_rate_hz: of the clips; None for the lowest of the sources.
    lufs: loudness of all clips, or less for all clips of a text where a peak
      forbids it; None to keep that of the sources.
    num_raters: sheets to make.
    comparisons_per_rater: without checks; None for 60, or what there is.
    raters_per_comparison: raters who judge the same clips.
    num_checks: attention checks of a rater; None for one in ten.
    min_played_share: of each clip, before an answer.
    seed: of the design, a secret.
  """

  folders: Mapping[str, str | os.PathLike]
  captions: Mapping[str, str]
  title: str
  question: str
  seconds: float
  sample_rate_hz: int | None
  lufs: float | None
  num_raters: int
  comparisons_per_rater: int | None
  raters_per_comparison: int
  num_checks: int | None
  min_played_share: float
  seed: int


_DEFAULT_COMPARISONS = 60


def _new_name() -> str:
  return secrets.token_hex(_NAME_BYTES)


class _Clips:
  """Names of the clips that are used, and what each is made of."""

  def __init__(self):
    self.sources: dict[str, tuple[str, str]] = {}
    self.seeds: dict[str, int] = {}
    self._names: dict[tuple[str, str], str] = {}

  def of(self, system: str, prompt: str) -> str:
    """The name of a system's clip of a text."""
    if (system, prompt) not in self._names:
      name = self._names[system, prompt] = f"{_new_name()}.wav"
      self.sources[name] = (system, prompt)
    return self._names[system, prompt]

  def noise(self, prompt: str, seed: int) -> str:
    """The name of noise that is set against a clip of a text."""
    name = f"{_new_name()}.wav"
    self.sources[name] = ("", prompt)
    self.seeds[name] = seed
    return name


def _common_prompts(
  found: Mapping[str, Mapping[str, pathlib.Path]],
) -> list[str]:
  """Texts of which every system has a clip, in the order of the first."""
  first, *others = found.values()
  return [text for text in first if all(text in other for other in others)]


def _shape(plan: Plan, num_prompts: int) -> listening_design.Shape:
  num_systems = len(plan.folders)
  num_pairs = len(listening_design.pairs(num_systems))
  number = plan.comparisons_per_rater
  if number is None:
    most = min(_DEFAULT_COMPARISONS, num_prompts * num_pairs)
    number = max(most // num_pairs, 1) * num_pairs
  try:
    return listening_design.Shape(
      num_systems,
      num_prompts,
      plan.num_raters,
      number,
      plan.raters_per_comparison,
    )
  except ValueError as error:
    raise errors.UserError(str(error)) from error


def _sheet(
  plan: Plan,
  questions: Sequence[listening_design.Comparison],
  prompts: Sequence[str],
  clips: _Clips,
  num_checks: int,
  seed: Sequence[int],
) -> list[tuple[listening_files.Item, listening_files.KeyItem]]:
  """A rater's items with what is behind them, checks put in."""
  systems = list(plan.folders)
  generator = np.random.default_rng(seed)
  rows = []
  for question in questions:
    prompt = prompts[question.prompt]
    first, second = systems[question.first], systems[question.second]
    rows.append((prompt, first, second, False))
  places = listening_design.check_places(
    len(rows), num_checks, int(generator.integers(2**31))
  )
  sides = generator.permutation(num_checks) % 2
  for place, side in zip(places, sides):
    prompt = prompts[generator.integers(len(prompts))]
    pair = (systems[0], "") if side else ("", systems[0])
    rows.insert(place, (prompt, *pair, True))
  found = []
  for prompt, first, second, is_check in rows:
    names = [
      clips.of(system, prompt)
      if system
      else clips.noise(prompt, int(generator.integers(2**31)))
      for system in (first, second)
    ]
    found.append(
      (
        listening_files.Item(_new_name(), prompt, *names),
        listening_files.KeyItem(prompt, first, second, is_check),
      )
    )
  return found


def _write_clips(
  folder: pathlib.Path,
  clips: _Clips,
  found: Mapping[str, Mapping[str, pathlib.Path]],
  plan: Plan,
) -> tuple[dict[str, str], listening_clips.Form, dict[str, Any]]:
  """Writes all clips: hashes by name, their form, and what happened."""
  paths = {
    name: found[system][prompt]
    for name, (system, prompt) in clips.sources.items()
    if system
  }
  form = listening_clips.common_form(
    list(paths.values()), plan.seconds, plan.sample_rate_hz, plan.lufs
  )

  def made(name: str) -> np.ndarray:
    if name in paths:
      return form.cut(paths[name])
    return form.noise(np.random.default_rng(clips.seeds[name]))

  names = sorted(clips.sources)
  levels: dict[str, listening_clips.Level] = {}
  by_text: dict[str, list[listening_clips.Level]] = {}
  # Twice through the files, for all cannot be held at once.
  with progress.Progress("clips", 2 * len(names), unit="clip") as bar:
    for name in names:
      levels[name] = listening_clips.measure(made(name), form.sample_rate_hz)
      by_text.setdefault(clips.sources[name][1], []).append(levels[name])
      bar.update()
    # Only clips of one text are compared: a high peak in one of them need not
    # make the whole test quiet.
    lufs = {
      text: listening_clips.common_lufs(found_levels, plan.lufs)
      for text, found_levels in by_text.items()
    }
    gains = {
      name: levels[name].gain(lufs[text])
      for name, (_, text) in clips.sources.items()
    }
    hashes = {}
    for name in names:
      hashes[name] = listening_clips.write_clip(
        listening_files.clip_path(folder, name),
        made(name) * np.float32(gains[name]),
        form.sample_rate_hz,
      )
      bar.update()
  # For the key alone: these name the systems.
  facts = {
    "lufs": None
    if plan.lufs is None
    else [min(lufs.values()), max(lufs.values())],
    "silent": [
      str(paths[n]) for n in names if n in paths and levels[n].lufs == -np.inf
    ],
    "clips": {
      name: {
        "file": str(path),
        "gain_db": round(20 * math.log10(gains[name]), 3),
      }
      for name, path in paths.items()
    },
  }
  return hashes, form, facts


def build(plan: Plan, output_dir: str | os.PathLike) -> dict[str, Any]:
  """Builds a test.

  Args:
    plan: what to build.
    output_dir: gets `public/` and `key.json`; must not be there.

  Returns:
    What to tell who runs the test: counts, form and warnings by name.

  Raises:
    UserError: if a folder, a file or a number does not fit; nothing is left
      behind then.
  """
  target = pathlib.Path(output_dir)
  if target.exists():
    raise errors.UserError(
      f"{target} is there already: expected a new folder, for answers belong "
      "to one test"
    )
  found, unused = {}, {}
  for name, folder in plan.folders.items():
    found[name], unused[name] = listening_clips.find(folder, plan.captions)
  prompts = _common_prompts(found)
  if not prompts:
    raise errors.UserError(
      f"no text of which all of {', '.join(found)} have a clip"
    )
  shape = _shape(plan, len(prompts))
  num_checks = plan.num_checks
  if num_checks is None:
    num_checks = max(2, round(shape.comparisons_per_rater / 10))
  clips = _Clips()
  rows = [
    _sheet(plan, sheet, prompts, clips, num_checks, [plan.seed, 3, rater])
    for rater, sheet in enumerate(listening_design.sheets(shape, plan.seed))
  ]
  target.parent.mkdir(parents=True, exist_ok=True)
  scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.writing")
  try:
    hashes, form, facts = _write_clips(scratch, clips, found, plan)
    test = listening_files.Test(
      title=plan.title,
      question=plan.question,
      seconds=form.seconds,
      sample_rate_hz=form.sample_rate_hz,
      min_played_share=plan.min_played_share,
      clips=hashes,
      sheets=tuple(tuple(item for item, _ in sheet) for sheet in rows),
    )
    about = {
      **{k: v for k, v in facts.items() if k != "silent"},
      "folders": {name: str(folder) for name, folder in plan.folders.items()},
      "shape": dataclasses.asdict(shape),
      "num_checks": num_checks,
      "seed": plan.seed,
    }
    items = {item.item: key for sheet in rows for item, key in sheet}
    key = listening_files.Key(
      test.fingerprint, tuple(plan.folders), items, about
    )
    listening_files.write(scratch, test, key)
    for asset in sorted(ASSETS.iterdir()):
      if asset.suffix in (".html", ".js", ".css"):
        shutil.copyfile(
          asset, scratch / listening_files.PUBLIC_DIR / asset.name
        )
    scratch.rename(target)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return {
    "fingerprint": test.fingerprint,
    "num_prompts": len(prompts),
    "num_pairs": shape.num_pairs,
    "num_raters": shape.num_raters,
    "comparisons_per_rater": shape.comparisons_per_rater,
    "num_checks": num_checks,
    "num_clips": len(hashes),
    "sample_rate_hz": form.sample_rate_hz,
    "num_channels": form.num_channels,
    "lufs": facts["lufs"],
    "silent": facts["silent"],
    "not_compared": {
      name: len(found[name]) - len(prompts) + len(unused[name])
      for name in found
    },
  }
