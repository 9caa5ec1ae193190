# SPDX-License-Identifier: Apache-2.0
"""Text vocabularies: texts in, rows of token ids out.

Two kinds behind one interface, the same in training and at inference. The
files of a vocabulary travel in the artefact of its model. No TensorFlow.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from musiclm_jax.core import errors

PAD_ID = 0
SENTENCE_PIECE_NAME = "text.model"
WORD_PIECE_NAME = "tokenizer.json"
# How SentencePiece writes a space.
_SPACE = "\u2581"
_WORDS_NAME, _SETTINGS_NAME = "vocab.txt", "tokenizer_config.json"


class Survey(NamedTuple):
  """What becomes of a text; begin, end and class ids are not counted.

  Attributes:
    num_tokens: of the whole text.
    num_kept: of what is not cut.
    num_unknown: of what is not cut, those that no vocabulary entry fits.
  """

  num_tokens: int
  num_kept: int
  num_unknown: int


class TextVocabulary(Protocol):
  """What the caption task and the towers need of a vocabulary.

  Attributes:
    files: name and content of the files it is made from; `from_files` is the
      inverse.
    num_tokens: ids, with padding and other special ones.
  """

  files: Mapping[str, bytes]
  num_tokens: int

  def encode(self, text: str, text_length: int) -> np.ndarray:
    """int32 `[text_length]`: cut, padded with 0; zeros for a blank text."""

  def survey(self, text: str, text_length: int) -> Survey:
    """What `encode` keeps and knows of a text."""


def _padded(ids: Sequence[int], text_length: int) -> np.ndarray:
  tokens = np.full(text_length, PAD_ID, np.int32)
  tokens[: len(ids)] = ids
  return tokens


class SentencePiece:
  """Lower-cases, encodes, cuts; no begin, end or class ids are added."""

  def __init__(self, model: bytes, where: str = "text vocabulary"):
    """Opens a model.

    Args:
      model: content of the file.
      where: for messages.

    Raises:
      UserError: if it is damaged, or pads with another id than 0.
    """
    import sentencepiece  # here: programs without text do not need it

    self.files = {SENTENCE_PIECE_NAME: model}
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
    except Exception as error:  # sentencepiece raises several kinds
      raise errors.UserError(
        f"{where}: expected a SentencePiece model ({error})"
      ) from error
    _check_padding(where, self._processor.pad_id())
    self.num_tokens = self._processor.GetPieceSize()
    self._space = self._processor.PieceToId(_SPACE)

  def encode(self, text: str, text_length: int) -> np.ndarray:
    """int32 `[text_length]`: cut, padded with 0; zeros for a blank text."""
    ids = self._processor.EncodeAsIds(text.lower())[:text_length]
    return _padded(ids, text_length)

  def survey(self, text: str, text_length: int) -> Survey:
    """What `encode` keeps and knows of a text."""
    ids = self._processor.EncodeAsIds(text.lower())
    kept, unknown = ids[:text_length], self._processor.unk_id()
    # The space before an unknown word is a token of its own.
    lost = sum(
      unknown in (here, after if here == self._space else here)
      for here, after in zip(kept, [*kept[1:], self._space])
    )
    return Survey(len(ids), len(kept), lost)


class WordPiece:
  """BERT's: [CLS], pieces, [SEP]; both stay where a text is cut.

  Case, accents and Chinese characters are treated as the file says. What the
  file says about a length or padding does not count.
  """

  def __init__(self, description: bytes, where: str = "text vocabulary"):
    """Opens a `tokenizer.json`.

    Args:
      description: content of the file.
      where: for messages.

    Raises:
      UserError: if it is damaged, no WordPiece, or pads with another id than 0.
    """
    import tokenizers  # here: programs without text do not need it

    self.files = {WORD_PIECE_NAME: description}
    try:
      kind = json.loads(description)["model"]["type"]
      tokenizer = tokenizers.Tokenizer.from_str(description.decode())
    except Exception as error:  # tokenizers raises plain Exceptions
      raise errors.UserError(
        f"{where}: expected a {WORD_PIECE_NAME} of WordPiece ({error})"
      ) from error
    if kind != "WordPiece":
      raise errors.UserError(
        f"{where}: holds a {kind!r} model: expected 'WordPiece'"
      )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer = tokenizer
    self._num_special = tokenizer.num_special_tokens_to_add(False)
    _check_padding(where, tokenizer.token_to_id("[PAD]"))
    self.num_tokens = tokenizer.get_vocab_size()
    unknown = json.loads(description)["model"].get("unk_token")
    self._unknown = unknown and tokenizer.token_to_id(unknown)

  def encode(self, text: str, text_length: int) -> np.ndarray:
    """int32 `[text_length]`: cut, padded with 0; zeros for a blank text."""
    pieces = self._tokenizer.encode(text, add_special_tokens=False)
    if not pieces.ids:
      return _padded([], text_length)
    pieces.truncate(max(0, text_length - self._num_special))
    ids = self._tokenizer.post_process(pieces, None, True).ids
    return _padded(ids[:text_length], text_length)

  def survey(self, text: str, text_length: int) -> Survey:
    """What `encode` keeps and knows of a text."""
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    kept = ids[: max(0, text_length - self._num_special)]
    return Survey(len(ids), len(kept), sum(i == self._unknown for i in kept))


def _check_padding(where: str, found: int | None) -> None:
  if found != PAD_ID:
    raise errors.UserError(
      f"{where}: pad_id={found}: expected {PAD_ID}, which is padding in all "
      "batches"
    )


def _from_words(directory: pathlib.Path) -> bytes:
  """A `tokenizer.json` of BERT's `vocab.txt` and its settings.

  Raises:
    UserError: if a special token is missing.
  """
  import tokenizers

  path = directory / _WORDS_NAME
  settings = {}
  if (directory / _SETTINGS_NAME).is_file():
    settings = json.loads((directory / _SETTINGS_NAME).read_text())
  words = path.read_text(encoding="utf-8").split("\n")
  words = words[:-1] if words and not words[-1] else words
  ids = {word: index for index, word in enumerate(words)}
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  missing = [word for word in special[:4] if word not in ids]
  if missing:
    raise errors.UserError(f"{path}: expected {missing} among its words")
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(ids, unk_token="[UNK]")
  )
  tokenizer.add_special_tokens([word for word in special if word in ids])
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
    lowercase=settings.get("do_lower_case", True),
    strip_accents=settings.get("strip_accents"),
    handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
  )
  return tokenizer.to_str().encode()


def load(path: str | os.PathLike) -> TextVocabulary:
  """Opens the vocabulary on disk.

  Args:
    path: a SentencePiece model; or a `tokenizer.json`; or a folder with one,
      or with `vocab.txt` (and perhaps `tokenizer_config.json`) of a BERT.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    if (path / WORD_PIECE_NAME).is_file():
      path = path / WORD_PIECE_NAME
    elif (path / _WORDS_NAME).is_file():
      return WordPiece(_from_words(path), f"text vocabulary {path}")
    else:
      raise errors.UserError(
        f"text vocabulary {path}: expected {WORD_PIECE_NAME} or {_WORDS_NAME} "
        "in this folder"
      )
  if not path.is_file():
    raise errors.UserError(f"text vocabulary {path} is missing")
  kind = WordPiece if path.suffix == ".json" else SentencePiece
  return kind(path.read_bytes(), f"text vocabulary {path}")


def from_files(files: Mapping[str, bytes]) -> TextVocabulary:
  """The vocabulary whose `files` they are.

  Raises:
    UserError: if there is none among them, or it is damaged.
  """
  if WORD_PIECE_NAME in files:
    return WordPiece(files[WORD_PIECE_NAME])
  if SENTENCE_PIECE_NAME not in files:
    raise errors.UserError(
      f"files {sorted(files)}: expected {SENTENCE_PIECE_NAME} or "
      f"{WORD_PIECE_NAME}"
    )
  return SentencePiece(files[SENTENCE_PIECE_NAME])
