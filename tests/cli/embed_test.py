# SPDX-License-Identifier: Apache-2.0
"""The embed and search verbs: tables, an index that grows, the page."""

import csv
import html.parser
import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.parse

import full_disk
import numpy as np
import pytest
import tokenizer_artifacts

from musiclm_jax.audio import files
from musiclm_jax.cli import main as main_lib
from musiclm_jax.systems import audio_index, text_mapper, tokenizers

RATE_HZ = tokenizer_artifacts.RATE_HZ

# Adds a file to an index, in a process that the kernel kills where a file
# grows past a limit: in the middle of writing it.
_KILLED = """
import resource, signal, sys
import numpy as np
from musiclm_jax.systems import audio_index
limit, directory, fingerprint = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
config = audio_index.IndexConfig(fingerprint, 16, False, 2.0)
index = audio_index.AudioIndex.create(directory, config)
vectors = np.ones((99, 16), np.float32)
found = audio_index.FileEmbedding("/a.wav", 1, 1, np.arange(99.0), vectors)
index.add([found])
"""


@pytest.fixture(name="mulan", scope="module")
def _mulan(tmp_path_factory):
  directory = tmp_path_factory.mktemp("mulan") / "mulan"
  tokenizer_artifacts.write_mulan(directory)
  return directory


@pytest.fixture(name="tower", scope="module")
def _tower(mulan):
  return tokenizers.MuLanTokenizer.load(mulan)


def _write(folder, names):
  """A file per name, of another tune and length."""
  for seed, name in enumerate(names):
    sound = tokenizer_artifacts.music(1.5 + 1.25 * seed, seed)
    files.write_wav(folder / name, sound, RATE_HZ)


def _run(*argv):
  return main_lib.main(list(map(str, argv)))


def _whole(tower, path):
  waveform, rate_hz = files.read_audio(path)
  return tower.embed_windows(waveform[None], rate_hz)[0]


def test_tables_hold_what_the_towers_give(mulan, tower, tmp_path):
  folder = tmp_path / "music"
  _write(folder, ["a.wav", "sub/b.wav", "sub/c.wav"])
  texts = tmp_path / "texts.txt"
  texts.write_text("a slow piano piece\n\nloud brass\n")
  options = [folder, f"--mulan={mulan}", f"--texts={texts}", "--text=piano"]
  assert _run("embed", *options, f"--output={tmp_path / 'x' / 'a.npz'}") == 0
  with np.load(tmp_path / "x" / "a.npz", allow_pickle=False) as file:
    found = dict(file)
  names = ["a.wav", "sub/b.wav", "sub/c.wav"]
  assert found["paths"].tolist() == [str(folder / name) for name in names]
  assert found["embeddings"].dtype == np.float32
  for name, vector in zip(names, found["embeddings"]):
    mean = _whole(tower, folder / name).mean(0)
    mean /= np.linalg.norm(mean)
    np.testing.assert_allclose(vector, mean, atol=2e-4)
  assert found["texts"].tolist() == [
    "piano",
    "a slow piano piece",
    "loud brass",
  ]
  np.testing.assert_allclose(
    found["text_embeddings"], tower.embed_text(found["texts"]), atol=1e-6
  )
  assert found["fingerprint"] == tower.fingerprint
  # A vector per window; the last file is 4 s long: windows at 0, 1 and 2 s.
  table = tmp_path / "b.csv"
  assert _run("embed", *options, "--windows", f"--output={table}") == 0
  with open(table, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  places = [
    (pathlib.Path(row["source"]).name, row["start_secs"])
    for row in rows
    if row["kind"] == "audio"
  ]
  assert places == [
    ("a.wav", "0"),
    ("b.wav", "0"),
    ("c.wav", "0"),
    ("c.wav", "1"),
    ("c.wav", "2"),
  ]
  vectors = np.array([[row[f"e{i}"] for i in range(16)] for row in rows], float)
  expected = _whole(tower, folder / "sub/c.wav")
  np.testing.assert_allclose(vectors[2:5], expected, atol=2e-4)
  np.testing.assert_allclose(vectors[5:], found["text_embeddings"], atol=1e-6)
  assert [row["source"] for row in rows[5:]] == found["texts"].tolist()


def test_stream_gives_the_windows_of_the_whole(tower):
  rate_hz = tower.config.mel.sample_rate_hz
  whole = np.random.default_rng(0).normal(size=35 * rate_hz + 777) * 0.1
  whole = whole.astype(np.float32)
  ends = np.cumsum(np.random.default_rng(1).integers(1, 90_000, 20))
  parts = list(tower.embed_stream(np.split(whole, ends)))
  assert len(parts) == 2 and len(parts[0]) == 32
  expected = tower.embed_windows(whole[None], rate_hz)[0]
  np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)


