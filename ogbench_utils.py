"""OGBench's datasets and environments: names, files, environments with states as observations.

    python ogbench_utils.py list              state-based datasets: sizes, dimensions and files
    python ogbench_utils.py check FILE.npz    read a whole file; print a table of its dimensions, or its errors
    python ogbench_utils.py download NAME     download a dataset and check it

support/npz.py reads the files, support/download.py downloads them.
"""

import argparse
import collections
import contextlib
import difflib
import importlib
import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np

from environments import custom_env
from support.download import download
from support.flags import run_main
from support.npz import DamagedDataset, UnsuitableDataset, converting, load_trajectories

# OGBench's environments with states as observations, by family: dimensions of a state, and for each
# kind of data (trajectories, rows of each); source: data_gen_scripts/commands.sh of
# seohongpark/ogbench at 1d41409
OFFICIAL = {
    'point mazes': {
        'pointmaze-medium': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
        'pointmaze-large': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
        'pointmaze-giant': (2, {'navigate': (500, 2001), 'stitch': (5000, 201)}),
        'pointmaze-teleport': (2, {'navigate': (1000, 1001), 'stitch': (5000, 201)}),
    },
    'ant mazes': {
        'antmaze-medium': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201),
                                'explore': (10_000, 501)}),
        'antmaze-large': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201),
                               'explore': (10_000, 501)}),
        'antmaze-giant': (29, {'navigate': (500, 2001), 'stitch': (5000, 201)}),
        'antmaze-teleport': (29, {'navigate': (1000, 1001), 'stitch': (5000, 201),
                                  'explore': (10_000, 501)}),
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
KINDS = ('navigate', 'stitch', 'explore', 'play', 'noisy')  # of data; not in an environment's name
UNSUPPORTED = {  # word in a dataset's name -> reason
    'visual': 'has images for observations; only states are supported',
    'powderworld': 'has images for observations; only states are supported',
    'singletask': 'has rewards for one task; give its name without "singletask" and "task"',
    'oraclerep': 'has goals that are no states; give its name without "oraclerep"',
}

BUNDLED_DIR = Path(__file__).resolve().parent / 'datasets'
BUNDLED_NAME = 'antmaze-medium-navigate-mini-v0'
BUNDLED_FOR = 'antmaze-medium-navigate-v0'  # the dataset that the bundled one may replace
OGBENCH_URL = 'https://rail.eecs.berkeley.edu/datasets/ogbench'
OGBENCH_DIR = '~/.ogbench/data'  # where OGBench keeps its downloads

MAX_IN_WALLS = 0.05  # fraction of the states of a maze; OGBench's data have none in walls

MUJOCO_WARNINGS = collections.deque(maxlen=8)  # texts of unread warnings


# ----------------------------------------------------------------------------------------- datasets
def parse_name(name):
    """Return the environment id of a dataset: 'antmaze-medium-v0' for 'antmaze-medium-navigate-v0'.

    As in OGBench, the id does not contain the kind of data.

    Raises:
        ValueError: the name is unknown or its data are not supported.
    """
    words = (BUNDLED_FOR if name == BUNDLED_NAME else name).split('-')
    for word, reason in UNSUPPORTED.items():
        if word in words:
            raise ValueError(f'--dataset {name} {reason}')

    if (len(words) > 2 and words[-2] in KINDS and words[-1] == 'v0'
            and '-'.join(words[:-2]) in ENVIRONMENTS):
        return '-'.join([*words[:-2], words[-1]])

    nearest = difflib.get_close_matches(name, (*DATASETS, BUNDLED_NAME), cutoff=0.5)
    hint = f'nearest: {", ".join(nearest)}' if nearest else '`python ogbench_utils.py list` shows all'
    raise ValueError(f'unknown --dataset {name}; {hint} '
                     '(a file goes to --dataset_path, a custom environment to --env)')


