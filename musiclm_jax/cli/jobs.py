# SPDX-License-Identifier: Apache-2.0
"""Settings of the verbs tokenize, generate and evaluate, from flags or gin.

Each field is a flag of the verb and, in upper case, a macro of its file in
`gin/runs/`. Imports nothing heavy.
"""

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any

from musiclm_jax.cli import arguments
from musiclm_jax.core import errors


def as_text(value: Any) -> str:
  """A comma-separated flag; gin files may give a sequence or a number."""
  if isinstance(value, (int, float)):
    return str(value)
  return value if isinstance(value, str) else ",".join(map(str, value))


def _texts(value: Any) -> tuple[str, ...]:
  """A repeatable flag; gin files may give one text."""
  return (value,) if isinstance(value, str) else tuple(value)


def _flag(text: str, default: Any = dataclasses.MISSING) -> Any:
  """A field with the help of its flag."""
  return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class TokenizeJob:
  """A corpus to a token cache."""

  corpus_dir: str = _flag("a prepared corpus, or a folder of audio files")
  artifact_dir: str = _flag(
    "folder with the artefacts soundstream and semantic, and mulan but for "
    "AudioLM"
  )
  output_dir: str = _flag(
    "the token cache; several processes may share it and its work"
  )
  splits: str = _flag("comma-separated; '' for all splits of the corpus", "")
  batch_size: int = _flag(
    "windows per device and call of a tokenizer; 0 for 16; on a CPU always 1", 0
  )
  max_bad_fraction: float = _flag(
    "of inputs that may be unusable before the job fails", 0.1
  )
  shard_size: int = _flag("inputs per shard", 64)
  acoustic_window_secs: float = _flag(
    "audio per window of the codec; does not change codes", 16.0
  )
  semantic_window_secs: float = _flag(
    "audio that a semantic token sees; longer files are cut", 10.0
  )
  semantic_halo_secs: float = _flag(
    "at both ends of such a window, context only", 1.0
  )
  num_readers: int = _flag(
    "threads that decode and resample; 0 for one per core", 0
  )
  stale_secs: float = _flag(
    "silence after which the shard of another process is taken over", 120.0
  )
  compile_cache: str = _flag("keep compiled programs here; '' for none", "")

  def __post_init__(self):
    object.__setattr__(self, "splits", as_text(self.splits))
    for name, least in (("batch_size", 0), ("shard_size", 1)):
      if getattr(self, name) < least:
        raise errors.UserError(
          f"{name}={getattr(self, name)}: expected >= {least}"
        )
    if self.num_readers < 0:
      raise errors.UserError(f"num_readers={self.num_readers}: expected >= 0")
    for name in ("acoustic_window_secs", "semantic_window_secs", "stale_secs"):
      if not getattr(self, name) > 0:
        raise errors.UserError(f"{name}={getattr(self, name)}: expected > 0")
    if self.semantic_halo_secs < 0:
      raise errors.UserError(
        f"semantic_halo_secs={self.semantic_halo_secs}: expected >= 0"
      )
    if not 0 <= self.max_bad_fraction <= 1:
      raise errors.UserError(
        f"max_bad_fraction={self.max_bad_fraction}: expected in [0, 1]"
      )


@dataclasses.dataclass(frozen=True)
class GenerateJob:
  """Prompts to music; checked further where it is made."""

  bundle: str = _flag("folder of the bundle")
  prompt: tuple[str, ...] = _flag("texts", ())
  prompts: str = _flag(
    "file with one text per line, JSONL or the MusicCaps CSV; '' for none", ""
  )
  audio_prompt: tuple[str, ...] = _flag(
    "audio files that take the place of a text, an item each", ()
  )
  mix: tuple[str, ...] = _flag(
    "part of one more item, as '0.7:a flute' or '0.3:this.wav'", ()
  )
  max_prompts: int = _flag("use only the first so many; 0 takes all", 0)
  melody: str = _flag(
    "audio file, hummed or played, whose melody the items take; '' for none", ""
  )
  story: str = _flag(
    "YAML file of timed prompts, in place of --prompt; '' for none", ""
  )
  continue_from: str = _flag(
    "audio file that each item begins with and goes on from; '' for none", ""
  )
  resynthesize: str = _flag(
    "audio file whose semantic tokens are made audible again, for at most "
    "--seconds; '' for none",
    "",
  )
  acoustic: str = _flag(
    "what makes acoustic codes: stages (the paper's coarse and fine), "
    "depthwise or soundstorm, where the bundle has them",
    "stages",
  )
  weights: str = _flag(
    "of the stages in memory: float32, bfloat16, int8, or compute for the "
    "dtype that they compute in (docs/decoding_speed.md)",
    "compute",
  )
  seconds: float = _flag("length of each item, with what it continues", 10.0)
  seed: int = _flag("of the first item; then counts up", 0)
  temperatures: str = _flag(
    "of the semantic, coarse and fine stage, comma-separated; '' for those of "
    "the papers: 1.0,0.95,0.4, without text (AudioLM) 0.6,0.8,0.6",
    "",
  )
  top_k: str = _flag(
    "keep so many most likely codes, 0 for all; of each stage, or for all", "0"
  )
  top_p: str = _flag(
    "keep the likeliest codes of so much probability; as top_k", "1.0"
  )
  guidance: str = _flag(
    "weight of the prompt, 1 for none, one number for the stages that are told "
    "it or three; needs stages trained with condition dropout",
    "1.0",
  )
  negative_prompt: str = _flag(
    "text or audio file that guided stages move away from; '' for none", ""
  )
  num_codebooks: int = _flag(
    "acoustic codebooks that are made audible, the first ones; 0 for all", 0
  )
  num_samples: int = _flag("items of each prompt, each with its own seed", 1)
  num_candidates: int = _flag("made of each item; MuLan chooses", 1)
  keep: int = _flag("best candidates of each item that are written", 1)
  batch_size: int = _flag("candidates made at once, by all devices", 8)
  output: str = _flag("a WAV file, for one prompt; '' for none", "")
  output_dir: str = _flag(
    "a folder, for any number; several processes may share it and its work; "
    "'' for none",
    "",
  )
  stale_secs: float = _flag(
    "silence after which the items of another process are taken over", 120.0
  )
  stream: str = _flag(
    "in place of --output, a WAV file that grows while its end is still being "
    "made, or - for raw 16-bit PCM on standard output; '' for none",
    "",
  )

  def __post_init__(self):
    for name in ("prompt", "audio_prompt", "mix"):
      object.__setattr__(self, name, _texts(getattr(self, name)))
    for name in ("temperatures", "top_k", "top_p", "guidance"):
      object.__setattr__(self, name, as_text(getattr(self, name)))
    if not self.stale_secs > 0:
      raise errors.UserError(f"stale_secs={self.stale_secs}: expected > 0")