def test_bad_files_are_skipped_listed_and_tried_again(mulan, tmp_path, capsys):
  folder, index = tmp_path / "music", tmp_path / "index"
  _write(folder, ["a.wav", "b.wav"])
  (folder / "bad.wav").write_bytes(b"RIFF nothing")
  (folder / "empty.flac").write_bytes(b"")
  options = ["embed", folder, f"--mulan={mulan}", f"--output={index}"]
  assert _run(*options) == 1
  out, err = capsys.readouterr()
  assert "2 files, 2 vectors" in out and "2 of 4 files failed" in err
  assert "bad.wav" in err and "empty.flac" in err
  opened = audio_index.AudioIndex.open(index)
  assert [pathlib.Path(one["path"]).name for one in opened.skipped] == [
    "bad.wav",
    "empty.flac",
  ]
  _write(folder, ["bad.wav"])
  (folder / "empty.flac").unlink()
  assert _run(*options) == 0
  assert "2 of 3 files are there already" in capsys.readouterr().out
  assert audio_index.AudioIndex.open(index).count() == (3, 3)
  # A single bad file is one line.
  (tmp_path / "c.wav").write_bytes(b"x")
  table = tmp_path / "c.npz"
  assert (
    _run("embed", tmp_path / "c.wav", f"--mulan={mulan}", f"--output={table}")
    == 1
  )
  err = capsys.readouterr().err.strip().splitlines()
  assert len([line for line in err if line.startswith("musiclm")]) == 1
  assert not table.exists()


def test_index_follows_changed_and_vanished_files(mulan, tower, tmp_path):
  folder, index = tmp_path / "music", tmp_path / "index"
  _write(folder, ["a.wav", "b.wav", "c.wav"])
  options = ["embed", folder, f"--mulan={mulan}", f"--output={index}"]
  assert _run(*options, "--windows") == 0
  opened = audio_index.AudioIndex.open(index)
  assert opened.count() == (3, 5)
  sound = tokenizer_artifacts.music(3.25, 9)
  files.write_wav(folder / "b.wav", sound, RATE_HZ)
  (folder / "a.wav").unlink()
  other = tmp_path / "other"
  _write(other, ["d.wav"])
  assert _run(*options, other, "--windows") == 0
  assert opened.count() == (3, 6)
  hits = opened.search(_whole(tower, folder / "b.wav")[1], 10)
  assert [pathlib.Path(hit.path).name for hit in hits[:1]] == ["b.wav"]
  assert hits[0].start_secs == 1.0
  assert hits[0].score == pytest.approx(1.0, abs=1e-3)
  assert {pathlib.Path(hit.path).name for hit in hits} == {
    "b.wav",
    "c.wav",
    "d.wav",
  }


def test_search_is_exact_over_parts(tmp_path):
  generator = np.random.default_rng(0)
  vectors = text_mapper.unit(generator.normal(size=(60, 8))).astype(np.float32)
  config = audio_index.IndexConfig("0123", 8, True, 10.0)
  index = audio_index.AudioIndex.create(tmp_path / "index", config)
  # 20 files of 3 windows each, in parts of 8, 8 and 4.
  found = [
    audio_index.FileEmbedding(
      f"/music/{number:02d}", 1, 1, np.arange(3.0), vectors[3 * number :][:3]
    )
    for number in range(20)
  ]
  for start in (0, 8, 16):
    index.add(found[start : start + 8])
  query = generator.normal(size=8)
  scores = (vectors @ query / np.linalg.norm(query)).reshape(20, 3)
  order = np.argsort(-scores.max(1))[:5]
  hits = audio_index.AudioIndex.open(tmp_path / "index").search(query, 5)
  assert [hit.path for hit in hits] == [f"/music/{n:02d}" for n in order]
  assert [hit.start_secs for hit in hits] == list(scores[order].argmax(1))
  np.testing.assert_allclose(
    [hit.score for hit in hits], scores.max(1)[order], rtol=1e-5
  )
  assert len(index.search(query, 99)) == 20


