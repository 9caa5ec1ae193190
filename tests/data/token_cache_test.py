# SPDX-License-Identifier: Apache-2.0
"""Token caches: exactly once, resumable, bound to their tokenizers."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from musiclm_jax.core import errors, rvq, stages
from musiclm_jax.data import token_cache, token_cache_writer

_SPEC = importlib.util.spec_from_file_location(
  "data_fixtures", pathlib.Path(__file__).with_name("conftest.py")
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)


def test_clip_survives_the_round_trip():
  config = fixtures.make_cache_config()
  clip = fixtures.cached_clip(7)
  found = token_cache.deserialize(token_cache.serialize(clip, config))
  assert (found.clip_id, found.work_id) == (clip.clip_id, clip.work_id)
  assert found.captions == clip.captions
  assert sorted(found.arrays) == sorted(clip.arrays)
  for name, array in clip.arrays.items():
    np.testing.assert_array_equal(found.arrays[name], array)
  assert found.arrays["semantic"].dtype == np.int32


@pytest.mark.parametrize(
  ("name", "array", "message"),
  [
    ("semantic", np.full((4, 1), 64), "expected \\[0, 64\\)"),
    ("acoustic", np.zeros((4, 3), np.int32), "expected \\[frames, 4\\]"),
    ("mulan_embeddings", np.full((2, 6), np.nan), "finite"),
  ],
)
def test_codes_outside_their_stream_are_refused(name, array, message):
  clip = fixtures.cached_clip(0)
  bad = token_cache.CachedClip("clip0", {**clip.arrays, name: array})
  with pytest.raises(ValueError, match=message):
    token_cache.serialize(bad, fixtures.make_cache_config())


def test_killed_writer_goes_on_and_no_clip_is_lost_or_doubled(tmp_path):
  config = fixtures.make_cache_config()
  written = []

  def run(limit: int) -> None:
    writer = token_cache_writer.TokenCacheWriter(
      tmp_path, config, fixtures.codebooks()
    )
    for shard in writer.pending("train", 11):

      def clips(shard=shard):
        for number in range(shard.start, shard.end):
          if len(written) == limit:
            raise KeyboardInterrupt
          written.append(number)
          yield fixtures.cached_clip(number)

      writer.write_shard(shard, clips())
    writer.finish({"train": 11})

  for limit in (2, 7, 11):
    with pytest.raises(KeyboardInterrupt):
      run(limit)
    with pytest.raises(errors.UserError, match="not finished"):
      token_cache.TokenCacheReader(tmp_path)
  run(-1)
  # At most one shard of 4 was done again at each of three kills.
  assert len(written) <= 11 + 3 * 4
  reader = token_cache.TokenCacheReader(tmp_path)
  ids = [clip.clip_id for clip in reader["train"]]
  assert ids == [f"clip{number}" for number in range(11)]
  assert reader.sizes == {"train": 11}
  assert reader["train"][9].clip_id == "clip9"
  assert not list(tmp_path.glob("*.writing"))
  before = len(written)
  run(-1)
  assert len(written) == before


def test_hosts_write_disjoint_shards(tmp_path):
  config = fixtures.make_cache_config()
  hosts = []
  for host in range(2):
    writer = token_cache_writer.TokenCacheWriter(
      tmp_path, config, fixtures.codebooks()
    )
    hosts.append([s.index for s in writer.pending("train", 11, host, 2)])
  assert hosts == [[0, 2], [1]]
  with pytest.raises(errors.UserError, match="not written"):
    writer.finish({"train": 11})


def test_skipped_inputs_are_counted_and_short_shards_refused(tmp_path):
  config = fixtures.make_cache_config()
  writer = token_cache_writer.TokenCacheWriter(
    tmp_path, config, fixtures.codebooks()
  )
  shard = writer.pending("train", 3)[0]
  clips = [fixtures.cached_clip(number) for number in (0, 2)]
  with pytest.raises(ValueError, match="expected 3"):
    writer.write_shard(shard, clips)
  assert writer.pending("train", 3) == [shard]
  writer.write_shard(shard, clips, skipped=["clip1"])
  counts = writer.finish({"train": 3})["train"]
  assert (counts["num_inputs"], counts["num_clips"]) == (3, 2)
  assert counts["skipped"] == ["clip1"]
  assert len(token_cache.TokenCacheReader(tmp_path)["train"]) == 2


def test_other_tokenizer_is_refused_with_both_fingerprints(tmp_path):
  config = fixtures.make_cache_config()
  token_cache_writer.TokenCacheWriter(tmp_path, config, fixtures.codebooks())
  other = fixtures.make_cache_config(
    fingerprints={"mulan": "aa", "semantic": "ee77", "acoustic": "cc"}
  )
  with pytest.raises(errors.UserError, match="semantic") as caught:
    token_cache_writer.TokenCacheWriter(tmp_path, other, fixtures.codebooks())
  assert "ee77" in str(caught.value)
  assert "bb" in str(caught.value)


def test_missing_cache_and_split_name_what_was_expected(tmp_path, small_cache):
  with pytest.raises(errors.UserError, match="musiclm tokenize"):
    token_cache.TokenCacheReader(tmp_path / "absent")
  with pytest.raises(errors.UserError, match="'validation'"):
    token_cache.TokenCacheReader(small_cache)["test"]


def test_mulan_codes_average_the_windows_inside_the_crop():
  config = fixtures.make_cache_config()  # 1 s windows, 0.5 s stride.
  books = fixtures.codebooks()
  windows = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)

  def expected(chosen):
    mean = windows[chosen].mean(axis=0)
    return rvq.encode((mean / np.linalg.norm(mean))[np.newaxis], books)

  cases = [
    ((0.0, 3.0), [0, 1, 2, 3, 4]),
    ((0.5, 2.0), [1, 2]),
    ((0.6, 1.4), [1]),  # None inside: centre 1.0 is that of window 1.
    ((2.9, 3.0), [4]),
  ]
  for (start, end), chosen in cases:
    codes = token_cache.mulan_codes(windows, books, start, end, config)
    assert codes.shape == (1, 3)
    np.testing.assert_array_equal(codes, expected(chosen))


def test_stage_sequences_are_whole_clips(small_cache):
  found = token_cache.stage_sequences(
    small_cache, "train", stages.coarse_stage(3, 2, 1.0)
  )
  assert found["ids"] == [f"clip{number}" for number in range(11)]
  assert found["work_ids"][5] == "work2"
  assert [len(codes) for codes in found["semantic"]].count(75) == 10
  np.testing.assert_array_equal(
    found["acoustic"][6], fixtures.cached_clip(6).arrays["acoustic"]
  )
  assert {codes.shape for codes in found["mulan"]} == {(1, 3)}


def test_reading_needs_no_tensorflow():
  code = (
    "import sys; from musiclm_jax.data import token_cache_writer; "
    "sys.exit('tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def as_version_1(directory):
  """Makes a cache look like one of the first version."""
  path = directory / token_cache.CONFIG_NAME
  header = json.loads(path.read_text())
  header["format_version"] = 1
  for name in ("inputs", "acoustic_window_secs", "semantic_window_secs"):
    del header["config"][name]
  path.write_text(json.dumps(header))


def test_caches_of_version_1_are_read_but_not_gone_on_with(tmp_path):
  config = fixtures.make_cache_config()
  fixtures.write_cache(tmp_path, config, {"train": [(n, 75) for n in range(3)]})
  as_version_1(tmp_path)
  assert len(token_cache.TokenCacheReader(tmp_path)["train"]) == 3
  with pytest.raises(errors.UserError, match="earlier version"):
    token_cache_writer.TokenCacheWriter(tmp_path, config, fixtures.codebooks())


def test_changed_inputs_are_refused(tmp_path):
  token_cache_writer.TokenCacheWriter(
    tmp_path, fixtures.make_cache_config(inputs="aa"), fixtures.codebooks()
  )
  with pytest.raises(errors.UserError, match="added, removed or changed"):
    token_cache_writer.TokenCacheWriter(
      tmp_path, fixtures.make_cache_config(inputs="bb"), fixtures.codebooks()
    )
