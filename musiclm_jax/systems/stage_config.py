# SPDX-License-Identifier: Apache-2.0
"""What the artefact of a stage says of itself, as dataclasses.

For all that is loaded as a stage: the three stages, acoustic back ends, and
exported ones, which run without flax; so nothing here imports it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from musiclm_jax.core import artifacts, errors
from musiclm_jax.core import stages as stages_lib
from musiclm_jax.core import streams as streams_lib


@contextlib.contextmanager
def reading(kind: str, directory: str | os.PathLike) -> Iterator[None]:
  """Within it, what is wrong with a config is a UserError with its place."""
  place = f"{kind} artefact at {directory}"
  try:
    yield
  except KeyError as error:
    raise errors.UserError(f"{place} has no {error} in its config") from error
  except errors.UserError as error:
    raise errors.UserError(f"{place}: {error}") from error
  except (AttributeError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"{place} has a config that cannot be read: {error}"
    ) from error


def parse(config: Mapping[str, Any], **classes: type) -> dict[str, Any]:
  """The fields of an artefact's config that all stages have, and others.

  Args:
    config: of the artefact.
    **classes: further fields, by name the dataclass of each.

  Returns:
    `spec`, `streams` (those it names), `tokenizers` (fingerprints by bundle
    name) and the further fields.

  Raises:
    KeyError, TypeError, ValueError: see `reading`.
  """
  build = artifacts.config_from_dict
  return {
    "spec": build(stages_lib.StageSpec, config["spec"]),
    "streams": [
      build(streams_lib.TokenStream, one) for one in config["streams"]
    ],
    "tokenizers": dict(config["tokenizers"]),
    **{name: build(cls, config[name]) for name, cls in classes.items()},
  }
