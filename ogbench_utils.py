"""All that touches OGBench: the names of its datasets, finding and reading them, building their environments.

    python ogbench_utils.py list               its state-based datasets: where found, size, trajectories, dimensions
    python ogbench_utils.py check FILE.npz     read all of a file and say what is in it, or what is wrong
    python ogbench_utils.py download NAME      download a dataset and check it

Offline learning is state-only: of a dataset only `observations` (N, S) and `terminals` (N,) are ever read.
A trajectory ends where `terminals` is set; its last row has no next state. With two trajectories:

    row             0  1  2  3  4    5  6  7
    observations   s0 s1 s2 s3 s4 | s0 s1 s2
    terminals       0  0  0  0  1 |  0  0  1        starts = [0, 5]
    next state      1  2  3  4  - |  6  7  -        ends   = [4, 7]
"""

import argparse
import collections
import contextlib
import difflib
import lzma
import math
import os
import re
import socket
import struct
import tempfile
import time
import tokenize
import warnings
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from tqdm import tqdm

from environments import custom_env
from support.flags import run_main
from support.locks import file_lock

# OGBench's environments with states for observations, by family: the size of a state, and the datasets of each kind as
# trajectories x rows (data_gen_scripts/commands.sh of seohongpark/ogbench at 1d41409)
OFFICIAL = {
    'point mazes': {
        'pointmaze-medium': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
        'pointmaze-large': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
        'pointmaze-giant': (2, {'navigate': (500, 2001), 'stitch': (5000, 201)}),
        'pointmaze-teleport': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
    },
    'ant mazes': {
        'antmaze-medium': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201), 'explore': (10_000, 501)}),
        'antmaze-large': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201), 'explore': (10_000, 501)}),
        'antmaze-giant': (29, {'navigate': (500, 2001), 'stitch': (5000, 201)}),
        'antmaze-teleport': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201), 'explore': (10_000, 501)}),
    },
    'humanoid mazes': {
        'humanoidmaze-medium': (69, {'navigate': (1000, 2001), 'stitch': (5000, 401)}),
        'humanoidmaze-large': (69, {'navigate': (1000, 2001), 'stitch': (5000, 401)}),
        'humanoidmaze-giant': (69, {'navigate': (1000, 4001), 'stitch': (10_000, 401)}),
        'humanoidmaze-teleport': (69, {}),  # an environment without data
    },
    'ant soccer': {
        'antsoccer-arena': (42, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
        'antsoccer-medium': (42, {'navigate': (4000, 1001), 'stitch': (8000, 501)}),
    },
    'cube': {
        'cube-single': (28, {'play': (1000, 1001), 'noisy': (1000, 1001)}),
        'cube-double': (37, {'play': (1000, 1001), 'noisy': (1000, 1001)}),
        'cube-triple': (46, {'play': (3000, 1001), 'noisy': (3000, 1001)}),
        'cube-quadruple': (55, {'play': (5000, 1001), 'noisy': (5000, 1001)}),
        'cube-octuple': (91, {}),
    },
    'scene': {
        'scene': (40, {'play': (1000, 1001), 'noisy': (1000, 1001)}),
    },
    'puzzle': {
        'puzzle-3x3': (55, {'play': (1000, 1001), 'noisy': (1000, 1001)}),
        'puzzle-4x4': (83, {'play': (1000, 1001), 'noisy': (1000, 1001)}),
        'puzzle-4x5': (99, {'play': (3000, 1001), 'noisy': (3000, 1001)}),
        'puzzle-4x6': (115, {'play': (5000, 1001), 'noisy': (5000, 1001)}),
    },
}
ENVIRONMENTS = {name: shape for family in OFFICIAL.values() for name, shape in family.items()}
DATASETS = tuple(f'{name}-{kind}-v0' for name, (_, kinds) in ENVIRONMENTS.items() for kind in kinds)
KINDS = ('navigate', 'stitch', 'explore', 'play', 'noisy')  # how data were made: not a part of the environment's name
BUNDLED_DIR = Path(__file__).resolve().parent / 'datasets'
BUNDLED_NAME = 'antmaze-medium-navigate-mini-v0'
BUNDLED_FOR = 'antmaze-medium-navigate-v0'  # the dataset that it may stand in for
OGBENCH_URL = 'https://rail.eecs.berkeley.edu/datasets/ogbench'
TIMEOUT = 20.0  # seconds, to connect and for every read
MUJOCO_WARNINGS = collections.deque(maxlen=8)  # texts since the last look
RETRY_WAITS = (0.5, 1.0, 2.0)  # seconds; short, since a machine without a network sits through all of them
# RuntimeError is how zipfile reports encryption and (as NotImplementedError) unknown compression. The last five come
# from numpy's parser of npy headers, besides ValueError; forged headers can request huge arrays, hence MemoryError.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, lzma.LZMAError, struct.error,
           SyntaxError, TypeError, tokenize.TokenError, MemoryError)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def parse_name(name):
    """Environment id: 'antmaze-medium-navigate-v0' -> 'antmaze-medium-v0', 'scene-play-v0' -> 'scene-v0', as OGBench
    does it, by leaving out the kind of data. ValueError for an unknown name."""
    words = (BUNDLED_FOR if name == BUNDLED_NAME else name).split('-')
    for word, reason in (('visual', 'has images for observations; only states are supported'),
                         ('powderworld', 'has images for observations; only states are supported'),
                         ('singletask', 'has rewards for one task; give its name without "singletask" and "task"'),
                         ('oraclerep', 'has goals that are no states; give its name without "oraclerep"')):
        if word in words:
            raise ValueError(f'--dataset {name} {reason}')

    if len(words) > 2 and words[-2] in KINDS and words[-1] == 'v0' and '-'.join(words[:-2]) in ENVIRONMENTS:
        return '-'.join([*words[:-2], words[-1]])

    nearest = difflib.get_close_matches(name, (*DATASETS, BUNDLED_NAME), cutoff=0.5)
    hint = f'nearest: {", ".join(nearest)}' if nearest else '`python ogbench_utils.py list` shows all'
    raise ValueError(f'unknown --dataset {name}; {hint} (a file goes to --dataset_path, your own robot to --env)')


