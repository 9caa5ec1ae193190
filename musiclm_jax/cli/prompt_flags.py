# SPDX-License-Identifier: Apache-2.0
"""What the generate verb is asked for: texts, audio files, mixtures."""

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


def prompts(job: jobs.GenerateJob) -> list[prompts_lib.Prompt]:
  """One prompt per item: --prompt, --prompts, --audio_prompt, then the mix.

  Raises:
    UserError: if one cannot be used.
  """
  for text in job.prompt:
    if not text.strip():
      raise errors.UserError(f"--prompt={text!r}: expected a non-empty text")
  values: list[prompts_lib.AnyPrompt] = list(job.prompt)
  if job.prompts:
    values += prompt_files.read(job.prompts)
  values += map(recordings.Recording.read, job.audio_prompt)
  if job.mix:
    values.append(prompts_lib.mix(*map(_part, job.mix)))
  if job.max_prompts:
    values = values[: job.max_prompts]
  return prompts_lib.as_prompts(values) if values else []