def check_name(name, env=''):
    """Raise ValueError unless `name` is a dataset or `module:factory`; `env` must be the latter."""
    if env and not custom_env.is_custom(env):
        raise ValueError(f'--env {env}: must be module:factory, a module to import and its function '
                         'that makes the environment')
    if not custom_env.is_custom(name):
        parse_name(name)


def expand(path):
    """Return a Path with ~ replaced by the home directory, or unchanged if there is none."""
    return Path(os.path.expanduser(path))


def find_dataset(name, dataset_path=None, data_dir='datasets', dataset_url=None, allow_fallback=True):
    """Find or download a dataset.

    The search considers only `dataset_path` if it is given. Otherwise it looks in `data_dir` and in
    OGBench's folder, then downloads into `data_dir`, and finally replaces `BUNDLED_FOR` by the
    bundled set.

    Args:
        name: a dataset's name or `module:factory`.
        dataset_path: file to use.
        data_dir: folder of dataset files.
        dataset_url: base URL to try before OGBench's.
        allow_fallback: whether the bundled set may replace `BUNDLED_FOR`.

    Returns:
        Training path, validation path or None, and one line about the origin.

    Raises:
        ValueError: bad name or URL.
        FileNotFoundError: the dataset is nowhere; the message names the ways out.
    """
    check_name(name)
    if dataset_url and not re.match('(https?|file)://', dataset_url):
        raise ValueError(f'--dataset_url {dataset_url}: give a base URL such as {OGBENCH_URL}')

    # a given file
    if dataset_path:
        path = expand(dataset_path)
        if not path.is_file():
            problem = 'no such file'
            if path.is_dir():
                problem = f'is a folder, name the npz file in it, or {converting(path)}'
            raise FileNotFoundError(f'--dataset_path {dataset_path}: {problem}')
        return path, _validation_path(path), f'dataset {path}'

    # files that are there
    folders = [expand(data_dir), expand(OGBENCH_DIR)]
    if name == BUNDLED_NAME:
        folders.append(BUNDLED_DIR)
    for folder in folders:
        path = folder / f'{name}.npz'
        if path.is_file():
            return path, _validation_path(path), f'dataset {path}'

    # a download
    failure = 'it is on no host'
    if name != BUNDLED_NAME:
        urls = [dataset_url, OGBENCH_URL] if dataset_url else [OGBENCH_URL]
        # validation first: an interrupted download must not leave a training file alone
        try:
            download(f'{name}-val.npz', folders[0], urls)
            path = download(f'{name}.npz', folders[0], urls)
            return path, _validation_path(path), f'dataset {path} (downloaded)'
        except OSError as error:
            failure = str(error)

    # the bundled set
    path = BUNDLED_DIR / f'{BUNDLED_NAME}.npz'
    if name == BUNDLED_FOR and allow_fallback and path.is_file():
        note = (f'dataset {path}: the bundled 100 trajectories made by our own expert, NOT the '
                f'official {name}, which cannot be downloaded ({failure})')
        return path, _validation_path(path), note

    raise FileNotFoundError(
        f'{name}.npz is not in {", ".join(map(str, folders))} and cannot be downloaded ({failure}); '
        f'give --dataset_path FILE or --dataset_url BASE_URL, take the bundled {BUNDLED_NAME}, '
        f'or collect it: python scripts/data/collect_dataset.py --dataset {name}')


@contextlib.contextmanager
def advise_download(name, dataset_path):
    """Context that adds a way out to the error of a damaged file which a search by name has found.

    Args:
        name: a dataset's name or `module:factory`.
        dataset_path: the file that was given; '' after a search.
    """
    try:
        yield
    except DamagedDataset as error:
        if dataset_path or name not in DATASETS:
            raise
        raise DamagedDataset(f"{error}; if it is OGBench's file, move it to another folder, and it is "
                             'downloaded again') from error


def _validation_path(path):
    """Return the path of the validation file beside a dataset, or None."""
    val_path = path.with_name(f'{path.stem}-val.npz')
    return val_path if val_path.is_file() else None


