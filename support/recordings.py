"""Read recordings in the formats of other libraries, for scripts/convert_data.py.

A file of any format holds columns: arrays with one row per state. A reader returns them as a `Table`, and
`select` makes a `Recording` of it: which columns are states, where episodes end, when states were recorded.

    npy, npz          (rows, S), or (episodes, rows, S) with `lengths` where episodes are padded
    HDF5              D4RL (arrays of all rows), Minari and robomimic (a group per episode)
    parquet, Arrow    LeRobot v2 and v3, Minari, and others with one row per state
    text              tables of separated values
"""

import contextlib
import dataclasses
import importlib
import json
import re
from pathlib import Path

import numpy as np

from support.formats import ARROW, HDF5, NPY, NPZ, PARQUET, TEXT, recognize
from support.npz import END_NAMES, READ_ERRORS, ends_of
from support.steps import unrepeated
from support.text import foreign, listed

REQUIREMENTS = 'requirements-data.txt'  # h5py, pyarrow and pandas
TABLE_SUFFIXES = ('.csv', '.tsv', '.txt', '.dat')  # of tables in a folder, which may hold other texts as well

# names of columns, or first parts of names such as observation.state
STATE_NAMES = ('observations', 'observation', 'obs', 'states', 'state')  # by preference
GOAL_PARTS = ('achieved_goal', 'observation')  # of a goal environment's state, in the order of `GoalDict`
ACTION_NAMES = ('actions', 'action', 'acts')
TIME_NAMES = ('time', 'timestamp', 'timestamps', 'time_s', 'seconds', 'stamp', 't')
LENGTH_NAMES = ('lengths', 'episode_lengths', 'path_lengths')
OTHER_NAMES = ('next', 'reward', 'rewards', 'infos', 'info', 'index', 'id', 'frame', 'frame_index',
               'task_index', 'step', 'steps', 'discount', 'desired_goal')  # no part of a state

SECONDS = {'s': 1.0, 'ms': 1e-3, 'us': 1e-6, 'ns': 1e-9}
MAX_NAMES = 12  # of columns in a message


@dataclasses.dataclass
class Table:
    """The columns of one file."""

    columns: dict  # name -> (N,) or (N, D), in the order of the file
    ends: np.ndarray | None = None  # (N,) bool, last row of each episode; None: columns mark them
    labels: dict = dataclasses.field(default_factory=dict)  # column -> names of its D dimensions
    others: tuple = ()  # names of arrays that have no row per state, or hold no numbers


@dataclasses.dataclass
class Choices:
    """What the user names; without a name, columns are found by usual names."""

    columns: tuple = ()  # of the state, in this order
    ends: tuple = ()  # that mark where episodes end
    time: str = ''  # time stamps
    time_unit: str = 's'  # of time stamps that are numbers


@dataclasses.dataclass
class Recording:
    """The episodes of one file, one after the other."""

    path: Path
    names: list  # of the S dimensions
    states: np.ndarray  # (N, S)
    ends: np.ndarray  # (N,) bool, last row of each episode
    times: np.ndarray | None  # (N,) seconds, NaN where one is missing; None: rows are one step apart
    actions: np.ndarray | None  # (N, A), from each row to the next
    used: dict  # purpose -> columns, for the report


# ------------------------------------------------------------------------------------------------------ files
def find_files(path):
    """Return the readable files of a folder, in the order of their numbers, or the file itself.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]

    # datasets of LeRobot and Minari have metadata beside their folder `data`
    root = path / 'data' if (path / 'data').is_dir() else path
    files = [file for file in root.rglob('*') if file.is_file() and file.name[0] != '.']
    found = [file for file in sorted(files, key=_by_number) if (kind := recognize(file)) in READERS
             and (kind != TEXT or file.suffix.lower() in TABLE_SUFFIXES)]
    if not found:
        raise FileNotFoundError(f'{path}: no file in this folder is one of {", ".join(READERS)}')
    return found


def _by_number(path):
    """Return a key that sorts episode_2 before episode_10."""
    return [(len(part) if part.isdigit() else 0, part) for part in re.split(r'(\d+)', str(path))]


def read_recording(path, choices):
    """Read one file -> Recording.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line with the path, the problem and the way out.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    found = recognize(path)
    if found not in READERS:
        raise ValueError(f'{path}: this is {found or "a file of an unknown format, or a part of one is missing"}; it '
                         f'must be one of {", ".join(READERS)}')
    try:
        return select(path, READERS[found](path), choices)
    except (*READ_ERRORS, ValueError, LookupError) as error:
        raise ValueError(f'{path}: {foreign(error) or type(error).__name__}') from error


