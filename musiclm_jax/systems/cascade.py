# SPDX-License-Identifier: Apache-2.0
"""Stages one after the other: a request in, codes of all streams and audio out.

What MusicLM and AudioLM share. A request says what is known of an item:
conditioning that spans it, and codes of its begin. Text, a story, audio to go
on from and semantic codes to make audible are all requests (`modes.py`).
"""

import copy
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import errors, rng
from musiclm_jax.decoding import continuation, tracks
from musiclm_jax.decoding import sampling as sampling_lib
from musiclm_jax.partitioning import mesh as mesh_lib
from musiclm_jax.partitioning import partitioner as partitioner_lib
from musiclm_jax.systems import (
  acoustic_backends,
  acoustic_stage,
  stage_lm,
  stage_sampling,
  stage_windows,
  unique_stages,
)

# Durations are generated in whole multiples and trimmed: few shapes to compile,
# and frames of all streams end at the same time.
QUANTUM_SECS = 1.0


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was made.

  Attributes:
    waveform: float32 `[batch, samples]`.
    sample_rate_hz: of the waveform.
    codes: int32 `[batch, frames, codebooks]` by stream: 'mulan', 'semantic',
      'acoustic', covering the waveform; 'melody' where one was given. Of a
      story, 'mulan' has a frame per prompt. Semantic codes without repeats are
      those of a whole crop, with -1 behind their end.
    seeds: one per item.
  """

  waveform: np.ndarray
  sample_rate_hz: int
  codes: dict[str, np.ndarray]
  seeds: tuple[int, ...]


def item_seeds(seed: int | Sequence[int], num_items: int) -> tuple[int, ...]:
  """One seed per item: those given, or `seed`, `seed + 1`, ... .

  Raises:
    UserError: if there are not as many seeds as items.
  """
  if isinstance(seed, (int, np.integer)):
    return tuple(int(seed) + i for i in range(num_items))
  seeds = tuple(int(item) for item in seed)
  if len(seeds) != num_items:
    raise errors.UserError(
      f"{len(seeds)} seeds given: expected one per prompt ({num_items})"
    )
  return seeds


def whole_secs(seconds: float) -> float:
  """The least multiple of `QUANTUM_SECS` that is no shorter."""
  return math.ceil(seconds / QUANTUM_SECS) * QUANTUM_SECS


def needed_frames(seconds: float, frame_rate_hz: float) -> int:
  """Frames that cover `seconds`, at least 1."""
  return max(1, math.ceil(round(seconds * frame_rate_hz, 6)))


@dataclasses.dataclass(frozen=True)
class Request:
  """Items to make at once.

  Attributes:
    seconds: duration of each.
    seeds: one per item.
    sampling: one per stage; a number is the temperature.
    conditioning: by stream, what the stages are told: codes int32 `[batch,
      frames, codebooks]`, or `tracks.Scenes`.
    given: by stream, codes of the begin of the items, with all codebooks; they
      are kept as they are. Streams that are given whole are not sampled.
    is_whole: nothing beyond `seconds` is made; by default durations are
      rounded up to whole seconds while sampling, for fewer shapes to compile.
    about: codes that are part of the result beside those of the stages.
    negative: by stream, codes that guided stages move away from, of streams
      without frames; a stage that is told none of them does without its
      dropped streams.
  """

  seconds: float
  seeds: tuple[int, ...]
  sampling: tuple[sampling_lib.SamplingConfig, ...]
  conditioning: Mapping[str, tracks.Conditioning] = dataclasses.field(
    default_factory=dict
  )
  given: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  is_whole: bool = False
  about: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  negative: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Raises UserError unless there is a way to draw for each stage."""
    configs = stage_sampling.as_configs(self.sampling)
    object.__setattr__(self, "sampling", configs)

  def num_frames(self, stage: stage_windows.StageWindows) -> int:
    """Target frames that a stage makes, given ones included."""
    if stage.spec.target.unique_consecutive:
      return stage.window_frames
    if self.is_whole:
      rate_hz = stage.target_stream.frame_rate_hz
      return needed_frames(self.seconds, rate_hz)
    return stage.target_stream.num_frames(whole_secs(self.seconds))

  def given_codes(self, stage: stage_windows.StageWindows) -> np.ndarray | None:
    """Given target codes of a stage, `[batch, frames, levels]`, or None."""
    target = stage.spec.target
    codes = self.given.get(target.stream)
    if codes is None or not codes.shape[1]:
      return None
    levels = codes[:, :, target.first_level : target.end_level]
    if target.unique_consecutive:
      rate_hz = stage.target_stream.frame_rate_hz
      return unique_stages.given_codes(
        stage,
        np.asarray(levels, np.int32),
        needed_frames(self.seconds, rate_hz),
      )
    return np.asarray(levels, np.int32)[:, : self.num_frames(stage)]

  def stage_keys(self, name: str) -> jax.Array:
    """Typed keys `[batch]` of one stage: of seed and name only."""
    return jnp.stack([rng.named(rng.root_key(s), name) for s in self.seeds])


