"""Locks that give a folder to one process at a time.

They are file locks of the operating system (through filelock), which frees them when the process ends for any
reason. A file beside the lock names the owner, for the message to another process that asks.
"""

import contextlib
import json
import os
import socket
import tempfile
import time
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

from support.files import write_atomic

LOCK = '.lock'  # stays in the folder: deleting a lock file that others may open breaks the lock
OWNER = 'run.lock'  # JSON about the owner; exists during a run, and after a run that was killed


def lock_owner(folder):
    """Return dict(pid, host, since) of the process that holds `folder`, or None if it is free."""
    folder = Path(folder)
    if not (folder / LOCK).exists():
        return None

    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _read_owner(folder)


@contextlib.contextmanager
def run_lock(folder):
    """Context that holds `folder` for this process.

    The folder is created if it is missing, and removed at the end if it is still empty.

    Raises:
        ValueError: another process holds it; the message names that process.
    """
    folder = Path(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        owner = _read_owner(folder)
        holder = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        raise ValueError(f'{folder} is in use by {_printable(holder)} ({OWNER}): wait for it, or name another '
                         '--save_dir') from None
    except OSError as error:
        _remove_empty(created)
        raise OSError(f'{folder / LOCK} cannot be written ({error.strerror or error}); free some space, repair '
                      'the folder or name another --save_dir') from error

    try:
        _write_owner(folder)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
        _remove_empty(created)


def _remove_empty(folders):
    """Remove those of the folders, the innermost first, that are empty."""
    with contextlib.suppress(OSError):  # rmdir refuses a folder that is not empty: the usual case
        for path in folders:
            path.rmdir()


def _printable(text):
    """Return a text without control characters, which could change the terminal."""
    return ''.join(character if character.isprintable() else '?' for character in text)[:200]


@contextlib.contextmanager
def file_lock(path, waiting):
    """Context in which one process of this user and machine at a time creates the file `path`.

    The other processes call waiting() and then wait. The lock lies among the temporary files, not beside
    `path`.
    """
    user = os.getuid() if hasattr(os, 'getuid') else 0
    path_hash = zlib.crc32(str(Path(path).resolve()).encode())
    lock = FileLock(Path(tempfile.gettempdir(), f'opso-{user}-{path_hash:08x}.lock'), timeout=0)

    try:
        lock.acquire()
    except Timeout:
        waiting()
        lock.acquire(timeout=-1)

    try:
        yield
    finally:
        lock.release()


def _write_owner(folder):
    owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')}
    text = json.dumps(owner).encode()
    write_atomic(folder / OWNER, lambda file: file.write(text))


def _read_owner(folder):
    """Return dict(pid, host, since) of the owner.

    An owner writes the file a moment after it takes the lock, hence the retries. A killed owner may leave any
    content.
    """
    unknown = {'pid': '(unknown)', 'host': 'this or another machine', 'since': 'a moment ago'}

    for _ in range(20):
        try:
            owner = json.loads((folder / OWNER).read_text(encoding='utf-8'))
            return unknown | {name: owner[name] for name in unknown}
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.01)

    return unknown