def _library(name):
    """Import an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        raise ValueError(f'{package} is needed to read it: pip install -r {REQUIREMENTS}') from error


# ----------------------------------------------------------------------------------------------------- arrays
def read_npy(path):
    """Read one array of states -> Table."""
    return _table_of_arrays({STATE_NAMES[0]: np.load(path, allow_pickle=False)})


def read_npz(path):
    """Read arrays -> Table; those of Python objects are left out."""
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            with contextlib.suppress(ValueError):  # of objects
                arrays[name] = file[name]
        return _table_of_arrays(arrays, file.files)


def _table_of_arrays(arrays, names=()):
    """Return the Table of arrays (rows, ...) or (episodes, rows, ...); `names` are those of all arrays."""
    states = next((arrays[name] for name in STATE_NAMES if name in arrays), np.zeros((0, 0)))
    lengths = next((arrays[name].astype(int) for name in LENGTH_NAMES if name in arrays), None)
    columns = {name: array for name, array in arrays.items() if array.shape[:1] == states.shape[:1]}

    # episodes that are padded to one length
    if states.ndim == 3:
        lengths = np.full(len(states), states.shape[1]) if lengths is None else lengths
        valid = np.arange(states.shape[1]) < lengths[:, None]
        columns = {name: array[valid] for name, array in columns.items() if array.shape[:2] == valid.shape}
        states = states[valid]
    others = tuple(name for name in names or arrays if name not in columns and name not in LENGTH_NAMES)
    if short := next((name for name in others if name.lower() in END_NAMES and name in arrays
                      and len(arrays[name].ravel()) != len(states) and columns), ''):
        raise ValueError(f'`{short}` has {len(arrays[short]):,} values, there are {len(states):,} states; repair it or '
                         'remove it from the file')
    if lengths is None:
        return Table(columns, others=others) if columns else Table(arrays)
    if lengths.sum() != len(states):
        raise ValueError(f'the lengths of its episodes sum to {lengths.sum():,}, there are {len(states):,} '
                         'states')
    return Table(columns, _ends_after(lengths), others=others)


def _ends_after(lengths):
    """Return which rows (N,) are the last ones of episodes of some lengths."""
    ends = np.zeros(np.sum(lengths), bool)
    ends[np.cumsum([length for length in lengths if length]) - 1] = True
    return ends


def read_hdf5(path):
    """Read arrays of all rows, or a group per episode -> Table. A state after the last action is kept."""
    h5py = _library('h5py')
    with h5py.File(path) as file:
        root = file['data'] if isinstance(file.get('data'), h5py.Group) else file  # of robomimic
        names = [name for name, group in root.items()
                 if isinstance(group, h5py.Group) and {*STATE_NAMES} & {*group}]
        episodes = [_arrays_in(h5py, root[name]) for name in sorted(names, key=_by_number)]
        if not episodes:
            return _table_of_arrays(_arrays_in(h5py, file))

    # one row per state; what has one row less, such as actions, repeats its last one
    lengths = [max(len(array) for name, array in arrays.items() if _part(name, 0) in STATE_NAMES)
               for arrays in episodes]
    columns = {}
    for name in episodes[0]:
        parts = [_padded(arrays.get(name, ()), length)
                 for arrays, length in zip(episodes, lengths, strict=True)]
        if all(part is not None for part in parts):
            columns[name] = np.concatenate(parts)
    return Table(columns, _ends_after(lengths))


def _arrays_in(h5py, group):
    """Return {name: array} of the datasets of numbers in a group, without pictures."""
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind in 'bfiu' and 0 < item.ndim <= 3:
            arrays[name] = item[()]

    group.visititems(visit)
    return arrays


def _padded(array, length):
    """Return an array of `length` rows, the last one repeated if one is missing; None for other lengths."""
    if len(array) == length:
        return array
    return np.append(array, array[-1:], 0) if 0 < len(array) == length - 1 else None


# ----------------------------------------------------------------------------------------------------- tables
def read_arrow(path):
    """Read columns of numbers, lists of numbers, times and texts -> Table, without pictures."""
    types = _library('pyarrow').types
    layout = 'parquet' if recognize(path) == PARQUET else 'arrow'
    file = _library('pyarrow.dataset').dataset(path, format=layout)
    table = file.to_table([field.name for field in file.schema if _is_readable(types, field.type)])
    while any(types.is_struct(field.type) for field in table.schema):  # a dictionary of columns
        table = table.flatten()

    columns = {name: _to_array(types, table[name].combine_chunks()) for name in table.column_names}
    # a file of Minari is an episode, with a state after the last flag
    ends = _ends_after([len(table)]) if 'terminations' in columns and len(table) else None
    columns = {name: array for name, array in columns.items() if array is not None}
    return Table(columns, ends, _labels_of(path))


def _is_readable(types, kind):
    if types.is_struct(kind):
        return all(_is_readable(types, field.type) for field in kind)
    if types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean,
                                             types.is_temporal, types.is_string, types.is_large_string))


def _to_array(types, column):
    """Return a column as an array (N,) or (N, D); None if its lists have different lengths."""
    if not types.is_nested(column.type):
        return column.to_numpy(zero_copy_only=False)
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or column.null_count:
        return None
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _labels_of(path):
    """Return {column: names of its dimensions} of a LeRobot dataset, {} elsewhere."""
    folders = list(path.resolve().parents)[:4]
    info = next((file for folder in folders if (file := folder / 'meta' / 'info.json').is_file()), None)
    if info is None:
        return {}
    features = json.loads(info.read_text(encoding='utf-8')).get('features', {})
    labels = {name: feature.get('names') or () for name, feature in features.items()}
    return {name: sum(names.values(), []) if isinstance(names, dict) else names
            for name, names in labels.items()}


def read_text(path):
    """Read a table of separated values -> Table; without a header, columns are numbered."""
    pandas = _library('pandas')
    with open(path, encoding='utf-8-sig') as file:
        lines = [line for line in (file.readline() for _ in range(50)) if line.strip() and line[0] != '#']
    separator = max(';\t,', key=lines[0].count)
    has_header = not all(_is_number(word) for word in lines[0].split(separator))
    has_commas = separator == ';' and re.search(r'(^|;)-?\d+,\d', lines[-1])

    frame = pandas.read_csv(path, sep=separator, header=0 if has_header else None, comment='#',
                            decimal=',' if has_commas else '.', encoding='utf-8-sig', skipinitialspace=True)
    columns = {str(name).strip(): values.to_numpy() for name, values in frame.items()}
    columns.pop('Unnamed: 0', None)  # the index that pandas writes
    return Table(columns)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


READERS = {HDF5: read_hdf5, PARQUET: read_arrow, ARROW: read_arrow, TEXT: read_text, NPY: read_npy,
           NPZ: read_npz}


# -------------------------------------------------------------------------------------------------- selection
def select(path, table, choices):
    """Return the Recording of a Table.

    Raises:
        ValueError: a named column is missing, there are no rows, or no columns of states.
    """
    columns = table.columns
    for name in filter(None, [*choices.columns, *choices.ends, choices.time]):
        if name not in columns:
            raise ValueError(f'there is no `{foreign(name)}` in it, only {_quoted(columns)}')
    if not any(map(len, columns.values())):
        raise ValueError('there are no rows of numbers in it')

    # columns by purpose
    time = choices.time or next((name for name in columns if name.lower() in TIME_NAMES), '')
    ends = list(choices.ends) or [name for name in columns
                                  if name.lower() in END_NAMES and table.ends is None]
    parts = list(choices.columns) or _find_states(columns, {time, *ends})
    action = next((name for name in columns if name in ACTION_NAMES), '')

    # states
    arrays = [_numbers(name, columns[name]) for name in parts]
    names = [label for name, array in zip(parts, arrays, strict=True)
             for label in _label(name, array.shape[1], table.labels.get(name, ()))]
    states = np.concatenate(arrays, axis=1)
    if not choices.columns and [_part(name, -1) for name in parts] == [*GOAL_PARTS]:
        size = arrays[0].shape[1]
        kept = [*range(size), *(size + unrepeated(arrays[1], arrays[0]))]
        states, names = states[:, kept], [names[column] for column in kept]

    # last rows of episodes
    is_end = np.zeros(len(states), bool) if ends or table.ends is None else table.ends
    for name in ends:
        kind = END_NAMES.get(name.lower(), 'flags' if columns[name].dtype.kind == 'b' else 'numbers')
        is_end = is_end | ends_of(kind, columns[name].reshape(len(states)))
    is_end[-1] = True

    used = {'states': parts, 'episodes': ends, 'time stamps': [time] * bool(time)}
    used['not read'] = [name for name in (*columns, *table.others) if name not in sum(used.values(), [])]
    times = _seconds(columns[time], choices.time_unit) if time else None
    actions = _numbers(action, columns[action]) if action else None
    return Recording(path, names, states, is_end, times, actions, used)


def _find_states(columns, others):
    """Return the names of the columns that are the state; `others` have another purpose."""
    # usual names, or the parts of a dictionary
    numeric = [name for name, array in columns.items() if array.dtype.kind in 'bfiu' and array.ndim <= 2]
    for root in STATE_NAMES:
        parts = [name for name in numeric if _part(name, 0) == root]
        goal_parts = {_part(name, -1): name for name in numeric if _part(name, 0) in (root, GOAL_PARTS[0])}
        if parts:
            return [goal_parts[part] for part in GOAL_PARTS] if {*GOAL_PARTS} <= {*goal_parts} else parts

    # all columns of a table
    excluded = {*others, *OTHER_NAMES, *ACTION_NAMES, *TIME_NAMES, *LENGTH_NAMES, *END_NAMES}
    parts = [name for name in columns if name not in others and _part(name, 0).lower() not in excluded]
    if not parts:
        raise ValueError(f'no columns are states; name them with --columns, of {_quoted(columns)}')
    return parts


def _part(name, index):
    """Return a part of a name such as observations/achieved_goal or observation.state."""
    return re.split(r'[./]', name)[index]


def _numbers(name, values):
    """Return a column as an array (N, D) of numbers."""
    if values.dtype.kind not in 'bfiu' or values.ndim > 2:
        texts = (value for value in values.ravel() if isinstance(value, str) and not _is_number(value))
        text = next(texts, '')
        problem = f"holds text ('{foreign(text)}')" if text else f'is {values.dtype} of shape {values.shape}'
        raise ValueError(f'`{foreign(name)}` {problem}; name the columns of the state with --columns')
    return values.reshape(len(values), -1)


def _label(name, size, labels):
    """Return names of the dimensions of a column."""
    if len(labels) == size:
        return [foreign(label) for label in labels]
    return [foreign(name)] if size == 1 else [f'{foreign(_part(name, -1))}[{i}]' for i in range(size)]


def _seconds(values, unit):
    """Return time stamps (N,) in seconds, NaN where one is missing."""
    if values.dtype.kind in 'OUST':
        pandas = _library('pandas')
        texts = pandas.Series(values)
        dates = pandas.to_datetime(texts, utc=True, format='ISO8601', errors='coerce')  # no guess of the month
        if len(bad := texts[dates.isna() & texts.notna()]):
            raise ValueError(f'the time stamp {foreign(bad.iloc[0])} is no ISO date, such as 2026-11-30 12:00:00')
        values = dates.dt.tz_localize(None).to_numpy()
    if values.dtype.kind == 'M':
        return (values - np.datetime64(0, 's')) / np.timedelta64(1, 's')
    return values.reshape(len(values)) * SECONDS[unit]


def _quoted(names):
    return listed([f'`{foreign(name)}`' for name in names], MAX_NAMES)
