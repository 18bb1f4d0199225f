"""Files of programs: private ones are refused unless only their owner may write them, and are replaced whole."""

import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from attrs import define, field

from asap_adapters import file_effects
from asap_adapters.blocking.driver import BlockingDriver, load
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.blocking.interrupts import Closing
from asap_adapters.file_effects import remove, write
from asap_core.client.body_reader import BodyReader
from asap_core.client.programs import Completed, Expired, FileRead, ReadFile, Unavailable, WriteFile
from asap_core.client.registry_cache import RegistryCache
from asap_core.client.registry_copies import file_name
from asap_core.client.requests import Requests
from asap_core.clock import WallTime
from asap_core.errors import Unreachable
from asap_core.http.caching import FreshnessPolicy, freshness_of
from asap_core.net.outbound import OutboundPolicy
from asap_core.wire.registry_reader import RegistryReader

URL = "https://r.example/registry.json"
NOT_OURS = Unavailable("it isn't a file that only its owner may write", errno.EPERM)


@define
class Content:
    """The content to save. `meanwhile` is called while it's written."""

    data: bytes = b"new"
    is_wanted: bool = True
    written: bool = False
    obsolete: tuple[str, ...] = ()
    meanwhile: Callable[[], object] = lambda: None
    seen: list[object] = field(factory=list)

    def surplus(self, files: Iterable[tuple[str, float]]) -> Iterable[str]:
        self.seen.append(sorted(files))
        return self.obsolete

    def is_written(self, head: bytes, size: int) -> bool:
        self.seen.append((head, size))
        return self.written

    def pieces(self) -> Iterator[bytes]:
        yield self.data[:1]
        self.meanwhile()
        yield self.data[1:]

    def wanted(self) -> bool:
        return self.is_wanted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "copies" / "one"


def saved(path: Path, content: Content) -> Completed | Unavailable | Expired:
    return write(WriteFile(str(path), content))


def read(effect: ReadFile) -> FileRead | Unavailable | Expired:
    return load(effect, Closing())


def private(path: Path, *, limit: int = 100) -> tuple[FileRead | Unavailable | Expired, bytes]:
    reader = BodyReader(limit)
    return read(ReadFile(str(path), reader, private=True)), reader.body


class TestWriteFile:
    def test_write_makes_a_file_and_directory_for_its_owner_only(self, path: Path) -> None:
        content = Content()
        assert saved(path, content) == Completed()
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert content.seen == [[]]

    def test_write_replaces_an_existing_file(self, path: Path) -> None:
        saved(path, Content(b"old" * 1_000))
        os.utime(path, (5, 5))
        content = Content()
        saved(path, content)
        assert path.read_bytes() == b"new"
        assert content.seen == [[("one", 5.0)], ((b"old" * 1_000)[:1_024], 3_000)]

    def test_write_leaves_a_file_with_the_same_content(self, path: Path) -> None:
        saved(path, Content(b"old"))
        assert saved(path, Content(written=True)) == Completed()
        assert path.read_bytes() == b"old"

    def test_write_replaces_a_file_that_others_may_write_without_reading_it(self, path: Path) -> None:
        saved(path, Content(b"old"))
        path.chmod(0o666)
        saved(path, Content(written=True))
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_write_leaves_nothing_of_a_file_that_is_not_wanted(self, path: Path) -> None:
        saved(path, Content(b"old"))
        assert saved(path, Content(is_wanted=False)) == Completed()
        assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("one", b"old")]

    def test_write_leaves_the_old_file_if_the_disk_is_full(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved(path, Content(b"old"))

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert saved(path, Content()) == Unavailable("No space left on device", errno.ENOSPC)
        assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("one", b"old")]

    def test_write_leaves_the_old_file_if_its_time_is_over_between_pieces(self, path: Path) -> None:
        saved(path, Content(b"old"))
        checks: list[None] = []

        def check() -> None:
            checks.append(None)
            if len(checks) > 1:
                raise TimeoutError

        assert write(WriteFile(str(path), Content()), check) == Expired()
        assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("one", b"old")]

    def test_write_is_unavailable_in_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        assert saved(tmp_path / "file" / "one", Content()) == Unavailable("File exists", errno.EEXIST)
        assert saved(tmp_path / "file" / "deep" / "one", Content()) == Unavailable("Not a directory", errno.ENOTDIR)

    def test_write_removes_obsolete_files(self, path: Path) -> None:
        saved(path, Content())
        (path.parent / "two").write_bytes(b"")
        saved(path, Content(obsolete=("two", "three")))
        assert [each.name for each in path.parent.iterdir()] == ["one"]

    def test_a_running_write_does_not_restore_a_removed_file(self, path: Path) -> None:
        content = Content()

        def forget() -> None:
            content.is_wanted = False
            remove(str(path))

        content.meanwhile = forget
        saved(path, content)
        assert list(path.parent.iterdir()) == []

    def test_write_checks_if_the_file_is_wanted_under_the_lock_of_removals(self, path: Path) -> None:
        class Locked(Content):
            def wanted(self) -> bool:
                return file_effects._placing.locked()

        saved(path, Locked())
        assert path.exists()


