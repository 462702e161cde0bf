"""Read datasets in OGBench's npz layout and check every value that is read.

Offline learning is state-only: it reads `observations` (N, S) and `terminals` (N,). Two rows in a row are one
environment step apart. A trajectory ends where `terminals` is set; its last row has no next state. With two
trajectories:

    row             0  1  2  3  4    5  6  7
    observations   s0 s1 s2 s3 s4 | s0 s1 s2
    terminals       0  0  0  0  1 |  0  0  1        starts = [0, 5]
    next state      1  2  3  4  - |  6  7  -        ends   = [4, 7]

Trajectories of a single state have no step and are skipped. scripts/convert_data.py converts other formats.
"""

import contextlib
import dataclasses
import lzma
import math
import shlex
import struct
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from support.formats import CONVERTIBLE, NPZ, recognize
from support.memory import available_memory
from support.progress import progress_bar
from support.text import foreign, listed

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
MAX_UNPACKING = 500  # bytes of observations per byte in the archive; deflate reaches 1,032 with constants alone
SMALL_ARRAY = 1 << 28  # bytes; smaller arrays may be compressed as well as they like

LAYOUT = 'docs/data.md'
CONVERTER = 'scripts/convert_data.py'
END_NAMES = {  # arrays of other libraries that say where trajectories end -> how
    **dict.fromkeys(('terminals', 'terminal', 'dones', 'done', 'dones_float', 'terminated', 'terminateds',
                     'terminations', 'timeout', 'timeouts', 'truncated', 'truncateds', 'truncations', 'is_last'),
                    'flags'),
    **dict.fromkeys(('masks', 'mask', 'not_done', 'not_dones'), 'inverted flags'),
    **dict.fromkeys(('episode_starts', 'is_first', 'initials'), 'starts'),
    **dict.fromkeys(('episode_index', 'episode_ids', 'episode_id', 'episode', 'traj_ids', 'trajectory', 'take',
                     'trial'), 'numbers'),
}
MAX_NAMES = 12  # of arrays that a message lists


class UnsuitableDataset(ValueError):
    """The file is intact, but it cannot be used."""


class OtherLayout(UnsuitableDataset):
    """The file holds trajectories in another layout, which scripts/convert_data.py reads."""


class DamagedDataset(ValueError):
    """The file cannot be read."""


@dataclasses.dataclass
class Borders:
    """Trajectories of at least two states; their rows are counted without those of skipped trajectories."""

    starts: np.ndarray  # (n,) int64, first row of each trajectory
    ends: np.ndarray  # (n,) int64, last row
    kept: np.ndarray  # (N,) bool, whether a row of the file belongs to one of them

    def read(self, archive, key, rows):
        """Read the first `rows` kept rows of a 2-d array -> float32."""
        file_rows = np.flatnonzero(self.kept)[:rows]
        _check_rows(key, len(file_rows), rows)
        values = _read_rows(archive, key, 2, len(self.kept), int(file_rows[-1]) + 1)
        return values if len(values) == rows else values[file_rows]


# ----------------------------------------------------------------------------------------------- what is read
def load_trajectories(path, max_trajectories=None, context_length=1, flag='--dataset_path'):
    """Load the states of a dataset.

    Args:
        path: npz file.
        max_trajectories: number of trajectories to keep, from the first one on; None keeps all.
        context_length: number of states that the longest trajectory must have.
        flag: that names the file, for messages.

    Returns:
        observations (N, S) float32, or float64 if the file has more digits; starts (n,) int64; ends (n,)
        int64, the last row of each trajectory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit the flags; the message names the way out.
    """
    if max_trajectories is not None and max_trajectories < 1:
        raise ValueError(f'--max_trajectories {max_trajectories}: must be at least 1')

    with open_dataset(path, flag) as archive:
        # the sizes of both arrays before their values
        _require_arrays(archive)
        _read_shape(archive, 'observations', 2, _read_shape(archive, 'terminals', 1)[0])

        borders = _read_borders(archive, warn=True)
        starts = borders.starts[:max_trajectories]
        ends = borders.ends[:max_trajectories]

        longest = np.max(ends - starts) + 1
        if longest < context_length:
            raise UnsuitableDataset(
                f'--context_length {context_length} is longer than every trajectory; the longest has '
                f'{longest} states, give at most that')
        return borders.read(archive, 'observations', ends[-1] + 1), starts, ends


