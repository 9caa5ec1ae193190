# SPDX-License-Identifier: Apache-2.0
"""Melody tokens, a melody-conditioned bundle, generation and its report."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tokenizer_artifacts as small

from musiclm_jax.cli import evaluation, seam_report
from musiclm_jax.cli import main as main_lib
from musiclm_jax.core import artifacts, stages, streams
from musiclm_jax.data import token_cache
from musiclm_jax.layers import transformer
from musiclm_jax.networks import decoder_lm
from musiclm_jax.systems import bundle, melody_tokenizer, stage_lm

SPECS = {
  "stage_semantic": stages.semantic_stage(3, 10.0),
  "stage_coarse": stages.coarse_stage(3, 1, 2.0),
  "stage_fine": stages.fine_stage(1, 3, 2.0),
  bundle.MELODY_STAGE: stages.semantic_melody_stage(3, 5),
}
STACK = transformer.TransformerConfig(1, 16, 2, 16)
WINDOWS = (
  "--acoustic_window_secs=4",
  "--semantic_window_secs=4",
  "--semantic_halo_secs=0.4",
)


def run(*arguments):
  return main_lib.main([str(one) for one in arguments])


def export_stage(directory, spec, config):
  """A stage with random weights, as if trained on a cache."""
  by_name = config.streams_by_name()
  layout = stages.StageLayout(spec, by_name)
  network = decoder_lm.DecoderLM(
    decoder_lm.DecoderLMConfig(
      STACK,
      layout.vocab_size,
      layout.num_target_levels,
      layout.target_stream.codebook_size,
    )
  )
  shapes = jax.eval_shape(
    lambda: network.init(
      jax.random.key(0),
      jnp.zeros((1, layout.length), jnp.int32),
      layout.shapes,
    )
  )["params"]
  used = {segment.stream for segment in spec.segments}
  names = {"acoustic": "soundstream"}
  stage_lm.export_stage(
    directory,
    spec,
    [by_name[name] for name in used],
    STACK,
    small.random_values(shapes, 1),
    {names.get(name, name): config.fingerprints[name] for name in used},
  )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Folder with music, artefacts, a token cache, and two bundles."""
  root = tmp_path_factory.mktemp("melody")
  (root / "music").mkdir()
  for number, secs in enumerate((11.0, 2.6)):
    soundfile.write(
      root / "music" / f"{number}.wav", small.music(secs, number), small.RATE_HZ
    )
  small.write(root / "artifacts", is_fitted=True)
  small.write_melody(root / "artifacts" / "melody")
  code = run(
    "tokenize",
    f"--corpus_dir={root / 'music'}",
    f"--artifact_dir={root / 'artifacts'}",
    f"--output_dir={root / 'tokens'}",
    *WINDOWS,
  )
  assert code == 0
  config = token_cache.read_config(root / "tokens")
  for name, spec in SPECS.items():
    if name != bundle.MELODY_STAGE:
      export_stage(root / "artifacts" / name, spec, config)
  source = f"--artifact_dir={root / 'artifacts'}"
  assert run("bundle", source, f"--output_dir={root / 'plain'}") == 0
  stage = root / "artifacts" / bundle.MELODY_STAGE
  export_stage(stage, SPECS[bundle.MELODY_STAGE], config)
  assert run("bundle", source, f"--output_dir={root / 'bundle'}") == 0
  return root


def test_cache_holds_a_window_for_each_second(made):
  reader = token_cache.TokenCacheReader(made / "tokens")
  stream = reader.config.stream("melody")
  assert stream == streams.melody(8, 5)
  directory = made / "artifacts" / "melody"
  assert reader.config.fingerprints["melody"] == artifacts.read_fingerprint(
    directory
  )
  tokenizer = melody_tokenizer.MelodyTokenizer.load(directory)
  for clip in reader["train"]:
    waveform, rate_hz = soundfile.read(made / "music" / clip.clip_id)
    expected = tokenizer.encode(waveform[None], rate_hz, 1.0)[0]
    found = clip.arrays["melody"]
    assert found.shape == ({"0.wav": 10, "1.wav": 1}[clip.clip_id], 5)
    np.testing.assert_array_equal(found, expected)


