"""Reading what may be anything, and writing what must be whole."""

import errno
import os

import pytest

from optax_introspect import files


class TestReading:
    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text('{"a": [1, 2]}')
        assert files.read_regular(tmp_path / "file", 13) == b'{"a": [1, 2]}'
        assert files.read_json(tmp_path / "file", 13) == {"a": [1, 2]}

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing"):
            files.read_json(tmp_path / "nothing", 10)

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_what_is_no_file(self, tmp_path, make):
        make(tmp_path / "file")
        with pytest.raises(ValueError, match=f"{tmp_path}/file is not a regular file"):
            files.read_json(tmp_path / "file", 10)

    def test_what_is_too_large(self, tmp_path):
        (tmp_path / "file").write_text("{}")
        os.truncate(tmp_path / "file", 2**40)
        with pytest.raises(ValueError, match=r"file has 1099511627776 bytes, where at most 1000 are expected"):
            files.read_regular(tmp_path / "file", 1000)

    @pytest.mark.parametrize("brackets", ["[]" * 501, "[" * 10**6, '{"a":' * 1001])
    def test_too_many_brackets(self, tmp_path, brackets):
        (tmp_path / "file").write_text(brackets)
        with pytest.raises(ValueError, match=f"{tmp_path}/file has more than 1000 brackets|is no JSON"):
            files.read_json(tmp_path / "file", 10**8)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"1" * 10**5, b"[1] [2]"])
    def test_what_is_no_json(self, tmp_path, content):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=f"{tmp_path}/file is no JSON: "):
            files.read_json(tmp_path / "file", 10**6)


class TestWriting:
    def test_a_new_file_and_another_one(self, tmp_path):
        for content in (b"one", b"two"):
            files.write_atomically(tmp_path / "file", content)
            assert (tmp_path / "file").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_what_is_left_by_a_process_that_was_killed_is_replaced(self, tmp_path):
        (tmp_path / "precious").write_text("as it was")
        for make in (lambda path: path.write_text("torn"), lambda path: path.symlink_to(tmp_path / "precious")):
            make(tmp_path / "file.tmp")
            files.write_atomically(tmp_path / "file", b"whole")
            assert (tmp_path / "file").read_bytes() == b"whole"
            assert not (tmp_path / "file.tmp").exists()
        assert (tmp_path / "precious").read_text() == "as it was"

    def test_no_space(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        files.write_atomically(tmp_path / "file", b"one")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
            files.write_atomically(tmp_path / "file", b"two")
        assert (tmp_path / "file").read_bytes() == b"one"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
