"""Atomic writes of files, and checkpoints that run no code when they are loaded."""

import contextlib
import os
import time
import warnings
from pathlib import Path

import torch

CHECKPOINT_FORMAT = 6  # raised by every change of what checkpoints contain
REQUIRED_KEYS = {'offline': ('agent', 'data'), 'online': ('agent', 'dataset')}


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
    temporary = path.with_name(f'{path.name}.tmp{os.getpid()}')
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
                          'repair the folder, then continue with --resume') from error
        raise


def remove_leftovers(folder):
    """Delete the temporary files of processes that were killed while writing."""
    for path in Path(folder).glob('*.tmp*'):
        pid = path.name.rpartition('.tmp')[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _may_be_writing(int(pid), path)):
            path.unlink(missing_ok=True)


def _may_be_writing(pid, path):
    """Return whether a process still runs, which may be writing to `path`."""
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
    """Write a dict of tensors and builtins as a checkpoint."""
    checkpoint = {'format': CHECKPOINT_FORMAT, **content}
    write_atomic(path, lambda file: _torch_save(checkpoint, file))


def _torch_save(checkpoint, file):
    """Save into a file without a copy in memory.

    An error of the file is raised as it is; torch.save would raise its own without the reason.
    """
    errors = []

    class ErrorKeeper:
        def write(self, data):
            try:
                return file.write(data)
            except OSError as error:
                errors.append(error)
                raise

        def flush(self):
            file.flush()

    try:
        torch.save(checkpoint, ErrorKeeper())
    except RuntimeError as error:
        if errors:
            raise errors[0] from error
        raise
    if errors:
        raise errors[0]


def load_checkpoint(path, kind=None):
    """Load a checkpoint to the CPU without running code from it.

    Args:
        path: file.
        kind: 'offline', 'online' or 'labeling'; None accepts every kind.

    Returns:
        The saved dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or one of another format or kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns about files that are refused below
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many types; all mean that the file cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{path} is not a readable OPSO checkpoint ({reason})') from error

    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if found != CHECKPOINT_FORMAT:
        raise ValueError(f'{path} has checkpoint format {found}, this code reads {CHECKPOINT_FORMAT}: train '
                         'again, or use the version of OPSO that wrote it')
    if kind and content.get('kind') != kind:
        raise ValueError(f"{path} is an {content.get('kind')} checkpoint, an {kind} one is needed")
    if missing := [name for name in REQUIRED_KEYS.get(kind, ()) if name not in content]:
        raise ValueError(f'{path} is not a whole checkpoint: {", ".join(missing)} missing')
    return content


@contextlib.contextmanager
def prefix_errors(path):
    """Context that puts the name of a file before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