def test_caches_are_made_as_before_without_the_artefact(made, tmp_path, capsys):
  for name in ("soundstream", "semantic", "mulan"):
    (tmp_path / name).symlink_to(made / "artifacts" / name)
  arguments = ["tokenize", f"--corpus_dir={made / 'music'}", *WINDOWS]
  arguments.append(f"--artifact_dir={tmp_path}")
  assert run(*arguments, f"--output_dir={made / 'tokens'}") == 1
  assert "'melody'" in capsys.readouterr().err
  assert run(*arguments, f"--output_dir={tmp_path / 'tokens'}") == 0
  with_melody = token_cache.TokenCacheReader(made / "tokens")["train"]
  without = token_cache.TokenCacheReader(tmp_path / "tokens")
  assert "melody" not in without.config.fingerprints
  for one, two in zip(without["train"], with_melody):
    assert set(two.arrays) - set(one.arrays) == {"melody"}
    for name, array in one.arrays.items():
      np.testing.assert_array_equal(array, two.arrays[name])


def generate(made, output, *options, which="bundle"):
  return run(
    "generate",
    f"--bundle={made / which}",
    "--prompt=a slow piano",
    "--seconds=2",
    f"--output={output}",
    *options,
  )


def test_generate_takes_a_melody_and_notes_it(made, tmp_path):
  hum = tmp_path / "hum.wav"
  soundfile.write(hum, small.music(3.0, 5), small.RATE_HZ)
  output, plain = tmp_path / "out.wav", tmp_path / "plain.wav"
  assert generate(made, output, f"--melody={hum}") == 0
  assert generate(made, plain) == 0
  one, rate_hz = soundfile.read(output)
  two, _ = soundfile.read(plain)
  assert len(one) == 2 * rate_hz and (one != two).any()
  sidecar = json.loads(output.with_suffix(".json").read_text())
  assert sidecar["melody"] == str(hum)
  assert len(sidecar["melody_sha256"]) == 64
  assert {"melody", bundle.MELODY_STAGE} <= set(sidecar["fingerprints"])
  assert "melody" not in json.loads(plain.with_suffix(".json").read_text())


def test_melodies_that_cannot_be_taken_are_told_in_one_line(
  made, tmp_path, capsys
):
  output, hum = tmp_path / "out.wav", tmp_path / "hum.wav"
  cases = [("no audio file", None), ("is silent", np.zeros(small.RATE_HZ * 2))]
  cases.append(("expected at least 1 s", small.music(0.5, 0)))
  for message, waveform in cases:
    if waveform is not None:
      soundfile.write(hum, waveform, small.RATE_HZ)
    assert generate(made, output, f"--melody={hum}") == 1
    error = capsys.readouterr().err
    assert message in error and str(hum) in error
    assert len(error.strip().splitlines()) == 1
  soundfile.write(hum, small.music(2.0, 0), small.RATE_HZ)
  assert generate(made, output, f"--melody={hum}", which="plain") == 1
  error = capsys.readouterr().err
  assert f"has no {bundle.MELODY_STAGE}" in error
  assert not output.exists()


def test_heldout_crops_of_the_stage_have_their_windows(made):
  reader = token_cache.TokenCacheReader(made / "tokens")
  stage = stage_lm.StageLM.load(made / "artifacts" / bundle.MELODY_STAGE)
  crops = evaluation.heldout_crops(stage, list(reader["train"]), reader, 4)
  (whole,) = (clip for clip in reader["train"] if clip.clip_id == "0.wav")
  expected = whole.arrays["melody"][[0, 3, 6]]
  np.testing.assert_array_equal(crops["melody"], expected[np.newaxis])
  nats = stage.score(crops)
  assert nats.shape == (1, 250, 1) and np.isfinite(nats).all()
  # What is scored depends on the melody.
  other = stage.score(crops | {"melody": (crops["melody"] + 1) % 8})
  assert (nats != other).any()