def check_name(name, env=''):
    """ValueError unless it is a dataset's name or `module:factory`; what is given as --env must be the latter."""
    if env and not custom_env.is_custom(env):
        raise ValueError(f'--env {env}: must be module:factory, a module to import and the function in it that makes '
                         'the environment')
    if not custom_env.is_custom(name):
        parse_name(name)


def expand(path):
    """A path whose ~ is the home directory, where there is one (pathlib's own raises where there is none)."""
    return Path(os.path.expanduser(path))


class DoesNotFit(ValueError):
    """The file is good, but not for these flags."""


def find_dataset(name, dataset_path=None, data_dir='datasets', dataset_url=None, allow_fallback=True):
    """Find or download a dataset; returns (train path, validation path or None, one-line note on its origin).

    Looks at `dataset_path` only, or else in `data_dir`, in OGBench's own folder, and under the base URLs
    `dataset_url` and OGBench's (download into `data_dir`). The bundled set may stand in for `BUNDLED_FOR`.
    Raises ValueError for a bad name or URL, FileNotFoundError with the ways out if the dataset is nowhere.
    """
    check_name(name)
    if dataset_url and not re.match('(https?|file)://', dataset_url):
        raise ValueError(f'--dataset_url {dataset_url}: give a base URL such as {OGBENCH_URL}')

    if dataset_path:
        path = expand(dataset_path)
        if not path.is_file():
            raise FileNotFoundError(f'--dataset_path {dataset_path}: no such file')
        return path, _validation_path(path), f'dataset {path}'

    folders = [expand(data_dir), expand('~/.ogbench/data')]
    if name == BUNDLED_NAME:
        folders.append(BUNDLED_DIR)
    for folder in folders:
        path = folder / f'{name}.npz'
        if path.is_file():
            return path, _validation_path(path), f'dataset {path}'

    failure = 'it is on no host'
    if name != BUNDLED_NAME:
        urls = [dataset_url, OGBENCH_URL] if dataset_url else [OGBENCH_URL]
        try:  # validation first: a download cut short must not leave a training file that looks complete
            download(f'{name}-val.npz', folders[0], urls)
            path = download(f'{name}.npz', folders[0], urls)
            return path, _validation_path(path), f'dataset {path} (downloaded)'
        except OSError as error:
            failure = str(error)

    path = BUNDLED_DIR / f'{BUNDLED_NAME}.npz'
    if name == BUNDLED_FOR and allow_fallback and path.is_file():
        note = (f'dataset {path}: the bundled 100 trajectories made by our own expert, NOT the official '
                f'{name}, which cannot be downloaded ({failure})')
        return path, _validation_path(path), note

    raise FileNotFoundError(
        f'{name}.npz is not in {", ".join(map(str, folders))} and cannot be downloaded ({failure}); '
        f'give --dataset_path FILE or --dataset_url BASE_URL, take the bundled {BUNDLED_NAME}, '
        f'or collect it: python scripts/collect_dataset.py --dataset {name}')


