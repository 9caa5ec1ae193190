# SPDX-License-Identifier: Apache-2.0
"""Exported stages: token equality in a process without flax, clear refusals."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_bundle

from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import artifacts, errors
from musiclm_jax.decoding import sampling
from musiclm_jax.systems import exported_stage, stage_export, stage_lm

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = """
import sys
import jax
import numpy as np
from musiclm_jax.decoding import sampling
from musiclm_jax.systems import exported_stage

folder, given, out = sys.argv[1:]
given = np.load(given)
stage = exported_stage.ExportedStage.load(folder + "/stage_semantic")
told = {"mulan": given["mulan"]}
keys = jax.random.split(jax.random.key(4), 2)
plain = stage.generate_long(told, 75, 0.8, keys)
config = sampling.SamplingConfig(1.0, top_k=5, guidance=2.0)
first = {"mulan": given["mulan"][:1]}
guided = stage.generate_long(first, 50, config, keys[:1])
coarse = exported_stage.ExportedStage.load(folder + "/stage_coarse")
told = {"mulan": given["mulan"], "semantic": given["semantic"]}
found = [name for name in sys.modules if name.split(".")[0] == "flax"]
found += [n for n in sys.modules if n.startswith("musiclm_jax.networks")]
found += [n for n in sys.modules if n.startswith("musiclm_jax.layers")]
np.savez(out, plain=plain, guided=guided, found=np.array(found, str),
         coarse=coarse.generate(told, None, 50, 0.0, keys))
"""


@pytest.fixture(name="bundle", scope="module")
def _bundle(tmp_path_factory):
  return small_bundle.write(tmp_path_factory.mktemp("bundle"), ("mulan",))


@pytest.fixture(name="programs", scope="module")
def _programs(bundle, tmp_path_factory):
  folder = tmp_path_factory.mktemp("programs")
  flags = [f"--bundle={bundle}", f"--output_dir={folder}"]
  assert main_lib.main(["export_decode", *flags]) == 0
  return folder


def test_codes_are_the_same_without_flax(bundle, programs, tmp_path):
  generator = np.random.default_rng(0)
  given = {
    "mulan": generator.integers(0, 8, (2, 1, 3)),
    "semantic": generator.integers(0, 8, (2, 25, 1)),
  }
  np.savez(tmp_path / "given.npz", **given)
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
  }
  paths = [programs, tmp_path / "given.npz", tmp_path / "out.npz"]
  command = [sys.executable, "-c", RUN, *map(str, paths)]
  subprocess.run(command, check=True, env=environment)
  made = np.load(tmp_path / "out.npz")
  assert not made["found"].size, made["found"]

  stage = stage_lm.StageLM.load(bundle / "stage_semantic")
  keys = jax.random.split(jax.random.key(4), 2)
  told = {"mulan": given["mulan"]}
  plain = stage.generate_long(told, 75, 0.8, keys)
  np.testing.assert_array_equal(made["plain"], plain)
  assert len(np.unique(plain)) > 2
  config = sampling.SamplingConfig(1.0, top_k=5, guidance=2.0)
  guided = stage.generate_long(
    {"mulan": given["mulan"][:1]}, 50, config, keys[:1]
  )
  np.testing.assert_array_equal(made["guided"], guided)
  coarse = stage_lm.StageLM.load(bundle / "stage_coarse")
  codes = coarse.generate(given, None, 50, 0.0, keys)
  np.testing.assert_array_equal(made["coarse"], codes)


def test_programs_are_for_all_platforms_and_say_what_they_are(bundle, programs):
  folders = sorted(path.name for path in programs.iterdir())
  assert folders == ["stage_coarse", "stage_fine", "stage_semantic"]
  found = artifacts.load(programs / "stage_fine", exported_stage.KIND)
  assert found.config["platforms"] == ["cpu", "tpu", "cuda"]
  assert found.config["jax_version"] == jax.__version__
  stage = artifacts.read_fingerprint(bundle / "stage_fine")
  assert found.config["stage_fingerprint"] == stage
  for content in found.files.values():
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "tpu", "cuda")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"export_version": 2}, "export_version=2: expected 1"),
    ({"platforms": ["tpu"]}, "is for tpu: this process runs on cpu"),
    ({"calling_convention_version": 3}, "calling convention 3: jax"),
  ],
)
def test_what_does_not_fit_is_refused(programs, tmp_path, change, message):
  found = artifacts.load(programs / "stage_semantic")
  artifacts.save(
    tmp_path / "s", found.kind, found.config | change, found.arrays, {},
    found.files,
  )  # fmt: skip
  with pytest.raises(errors.UserError, match=message):
    exported_stage.ExportedStage.load(tmp_path / "s")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"transformer": None}, "has no 'transformer' in its config"),
    ({"tokenizers": None}, "has no 'tokenizers' in its config"),
    ({"spec": {"name": "fine"}}, "cannot be read: .*'segments'"),
    ({"spec": ["fine"]}, "cannot be read: "),
    ({"precision": {"computed": "int4"}}, "Precision has no field 'computed'"),
  ],
)
def test_a_bad_stage_is_one_error_to_all_who_read_it(
  bundle, tmp_path, change, message
):
  found = artifacts.load(bundle / "stage_semantic")
  config = {**found.config, **change}
  config = {name: told for name, told in config.items() if told is not None}
  artifacts.save(tmp_path / "bad", found.kind, config, found.arrays)
  seen = []
  for read in (
    stage_lm.StageLM.load,
    lambda folder: stage_export.export(folder, tmp_path / "out"),
  ):
    with pytest.raises(errors.UserError, match=message) as error:
      read(tmp_path / "bad")
    seen.append(str(error.value))
  assert seen[0] == seen[1] and f"artefact at {tmp_path / 'bad'}" in seen[0]
  assert not (tmp_path / "out").exists()


def test_windows_of_other_lengths_are_refused(programs, bundle):
  stage = exported_stage.ExportedStage.load(programs / "stage_semantic")
  keys = jax.random.split(jax.random.key(0), 1)
  told = {"mulan": np.zeros((1, 1, 3), np.int32)}
  with pytest.raises(errors.UserError, match="expected 50, for which it was"):
    stage.generate_long(told, 25, 1.0, keys)
  with pytest.raises(errors.UserError, match="is a 'stage': expected a 'expor"):
    exported_stage.ExportedStage.load(bundle / "stage_semantic")


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--platforms=cpu,toaster", "got 'toaster'"),
    ("--platforms=,", "platforms: expected some of"),
    ("--compute_dtype=float8", "compute_dtype='float8'"),
  ],
)
def test_bad_flags_are_one_line(bundle, tmp_path, capsys, flag, message):
  flags = [f"--bundle={bundle}", f"--output_dir={tmp_path / 'd'}", flag]
  assert main_lib.main(["export_decode", *flags]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line and not (tmp_path / "d").exists()
