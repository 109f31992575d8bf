"""Files that are written whole or not at all."""

import os
import stat

import numpy as np
import pytest

from jebm import files


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_name_comes_with_the_whole_content(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent
    with files.whole(str(path)) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert contents(path.parent) == {"a.txt": "second"}


def test_an_error_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("first")

    def interrupted(error):
        with files.whole(path) as temporary:
            temporary.write_text("sec")
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
        assert contents(tmp_path) == {"a.txt": "first"}
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text("second")
    assert contents(tmp_path) == {"a.txt": "first"}


def test_the_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append((os.fstat(number).st_ino, sync(number))))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append((os.stat(paths[0]).st_ino, replace(*paths))))
    files.write_arrays(tmp_path / "x.npz", {"x": np.arange(3)})
    inode = (tmp_path / "x.npz").stat().st_ino
    assert [number for number, _ in calls] == [inode, inode]


def test_an_error_of_the_system_names_the_file(tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "none" / "b.txt"
    with pytest.raises(OSError, match="No space left on device") as caught, files.whole(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, files.whole(path) as temporary:
        temporary.read_text()
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, files.whole(path):
        other.read_text()
    assert caught.value.filename == str(other)  # the block's own reading
    with pytest.raises(FileExistsError, match="/dev/null"), files.whole("/dev/null/x"):
        pass
    assert contents(tmp_path) == {}


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with files.whole(path) as one, files.whole(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert contents(tmp_path) == {"a.txt": "one"}


def test_others_may_read_it(tmp_path):
    old = os.umask(0o022)
    try:
        files.write_arrays(tmp_path / "x.npz", {"x": np.arange(3)})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.npz").stat().st_mode) == 0o644
