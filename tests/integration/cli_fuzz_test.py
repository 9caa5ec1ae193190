# SPDX-License-Identifier: Apache-2.0
"""A few malformed inputs; `cli_fuzz_rounds.py` runs hundreds."""

import cli_fuzz
import cli_fuzz_rounds
import pytest

from musiclm_jax.core import errors
from musiclm_jax.systems import story


def test_no_input_brings_the_commands_down(tmp_path):
  found = cli_fuzz_rounds.commands(tmp_path, 36, 5, has_recognize=False)
  assert [case for case in found if case["wrong"]] == []
  # All kinds were asked, and most of what was asked could not be done.
  assert len({case["kind"] for case in found}) == 12
  assert sum(case["code"] != 0 for case in found) > 20


@pytest.mark.parametrize(
  "flag",
  [
    "seconds=1e308", "seconds=86401", "seed=" + "9" * 30, "num_samples=9999999",
    "num_candidates=" + "9" * 30, "batch_size=1000001",
  ],
)  # fmt: skip
def test_numbers_that_fill_the_memory_are_refused(tmp_path, flag):
  code, _, text = cli_fuzz.run(
    ["generate", "--bundle=x", "--prompt=a", f"--output_dir={tmp_path}"]
    + [f"--{flag}"]
  )
  assert code == 1
  (line,) = text.strip().splitlines()
  assert line.startswith(f"musiclm: --{flag[:4]}") and "at most" in line


@pytest.mark.parametrize("at", [10**400, -(10**400), float("inf"), "0", True])
def test_times_beyond_floats_are_refused(at):
  with pytest.raises(errors.UserError, match="expected seconds >= 0"):
    story.parse([{"at": at, "text": "a"}])


def test_small_files_with_huge_contents_are_refused_at_once():
  # Each list has the one before nine times: 9 ** 20 values if written out.
  huge = ["x"] * 9
  for _ in range(20):
    huge = [huge] * 9
  for entries in (
    [{"at": 0, "text": huge}],
    [{"at": huge, "text": "a"}],
    [huge],
    [{"at": 0, "text": "a", "colour": huge}],
  ):
    with pytest.raises(errors.UserError) as caught:
      story.parse(entries)
    assert len(str(caught.value)) < 500
