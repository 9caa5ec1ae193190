# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: help, exit codes, one-line errors."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*argv, **environment):
  return subprocess.run(
    [sys.executable, "-m", "musiclm_jax.cli.main", *argv],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    timeout=300,
  )


def test_help_is_quick_and_lists_all_verbs():
  seconds = []
  for _ in range(3):
    start = time.monotonic()
    result = run("--help")
    seconds.append(time.monotonic() - start)
  assert result.returncode == 0
  assert min(seconds) < 1.0
  for verb in main_lib.VERBS:
    assert verb in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize("variable", [None, "", "glibc.malloc.check=0"])
def test_a_process_asks_for_huge_pages_once(variable):
  # Prints the variable from the process that ends up in `main`.
  code = (
    "import os; from musiclm_jax.cli import main;"
    "main.main = lambda: print(os.environ['GLIBC_TUNABLES'], os.getpid());"
    "main.start()"
  )
  environment = {**os.environ, "GLIBC_TUNABLES": variable or ""}
  if variable is None:
    del environment["GLIBC_TUNABLES"]
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
  )
  output, _ = process.communicate()
  expected = "glibc.malloc.hugetlb=1" if variable is None else variable
  assert output == f"{expected} {process.pid}\n"


@pytest.mark.parametrize("verb", main_lib.VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
  with pytest.raises(SystemExit) as caught:
    main_lib.main([verb, "--help"])
  assert caught.value.code == 0
  out = capsys.readouterr().out
  assert "example" in out and f"musiclm {verb}" in out


def _line(capsys):
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("musiclm: ")
  return lines[0]


GENERATE = ("generate", "--bundle=nowhere", "--output=x.wav")


@pytest.mark.parametrize(
  "argv, expected",
  [
    ((*GENERATE, "--prompt="), "expected a non-empty text"),
    ((*GENERATE, "--prompt=   "), "expected a non-empty text"),
    ((*GENERATE,), "no prompt given"),
    ((*GENERATE, "--prompt=a", "--seconds=-1"), "--seconds=-1.0"),
    ((*GENERATE, "--prompt=a", "--seconds=nan"), "--seconds=nan"),
    ((*GENERATE, "--prompt=a", "--temperatures=1,2"), "three numbers"),
    ((*GENERATE, "--prompt=a", "--batch_size=0"), "--batch_size=0"),
    ((*GENERATE, "--prompt=a", "--prompt=b"), "use --output_dir"),
    ((*GENERATE, "--prompt=a"), "no bundle at nowhere"),
    (
      ("generate", "--bundle=b", "--prompt=a"),
      "--output, --output_dir and --stream",
    ),
    (
      ("generate", "--bundle=b", "--prompts=nofile", "--output_dir=d"),
      "no prompt file at nofile",
    ),
  ],
)
def test_bad_generate_input_is_one_line(argv, expected, capsys):
  assert main_lib.main(list(argv)) == 1
  assert expected in _line(capsys)


def test_report_without_evaluation(tmp_path, capsys):
  assert main_lib.main(["report", f"--workdir={tmp_path}"]) == 1
  assert "no evaluation at" in _line(capsys)


def test_gin_binding_for_a_verb_without_gin(capsys):
  with pytest.raises(SystemExit) as caught:
    main_lib.main(["report", "--workdir=x", "--gin.A=1"])
  assert caught.value.code == 2
  assert "reads no gin file" in capsys.readouterr().err


@pytest.mark.parametrize(
  "error, code",
  [
    (errors.UserError("u"), 1),
    (ValueError("v"), 1),
    (FileNotFoundError(2, "f"), 1),
    (FloatingPointError("n"), 1),
    (errors.RetryError("r"), 42),
    (OSError(28, "No space left on device"), 42),
    (errors.Preempted("p"), 143),
  ],
)
def test_exit_codes(error, code, monkeypatch, capsys):
  def fail(argv):
    raise error

  monkeypatch.setattr(main_lib, "run", fail)
  assert main_lib.main([]) == code
  _line(capsys)


def test_a_bug_shows_its_traceback(monkeypatch, capsys):
  def fail(argv):
    raise KeyError("oops")

  monkeypatch.setattr(main_lib, "run", fail)
  assert main_lib.main([]) == 1
  text = capsys.readouterr().err
  assert "Traceback" in text and "internal error" in text


def test_missing_corpus_is_named(tmp_path, capsys):
  code = main_lib.main(
    [
      "train",
      "--gin_file=experiments/musiclm_soundstream_tiny_score_corpus.gin",
      f"--gin.CORPUS_DIR={str(tmp_path / 'none')!r}",
      "--gin.TRAIN_STEPS=1",
      f"--model_dir={tmp_path / 'model'}",
    ]
  )
  assert code == 1
  assert "musiclm prepare" in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
  "option", ["--model_dir=gs://b/run", "--gin.CORPUS_DIR=('s3://b/c', 'd')"]
)
def test_buckets_must_be_mounted(option, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  argv = ["train", "--gin_file=none.gin", "--model_dir=run", option]
  assert main_lib.main(argv) == 1
  line = _line(capsys)
  assert option in line and "mount" in line
  assert not list(tmp_path.iterdir())


def test_inference_imports_no_tensorflow():
  """And takes less than 3 s on a quiet machine (CPU seconds are counted)."""
  code = (
    "import sys, time; import musiclm_jax.systems.musiclm;"
    "print(time.process_time(), any(m.split('.')[0] in"
    " ('tensorflow', 'seqio', 'gin', 'clu') for m in sys.modules))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  seconds, loaded = result.stdout.split()
  assert loaded == "False"
  assert float(seconds) < 3.0


def test_prompt_files(tmp_path):
  from musiclm_jax.cli import prompt_files

  path = tmp_path / "p.jsonl"
  prompt_files.write(path, [{"prompt": "a b", "source": "x"}])
  assert prompt_files.read(path) == ["a b"]
  text = tmp_path / "p.txt"
  text.write_text("one\n\n two \n")
  assert prompt_files.read(text) == ["one", "two"]
  path.write_text(json.dumps({"text": "no"}))
  with pytest.raises(errors.UserError, match="p.jsonl:1"):
    prompt_files.read(path)
