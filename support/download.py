"""Download dataset files: resumed when the connection breaks, checked before they get their name."""

import queue
import shutil
import socket
import threading
import time
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from support.locks import file_lock
from support.npz import READ_ERRORS
from support.progress import progress_bar
from support.text import foreign

TIMEOUT = 20.0  # seconds, to connect and for every read
ANSWER_TIMEOUT = 60.0  # seconds until an answer has begun: its headers may arrive byte by byte
MIN_RATE = 2000  # bytes per second, averaged over RATE_WINDOW
RATE_WINDOW = 30.0  # seconds
MAX_BYTES = 64 * 10**9  # of a file; the largest dataset of OGBench's states has some 5e9
MAX_DISK_USE = 0.95  # fraction of the free disk that a file may take
RETRY_WAITS = (0.5, 1.0, 2.0)  # seconds between attempts; a machine without a network waits for all of them


def download(file_name, data_dir, urls):
    """Download a file from the first base URL that has it.

    An unfinished `.part` file is resumed by the next attempt or call.

    Args:
        file_name: name of an npz file.
        data_dir: folder to write to; created if it is missing.
        urls: base URLs, tried in order.

    Returns:
        Path of the file; None for a `-val.npz` that no host has, if one of them answers so (404).

    Raises:
        OSError: the message names each URL and what failed there.
    """
    path = Path(data_dir) / file_name
    failures = []
    absent = False
    for url in (f'{base.rstrip("/")}/{file_name}' for base in urls):
        for wait in (*RETRY_WAITS, None):
            try:
                return _download_once(url, path)
            except (OSError, HTTPException, ValueError) as error:
                absent |= getattr(error, 'code', 0) == 404
                if wait is None or not _is_worth_retrying(error):
                    failures.append(f'{url}: {foreign(error)}')
                    break
                time.sleep(wait)

    if absent and file_name.endswith('-val.npz'):
        return None
    raise OSError('; '.join(failures))


def _download_once(url, path):
    """Download a file unless another process does so first; return its path."""
    with file_lock(path, lambda: print(f'waiting for another process that downloads {path}')):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, path.with_name(f'{path.name}.part')).replace(path)
    return path


def _is_worth_retrying(error):
    """Return whether a second attempt may succeed; not for an unknown host, a refusal, or a wrong file."""
    no_host = isinstance(getattr(error, 'reason', None), (socket.gaierror, TimeoutError))
    refused = isinstance(error, ValueError) or 400 <= getattr(error, 'code', 0) < 500
    return not no_host and not refused


def _fetch(url, part):
    """Complete the file `part` from `url` and return it.

    Raises:
        OSError: the connection failed; worth a second attempt.
        ValueError: the server's file is not a dataset, or too large.
    """
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        with _open(request) as response:
            if response.status != 206:  # the server ignores Range and sends the whole file
                have = 0
            _receive(response, part, have)
    except HTTPError as error:
        if error.code != 416:  # 416: the server has no more bytes; the check below decides if that is all
            raise

    try:
        with zipfile.ZipFile(part) as archive:
            archive.getinfo('observations.npy')
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise zipfile.BadZipFile(f'it unpacks to more than {MAX_BYTES:,} bytes')
            damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f'{damaged} is damaged')
    except (*READ_ERRORS, KeyError) as error:
        part.unlink()
        kind = OSError if have else ValueError  # a resumed file may consist of two different ones
        raise kind(f'the download is not an OGBench dataset, perhaps a web page ({error})') from error
    return part


def _open(request):
    """Return the response to a request; raise URLError if it has not begun after `ANSWER_TIMEOUT`."""
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put(urlopen(request, timeout=TIMEOUT))
        except BaseException as error:  # raised below, in the thread that waits
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_TIMEOUT)
    except queue.Empty:
        raise URLError(TimeoutError(f'no answer within {ANSWER_TIMEOUT:.0f} seconds')) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _receive(response, part, have):
    """Append a response to the `have` bytes of a file.

    Raises:
        OSError: the connection breaks or is too slow.
        ValueError: the file is larger than `MAX_BYTES` or the free disk.
    """
    total = have + int(response.headers['Content-Length'] or -have)
    limit = min(MAX_BYTES, have + int(MAX_DISK_USE * shutil.disk_usage(part.parent).free))
    _check_length(total, limit, part)

    rate = RateCheck()
    bar = progress_bar(desc=part.stem, total=total or None, initial=have, unit='B', unit_scale=True)
    with bar, open(part, 'ab' if have else 'wb') as file:
        while chunk := response.read1(1 << 16):  # what has arrived; `read` would wait for all of it
            bar.update(file.write(chunk))
            rate.add(len(chunk))
            if file.tell() > limit:
                break
        length = file.tell()

    if length > limit:
        part.unlink()
        _check_length(length, limit, part)
    if length < total:
        raise OSError(f'the connection broke after {length:,} of {total:,} bytes')


def _check_length(length, limit, part):
    """Raise ValueError if a file is longer than `limit` bytes."""
    if length > limit:
        raise ValueError(f'the file is larger than {limit:,} bytes, which is more than a dataset has or than '
                         f'{part.parent} has room for; free some space or name another folder with --data_dir')


class RateCheck:
    """Bytes received per second, in windows of `RATE_WINDOW`."""

    def __init__(self):
        self.begin = time.monotonic()
        self.received = 0

    def add(self, count):
        """Count received bytes; raise OSError if a window had less than `MIN_RATE`."""
        self.received += count
        seconds = time.monotonic() - self.begin
        if seconds < RATE_WINDOW:
            return
        if self.received < MIN_RATE * seconds:
            raise OSError(f'the server is too slow: {self.received / seconds:,.0f} bytes per second')
        self.begin += seconds
        self.received = 0
