# SPDX-License-Identifier: Apache-2.0
"""AudioLM: music without text, from nothing or from the begin of a recording.

Semantic -> coarse -> fine -> codec (arXiv 2209.03143), the stages of MusicLM
without MuLan. Repeated semantic codes are kept, as in MusicLM, unless the
stages were trained without (`stages.Segment.unique_consecutive`), as AudioLM's.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.core import errors
from musiclm_jax.systems import (
  acoustic_backends,
  acoustic_stage,
  cascade,
  musiclm,
  stage_lm,
  stage_sampling,
  stage_weights,
)
from musiclm_jax.systems import bundle as bundle_lib

# Of semantic, coarse and fine stage, as published.
TEMPERATURES = (0.6, 0.8, 0.6)


class AudioLM(cascade.Cascade):
  """The frozen parts composed. Built by `load`, or from parts directly.

  What it makes of audio is in `audio_prompt.py`: `continuation` and
  `resynthesis`.
  """

  temperatures = TEMPERATURES

  def __init__(
    self,
    codec: Any,
    semantic_stage: stage_lm.StageLM,
    coarse_stage: stage_lm.StageLM | None,
    fine_stage: stage_lm.StageLM | None,
    semantic_tokenizer: Any = None,
    fingerprints: Mapping[str, str] | None = None,
    acoustic: Mapping[str, acoustic_stage.AcousticStage] | None = None,
  ):
    """Checks that streams agree and that the stages need no MuLan.

    Raises:
      UserError: if a stage was made for another stream of the same name, or
        is told what an AudioLM does not know.
    """
    stages = {
      "semantic": semantic_stage,
      "coarse": coarse_stage,
      "fine": fine_stage,
    }
    super().__init__(codec, stages, semantic_tokenizer, fingerprints, acoustic)
    for name, stage in (self.stages | self.acoustic).items():
      found = [segment.stream for segment in stage.spec.segments]
      others = sorted(set(found) - {"semantic", "acoustic"})
      if others:
        raise errors.UserError(
          f"stage {name!r} reads {', '.join(others)}: expected one trained "
          "without, for AudioLM"
        )
    self.check_streams()

  @classmethod
  def load(
    cls, directory: str | os.PathLike, weights: str = stage_weights.COMPUTE
  ) -> "AudioLM":
    """Opens a bundle, verified (see `bundle.open_bundle`).

    Args:
      directory: of the bundle.
      weights: of the stages, how they lie in memory, of
        `stage_weights.CHOICES`; acoustic back ends are as they compute.

    Raises:
      UserError: if the bundle is missing, damaged, inconsistent, or its stages
        need MuLan.
    """
    from musiclm_jax.systems import tokenizers

    bundle = bundle_lib.open_bundle(directory)
    paths = bundle.paths
    return cls(
      tokenizers.SoundStreamTokenizer.load(paths["soundstream"]),
      stage_lm.StageLM.load(paths["stage_semantic"], weights),
      *stage_lm.load_found(paths, ("stage_coarse", "stage_fine"), weights),
      tokenizers.SemanticTokenizer.load(paths["semantic"]),
      bundle.fingerprints,
      acoustic_backends.load_all(paths),
    )

  def request(
    self,
    num_items: int,
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling | None = None,
  ) -> cascade.Request:
    """What `generate` runs; arguments and errors are its own."""
    sampling = tuple(sampling or self.temperatures)
    self.check(seconds, sampling)
    if num_items < 1:
      raise errors.UserError(f"num_items={num_items}: expected at least 1")
    seeds = cascade.item_seeds(seed, num_items)
    return cascade.Request(seconds, seeds, sampling)

  def generate(
    self,
    num_items: int,
    seconds: float,
    seed: int | Sequence[int] = 0,
    sampling: stage_sampling.StageSampling | None = None,
  ) -> cascade.Generation:
    """Makes music of nothing but seeds.

    Args:
      num_items: how many.
      seconds: duration; beyond a stage's crop by continuation.
      seed: one per item, or one int: item i then has `seed + i`.
      sampling: of the semantic, coarse and fine stage.

    Raises:
      UserError: if a number is out of range.
    """
    return self.run(self.request(num_items, seconds, seed, sampling))


def load(
  directory: str | os.PathLike, weights: str = stage_weights.COMPUTE
) -> cascade.Cascade:
  """The system of any bundle: `MusicLM`, or `AudioLM` if it has no MuLan.

  Args:
    directory: of the bundle.
    weights: see `MusicLM.load`.

  Raises:
    UserError: if the bundle is missing, damaged or inconsistent.
  """
  if bundle_lib.has_part(directory, bundle_lib.MULAN):
    return musiclm.MusicLM.load(directory, weights)
  return AudioLM.load(directory, weights)
