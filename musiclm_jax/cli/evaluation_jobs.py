# SPDX-License-Identifier: Apache-2.0
"""Settings of an evaluation by prompts, from flags or gin.

`musiclm evaluate` has two ways: tokenizers and stages on a corpus
(`jobs.EvaluateJob`), and prompts, here. Imports nothing heavy.
"""

import argparse
import dataclasses
from typing import Any

from musiclm_jax.cli import jobs
from musiclm_jax.core import errors

ROOT = "evaluation_jobs.EvaluatePromptsJob"
CONDITIONS = ("text", "audio")


def _flag(text: str, default: Any = dataclasses.MISSING) -> Any:
  return dataclasses.field(default=default, metadata={"help": text})


def _as_generated(name: str) -> Any:
  """A field with default and help of the generate verb's."""
  fields = {field.name: field for field in dataclasses.fields(jobs.GenerateJob)}
  found = fields[name]
  return dataclasses.field(default=found.default, metadata=found.metadata)


# Of the generate verb: what decides how clips sound, and how they are made.
DRAWING = (
  "max_prompts",
  "seconds",
  "seed",
  "acoustic",
  "temperatures",
  "top_k",
  "top_p",
  "guidance",
  "negative_prompt",
  "num_codebooks",
  "num_samples",
  "num_candidates",
  "batch_size",
  "stale_secs",
)


@dataclasses.dataclass(frozen=True)
class EvaluatePromptsJob:
  """Prompts, a bundle and a reference set to metric cards and a page."""

  output_dir: str = _flag("gets the samples, the numbers and the page")
  bundle: str = _flag(
    "folder of the bundle to generate with; '' with --samples_dir", ""
  )
  prompts: str = _flag(
    "file of prompts, the MusicCaps CSV, or the name of a shipped set (hard, "
    "ideas, score_corpus_test); '' for none",
    "",
  )
  reference: str = _flag(
    "folder of reference audio (named by ytid for MusicCaps), or a prepared "
    "corpus; '' for none: distances to it are left out",
    "",
  )
  split: str = _flag("of a reference corpus", "test")
  subset: str = _flag(
    "rows of the MusicCaps table: all, balanced, eval or train", "all"
  )
  samples_dir: tuple[str, ...] = _flag(
    "a folder of finished files to score in place of --bundle", ()
  )
  run: tuple[str, ...] = _flag(
    "output_dir of a finished evaluation, to compare with others", ()
  )
  embedder: tuple[str, ...] = _flag(
    "what listens, as mulan:BUNDLE or musicnn:FOLDER (docs/embedders.md)", ()
  )
  metrics: str = _flag(
    "comma-separated, of fad, fad_infinity, kad, text, kld, diversity and "
    "song_fad; '' for all but the last",
    "",
  )
  condition: str = _flag(
    "text, or audio: the reference clip that a prompt was written for takes "
    "the place of its text",
    "text",
  )
  embeddings_dir: str = _flag(
    "keeps what was heard of each clip; '' for a folder in output_dir", ""
  )
  embed_batch_size: int = _flag("clips heard at once", 8)
  shard_size: int = _flag("clips of a shard of embeddings", 256)
  max_bad_fraction: float = _flag("of clips that may be unusable", 0.1)
  num_shown: int = _flag("most clips on the page; the worst of all", 1000)
  memorization: str = _flag(
    "JSON of `musiclm memorization`, shown on the page; '' for none", ""
  )
  max_prompts: int = _as_generated("max_prompts")
  seconds: float = _as_generated("seconds")
  seed: int = _as_generated("seed")
  acoustic: str = _as_generated("acoustic")
  temperatures: str = _as_generated("temperatures")
  top_k: str = _as_generated("top_k")
  top_p: str = _as_generated("top_p")
  guidance: str = _as_generated("guidance")
  negative_prompt: str = _as_generated("negative_prompt")
  num_codebooks: int = _as_generated("num_codebooks")
  num_samples: int = _as_generated("num_samples")
  num_candidates: int = _as_generated("num_candidates")
  batch_size: int = _as_generated("batch_size")
  stale_secs: float = _as_generated("stale_secs")

  def __post_init__(self):
    """Raises UserError for numbers and flags that do not fit."""
    for name in ("samples_dir", "run", "embedder"):
      value = getattr(self, name)
      value = (value,) if isinstance(value, str) else tuple(value)
      object.__setattr__(self, name, value)
    for name in ("temperatures", "top_k", "top_p", "guidance", "metrics"):
      object.__setattr__(self, name, jobs.as_text(getattr(self, name)))
    for name in ("embed_batch_size", "shard_size", "num_samples", "num_shown"):
      if getattr(self, name) < 1:
        raise errors.UserError(f"{name}={getattr(self, name)}: expected >= 1")
    if not 0 <= self.max_bad_fraction <= 1:
      raise errors.UserError(
        f"max_bad_fraction={self.max_bad_fraction}: expected in [0, 1]"
      )
    if self.condition not in CONDITIONS:
      raise errors.UserError(
        f"condition={self.condition!r}: expected text or audio"
        f"{errors.nearest(self.condition, CONDITIONS)}"
      )
    self._check_parts()

  def _check_parts(self) -> None:
    if self.run:
      mixed = self.bundle or self.prompts or self.samples_dir
      if mixed or len(self.run) < 2:
        raise errors.UserError(
          f"--run given {len(self.run)} times"
          f"{' with ' + mixed if isinstance(mixed, str) and mixed else ''}: "
          "expected two or more finished evaluations, and nothing else to "
          "score"
        )
      return
    if bool(self.bundle) == bool(self.samples_dir):
      raise errors.UserError("expected one of --bundle and --samples_dir")
    if self.bundle and not self.prompts:
      raise errors.UserError(f"--bundle={self.bundle} without --prompts")
    if self.condition == "audio" and not self.reference:
      raise errors.UserError(
        "--condition=audio without --reference: expected the clips that take "
        "the place of the texts"
      )

  def drawing(self) -> dict[str, Any]:
    """Settings of the generate verb, by name."""
    return {name: getattr(self, name) for name in DRAWING}


@dataclasses.dataclass(frozen=True)
class AblateJob(EvaluatePromptsJob):
  """An evaluation by prompts, and what is changed in its variants."""

  arm: tuple[str, ...] = _flag(
    "a variant, as 'cooler: temperatures=0.7,0.7,0.4'; changes bundle, "
    "condition, and what decides how clips are made",
    (),
  )
  sweep: tuple[str, ...] = _flag(
    "a variant for each value, as 'num_codebooks=1;4'", ()
  )

  def __post_init__(self):
    """Raises UserError for numbers and flags that do not fit."""
    super().__post_init__()
    for name in ("arm", "sweep"):
      value = getattr(self, name)
      value = (value,) if isinstance(value, str) else tuple(value)
      object.__setattr__(self, name, value)
    if not self.bundle:
      raise errors.UserError("--bundle: expected a value")


def is_asked(args: argparse.Namespace) -> bool:
  """Whether a command line of `musiclm evaluate` is about prompts."""
  for name in ("prompts", "reference", "run", "embedder"):
    if getattr(args, name) is not None:
      return True
  if not args.gin_file:
    return False
  from musiclm_jax.cli import gin_config

  paths = [path for path in args.gin_search_paths.split(",") if path]
  return gin_config.binds(args.gin_file, paths, ROOT)
