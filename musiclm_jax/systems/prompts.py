# SPDX-License-Identifier: Apache-2.0
"""Prompts: a text, a recording in its place, or a weighted mixture of both.

Whatever it is, MuLan makes one unit vector of it, and its RVQ the codes that
the stages are told. Parts of a mixture are added up on the unit sphere, before
the RVQ. MusicLM has texts alone; audio takes their place because both towers
share one space (sec. 3.1).
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from musiclm_jax.core import errors
from musiclm_jax.systems import recordings, text_mapper

# Below this length a sum of unit vectors has no direction worth the name.
_MIN_LENGTH = 1e-3


@dataclasses.dataclass(frozen=True)
class Part:
  """One text or recording with its share of a mixture.

  Attributes:
    content: what is asked for.
    weight: positive; only ratios within a prompt matter.
  """

  content: str | recordings.Recording
  weight: float = 1.0

  def __post_init__(self):
    """Checks both.

    Raises:
      UserError: for an empty text, or a weight that is not positive.
    """
    if isinstance(self.content, str) and not self.content.strip():
      raise errors.UserError(
        f"prompt is {self.content!r}: expected a non-empty text"
      )
    if not isinstance(self.content, (str, recordings.Recording)):
      raise errors.UserError(
        f"prompt is a {type(self.content).__name__}: expected a text or a "
        "Recording"
      )
    if not (math.isfinite(self.weight) and self.weight > 0):
      raise errors.UserError(
        f"weight={self.weight} of {self.name!r}: expected a positive number "
        "(what is not wanted goes into the negative prompt)"
      )

  @property
  def name(self) -> str:
    """The text, or what the recording is called, without its folder."""
    if isinstance(self.content, str):
      return self.content
    return os.path.basename(self.content.name)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What one item is asked to sound like.

  Attributes:
    parts: at least one.
  """

  parts: tuple[Part, ...]

  def __post_init__(self):
    object.__setattr__(self, "parts", tuple(self.parts))
    if not self.parts:
      raise errors.UserError("parts=(): expected at least one in a prompt")

  @property
  def text(self) -> str | None:
    """The text, if the prompt is nothing else."""
    content = self.parts[0].content
    is_text = len(self.parts) == 1 and isinstance(content, str)
    return content if is_text else None

  @property
  def label(self) -> str:
    """One line for people."""
    if len(self.parts) == 1:
      return self.parts[0].name
    return ", ".join(f"{part.weight:g} {part.name}" for part in self.parts)

  def describe(self) -> dict[str, Any]:
    """JSON-compatible: 'prompt' of a text, 'prompt_parts' of all else."""
    if self.text is not None:
      return {"prompt": self.text}
    parts = []
    for part in self.parts:
      about = {"weight": part.weight}
      if isinstance(part.content, str):
        about["text"] = part.content
      else:
        about |= {"audio": part.name, "audio_sha256": part.content.sha256}
      parts.append(about)
    return {"prompt_parts": parts}


AnyPrompt = str | recordings.Recording | Prompt


def as_prompt(value: AnyPrompt) -> Prompt:
  """A text or a recording as a prompt.

  Raises:
    UserError: if it is neither, or the text is empty.
  """
  return value if isinstance(value, Prompt) else Prompt((Part(value),))


def as_prompts(values: AnyPrompt | Sequence[AnyPrompt]) -> list[Prompt]:
  """One prompt, or one per item, as a list.

  Raises:
    UserError: if there is none, or one is empty; names which.
  """
  if isinstance(values, AnyPrompt):
    values = [values]
  if not len(values):
    raise errors.UserError("no prompt given: expected at least one")
  made = []
  for index, value in enumerate(values):
    try:
      made.append(as_prompt(value))
    except errors.UserError as error:
      message = str(error).replace("prompt is", f"prompt {index} is", 1)
      raise errors.UserError(message) from error
  return made


def mix(*parts: tuple[float, str | recordings.Recording]) -> Prompt:
  """A mixture: `mix((0.7, "a flute"), (0.3, recording))`.

  Raises:
    UserError: if a weight is not positive or a text empty.
  """
  return Prompt(tuple(Part(content, weight) for weight, content in parts))


def embed(
  mulan, prompts: Sequence[Prompt], is_mapped: bool = True
) -> np.ndarray:
  """Prompts in MuLan's space.

  Args:
    mulan: a `tokenizers.MuLanTokenizer`.
    prompts: one per item.
    is_mapped: texts go through the text mapper of the bundle, as they do for
      generation; scores compare the towers as they are.

  Returns:
    float32 `[items, output_dim]` of unit length.

  Raises:
    UserError: if the parts of a mixture cancel each other.
  """
  contents = {part.content: None for p in prompts for part in p.parts}
  texts = [content for content in contents if isinstance(content, str)]
  if texts:
    embed_text = mulan.prompt_embeddings if is_mapped else mulan.embed_text
    contents |= zip(texts, embed_text(texts))
  for content in contents:
    if not isinstance(content, str):
      contents[content] = mulan.embed_audio(
        content.waveform[None], content.sample_rate_hz
      )[0]
  return np.stack([_mixed(prompt, contents) for prompt in prompts])


def _mixed(prompt: Prompt, vectors: dict[Any, np.ndarray]) -> np.ndarray:
  if len(prompt.parts) == 1:  # To the bit, whatever its weight.
    return vectors[prompt.parts[0].content]
  weights = np.array([part.weight for part in prompt.parts], np.float64)
  rows = np.stack([vectors[part.content] for part in prompt.parts])
  total = weights / weights.sum() @ text_mapper.unit(rows)
  if np.linalg.norm(total) < _MIN_LENGTH:
    raise errors.UserError(
      f"the parts of {prompt.label!r} cancel each other: nothing is left"
    )
  return text_mapper.unit(total).astype(np.float32)


def encode(mulan, prompts: Sequence[Prompt]) -> np.ndarray:
  """Prompts to int32 `[items, 1, codebooks]`, what generation starts from.

  Raises:
    UserError: as `embed`.
  """
  texts = [prompt.text for prompt in prompts]
  if None not in texts:
    return mulan.encode_text(texts)
  return mulan.quantize(embed(mulan, prompts))