def _validation_path(path):
    """The file of validation trajectories that belongs to a dataset; None where there is none."""
    val_path = path.with_name(f'{path.stem}-val.npz')
    return val_path if val_path.is_file() else None


def download(file_name, data_dir, urls):
    """Download `file_name` from the first of the base `urls` that has it into `data_dir`; returns its path.

    An unfinished `.part` is resumed by the next attempt or call. Returns None for a `-val.npz` that no host
    has, one of them saying so (404). Raises OSError naming each URL and what went wrong there.
    """
    path = Path(data_dir) / file_name
    failures = []
    absent = False
    for url in (f'{base.rstrip("/")}/{file_name}' for base in urls):
        for wait in (*RETRY_WAITS, None):
            try:
                with file_lock(path, lambda: print(f'waiting for another process that downloads {path}')):
                    if not path.is_file():  # the other one may have done it
                        path.parent.mkdir(parents=True, exist_ok=True)
                        _fetch(url, path.with_name(f'{file_name}.part')).replace(path)
                return path
            except (OSError, HTTPException, ValueError) as error:
                absent |= getattr(error, 'code', 0) == 404
                no_host = isinstance(getattr(error, 'reason', None), (socket.gaierror, TimeoutError))
                refused = isinstance(error, ValueError) or 400 <= getattr(error, 'code', 0) < 500
                if no_host or refused or wait is None:
                    failures.append(f'{url}: {error}')
                    break
                time.sleep(wait)

    if absent and file_name.endswith('-val.npz'):
        return None
    raise OSError('; '.join(failures))


def _fetch(url, part):
    """Complete `part` from `url`; returns it. OSError is worth a retry, ValueError (not a dataset) is not."""
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            if response.status != 206:  # the server ignores Range and sends the whole file
                have = 0
            total = have + int(response.headers['Content-Length'] or -have)
            bar = tqdm(desc=part.stem, total=total or None, initial=have, unit='B', unit_scale=True,
                       mininterval=1)
            with bar, open(part, 'ab' if have else 'wb') as file:
                while chunk := response.read(1 << 16):
                    bar.update(file.write(chunk))
                if file.tell() < total:
                    raise OSError(f'the connection broke after {file.tell():,} of {total:,} bytes')
    except HTTPError as error:
        if error.code != 416:  # there is nothing behind what we have: whether that is all, we see below
            raise

    try:
        with zipfile.ZipFile(part) as archive:
            archive.getinfo('observations.npy')
            damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f'{damaged} is damaged')
    except (*DAMAGED, KeyError) as error:
        part.unlink()
        kind = OSError if have else ValueError  # what was resumed may be made of two different files
        raise kind(f'what came is not an OGBench dataset, perhaps a web page ({error})') from error
    return part


