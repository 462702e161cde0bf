"""Atomic writes of files, and checkpoints that are verified and run no code when they are loaded.

A checkpoint is a zip archive of torch.save. The comment at its end is the checksum of all bytes before it, so
that a single changed bit is noticed.
"""

import contextlib
import hashlib
import os
import re
import struct
import tempfile
import time
import warnings
from pathlib import Path

from support.contents import has_type

CHECKPOINT_FORMAT = 9  # raised by every change of what checkpoints contain
REQUIRED_KEYS = {  # kind -> {name: type}
    'offline': {'agent': dict, 'data': dict},
    'online': {'agent': dict, 'dataset': str},
    'labeling': {},
    'student': {'network': dict},  # of scripts/experts/distil_expert.py
}
# record of the data in a checkpoint, `OfflineTraining.data_record`
DATA_KEYS = {'dataset': str, 'path': str, 'max_trajectories': int, 'fingerprint': str, 'observation_model': dict}
TEMPORARY = re.compile(r'.+\.opso-tmp(\d+)')  # name of a file that `write_atomic` is writing, and the process
CHECKSUM_LABEL = b'OPSO sha256 '
DAMAGED = 'it is damaged: its checksum does not fit its content'
LFS_POINTER = b'version https://git-lfs'  # start of a file that Git LFS has not fetched
BYTES_PER_READ = 1 << 20
# errors of code that reads a dict which is not what a checkpoint holds
CONTENT_ERRORS = (LookupError, TypeError, AttributeError, RuntimeError, OverflowError)


def write_atomic(path, write):
    """Write a file so that `path` always holds the old content or the new one, never a part.

    Args:
        path: file to write; its folder is created if it is missing.
        write: function that writes to the binary file it is called with.

    Raises:
        OSError: the file cannot be written; the message names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.opso-tmp{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = ', its last good version is kept' if path.exists() else ''
            raise OSError(f'{path} cannot be written ({error.strerror or error}){kept}; free some space or '
                          'repair the folder, then repeat the command, a run with --resume') from error
        raise


def check_writable(path):
    """Raise OSError unless a file can be written, for programs that compute for long before they write it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(0, 'it is a folder')
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f'{path} cannot be written ({error.strerror}); name another file with --output') from error


def remove_leftovers(folder):
    """Delete the temporary files of `write_atomic` whose process was killed while writing."""
    for path in Path(folder).iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and path.is_file() and not _may_be_writing(int(match[1]), path):
            path.unlink(missing_ok=True)


def _may_be_writing(pid, path):
    """Return whether another process still runs, which may be writing to `path`."""
    if pid == os.getpid():
        return False
    if os.name == 'nt':  # os.kill(pid, 0) would end the process; every write takes less than 600 seconds
        return time.time() - path.stat().st_mtime < 600
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def save_checkpoint(path, content):
    """Write a dict of tensors and builtins as a checkpoint with its checksum."""
    checkpoint = {'format': CHECKPOINT_FORMAT, **content}
    write_atomic(path, lambda file: _torch_save(checkpoint, file))


def _torch_save(checkpoint, file):
    """Save into a file without a copy in memory, and append the checksum.

    An error of the file is raised as it is; torch.save would raise its own without the reason.
    """
    import torch  # here, since its import takes seconds and most scripts read no checkpoint

    errors = []
    checksum = hashlib.sha256()

    class Writer:
        def write(self, data):
            try:
                checksum.update(data)
                return file.write(data)
            except OSError as error:
                errors.append(error)
                raise

        def flush(self):
            file.flush()

    try:
        torch.save(checkpoint, Writer())
    except RuntimeError as error:
        if errors:
            raise errors[0] from error
        raise
    if errors:
        raise errors[0]

    # a zip archive ends with the length of its comment, 0, and the comment
    file.seek(-len(_comment()), os.SEEK_END)
    file.write(_comment(CHECKSUM_LABEL + checksum.hexdigest().encode()))


def _comment(text=b''):
    """Return the end of a zip archive with a comment."""
    return struct.pack('<H', len(text)) + text


def _find_damage(file):
    """Return how a file differs from what `save_checkpoint` wrote, in words; None if it does not."""
    expected = _comment(CHECKSUM_LABEL + hashlib.sha256().hexdigest().encode())  # of the same length
    start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return 'it is a pointer of Git LFS, `git lfs pull` gets the file'

    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(expected)))
    comment = file.read()
    if CHECKSUM_LABEL not in comment:
        return 'it has no checksum'

    checksum = hashlib.sha256()
    file.seek(0)
    left = size - len(expected)
    while left > 0:
        data = file.read(min(left, BYTES_PER_READ))
        checksum.update(data)
        left -= len(data)
    checksum.update(_comment())
    intact = comment == _comment(CHECKSUM_LABEL + checksum.hexdigest().encode())
    return None if intact else DAMAGED


def _torch_load(file):
    """Return the content of an open file of torch.save."""
    import torch

    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns about files that it refuses
        return torch.load(file, map_location='cpu', weights_only=True)


def load_checkpoint(path, kind=None):
    """Load a checkpoint to the CPU without running code from it.

    Args:
        path: file.
        kind: 'offline', 'online' or 'labeling'; None accepts every kind.

    Returns:
        The saved dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, a damaged one, or one of another format or kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')

    # the file
    with open(path, 'rb') as file:
        damage = _find_damage(file)
        content = {}
        if damage != DAMAGED:
            try:
                content = _torch_load(file)
            except Exception:  # torch raises many types; all mean that the file cannot be used
                damage = damage or 'it holds other objects than tensors and builtins'

    # its format and kind
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if found != CHECKPOINT_FORMAT and (found or not damage):
        raise ValueError(f'{path} has checkpoint format {found}, this code reads {CHECKPOINT_FORMAT}: train '
                         'again, or use the version of OPSO that wrote it')
    if damage:
        raise ValueError(f'{path} is not a readable OPSO checkpoint ({damage}): {_way_out(path)}')
    check_content(content, path, kind)
    return content


def check_content(content, path, kind=None):
    """Raise ValueError that names the file `path` unless a dict is what a checkpoint of a kind contains."""
    found = content.get('kind')
    if kind not in (None, found):
        raise ValueError(f'{path} is an {found} checkpoint, an {kind} one is needed')
    with prefix_errors(path):
        check_types(content, REQUIRED_KEYS.get(kind, {}))


def _way_out(path):
    """Return what to do without the checkpoint `path`, in words."""
    others = sorted(other.name for other in path.parent.glob('*.pth') if other.name != path.name)
    if others:
        return f'use {" or ".join(others[:3])} beside it, or a copy of the file'
    return 'use a copy of the file or another checkpoint, or train again in another --save_dir'


def check_types(content, types):
    """Raise ValueError unless a dict has entries of these types.

    Args:
        content: dict.
        types: {name: type or tuple of types}.
    """
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f'it is not a whole checkpoint: {name} is missing')
        if not has_type(content[name], kind):
            raise ValueError(f'its {name} is of type {type(content[name]).__name__}')


@contextlib.contextmanager
def prefix_errors(path):
    """Context that reads the content of a checkpoint; its errors become ValueErrors that name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    except CONTENT_ERRORS as error:
        if type(error).__name__ == 'OutOfMemoryError':
            raise
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(f'{path}: its content is not that of a checkpoint ({type(error).__name__}: {reason}); '
                         'use another checkpoint') from error
