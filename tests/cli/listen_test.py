# SPDX-License-Identifier: Apache-2.0
"""A listening test over HTTP: what is kept, what is refused, what is told."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import listening_sets
import numpy as np
import pytest
import small_corpus

from musiclm_jax.audio import files
from musiclm_jax.cli import listen_server, listen_store, serving
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors
from musiclm_jax.evaluation import (
  listening_answers,
  listening_build,
  listening_files,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-tests"


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory):
  return listening_sets.write_systems(tmp_path_factory.mktemp("systems"), 3)


@pytest.fixture(name="folder")
def _folder(folders, tmp_path):
  listening_build.build(listening_sets.plan(folders), tmp_path / "test")
  return tmp_path / "test"


def ask(port, method, path, content=None, headers=None, body=None):
  """Status, headers and body of one request on a connection of its own."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
  headers = dict(headers or {})
  if content is not None:
    body = json.dumps(content)
    headers = {"Content-Type": "application/json", **headers}
  connection.request(method, path, body, headers)
  response = connection.getresponse()
  data = response.read()
  connection.close()
  return response.status, dict(response.getheaders()), data


def join(port, rater="anna"):
  status, _, data = ask(port, "POST", "/api/join", {"rater": rater})
  assert status == 200, data
  return json.loads(data)


def answer_of(folder, item, /, **changes):
  test = listening_files.read_test(folder)
  secs = listening_sets.SECS
  return {
    "fingerprint": test.fingerprint,
    "rater": "anna",
    "item": item,
    "preference": -1,
    "played_secs": [secs, secs],
    "secs": 3.5,
    **changes,
  }


def test_answers_are_kept_once_and_raters_go_on(folder):
  with listening_sets.Running(folder) as running:
    port = running.port
    about = json.loads(ask(port, "GET", "/api/test")[2])
    assert about["num_items"] == 8 and len(about["scale"]) == 5
    items = [one["item"] for one in join(port, " Anna ")["items"]]
    first = answer_of(folder, items[0])
    assert ask(port, "POST", "/api/answer", first)[0] == 200
    # The reply was lost on its way, and the page sends it again.
    assert ask(port, "POST", "/api/answer", first)[0] == 200
    other = answer_of(folder, items[0], preference=2)
    status, _, data = ask(port, "POST", "/api/answer", other)
    assert status == 409 and b"another answer already" in data
    assert join(port, "ANNA")["answered"] == [items[0]]
    assert join(port, "ben")["answered"] == []
    status, _, data = ask(port, "POST", "/api/join", {"rater": "carl"})
    assert status == 409 and b"all 2 places" in data
    # Ben's questions are not Anna's.
    mine = join(port, "ben")["items"][0]["item"]
    assert ask(port, "POST", "/api/answer", answer_of(folder, mine))[0] == 400
  lines = (folder / "answers.jsonl").read_text().splitlines()
  kinds = [json.loads(line)["kind"] for line in lines]
  assert kinds == ["join", "answer", "join"]
  with listening_sets.Running(folder) as running:
    assert join(running.port)["answered"] == [items[0]]


@pytest.mark.parametrize(
  "changes",
  [
    {"preference": 3},
    {"preference": 1.0},
    {"preference": True},
    {"preference": "1"},
    {"preference": None},
    {"item": "x"},
    {"item": 3},
    {"item": "../../key.json"},
    {"rater": "nobody"},
    {"rater": ""},
    {"rater": "x" * 41},
    {"rater": "<script>"},
    {"rater": ["anna"]},
    {"secs": -1},
    {"secs": 1e9},
    {"secs": "3"},
    {"played_secs": [0.6]},
    {"played_secs": [0.6, 0.0]},
    {"played_secs": {"a": 1}},
    {"more": 1},
  ],
)
def test_bad_answers_are_refused(shared, changes):
  folder, port, item = shared
  status, _, data = ask(
    port, "POST", "/api/answer", answer_of(folder, item, **changes)
  )
  assert status == 400 and json.loads(data)["error"]
  assert item not in join(port)["answered"]


@pytest.fixture(name="shared", scope="module")
def _shared(folders, tmp_path_factory):
  """Folder, port and an open question of Anna, for what changes nothing."""
  target = tmp_path_factory.mktemp("shared") / "test"
  listening_build.build(listening_sets.plan(folders), target)
  with listening_sets.Running(target) as running:
    yield target, running.port, join(running.port)["items"][0]["item"]