def load_trajectories(path, max_trajectories=None, context_length=1):
    """States of a dataset: observations (N, S) float32, starts (n,) and inclusive ends (n,) int64.

    `max_trajectories` keeps only the first that many. Raises FileNotFoundError, or ValueError that names what is wrong
    and the way out; no trajectory having `context_length` states is wrong, too.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such dataset file')
    if max_trajectories is not None and max_trajectories < 1:
        raise ValueError(f'--max_trajectories {max_trajectories}: must be at least 1')

    with _open_dataset(path) as archive:
        terminals = _read_rows(archive, 'terminals', 1)
        starts, ends = _borders(terminals)
        starts = starts[:max_trajectories]
        ends = ends[:max_trajectories]

        longest = np.max(ends - starts) + 1
        if longest < context_length:
            raise DoesNotFit(f'{path}: --context_length {context_length} is longer than every trajectory; the longest '
                             f'has {longest} states, give at most that')

        observations = _read_rows(archive, 'observations', 2, len(terminals), ends[-1] + 1)
        return observations, starts, ends


def load_actions(path, rows):
    """The first `rows` actions of a dataset that has them (OGBench's have, what `collect_dataset.py --no-state_only`
    writes, and scripts/label_with_simulator.py) -> (rows, A) float32, in the environment's units. Raises ValueError that names the file."""
    with _open_dataset(path) as archive:
        if 'actions.npy' not in archive.namelist():
            raise DoesNotFit(f'{path}: there are no `actions` in it, which --true_actions learns from; name one that '
                             'has them with --dataset_path, or collect it with --no-state_only')
        size = len(_read_rows(archive, 'terminals', 1))
        return _read_rows(archive, 'actions', 2, size, rows)


def fingerprint_of_actions(path):
    """Which data the actions in a file of scripts/label_with_simulator.py belong to, in the words of their `fingerprint`; None for any
    other file."""
    with _open_dataset(path), np.load(path, allow_pickle=False) as file:
        return str(file['fingerprint']) if 'fingerprint' in file.files else None


def load_physics(path, rows, qpos_dim, qvel_dim):
    """The first `rows` states of a dataset as its simulator has them (OGBench's files do, and what `collect_dataset.py
    --physics` writes) -> qpos (rows, qpos_dim), qvel (rows, qvel_dim) float32. Raises ValueError that names the
    file."""
    with _open_dataset(path) as archive:
        names = archive.namelist()
        if not {'qpos.npy', 'qvel.npy'} <= set(names):
            raise DoesNotFit(f'{path}: there are no `qpos` and `qvel` in it, to which rehearsing sets the simulator; '
                             'name a file that has them with --dataset_path, or collect it with --physics')
        size = len(_read_rows(archive, 'terminals', 1))
        arrays = [_read_rows(archive, name, 2, size, rows) for name in ('qpos', 'qvel')]

    found = tuple(array.shape[1] for array in arrays)
    if found != (qpos_dim, qvel_dim):
        raise DoesNotFit(f'{path}: `qpos` and `qvel` have {found} numbers, the simulator has {(qpos_dim, qvel_dim)}: '
                         'they are of another robot')
    return arrays


