# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: both kinds behind one interface, errors.

That WordPiece ids are transformers' is in `tests/systems/bert_import_test.py`.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.core import errors, vocabularies

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "slow", "piano", "##s", "a")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return tmp_path


def test_word_piece_is_cut_and_padded(folder):
  vocabulary = vocabularies.load(folder)
  assert vocabulary.num_tokens == len(WORDS)
  for text, length, expected in (
    ("Slow PIANOS", 6, [2, 4, 5, 6, 3, 0]),
    ("slow\u0301 zebra", 5, [2, 4, 1, 3, 0]),
    ("piano " * 10_000, 4, [2, 5, 5, 3]),
    ("slow piano", 3, [2, 4, 3]),
    (" \n", 4, [0, 0, 0, 0]),
    ("\u200b", 3, [0, 0, 0]),
  ):
    found = vocabulary.encode(text, length)
    assert found.dtype == np.int32
    assert found.tolist() == expected, text[:20]


def test_settings_of_the_folder_count(folder):
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"do_lower_case": False})
  )
  assert vocabularies.load(folder).encode("Slow slow", 4).tolist() == [
    *(2, 1, 4, 3)
  ]


def test_lengths_in_a_tokenizer_file_do_not_count(folder):
  files = vocabularies.load(folder).files
  content = json.loads(files["tokenizer.json"])
  content["truncation"] = {
    "direction": "Right",
    "max_length": 3,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  content["padding"] = {
    "strategy": {"Fixed": 9},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
  }
  (folder / "tokenizer.json").write_text(json.dumps(content))
  for path in (folder, folder / "tokenizer.json"):
    found = vocabularies.load(path).encode("slow piano a", 6)
    assert found.tolist() == [2, 4, 5, 7, 3, 0]


def test_files_make_the_same_vocabulary(folder, tmp_path):
  model = tmp_path / "text.model"
  model.write_bytes(tokenizer_artifacts.text_model(["a slow piano"]))
  for path in (folder, model):
    one = vocabularies.load(path)
    other = vocabularies.from_files(one.files)
    assert type(one) is type(other)
    np.testing.assert_array_equal(
      one.encode("A slow piano", 9), other.encode("A slow piano", 9)
    )
  with pytest.raises(errors.UserError, match="words.txt"):
    vocabularies.from_files({"words.txt": b""})


def test_errors_name_the_cause(folder, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(errors.UserError, match="tokenizer.json or vocab.txt"):
    vocabularies.load(tmp_path / "empty")
  with pytest.raises(errors.UserError, match="nothing.*missing"):
    vocabularies.load(tmp_path / "nothing")
  content = json.loads(vocabularies.load(folder).files["tokenizer.json"])
  path = folder / "tokenizer.json"
  path.write_text("{}")
  with pytest.raises(errors.UserError, match="of WordPiece"):
    vocabularies.load(path)
  content["model"]["vocab"] |= {"[PAD]": 4, "slow": 0}
  content["added_tokens"] = []
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match="pad_id=4: expected 0"):
    vocabularies.load(path)
  content["model"] = {
    "type": "WordLevel",
    "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3},
    "unk_token": "[UNK]",
  }
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match="'WordLevel'"):
    vocabularies.load(path)
  (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nslow\n")
  path.unlink()
  with pytest.raises(errors.UserError, match=r"\['\[CLS\]', '\[SEP\]'\]"):
    vocabularies.load(folder)


def test_no_tensorflow_is_imported(folder):
  code = (
    "import sys; from musiclm_jax.core import vocabularies; "
    f"vocabularies.load({str(folder)!r}).encode('slow', 4); "
    "print(sorted({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