def test_odd_requests_get_an_answer_and_no_traceback(shared, capfd):
  folder, port, item = shared
  good = json.dumps(answer_of(folder, item))
  typed = {"Content-Type": "application/json"}
  odd = [
    ("GET", "/../key.json", None, {}, 404),
    ("GET", "/clips/../../key.json", None, {}, 404),
    ("GET", "/clips/%2e%2e/%2e%2e/key.json", None, {}, 404),
    ("GET", "/clips/..%2f..%2fkey.json", None, {}, 404),
    ("GET", "//etc/passwd", None, {}, 404),
    ("GET", "/test.json", None, {}, 404),
    ("GET", "/clips/", None, {}, 404),
    ("GET", "/clips/" + "a" * 20000, None, {}, 404),
    ("GET", "/?" + "&".join(["a=1"] * 50), None, {}, 400),
    ("GET", "/", "body", {"Content-Length": "4"}, 400),
    ("GET", "/api/join", None, {}, 404),
    ("GET", "/", None, {"Host": "evil.example"}, 403),
    ("DELETE", "/api/answer", None, {}, 405),
    ("PUT", "/api/answer", good, typed, 405),
    ("POST", "/", good, typed, 404),
    ("POST", "/api/answer", good, {}, 415),
    ("POST", "/api/answer", good, {"Content-Type": "text/plain"}, 415),
    ("POST", "/api/answer", " " * 5000, typed, 413),
    ("POST", "/api/answer", None, {**typed, "Content-Length": "-1"}, 400),
    ("POST", "/api/answer", None, {**typed, "Content-Length": "9" * 30}, 400),
    ("POST", "/api/answer", "", typed, 400),
    ("POST", "/api/answer", "[" * 4000, typed, 400),
    ("POST", "/api/answer", "[]", typed, 400),
    ("POST", "/api/answer", "null", typed, 400),
    ("POST", "/api/answer", b"\xff\xfe", typed, 400),
    ("POST", "/api/answer", good.replace("3.5", "NaN"), typed, 400),
    ("POST", "/api/answer", good.replace("3.5", "1e999"), typed, 400),
    ("POST", "/api/answer", good.replace("3.5", "9" * 3000), typed, 400),
    ("POST", "/api/answer", good[:-5], typed, 400),
    ("POST", "/api/join", "{}", typed, 400),
    ("POST", "/api/join", '{"rater": "a", "b": 1}', typed, 400),
    ("POST", "/api/join", json.dumps({"rater": "\u0000"}), typed, 400),
    ("POST", "/api/join", '{"rater": "\\ud800"}', typed, 400),
  ]
  for method, path, body, headers, expected in odd:
    status, _, data = ask(port, method, path, None, headers, body)
    assert status == expected, (method, path[:60], status, data)
    assert b"Traceback" not in data and b"error" in data
  for raw in (
    b"nonsense\r\n\r\n",
    b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\0" * 70000,
  ):
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
      connection.sendall(raw)
      connection.shutdown(socket.SHUT_WR)
      # Without a version in the request there is no status in the reply.
      reply = b"".join(iter(lambda c=connection: c.recv(1 << 16), b""))
      assert not reply or b'{"error"' in reply
  of_another = answer_of(folder, item, fingerprint="0" * 64)
  assert ask(port, "POST", "/api/answer", of_another)[0] == 409
  assert ask(port, "GET", "/api/test")[0] == 200
  assert capfd.readouterr().err == ""


def test_parts_of_clips(shared):
  _, port, _ = shared
  path = "/" + join(port)["items"][0]["first"]
  status, headers, whole = ask(port, "GET", path)
  assert status == 200 and headers["Accept-Ranges"] == "bytes"
  assert whole[:4] == b"RIFF"
  for asked, part in (
    ("bytes=0-1", whole[:2]),
    ("bytes=100-", whole[100:]),
    ("bytes=-10", whole[-10:]),
    ("bytes=5-999999999", whole[5:]),
  ):
    status, headers, data = ask(port, "GET", path, headers={"Range": asked})
    assert status == 206 and data == part
    assert headers["Content-Range"].endswith(f"/{len(whole)}")
  for asked in ("bytes=999999999-", "bytes=-0"):
    assert ask(port, "GET", path, headers={"Range": asked})[0] == 416
  for asked in ("bytes=5-1", "bytes=-", "lines=1-2", "bytes=0-1,4-5"):
    assert ask(port, "GET", path, headers={"Range": asked})[0] == 200
  status, headers, data = ask(port, "HEAD", path)
  assert (status, data) == (200, b"")
  assert int(headers["Content-Length"]) == len(whole)