@contextlib.contextmanager
def _open_dataset(path):
    """The archive of a dataset; whatever is wrong with it becomes a ValueError that says so, and the way out."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DoesNotFit:
        raise
    except (*DAMAGED, ValueError) as error:
        with open(path, 'rb') as file:
            web_page = file.read(512).lstrip()[:1] == b'<'
        problem = 'this is a web page, not a dataset' if web_page else str(error) or type(error).__name__
        way_out = 'repair it, delete it to have it downloaded again, or give another with --dataset_path'
        raise ValueError(f'{path}: {problem}; {way_out}') from error


def _borders(terminals):
    """-> (starts, ends), first and last rows of all trajectories. ValueError for rows that belong to none, and for
    trajectories of a single state."""
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
    """First `rows` rows of an array as float32, read in pieces: memory is hardly more than the result."""
    if f'{key}.npy' not in archive.namelist():
        raise ValueError(f'there is no `{key}` in it')

    with archive.open(f'{key}.npy') as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f'`{key}` has npy version {version}, a newer one than this code reads')
        shape, fortran, dtype = HEADERS[version](file)
        if len(shape) != ndim or 0 in shape or dtype.kind not in 'bfiu':
            raise ValueError(f'`{key}` is {dtype} of shape {shape}; it must be {ndim}-d, numeric, not empty')
        if size not in (None, shape[0]):
            raise ValueError(f'`{key}` has {shape[0]} rows, `terminals` {size}')

        row_bytes = dtype.itemsize * math.prod(shape[1:])
        promised = shape[0] * row_bytes
        there = archive.getinfo(f'{key}.npy').file_size - file.tell()
        if there != promised:
            raise ValueError(f'`{key}` should have {promised:,} bytes and has {there:,}')

        step = shape[0] if fortran else max(1, (1 << 21) // row_bytes)  # Fortran order comes in one piece
        values = np.empty((rows or shape[0], *shape[1:]), np.float32)
        for i in tqdm(range(0, len(values), step), f'reading {key}', leave=False, dynamic_ncols=True, delay=1):
            piece = (min(step, shape[0] - i), *shape[1:])
            data = np.frombuffer(file.read(piece[0] * row_bytes), dtype).reshape(piece, order='CF'[fortran])
            with np.errstate(over='ignore'):  # it becomes inf, which is refused below
                values[i:i + step] = data[:len(values) - i]

            bad = np.argwhere(~np.isfinite(values[i:i + step]))
            if len(bad):
                first = (i + bad[0][0], *bad[0][1:])
                raise ValueError(f'`{key}[{", ".join(map(str, first))}]` is {values[first]}')
    return values


# --------------------------------------------------------------------------------------------- environments
def make_env(name, **options):
    """The environment of a dataset's name, or your own, `module:factory` (environments/custom_env.py); nothing is rendered and
    no OpenGL library is loaded. `options` go to gymnasium, such as the width and height of pictures."""
    if custom_env.is_custom(name):
        return custom_env.open_env(name, **options)

    import gymnasium
    import mujoco
    import ogbench  # noqa: F401  registers its environments

    mujoco.set_mju_user_warning(MUJOCO_WARNINGS.append)  # its own way is a file in the working directory
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        tempfile.tempdir = folder  # an OGBench maze leaves its XML file behind
        warnings.filterwarnings('ignore', '.*X11: The DISPLAY.*')  # of the viewer that its robot arm imports
        warnings.filterwarnings('ignore', ".*precision lowered by casting")  # of the arm's action space
        try:
            env = gymnasium.make(parse_name(name), **options)
            _keep_action_space(env.unwrapped)
        finally:
            tempfile.tempdir = before
    return env


def _keep_action_space(env):
    """OGBench's robot arm makes a new action space, with a seed of its own, whenever it is asked for it, and a reset
    takes random actions from it on the way to the goal: so that a seed decides the goal, it keeps its first one."""
    kind = type(env)
    if isinstance(getattr(kind, 'action_space', None), property):
        env.__class__ = type(kind.__name__, (kind,), {'action_space': env.action_space})


def episode_seed(*entropy):
    """One 32-bit seed for an episode, from run seed, phase, task and number."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def reset_env(env, task_id, seed):
    """Reset to a task, numbered from 1, repeatably -> (observation, goal), float32. An OGBench environment draws from
    three generators: numpy's global one (start and goal noise), its action space's and its own."""
    np.random.seed(seed % 2**32)
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed, options={'task_id': task_id})
    return np.asarray(observation, np.float32), np.asarray(info['goal'], np.float32)


