# SPDX-License-Identifier: Apache-2.0
"""Paraphrases: true to the facts, and in words that captions never use."""

import dataclasses
import itertools
import json
import re

import pytest

from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors
from musiclm_jax.data import corpora, paraphrases
from tests.data import conftest


def _module(name):
  return corpora.load_builder_part("score_corpus", name)


arrange, captions = _module("arrange"), _module("captions")
instruments, worded = _module("instruments"), _module("paraphrases")

LEADS = [("quartet", q.name, "") for q in instruments.QUARTETS]
for _item in instruments.INSTRUMENTS:
  LEADS += [("solo", _item.name, ""), ("duo", _item.name, "piano")]
LEADS += [("duo", "flute", name) for name in instruments.PARTNERS]
STYLES = ("chorale", "fiddle tune", "folk song", "classical", "ragtime",
          *_module("works")._DANCES)  # fmt: skip


def all_facts():
  """Facts in which every value of every field occurs, as do all moods."""
  common = {"quarters_per_minute": 100.0, "tonic": 3}
  fields = ("ensemble", "lead", "partner", "has_drums", "tempo", "register",
            "loudness", "mode", "style", "texture", "meter")  # fmt: skip
  others = list(
    itertools.product(
      (False, True),
      ("slow", "moderate", "fast"),
      ("low", "middle", "high"),
      ("soft", "medium", "loud"),
      ("major", "minor"),
    )
  )
  textures, meters = list(captions._TEXTURE), [*captions._METER, "4/2"]
  for number in range(20 * len(others)):
    values = (
      *LEADS[number % len(LEADS)],
      *others[number % len(others)],
      STYLES[number % len(STYLES)],
      textures[number % len(textures)],
      meters[number % len(meters)],
    )
    yield arrange.Facts(**dict(zip(fields, values)), **common)


def words_of(text):
  return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def caption_words():
  found = set()
  for number, facts in enumerate(all_facts()):
    for text in captions.captions(facts, number) + captions.aspects(facts):
      found |= words_of(text)
  return found


def test_the_words_of_captions_are_all_found(caption_words):
  # What is in the tables and not in these words would be a hole in the tests.
  tables = (captions._TEMPO, captions._REGISTER, captions._LOUDNESS)
  texts = [text for table in tables for row in table.values() for text in row]
  texts += [*captions._TEXTURE.values(), *captions._METER.values()]
  texts += [*captions._DRUMS, *captions._NO_DRUMS, *captions._ADVERB.values()]
  for item in instruments.INSTRUMENTS:
    texts += [item.name, *item.other_names]
  texts += [f"{quartet.members}" for quartet in instruments.QUARTETS]
  assert words_of(" ".join(texts)) <= caption_words


def test_every_phrase_and_template_has_a_word_no_caption_has(caption_words):
  tables = (
    worded._PLAYERS, worded._TEMPO, worded._REGISTER, worded._LOUDNESS,
    worded._MODE, worded._DRUMS, worded._MOOD, worded._STYLE,
  )  # fmt: skip
  phrases = [text for table in tables for row in table.values() for text in row]
  templates = [re.sub(r"{\w+}", "", text) for text in worded._TEMPLATES]
  for text in (*phrases, *worded._DANCE, *templates):
    assert words_of(text) - caption_words, text


def test_no_paraphrase_is_a_caption(caption_words):
  for number, facts in enumerate(all_facts()):
    heard = worded.read_aspects(captions.aspects(facts))
    text = worded.paraphrase(heard, number)
    assert len(words_of(text) - caption_words) >= 5, text
    assert text == worded.paraphrase(heard, number)


def test_facts_come_back_from_aspects():
  seen = set()
  for facts in all_facts():
    heard = worded.read_aspects(captions.aspects(facts))
    assert heard.mood == captions.mood(facts)
    for name in {f.name for f in dataclasses.fields(heard)} - {"mood"}:
      assert getattr(heard, name) == getattr(facts, name)
    seen.add(heard.mood)
    assert len(worded.tags(heard)["instrument"]) >= 1
  assert seen == set(worded._MOOD)


def test_a_paraphrase_tells_players_drums_tempo_register_loudness_and_mode():
  facts = next(f for f in all_facts() if f.ensemble == "duo" and f.has_drums)
  heard = worded.read_aspects(captions.aspects(facts))
  for seed in range(40):
    text = worded.paraphrase(heard, seed).lower()
    for table, key in (
      (worded._PLAYERS, heard.lead), (worded._PLAYERS, heard.partner),
      (worded._DRUMS, True), (worded._TEMPO, heard.tempo),
      (worded._REGISTER, heard.register), (worded._LOUDNESS, heard.loudness),
      (worded._MODE, heard.mode),
    ):  # fmt: skip
      assert any(phrase.lower() in text for phrase in table[key]), (text, key)


def test_a_quartet_has_its_members_as_tags():
  facts = next(f for f in all_facts() if f.lead == "string quartet")
  tags = worded.tags(worded.read_aspects(captions.aspects(facts)))
  assert tags["instrument"] == ["string quartet", "violin", "cello"]


@pytest.mark.parametrize("aspects", [[], ["calm"], ["kazoo"] + ["x"] * 12])
def test_other_aspects_are_refused(aspects):
  with pytest.raises(ValueError, match="expected those of a score_corpus"):
    worded.read_aspects(aspects)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  facts = list(itertools.islice(all_facts(), 6))
  rows = [
    {
      **conftest._record(number, 0.25),
      "captions": captions.captions(fact, number),
      "aspects": captions.aspects(fact),
    }
    for number, fact in enumerate(facts)
  ]
  return conftest.build_corpus(
    tmp_path_factory.mktemp("worded"), {"test": rows}
  )


def test_all_clips_of_a_split_are_written(corpus, tmp_path, capsys):
  path = tmp_path / "deep" / "test.jsonl"
  argv = ["prepare", "paraphrases", f"--corpus_dir={corpus}"]
  assert main_lib.main([*argv, f"--output={path}"]) == 0
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert {row["clip_id"] for row in rows} == {f"clip{n}" for n in range(6)}
  assert rows == paraphrases.descriptions(corpus, "test")
  texts = paraphrases.paraphrases(corpus, "test")
  for row in rows:
    number = int(row["clip_id"].removeprefix("clip"))
    fact = list(itertools.islice(all_facts(), 6))[number]
    assert row["caption"] == captions.captions(fact, number)[0]
    assert row["paraphrase"] == texts[row["clip_id"]] != row["caption"]
    assert row["work_id"] == f"work{number // 2}"
    assert row["tags"]["tempo"] == fact.tempo
  assert f"{path}: 6" in capsys.readouterr().out


def test_another_corpus_is_refused(small_corpus):
  with pytest.raises(errors.UserError, match="of another corpus.*clip"):
    paraphrases.descriptions(small_corpus, "validation")
