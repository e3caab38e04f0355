"""Getting the files of the zoo: resumed, verified, complete or absent. Nothing is unpickled here."""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

from ddfnet.checkpoint import HUB_CONFIG, HUB_FILES
from ddfnet.utils.files import sync_folder, write_text
from ddfnet.utils.progress import ProgressBar
from ddfnet.utils.text import plural
from ddfnet.zoo.entries import ZOO, Entry, ZooError, entries, find

SHIPPED = Path(__file__).parent / "weights"
CHUNK = 1 << 20
HUB, LOCAL = "hf-hub:", "local-dir:"  # timm's names for a repository of the hub, and for a folder like one
TIMEOUT = 30  # seconds without a byte
GOOGLE_DRIVE = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


class _MirrorError(Exception):
    """One mirror failed: the next one may do."""


def cache_folder(cache: str | Path | None = None) -> Path:
    """`cache` if given, else `$DDFNET_CACHE`, else the folder `ddfnet` beside the files of torch.hub."""
    return Path(cache or os.environ.get("DDFNET_CACHE") or Path(torch.hub.get_dir()) / "ddfnet").expanduser()


def file_path(entry: Entry, cache: str | Path | None = None) -> Path:
    """Where the file of an entry is, or will be: in this package if it ships with it, else in the cache."""
    return (SHIPPED if entry.file.shipped else cache_folder(cache)) / entry.file_name