# --------------------------------------------------------------------------------------------- command line
def official_shape(name):
    """(trajectories, rows of each, observation size) of a whole OGBench dataset; KeyError for data that it has not."""
    environment, kind, _ = (BUNDLED_FOR if name == BUNDLED_NAME else name).rsplit('-', 2)
    dimensions, kinds = ENVIRONMENTS[environment]
    return *kinds[kind], dimensions


def list_datasets(data_dir):
    """Print one line for each of OGBench's datasets of states and the bundled one, by family, from the files where they
    are here."""
    print(f'{"dataset":34s}{"trajectories":>12s}{"rows of each":>14s}{"observation":>13s}{"size":>10s}  where')
    for family, environments in {**OFFICIAL, 'bundled': [BUNDLED_NAME]}.items():
        print(f'\n{family}')
        for name in (*DATASETS, BUNDLED_NAME):
            if name in environments or name.rsplit('-', 2)[0] in environments:
                _list_dataset(name, data_dir)

    print('\nto get one: python ogbench_utils.py download NAME, or python scripts/collect_dataset.py --dataset NAME\n'
          'OGBench\'s visual, powderworld and singletask datasets are not for OPSO, which learns from states and goals')


def _list_dataset(name, data_dir):
    places = [expand(folder) / f'{name}.npz' for folder in (data_dir, '~/.ogbench/data', BUNDLED_DIR)]
    path = next(filter(Path.is_file, places), None)
    trajectories, rows, dimensions = official_shape(name)
    size = '-'
    where = 'not here'

    if path:
        size = f'{path.stat().st_size / 1e6:,.0f} MB'
        where = path
        try:
            observations, starts, ends = load_trajectories(path)
            trajectories = len(starts)
            rows = _one_or_range(ends - starts + 1)
            dimensions = observations.shape[1]
        except ValueError as error:
            where = f'DAMAGED: {error}'
    print(f'{name:34s}{trajectories:12,d}{rows:>14}{dimensions:13d}{size:>10s}  {where}')


def _one_or_range(lengths):
    shortest = lengths.min()
    longest = lengths.max()
    return f'{shortest}' if shortest == longest else f'{shortest}-{longest}'


def check_dataset(path):
    """Read all of a file and print what is in it. Raises FileNotFoundError, ValueError as `load_trajectories`."""
    path = Path(path)
    observations, starts, ends = load_trajectories(path)
    constant = int(np.sum(observations.std(0) < 1e-6))
    disk = path.stat().st_size / 1e6
    memory = observations.nbytes / 1e6

    print(f'{path}: good. {len(starts):,} trajectories of {_one_or_range(ends - starts + 1)} rows, '
          f'{len(observations):,} observations of {observations.shape[1]} dimensions, {disk:,.1f} MB on disk, '
          f'{memory:,.0f} MB in memory' + (f'; {constant} dimensions never vary' if constant else ''))


def main(argv=None):
    parser = argparse.ArgumentParser(description='OGBench datasets: list, check, download')
    commands = parser.add_subparsers(dest='command', required=True)

    list_ = commands.add_parser('list', help='the datasets of states and where they are')
    check = commands.add_parser('check', help='read all of a file')
    check.add_argument('what', help='npz file')
    download_ = commands.add_parser('download', help='download a dataset unless it is here')
    download_.add_argument('what', help='name of a dataset')
    download_.add_argument('--dataset_url', default='', help='base URL of a mirror')
    for command in (list_, download_):
        command.add_argument('--data_dir', default='datasets', help='folder of dataset files (default: datasets)')

    flags = parser.parse_args(argv)
    if flags.command == 'list':
        list_datasets(flags.data_dir)
    elif flags.command == 'check':
        check_dataset(flags.what)
    else:
        path, val_path, note = find_dataset(flags.what, None, flags.data_dir, flags.dataset_url or None,
                                            allow_fallback=False)
        print(note)
        check_dataset(path)
        if val_path:
            check_dataset(val_path)


if __name__ == '__main__':
    run_main(main)