def load_actions(path, rows, flag='--dataset_path'):
    """Load the first `rows` actions of a dataset -> (rows, A) float32, in the environment's units.

    Three kinds of files have actions: OGBench's own, those of `collect_dataset.py --no-state_only`, and those
    of scripts/label_with_simulator.py.

    Raises:
        ValueError: the file has no actions, fewer rows, or is damaged.
    """
    with open_dataset(path, flag) as archive:
        if 'actions.npy' not in archive.namelist():
            raise UnsuitableDataset(
                f'there are no `actions` in it, only {_list_arrays(archive)}; name a file that has them with '
                f'{flag}, or collect it with --no-state_only')
        return _read_kept(archive, ['actions'], rows)[0].astype(np.float32, copy=False)


def load_borders(path, flag='--dataset_path'):
    """Return the first and last row (n,) of each trajectory of a file, which needs no `observations`."""
    with open_dataset(path, flag) as archive:
        borders = _read_borders(archive)
        return borders.starts, borders.ends


def has_array(path, name):
    """Return whether an npz file has an array."""
    with open_dataset(path) as archive:
        return f'{name}.npy' in archive.namelist()


def load_arrays(path, names=(), flag=''):
    """Return {name: array} of an npz file that is no dataset, such as weights, with all its arrays.

    Args:
        path: npz file.
        names: of arrays that it must have.
        flag: that names the file, for messages.
    """
    with open_dataset(path, flag, names) as archive:
        missing = [f'`{name}`' for name in names if f'{name}.npy' not in archive.namelist()]
        if missing:
            raise UnsuitableDataset(f'there is no {", ".join(missing)} in it, only {_list_arrays(archive)}; '
                                    f'{_name_another(flag)}')
        with np.load(path, allow_pickle=False) as file:
            return dict(file)


def fingerprint_of_actions(path):
    """Return the fingerprint of the data that a file of actions belongs to; None for other files.

    scripts/label_with_simulator.py writes these files.
    """
    with open_dataset(path), np.load(path, allow_pickle=False) as file:
        return foreign(file['fingerprint']) if 'fingerprint' in file.files else None


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
                'there are no `qpos` and `qvel` in it, which labeling with the simulator needs; name a file '
                'that has them with --dataset_path, or collect it with --physics')
        arrays = _read_kept(archive, ['qpos', 'qvel'], rows)
        found = tuple(array.shape[1] for array in arrays)
        if found != (qpos_dim, qvel_dim):
            raise UnsuitableDataset(
                f'`qpos` and `qvel` have {found} dimensions, the simulator has {(qpos_dim, qvel_dim)}: the '
                'file is of another robot, name another one with --dataset_path')
    return arrays