def test_report_scores_and_shows_melodies(made, tmp_path, capsys):
  hums = tmp_path / "hums"
  hums.mkdir()
  for number in range(3):
    soundfile.write(
      hums / f"{number}.wav", small.music(2.0 + number, number), small.RATE_HZ
    )
  arguments = [
    "melody",
    f"--bundle={made / 'bundle'}",
    f"--output_dir={tmp_path / 'report'}",
    f"--melody={hums}",
    "--prompt=a slow <piano>",
    "--prompt=loud brass",
    "--prompts_per_melody=2",
    "--seconds=2",
    "--num_shown=2",
  ]
  assert run(*arguments) == 0
  assert "takes_melody" in capsys.readouterr().out
  report = json.loads((tmp_path / "report" / "melody.json").read_text())
  assert (report["num_items"], report["num_melodies"]) == (6, 3)
  assert report["num_prompts"] == 2
  assert [one["melody"] for one in report["items"]] == [0, 0, 1, 1, 2, 2]
  for one in report["items"]:
    assert 0 <= one["chroma_given"] <= 1 and -1 <= one["text_melody"] <= 1
  page = (tmp_path / "report" / "index.html").read_text()
  assert page.count("<audio") == page.count("data:audio/flac;base64,") == 6
  assert page.count("Chromagram of") == 6
  assert "a slow &lt;piano&gt;" in page and "<piano>" not in page
  # One melody cannot be shuffled.
  arguments[3] = f"--melody={hums / '0.wav'}"
  assert run(*arguments) == 1
  assert "expected at least 2" in capsys.readouterr().err


def test_seams_of_long_items_are_measured(made, tmp_path, capsys):
  arguments = [
    "seams",
    f"--bundle={made / 'plain'}",
    "--prompt=a slow piano",
    f"--output_dir={tmp_path / 'seams'}",
  ]
  assert run(*arguments, "--seconds=1") == 1
  assert "nothing joins" in capsys.readouterr().err
  assert run(*arguments, "--seconds=4") == 0
  assert "memory grew by" in capsys.readouterr().out
  found = json.loads((tmp_path / "seams" / "seams.json").read_text())
  # Half of each window of 2 s is known; fine windows lie side by side.
  counts = {name: one["num_seams"] for name, one in found["seams"].items()}
  assert counts == {"coarse": 2, "fine": 1}
  for figures in found["seams"].values():
    assert set(figures) == {
      "num_seams", "spectral_flux", "level_change_db", "text_score",
    }  # fmt: skip
  # Memory is noted up to the last sample of what was written.
  waveform, rate_hz = soundfile.read(tmp_path / "seams" / "000.wav")
  assert len(waveform) == 4 * rate_hz and np.isfinite(waveform).all()
  assert found["memory"][0][-1][0] == pytest.approx(4.0)
  assert (
    (tmp_path / "seams" / "memory.svg").read_text().startswith("<svg xmlns")
  )
  assert seam_report.growth_bytes([(1, 9), (3, 7), (9, 12)]) == 3


def test_long_items_of_a_story_are_measured(made, tmp_path, capsys):
  (tmp_path / "story.yaml").write_text(
    "- {at: 0, text: a slow piano}\n- {at: 6, text: loud brass}\n"
  )
  arguments = [
    "seams",
    f"--bundle={made / 'plain'}",
    f"--story={tmp_path / 'story.yaml'}",
    f"--output_dir={tmp_path / 'seams'}",
    f"--reference={made / 'music'}",
  ]
  assert run(*arguments, "--prompt=drums", "--seconds=10") == 1
  assert "expected one of them" in capsys.readouterr().err
  assert run(*arguments, "--seconds=12") == 1
  assert "none of 2 files has --seconds=12" in capsys.readouterr().err
  assert not (tmp_path / "seams").exists()
  assert run(*arguments, "--seconds=10", "--num_items=2") == 0
  shown = capsys.readouterr().out
  found = json.loads((tmp_path / "seams" / "seams.json").read_text())
  generated, real = found["long_form"], found["long_form_reference"]
  names = {
    "drift_per_minute", "level_drift_db_per_minute", "embedding_repetition",
    "semantic_repeated_share", "acoustic_longest_repeat_secs",
  }  # fmt: skip
  assert names < set(real["figures"]) < set(generated["figures"])
  score = generated["figures"]["story_margin"]
  assert score["num_items"] == 2 and score["low"] <= score["high"]
  assert len(generated["items"]) == 2 and not generated["not_computed"]
  # Of real music there is no story, and one file is too short.
  assert real["num_files"] == 1 and real["too_short"] == ["1.wav"]
  assert real["figures"]["drift_end"]["low"] is None
  assert "| story_margin |" in shown and "| generated | reference |" in shown
  # A text that changes has no one score at seams.
  assert "text_score" not in found["seams"]["coarse"]
