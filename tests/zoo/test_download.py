"""Downloads from a server on this machine: resumed, verified, from the next mirror, or refused with the fix."""

import errno
import hashlib
import itertools
import re
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ddfnet.utils import progress
from ddfnet.zoo import File, ZooError, check, fetch, file_path, find
from tests.conftest import ROOT

BODY = b"PK\x03\x04" + bytes(range(256)) * 12_000  # begins as a zip; three pieces long
SIZE, SHA = len(BODY), hashlib.sha256(BODY).hexdigest()
CUT = 1_500_000


class Handler(BaseHTTPRequestHandler):
    """`/ranges` and `/plain` give BODY, `/cut` ends after CUT bytes, `/page` is a web page, the rest is absent."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        kind = self.path.strip("/")
        if kind not in ("ranges", "plain", "cut", "page"):
            self.send_error(404)
            return
        body = b"<!DOCTYPE html> too many downloads" if kind == "page" else BODY
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and kind != "plain" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : CUT if kind == "cut" else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def entry_of(*urls, size=SIZE, sha256=SHA):
    return replace(find("ddf_mul_resnet50"), file=File(urls, size, sha256))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_plain_download_then_the_cache(server, tmp_path):
    entry = entry_of(f"{server.url}/ranges")
    path = fetch(entry, cache=tmp_path / "new" / "cache")
    assert path == file_path(entry, tmp_path / "new" / "cache")
    assert path.read_bytes() == BODY
    assert names(path.parent) == [path.name]
    assert fetch(entry, cache=tmp_path / "new" / "cache") == path
    assert server.asked == [("/ranges", None)]


def test_a_terminal_gets_a_bar(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    clock = itertools.count(0, 2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    fetch(entry_of(f"{server.url}/plain"), cache=tmp_path / "loud")
    assert "of 3 MB" in capsys.readouterr().err
    fetch(entry_of(f"{server.url}/plain"), cache=tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_the_cache_folder_comes_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "here"))
    assert fetch(entry_of(f"{server.url}/plain")).parent == tmp_path / "here"


def interrupted(server, folder):
    with pytest.raises(ZooError, match=f"interrupted after {CUT:,} bytes"):
        fetch(entry_of(f"{server.url}/cut"), cache=folder)
    part = file_path(entry_of(), folder).with_name(entry_of().file_name + ".part")
    assert part.read_bytes() == BODY[:CUT]
    server.asked.clear()
    return part


def test_an_interrupted_download_continues(server, tmp_path):
    part = interrupted(server, tmp_path)
    assert fetch(entry_of(f"{server.url}/ranges"), cache=tmp_path).read_bytes() == BODY
    assert server.asked == [("/ranges", f"bytes={CUT}-")]
    assert not part.exists()


def test_a_server_without_ranges_starts_over(server, tmp_path):
    interrupted(server, tmp_path)
    assert fetch(entry_of(f"{server.url}/plain"), cache=tmp_path).read_bytes() == BODY
    assert server.asked == [("/plain", f"bytes={CUT}-")]


def test_the_next_mirror_continues_an_interrupted_one(server, tmp_path, capsys):
    entry = entry_of(f"{server.url}/cut", f"{server.url}/ranges")
    assert fetch(entry, cache=tmp_path).read_bytes() == BODY
    assert server.asked == [("/cut", None), ("/ranges", f"bytes={CUT}-")]
    assert "a mirror failed" in capsys.readouterr().err


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
    interrupted(server, tmp_path).write_bytes(BODY + b"more")
    assert fetch(entry_of(f"{server.url}/ranges"), cache=tmp_path).read_bytes() == BODY
    assert server.asked == [("/ranges", f"bytes={len(BODY) + 4}-"), ("/ranges", None)]


def test_a_complete_part_is_only_verified(server, tmp_path):
    interrupted(server, tmp_path).write_bytes(BODY)
    assert fetch(entry_of(f"{server.url}/ranges"), cache=tmp_path).read_bytes() == BODY
    assert server.asked == []


def test_without_a_hash_nothing_is_continued(server, tmp_path):
    interrupted(server, tmp_path).write_bytes(b"of another file")
    assert fetch(entry_of(f"{server.url}/ranges", sha256=None), cache=tmp_path).read_bytes() == BODY
    assert server.asked == [("/ranges", None)]


def test_a_wrong_hash_names_both_and_keeps_the_file_apart(server, tmp_path):
    entry = entry_of(f"{server.url}/ranges", sha256="0" * 64)
    with pytest.raises(ZooError, match=f"{SHA}, as published {'0' * 64}") as error:
        fetch(entry, cache=tmp_path)
    assert names(tmp_path) == [f"{entry.file_name}.rejected"]
    assert str(tmp_path / names(tmp_path)[0]) in str(error.value)


def test_a_wrong_size_is_no_download(server, tmp_path):
    with pytest.raises(ZooError, match=f"has {len(BODY):,} bytes instead of 7;"):
        fetch(entry_of(f"{server.url}/ranges", size=7, sha256=None), cache=tmp_path)
    assert not file_path(entry_of(), tmp_path).exists()


def test_404_then_the_next_mirror(server, tmp_path, capsys):
    path = fetch(entry_of(f"{server.url}/gone", f"{server.url}/ranges"), cache=tmp_path)
    assert path.read_bytes() == BODY
    assert "HTTP 404" in capsys.readouterr().err


def test_404_alone_says_how_to_go_on(server, tmp_path):
    with pytest.raises(ZooError, match=r"HTTP 404 .*not there any more.*By hand: .*--checkpoint PATH --model ddf_mul"):
        fetch(entry_of(f"{server.url}/gone"), cache=tmp_path)


def test_no_network(server, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(ZooError, match=rf"cannot reach 127\.0\.0\.1:{port} .*; no network\?\)\. By hand"):
        fetch(entry_of(f"http://127.0.0.1:{port}/x"), cache=tmp_path)


def test_no_url_says_what_to_do_by_hand_and_accepts_it(tmp_path):
    entry = find("ddf_add_resnet101")
    with pytest.raises(ZooError, match=r"README of https://github.com/theFoxofSky/ddfnet.*save it as") as error:
        fetch(entry, cache=tmp_path)
    path = file_path(entry, tmp_path)
    assert str(path) in str(error.value)
    path.write_bytes(BODY)
    assert fetch(entry, cache=tmp_path) == path


def test_a_web_page_is_not_trusted(server, tmp_path):
    entry = entry_of(f"{server.url}/page", size=None, sha256=None)
    with pytest.raises(ZooError, match=r"is no official file .*a web page\?"):
        fetch(entry, cache=tmp_path)
    assert names(tmp_path) == [f"{entry.file_name}.rejected"]
    path = file_path(entry, tmp_path)
    path.write_text("<html>")
    with pytest.raises(ZooError, match=r"web page\?\): delete it"):
        check(entry, path)


def test_the_first_hash_of_a_claimed_file_is_kept(server, tmp_path):
    entry = entry_of(f"{server.url}/plain", size=None, sha256=None)
    path = fetch(entry, cache=tmp_path)
    record = path.with_name(path.name + ".sha256")
    assert record.read_text() == f"{SHA}  {path.name}\n"
    path.write_bytes(BODY + b"changed")
    with pytest.raises(ZooError, match=f"as recorded in {record.name} {SHA}") as error:
        fetch(entry, cache=tmp_path)
    assert hashlib.sha256(BODY + b"changed").hexdigest() in str(error.value)
    assert path.exists()
    record.write_text("nonsense\n")
    with pytest.raises(ZooError, match="does not hold a sha256"):
        fetch(entry, cache=tmp_path)


def test_a_changed_file_of_the_cache_is_refused_and_kept(server, tmp_path):
    entry = entry_of(f"{server.url}/plain")
    path = fetch(entry, cache=tmp_path)
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(ZooError, match=f"as published {SHA}. delete it"):
        fetch(entry, cache=tmp_path)
    path.write_bytes(BODY[:-1])
    with pytest.raises(ZooError, match="bytes instead of"):
        fetch(entry, cache=tmp_path)
    assert path.exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(ZooError, match=r"cannot read .*: Is a directory"):
        fetch(entry, cache=tmp_path)


def test_a_hash_that_cannot_be_recorded(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    entry = entry_of(sha256=None)
    path = file_path(entry, tmp_path)
    path.write_bytes(BODY)
    monkeypatch.setattr("ddfnet.zoo.download.write_text", refuse)
    with pytest.raises(ZooError, match=f"Permission denied; .* sha256sum {path.name} > {path.name}.sha256"):
        check(entry, path)


def test_processes_at_once_download_once(server, tmp_path):
    entry = entry_of(f"{server.url}/ranges")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch(entry, cache=tmp_path), range(4)))
    assert len(paths) == 1
    assert server.asked == [("/ranges", None)]


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ZooError, match=r"cannot write .*DDFNET_CACHE=DIR"):
        fetch(entry_of(f"{server.url}/plain"), cache=tmp_path / "file")


def test_google_drive_without_gdown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ZooError, match=r"pip install gdown.*By hand: get it from https://drive\.google\.com"):
        fetch(find("ddf_mul_resnet50"), cache=tmp_path)


def test_google_drive_through_gdown(tmp_path, monkeypatch, capsys):
    def download(*, url, output, quiet, use_cookies):
        if "broken" in url:
            raise RuntimeError("Cannot retrieve the public link")
        if "none" in url:
            return None
        assert not use_cookies
        with open(output, "wb") as file:
            file.write(BODY)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    drive = "https://drive.google.com/uc?id="
    entry = entry_of(f"{drive}broken", f"{drive}none", f"{drive}good")
    assert fetch(entry, cache=tmp_path, progress=False).read_bytes() == BODY
    printed = capsys.readouterr().err
    assert "Cannot retrieve the public link" in printed
    assert "gdown got no file" in printed


def test_google_drive_without_a_network(tmp_path, monkeypatch):
    def download(**_):
        raise OSError("HTTPSConnectionPool(...): Max retries exceeded")  # as requests raises it: without an errno

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    with pytest.raises(ZooError, match=r"cannot reach Google Drive \(OSError; no network\?\)\. By hand"):
        fetch(find("ddf_mul_resnet50"), cache=tmp_path)


def test_a_full_disk_is_no_fault_of_google_drive(tmp_path, monkeypatch):
    def download(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    with pytest.raises(ZooError, match=r"cannot write .*No space left on device"):
        fetch(find("ddf_mul_resnet50"), cache=tmp_path)


def test_importing_the_zoo_imports_no_gdown():
    for path in (ROOT / "ddfnet" / "zoo").glob("*.py"):  # read, not run: a process of its own takes long to start
        assert not re.search(r"^(import|from) gdown", path.read_text(), re.MULTILINE), path