class _Page(html.parser.HTMLParser):
  """Sources of players, and every address the page would load."""

  def __init__(self, text):
    super().__init__()
    self.players, self.addresses = [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    if tag == "audio":
      self.players.append(values["src"])
    assert tag != "script"
    self.addresses += [
      values[name] for name in ("src", "href") if name in values
    ]


def test_search_prints_and_writes_a_page(mulan, tower, tmp_path, capsys):
  folder, index = tmp_path / "my music", tmp_path / "index"
  _write(folder, ["a & b.wav", "c#1.wav", "d.wav"])
  assert _run("embed", folder, f"--mulan={mulan}", f"--output={index}") == 0
  page = tmp_path / "pages" / "found.html"
  search = ["search", f"--index={index}", f"--mulan={mulan}", "--top_k=2"]
  capsys.readouterr()
  assert _run(*search, "<slow> piano", f"--html={page}") == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ["rank", "cosine", "file"] and len(lines) == 5
  assert _run(*search, "<slow> piano", "--json") == 0
  record = json.loads(capsys.readouterr().out)
  text = tower.embed_text(["<slow> piano"])[0]
  with np.load(next(index.glob("part-*.npz"))) as part:
    scores = dict(zip(part["paths"].tolist(), part["embeddings"] @ text))
  nearest = sorted(scores, key=scores.get, reverse=True)[:2]
  assert [hit["path"] for hit in record["hits"]] == nearest
  assert record["num_files"] == 3
  content = page.read_text()
  assert "&lt;slow&gt; piano" in content and "<slow>" not in content
  parsed = _Page(content)
  assert [
    os.path.realpath(page.parent / urllib.parse.unquote(source))
    for source in parsed.players
  ] == nearest
  assert not any("://" in address for address in parsed.addresses)
  # Asked with its own audio, a file is the first; the page carries the sound.
  query = folder / "d.wav"
  options = [*search, f"--audio={query}", f"--html={page}", "--embed_audio"]
  assert _run(*options, "--json") == 0
  record = json.loads(capsys.readouterr().out)
  assert record["hits"][0]["path"] == str(query)
  players = _Page(page.read_text()).players
  assert len(players) == 3
  assert all(one.startswith("data:audio/flac;base64,") for one in players)


def test_refusals(mulan, tmp_path, capsys):
  folder, index = tmp_path / "music", tmp_path / "index"
  _write(folder, ["a.wav"])
  other = tmp_path / "other"
  tokenizer_artifacts.write_mulan(other, seed=9)
  assert _run("embed", folder, f"--mulan={mulan}", f"--output={index}") == 0
  marks = [
    tokenizers.MuLanTokenizer.load(one).fingerprint for one in (mulan, other)
  ]
  capsys.readouterr()
  for argv in (
    ["search", "piano", f"--index={index}"],
    ["embed", folder, f"--output={index}"],
  ):
    assert _run(*argv, f"--mulan={other}") == 1
    err = capsys.readouterr().err
    assert all(mark in err for mark in marks) and err.count("\n") == 1
  cases = [
    (["search", f"--index={index}"], "nothing to search for"),
    (["search", "a", "--audio=b.wav", f"--index={index}"], "not both"),
    (["search", "piano", f"--index={folder}"], "no index"),
    (["search", "piano", f"--index={index}", "--top_k=0"], "--top_k=0"),
    (["search", " ", f"--index={index}"], "expected at least one word"),
    (["embed", f"--output={index}"], "nothing to embed"),
    (["embed", "--text=a", f"--output={tmp_path / 'y'}"], ".npz"),
    (["embed", tmp_path / "no", f"--output={index}"], "no file or folder"),
    (["embed", folder, f"--output={folder}"], "is no index"),
    (["embed", folder, "--windows", f"--output={index}"], "by_window=False"),
  ]
  for argv, message in cases:
    assert _run(*argv, f"--mulan={mulan}") == 1, argv
    assert message in capsys.readouterr().err, argv


def test_a_full_disk_or_a_kill_leaves_nothing_half_written(
  mulan, tower, tmp_path, capfd
):
  _write(tmp_path / "music", ["a.wav", "b.wav"])
  embed = ["embed", tmp_path / "music", f"--mulan={mulan}"]
  out = tmp_path / "out"
  for name in ("index", "a.npz", "a.csv"):
    with full_disk.room(600):
      assert _run(*embed, f"--output={out / name}") == 42
    assert str(out / name) in full_disk.told(capfd)
    assert list(full_disk.files(out)) == ["index/index.json"]
  killed = out / "killed"
  for limit in (50, 2000):  # in the header, in a part
    argv = [sys.executable, "-c", _KILLED, str(limit), killed]
    done = subprocess.run([*argv, tower.fingerprint], check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert any(name.endswith(".writing") for name in full_disk.files(killed))
  for name in ("index", "killed"):
    assert _run(*embed, f"--output={out / name}") == 0
  assert full_disk.files(killed) == full_disk.files(out / "index")


def test_embed_and_search_load_no_tensorflow(mulan, tmp_path):
  _write(tmp_path / "music", ["a.wav"])
  code = (
    "import sys; from musiclm_jax.cli import main; "
    f"m = '--mulan={mulan}'; i = {str(tmp_path / 'index')!r}; "
    f"a = main.main(['embed', {str(tmp_path / 'music')!r}, m, "
    "'--output=' + i]); "
    "b = main.main(['search', 'piano', m, '--index=' + i, "
    f"'--html={tmp_path / 'page.html'}']); "
    "print(a, b, sorted({'tensorflow', 'seqio', 'orbax', 'gin'} & "
    "set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines()[-1] == "0 0 []"
