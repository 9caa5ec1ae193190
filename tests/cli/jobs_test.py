# SPDX-License-Identifier: Apache-2.0
"""Verbs read the same settings from flags and from gin."""

import argparse
import dataclasses

import pytest

from musiclm_jax.cli import jobs
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import errors

CLASSES = {
  "tokenize": jobs.TokenizeJob,
  "generate": jobs.GenerateJob,
  "evaluate": jobs.EvaluateJob,
}


def build(verb, *argv):
  parser = argparse.ArgumentParser()
  jobs.add_arguments(parser, CLASSES[verb])
  flags = [one for one in argv if not one.startswith("--gin.")]
  args = parser.parse_args(flags)
  args.gin_overrides = [
    one.removeprefix("--gin.") for one in argv if one.startswith("--gin.")
  ]
  return jobs.build(CLASSES[verb], args)


def values(job):
  """A different value for each field, as text."""
  by_type = {int: "7", float: "0.5"}
  return {
    field.name: by_type.get(field.type, f"some {field.name}")
    for field in dataclasses.fields(job)
  }


@pytest.mark.parametrize("verb", CLASSES)
def test_flags_and_macros_set_every_field(verb):
  given = values(CLASSES[verb])
  flags = build(verb, *(f"--{name}={text}" for name, text in given.items()))
  run = f"--gin_file=runs/{verb}.gin"
  macros = [f"--gin.{name.upper()}={text}" for name, text in given.items()]
  both = [f"--{name}={text}" for name, text in given.items()]
  assert flags == build(verb, run, *macros) == build(verb, run, *both)
  for name, text in given.items():
    found = getattr(flags, name)
    assert found == (text,) if isinstance(found, tuple) else str(found) == text


@pytest.mark.parametrize("verb", CLASSES)
def test_run_files_have_the_defaults_of_the_flags(verb):
  required = [
    f"--{field.name}=x"
    for field in dataclasses.fields(CLASSES[verb])
    if field.default is dataclasses.MISSING
  ]
  plain = build(verb, *required)
  assert build(verb, f"--gin_file=runs/{verb}.gin", *required) == plain


def test_flags_win_over_a_users_file(tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text(
    "from __gin__ import dynamic_registration\n"
    "include 'runs/generate.gin'\n"
    "BUNDLE = 'b'\nOUTPUT_DIR = 'd'\nSECONDS = 30.0\n"
    "PROMPT = ('one', 'two')\nTEMPERATURES = (1.0, 0.9, 0.5)\n"
  )
  job = build("generate", f"--gin_file={mine}", "--seconds=5", "--prompt=three")
  assert (job.bundle, job.seconds, job.prompt) == ("b", 5.0, ("three",))
  assert job.temperatures == "1.0,0.9,0.5"


@pytest.mark.parametrize(
  "verb, argv, expected",
  [
    ("tokenize", ["--corpus_dir=c"], "--artifact_dir, --output_dir"),
    ("tokenize", ["--gin_file=runs/tokenize.gin"], "--gin.CORPUS_DIR="),
    ("generate", ["--gin.BUNDLE=b"], "expected a --gin_file"),
    (
      "generate",
      ["--gin_file=runs/generate.gin", "--gin.SECOND=3", "--bundle=b"],
      "did you mean 'SECONDS'",
    ),
    (
      "evaluate",
      ["--gin_file=runs/generate.gin", "--bundle=b"],
      "unused gin binding",
    ),
  ],
)
def test_errors_say_what_to_do(verb, argv, expected):
  with pytest.raises(errors.UserError, match=expected):
    build(verb, *argv)


def test_config_checks_every_run_file(capsys):
  argv = ["--gin.BUNDLE=b", "--gin.OUTPUT=x.wav", "--gin.PROMPT=a"]
  run = "--gin_file=runs/generate.gin"
  assert main_lib.main(["config", "--verb=generate", run, *argv]) == 0
  assert "SEED = 0" in capsys.readouterr().out