def test_nothing_that_is_served_names_a_system(shared):
  _, port, _ = shared
  reply = join(port)
  paths = ["/", "/listen.js", "/listen.css", "/api/test", "/nothing"]
  for item in reply["items"]:
    paths += ["/" + item["first"], "/" + item["second"]]
  heard = [json.dumps(reply).encode()]
  for path in paths:
    status, headers, data = ask(port, "GET", path)
    heard += [json.dumps(headers).encode(), data, path.encode()]
    assert "Last-Modified" not in headers
  words = [name.encode() for name in listening_sets.SYSTEMS]
  words += [b"made_by", b"generated_by", b"key.json", b"is_check", b"Python"]
  for data in heard:
    assert not any(word in data for word in words)
  # Nor do sizes.
  sizes = {len(data) for data in heard if data[:4] == b"RIFF"}
  assert len(sizes) == 1


def test_a_token_is_needed_where_there_is_one(folder):
  with listening_sets.Running(folder, TOKEN) as running:
    port = running.port
    assert ask(port, "GET", "/")[0] == 403
    assert ask(port, "GET", "/?token=wrong")[0] == 403
    status, headers, _ = ask(port, "GET", f"/?token={TOKEN}")
    assert status == 200
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    shown = {"Cookie": cookie.split(";")[0]}
    # Nothing given beside a good cookie gets into a header.
    path = "/?token=x%0d%0aSet-Cookie:%20a=b"
    status, headers, _ = ask(port, "GET", path, headers=shown)
    assert status == 200 and "Set-Cookie" not in headers
    content = {"rater": "anna"}
    assert ask(port, "POST", "/api/join", content)[0] == 403
    assert ask(port, "POST", "/api/join", content, shown)[0] == 200


def test_tokens(monkeypatch):
  name = "MUSICLM_TEST_TOKEN"
  assert serving.token_for("127.0.0.1", "", name) == ""
  assert serving.token_for("localhost", "", name) == ""
  assert len(serving.token_for("0.0.0.0", "", name)) > 16
  assert serving.token_for("127.0.0.1", TOKEN, name) == TOKEN
  monkeypatch.setenv(name, "of-the-environment")
  assert serving.token_for("127.0.0.1", "", name) == "of-the-environment"
  with pytest.raises(errors.UserError, match="--token"):
    serving.token_for("0.0.0.0", "short", name)


def test_raters_at_once(folder):
  with listening_sets.Running(folder) as running:
    port = running.port
    sheets = {name: join(port, name)["items"] for name in ("anna", "ben")}

    def send(work):
      name, item = work
      content = answer_of(folder, item["item"], rater=name)
      return ask(port, "POST", "/api/answer", content)[0]

    # Each answer three times, from several threads.
    work = [(n, item) for n, items in sheets.items() for item in items] * 3
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      assert set(pool.map(send, work)) == {200}
  test = listening_files.read_test(folder)
  log = listening_answers.read(folder / "answers.jsonl", test)
  assert len(log.answers) == 16
  assert len((folder / "answers.jsonl").read_text().splitlines()) == 18