# ------------------------------------------------------------------------------------------------------- file
@contextlib.contextmanager
def open_dataset(path, flag='--dataset_path', names=('observations', 'terminals')):
    """Open a dataset, or another npz file, as a zip archive.

    Args:
        path: npz file.
        flag: that names the file, for messages.
        names: of its arrays, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        UnsuitableDataset, DamagedDataset: one line with the path, the problem and the way out; also for
            errors in the body of the context.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such npz file'
                                + Path(path).is_dir() * f'; it is a folder, {converting(path)}')
    try:
        found = recognize(path)
        if found not in (NPZ, None):
            arrays = ', '.join(f'`{name}`' for name in names)
            kind = OtherLayout if found in CONVERTIBLE and 'observations' in names else UnsuitableDataset
            raise kind(f'this is {found}; {flag or "the command"} needs an npz file'
                       + f' with the arrays {arrays}' * bool(names)
                       + f' ({LAYOUT})' * ('observations' in names))
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OtherLayout as error:
        raise OtherLayout(f'{path}: {error}; {converting(path)}') from error
    except UnsuitableDataset as error:
        raise UnsuitableDataset(f'{path}: {error}') from error
    except MemoryError as error:
        raise UnsuitableDataset(f'{path}: the memory is too small for it; use fewer trajectories with '
                                '--max_trajectories') from error
    except (*READ_ERRORS, ValueError) as error:
        problem = foreign(error) or type(error).__name__
        if isinstance(error, zipfile.BadZipFile):
            problem = 'this is no npz file, or a part of one is missing'
        raise DamagedDataset(f'{path}: {problem}; repair it or {_name_another(flag)}') from error


def converting(path):
    """Return the command that converts a file or a folder, for a message."""
    return f'`python {CONVERTER} {shlex.quote(foreign(path))} states.npz` converts it'


def _name_another(flag):
    return f'name another file with {flag}' if flag.startswith('--') else 'use another file'


def _array_names(archive):
    return [name.removesuffix('.npy') for name in archive.namelist() if name.endswith('.npy')]


def _list_arrays(archive):
    """Return the names of the arrays in a file as text."""
    names = [f'`{foreign(name)}`' for name in _array_names(archive)]
    return listed(names, MAX_NAMES)


def _require_arrays(archive):
    """Raise OtherLayout unless the file has states and borders."""
    missing = [f'`{name}`' for name in ('observations', 'terminals') if name not in _array_names(archive)]
    if missing:
        raise OtherLayout(f'there is no {" and no ".join(missing)} in it, only {_list_arrays(archive)} '
                          f'({LAYOUT})')


# ---------------------------------------------------------------------------------------------------- borders
def _read_borders(archive, warn=False):
    """Read the `terminals` of a file -> Borders.

    Args:
        warn: whether to compare other arrays that mark ends, and to report skipped trajectories.

    Raises:
        ValueError: rows at the end belong to no trajectory, or no trajectory has two states.
    """
    terminals = _read_rows(archive, 'terminals', 1) != 0
    if warn:
        _compare_ends(archive, terminals)

    # mistakes
    count = int(terminals.sum())
    size = len(terminals)
    if 2 * count > size:
        raise UnsuitableDataset(
            f'`terminals` is set in {count:,} of {size:,} rows; it must be set in the last row of each '
            'trajectory only: if it is inverted, save `terminals == 0`')
    ends = np.flatnonzero(terminals).astype(np.int64)
    tail = size - 1 - ends[-1] if count else size
    if tail:
        raise UnsuitableDataset(f'no terminal ends the last {tail} of {size} rows; set `terminals` in the '
                                f'last row of each trajectory ({LAYOUT})')

    # trajectories of one state have no step
    lengths = np.diff(ends, prepend=-1)
    single = ends[lengths == 1]
    kept = np.ones(size, bool)
    kept[single] = False
    if len(single) and warn:
        print(f'warning: {archive.filename}: {len(single):,} of {count:,} trajectories are one state only '
              f'(the first one is row {single[0]}) and are skipped', file=sys.stderr)
    lengths = lengths[lengths > 1]
    ends = lengths.cumsum() - 1
    return Borders(ends - lengths + 1, ends, kept)


def _compare_ends(archive, terminals):
    """Raise UnsuitableDataset if another array ends trajectories where `terminals` (N,) does not."""
    for name in _array_names(archive):
        if name not in END_NAMES or name == 'terminals':
            continue
        values = _read_flags(archive, name, len(terminals))
        if values is None:
            print(f'warning: {archive.filename}: `{name}` does not have one value per row; it is not read',
                  file=sys.stderr)
            continue

        joined = int(np.sum(ends_of(END_NAMES[name], values) & ~terminals))
        if joined:
            raise OtherLayout(f'`{name}` ends trajectories in {joined:,} rows where `terminals` does not')


def ends_of(kind, values):
    """Return which rows (N,) end a trajectory, by values (N,) of a kind of `END_NAMES`."""
    if kind == 'flags':
        return values != 0
    if kind == 'inverted flags':
        return values == 0
    if kind == 'starts':
        return np.append(values[1:] != 0, True)
    return np.append(values[1:] != values[:-1], True)


# ----------------------------------------------------------------------------------------------------- arrays
def _read_kept(archive, keys, rows):
    """Read the first `rows` kept rows of 2-d arrays -> list of float32 arrays."""
    for key in keys:
        _check_rows(key, _read_shape(archive, key, 2)[0], rows)
    borders = _read_borders(archive)
    return [borders.read(archive, key, rows) for key in keys]


def _check_rows(key, found, needed):
    """Raise UnsuitableDataset if an array has fewer rows than the data need."""
    if found < needed:
        raise UnsuitableDataset(f'`{key}` has {found:,} rows, the data have {needed:,}: it belongs to other '
                                'data, name the file of these')


def _read_rows(archive, key, ndim, size=None, rows=None):
    """Read the first `rows` rows of an array as float32, or as float64 if it has more digits than that.

    The array is read in pieces, so that memory is hardly more than the result.

    Raises:
        ValueError: the array is missing, its shape or type is wrong, or a value is not finite.
        UnsuitableDataset: the memory is too small.
    """
    with archive.open(f'{key}.npy') as file:
        shape, fortran, dtype = _read_header(file, key, ndim, size)
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        _check_size(archive.getinfo(f'{key}.npy').file_size - file.tell(), shape[0] * row_bytes, key)

        # an array in Fortran order cannot be read in pieces
        step = shape[0] if fortran else max(1, BYTES_PER_READ // row_bytes)
        kept = np.float32 if np.can_cast(dtype, np.float32) else np.float64
        values_shape = (rows or shape[0], *shape[1:])
        memory = np.dtype(kept).itemsize * math.prod(values_shape) + fortran * shape[0] * row_bytes
        _check_memory(archive, key, memory)
        values = np.empty(values_shape, kept)
        pieces = range(0, len(values), step)
        for i in progress_bar(pieces, f'reading {key}', leave=False, delay=1):
            piece = (min(step, shape[0] - i), *shape[1:])
            data = np.frombuffer(file.read(piece[0] * row_bytes), dtype).reshape(piece, order='CF'[fortran])
            with np.errstate(over='ignore'):  # a value that is too large becomes inf and is refused below
                values[i:i + step] = data[:len(values) - i]
            _check_finite(values, i, i + step, key)
    return values


def _read_flags(archive, key, size):
    """Return the values (N,) of an array that has one per row, in its own type; None for other arrays."""
    with archive.open(f'{key}.npy') as file:
        shape, _, dtype = _parse_header(file, key)
        is_per_row = math.prod(shape) == size and max(shape, default=0) == size
        if not is_per_row or dtype.kind not in 'bfiu':
            return None
        return np.frombuffer(file.read(size * dtype.itemsize), dtype)


def _read_shape(archive, key, ndim, size=None):
    """Return the shape of an array; raise ValueError unless it suits `key`, with `size` rows."""
    with archive.open(f'{key}.npy') as file:
        return _read_header(file, key, ndim, size)[0]


def _parse_header(file, key):
    """Return (shape, Fortran order, dtype) of an npy file."""
    version = np.lib.format.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(f'`{key}` has npy version {version}, which this code does not read')
    return HEADER_READERS[version](file)


def _read_header(file, key, ndim, size):
    """Return (shape, Fortran order, dtype) of an npy file; raise ValueError unless they suit the array `key`.
    """
    shape, fortran, dtype = _parse_header(file, key)
    if len(shape) != ndim or 0 in shape or dtype.kind not in 'bfiu':
        has_episodes = len(shape) == ndim + 1 and 0 not in shape  # of equal length
        kind = OtherLayout if has_episodes else ValueError
        raise kind(f'`{key}` is {dtype} of shape {shape}; it must be {ndim}-d, numeric, not empty')
    if size not in (None, shape[0]):
        raise ValueError(f'`{key}` has {shape[0]} rows, `terminals` {size}; they must have the same')
    return shape, fortran, dtype


def _check_memory(archive, key, needed):
    """Raise UnsuitableDataset if an array unpacks to more than a recording can, or than the memory has.

    Args:
        needed: bytes in memory.
    """
    info = archive.getinfo(f'{key}.npy')
    if info.file_size > max(SMALL_ARRAY, MAX_UNPACKING * info.compress_size):
        raise UnsuitableDataset(
            f'`{key}` unpacks from {info.compress_size / 1e6:,.1f} MB to {info.file_size / 1e9:,.1f} GB, as '
            'nothing but constants does; save the recorded states')

    available = available_memory()
    if available is not None and needed > available:
        raise UnsuitableDataset(
            f'`{key}` needs {needed / 1e9:,.1f} GB of memory, {available / 1e9:,.1f} GB are available; use '
            'fewer trajectories with --max_trajectories')


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
        problem = ', too large for float32'
        if not np.isfinite(values[index]):
            problem = f'; {CONVERTER} cuts the trajectory there' * (key == 'observations')
        raise ValueError(f'`{key}[{", ".join(map(str, index))}]` is {values[index]}{problem}')
