# SPDX-License-Identifier: Apache-2.0
"""What a visitor of the studio asks for: a form in, a checked wish out.

Values come over the network and may be anything, whatever the form looks like.
"""

import dataclasses
import math
import re
from typing import Any

from musiclm_jax.audio import uploads as uploads_lib
from musiclm_jax.core import errors
from musiclm_jax.systems import story as story_lib

PROMPT, STORY, CONTINUATION = "Prompt", "Story", "Continue"
MODES = (PROMPT, STORY, CONTINUATION)
MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 20.0
_SCENE = re.compile(
  r"(?:(\d{1,4}):)?(\d{1,6}(?:\.\d{1,6})?)(?:\s*s)?[\s:]\s*(\S.*)"
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much one visitor may ask for at once.

  Attributes:
    max_secs: of music.
    max_candidates: to choose from.
    max_chars: of a prompt.
    max_scenes: of a story.
    uploads: of audio.
  """

  max_secs: float = 60.0
  max_candidates: int = 8
  max_chars: int = 1000
  max_scenes: int = 16
  uploads: uploads_lib.Limits = uploads_lib.Limits()

  def __post_init__(self):
    for name in ("max_secs", "max_candidates", "max_chars", "max_scenes"):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"{name}={value}: expected >= 1")


@dataclasses.dataclass(frozen=True)
class Form:
  """As it comes: of any type.

  Attributes:
    mode: one of `MODES`.
    prompt: for `PROMPT`, and for `CONTINUATION` if wanted.
    story: for `STORY`, see `read_story`.
    transition_secs: of the story.
    negative: what is not wanted, or ''.
    guidance: of the stages that know the prompt.
    secs: of music, with what is continued.
    seed: of the first candidate.
    num_candidates: to make.
    melody: path of an upload, for `PROMPT`; or None.
    continuation: path of an upload, for `CONTINUATION`.
  """

  mode: Any = PROMPT
  prompt: Any = ""
  story: Any = ""
  transition_secs: Any = 0.0
  negative: Any = ""
  guidance: Any = 1.0
  secs: Any = 10.0
  seed: Any = 0
  num_candidates: Any = 1
  melody: Any = None
  continuation: Any = None


@dataclasses.dataclass(frozen=True)
class Wish:
  """As `Form`, in mode, types and ranges as they should be."""

  mode: str
  prompt: str
  story: story_lib.Story | None
  negative: str
  guidance: float
  secs: float
  seed: int
  num_candidates: int
  melody: str | None
  continuation: str | None


def _text(name: str, value: Any, max_chars: int) -> str:
  if value is None:
    return ""
  if not isinstance(value, str):
    raise errors.UserError(f"{name}: expected a text")
  if len(value) > max_chars:
    raise errors.UserError(
      f"{name} has {len(value)} characters: expected at most {max_chars}"
    )
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise errors.UserError(f"{name} is no text: expected Unicode") from error
  return value.strip()


def _number(name: str, value: Any, low: float, high: float) -> float:
  wanted = f"expected a number from {low:g} to {high:g}"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.UserError(f"{name}: {wanted}")
  if not low <= value <= high:  # NaN is not either.
    shown = f"{value:g}" if abs(value) < 1e15 else "out of range"
    raise errors.UserError(f"{name} is {shown}: {wanted}")
  return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
  number = _number(name, value, low, high)
  if number != int(number):
    raise errors.UserError(f"{name} is {number:g}: expected a whole number")
  return int(number)


def _upload(name: str, value: Any) -> str | None:
  if value is None or value == "":
    return None
  if not isinstance(value, str):
    raise errors.UserError(f"{name}: expected an uploaded file")
  return value


def read_story(
  text: str, transition_secs: float, max_scenes: int
) -> story_lib.Story:
  """A story of lines `SECONDS TEXT` or `MINUTES:SECONDS TEXT`.

  Args:
    text: the lines; empty ones are skipped.
    transition_secs: in which each prompt but the first turns into the next.
    max_scenes: prompts at most.

  Raises:
    UserError: naming the line, if there is anything else.
  """
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if len(lines) > max_scenes:
    raise errors.UserError(
      f"the story has {len(lines)} lines: expected at most {max_scenes}"
    )
  scenes = []
  for number, line in enumerate(lines, 1):
    found = _SCENE.fullmatch(line)
    if found is None:
      raise errors.UserError(
        f"line {number} of the story: expected a time and a text, as "
        "'0:10 a loud brass band'"
      )
    minutes, secs, said = found.groups()
    at = 60.0 * int(minutes or 0) + float(secs)
    transition = transition_secs if scenes else 0.0
    scenes.append(story_lib.Scene(at, said, transition))
  return story_lib.Story(tuple(scenes))


def read(form: Form, limits: Limits) -> Wish:
  """Checks a form; of the fields, those that its mode uses.

  Raises:
    UserError: one line that names the field.
  """
  if form.mode not in MODES:
    raise errors.UserError(f"mode: expected one of {', '.join(MODES)}")
  prompt, story, melody, continuation = "", None, None, None
  secs = float(_number("length", form.secs, 1, limits.max_secs))
  if form.mode == STORY:
    most = limits.max_chars * limits.max_scenes
    told = _text("the story", form.story, most)
    transition = _number("transition", form.transition_secs, 0, secs)
    story = read_story(told, float(transition), limits.max_scenes)
    for index, text in enumerate(story.texts, 1):
      _text(f"prompt {index} of the story", text, limits.max_chars)
    if story.scenes[-1].at >= secs:
      raise errors.UserError(
        f"the last prompt of the story is at {story.scenes[-1].at:g} s: "
        f"expected before the end ({secs:g} s)"
      )
  else:
    prompt = _text("the prompt", form.prompt, limits.max_chars)
  if form.mode == PROMPT:
    melody = _upload("melody", form.melody)
  if form.mode == CONTINUATION:
    continuation = _upload("audio to continue", form.continuation)
    if continuation is None:
      raise errors.UserError("no audio to continue: upload or record some")
  return Wish(
    form.mode,
    prompt,
    story,
    _text("the negative prompt", form.negative, limits.max_chars),
    float(_number("guidance", form.guidance, 0, MAX_GUIDANCE)),
    secs,
    _whole("seed", form.seed, 0, MAX_SEED),
    _whole("candidates", form.num_candidates, 1, limits.max_candidates),
    melody,
    continuation,
  )
