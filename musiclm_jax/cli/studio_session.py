# SPDX-License-Identifier: Apache-2.0
"""What the studio makes of a wish: checked wishes in, files and scores out.

Nothing here knows of the page. All files lie in the work directory: what
visitors upload, and what is made for them, in folders that cannot be guessed.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files, uploads
from musiclm_jax.cli import studio_wishes
from musiclm_jax.core import errors
from musiclm_jax.evaluation import report_figures, summary
from musiclm_jax.systems import (
  audio_prompt,
  bundle,
  candidates,
  cascade,
  melody_prompt,
  provenance,
  recordings,
  stage_sampling,
  watched,
)
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import story as story_lib

BATCH_SIZE = 4
# Of all visitors together; older ones are deleted.
MAX_RESULTS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
  """A wish whose uploads were read.

  Attributes:
    wish: as asked.
    melody: to follow, or None.
    audio: to go on from, or None.
    judge: what candidates are compared with, or None.
  """

  wish: studio_wishes.Wish
  melody: melody_prompt.Melody | None
  audio: audio_prompt.AudioPrompt | None
  judge: prompts_lib.Prompt | None


@dataclasses.dataclass(frozen=True)
class Take:
  """One candidate that was made.

  Attributes:
    path: WAV file with its provenance.
    seed: that makes it alone.
    score: MuLan score, or None where there was no choice.
    spectrogram: SVG text.
    settings: all that decided what it sounds like.
  """

  path: pathlib.Path
  seed: int
  score: float | None
  spectrogram: str
  settings: dict[str, Any]


class Studio:
  """One system and a folder.

  Attributes:
    limits: of wishes.
    uploads_dir: where uploads have to lie.
    results_dir: where results lie.
  """

  def __init__(
    self,
    system: cascade.Cascade,
    work_dir: str | os.PathLike,
    limits: studio_wishes.Limits | None = None,
  ):
    """Makes the folders.

    Raises:
      UserError: if they cannot be made.
    """
    self._system = system
    self.limits = limits or studio_wishes.Limits()
    root = pathlib.Path(work_dir)
    self.uploads_dir = root / "uploads"
    self.results_dir = root / "results"
    try:
      for folder in (self.uploads_dir, self.results_dir):
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.UserError(
        f"cannot write to {root} ({error.strerror}): expected a folder"
      ) from error
    self._results: collections.deque[pathlib.Path] = collections.deque()
    self._fingerprint = bundle.combined_fingerprint(system.fingerprints)

  @property
  def has_text(self) -> bool:
    """Whether the bundle knows texts."""
    return self._system.mulan is not None

  @property
  def has_melody(self) -> bool:
    """Whether the bundle follows melodies."""
    return self._system.melody is not None and (
      self._system.melody_stage is not None
    )

  @property
  def has_guidance(self) -> bool:
    """Whether a stage that is told the prompt can be guided."""
    return any(
      stage_sampling.MULAN in stage.spec.conditioning_streams
      and stage.spec.dropped_streams
      for stage in self._system.stages_for(False).values()
    )

  @property
  def sample_rate_hz(self) -> int:
    """Of what is made."""
    return self._system.codec.sample_rate_hz

  def _read(self, path: str, kind: type) -> Any:
    """An upload as a `Recording` or an `AudioPrompt`."""
    limits = self.limits.uploads
    data = uploads.content(path, self.uploads_dir, limits)
    shown = uploads.shown_name(path)
    waveform, rate_hz = uploads.decode(data, limits, shown)
    if issubclass(kind, recordings.Recording):
      mark = hashlib.sha256(data).hexdigest()
      return kind(waveform, rate_hz, shown, mark)
    # Refuses silence and what is too short, which the kind does not know of.
    recordings.Recording(waveform, rate_hz, shown)
    return kind(waveform, rate_hz, shown)

  def check_upload(self, path: str) -> None:
    """Raises UserError unless a path is that of an upload; reads no audio."""
    uploads.content(path, self.uploads_dir, self.limits.uploads)

  def describe_upload(self, path: str) -> str:
    """Length and rate of an upload, in words.

    Raises:
      UserError: if it cannot be used.
    """
    audio = self._read(path, recordings.Recording)
    return f"{audio.name}: {audio.secs:.1f} s at {audio.sample_rate_hz} Hz"

  def plan(self, form: studio_wishes.Form) -> Plan:
    """Checks a form and reads its uploads, before anything is queued.

    Raises:
      UserError: one line for the visitor.
    """
    wish = studio_wishes.read(form, self.limits)
    melody = audio = None
    if wish.melody is not None:
      self._system.check_melody()
      melody = self._read(wish.melody, melody_prompt.Melody)
    if wish.continuation is not None:
      audio = self._read(wish.continuation, audio_prompt.AudioPrompt)
      if audio.secs >= wish.secs:
        raise errors.UserError(
          f"{audio.name} has {audio.secs:.1f} s: expected less than the length "
          f"({wish.secs:g} s), which includes it"
        )
    if self.has_text:
      if wish.mode == studio_wishes.PROMPT and not wish.prompt:
        raise errors.UserError("the prompt is empty: say what to make")
    elif wish.prompt or wish.story or wish.negative:
      self._system.check_text()
    plan = Plan(wish, melody, audio, self._judge(wish, audio))
    stages = self._system.stages_for(melody is not None)
    stage_sampling.check_guidance(
      self._sampling(plan), stages, bool(wish.negative)
    )
    return plan

  def _judge(
    self, wish: studio_wishes.Wish, audio: audio_prompt.AudioPrompt | None
  ) -> prompts_lib.Prompt | None:
    """The prompt; of a story the mean of its texts by their share of time."""
    if not self.has_text:
      return None
    if wish.story is not None:
      times = [scene.at for scene in wish.story.scenes] + [wish.secs]
      shares = [end - start for start, end in zip(times, times[1:])]
      return prompts_lib.mix(*zip(shares, wish.story.texts))
    if wish.prompt:
      return prompts_lib.as_prompt(wish.prompt)
    return prompts_lib.as_prompt(
      recordings.Recording(audio.waveform, audio.sample_rate_hz, audio.name)
    )

  def _sampling(self, plan: Plan) -> tuple[Any, ...]:
    """Published temperatures, with guidance where stages know the prompt."""
    system = self._system
    stages = system.stages_for(plan.melody is not None)
    guidance = stage_sampling.spread_guidance(plan.wish.guidance, stages)
    configs = stage_sampling.as_configs(system.temperatures)
    return tuple(
      dataclasses.replace(config, guidance=value)
      for config, value in zip(configs, guidance)
    )

  def _request(self, plan: Plan, seeds: Sequence[int]) -> cascade.Request:
    """Rows of one call."""
    wish, system = plan.wish, self._system
    sampling = self._sampling(plan)
    told = [wish.prompt] * len(seeds) if wish.prompt else []
    if wish.story is not None:
      made = story_lib.request(system, wish.story, wish.secs, seeds, sampling)
    elif plan.audio is not None:
      made = audio_prompt.continuation(
        system, plan.audio, wish.secs, told, seeds, sampling
      )
    elif not self.has_text:
      return system.request(len(seeds), wish.secs, seeds, sampling)
    else:
      made = system.request(told, wish.secs, seeds, sampling, plan.melody)
    if wish.negative:
      unwanted = prompts_lib.as_prompts([wish.negative] * len(seeds))
      codes = prompts_lib.encode(system.mulan, unwanted)
      made = dataclasses.replace(
        made, negative={system.mulan.stream.name: codes}
      )
    return made

  def make(self, plan: Plan, watcher: watched.Watcher) -> list[Take]:
    """Makes all candidates, the best first, and writes them.

    Args:
      plan: what to make.
      watcher: is told how far it is.

    Raises:
      UserError: if it cannot be made.
      watched.Stopped: if nobody wants it any more.
    """
    wish = plan.wish
    # A score is a choice; without MuLan there is none.
    count = wish.num_candidates if plan.judge is not None else 1
    system = watched.watch(self._system, watcher)
    expected: list[watched.Call] = []

    def run(items: Sequence[int], seeds: Sequence[int]) -> cascade.Generation:
      watcher.begin()
      request = self._request(plan, seeds)
      if not expected:
        expected.extend(_calls(system, request, count))
        watcher.expect(expected)
      codes = system.sample(request)
      watcher.begin()
      waveform = system.decode(codes["acoustic"], wish.secs)
      watcher.end(watched.calls(system, request)[-1])
      return cascade.Generation(waveform, self.sample_rate_hz, codes, seeds)

    made = candidates.choose(
      run,
      [plan.judge],
      [wish.seed],
      system.mulan,
      count,
      count,
      BATCH_SIZE,
    )
    return [self._write(plan, candidate) for candidate in made[0]]

  def _settings(self, plan: Plan, candidate: candidates.Candidate) -> dict:
    wish = plan.wish
    about: dict[str, Any] = {}
    if wish.story is not None:
      about |= {
        "prompt": " / ".join(wish.story.texts),
        "story": wish.story.to_list(),
        "story_fingerprint": wish.story.fingerprint,
      }
    else:
      about["prompt"] = wish.prompt
    if wish.negative:
      about["negative_prompt"] = {"prompt": wish.negative}
    if plan.melody is not None:
      about |= {
        "melody": plan.melody.name,
        "melody_sha256": plan.melody.sha256,
      }
    if plan.audio is not None:
      about["continue_from"] = plan.audio.name
    # By its own seed a candidate is made again, alone.
    about["seed"] = candidate.seed
    if candidate.score is not None:
      about["candidate"] = {
        "index": candidate.index,
        "of": wish.num_candidates,
        "mulan_score": round(candidate.score, 6),
      }
    return about | {
      "seconds": wish.secs,
      **self._system.describe_acoustic(),
      "sampling": stage_sampling.describe(self._sampling(plan)),
      "sample_rate_hz": self.sample_rate_hz,
      "bundle_fingerprint": self._fingerprint,
      "fingerprints": self._system.fingerprints,
      "generated_by": provenance.GENERATED_BY,
      "versions": summary.versions(),
    }

  def _write(self, plan: Plan, candidate: candidates.Candidate) -> Take:
    settings = self._settings(plan, candidate)
    title = settings["prompt"] or settings.get("continue_from", "music")
    words = re.findall(r"[a-z0-9]+", title.lower())
    slug = "_".join(words)[:40].strip("_") or "music"
    folder = self.results_dir / secrets.token_hex(16)
    path = folder / f"{slug}_seed{candidate.seed}.wav"
    files.write_wav(
      path,
      candidate.waveform,
      self.sample_rate_hz,
      provenance.tags(settings, title),
    )
    self._results.append(folder)
    while len(self._results) > MAX_RESULTS:
      shutil.rmtree(self._results.popleft(), ignore_errors=True)
    mono = np.asarray(files.as_channels(candidate.waveform, 1))
    figure = report_figures.spectrogram(
      mono, self.sample_rate_hz, "the music", width=6.4, height=2.2
    )
    return Take(path, candidate.seed, candidate.score, figure, settings)


def _calls(
  system: cascade.Cascade, request: cascade.Request, count: int
) -> list[watched.Call]:
  """Of all candidates, of which a request has the first."""
  found: list[watched.Call] = []
  rows = len(request.seeds)
  for start in range(0, count, rows):
    seeds = request.seeds[: min(rows, count - start)]
    found += watched.calls(system, dataclasses.replace(request, seeds=seeds))
  return found
