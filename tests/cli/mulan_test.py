# SPDX-License-Identifier: Apache-2.0
"""`musiclm mulan evaluate`: a corpus and MagnaTagATune's form to numbers."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
import small_corpus
import soundfile
import tokenizer_artifacts

from musiclm_jax.audio import files
from musiclm_jax.cli import embedding_files, mulan_clips
from musiclm_jax.cli import main as main_lib
from musiclm_jax.data import clips, token_cache, token_cache_writer

RATE_HZ = 8000
INSTRUMENTS, TEMPOS = ("flute", "piano", "tuba"), ("slow", "fast")
COUNTS = {"train": 12, "validation": 6, "test": 18}


def _clip(split, number):
  content = io.BytesIO()
  waveform = tokenizer_artifacts.music(2.2, seed=number)[: 2 * RATE_HZ]
  soundfile.write(content, waveform, RATE_HZ, format="FLAC")
  lead, tempo = INSTRUMENTS[number % 3], TEMPOS[number % 2]
  return {
    "id": f"{split}{number}",
    "audio": content.getvalue(),
    "sample_rate_hz": RATE_HZ,
    "num_samples": len(waveform),
    "work_id": f"{split} work {number // 3}",
    "arrangement": "x",
    "captions": [f"{lead} piece", "music"],
    "aspects": [],
    "paraphrase": f"a player of the {lead}, {tempo}",
    "tags": {"instrument": [lead, "piano"], "lead": lead, "tempo": tempo},
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("mulan")
  rows = {s: [_clip(s, i) for i in range(n)] for s, n in COUNTS.items()}
  for split, records in rows.items():
    lines = [
      {
        "clip_id": clip["id"],
        "caption": clip["captions"][0],
        "paraphrase": clip.pop("paraphrase"),
        "tags": clip.pop("tags"),
      }
      for clip in records
    ]
    text = "\n".join(map(json.dumps, lines))
    (root / f"{split}.jsonl").write_text(text + "\n")
  os.symlink(small_corpus.build_corpus(root, rows), root / "corpus")
  tokenizer_artifacts.write(root / "artifacts")
  return root


def _run(folder, output, *arguments):
  return main_lib.main(
    [
      *("mulan", "evaluate", f"--mulan={folder / 'artifacts'}"),
      *(f"--output_dir={output}", "--num_resamples=50", *arguments),
    ]
  )


def _corpus(folder, *splits):
  described = [f"--descriptions={folder / split}.jsonl" for split in splits]
  return [f"--corpus_dir={folder / 'corpus'}", *described]


def test_a_corpus_with_descriptions(folder, tmp_path, capsys):
  assert _run(folder, tmp_path, *_corpus(folder, *COUNTS)) == 0
  printed = capsys.readouterr().out
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  # Behind the lines of progress.
  assert printed.endswith((tmp_path / "mulan_evaluation.md").read_text())
  assert (result["num_clips"], result["num_works"]) == (18, 6)
  assert len(result["fingerprint"]) == 16
  captions = result["retrieval"]["captions"]["text_to_audio"]
  # Three different captions, six clips each: all are hits for theirs.
  assert (captions["num_queries"], captions["num_items"]) == (3, 18)
  paraphrases = result["retrieval"]["paraphrases"]["audio_to_text"]
  assert (paraphrases["num_queries"], paraphrases["num_items"]) == (18, 6)
  assert set(result["retrieval"]["paraphrases_minus_captions"]) == {
    "text_to_audio",
    "audio_to_text",
  }
  assert set(result["zero_shot"]) == {"instrument", "tempo"}
  instrument = result["zero_shot"]["instrument"]
  # All clips have a piano, which so tells nothing.
  assert instrument["left_out"] == ["piano"]
  assert set(instrument["tags"]) == {"flute", "tuba"}
  assert instrument["num_groups"] == 6
  tempo = result["zero_shot"]["tempo"]
  assert tempo["templates"][0] == "{} tempo"
  # Two tags that exclude each other, both half of the clips.
  assert tempo["chance_map"] == 0.5
  lead = result["probe"]["lead"]
  assert lead["num_examples"] == COUNTS
  assert lead["num_classes"] == 3
  for row in (
    "| captions | text to audio | 3 / 18 |",
    "| lead (3) | 12 / 18 |",
  ):
    assert row in printed
  assert "| instrument (zero-shot) | 2 | 18 |" in printed


def test_captions_alone_need_no_descriptions(folder, tmp_path):
  assert _run(folder, tmp_path, *_corpus(folder)) == 0
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  assert set(result["retrieval"]) == {"captions"}
  assert result["zero_shot"] == {} and "probe" not in result


def test_a_token_cache_gives_what_the_corpus_gives(folder, tmp_path, capsys):
  mulan = embedding_files.load_mulan(folder / "artifacts")
  corpus = mulan_clips.CorpusClips(mulan, str(folder / "corpus"))
  readers = {s: clips.ClipReader(folder / "corpus", s) for s in COUNTS}
  config = token_cache.TokenCacheConfig(
    streams=(mulan.stream,),
    fingerprints={"mulan": mulan.fingerprint},
    corpus_dir=str(folder / "corpus"),
    mulan_window_secs=2.0,
    mulan_stride_secs=1.0,
  )
  _write_cache(tmp_path / "tokens", config, mulan, readers)
  cached = mulan_clips.CachedClips(mulan, str(tmp_path / "tokens"))
  assert set(cached.splits) == set(corpus.splits)
  for wanted in ({}, {"max_clips": 5}, {"clip_ids": {"test3", "test7"}}):
    one, other = (found.embed("test", **wanted) for found in (corpus, cached))
    assert one[:3] == other[:3]
    np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-6)
  assert len(one.clip_ids) == 2
  assert cached.embed("test", {"none"}).embeddings.shape == (0, 16)
  out = tmp_path / "out"
  assert _run(folder, out, f"--cache_dir={tmp_path / 'tokens'}") == 0
  # Another MuLan's embeddings are refused.
  other = dataclasses.replace(config, fingerprints={"mulan": "f" * 64})
  _write_cache(tmp_path / "other", other, mulan, readers)
  capsys.readouterr()
  assert _run(folder, out, f"--cache_dir={tmp_path / 'other'}") == 1
  error = capsys.readouterr().err
  assert "f" * 64 in error and mulan.fingerprint in error


def _write_cache(directory, config, mulan, readers):
  writer = token_cache_writer.TokenCacheWriter(
    directory, config, mulan.codebooks
  )
  for split, reader in readers.items():
    for shard in writer.pending(split, len(reader)):
      found = [reader[i] for i in range(shard.start, shard.end)]
      writer.write_shard(
        shard,
        (
          token_cache.CachedClip(
            clip.clip_id,
            {
              token_cache.EMBEDDINGS: mulan.embed_windows(
                clip.waveform[None], clip.sample_rate_hz
              )[0]
            },
            clip.work_id,
            clip.captions,
          )
          for clip in found
        ),
      )
  writer.finish({split: len(reader) for split, reader in readers.items()})


def test_templates_and_kinds_can_be_chosen(folder, tmp_path):
  arguments = ["--tags=lead", "--template=lead=a {}", "--template=lead={}!"]
  assert _run(folder, tmp_path, *_corpus(folder, "test"), *arguments) == 0
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  assert result["zero_shot"]["lead"]["templates"] == ["a {}", "{}!"]
  assert set(result["zero_shot"]["lead"]["tags"]) == set(INSTRUMENTS)


def _magnatagatune(folder, missing=()):
  lines = ["clip_id\tflute\tloud\tnever\tmp3_path"]
  (folder / "f").mkdir(parents=True)
  (folder / "c").mkdir()
  for number in range(8):
    name = f"{'fc'[number == 7]}/band-0{number // 2}-song-{number}-29.wav"
    if number not in missing:
      waveform = tokenizer_artifacts.music(2.5, number)
      files.write_wav(folder / name, waveform, RATE_HZ)
    lines.append(f"{number}\t{number % 2}\t{int(number < 3)}\t0\t{name}")
  table = folder / "annotations_final.csv"
  table.write_text("\n".join(lines) + "\n")
  return [f"--magnatagatune={table}", f"--audio_dir={folder}"]


def test_annotations_in_the_form_of_magnatagatune(folder, tmp_path, capsys):
  arguments = _magnatagatune(tmp_path / "music", missing=(4,))
  assert _run(folder, tmp_path, *arguments) == 0
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  found = result["zero_shot"]["magnatagatune"]
  # Of 7 clips in the test folders one is missing; clips of a track go together.
  assert (found["num_clips"], found["num_unreadable"]) == (6, 1)
  assert found["num_groups"] == 4
  assert found["left_out"] == ["never"]
  assert found["tags"]["loud"]["num_clips"] == 3
  assert "| magnatagatune (zero-shot) | 2 | 6 |" in capsys.readouterr().out
  assert _run(folder, tmp_path, *arguments, "--magnatagatune_folders=") == 0
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  assert result["zero_shot"]["magnatagatune"]["num_clips"] == 7
  assert _run(folder, tmp_path, *arguments, "--num_tags=1") == 0
  result = json.loads((tmp_path / "mulan_evaluation.json").read_text())
  assert list(result["zero_shot"]["magnatagatune"]["tags"]) == ["flute"]


def test_too_much_missing_audio_fails(folder, tmp_path, capsys):
  arguments = _magnatagatune(tmp_path / "music", missing=range(7))
  assert _run(folder, tmp_path / "out", *arguments) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert "7 of 7 clips" in error and "--max_bad_fraction" in error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--cache_dir or --magnatagatune"),
    (["--magnatagatune=x.csv"], "expected --audio_dir"),
    (["CORPUS", "--template=lead=no place"], "--template=lead=no place"),
    (["CORPUS", "--descriptions=none.jsonl"], "no descriptions at none"),
    (["CORPUS", "--mulan=nowhere"], "--mulan=nowhere"),
    (["CORPUS", "--split=tset"], "split 'tset'"),
    (["CORPUS", "--cache_dir=x"], "--corpus_dir and --cache_dir"),
    (["--cache_dir=nowhere"], "nowhere"),
    (["TEST", "--tags=mood"], "--tags=mood"),
  ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, arguments, message):
  known = {"CORPUS": _corpus(folder), "TEST": _corpus(folder, "test")}
  given = [part for name in arguments for part in known.get(name, [name])]
  assert _run(folder, tmp_path, *given) == 1
  lines = [line for line in capsys.readouterr().err.splitlines() if line]
  assert lines[-1].startswith("musiclm: ") and message in lines[-1]
