"""Read datasets in OGBench's npz layout and check every value that is read.

Offline learning is state-only: it reads `observations` (N, S) and `terminals` (N,). A trajectory ends where
`terminals` is set; its last row has no next state. With two trajectories:

    row             0  1  2  3  4    5  6  7
    observations   s0 s1 s2 s3 s4 | s0 s1 s2
    terminals       0  0  0  0  1 |  0  0  1        starts = [0, 5]
    next state      1  2  3  4  - |  6  7  -        ends   = [4, 7]
"""

import contextlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Errors that a damaged file can raise. zipfile reports encryption and unknown compression as RuntimeError.
# The last five come from numpy's parser of npy headers; a forged header can request a huge array, hence
# MemoryError.
READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, lzma.LZMAError, struct.error,
               SyntaxError, TypeError, tokenize.TokenError, MemoryError)
HEADER_READERS = {  # by npy version
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
BYTES_PER_READ = 1 << 21


class UnsuitableDataset(ValueError):
    """The file is intact, but it cannot be used with the given flags."""


def load_trajectories(path, max_trajectories=None, context_length=1):
    """Load the states of a dataset.

    Args:
        path: npz file.
        max_trajectories: number of trajectories to keep, from the first one on; None keeps all.
        context_length: number of states that the longest trajectory must have.

    Returns:
        observations (N, S) float32, or float64 if the file has more digits; starts (n,) int64; ends (n,)
        int64, the last row of each trajectory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit the flags; the message names the way out.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such dataset file')
    if max_trajectories is not None and max_trajectories < 1:
        raise ValueError(f'--max_trajectories {max_trajectories}: must be at least 1')

    with open_dataset(path) as archive:
        terminals = _read_rows(archive, 'terminals', 1)
        starts, ends = _find_borders(terminals)
        starts = starts[:max_trajectories]
        ends = ends[:max_trajectories]

        longest = np.max(ends - starts) + 1
        if longest < context_length:
            raise UnsuitableDataset(
                f'{path}: --context_length {context_length} is longer than every trajectory; the longest '
                f'has {longest} states, give at most that')

        observations = _read_rows(archive, 'observations', 2, len(terminals), ends[-1] + 1)
        return observations, starts, ends


def load_actions(path, rows):
    """Load the first `rows` actions of a dataset -> (rows, A) float32, in the environment's units.

    Three kinds of files have actions: OGBench's own, those of `collect_dataset.py --no-state_only`, and those
    of scripts/label_with_simulator.py.

    Raises:
        ValueError: the file has no actions or is damaged.
    """
    with open_dataset(path) as archive:
        if 'actions.npy' not in archive.namelist():
            raise UnsuitableDataset(
                f'{path}: there are no `actions` in it, which --true_actions learns from; name one that '
                'has them with --dataset_path, or collect it with --no-state_only')
        size = len(_read_rows(archive, 'terminals', 1))
        return _read_rows(archive, 'actions', 2, size, rows).astype(np.float32, copy=False)


def fingerprint_of_actions(path):
    """Return the fingerprint of the data that a file of actions belongs to; None for other files.

    scripts/label_with_simulator.py writes these files.
    """
    with open_dataset(path), np.load(path, allow_pickle=False) as file:
        return str(file['fingerprint']) if 'fingerprint' in file.files else None


def load_physics(path, rows, qpos_dim, qvel_dim):
    """Load the first `rows` simulator states of a dataset.

    OGBench's files have them, and those of `collect_dataset.py --physics`.

    Returns:
        qpos (rows, qpos_dim), qvel (rows, qvel_dim), in the precision of the file.

    Raises:
        ValueError: the file has no simulator states, those of another robot, or is damaged.
    """
    with open_dataset(path) as archive:
        if not {'qpos.npy', 'qvel.npy'} <= set(archive.namelist()):
            raise UnsuitableDataset(
                f'{path}: there are no `qpos` and `qvel` in it, which labeling with the simulator needs; '
                'name a file that has them with --dataset_path, or collect it with --physics')
        size = len(_read_rows(archive, 'terminals', 1))
        arrays = [_read_rows(archive, name, 2, size, rows) for name in ('qpos', 'qvel')]

    found = tuple(array.shape[1] for array in arrays)
    if found != (qpos_dim, qvel_dim):
        raise UnsuitableDataset(
            f'{path}: `qpos` and `qvel` have {found} dimensions, the simulator has {(qpos_dim, qvel_dim)}: '
            'the file is of another robot, name another one with --dataset_path')
    return arrays


@contextlib.contextmanager
def open_dataset(path):
    """Open a dataset as a zip archive; raise ValueError that names the problem and the way out."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UnsuitableDataset:
        raise
    except (*READ_ERRORS, ValueError) as error:
        with open(path, 'rb') as file:
            is_web_page = file.read(512).lstrip()[:1] == b'<'
        problem = 'this is a web page, not a dataset' if is_web_page else str(error) or type(error).__name__
        way_out = ('repair it, move it away to have it downloaded again, '
                   'or name another file with --dataset_path')
        raise ValueError(f'{path}: {problem}; {way_out}') from error


def _find_borders(terminals):
    """Return the first and last rows (n,) of all trajectories.

    Raises:
        ValueError: rows at the end belong to no trajectory, or a trajectory has a single state.
    """
    ends = np.flatnonzero(terminals).astype(np.int64)
    starts = np.append(0, ends + 1)

    tail = len(terminals) - starts[-1]
    if tail:
        raise ValueError(f'no terminal ends the last {tail} of {len(terminals)} rows')
    starts = starts[:-1]

    short = np.flatnonzero(starts == ends)
    if len(short):
        raise ValueError(f'trajectory {short[0]} (row {ends[short[0]]}) is one state only')
    return starts, ends


def _read_rows(archive, key, ndim, size=None, rows=None):
    """Read the first `rows` rows of an array as float32, or as float64 if it has more digits than that.

    The array is read in pieces, so that memory is hardly more than the result.

    Raises:
        ValueError: the array is missing, its shape or type is wrong, or a value is not finite.
    """
    if f'{key}.npy' not in archive.namelist():
        raise ValueError(f'there is no `{key}` in it')

    with archive.open(f'{key}.npy') as file:
        shape, fortran, dtype = _read_header(file, key, ndim, size)
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        _check_size(archive.getinfo(f'{key}.npy').file_size - file.tell(), shape[0] * row_bytes, key)

        # an array in Fortran order cannot be read in pieces
        step = shape[0] if fortran else max(1, BYTES_PER_READ // row_bytes)
        kept = np.float32 if np.can_cast(dtype, np.float32) else np.float64
        values = np.empty((rows or shape[0], *shape[1:]), kept)
        pieces = range(0, len(values), step)
        for i in tqdm(pieces, f'reading {key}', leave=False, dynamic_ncols=True, delay=1):
            piece = (min(step, shape[0] - i), *shape[1:])
            data = np.frombuffer(file.read(piece[0] * row_bytes), dtype).reshape(piece, order='CF'[fortran])
            with np.errstate(over='ignore'):  # a value that is too large becomes inf and is refused below
                values[i:i + step] = data[:len(values) - i]
            _check_finite(values, i, i + step, key)
    return values


def _read_header(file, key, ndim, size):
    """Return (shape, Fortran order, dtype) of an npy file; raise ValueError unless they suit the array `key`.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(f'`{key}` has npy version {version}, which this code does not read')

    shape, fortran, dtype = HEADER_READERS[version](file)
    if len(shape) != ndim or 0 in shape or dtype.kind not in 'bfiu':
        raise ValueError(f'`{key}` is {dtype} of shape {shape}; it must be {ndim}-d, numeric, not empty')
    if size not in (None, shape[0]):
        raise ValueError(f'`{key}` has {shape[0]} rows, `terminals` {size}')
    return shape, fortran, dtype


def _check_size(found, expected, key):
    """Raise ValueError unless the file has as many bytes as its header promises."""
    if found != expected:
        raise ValueError(f'`{key}` should have {expected:,} bytes and has {found:,}')


def _check_finite(values, begin, end, key):
    """Raise ValueError that names the first value of rows begin:end which is not finite in float32."""
    with np.errstate(over='ignore'):  # a value too large for float32 becomes inf
        bad = np.argwhere(~np.isfinite(values[begin:end].astype(np.float32, copy=False)))
    if len(bad):
        index = (begin + bad[0][0], *bad[0][1:])
        problem = ', too large for float32' if np.isfinite(values[index]) else ''
        raise ValueError(f'`{key}[{", ".join(map(str, index))}]` is {values[index]}{problem}')