@dataclasses.dataclass(frozen=True)
class EvaluateJob:
  """A bundle, a corpus and samples to metrics."""

  bundle: str = _flag("folder of the bundle")
  corpus_dir: str = _flag("a prepared corpus")
  cache_dir: str = _flag("its token cache")
  output_dir: str = _flag("gets evaluation.json")
  samples_dir: tuple[str, ...] = _flag(
    "folders of generated files with sidecars", ()
  )
  split: str = _flag("held-out split", "test")
  num_codec_clips: int = _flag("clips for the codec", 24)
  num_stage_crops: int = _flag("crops for each stage", 96)

  def __post_init__(self):
    object.__setattr__(self, "samples_dir", _texts(self.samples_dir))
    for name in ("num_codec_clips", "num_stage_crops"):
      if getattr(self, name) < 1:
        raise errors.UserError(f"{name}={getattr(self, name)}: expected >= 1")


ROOTS = {
  "train": "experiment.Experiment",
  "tokenize": "jobs.TokenizeJob",
  "generate": "jobs.GenerateJob",
  "evaluate": "jobs.EvaluateJob",
  "evaluate_prompts": "evaluation_jobs.EvaluatePromptsJob",
  "ablate": "evaluation_jobs.AblateJob",
}


def add_arguments(parser: argparse.ArgumentParser, job: type) -> None:
  """Adds the options of gin and a flag for each field of `job`.

  Flags that are not given stay None: a gin file or the default stands then.
  """
  arguments.add_gin_arguments(parser, required=False)
  add_fields(parser, job)


def add_fields(
  parser: argparse.ArgumentParser, job: type, known: Collection[str] = ()
) -> None:
  """Adds a flag for each field of `job` but those of names in `known`."""
  for field in dataclasses.fields(job):
    if field.name in known:
      continue
    text, options = field.metadata["help"], {}
    if str(field.type).startswith("tuple"):
      text, options = f"{text}; repeatable", {"action": "append"}
    else:
      options = {"type": field.type}
    if field.default not in (dataclasses.MISSING, "", ()):
      text += f" (default: {field.default})"
    parser.add_argument(f"--{field.name}", help=text, **options)


def build(job: type, args: argparse.Namespace) -> Any:
  """The job that a command line describes.

  Without gin files the flags are the fields. With them, a flag that was given
  replaces the macro of its name, so `--bundle=B` is `--gin.BUNDLE=B`.

  Args:
    job: one of the classes above.
    args: its flags, None where not given, and those of gin.

  Raises:
    UserError: if a field has no value, or a value does not fit.
  """
  fields = dataclasses.fields(job)
  given = {
    field.name: getattr(args, field.name)
    for field in fields
    if getattr(args, field.name) is not None
  }
  if args.gin_file:
    from musiclm_jax.cli import gin_config

    overrides = [f"{name.upper()}={value!r}" for name, value in given.items()]
    paths = [path for path in args.gin_search_paths.split(",") if path]
    root = f"{job.__module__.rpartition('.')[2]}.{job.__name__}"
    gin_config.resolve(
      args.gin_file, [*args.gin_overrides, *overrides], paths, root
    )
    return gin_config.build(job)
  if args.gin_overrides:
    raise errors.UserError(
      f"--gin.{args.gin_overrides[0]}: expected a --gin_file it belongs to"
    )
  missing = [
    f"--{field.name}"
    for field in fields
    if field.default is dataclasses.MISSING and field.name not in given
  ]
  if missing:
    raise errors.UserError(f"{', '.join(missing)}: expected a value")
  return job(**given)
