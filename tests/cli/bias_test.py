# SPDX-License-Identifier: Apache-2.0
"""The bias card of a small corpus and of pieces that were generated."""

import json

import numpy as np
import pytest
import small_bundle
import small_corpus
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.audio import files
from musiclm_jax.cli import bias_card, prompt_files
from musiclm_jax.cli import main as main_lib
from musiclm_jax.data import corpora


def run(*arguments):
  return main_lib.main(["bias", *(str(one) for one in arguments)])


def record(number):
  sound = small.music(2.0, number)
  return {
    "id": f"{'ab'[number % 2]}/{number}",
    "audio": files.encode_flac(sound, small.RATE_HZ),
    "sample_rate_hz": small.RATE_HZ,
    "num_samples": len(sound),
    "work_id": str(number // 2),
    "arrangement": "",
    "captions": ["a tune"],
    "aspects": [f"aspect {number % 3}"],
  }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Folder with a corpus, its descriptions, a bundle and two pieces."""
  root = tmp_path_factory.mktemp("bias")
  corpus = small_corpus.build_corpus(
    str(root), {"train": [record(number) for number in range(4)]}
  )
  (root / "tags.jsonl").write_text(
    "".join(
      json.dumps(
        {
          "clip_id": record(number)["id"],
          "tags": {"instrument": ["flute", "horn"][: number % 2 + 1]},
        }
      )
      + "\n"
      for number in range(4)
    )
  )
  samples = root / "samples"
  samples.mkdir()
  for number, prompt in enumerate(("Music.", "A piece.")):
    path = samples / f"{number}.wav"
    soundfile.write(path, small.music(2.0 + number, 9 + number), small.RATE_HZ)
    path.with_suffix(".json").write_text(json.dumps({"prompt": prompt}))
  soundfile.write(samples / "other.wav", np.zeros(8000), small.RATE_HZ)
  return root, corpus, small_bundle.write(root)


def test_corpus_and_pieces_side_by_side(made, tmp_path, capsys):
  root, corpus, bundle = made
  code = run(
    f"--corpus_dir={corpus}",
    f"--bundle={bundle}",
    f"--descriptions={root / 'tags.jsonl'}",
    f"--samples_dir={root / 'samples'}",
    f"--output_dir={tmp_path}",
  )
  printed = capsys.readouterr()
  assert code == 0, printed.err
  assert "Instrument, as MuLan hears it: " in printed.out
  report = json.loads((tmp_path / bias_card.FILE_NAME).read_text())
  assert report["corpus"]["num_clips"] == 4
  assert report["corpus"]["num_works"] == 2
  # What has no prompt was not generated for one.
  assert report["prompts"] == ["A piece.", "Music."]
  facets = report["facets"]
  assert set(facets) == {
    "judged_instrument", "heard_tempo", "heard_key", "heard_mode",
    "known_instrument", "known_source",
  }  # fmt: skip
  judged = facets["judged_instrument"]
  assert set(judged["names"]) <= {"flute", "horn"}
  assert 0 <= judged["agreement"]["mean"] <= 1
  assert judged["agreement"]["commonest"] == 1  # all have a flute
  shares = facets["known_instrument"]["corpus"]["shares"]
  assert shares["flute"]["mean"] == pytest.approx(0.75)
  assert facets["known_source"]["corpus"]["shares"]["a"]["mean"] == 0.5
  assert {one["heard"]["mode"] for one in report["samples"]} <= {
    "major", "minor",
  }  # fmt: skip
  assert "Bias card" in (tmp_path / bias_card.PAGE_NAME).read_text()


def test_corpus_alone(made, tmp_path):
  _, corpus, _ = made
  arguments = (f"--corpus_dir={corpus}", f"--output_dir={tmp_path}")
  assert run(*arguments, "--num_clips=3") == 0
  report = json.loads((tmp_path / bias_card.FILE_NAME).read_text())
  assert report["corpus"]["num_clips"] == 3 and not report["samples"]
  facets = report["facets"]
  assert "known_aspect" in facets and "generated" not in facets["heard_key"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--num_samples=0",), "--num_samples=0: expected >= 1"),
    (("--split=none",), "split 'none' of"),
    (("--samples_dir=x",), "--samples_dir without --bundle"),
  ],
)
def test_bad_requests_are_one_line(made, tmp_path, capsys, flags, message):
  arguments = (f"--corpus_dir={made[1]}", f"--output_dir={tmp_path / 'out'}")
  assert run(*arguments, *flags) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
  assert message in line


class Loudness:
  """A classifier: how loud each half second is."""

  name, fingerprint = "loudness", "0"
  class_names, multi_label = ("soft", "loud"), False

  def classify_windows(self, waveforms, sample_rate_hz):
    size = round(0.5 * sample_rate_hz)
    windows = waveforms.reshape(len(waveforms), -1, size)
    level = np.log(np.abs(windows).mean(-1) / 0.1)
    return np.stack([-level, level], -1)


def test_classes_are_those_of_the_mean_over_windows(made):
  level = np.repeat([[0.3, 0.01, 0.3], [0.3, 0.001, 0.1]], 50, axis=1)
  found = bias_card.best_classes(Loudness(), level, 100)
  # ln 3 - ln 10 + ln 3 < 0: the soft middle outweighs.
  assert found == ["soft", "soft"]
  assert bias_card.best_classes(Loudness(), 2 * level, 100)[0] == "loud"
  heard = bias_card.Judges(None, Loudness()).listen(
    level.astype(np.float32), 100, bias_card.Items([], [], [], [], None, ["x"])
  )
  assert heard.classes == ["x", "soft", "soft"] and len(heard.heard) == 2
  assert bias_card.open_classifier(None) is None
  with pytest.raises(ValueError, match="does not classify"):
    bias_card.open_classifier(f"mulan:{made[2]}")


def test_asked_tags(tmp_path):
  known = {"genre": [("jig",), ("reel",)], "mode": [("major",)], "source": []}
  assert bias_card.asked_tags(None, known) == {"genre": ["jig", "reel"]}
  assert set(bias_card.asked_tags(None, {})) == {"instrument", "genre"}
  path = tmp_path / "tags.json"
  path.write_text('{"mood": ["sad", "glad"]}')
  assert bias_card.asked_tags(str(path), known) == {"mood": ["sad", "glad"]}
  path.write_text('{"mood": ["sad", "glad", "sad"]}')
  assert bias_card.asked_tags(str(path), known) == {"mood": ["sad", "glad"]}
  bad = ["[1]", "{}", '{"mood": ["sad"]}', '{"mood": 3}', "{"]
  bad += ['{"mood": "sad"}', '{"mood": [["a", "b"], "c"]}']
  for text in bad:
    path.write_text(text)
    with pytest.raises(ValueError, match="tags.json: expected JSON such as"):
      bias_card.asked_tags(str(path), known)


def test_neutral_prompts_are_shipped():
  path = corpora.find_builder_dir() / "prompts" / "neutral.jsonl"
  assert len(set(prompt_files.read(path))) == 8
