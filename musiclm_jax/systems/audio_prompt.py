# SPDX-License-Identifier: Apache-2.0
"""Audio as the begin, or as the semantic content, of what is made.

Continuation and resynthesis of AudioLM (arXiv 2209.03143): a waveform flows
in, a request whose codes are given in part flows out. The codes of a prompt
are kept as they are; what one hears of it is the codec's reconstruction.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.audio import files
from musiclm_jax.core import errors, streams, windows
from musiclm_jax.systems import cascade, stage_sampling
from musiclm_jax.systems import prompts as prompts_lib

MIN_SECS = 0.5
# As a corpus is tokenized (`cli.jobs.TokenizeJob`), which is what the stages
# have seen.
SEMANTIC_WINDOW_SECS, SEMANTIC_HALO_SECS = 10.0, 1.0


@dataclasses.dataclass(frozen=True)
class AudioPrompt:
  """Audio that is given.

  Attributes:
    waveform: float32 `[samples]` or `[samples, channels]` in about [-1, 1].
    sample_rate_hz: its rate.
    name: what it is called in error messages.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  name: str = "the audio prompt"

  def __post_init__(self):
    """Checks the audio.

    Raises:
      ValueError: if the shape or the rate is another.
      UserError: if it is too short or not finite.
    """
    waveform = np.asarray(self.waveform, np.float32)
    object.__setattr__(self, "waveform", waveform)
    if waveform.ndim not in (1, 2) or not self.sample_rate_hz > 0:
      raise ValueError(
        f"waveform of shape {waveform.shape} at {self.sample_rate_hz} Hz: "
        "expected [samples] or [samples, channels] at a positive rate"
      )
    if self.secs < MIN_SECS:
      raise errors.UserError(
        f"{self.name} has {self.secs:.2f} s of audio: expected at least "
        f"{MIN_SECS:g} s"
      )
    if not np.isfinite(waveform).all():
      raise errors.UserError(
        f"{self.name} holds NaN or infinite samples: expected finite values"
      )

  @property
  def secs(self) -> float:
    """Length."""
    return len(self.waveform) / self.sample_rate_hz

  def at(self, sample_rate_hz: float, num_channels: int = 1) -> np.ndarray:
    """float32 `[1, samples]`, with `num_channels` last if there are more."""
    waveform = files.as_channels(self.waveform, num_channels)
    waveform = files.resample(waveform, self.sample_rate_hz, sample_rate_hz)
    return waveform[None]


def read(path: str | os.PathLike) -> AudioPrompt:
  """The audio of a file.

  Raises:
    UserError: if the file is missing, not audio, or too short.
  """
  waveform, rate_hz = files.read_audio(path, mono=False)
  return AudioPrompt(waveform, rate_hz, str(path))


def _semantic_codes(tokenizer: Any, prompt: AudioPrompt) -> np.ndarray:
  """int32 `[1, frames, 1]`; long audio in windows, as corpora are tokenized."""
  rate_hz = prompt.sample_rate_hz
  frame_hz = tokenizer.stream.frame_rate_hz
  plan = windows.WindowConfig(
    round(SEMANTIC_WINDOW_SECS * frame_hz),
    round(SEMANTIC_HALO_SECS * frame_hz),
    round(SEMANTIC_HALO_SECS * frame_hz),
  ).plan(math.ceil(prompt.secs * frame_hz))
  waveform = prompt.at(rate_hz)
  parts = []
  for window in plan:
    start, end = (
      round(frame / frame_hz * rate_hz) for frame in (window.start, window.end)
    )
    parts.append(tokenizer.encode(waveform[:, start:end], rate_hz)[0])
  return windows.join(plan, parts)[None]


def encode(
  system: cascade.Cascade, prompt: AudioPrompt
) -> tuple[dict[str, np.ndarray], float]:
  """Codes of audio, as far as frames of all streams end together.

  Returns:
    Semantic and acoustic codes, int32 `[1, frames, codebooks]` by stream, and
    the seconds they cover: up to a frame less than the audio.

  Raises:
    UserError: if the system has no semantic tokenizer.
  """
  codec, tokenizer = system.codec, system.semantic_tokenizer
  if tokenizer is None:
    raise errors.UserError(
      "audio is given, but this system has no semantic tokenizer"
    )
  of = {stream.name: stream for stream in (tokenizer.stream, codec.stream)}
  grid_hz = streams.grid_hz(of)
  secs = math.floor(prompt.secs * grid_hz + 1e-6) / grid_hz
  channels = codec.config.num_channels
  codes = {
    tokenizer.stream.name: _semantic_codes(tokenizer, prompt),
    codec.stream.name: codec.encode(prompt.at(codec.sample_rate_hz, channels)),
  }
  return (
    {
      name: np.asarray(array)[:, : round(secs * of[name].frame_rate_hz)]
      for name, array in codes.items()
    },
    secs,
  )


