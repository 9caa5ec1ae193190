# SPDX-License-Identifier: Apache-2.0
"""Trains text vocabularies: captions in, a SentencePiece model out.

Id 0 is padding only and 1 is unknown; `core/vocabularies.py` reads it.
"""

import io
import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from musiclm_jax.core import atomic_files, errors, vocabularies

UNKNOWN_ID = 1


def train(
  captions: Iterable[str], directory: str | os.PathLike, vocab_size: int
) -> pathlib.Path:
  """Trains a unigram model on captions and writes `<directory>/text.model`.

  The same captions in the same order give the same file. Few captions give a
  smaller vocabulary than asked for.

  Args:
    captions: texts of the train split.
    directory: made if it is missing; an older model in it is replaced.
    vocab_size: most ids, including padding and unknown.

  Returns:
    The path of the model.

  Raises:
    UserError: if there are no captions, or more different characters than
      `vocab_size` leaves room for.
  """
  lines = [" ".join(text.lower().split()) for text in captions]
  lines = [line for line in lines if line]
  if not lines:
    raise errors.UserError(
      "captions of the corpus: expected at least one to train a text "
      "vocabulary on"
    )
  num_characters = len(set("".join(lines)))
  if vocab_size < num_characters + 3:
    raise errors.UserError(
      f"vocab_size={vocab_size}: the captions have {num_characters} different "
      f"characters, expected at least {num_characters + 3}"
    )
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    vocab_size=vocab_size,
    model_type="unigram",
    # A soft limit: few captions hold fewer pieces than asked for.
    hard_vocab_limit=False,
    character_coverage=1.0,
    pad_id=vocabularies.PAD_ID,
    unk_id=UNKNOWN_ID,
    bos_id=-1,
    eos_id=-1,
    num_threads=1,  # Sums in another order would change the pieces.
    max_sentence_length=1 << 16,
    minloglevel=2,
  )
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / vocabularies.SENTENCE_PIECE_NAME
  with atomic_files.written(path) as file:
    file.write(model.getvalue())
  return path
