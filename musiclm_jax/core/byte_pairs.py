# SPDX-License-Identifier: Apache-2.0
"""RoBERTa's vocabulary of byte pairs: texts in, rows of token ids out.

As the vocabularies of `core/vocabularies.py`, of which 0 is padding: RoBERTa's
ids 0 and 1 (begin and padding) change places, in the ids and in the table that
they index (`swap_rows`).
"""

import json
from collections.abc import Mapping

import numpy as np

from musiclm_jax.core import errors, vocabularies

NAME = "tokenizer.json"
_BEGIN, _PAD = "<s>", "<pad>"


def swap_rows(table: np.ndarray) -> np.ndarray:
  """The table whose rows 0 and 1 have changed places."""
  return np.concatenate([table[1::-1], table[2:]])


class BytePairs:
  """Begin, byte pairs, end; both stay where a text is cut.

  Attributes:
    files: what it is made from.
    num_tokens: ids.
  """

  files: Mapping[str, bytes]
  num_tokens: int

  def __init__(self, description: bytes, where: str = "text vocabulary"):
    """Opens a `tokenizer.json`.

    Args:
      description: content of the file.
      where: for messages.

    Raises:
      UserError: if it is damaged, or not of byte pairs with RoBERTa's ids.
    """
    import tokenizers  # here: programs without text do not need it

    self.files = {NAME: description}
    try:
      kind = json.loads(description)["model"]["type"]
      tokenizer = tokenizers.Tokenizer.from_str(description.decode())
    except Exception as error:  # tokenizers raises plain Exceptions
      raise errors.UserError(
        f"{where}: expected a {NAME} of byte pairs ({error})"
      ) from error
    found = {word: tokenizer.token_to_id(word) for word in (_BEGIN, _PAD)}
    if kind != "BPE" or found != {_BEGIN: 0, _PAD: 1}:
      raise errors.UserError(
        f"{where}: holds a {kind!r} model with {found}: expected 'BPE' with "
        f"{_BEGIN!r} as 0 and {_PAD!r} as 1"
      )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer = tokenizer
    self._num_special = tokenizer.num_special_tokens_to_add(False)
    self.num_tokens = tokenizer.get_vocab_size()

  def encode(self, text: str, text_length: int) -> np.ndarray:
    """int32 `[text_length]`: cut, padded with 0; zeros for a blank text."""
    row = np.zeros(text_length, np.int32)
    if not text.strip():
      return row
    pieces = self._tokenizer.encode(text, add_special_tokens=False)
    pieces.truncate(max(0, text_length - self._num_special))
    ids = self._tokenizer.post_process(pieces, None, True).ids[:text_length]
    ids = np.array(ids, np.int32)
    row[: len(ids)] = np.where(ids < 2, 1 - ids, ids)
    return row

  def survey(self, text: str, text_length: int) -> vocabularies.Survey:
    """What `encode` keeps of a text; bytes leave nothing unknown."""
    count = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
    kept = min(count, max(0, text_length - self._num_special))
    return vocabularies.Survey(count, kept, 0)
