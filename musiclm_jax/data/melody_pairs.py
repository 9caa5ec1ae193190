# SPDX-License-Identifier: Apache-2.0
"""Pairs of clips with the same melody, for the melody embedder: missing."""

from musiclm_jax.core import errors


def melody_recipe() -> None:
  """Says that no corpus gives such pairs yet.

  Raises:
    UserError: always.
  """
  raise errors.UserError(
    "no corpus of this project has pairs of clips with the same melody yet, so "
    "the melody embedder cannot be trained from the command line; give "
    "training/loop.py batches with 'waveform' and 'melody_ids' yourself"
  )