class TestReadFile:
    def test_read_reads_a_private_file_unless_it_is_unchanged(self, path: Path) -> None:
        saved(path, Content(b"x" * 100_000))
        first, body = private(path, limit=100_000)
        assert isinstance(first, FileRead)
        assert body == b"x" * 100_000
        unread = BodyReader(100_000)
        assert read(ReadFile(str(path), unread, private=True, unless=first.identity)) == first
        assert unread.body == b""
        saved(path, Content(b"x" * 100_000))
        again, _ = private(path, limit=100_000)
        assert again != first

    def test_read_stops_when_its_reader_stops(self, path: Path) -> None:
        saved(path, Content(b"x" * 100_000))
        reader = BodyReader(10)
        assert isinstance(read(ReadFile(str(path), reader)), FileRead)
        assert reader.failed is not None

    def test_read_says_if_there_is_no_such_file(self, path: Path) -> None:
        assert private(path)[0] == Unavailable("No such file or directory", errno.ENOENT)
        assert read(ReadFile(str(path), BodyReader(1))) == Unavailable("No such file or directory", errno.ENOENT)
        path.mkdir(parents=True)
        assert read(ReadFile(str(path), BodyReader(1))) == Unavailable("Is a directory", errno.EISDIR)

    def test_read_refuses_a_private_file_that_others_may_write(self, path: Path) -> None:
        saved(path, Content())
        path.chmod(0o620)
        assert private(path) == (NOT_OURS, b"")
        reader = BodyReader(9)
        assert read(ReadFile(str(path), reader)) == FileRead()
        assert reader.body == b"new"

    def test_read_refuses_a_link_and_a_pipe(self, path: Path) -> None:
        saved(path, Content())
        link, pipe = path.with_name("link"), path.with_name("pipe")
        link.symlink_to(path)
        os.mkfifo(pipe, 0o600)
        assert private(link) == (Unavailable("Too many levels of symbolic links", errno.ELOOP), b"")
        assert private(pipe) == (NOT_OURS, b"")
        assert read(ReadFile(str(pipe), BodyReader(9))) == Unavailable("expected a file")

    def test_read_is_unavailable_if_reading_fails(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken(io.BytesIO):
            def read(self, _size: int | None = -1) -> bytes:
                raise OSError(5, "Input/output error")

        saved(path, Content())
        monkeypatch.setattr(file_effects, "_open_private", lambda _path: Broken())
        assert private(path)[0] == Unavailable("Input/output error", errno.EIO)


class TestRemove:
    @pytest.mark.parametrize("size", [0, 2_000_000])
    def test_remove_removes_a_file_of_any_size_at_once(self, path: Path, size: int) -> None:
        saved(path, Content(b"x" * size))
        remove(str(path))
        remove(str(path))
        assert list(path.parent.iterdir()) == []
        for thread in threading.enumerate():
            if thread.daemon and thread is not threading.current_thread():
                thread.join(1)

    def test_remove_removes_a_link_and_not_its_target(self, path: Path) -> None:
        saved(path, Content())
        link = path.with_name("link")
        link.symlink_to(path)
        remove(str(link))
        assert [each.name for each in path.parent.iterdir()] == ["one"]


def test_copies_of_registries_are_kept_without_an_event_loop(tmp_path: Path) -> None:
    reader = RegistryReader()
    reader.feed(b'{"version":"1","updated_at":"2026-01-01T00:00:00Z","agents":[]}')
    fresh = freshness_of([], policy=FreshnessPolicy(), wall=WallTime(0.0))
    down = Unreachable(URL, "down")

    def started() -> tuple[BlockingDriver, RegistryCache]:
        driver = BlockingDriver(BlockingHttpOptions(), owner="BlockingClient")
        driver.open()
        requests = Requests(driver.runtime, policy=OutboundPolicy())
        return driver, RegistryCache(str(tmp_path), driver.runtime, requests, most=1_000)

    driver, copies = started()
    driver.run(copies.put, URL, reader.close(), fresh, age=0.0)
    assert [each.name for each in tmp_path.iterdir()] == [file_name(URL)]
    driver, copies = started()
    assert driver.run(copies.take, URL, down) is not None
    driver.call(copies.drop, URL)
    assert list(tmp_path.iterdir()) == []
    assert driver.run(copies.take, URL, down) is None