def official_shape(name):
    """Return (trajectories, rows of each, dimensions) of a dataset of OGBench.

    Raises:
        KeyError: OGBench has no dataset of this name.
    """
    environment, kind, _ = (BUNDLED_FOR if name == BUNDLED_NAME else name).rsplit('-', 2)
    dimensions, kinds = ENVIRONMENTS[environment]
    return *kinds[kind], dimensions


def check_dimensions(name, path, found, expected):
    """Raise ValueError unless the states of a file have as many dimensions as their environment.

    Args:
        name: a dataset's name or `module:factory`.
        path: the file.
        found, expected: numbers of dimensions, of the file and of the environment.
    """
    if found != expected:
        raise UnsuitableDataset(
            f'{path}: its states have {found} dimensions, the observations of {custom_env.name_flag(name)} '
            f'{name} {expected}; name the environment of these states, --dataset NAME of OGBench or '
            '--env module:factory')


def check_positions(name, env, path, states):
    """Raise ValueError if states lie in the walls of their maze in OGBench; no check without one.

    Args:
        name: a dataset's name or `module:factory`. env: its environment.
        path: the file of the states (N, S), which begin with x and y.
    """
    maze = env.unwrapped
    if custom_env.is_custom(name) or not hasattr(maze, 'maze_map'):
        return

    # the cell (row, column) of each state; the outermost cells of a maze are walls
    unit = maze._maze_unit
    corner = np.array(maze.ij_to_xy((0, 0))) - unit / 2
    cells = np.floor((states[:, 1::-1] - corner[::-1]) / unit)
    last = np.array(maze.maze_map.shape) - 1
    rows, columns = np.clip(cells, 0, last).astype(int).T
    in_walls = np.mean(maze.maze_map[rows, columns] == 1)

    if in_walls > MAX_IN_WALLS:
        raise UnsuitableDataset(
            f'{path}: {in_walls:.0%} of its states lie in the walls of {name}; name the environment of these '
            'states, --dataset NAME of OGBench or --env module:factory')


# ------------------------------------------------------------------------------------- environments
def make_env(name, **options):
    """Make the environment of a dataset, or a custom one (environments/custom_env.py).

    It renders nothing and loads no OpenGL library.

    Args:
        name: a dataset's name or `module:factory`.
        options: keyword arguments of gymnasium.make, such as the width and height of pictures.
    """
    if custom_env.is_custom(name):
        return custom_env.open_env(name, **options)

    import gymnasium
    import mujoco
    import ogbench  # noqa: F401  registers its environments

    # by default MuJoCo writes warnings to a file in the working directory
    mujoco.set_mju_user_warning(MUJOCO_WARNINGS.append)

    # OGBench's mazes leave their XML file in the temporary folder
    tempdir = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        tempfile.tempdir = folder
        warnings.filterwarnings('ignore', '.*X11: The DISPLAY.*')  # viewer of the robot arm
        warnings.filterwarnings('ignore', '.*precision lowered by casting')  # action space of the arm
        try:
            env = gymnasium.make(parse_name(name), **options)
            _keep_action_space(env.unwrapped)
        finally:
            tempfile.tempdir = tempdir
    return env


def _keep_action_space(env):
    """Keep the first action space of OGBench's robot arm, so that a seed determines the goal.

    The arm makes a new action space with a new seed at each access, and a reset draws random
    actions from it to find the goal.
    """
    kind = type(env)
    if isinstance(getattr(kind, 'action_space', None), property):
        env.__class__ = type(kind.__name__, (kind,), {'action_space': env.action_space})


