# SPDX-License-Identifier: Apache-2.0
"""Text vocabularies: captions in, a SentencePiece model and token ids out.

The recipe, the same here and wherever text is tokenized at inference:
lower-case, encode with SentencePiece, cut to `text_length`, pad with 0. No
begin, end or class ids are added; 0 is padding only and 1 is unknown.
"""

import io
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from musiclm_jax.core import errors

MODEL_NAME = "text.model"
PAD_ID = 0
UNKNOWN_ID = 1


def train(
  captions: Iterable[str], directory: str | os.PathLike, vocab_size: int
) -> pathlib.Path:
  """Trains a unigram model on captions and writes `<directory>/text.model`.

  The same captions in the same order give the same file. Few captions give a
  smaller vocabulary than asked for (`num_tokens` tells the true size).

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
    pad_id=PAD_ID,
    unk_id=UNKNOWN_ID,
    bos_id=-1,
    eos_id=-1,
    num_threads=1,  # Sums in another order would change the pieces.
    max_sentence_length=1 << 16,
    minloglevel=2,
  )
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / MODEL_NAME
  scratch = path.with_name(f"{MODEL_NAME}.{os.getpid()}.writing")
  scratch.write_bytes(model.getvalue())
  scratch.rename(path)
  return path


def load(path: str | os.PathLike) -> sentencepiece.SentencePieceProcessor:
  """Loads a model file.

  Raises:
    UserError: if it is missing, damaged, or pads with another id than 0.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"text vocabulary {path} is missing")
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(path.read_bytes())
  except Exception as error:  # sentencepiece raises several kinds
    raise errors.UserError(
      f"text vocabulary {path}: expected a SentencePiece model ({error})"
    ) from error
  if processor.pad_id() != PAD_ID:
    raise errors.UserError(
      f"text vocabulary {path} has pad_id={processor.pad_id()}: expected "
      f"{PAD_ID}"
    )
  return processor


def num_tokens(path: str | os.PathLike) -> int:
  """Ids of a model, including padding and unknown."""
  return load(path).GetPieceSize()


def encode(
  processor: sentencepiece.SentencePieceProcessor, text: str, text_length: int
) -> np.ndarray:
  """Text to int32 `[text_length]`: lower-cased, cut, padded with 0."""
  ids = processor.EncodeAsIds(text.lower())[:text_length]
  tokens = np.full(text_length, PAD_ID, np.int32)
  tokens[: len(ids)] = ids
  return tokens
