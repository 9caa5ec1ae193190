# SPDX-License-Identifier: Apache-2.0
"""Claims: one owner at a time, taken over from the dead and the silent."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from musiclm_jax.data import shard_claims


def test_a_claim_has_one_owner_until_it_is_given_back(tmp_path):
  with (
    shard_claims.Claims(tmp_path) as one,
    shard_claims.Claims(tmp_path) as two,
  ):
    assert one.claim("a")
    assert not one.claim("a")
    assert not two.claim("a")
    assert two.claim("b")
    two.release("a")  # not its own: stays
    assert not two.claim("a")
    one.release("a")
    assert two.claim("a")
  assert list(tmp_path.iterdir()) == []


def test_the_dead_of_this_machine_hold_nothing(tmp_path):
  code = (
    "import sys; from musiclm_jax.data import shard_claims as s; "
    f"c = s.Claims({str(tmp_path)!r}); assert c.claim('a'); "
    "import os; os._exit(0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  assert (tmp_path / "a.claim").exists()
  with shard_claims.Claims(tmp_path, stale_secs=3600) as claims:
    assert claims.claim("a")


def change(path, **fields):
  """Changes a claim, as its owner would."""
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_silent_of_other_machines_are_taken_over(tmp_path):
  owner = shard_claims.Claims(tmp_path, stale_secs=3600)
  assert owner.claim("a")
  change(tmp_path / "a.claim", machine="elsewhere")
  with shard_claims.Claims(tmp_path, stale_secs=0.2) as claims:
    assert not claims.claim("a")  # seen for the first time
    time.sleep(0.15)
    change(tmp_path / "a.claim", beat=1)  # a sign of life
    time.sleep(0.15)
    assert not claims.claim("a")
    time.sleep(0.25)
    assert claims.claim("a")
    owner.release("a")
    assert (tmp_path / "a.claim").exists(), "not the first owner's any more"


def test_a_living_owner_gives_signs_of_life(tmp_path):
  with shard_claims.Claims(tmp_path, stale_secs=0.3) as claims:
    assert claims.claim("a")
    deadline = time.monotonic() + 20
    while json.loads((tmp_path / "a.claim").read_text())["beat"] < 2:
      assert time.monotonic() < deadline
      time.sleep(0.02)


def test_claims_need_no_hard_links(tmp_path, monkeypatch):
  def refuse(*unused):
    raise OSError(errno.EPERM, "no hard links in a mounted bucket")

  monkeypatch.setattr(os, "link", refuse)
  with (
    shard_claims.Claims(tmp_path) as one,
    shard_claims.Claims(tmp_path) as two,
  ):
    assert one.claim("a")
    assert not two.claim("a")
  assert list(tmp_path.iterdir()) == []


def test_who_has_left_gets_no_claims(tmp_path):
  with shard_claims.Claims(tmp_path / "claims") as claims:
    assert claims.claim("a")
  assert not claims.claim("x")
  assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_made_while_leaving_is_given_back(tmp_path, monkeypatch):
  claims = shard_claims.Claims(tmp_path)
  create = claims._create

  def create_late(path):
    made = create(path)
    claims.__exit__(None, None, None)
    return made

  monkeypatch.setattr(claims, "_create", create_late)
  assert not claims.claim("x")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "scratch"])
def test_a_folder_swept_while_claiming_is_no_error(tmp_path, monkeypatch, what):
  directory = tmp_path / "claims"
  with shard_claims.Claims(directory) as claims:
    written = claims._written

    def written_amid_a_sweep(path, beat):
      if what == "folder":
        directory.rmdir()
        return written(path, beat)
      scratch = written(path, beat)
      scratch.unlink()
      return scratch

    with monkeypatch.context() as patch:
      patch.setattr(claims, "_written", written_amid_a_sweep)
      assert not claims.claim("x")
    assert claims.claim("x"), "the next attempt makes the folder anew"


@pytest.mark.parametrize("content", ["", "{}", "half a cla"])
def test_damaged_claims_become_stale(tmp_path, content):
  (tmp_path / "a.claim").write_text(content)
  with shard_claims.Claims(tmp_path, stale_secs=0.05) as claims:
    assert not claims.claim("a")
    time.sleep(0.1)
    assert claims.claim("a")
