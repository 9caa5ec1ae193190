# SPDX-License-Identifier: Apache-2.0
"""Tags as texts: names and templates in, one unit vector per tag out.

A tag is the mean of its prompts' embeddings, of unit length again; a clip's
score for it is their cosine (MuLan sec. 4.2). Nothing is trained.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# By kind of tag; '{}' is the name.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
  "instrument": ("{}", "solo {}", "music played by {}"),
  "tempo": ("{} tempo", "{} music", "a piece of music at a {} tempo"),
}
OTHER_TEMPLATES = ("{}", "{} music", "a piece of music: {}")


def templates_for(
  kind: str, given: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
  """Templates of a kind of tag.

  Args:
    kind: such as 'instrument'.
    given: templates by kind that take the place of the usual ones.

  Raises:
    ValueError: if a template has no single place for the name.
  """
  given = given or {}
  found = tuple(given.get(kind, TEMPLATES.get(kind, OTHER_TEMPLATES)))
  for template in found:
    if template.count("{}") != 1:
      raise ValueError(
        f"template {template!r} of {kind!r}: expected one '{{}}' for the name"
      )
  return found


def tag_embeddings(
  embed_text: Callable[[Sequence[str]], np.ndarray],
  tags: Sequence[str],
  templates: Sequence[str],
) -> np.ndarray:
  """Embeds tags.

  Args:
    embed_text: texts to float `[texts, embed]` of unit length.
    tags: names.
    templates: see `templates_for`.

  Returns:
    float32 `[tags, embed]` of unit length.
  """
  prompts = [
    template.replace("{}", tag) for tag in tags for template in templates
  ]
  vectors = np.asarray(embed_text(prompts), np.float32)
  means = vectors.reshape(len(tags), len(templates), -1).mean(1)
  norm = np.linalg.norm(means, axis=-1, keepdims=True)
  return means / np.maximum(norm, 1e-12)
