# SPDX-License-Identifier: Apache-2.0
"""What the generate job makes beside text: stories, continuations, AudioLM.

A job flows in; out flow the texts of its items, what their sidecars tell of
the mode, and for a loaded system the requests to run.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.cli import jobs
from musiclm_jax.core import errors
from musiclm_jax.systems import prompts as prompts_lib
from musiclm_jax.systems import stage_sampling

# Flags that cannot be given together: each says what an item is made of.
_MODES = ("story", "continue_from", "resynthesize", "melody")


def _sha256(path: str) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Mode:
  """One way to make items.

  Attributes:
    name: 'text', 'story', 'continue_from' or 'resynthesize'.
    source: story, melody, or audio prompt, read; None for text.
    about: for sidecars.
    needs_text: whether every item needs a prompt; no item has one in a story.
  """

  name: str
  source: Any
  about: dict[str, Any]
  needs_text: bool = True

  @property
  def default_text(self) -> str:
    """The prompt of an item for which none is given."""
    return " / ".join(self.source.texts) if self.name == "story" else ""

  def request(
    self,
    system: Any,
    prompts: Sequence[prompts_lib.Prompt | None],
    seconds: float,
    seeds: Sequence[int],
    sampling: stage_sampling.StageSampling,
  ) -> Any:
    """What `system.run` makes of some items; see `cascade.Request`.

    Raises:
      UserError: if the system cannot do this.
    """
    from musiclm_jax.systems import audio_prompt, story

    if self.name == "story":
      return story.request(system, self.source, seconds, seeds, sampling)
    told = [] if None in prompts else list(prompts)
    if self.name == "continue_from":
      make = audio_prompt.continuation
    elif self.name == "resynthesize":
      make = audio_prompt.resynthesis
    elif not told:
      if system.mulan is not None:
        raise errors.UserError("no prompt given: pass --prompt or another")
      return system.request(len(prompts), seconds, seeds, sampling)
    else:
      system.check_text()
      return system.request(told, seconds, seeds, sampling, self.source)
    return make(system, self.source, seconds, told, seeds, sampling)


def read(job: jobs.GenerateJob) -> Mode:
  """The mode of a job, with its files read.

  Raises:
    UserError: if modes exclude each other, or a file cannot be used.
  """
  given = [name for name in _MODES if getattr(job, name)]
  if len(given) > 1:
    raise errors.UserError(
      f"--{given[0]} and --{given[1]} are given: expected one of them"
    )
  if not given:
    from musiclm_jax.systems import bundle

    try:
      needs_text = bundle.has_part(job.bundle, bundle.MULAN)
    except errors.UserError:
      needs_text = True  # What is wrong is said when the bundle is opened.
    return Mode("text", None, {}, needs_text)
  name, path = given[0], getattr(job, given[0])
  if name == "story":
    from musiclm_jax.systems import story

    if job.prompt or job.prompts or job.audio_prompt or job.mix:
      raise errors.UserError(
        f"--story={path} with a prompt: expected the texts in the story"
      )
    told = story.read(path)
    about = {"story": told.to_list(), "story_fingerprint": told.fingerprint}
    return Mode(name, told, about, False)
  if name == "melody":
    from musiclm_jax.systems import melody_prompt

    melody = melody_prompt.read(path)
    return Mode("text", melody, {name: path, "melody_sha256": melody.sha256})
  from musiclm_jax.systems import audio_prompt

  audio = audio_prompt.read(path)
  return Mode(name, audio, {name: path, f"{name}_sha256": _sha256(path)}, False)