def fetch(entry: Entry, *, cache: str | Path | None = None, progress: bool = True) -> Path:
    """The file of an entry, verified: from this package, from the cache, or downloaded into that.

    Mirrors are tried in order. An interrupted download is kept as `<file>.part` and continued next time where the
    hash is known (without one, nobody would notice pieces of two different files). Processes that ask for the same
    file at once wait for the first of them. `progress` shows how far it is. ZooError where no
    mirror gave the file, it is not the one that was published, or the folder cannot be written.
    """
    target = file_path(entry, cache)
    if not target.exists():
        if entry.file.shipped:
            raise ZooError(f"{target} is missing, which is part of the package: install ddfnet again")
        if not entry.file.urls:
            raise ZooError(f"{entry.name} cannot be downloaded by a program. {_by_hand(entry, target)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _one_process(target):
                if not target.exists():  # another process may have finished it meanwhile
                    _download(entry, target, progress)
        except OSError as error:
            where = error.filename or target.parent
            raise ZooError(f"cannot write {where}: {error.strerror}. Give another folder: DDFNET_CACHE=DIR") from None
    check(entry, target)
    return target


def locate(checkpoint: str | Path) -> tuple[Path, Entry | None]:
    """Where weights are: the file of `zoo:NAME`, with its entry; the folder of `hf-hub:ORG/NAME` or `local-dir:FOLDER`;
    any other path as it is. What is not here is downloaded. ZooError where the zoo does not know the name, or the file
    cannot be had."""
    text = str(checkpoint)
    if isinstance(checkpoint, str) and text.startswith(HUB):
        return fetch_from_hub(text.removeprefix(HUB)), None
    if isinstance(checkpoint, str) and text.startswith(LOCAL):
        return Path(text.removeprefix(LOCAL)), None
    if isinstance(checkpoint, Path) or not text.startswith(ZOO):
        if not Path(text).exists() and text in [entry.name for entry in entries()]:
            raise ZooError(f"checkpoint not found: {text}; the weights of that name are {ZOO}{text}")
        return Path(text), None
    entry = find(text.removeprefix(ZOO))
    return fetch(entry), entry


def fetch_from_hub(name: str) -> Path:
    """The folder with config.json and weights of ORG/NAME[@REVISION] on the Hugging Face hub, in the hub's own cache;
    ZooError where it cannot be had, or holds no model of this layout."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        folder = Path(hf_hub_download(repository, HUB_CONFIG, revision=revision or None)).parent
        for file in HUB_FILES:
            try:
                hf_hub_download(repository, file, revision=revision or None)
                return folder
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except (OSError, HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ZooError(
            f"cannot get {HUB}{name} ({reason}): check the name, or download the folder where there is a network and "
            f"give it as {LOCAL}FOLDER"
        ) from None
    raise ZooError(f"{HUB}{name} has none of {', '.join(HUB_FILES)}: it holds no weights that can be read here")


def check(entry: Entry, path: Path) -> str:
    """Verifies a file, and returns its sha256; ZooError says how one that it should not be differs. It stays there.

    The hash of an entry without one is recorded as `<file>.sha256` on first sight (`sha256sum -c` reads it).
    """
    try:
        wrong, digest = _fault(entry, path), sha256_of(path)
    except OSError as error:
        raise ZooError(f"cannot read {path}: {error.strerror}") from None
    again = "install ddfnet again" if entry.file.shipped else "delete it and download it again"
    if wrong:
        raise ZooError(f"{path} {wrong}: {again}")
    record = path.with_name(path.name + ".sha256")
    expected, source = entry.file.sha256, "as published"
    if expected is None and record.exists():
        expected, source = record.read_text().split(" ")[0].strip(), f"as recorded in {record.name}"
        if not re.fullmatch("[0-9a-f]{64}", expected):
            raise ZooError(f"{record} does not hold a sha256: delete it to record that of {path.name} again")
    if expected is None:
        try:
            write_text(record, f"{digest}  {path.name}\n")
        except OSError as error:
            fix = f"who may write there can: sha256sum {path.name} > {record.name}"
            raise ZooError(f"cannot record the hash in {record}: {error.strerror}; {fix}") from None
    elif digest != expected:
        fix = again + ("" if entry.file.sha256 else f" (or {record.name}, if you trust it)")
        raise ZooError(f"{path} is not the file of {entry.name}: sha256 {digest}, {source} {expected}. {fix}")
    return digest


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _fault(entry: Entry, path: Path) -> str:
    """What is wrong with the size or the beginning of a file, or nothing. A web page (of a login, a quota, a proxy)
    begins otherwise than weights: without a hash it would be trusted for good."""
    with path.open("rb") as file:
        start = file.read(9)
    # A zip or the older bare pickle of torch; in safetensors, the length of a JSON object and its brace.
    good = start[8:] == b"{" if entry.format == "safetensors" else start.startswith((b"PK\x03\x04", b"\x80"))
    if not good:
        return f"is no {entry.format} file (it begins with {start!r}; a web page?)"
    size = path.stat().st_size
    return "" if entry.file.size in (None, size) else f"has {plural(size, 'byte')} instead of {entry.file.size:,}"


def _by_hand(entry: Entry, target: Path) -> str:
    where = f"{entry.file.urls[0]} ({entry.origin})" if entry.file.urls else f"the README of {entry.origin}"
    return (
        f"By hand: get it from {where}, then either save it as {target}, or use it where it is: "
        f"--checkpoint PATH --model {entry.model}"
    )


@contextlib.contextmanager
def _one_process(target: Path) -> Iterator[None]:
    """Lets the processes of one machine that want the same file in one by one."""
    try:
        import fcntl
    except ImportError:  # Windows: no such lock, and no torchrun with many processes either
        yield
        return
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or with the process
        yield


def _download(entry: Entry, target: Path, progress: bool) -> None:
    """Tries the mirrors in order until one gives a file that passes `check`."""
    part = target.with_name(target.name + ".part")
    failures = []
    for url in entry.file.urls:
        try:
            if urllib.parse.urlsplit(url).hostname in GOOGLE_DRIVE:
                _from_google_drive(url, part, progress)
            else:
                _from_server(entry, url, part, progress)
            _verify_part(entry, part)
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
            continue
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
        for failure in failures:  # it worked in the end, but a bad mirror should not go unnoticed
            print(f"ddfnet.zoo: a mirror failed: {failure}", file=sys.stderr)
        return
    raise ZooError(f"cannot download {entry.name}: {'; '.join(failures)}. {_by_hand(entry, target)}")


def _verify_part(entry: Entry, part: Path) -> None:
    wrong, published = _fault(entry, part), entry.file.sha256
    if not wrong and published is not None and (digest := sha256_of(part)) != published:
        wrong = f"has the sha256 {digest}, as published {published}"
    if wrong:
        rejected = part.with_suffix(".rejected")
        os.replace(part, rejected)  # kept to be looked at; the next attempt must not continue it
        raise _MirrorError(f"what came {wrong}; it is kept as {rejected}. Try again later, or take another mirror")


def _from_google_drive(url: str, part: Path, progress: bool) -> None:
    try:
        import gdown  # Google asks questions before it gives large files; gdown knows the answers
    except ImportError:
        raise _MirrorError("Google Drive needs the package gdown: pip install gdown") from None
    try:
        done = gdown.download(url=url, output=str(part), quiet=not progress, use_cookies=False)
    except OSError as error:
        if error.errno is not None:  # the disk
            raise
        kind = type(error).__name__  # those of requests are OSErrors, with the whole story of urllib3 in them
        raise _MirrorError(f"cannot reach Google Drive ({kind}; no network?)") from None
    except Exception as error:  # its own errors, those of requests, and others from one version to the next
        raise _MirrorError(f"gdown: {str(error).strip() or type(error).__name__}") from None
    if done is None or not part.exists():
        raise _MirrorError("gdown got no file (too many downloads today, or no network)")


def _from_server(entry: Entry, url: str, part: Path, progress: bool) -> None:
    """Downloads over HTTP into `part`, continuing what is there if the server can."""
    have = part.stat().st_size if part.exists() and entry.file.sha256 is not None else 0
    if have and have == entry.file.size:
        return  # the process before us ended between the last byte and the rename
    with _open(url, have) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == 206 and not resumed:
            raise _MirrorError("the server gave another part of the file than asked for")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else entry.file.size
        bar = ProgressBar(entry.name, unit="MB", quiet=not progress or total is None)
        with part.open("ab" if resumed else "wb") as file, contextlib.closing(bar):
            while piece := _read(response, have):
                file.write(piece)
                have += len(piece)
                bar(have // 10**6, (total or 0) // 10**6)
    if total is not None and have < total:
        raise _MirrorError(_interrupted(have, "the connection ended"))


def _open(url: str, have: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "ddfnet", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # there is nothing after what we have, which is not the file: start over
            return _open(url, 0)
        gone = " (the file is not there any more)" if error.code in (404, 410) else ""
        raise _MirrorError(f"HTTP {error.code} {error.reason}{gone}") from None
    except (OSError, http.client.HTTPException) as error:
        host = urllib.parse.urlsplit(url).netloc
        raise _MirrorError(f"cannot reach {host} ({getattr(error, 'reason', error)}; no network?)") from None


def _read(response: http.client.HTTPResponse, have: int) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(_interrupted(have, str(error) or type(error).__name__)) from None


def _interrupted(have: int, reason: str) -> str:
    return f"interrupted after {plural(have, 'byte')} ({reason}): run it again"