def is_parallel(name: str) -> bool:
  """Whether windows of a stage are independent of each other."""
  return name == "fine"


class Cascade:
  """Frozen stages and the codec that makes their codes audible.

  Attributes:
    codec: encodes and decodes waveforms (`SoundStreamTokenizer`).
    stages: `StageLM`s by name, in order.
    acoustic: back ends by name that can take the place of 'coarse' and 'fine'.
    acoustic_choice: what makes acoustic codes; see `with_acoustic`.
    num_codebooks: acoustic codebooks that are decoded; 0 for all.
    semantic_tokenizer: for audio prompts; None if not given.
    mulan: embeds and quantizes text and audio; None where no stage uses it.
    melody: tokenizes melodies; None if not given.
    melody_stage: the semantic stage that is told a melody; None if not given.
    fingerprints: of the parts, by bundle name; empty if not from a bundle.
  """

  temperatures: tuple[float, ...]
  mulan: Any = None
  melody: Any = None
  melody_stage: stage_lm.StageLM | None = None

  def __init__(
    self,
    codec: Any,
    stages: Mapping[str, stage_lm.StageLM | None],
    semantic_tokenizer: Any = None,
    fingerprints: Mapping[str, str] | None = None,
    acoustic: Mapping[str, acoustic_stage.AcousticStage] | None = None,
  ):
    """Composes the parts; `check_streams` compares them.

    Args:
      codec: see the class.
      stages: see the class; coarse and fine may be None beside back ends.
      semantic_tokenizer: see the class.
      fingerprints: see the class.
      acoustic: see the class.
    """
    self.codec = codec
    self.stages = {n: s for n, s in stages.items() if s is not None}
    self.acoustic = dict(acoustic or {})
    self.acoustic_choice = acoustic_backends.STAGES
    self.num_codebooks = 0
    self.semantic_tokenizer = semantic_tokenizer
    self.fingerprints = dict(fingerprints or {})

  def check_streams(self) -> None:
    """Raises UserError unless stages fit the tokenizers and each other."""
    owners = [self.codec, self.mulan, self.semantic_tokenizer, self.melody]
    stages = self.stages | self.acoustic
    if self.melody_stage is not None:
      stages[self.melody_stage.spec.name] = self.melody_stage
    for name, stage in stages.items():
      for owner in owners:
        if owner is None:
          continue
        stream = owner.stream
        found = stage.streams.get(stream.name, stream)
        if found != stream:
          raise errors.UserError(
            f"stage {name!r} was made for {found}, the tokenizer gives {stream}"
          )
    unique_stages.check_stages(stages)

  def with_acoustic(self, choice: str) -> typing.Self:
    """The same system, whose acoustic codes are made as chosen.

    Args:
      choice: of `acoustic_backends.CHOICES`: 'stages' for coarse and fine
        stage, or a back end, which draws as both of them are told to.

    Raises:
      UserError: if the choice is unknown, or the system lacks what it needs.
    """
    acoustic_backends.check(choice, self.stages, self.acoustic)
    system = copy.copy(self)
    system.acoustic_choice = choice
    return system

  def describe_acoustic(self) -> dict[str, Any]:
    """What makes acoustic codes, as JSON-compatible settings of a sound.

    Returns:
      'acoustic', the choice, and 'acoustic_decoding' if that back end has
      settings of its own.
    """
    found: dict[str, Any] = {"acoustic": self.acoustic_choice}
    if self.acoustic_choice in self.acoustic:
      decoding = self.acoustic[self.acoustic_choice].describe_decoding()
      if decoding:
        found["acoustic_decoding"] = decoding
    return found

  def with_codebooks(self, num_codebooks: int) -> typing.Self:
    """The same system, which decodes the first codebooks of acoustic codes.

    Stages that make none of these do not run; the others draw as before.

    Args:
      num_codebooks: of the codec; 0 for all.

    Raises:
      UserError: if the codec does not have so many.
    """
    most = self.codec.stream.num_codebooks
    if not 0 <= num_codebooks <= most:
      raise errors.UserError(
        f"num_codebooks={num_codebooks}: expected 1 to {most}, or 0 for all"
      )
    system = copy.copy(self)
    system.num_codebooks = num_codebooks
    return system

  def spread(self, devices: Sequence[Any]) -> None:
    """Splits the rows of each window over devices; codes stay what they are.

    Codec, MuLan and tokenizers stay on the first device.

    Args:
      devices: of this process, which all get the weights of what runs.

    Raises:
      UserError: if the system lacks what it needs for `acoustic_choice`.
    """
    if len(devices) < 2:
      return
    partitioner = partitioner_lib.Partitioner(mesh_lib.MeshConfig(), devices)
    melodies = [] if self.melody_stage is None else [self.melody_stage]
    for stage in (*self.stages_for(False).values(), *melodies):
      stage.spread(partitioner)

  def stages_of(
    self, request: Request
  ) -> dict[str, stage_windows.StageWindows]:
    """The stages that a request goes through, in order."""
    return self.stages_for(
      self.melody is not None
      and self.melody.stream.name in request.conditioning
    )

  def stages_for(
    self, has_melody: bool
  ) -> dict[str, stage_windows.StageWindows]:
    """What runs, in order; the first may be told a melody.

    Raises:
      UserError: if the system lacks what it needs for `acoustic_choice`.
    """
    stages = acoustic_backends.choose(
      self.acoustic_choice, self.stages, self.acoustic
    )
    if has_melody:
      stages["semantic"] = self.melody_stage
    most = self.num_codebooks or self.codec.stream.num_codebooks
    return {
      name: stage
      for name, stage in stages.items()
      if stage.spec.target.first_level < most
    }

  def steps(
    self, request: Request
  ) -> list[tuple[str, stage_windows.StageWindows, stage_windows.Sampling]]:
    """Name, stage and way to draw of what a request goes through, in order."""
    stages = self.stages_of(request)
    settings = acoustic_backends.settings_of(stages, request.sampling)
    return list(zip(stages, stages.values(), settings))

  def check_text(self) -> None:
    """Raises UserError unless the system knows text."""
    if self.mulan is None:
      raise errors.UserError(
        "a text is given, but this bundle has no mulan: it continues audio, "
        "or makes music of its own"
      )

  def check_request(self, request: Request) -> None:
    """Raises UserError if a number is out of range, or guidance impossible."""
    self.check(request.seconds, request.sampling)
    stages = self.stages_of(request)
    unique_stages.check_scenes(stages, request.conditioning)
    is_negative_given = bool(request.negative)
    stage_sampling.check_guidance(request.sampling, stages, is_negative_given)

  def check(
    self, seconds: float, sampling: stage_sampling.StageSampling
  ) -> None:
    """Raises UserError if a number is out of range."""
    if not (math.isfinite(seconds) and seconds > 0):
      raise errors.UserError(f"seconds={seconds}: expected a positive number")
    if round(seconds * self.codec.sample_rate_hz) < 1:
      raise errors.UserError(f"seconds={seconds}: shorter than one sample")
    unique_stages.check_seconds(self.stages, seconds, QUANTUM_SECS)
    stage_sampling.as_configs(sampling)

  def sample(self, request: Request) -> dict[str, np.ndarray]:
    """Runs the stages, each over the whole item.

    Args:
      request: what is known.

    Returns:
      Codes by stream that cover `request.seconds`, int32 `[batch, frames,
      codebooks]`, and `request.about`.

    Raises:
      UserError: if a number is out of range.
    """
    self.check_request(request)
    codes: dict[str, Any] = dict(request.conditioning)
    for name, stage, sampling in self.steps(request):
      parallel = is_parallel(name)
      run = stage.generate_parallel if parallel else stage.generate_long
      made = run(
        codes,
        request.num_frames(stage),
        sampling,
        request.stage_keys(name),
        request.given_codes(stage),
        request.negative,
      )
      stream = stage.target_stream.name
      if stage.spec.target.first_level:
        made = np.concatenate([codes[stream], made], axis=-1)
      codes[stream] = made
    return self.result_codes(request, codes)

  def result_codes(
    self, request: Request, codes: Mapping[str, tracks.Conditioning]
  ) -> dict[str, np.ndarray]:
    """Codes of whole seconds, as far as they are asked for; see `sample`."""
    codes = dict(codes)
    for stage in self.stages_of(request).values():
      if stage.spec.target.unique_consecutive:
        continue
      stream = stage.target_stream
      frames = needed_frames(request.seconds, stream.frame_rate_hz)
      codes[stream.name] = codes[stream.name][:, :frames]
    codes.update(request.about)
    return {
      name: np.asarray(array)
      for name, array in codes.items()
      if not isinstance(array, tracks.Scenes)
    }

  def run(self, request: Request) -> Generation:
    """Codes of a request, and their audio; raises as `sample`."""
    codes = self.sample(request)
    return Generation(
      self.decode(codes["acoustic"], request.seconds),
      self.codec.sample_rate_hz,
      codes,
      request.seeds,
    )

  def decode(self, acoustic_codes: np.ndarray, seconds: float) -> np.ndarray:
    """Acoustic codes to float32 `[batch, round(seconds * sample_rate_hz)]`."""
    num_samples = round(seconds * self.codec.sample_rate_hz)
    if self.num_codebooks:
      acoustic_codes = acoustic_codes[..., : self.num_codebooks]
    waveform = np.asarray(
      jax.device_get(self.codec.decode(acoustic_codes)), np.float32
    )
    if waveform.shape[1] < num_samples:
      raise ValueError(
        f"the codec gave {waveform.shape[1]} samples for "
        f"{acoustic_codes.shape[1]} frames: expected at least {num_samples}"
      )
    return np.clip(waveform[:, :num_samples], -1.0, 1.0)


def plan_of(
  name: str,
  stage: stage_windows.StageWindows,
  request: Request,
  told: Mapping[str, tracks.Conditioning],
) -> Sequence[continuation.Window]:
  """Windows of a stage in which a request is made, given codes left out.

  Args:
    name: of the stage.
    stage: of a system.
    request: what is made.
    told: what stages are told by the time it begins; where that changes along
      the item, windows end.
  """
  given = request.given_codes(stage)
  num_given = 0 if given is None else given.shape[1]
  total = request.num_frames(stage)
  if is_parallel(name):
    return stage.plan_parallel(total, num_given)
  return stage.plan(told, total, num_given)


def seam_secs(
  system: Cascade, request: Request
) -> Iterator[tuple[str, tuple[float, ...]]]:
  """Where the windows of a request join, stage by stage.

  Yields:
    A stage's name and the times, ascending, at which a window goes on from
    what is there already.
  """
  for name, stage in system.stages_of(request).items():
    plan = plan_of(name, stage, request, request.conditioning)
    if stage.spec.target.unique_consecutive:
      plan = ()
    times = [w.new_start / stage.target_stream.frame_rate_hz for w in plan]
    yield name, tuple(t for t in times if 0 < t < request.seconds)
