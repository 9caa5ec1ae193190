# SPDX-License-Identifier: Apache-2.0
"""What the generate verb is asked for: texts, audio files, mixtures."""

import dataclasses
from collections.abc import Mapping

from musiclm_jax.audio import files
from musiclm_jax.cli import jobs, prompt_files
from musiclm_jax.core import errors
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import recordings


def _content(text: str) -> str | recordings.Recording:
  """A text, or the recording in a file; the ending tells one from the other."""
  is_file = files.has_ending(text)
  return recordings.Recording.read(text) if is_file else text


def negative(job: jobs.GenerateJob) -> prompts_lib.Prompt | None:
  """What is not wanted, or None.

  Raises:
    UserError: if it cannot be used.
  """
  text = job.negative_prompt.strip()
  return prompts_lib.as_prompt(_content(text)) if text else None


def _part(text: str) -> tuple[float, str | recordings.Recording]:
  """'0.7:a flute' or '0.3:this.wav'.

  Raises:
    UserError: if there is no weight, or the file cannot be used.
  """
  weight, colon, content = text.partition(":")
  try:
    number = float(weight)
  except ValueError:
    number = None
  if number is None or not colon or not content.strip():
    raise errors.UserError(
      f"--mix={text}: expected WEIGHT:TEXT or WEIGHT:FILE, as '0.7:a flute' "
      "or '0.3:this.wav'"
    )
  return number, _content(content.strip())


@dataclasses.dataclass(frozen=True)
class Asked:
  """One prompt, and what was said of its item alone.

  Attributes:
    prompt: what to make.
    seconds: length of the item, or None.
    seed: of the item, or None.
    source: what a text was written for, by column of the prompt file.
  """

  prompt: prompts_lib.Prompt
  seconds: float | None = None
  seed: int | None = None
  source: Mapping[str, str] = dataclasses.field(default_factory=dict)


def asked(job: jobs.GenerateJob) -> list[Asked]:
  """--prompt, --prompts, --audio_prompt, then the mix; all of them.

  Raises:
    UserError: if one cannot be used.
  """
  for text in job.prompt:
    if not text.strip():
      raise errors.UserError(f"--prompt={text!r}: expected a non-empty text")
  values: list[prompts_lib.AnyPrompt] = list(job.prompt)
  rows = prompt_files.read_rows(job.prompts) if job.prompts else []
  values += [
    recordings.Recording.read(row.audio) if row.audio else row.prompt
    for row in rows
  ]
  values += map(recordings.Recording.read, job.audio_prompt)
  if job.mix:
    values.append(prompts_lib.mix(*map(_part, job.mix)))
  if not values:
    return []
  found = [Asked(prompt) for prompt in prompts_lib.as_prompts(values)]
  for index, row in enumerate(rows, len(job.prompt)):
    prompt = found[index].prompt
    found[index] = Asked(prompt, row.seconds, row.seed, row.source)
  return found
