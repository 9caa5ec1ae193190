# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all."""

import os
import stat

import pytest

from musiclm_jax.core import atomic_files


def names(folder):
  return sorted(path.name for path in folder.rglob("*"))


def test_a_file_is_in_its_place_when_the_block_ends(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(b"old")
  with atomic_files.written(path) as file:
    file.write(b"new")
    file.seek(0)
    assert file.read() == b"new"
    assert path.read_bytes() == b"old"
  assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]
  assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_permissions_are_those_of_the_file_or_of_any_new_one(tmp_path):
  path = tmp_path / "a.txt"
  for mask, expected in ((0o077, 0o600), (0o002, 0o664)):
    before = os.umask(mask)
    try:
      path.unlink(missing_ok=True)
      atomic_files.write_text(path, "new")
    finally:
      os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected
  path.chmod(0o640)
  atomic_files.write_text(path, "newer")
  assert stat.S_IMODE(path.stat().st_mode) == 0o640
  atomic_files.write_text(path, "secret", 0o600)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_link_leads_to_is_written(tmp_path):
  (tmp_path / "there").mkdir()
  target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
  target.write_text("old")
  link.symlink_to(target)
  atomic_files.write_text(link, "new")
  assert link.is_symlink() and target.read_text() == "new"
  assert names(tmp_path) == ["a.txt", "link.txt", "there"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(b"old")
  with (
    pytest.raises(OSError, match="no room.*a.bin"),
    atomic_files.written(path) as file,
  ):
    file.write(b"new")
    raise OSError(28, "no room")
  assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_file_taken_for_abandoned_is_missed(tmp_path):
  with (
    pytest.raises(FileNotFoundError),
    atomic_files.written(tmp_path / "a.bin"),
  ):
    atomic_files.remove_abandoned(tmp_path, older_than_secs=-60)
  assert names(tmp_path) == []


def test_only_old_files_are_abandoned(tmp_path):
  for name in (".a.x.writing", ".b.x.writing", "c.writing"):
    (tmp_path / name).touch()
  os.utime(tmp_path / ".a.x.writing", (0, 0))
  os.utime(tmp_path / "c.writing", (0, 0))
  atomic_files.remove_abandoned(tmp_path, older_than_secs=60)
  assert names(tmp_path) == [".b.x.writing", "c.writing"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
  path = tmp_path / "above" / "set"
  for content in ("first", "second"):
    with atomic_files.written_folder(path) as scratch:
      assert names(scratch) == []
      (scratch / content).touch()
      assert names(path) == (["first"] if content == "second" else [])
  assert names(tmp_path) == ["above", "second", "set"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
  path = tmp_path / "set"
  path.mkdir()
  (path / "old").touch()
  with (
    pytest.raises(KeyboardInterrupt),
    atomic_files.written_folder(path) as scratch,
  ):
    (scratch / "new").touch()
    raise KeyboardInterrupt
  assert names(tmp_path) == ["old", "set"]


def test_a_folder_that_was_left_half_written_is_begun_anew(tmp_path):
  left = tmp_path / "set.writing"
  left.mkdir()
  (left / "half").touch()
  with atomic_files.written_folder(tmp_path / "set") as scratch:
    (scratch / "whole").touch()
  assert names(tmp_path) == ["set", "whole"]