def test_a_full_disk_loses_nothing(folder, monkeypatch):
  test = listening_files.read_test(folder)
  store = listen_store.AnswerStore(folder / "answers.jsonl", test)
  rater, sheet = store.join("anna")
  before = (folder / "answers.jsonl").read_bytes()
  content = answer_of(folder, test.sheets[sheet][0].item)
  del content["fingerprint"]
  with monkeypatch.context() as patch:

    def half(handle, data, write=os.write):
      return write(handle, data[: len(data) // 2])

    patch.setattr(os, "write", half)
    with pytest.raises(OSError, match="bytes were written"):
      store.answer(content)
  assert (folder / "answers.jsonl").read_bytes() == before
  assert store.answered(rater) == {}
  store.answer(content)
  assert store.answered(rater) == {content["item"]: -1}
  with pytest.raises(errors.UserError, match="is in use"):
    listen_store.AnswerStore(folder / "answers.jsonl", test)
  store.close()


def serve(folder):
  """A server of its own, and its port."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "musiclm_jax.cli.main", "listen", "serve"),
      *("--test_dir", str(folder), "--port", "0"),
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  line = process.stdout.readline()
  assert line.startswith("musiclm listen: http://127.0.0.1:"), line
  return process, int(line.rstrip().rstrip("/").rpartition(":")[2])


def test_killed_servers_lose_no_answer(folder):
  path = folder / "answers.jsonl"
  kept = []
  for number in range(2):
    process, port = serve(folder)
    try:
      reply = join(port)
      assert sorted(reply["answered"]) == sorted(kept)
      for item in reply["items"][3 * number : 3 * number + 3]:
        content = answer_of(folder, item["item"])
        assert ask(port, "POST", "/api/answer", content)[0] == 200
        kept.append(item["item"])
    finally:
      process.send_signal(signal.SIGKILL)
      process.wait()
      process.stdout.close()
    # As if it had been killed in the middle of the next line.
    with path.open("ab") as file:
      file.write(b'{"fingerprint": "abc", "kin')
  with listening_sets.Running(folder) as running:
    assert sorted(join(running.port)["answered"]) == sorted(kept)
  assert path.read_bytes().endswith(b"}\n")


def run(*argv):
  return main_lib.main(["listen", *argv])


def test_commands_from_build_to_score(folders, tmp_path, capsys):
  folder = tmp_path / "test"
  systems = [f"--system={name}={path}" for name, path in folders.items()]
  options = ["--seconds=0.6", "--num_raters=2", "--raters_per_comparison=2"]
  arguments = ["build", *systems, *options, f"--output_dir={folder}"]
  assert run(*arguments) == 0
  assert "2 raters, each 9 comparisons of 3 pairs" in capsys.readouterr().out
  assert run("score", f"--test_dir={folder}") == 1
  assert "no answers at" in capsys.readouterr().err
  test = listening_files.read_test(folder)
  key = listening_files.read_key(folder, test)
  with listening_sets.Running(folder) as running:
    for rater in ("anna", "ben"):
      for item in join(running.port, rater)["items"]:
        # Simulated: the first system is always preferred.
        behind = key.items[item["item"]]
        liked = listening_sets.SYSTEMS[0]
        value = {behind.first: -2, behind.second: 2}.get(liked, 0)
        content = answer_of(folder, item["item"], rater=rater, preference=value)
        assert ask(running.port, "POST", "/api/answer", content)[0] == 200
  assert run("score", f"--test_dir={folder}", "--num_resamples=50") == 0
  assert "| zyqtruth | 12 | 12 | 0 | 0 |" in capsys.readouterr().out
  scores = json.loads((folder / "score" / "listening.json").read_text())
  assert scores["fingerprint"] == test.fingerprint
  assert (folder / "score" / "index.html").is_file()
  # Answers of another test of the same systems.
  assert run(*arguments[:-1], f"--output_dir={tmp_path / 'other'}") == 0
  answers = f"--answers={folder / 'answers.jsonl'}"
  assert run("score", f"--test_dir={tmp_path / 'other'}", answers) == 1
  assert "answers.jsonl:1: it is of the test" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--system=a=x"], "1 systems: expected --system 2 to 8 times"),
    (["--system=a=x", "--system=a=y"], "a is given twice"),
    (["--system=a/b=x", "--system=c=y"], "--system=a/b=x: expected NAME=DIR"),
    (["--system=a=x", "--system=b=y"], "no folder at x"),
    (["--system=a=x", "--system=b=y", "--seconds=nan"], "--seconds=nan"),
    (["--system=a=x", "--system=b=y", "--num_raters=0"], "--num_raters=0"),
  ],
)
def test_bad_options(arguments, message, tmp_path, capsys):
  assert run("build", *arguments, f"--output_dir={tmp_path / 'test'}") == 1
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_damaged_logs_are_named(folder, tmp_path):
  test = listening_files.read_test(folder)
  path = tmp_path / "answers.jsonl"
  head = {"fingerprint": test.fingerprint, "kind": "join", "rater": "a"}
  for line, message in (
    ("not json", "answers.jsonl:2: Expecting value"),
    (json.dumps({**head, "rater": "b", "sheet": 0}), "sheet 0 is there"),
    (json.dumps({**head, "sheet": 7}), "sheet=7: expected one of 2"),
    (json.dumps({**head, "kind": "no"}), "kind='no'"),
  ):
    path.write_text(json.dumps({**head, "sheet": 0}) + "\n" + line + "\n")
    with pytest.raises(errors.UserError, match=message):
      listening_answers.read(path, test)
    with pytest.raises(errors.UserError, match=message):
      listen_store.AnswerStore(path, test)


def test_names_that_unicode_rewrites_keep_one_place(folder):
  # U+037A becomes a space and a letter.
  names = ["good", "a \u037a", "a \u037a", "a  \u03b9", "\u0939\u093f"]
  with listening_sets.Running(folder) as running:
    told = [ask(running.port, "POST", "/api/join", {"rater": "good"})[0]]
    told += [
      ask(running.port, "POST", "/api/join", {"rater": name})[0]
      for name in names[1:4]
    ]
    assert told == [200] * 4
    # Both sheets are given out.
    late = ask(running.port, "POST", "/api/join", {"rater": names[4]})
    assert late[0] != 200 and b"taken" in late[2]
  test = listening_files.read_test(folder)
  log = listening_answers.read(folder / "answers.jsonl", test)
  assert list(log.sheets) == ["good", "a \u03b9"]


@pytest.mark.parametrize(
  "name, kept",
  [
    ("  Anna  B. ", "anna b."),
    ("\u0939\u093f\u0928\u094d\u0926\u0940", None),  # marks within
    ("\u0e1e\u0e34\u0e21\u0e1e\u0e4c", None),
    ("_x", "_x"),
    ("7", "7"),
  ],
)
def test_names_of_raters(name, kept):
  found = listening_answers.rater_name(name)
  assert found == (kept or found)
  assert listening_answers.rater_name(found) == found


@pytest.mark.parametrize("name", ["", " ", ".a", "a/b", "a\tb\0", "x" * 41, 3])
def test_what_is_no_name(name):
  with pytest.raises(ValueError, match="expected a name or code"):
    listening_answers.rater_name(name)


def test_what_the_log_refuses_does_not_stay(folder, tmp_path):
  test = listening_files.read_test(folder)
  path = tmp_path / "answers.jsonl"
  store = listen_store.AnswerStore(path, test)
  store.join("anna")
  before = path.read_bytes()
  with pytest.raises(ValueError, match="is there already"):
    store._append({"kind": "join", "rater": "anna", "sheet": 1})
  assert path.read_bytes() == before
  store.close()
  assert list(listening_answers.read(path, test).sheets) == ["anna"]


def test_reference_clips_of_prompts(tmp_path, capsys):
  sound = 0.1 * np.ones(800, np.float32)
  records = [
    {
      "id": name,
      "audio": files.encode_flac(sound, 8000),
      "sample_rate_hz": 8000,
      "num_samples": len(sound),
      "work_id": name,
      "arrangement": "",
      "captions": ["a tune"],
      "aspects": [],
    }
    for name in ("one", "two")
  ]
  corpus = small_corpus.build_corpus(str(tmp_path), {"test": records})
  prompts = tmp_path / "prompts.jsonl"

  def reference(*rows):
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(
      "reference",
      f"--corpus_dir={corpus}",
      f"--prompts={prompts}",
      f"--output_dir={tmp_path / 'out'}",
    )

  told = {"prompt": "a tune", "source": {"clip_id": "two", "kind": "k"}}
  assert not reference(told, {"prompt": "another", "source": "one"})
  rows = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
  assert [json.loads(row)["source"] for row in rows] == ["two", "one"]
  capsys.readouterr()
  for row, message in (
    ({"prompt": "a tune"}, "prompt 'a tune' has no source"),
    ({"prompt": "a tune", "source": "tow"}, "no clip 'tow' in split test"),
    ({"prompt": 5, "source": "one"}, "prompt=5: expected a non-empty text"),
  ):
    assert reference(row) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_idle_connections_end(folder, monkeypatch):
  monkeypatch.setattr(listen_server._Handler, "timeout", 0.2)
  with (
    listening_sets.Running(folder) as running,
    socket.create_connection(("127.0.0.1", running.port), 20) as idle,
  ):
    idle.sendall(b"GET / HT")
    start = time.monotonic()
    while idle.recv(4096):
      pass
    assert time.monotonic() - start < 10
