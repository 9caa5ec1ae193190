# SPDX-License-Identifier: Apache-2.0
"""Story mode: timed prompts in, conditioning that changes along an item out.

MusicLM sec. 5.3: the conditioning changes while the music goes on. Where a
prompt begins, windows of all stages begin too; between two prompts MuLan's
space can be crossed in `transition_secs`. Story, seed and bundle determine the
codes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.decoding import tracks
from musiclm_jax.systems import cascade, stage_sampling

# Between the starts of two prompts; much less than a window cannot be heard.
MIN_SCENE_SECS = 1.0
MAX_BYTES = 1 << 20
_FIELDS = ("at", "text", "transition_secs")


@dataclasses.dataclass(frozen=True)
class Scene:
  """One prompt of a story.

  Attributes:
    at: seconds from the begin at which it sets in.
    text: the prompt.
    transition_secs: after `at` in which the one before turns into it; 0
      changes at once.
  """

  at: float
  text: str
  transition_secs: float = 0.0


@dataclasses.dataclass(frozen=True)
class Story:
  """Prompts along an item.

  Attributes:
    scenes: in order; the first at 0.
    name: what it is called in error messages.
  """

  scenes: tuple[Scene, ...]
  name: str = "the story"

  def __post_init__(self):
    """Checks the order.

    Raises:
      UserError: naming the prompt, if times do not ascend from 0, a text is
        empty, or a transition does not fit before the next prompt.
    """
    object.__setattr__(self, "scenes", tuple(self.scenes))
    if not self.scenes:
      raise errors.UserError(f"{self.name} holds no prompt: expected one at 0")
    for index, scene in enumerate(self.scenes):
      where = f"{self.name}: prompt {index + 1}"
      if not isinstance(scene.text, str) or not scene.text.strip():
        raise errors.UserError(
          f"{where} has text {_shown(scene.text)}: expected a non-empty text"
        )
      for field in ("at", "transition_secs"):
        value = getattr(scene, field)
        if not _is_secs(value):
          raise errors.UserError(
            f"{where} has {field}: {_shown(value)}: expected seconds >= 0"
          )
      self._check_times(index, where)

  def _check_times(self, index: int, where: str) -> None:
    scene = self.scenes[index]
    if index == 0:
      if scene.at != 0:
        raise errors.UserError(f"{where} is at {scene.at:g}: expected at 0")
      if scene.transition_secs:
        raise errors.UserError(
          f"{where} has transition_secs: {scene.transition_secs:g}: expected "
          "none, nothing comes before it"
        )
      return
    before = self.scenes[index - 1]
    if scene.at < before.at + MIN_SCENE_SECS:
      raise errors.UserError(
        f"{where} is at {scene.at:g}: expected at least {MIN_SCENE_SECS:g} s "
        f"after the one before (at {before.at:g})"
      )
    if before.at + before.transition_secs > scene.at:
      raise errors.UserError(
        f"{self.name}: prompt {index} has transition_secs: "
        f"{before.transition_secs:g}: expected it done when the next one sets "
        f"in ({scene.at - before.at:g} s later)"
      )

  @property
  def texts(self) -> tuple[str, ...]:
    """All prompts."""
    return tuple(scene.text for scene in self.scenes)

  def to_list(self) -> list[dict[str, Any]]:
    """As a list of mappings; `parse` reads it."""
    return [dataclasses.asdict(scene) for scene in self.scenes]

  @property
  def fingerprint(self) -> str:
    """Of times and texts, whatever the file looks like."""
    content = json.dumps(self.to_list(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _is_secs(value: Any) -> bool:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  # A whole number may be too large for a float, and is no time then.
  return is_number and 0 <= value <= sys.float_info.max


def _shown(value: Any) -> str:
  """A value for a message; one whose parts repeat may be huge when written."""
  short = reprlib.Repr()
  short.maxlevel = 2  # Six of six by default, six levels deep.
  try:
    return short.repr(value)
  except ValueError:  # a whole number of thousands of digits
    return f"a {type(value).__name__}"


def parse(entries: Any, name: str = "the story") -> Story:
  """A story from what YAML or JSON gave.

  Args:
    entries: a list of `{at, text}` with `transition_secs` where wanted; or a
      mapping with such a list as `prompts` and a `transition_secs` for all
      prompts but the first that have none.
    name: for error messages.

  Raises:
    UserError: if it is something else; names the prompt and the field.
  """
  default = 0.0
  if isinstance(entries, Mapping) and "prompts" in entries:
    _check_fields(entries, ("prompts", "transition_secs"), name)
    default = entries.get("transition_secs", 0.0)
    entries = entries["prompts"]
  if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
    raise errors.UserError(
      f"{name}: expected a list of prompts, as '- {{at: 0, text: a flute}}'"
    )
  scenes = []
  for index, entry in enumerate(entries):
    where = f"{name}: prompt {index + 1}"
    if not isinstance(entry, Mapping):
      raise errors.UserError(
        f"{where} is {_shown(entry)}: expected {{at: seconds, text: ...}}"
      )
    _check_fields(entry, _FIELDS, where)
    for field in ("at", "text"):
      if field not in entry:
        raise errors.UserError(f"{where} has no {field!r}: expected one")
    transition = entry.get("transition_secs", default if index else 0.0)
    at, text = entry["at"], entry["text"]
    if _is_secs(at) and _is_secs(transition):
      at, transition = float(at), float(transition)
    scenes.append(Scene(at, text, transition))
  return Story(tuple(scenes), name)


def _check_fields(
  entry: Mapping[str, Any], known: Sequence[str], where: str
) -> None:
  for field in entry:
    if field not in known:
      shown = _shown(field)
      near = errors.nearest(shown.strip("'"), known)
      raise errors.UserError(f"{where} has an unknown field {shown}{near}")


def read(path: str | os.PathLike) -> Story:
  """A story from a YAML (or JSON) file; see `parse`.

  Raises:
    UserError: if the file is missing, too large, not YAML, or no story.
  """
  import yaml

  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no story at {path}")
  if path.stat().st_size > MAX_BYTES:
    raise errors.UserError(
      f"{path} has {path.stat().st_size} bytes: expected at most {MAX_BYTES}"
    )
  try:
    entries = yaml.safe_load(path.read_bytes())
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    mark = getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 1})" if mark else ""
    problem = getattr(error, "problem", None) or type(error).__name__
    raise errors.UserError(
      f"{path} cannot be read as YAML{line}: {problem}"
    ) from error
  return parse(entries, str(path))


def scenes(
  story: Story, embeddings: np.ndarray, mulan: Any, num_items: int
) -> tracks.Scenes:
  """Conditioning that follows a story.

  Args:
    story: the times.
    embeddings: of its texts, float32 `[scenes, output_dim]`.
    mulan: quantizes embeddings (`MuLanTokenizer`).
    num_items: items that share the story.

  Returns:
    MuLan codes `[num_items, 1, codebooks]` at each time; in a transition
    those of the mean of both embeddings, weighted and at unit length.
  """
  cuts = set()
  for scene in story.scenes[1:]:
    cuts |= {scene.at, scene.at + scene.transition_secs}

  def at(secs: float) -> np.ndarray:
    index = max(i for i, s in enumerate(story.scenes) if s.at <= secs or not i)
    scene, vector = story.scenes[index], embeddings[index]
    share = 1.0
    if scene.transition_secs:
      share = min(1.0, (secs - scene.at) / scene.transition_secs)
    if share < 1.0:
      mixed = share * vector + (1.0 - share) * embeddings[index - 1]
      length = np.linalg.norm(mixed)
      # Opposite vectors have no mean on the sphere.
      vector = mixed / length if length > 1e-6 else vector
    codes = mulan.quantize(np.asarray(vector, np.float32)[None])
    return np.repeat(codes, num_items, axis=0)

  return tracks.Scenes(tuple(sorted(cuts)), at)


def request(
  system: cascade.Cascade,
  story: Story,
  seconds: float,
  seed: int | Sequence[int] = 0,
  sampling: stage_sampling.StageSampling | None = None,
) -> cascade.Request:
  """What `system.run` needs to play a story.

  Args:
    system: one with MuLan.
    story: prompts and times.
    seconds: duration.
    seed: of one item, or one for each of several that share the story.
    sampling: one per stage; the system's temperatures by default.

  Raises:
    UserError: if a prompt sets in after the end, a number is out of range, or
      the system knows no text.
  """
  sampling = tuple(sampling or system.temperatures)
  system.check(seconds, sampling)
  system.check_text()
  last = story.scenes[-1].at
  if last >= seconds:
    raise errors.UserError(
      f"{story.name}: prompt {len(story.scenes)} is at {last:g}: expected "
      f"before the end (seconds={seconds:g})"
    )
  is_one = isinstance(seed, (int, np.integer))
  seeds = cascade.item_seeds(seed, 1 if is_one else len(seed))
  embeddings = system.mulan.prompt_embeddings(story.texts)
  stream = system.mulan.stream.name
  codes = system.mulan.quantize(embeddings)[:, 0]
  return cascade.Request(
    seconds,
    seeds,
    sampling,
    {stream: scenes(story, embeddings, system.mulan, len(seeds))},
    about={stream: np.repeat(codes[None], len(seeds), axis=0)},
  )
