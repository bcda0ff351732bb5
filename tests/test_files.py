"""Files that appear whole or not at all."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from kithkin.errors import InputError, KithkinError
from kithkin.files import path_below, replacing, write_whole

SOURCE = Path(write_whole.__code__.co_filename).parent


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as part:
        assert part.parent == tmp_path
        assert part.name.startswith(".")
        part.write_text("whole", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("before", [None, b"precious"])
def test_a_failure_leaves_everything_as_it_was(tmp_path, before):
    path = tmp_path / "a.txt"
    if before:
        path.write_bytes(before)

    def write():
        with replacing(path) as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    """In another process: the umask belongs to all threads."""
    if (child := os.fork()) == 0:
        os.umask(umask)
        write_whole(tmp_path / "a", b"")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert mode_of(tmp_path / "a") == 0o666 & ~umask


def test_the_umask_of_the_process_is_never_touched(tmp_path, monkeypatch):
    """To read it is to set it, and other threads make files meanwhile."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    threads = [threading.Thread(target=write_whole, args=(tmp_path / str(i), b"x")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(tmp_path)) == 8
    assert [path for path in SOURCE.rglob("*.py") if "umask(" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o444])
def test_a_replaced_file_keeps_its_permissions_and_is_never_readable_by_others(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as part:
        assert mode_of(part) == 0o600
        part.write_bytes(b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


def test_a_writer_that_makes_a_file_of_its_own(tmp_path):
    """Compilers and some libraries remove what is there; the permissions hold for theirs too."""
    with replacing(tmp_path / "a") as part:
        expected = mode_of(part)
        part.unlink()
        part.write_bytes(b"theirs")
        part.chmod(0o600)
    assert mode_of(tmp_path / "a") == expected


def test_links_are_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_or_folder_is_not_replaced(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("null", "folder"):
        with pytest.raises(KithkinError, match="is a folder or a device"):
            write_whole(tmp_path / name, b"")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("links", [True, False])
def test_without_overwriting_whoever_came_first_stays(tmp_path, monkeypatch, links):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a"
    with replacing(path, overwrite=False) as part:
        part.write_bytes(b"first")
    with pytest.raises(FileExistsError), replacing(path, overwrite=False) as part:
        pytest.fail("the block must not begin")
    late = tmp_path / "late"
    with pytest.raises(FileExistsError), replacing(late, overwrite=False) as part:
        late.write_bytes(b"meanwhile")
    assert (path.read_bytes(), late.read_bytes()) == (b"first", b"meanwhile")
    assert sorted(os.listdir(tmp_path)) == ["a", "late"]


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    write_whole(tmp_path / "a", b"x")
    assert len(done) == 3
    assert done[0].startswith(str(tmp_path / ".kithkin-"))
    assert done[1:] == ["renamed", str(tmp_path)]


def test_a_name_of_the_longest_kind(tmp_path):
    write_whole(tmp_path / ("x" * 255), b"")
    with pytest.raises(KithkinError, match="can't be written: File name too long"):
        write_whole(tmp_path / ("x" * 256), b"")


def test_every_writer_goes_through_here():
    """Whoever renames a temporary file does it in this module."""
    writers = {path.name for path in SOURCE.rglob("*.py") if "os.replace(" in path.read_text(encoding="utf-8")}
    assert writers == {"files.py"}


@pytest.mark.parametrize("name", ["a", "a/b.png", "a..b/c", "…", "12:30.png", "a b/ü.png", "./a"])
def test_names_below_a_folder(tmp_path, name):
    assert path_below(tmp_path / "out", name) == tmp_path / "out" / name


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../x", "a/..", "/etc/x", "//server/x", "", ".", "./", "a\0b"),
        *("..\\x", "a\\..\\x", "C:x", "C:\\x", "c:/x", "\\x", "\\\\server\\share\\x", "../out2/x"),
    ],
)
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(InputError, match="names no file below .*; rename it"):
        path_below(tmp_path / "out", name)


def test_links_that_lead_out_of_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path)
    (tmp_path / "out/inside").symlink_to("here")
    with pytest.raises(InputError, match="names no file below"):
        path_below(tmp_path / "out", "link/x")
    assert path_below(tmp_path / "out", "inside/x") == tmp_path / "out/inside/x"
