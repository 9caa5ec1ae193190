# SPDX-License-Identifier: Apache-2.0
"""MusicLM: prompts, perhaps with a melody, in; waveforms out.

Text -> MuLan embedding -> RVQ codes -> semantic -> coarse -> fine -> codec
(MusicLM sec. 3.2 and 4.1). A melody goes into another semantic stage, beside
the text (appendix C).
"""

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.core import errors, rng
from musiclm_jax.systems import (
  acoustic_backends,
  acoustic_stage,
  melody_prompt,
  stage_lm,
  stage_sampling,
)
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import prompts as prompts_lib

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
      'acoustic', covering the waveform; 'melody' where one was given.
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


def _whole_secs(seconds: float) -> float:
  return math.ceil(seconds / QUANTUM_SECS) * QUANTUM_SECS


class MusicLM:
  """The frozen parts composed. Built by `load`, or from parts directly.

  Attributes:
    codec: encodes and decodes waveforms (`SoundStreamTokenizer`).
    mulan: embeds and quantizes text and audio (`MuLanTokenizer`).
    stages: by name, `StageLM`s 'semantic', 'coarse' and 'fine'; in place of the
      last two perhaps a back end (`with_acoustic`), or nothing.
    acoustic: back ends by name (`acoustic_backends.BACKENDS`).
    semantic_tokenizer: for evaluation and continuation; None if not given.
    melody: tokenizes melodies (`MelodyTokenizer`); None if not given.
    melody_stage: the semantic stage that is told a melody; None if not given.
    fingerprints: of the parts, by bundle name; empty if not from a bundle.
  """

  def __init__(
    self,
    codec,
    mulan,
    semantic_stage: stage_lm.StageLM,
    coarse_stage: stage_lm.StageLM | None,
    fine_stage: stage_lm.StageLM | None,
    semantic_tokenizer=None,
    fingerprints: dict[str, str] | None = None,
    melody=None,
    melody_stage: stage_lm.StageLM | None = None,
    acoustic: Mapping[str, acoustic_stage.AcousticStage] | None = None,
  ):
    """Checks that the streams of stages and tokenizers agree.

    Raises:
      UserError: if a stage was made for another stream of the same name.
    """
    self.codec, self.mulan = codec, mulan
    self.semantic_tokenizer = semantic_tokenizer
    self.fingerprints = dict(fingerprints or {})
    self.stages = {
      "semantic": semantic_stage,
      "coarse": coarse_stage,
      "fine": fine_stage,
    }
    self.stages = {n: s for n, s in self.stages.items() if s is not None}
    self.acoustic = dict(acoustic or {})
    self.melody, self.melody_stage = melody, melody_stage
    owners = [codec, mulan, semantic_tokenizer, melody]
    owners = [owner for owner in owners if owner is not None]
    stages = self.stages | self.acoustic
    if melody_stage is not None:
      stages[melody_stage.spec.name] = melody_stage
    for name, stage in stages.items():
      for owner in owners:
        stream = owner.stream
        found = stage.streams.get(stream.name, stream)
        if found != stream:
          raise errors.UserError(
            f"stage {name!r} was made for {found}, the tokenizer gives {stream}"
          )

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "MusicLM":
    """Opens a bundle, verified (see `bundle.open_bundle`).

    Raises:
      UserError: if the bundle is missing, damaged or inconsistent.
    """
    from musiclm_jax.systems import melody_tokenizer, tokenizers

    bundle = bundle_lib.open_bundle(directory)
    paths = bundle.paths
    melody = melody_stage = None
    if bundle_lib.MELODY in paths:
      path = paths[bundle_lib.MELODY]
      melody = melody_tokenizer.MelodyTokenizer.load(path)
    if bundle_lib.MELODY_STAGE in paths:
      melody_stage = stage_lm.StageLM.load(paths[bundle_lib.MELODY_STAGE])
    return cls(
      tokenizers.SoundStreamTokenizer.load(paths["soundstream"]),
      tokenizers.MuLanTokenizer.load(paths["mulan"]),
      stage_lm.StageLM.load(paths["stage_semantic"]),
      *(
        stage_lm.StageLM.load(paths[name]) if name in paths else None
        for name in ("stage_coarse", "stage_fine")
      ),
      tokenizers.SemanticTokenizer.load(paths["semantic"]),
      bundle.fingerprints,
      melody,
      melody_stage,
      acoustic_backends.load_all(paths),
    )

  def with_acoustic(self, choice: str) -> "MusicLM":
    """The same system, whose acoustic codes are made as chosen.

    Args:
      choice: of `acoustic_backends.CHOICES`: 'stages' for coarse and fine
        stage, or a back end, which draws as both of them are told to.

    Raises:
      UserError: if the choice is unknown, or the system lacks what it needs.
    """
    system = copy.copy(self)
    system.stages = acoustic_backends.choose(choice, self.stages, self.acoustic)
    return system

  def stages_for(self, has_melody: bool) -> dict[str, stage_lm.StageLM]:
    """The stages in order; the semantic one is told a melody if there is one.

    Raises:
      UserError: if there is no stage for it.
    """
    if not has_melody:
      return dict(self.stages)
    self.check_melody()
    return {**self.stages, "semantic": self.melody_stage}

  def check_melody(self) -> None:
    """Raises UserError unless a melody can be given."""
    if self.melody is None or self.melody_stage is None:
      lacking = bundle_lib.MELODY_STAGE
      if self.melody_stage is not None:
        lacking = bundle_lib.MELODY
      raise errors.UserError(
        f"a melody is given, but this bundle has no {lacking}: train and "
        "bundle one first, or give text only"
      )

  def generate(
    self,
    prompts: prompts_lib.AnyPrompt | Sequence[prompts_lib.AnyPrompt],
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling = stage_sampling.PUBLISHED,
    melody: melody_prompt.Melody | Sequence[melody_prompt.Melody] | None = None,
    negative: prompts_lib.AnyPrompt | None = None,
  ) -> Generation:
    """Makes music for each prompt.

    Args:
      prompts: one text, recording or `prompts.Prompt`, or one per item.
      seconds: duration; beyond a stage's crop by continuation.
      seed: one per item, or one int: item i then has `seed + i`. An item
        depends on its own prompt and seed only, not on its neighbours.
      sampling: of the semantic, coarse and fine stage; a number is the
        temperature.
      melody: that the music takes, one for all items or one per item; shorter
        than the music it is repeated, of a longer one the begin is used.
      negative: prompt for all items that guided stages move away from.

    Returns:
      Waveforms of exactly `round(seconds * sample_rate_hz)` samples, codes.

    Raises:
      UserError: if a prompt is empty, a number out of range, a melody is given
        to a system without a stage for it, or guidance is asked of a stage
        that was not trained for it.
    """
    prompts = prompts_lib.as_prompts(prompts)
    self._check(seconds)
    sampling = stage_sampling.as_configs(sampling)
    seeds = item_seeds(seed, len(prompts))
    stages = self.stages_for(melody is not None)
    stage_sampling.check_guidance(sampling, stages, negative is not None)
    melody_codes = negative_codes = None
    if melody is not None:
      melody_codes = self._melody_codes(melody, len(prompts), seconds)
    mulan_codes = prompts_lib.encode(self.mulan, prompts)
    if negative is not None:
      one = prompts_lib.encode(self.mulan, prompts_lib.as_prompts(negative))
      negative_codes = np.repeat(one, len(prompts), axis=0)
    codes = self.generate_codes(
      mulan_codes, seconds, seeds, sampling, melody_codes, negative_codes
    )
    return Generation(
      self.decode(codes["acoustic"], seconds),
      self.codec.sample_rate_hz,
      codes,
      seeds,
    )

  def _melody_codes(
    self,
    melody: melody_prompt.Melody | Sequence[melody_prompt.Melody],
    num_items: int,
    seconds: float,
  ) -> np.ndarray:
    self.check_melody()
    if isinstance(melody, melody_prompt.Melody):
      one = melody_prompt.encode(self.melody, [melody], _whole_secs(seconds))
      return np.repeat(one, num_items, axis=0)
    if len(melody) != num_items:
      raise errors.UserError(
        f"{len(melody)} melodies given: expected one per prompt ({num_items})"
      )
    return melody_prompt.encode(self.melody, melody, _whole_secs(seconds))

  def _check(self, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
      raise errors.UserError(f"seconds={seconds}: expected a positive number")
    if round(seconds * self.codec.sample_rate_hz) < 1:
      raise errors.UserError(f"seconds={seconds}: shorter than one sample")

  def generate_codes(
    self,
    mulan_codes: np.ndarray,
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling = stage_sampling.PUBLISHED,
    melody_codes: np.ndarray | None = None,
    negative_codes: np.ndarray | None = None,
  ) -> dict[str, np.ndarray]:
    """Runs the three stages.

    Args:
      mulan_codes: int32 `[batch, 1, codebooks]`, of text or audio.
      seconds: see `generate`.
      seed: see `generate`.
      sampling: see `generate`.
      melody_codes: int32 `[batch, windows, codebooks]`, a window a second
        (`melody_prompt.encode`); None for text alone.
      negative_codes: int32 `[batch, 1, codebooks]`, MuLan codes that guided
        stages move away from; None: they do without their dropped streams.

    Returns:
      Codes by stream that cover `seconds`, int32 `[batch, frames, codebooks]`.

    Raises:
      UserError: if a number is out of range.
    """
    self._check(seconds)
    sampling = stage_sampling.as_configs(sampling)
    mulan_codes = np.asarray(mulan_codes, np.int32)
    seeds = item_seeds(seed, mulan_codes.shape[0])
    whole_secs = _whole_secs(seconds)
    codes = {self.mulan.stream.name: mulan_codes}
    stages = self.stages_for(melody_codes is not None)
    stage_sampling.check_guidance(sampling, stages, negative_codes is not None)
    if melody_codes is not None:
      codes[self.melody.stream.name] = np.asarray(melody_codes, np.int32)
    negative = None
    if negative_codes is not None:
      negative = {self.mulan.stream.name: np.asarray(negative_codes, np.int32)}
    roots = [rng.root_key(item) for item in seeds]
    configs = acoustic_backends.settings_of(stages, sampling, self.acoustic)
    for (name, stage), config in zip(stages.items(), configs):
      keys = jnp.stack([rng.named(root, name) for root in roots])
      run = stage.generate_parallel if name == "fine" else stage.generate_long
      stream = stage.target_stream
      frames = stream.num_frames(whole_secs)
      made = run(codes, frames, config, keys, negative)
      if stage.spec.target.first_level:
        made = np.concatenate([codes[stream.name], made], axis=-1)
      codes[stream.name] = made
    for stage in stages.values():
      stream = stage.target_stream
      frames = max(1, math.ceil(round(seconds * stream.frame_rate_hz, 6)))
      codes[stream.name] = codes[stream.name][:, :frames]
    return codes

  def decode(self, acoustic_codes: np.ndarray, seconds: float) -> np.ndarray:
    """Acoustic codes to float32 `[batch, round(seconds * sample_rate_hz)]`."""
    num_samples = round(seconds * self.codec.sample_rate_hz)
    waveform = np.asarray(
      jax.device_get(self.codec.decode(acoustic_codes)), np.float32
    )
    if waveform.shape[1] < num_samples:
      raise ValueError(
        f"the codec gave {waveform.shape[1]} samples for "
        f"{acoustic_codes.shape[1]} frames: expected at least {num_samples}"
      )
    return np.clip(waveform[:, :num_samples], -1.0, 1.0)