def _items(
  system: cascade.Cascade,
  prompt: AudioPrompt | None,
  texts: Sequence[prompts_lib.AnyPrompt],
  seed: int | Sequence[int],
) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
  """Seeds, and conditioning: by text, else by the audio, else none."""
  if texts:
    system.check_text()
    seeds = cascade.item_seeds(seed, len(texts))
    told = prompts_lib.as_prompts(texts)
    codes = prompts_lib.encode(system.mulan, told)
    return seeds, {system.mulan.stream.name: codes}
  is_one = isinstance(seed, (int, np.integer))
  seeds = cascade.item_seeds(seed, 1 if is_one else len(seed))
  if system.mulan is None:
    return seeds, {}
  if prompt is None:
    raise errors.UserError("no prompt given: expected a text, or audio")
  rate_hz = prompt.sample_rate_hz
  codes = system.mulan.encode(prompt.at(rate_hz), rate_hz)
  return seeds, {system.mulan.stream.name: np.repeat(codes, len(seeds), 0)}


def continuation(
  system: cascade.Cascade,
  prompt: AudioPrompt,
  seconds: float,
  texts: Sequence[prompts_lib.AnyPrompt] = (),
  seed: int | Sequence[int] = 0,
  sampling: stage_sampling.StageSampling | None = None,
) -> cascade.Request:
  """Goes on from audio (AudioLM sec. IV-D).

  Args:
    system: with a semantic tokenizer.
    prompt: the begin of every item.
    seconds: duration of an item, the prompt included.
    texts: one per item; none: a system with MuLan is told how the prompt
      sounds, one without knows nothing else.
    seed: one per item, or one int (see `cascade.item_seeds`).
    sampling: one per stage; the system's temperatures by default.

  Returns:
    A request; the codes of the result begin with those of the prompt.

  Raises:
    UserError: if the prompt is not shorter than `seconds`, or a number is out
      of range, or texts are given to a system without MuLan.
  """
  sampling = tuple(sampling or system.temperatures)
  system.check(seconds, sampling)
  if prompt.secs >= seconds:
    raise errors.UserError(
      f"{prompt.name} has {prompt.secs:g} s, seconds={seconds:g}: expected "
      "more, for they include the audio"
    )
  seeds, conditioning = _items(system, prompt, texts, seed)
  given, _ = encode(system, prompt)
  given = {name: np.repeat(c, len(seeds), 0) for name, c in given.items()}
  return cascade.Request(seconds, seeds, sampling, conditioning, given)


def resynthesis(
  system: cascade.Cascade,
  prompt: AudioPrompt,
  seconds: float = math.inf,
  texts: Sequence[prompts_lib.AnyPrompt] = (),
  seed: int | Sequence[int] = 0,
  sampling: stage_sampling.StageSampling | None = None,
) -> cascade.Request:
  """Makes audio of the semantic codes of other audio (AudioLM sec. IV-C).

  Arguments and errors as `continuation`; `seconds` is at most how much of the
  audio is used.
  """
  given, secs = encode(system, prompt)
  semantic = system.semantic_tokenizer.stream.name
  seeds, conditioning = _items(system, prompt, texts, seed)
  codes = np.repeat(given[semantic], len(seeds), 0)
  return from_semantic(
    system, codes, conditioning, seeds, sampling, min(seconds, secs)
  )


def from_semantic(
  system: cascade.Cascade,
  semantic_codes: np.ndarray,
  conditioning: dict[str, np.ndarray],
  seed: int | Sequence[int] = 0,
  sampling: stage_sampling.StageSampling | None = None,
  seconds: float = math.inf,
) -> cascade.Request:
  """Acoustic generation from semantic codes.

  Args:
    system: MusicLM or AudioLM.
    semantic_codes: int32 `[batch, frames, 1]`, kept as they are.
    conditioning: codes by stream `[batch, frames, codebooks]`: of MuLan for
      MusicLM, none for AudioLM.
    seed: see `continuation`.
    sampling: see `continuation`.
    seconds: at most; by default as long as the codes.

  Raises:
    UserError: if a number is out of range.
  """
  sampling = tuple(sampling or system.temperatures)
  stage = next(iter(system.stages.values()))
  stream = stage.target_stream
  seconds = min(seconds, semantic_codes.shape[1] / stream.frame_rate_hz)
  system.check(seconds, sampling)
  seeds = cascade.item_seeds(seed, len(semantic_codes))
  given = {stream.name: np.asarray(semantic_codes, np.int32)}
  return cascade.Request(
    seconds, seeds, sampling, conditioning, given, is_whole=True
  )
