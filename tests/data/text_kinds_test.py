# SPDX-License-Identifier: Apache-2.0
"""Texts of several kinds: shares, what is made of aspects, batches."""

import collections

import numpy as np
import pytest

from musiclm_jax.cli import experiment
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors, vocabularies
from musiclm_jax.data import loader, tasks, text_kinds
from musiclm_jax.models import contrastive
from musiclm_jax.networks import mulan, mulan_text
from musiclm_jax.partitioning import mesh
from musiclm_jax.training import loop, optimizers
from tests.data import conftest

TEXTS = {
  "caption": ["a calm piano", "slow song"],
  "aspects": ["piano", "calm", "slow", "soft"],
  "title": [],
  "playlist": ["evenings"],
}
WEIGHTS = {"caption": 2.0, "playlist": 1.0, "title": 1.0, "aspects": 0.0}


def drawn(texts, weights, count=2000):
  chosen = text_kinds.check_weights(weights)
  return [text_kinds.draw(texts, chosen, f"{n}") for n in range(count)]


def test_kinds_have_their_shares():
  counts = collections.Counter(kind for kind, _ in drawn(TEXTS, WEIGHTS))
  assert set(counts) == {"caption", "playlist", "title"}
  assert counts["caption"] == pytest.approx(1000, abs=80)
  assert counts["title"] == pytest.approx(500, abs=70)
  # What a clip has not is shared out.
  fewer = {**TEXTS, "caption": [], "aspects": []}
  assert {kind for kind, _ in drawn(fewer, WEIGHTS, 50)} == {"playlist"}
  nothing = dict.fromkeys(text_kinds.KINDS, ())
  assert set(drawn(nothing, WEIGHTS, 5)) == {("", "")}


def test_each_kind_is_what_it_says():
  by_kind = collections.defaultdict(collections.Counter)
  for kind, text in drawn(TEXTS, dict.fromkeys(text_kinds.KINDS, 1.0)):
    by_kind[kind][text] += 1
  assert set(by_kind["caption"]) == set(TEXTS["caption"])
  assert min(by_kind["caption"].values()) > 180
  assert set(by_kind["playlist"]) == {"evenings"}
  assert set(by_kind["title"]) == {"piano, calm", "piano, slow", "piano, soft"}
  lengths = collections.Counter()
  for text in by_kind["aspects"]:
    parts = text.split(", ")
    assert len(set(parts)) == len(parts) and set(parts) <= set(TEXTS["aspects"])
    lengths[len(parts)] += 1
  assert set(lengths) == {2, 3, 4}
  made = {**TEXTS, "playlist": []}
  assert {t for _, t in drawn(made, {"playlist": 1.0}, 80)} == set(
    TEXTS["aspects"]
  )
  one = {**made, "aspects": ["calm"]}
  for kind in ("aspects", "title", "playlist"):
    assert set(drawn(one, {kind: 1.0}, 5)) == {(kind, "calm")}


@pytest.mark.parametrize(
  ("weights", "match"),
  [
    ({"captions": 1.0}, "'captions'.*did you mean 'caption'"),
    ({"caption": -1.0}, "caption=-1.0"),
    ({"caption": float("nan")}, "caption=nan"),
    ({"caption": 0.0}, "expected one above 0"),
  ],
)
def test_bad_weights_are_named(weights, match):
  with pytest.raises(ValueError, match=match):
    text_kinds.check_weights(weights)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Clips 0 to 3 have texts, 4 and 5 have none."""
  rows = [conftest._record(number, 0.5) for number in range(6)]
  for number, row in enumerate(rows):
    row["aspects"] = ["calm", f"take {number}", "soft"]
    if number > 3:
      row["captions"] = row["aspects"] = []
  splits = {"train": rows, "validation": rows[:4]}
  return conftest.build_corpus(tmp_path_factory.mktemp("texts"), splits)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory, small_corpus):
  folder = tmp_path_factory.mktemp("text")
  argv = ["prepare", "text_vocabulary", f"--corpus_dir={small_corpus}"]
  argv += ["--vocab_size=60", f"--output_dir={folder}"]
  assert main_lib.main(argv) == 0
  return str(folder / "text.model")


def make_loader(corpus, text_model, seed=0, **settings):
  config = tasks.CaptionTaskConfig(
    tasks.WaveformTaskConfig((corpus,), 8000, 0.1), text_model, 24, **settings
  )
  return loader.Loader(tasks.caption_recipe(config), 6, seed=seed)


def test_batches_hold_the_drawn_texts(corpus, text_model):
  weights = {"caption": 1.0, "aspects": 1.0, "playlist": 1.0}
  settings = {"text_weights": weights, "allow_no_text": True}
  batches = make_loader(corpus, text_model, **settings).train_batches()
  vocabulary = vocabularies.load(text_model)
  possible = collections.defaultdict(set)
  for number in range(4):
    texts = {
      "caption": [f"Calm piano number {number}", "A slow Song"],
      "aspects": ["calm", f"take {number}", "soft"],
      "title": [],
      "playlist": [],
    }
    for _, text in drawn(texts, weights, 300):
      possible[number].add(tuple(vocabulary.encode(text, 24)))
  seen, first = collections.Counter(), []
  for _ in range(20):
    batch = next(batches)
    first.append(batch)
    for example, tokens in zip(batch["example_ids"], batch["text_tokens"]):
      number = _clip_number(corpus, example)
      if number > 3:
        assert not tokens.any()
      else:
        assert tuple(tokens) in possible[number]
        seen[tuple(tokens)] += 1
  assert len(seen) > 20
  again = make_loader(corpus, text_model, **settings).train_batches(7)
  np.testing.assert_array_equal(
    next(again)["text_tokens"], first[7]["text_tokens"]
  )
  other = make_loader(corpus, text_model, 1, **settings).train_batches(7)
  assert (next(other)["text_tokens"] != first[7]["text_tokens"]).any()


def _clip_number(corpus, position):
  from musiclm_jax.data import clips

  clip_id = clips.ClipReader(corpus, "train").clip_id(int(position))
  return int(clip_id.removeprefix("clip"))


def test_clips_without_a_text_are_an_error_unless_allowed(corpus, text_model):
  for weights in ({}, {"caption": 1.0, "title": 2.0}):
    batches = make_loader(corpus, text_model, text_weights=weights)
    with pytest.raises(errors.UserError, match=r"clip[45]' .* no text of"):
      next(batches.train_batches())
  batches = make_loader(corpus, text_model, allow_no_text=True)
  tokens = next(batches.train_batches())["text_tokens"]
  assert (tokens.any(1)).sum() == 4


def test_more_ids_than_the_text_tower_knows_are_refused(corpus, text_model):
  data = make_loader(corpus, text_model, allow_no_text=True)
  assert data.num_text_ids == vocabularies.load(text_model).num_tokens

  def build(vocab_size):
    text = mulan_text.TextTowerConfig(vocab_size=vocab_size, max_length=24)
    trainable = contrastive.Contrastive(
      contrastive.ContrastiveConfig(), mulan.MuLanConfig(text=text)
    )
    return experiment.Experiment(
      trainable,
      data,
      loop.LoopConfig(total_steps=1, global_batch_size=6),
      optimizers.OptimizerConfig(),
      mesh.MeshConfig(),
    )

  assert build(data.num_text_ids).data is data
  with pytest.raises(errors.UserError, match=r"has \d+ ids, the text tower 20"):
    build(20)
