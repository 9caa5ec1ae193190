# SPDX-License-Identifier: Apache-2.0
"""MusicLM: prompts, perhaps with a melody, in; waveforms out.

Text -> MuLan embedding -> RVQ codes -> semantic -> coarse -> fine -> codec
(MusicLM sec. 3.2 and 4.1). A melody goes into another semantic stage, beside
the text (appendix C).
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.systems import (
  acoustic_backends,
  acoustic_stage,
  cascade,
  melody_prompt,
  stage_lm,
  stage_sampling,
  stage_weights,
)
from musiclm_jax.systems import bundle as bundle_lib
from musiclm_jax.systems import prompts as prompts_lib

# MusicLM sec. 4.1: semantic, coarse, fine.
TEMPERATURES = (1.0, 0.95, 0.4)
Generation = cascade.Generation
item_seeds = cascade.item_seeds


class MusicLM(cascade.Cascade):
  """The frozen parts composed. Built by `load`, or from parts directly.

  Attributes:
    codec: encodes and decodes waveforms (`SoundStreamTokenizer`).
    mulan: embeds and quantizes text and audio (`MuLanTokenizer`).
    stages: `StageLM`s by name: 'semantic', and perhaps 'coarse' and 'fine'.
    acoustic: back ends by name, beside or in place of 'coarse' and 'fine'.
    semantic_tokenizer: for evaluation and continuation; None if not given.
    melody: tokenizes melodies (`MelodyTokenizer`); None if not given.
    melody_stage: the semantic stage that is told a melody; None if not given.
    fingerprints: of the parts, by bundle name; empty if not from a bundle.
  """

  temperatures = TEMPERATURES

  def __init__(
    self,
    codec,
    mulan,
    semantic_stage: stage_lm.StageLM,
    coarse_stage: stage_lm.StageLM | None,
    fine_stage: stage_lm.StageLM | None,
    semantic_tokenizer=None,
    fingerprints: Mapping[str, str] | None = None,
    melody=None,
    melody_stage: stage_lm.StageLM | None = None,
    acoustic: Mapping[str, acoustic_stage.AcousticStage] | None = None,
  ):
    """Checks that the streams of stages and tokenizers agree.

    Raises:
      UserError: if a stage was made for another stream of the same name.
    """
    stages = {
      "semantic": semantic_stage,
      "coarse": coarse_stage,
      "fine": fine_stage,
    }
    super().__init__(codec, stages, semantic_tokenizer, fingerprints, acoustic)
    self.mulan = mulan
    self.melody, self.melody_stage = melody, melody_stage
    self.check_streams()

  @classmethod
  def load(
    cls, directory: str | os.PathLike, weights: str = stage_weights.COMPUTE
  ) -> "MusicLM":
    """Opens a bundle, verified (see `bundle.open_bundle`).

    Args:
      directory: of the bundle.
      weights: of the stages, how they lie in memory, of
        `stage_weights.CHOICES`; acoustic back ends are as they compute.

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
      path = paths[bundle_lib.MELODY_STAGE]
      melody_stage = stage_lm.StageLM.load(path, weights)
    return cls(
      tokenizers.SoundStreamTokenizer.load(paths["soundstream"]),
      tokenizers.MuLanTokenizer.load(paths["mulan"]),
      stage_lm.StageLM.load(paths["stage_semantic"], weights),
      *stage_lm.load_found(paths, ("stage_coarse", "stage_fine"), weights),
      tokenizers.SemanticTokenizer.load(paths["semantic"]),
      bundle.fingerprints,
      melody,
      melody_stage,
      acoustic_backends.load_all(paths),
    )

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
    sampling: stage_sampling.StageSampling = TEMPERATURES,
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
    return self.run(
      self.request(prompts, seconds, seed, sampling, melody, negative)
    )

  def request(
    self,
    prompts: prompts_lib.AnyPrompt | Sequence[prompts_lib.AnyPrompt],
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling = TEMPERATURES,
    melody: melody_prompt.Melody | Sequence[melody_prompt.Melody] | None = None,
    negative: prompts_lib.AnyPrompt | None = None,
  ) -> cascade.Request:
    """What `generate` runs; arguments and errors are its own."""
    prompts = prompts_lib.as_prompts(prompts)
    self.check(seconds, sampling)
    seeds = item_seeds(seed, len(prompts))
    stream = self.mulan.stream.name
    codes = {stream: prompts_lib.encode(self.mulan, prompts)}
    if melody is not None:
      melody_codes = self._melody_codes(melody, len(prompts), seconds)
      codes[self.melody.stream.name] = melody_codes
    unwanted = {}
    if negative is not None:
      one = prompts_lib.encode(self.mulan, prompts_lib.as_prompts(negative))
      unwanted = {stream: np.repeat(one, len(prompts), axis=0)}
    request = cascade.Request(
      seconds, seeds, tuple(sampling), codes, negative=unwanted
    )
    self.check_request(request)
    return request

  def _melody_codes(
    self,
    melody: melody_prompt.Melody | Sequence[melody_prompt.Melody],
    num_items: int,
    seconds: float,
  ) -> np.ndarray:
    self.check_melody()
    if isinstance(melody, melody_prompt.Melody):
      one = melody_prompt.encode(
        self.melody, [melody], cascade.whole_secs(seconds)
      )
      return np.repeat(one, num_items, axis=0)
    if len(melody) != num_items:
      raise errors.UserError(
        f"{len(melody)} melodies given: expected one per prompt ({num_items})"
      )
    return melody_prompt.encode(
      self.melody, melody, cascade.whole_secs(seconds)
    )

  def generate_codes(
    self,
    mulan_codes: np.ndarray,
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling = TEMPERATURES,
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
    mulan_codes = np.asarray(mulan_codes, np.int32)
    stream = self.mulan.stream.name
    codes, unwanted = {stream: mulan_codes}, {}
    if melody_codes is not None:
      self.check_melody()
      codes[self.melody.stream.name] = np.asarray(melody_codes, np.int32)
    if negative_codes is not None:
      unwanted[stream] = np.asarray(negative_codes, np.int32)
    seeds = item_seeds(seed, mulan_codes.shape[0])
    return self.sample(
      cascade.Request(seconds, seeds, tuple(sampling), codes, negative=unwanted)
    )