def episode_seed(*entropy):
    """Return a 32-bit seed for an episode, derived from ints such as run seed, phase and task."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_generators(env, seed):
    """Seed the generators besides that of an environment itself; None leaves them as they are.

    OGBench draws from three generators: the global one of numpy (noise of start and goal), that of
    the action space, and that of the environment.
    """
    if seed is not None:
        np.random.seed(seed % 2**32)
        env.action_space.seed(seed)


def reset_env(env, task_id, seed):
    """Reset an environment to a task reproducibly.

    Args:
        env: the environment.
        task_id: counted from 1.
        seed: of all generators.

    Returns:
        Observation and goal (S,), float32, both copies.
    """
    seed_generators(env, seed)
    observation, info = env.reset(seed=seed, options={'task_id': task_id})
    return np.array(observation, np.float32), np.array(info['goal'], np.float32)


# ------------------------------------------------------------------------------------- command line
def list_datasets(data_dir):
    """Print one line per dataset, by family; sizes are those of the file if it is here."""
    print(f'{"dataset":34s}{"trajectories":>12s}{"rows of each":>14s}{"observation":>13s}{"size":>10s}'
          '  where')
    for family, environments in {**OFFICIAL, 'bundled': [BUNDLED_NAME]}.items():
        print(f'\n{family}')
        for name in (*DATASETS, BUNDLED_NAME):
            if name in environments or name.rsplit('-', 2)[0] in environments:
                _list_dataset(name, data_dir)

    print('\nto get one: python ogbench_utils.py download NAME, or '
          'python scripts/data/collect_dataset.py --dataset NAME\n'
          'OGBench\'s visual, powderworld and singletask datasets are not for OPSO, '
          'which learns from states and goals')


def _list_dataset(name, data_dir):
    """Print one line on a dataset."""
    # its file, and the official sizes
    candidates = [expand(folder) / f'{name}.npz' for folder in (data_dir, OGBENCH_DIR, BUNDLED_DIR)]
    path = next(filter(Path.is_file, candidates), None)
    trajectories, rows, dimensions = official_shape(name)
    size = '-'
    where = 'not here'

    # the sizes of the file
    if path:
        size = f'{path.stat().st_size / 1e6:,.0f} MB'
        where = path
        try:
            observations, starts, ends = load_trajectories(path)
            trajectories = len(starts)
            rows = _format_range(ends - starts + 1)
            dimensions = observations.shape[1]
        except ValueError as error:
            where = f'DAMAGED: {error}'
    print(f'{name:34s}{trajectories:12,d}{rows:>14}{dimensions:13d}{size:>10s}  {where}')


def _format_range(lengths):
    """Format int lengths (n,) as '1001', or as '200-1001' if they differ."""
    shortest = lengths.min()
    longest = lengths.max()
    return f'{shortest}' if shortest == longest else f'{shortest}-{longest}'


def check_dataset(path, **options):
    """Print the content of a file (environments/data_check.py, which is imported here since it uses this module)."""
    importlib.import_module('environments.data_check').check_dataset(path, **options)


def main(argv=None):
    """Run a subcommand with the arguments `argv`; default: those of the command line."""
    # subcommands and flags
    parser = argparse.ArgumentParser(description='OGBench datasets: list, check, download')
    commands = parser.add_subparsers(dest='command', required=True)

    list_ = commands.add_parser('list', help='state-based datasets and where they are')
    check = commands.add_parser('check', help='read a whole file')
    check.add_argument('what', help='npz file')
    check.add_argument('--env', default='', help='module:factory or dataset, whose goals are compared with the data')
    check.add_argument('--all', action='store_true', help='all dimensions of wide data')
    download_ = commands.add_parser('download', help='download a dataset if it is not here')
    download_.add_argument('what', help='name of a dataset')
    download_.add_argument('--dataset_url', default='', help='base URL of a mirror')
    for command in (list_, download_):
        command.add_argument('--data_dir', default='datasets',
                             help='folder of dataset files (default: datasets)')

    # run one
    flags = parser.parse_args(argv)
    if flags.command == 'list':
        list_datasets(flags.data_dir)
    elif flags.command == 'check':
        check_dataset(flags.what, env=flags.env, show_all=flags.all)
    else:
        path, val_path, note = find_dataset(flags.what, None, flags.data_dir, flags.dataset_url or None,
                                            allow_fallback=False)
        print(note)
        check_dataset(path)
        if val_path:
            check_dataset(val_path)


if __name__ == '__main__':
    run_main(main)
