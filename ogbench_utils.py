"""All that touches OGBench: finding and reading its data, sampling from it, building its environments.

Offline learning is state-only: of a dataset only `observations` (N, S) and `terminals` (N,) are ever read.
A trajectory ends where `terminals` is set; its last row has no next state. With two trajectories:

    row             0  1  2  3  4    5  6  7
    observations   s0 s1 s2 s3 s4 | s0 s1 s2
    terminals       0  0  0  0  1 |  0  0  1        starts = [0, 5]
    next state      1  2  3  4  - |  6  7  -        ends   = [4, 7]
"""

import difflib
import re
import socket
import time
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from tqdm import tqdm

DATASETS = tuple(f'{maze}-{size}-{kind}-v0' for maze, kinds in (('antmaze', 3), ('humanoidmaze', 2))
                 for size in ('medium', 'large') for kind in ('navigate', 'stitch', 'explore')[:kinds])
MAZE = re.compile('((point|ant|humanoid)maze-(medium|large|giant|teleport))-(navigate|stitch|explore)-v0')
BUNDLED_DIR = Path(__file__).resolve().parent / 'datasets'
BUNDLED_NAME, BUNDLED_FOR = 'antmaze-medium-navigate-mini-v0', 'antmaze-medium-navigate-v0'
OGBENCH_URL = 'https://rail.eecs.berkeley.edu/datasets/ogbench'
TIMEOUT = 20.0  # seconds, to connect and for every read
RETRY_WAITS = (0.5, 1.0, 2.0)  # seconds; short, since a machine without a network sits through all of them
# RuntimeError is how zipfile reports encryption and (as NotImplementedError) unknown compression.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def parse_name(name):
    """Environment id: 'antmaze-medium-navigate-v0' -> 'antmaze-medium-v0'. ValueError for an unknown name."""
    if name.startswith('visual-'):
        raise ValueError(f'--dataset {name} has image observations; only state-based mazes are supported')
    if match := MAZE.fullmatch(BUNDLED_FOR if name == BUNDLED_NAME else name):
        return f'{match[1]}-v0'
    nearest = ', '.join(difflib.get_close_matches(name, (*DATASETS, BUNDLED_NAME), cutoff=0.5) or DATASETS)
    raise ValueError(f'unknown --dataset {name}; nearest: {nearest} (a file goes to --dataset_path)')


def find_dataset(name, dataset_path=None, data_dir='datasets', dataset_url=None, allow_fallback=True):
    """Find or download a dataset; returns (train path, validation path or None, one-line note on its origin).

    Looks at `dataset_path` only, or else in `data_dir`, in OGBench's own folder, and under the base URLs
    `dataset_url` and OGBench's (download into `data_dir`). The bundled set may stand in for `BUNDLED_FOR`.
    Raises ValueError for a bad name or URL, FileNotFoundError with the ways out if the dataset is nowhere.
    """
    parse_name(name)
    if dataset_url and not re.match('(https?|file)://', dataset_url):
        raise ValueError(f'--dataset_url {dataset_url}: give a base URL such as {OGBENCH_URL}')
    folders = [Path(data_dir).expanduser(), Path('~/.ogbench/data').expanduser()]
    folders += [BUNDLED_DIR] if name == BUNDLED_NAME else []
    places = [dataset_path] if dataset_path else [folder / f'{name}.npz' for folder in folders]
    path = next((path for path in (Path(place).expanduser() for place in places) if path.is_file()), None)
    note, failure = f'dataset {path}', 'it is on no host'
    if not path and dataset_path:
        raise FileNotFoundError(f'--dataset_path {dataset_path}: no such file')
    if not path and name != BUNDLED_NAME:
        urls = [dataset_url, OGBENCH_URL] if dataset_url else [OGBENCH_URL]
        try:  # validation first: a download cut short must not leave a training file that looks complete
            download(f'{name}-val.npz', folders[0], urls)
            path = download(f'{name}.npz', folders[0], urls)
            note = f'dataset {path} (downloaded)'
        except OSError as error:
            failure = str(error)
    if not path:
        path = BUNDLED_DIR / f'{BUNDLED_NAME}.npz'
        note = (f'dataset {path}: the bundled 100 trajectories made by our own expert, NOT the official '
                f'{name}, which cannot be downloaded ({failure})')
        if name != BUNDLED_FOR or not allow_fallback or not path.is_file():
            raise FileNotFoundError(
                f'{name}.npz is not in {", ".join(map(str, folders))} and cannot be downloaded ({failure}); '
                f'give --dataset_path FILE or --dataset_url BASE_URL, take the bundled {BUNDLED_NAME}, '
                f'or collect it: python scripts/collect_dataset.py --dataset {name}')
    val_path = path.with_name(f'{path.stem}-val.npz')
    return path, val_path if val_path.is_file() else None, note


def download(file_name, data_dir, urls):
    """Download `file_name` from the first of the base `urls` that has it into `data_dir`; returns its path.

    An unfinished `.part` is resumed by the next attempt or call. Returns None for a `-val.npz` that no host
    has, one of them saying so (404). Raises OSError naming each URL and what went wrong there.
    """
    path, failures, absent = Path(data_dir) / file_name, [], False
    for url in (f'{base.rstrip("/")}/{file_name}' for base in urls):
        for wait in (*RETRY_WAITS, None):
            try:
                if not path.is_file():  # another run may be downloading the same dataset
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
            have = have if response.status == 206 else 0  # a server may ignore Range and send the whole file
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
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f'{damaged} is damaged')
    except (*DAMAGED, KeyError) as error:
        part.unlink()
        kind = OSError if have else ValueError  # what was resumed may be made of two different files
        raise kind(f'what came is not an OGBench dataset, perhaps a web page ({error})') from error
    return part


def load_trajectories(path, max_trajectories=None):
    """States of a dataset: observations (N, S) float32, starts (n,) and inclusive ends (n,) int64.

    `max_trajectories` keeps only the first that many. Raises FileNotFoundError, ValueError.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such dataset file')
    if max_trajectories is not None and max_trajectories < 1:
        raise ValueError(f'--max_trajectories {max_trajectories}: must be at least 1')
    try:
        with zipfile.ZipFile(path) as archive:
            terminals = _read_rows(archive, 'terminals', 1)
            ends = np.flatnonzero(terminals).astype(np.int64)
            starts = np.append(0, ends + 1)
            if tail := len(terminals) - starts[-1]:
                raise ValueError(f'no terminal ends the last {tail} of {len(terminals)} rows')
            if len(short := np.flatnonzero(starts[:-1] == ends)):
                raise ValueError(f'trajectory {short[0]} (row {ends[short[0]]}) is one state only')
            starts, ends = starts[:-1][:max_trajectories], ends[:max_trajectories]
            return _read_rows(archive, 'observations', 2, len(terminals), ends[-1] + 1), starts, ends
    except (*DAMAGED, ValueError) as error:
        way_out = 'repair it, delete it to have it downloaded again, or give another with --dataset_path'
        raise ValueError(f'{path}: {error}; {way_out}') from error


def _read_rows(archive, key, ndim, size=None, rows=None):
    """First `rows` rows of an array as float32, read in pieces: memory is hardly more than the result."""
    if f'{key}.npy' not in archive.namelist():
        raise ValueError(f'there is no `{key}` in it')
    with archive.open(f'{key}.npy') as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != ndim or 0 in shape or dtype.kind not in 'bfiu':
            raise ValueError(f'`{key}` is {dtype} of shape {shape}; it must be {ndim}-d, numeric, not empty')
        if size not in (None, shape[0]):
            raise ValueError(f'`{key}` has {shape[0]} rows, `terminals` {size}')
        row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        step = shape[0] if fortran else max(1, (1 << 21) // row_bytes)  # Fortran order comes in one piece
        values = np.empty((rows or shape[0], *shape[1:]), np.float32)
        for i in range(0, len(values), step):
            piece = (min(step, shape[0] - i), *shape[1:])
            data = np.frombuffer(file.read(piece[0] * row_bytes), dtype).reshape(piece, order='CF'[fortran])
            values[i:i + step] = data[:len(values) - i]
            if len(bad := np.argwhere(~np.isfinite(values[i:i + step]))):
                bad = (i + bad[0][0], *bad[0][1:])
                raise ValueError(f'`{key}[{", ".join(map(str, bad))}]` is {values[bad]}')
    return values


# ------------------------------------------------------------------------------------------------- sampling
class TrajectoryDataset:
    """Trajectories of states, windows of them, and hindsight goals (OGBench's mixture, sampled afresh each time).

    observations (N, S); starts, ends (n,) first and last row of each trajectory, in order. A transition goes
    from row t to row min(t + transition_steps, end). Raises ValueError for numbers that cannot be sampled from.
    """

    def __init__(self, observations, starts, ends, context_length=100, transition_steps=25, discount=0.99,
                 positions_per_window=32, current_goals=0.2, random_goals=0.3, proposer_random_goals=0.2):
        shares = current_goals, random_goals, proposer_random_goals
        if min(shares) < 0 or max(current_goals + random_goals, proposer_random_goals) > 1:
            raise ValueError('goal shares must be >= 0, the first two together and the third <= 1: '
                             f'{current_goals=} {random_goals=} {proposer_random_goals=}')
        if min(context_length, transition_steps) < 1 or positions_per_window < 0 or not 0 < discount < 1:
            raise ValueError('must be positive (positions_per_window: or 0), discount below 1: '
                             f'{context_length=} {transition_steps=} {positions_per_window=} {discount=}')
        self.observations = observations
        self.context_length, self.transition_steps, self.discount = context_length, transition_steps, discount
        self.positions_per_window = min(positions_per_window or context_length, context_length)
        self.current_goals, self.random_goals = current_goals, random_goals
        self.proposer_random_goals = proposer_random_goals
        self._set_borders(starts, ends)

    def _set_borders(self, starts, ends):
        self.starts, self.ends = starts, ends
        self.end_of = np.repeat(ends, ends - starts + 1)  # row -> last row of its trajectory
        self.origins = np.flatnonzero(self.end_of > np.arange(len(self.end_of)))  # rows that have a next state

    def __len__(self):
        return len(self.end_of)

    @property
    def num_windows(self):
        """Windows of context_length states that cover the trajectories once: one epoch."""
        return int(np.sum(-(-(self.ends - self.starts) // self.context_length)))

    def statistics(self):
        """Mean and std (S,) of the observations, accumulated in float64."""
        rows = self.observations[:len(self)]
        return rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)

    def sample_transitions(self, rows, rng):
        """rows: int array, any shape, each with a next state -> dict of arrays of that shape:
        next_rows; goal_rows with rewards (sum of discount^i * -1 until the goal), discounts (discount^steps, 0
        where the goal was met on the way), at_goal, future (the goal lies ahead in the same trajectory);
        proposer_goal_rows with proposer_near (the goal is no further than next_rows)."""
        end = self.end_of[rows]
        next_rows = np.minimum(rows + self.transition_steps, end)
        ahead = np.minimum(rows + rng.geometric(1 - self.discount, rows.shape), end)
        anywhere = rng.integers(len(self), size=rows.shape)
        kind = rng.random(rows.shape)
        at_goal, is_random = kind < self.current_goals, kind > 1 - self.random_goals
        goal_rows = np.where(at_goal, rows, np.where(is_random, anywhere, ahead))
        steps = next_rows - rows
        distance = np.where(is_random, len(self), goal_rows - rows)
        rewarded = np.minimum(distance, steps)
        # the proposer imitates where trajectories went, so its goals are uniform over what followed
        proposer_random = rng.random(rows.shape) < self.proposer_random_goals
        uniform = rows + 1 + (rng.random(rows.shape) * (end - rows)).astype(np.int64)
        return {'next_rows': next_rows, 'goal_rows': goal_rows,
                'rewards': (-(1 - self.discount ** rewarded) / (1 - self.discount)).astype(np.float32),
                'discounts': np.where(distance > steps, self.discount ** steps, 0).astype(np.float32),
                'at_goal': at_goal, 'future': ~at_goal & ~is_random,
                'proposer_goal_rows': np.where(proposer_random, rng.integers(len(self), size=rows.shape), uniform),
                'proposer_near': ~proposer_random & (uniform <= next_rows)}

    def sample(self, batch_size, rng):
        """-> batch of torch tensors. observations (B, L, S), L = context_length + transition_steps, and valids
        (B, L), false in the padding that ends windows of short trajectories; for P positions of each window,
        (B, P): positions, next_positions and `sample_transitions`'s rewards, discounts, at_goal, future,
        proposer_near; goals and proposer_goals (B, P, S). No actions: they were never read."""
        first = self.origins[rng.integers(len(self.origins), size=batch_size)]
        length = self.context_length + self.transition_steps
        end = self.end_of[first]
        begin = self.starts[np.searchsorted(self.ends, end)]
        # a window lies anywhere around its first draw, so that rows near both borders are drawn as often as others
        first = first - rng.integers(self.context_length, size=batch_size)
        first = np.clip(first, begin, np.maximum(begin, end - self.context_length))[:, None]
        end = end[:, None]
        rows = first + np.arange(length)
        limit = np.minimum(self.context_length, end - first)
        if self.positions_per_window == self.context_length:
            positions = np.minimum(np.arange(self.context_length)[None], limit - 1)
        else:
            positions = (rng.random((batch_size, self.positions_per_window)) * limit).astype(np.int64)
        origin = first + positions
        batch = self.sample_transitions(origin, rng)
        batch.update(
            positions=positions, next_positions=batch.pop('next_rows') - first, valids=rows <= end,
            observations=self.observations[np.minimum(rows, end)],
            goals=self.observations[batch.pop('goal_rows')],
            proposer_goals=self.observations[batch.pop('proposer_goal_rows')])
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}


class ReplayBuffer(TrajectoryDataset):
    """Growing trajectories of the agent's own states and actions; whole episodes, so that borders hold.

    Beyond `capacity` rows the oldest episodes go. `actions` (N, A): the row at an episode's end is unused.
    """

    def __init__(self, observation_dim, action_dim, capacity=1_000_000, **sampling):
        empty = np.zeros(0, np.int64)
        self.actions, self.capacity = np.zeros((0, action_dim), np.float32), capacity
        super().__init__(np.zeros((0, observation_dim), np.float32), empty, empty, **sampling)

    def add(self, observations, actions):
        """Append one episode: observations (T + 1, S), actions (T, A), T >= 1. Raises ValueError otherwise."""
        rows = len(observations)
        if rows < 2 or len(actions) != rows - 1 or rows > self.capacity:
            raise ValueError(f'an episode needs T + 1 states for T >= 1 actions and at most {self.capacity} rows, '
                             f'got {rows} and {len(actions)}')
        dropped = 0
        while len(self) - dropped + rows > self.capacity:
            dropped = int(self.ends[self.ends >= dropped][0]) + 1
        kept = self.starts >= dropped
        used = len(self)
        for name, new in (('observations', observations), ('actions', np.append(actions, actions[-1:], 0))):
            array = getattr(self, name)
            size = used - dropped + rows
            if size > len(array) or dropped:
                grown = np.zeros((min(max(size, len(array), 2 * used), self.capacity), array.shape[1]), np.float32)
                grown[:used - dropped] = array[dropped:used]
                array = grown
            array[used - dropped:size] = new
            setattr(self, name, array)
        start = used - dropped
        self._set_borders(np.append(self.starts[kept] - dropped, start),
                          np.append(self.ends[kept] - dropped, start + rows - 1))
        return dropped

    def content(self):
        """-> tensors from which `restore` makes the same buffer, for a checkpoint."""
        arrays = {'observations': self.observations[:len(self)], 'actions': self.actions[:len(self)],
                  'starts': self.starts, 'ends': self.ends}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def restore(self, content):
        """Take over the episodes of another buffer's `content`."""
        self.observations, self.actions = content['observations'].numpy(), content['actions'].numpy()
        self._set_borders(content['starts'].numpy(), content['ends'].numpy())


def load_dataset(name, dataset_path='', data_dir='datasets', dataset_url='', max_trajectories=0, **sampling):
    """-> (training TrajectoryDataset, validation one, one-line note on where the data came from).

    Where there is no -val file, the last tenth of the trajectories is held out.
    """
    train_path, val_path, note = find_dataset(name, dataset_path or None, data_dir, dataset_url or None)
    observations, starts, ends = load_trajectories(train_path, max_trajectories or None)
    if val_path is not None:
        val = TrajectoryDataset(*load_trajectories(val_path), **sampling)
        return TrajectoryDataset(observations, starts, ends, **sampling), val, note
    if len(starts) < 2:
        raise ValueError(f'{train_path} has one trajectory and no -val file beside it: nothing is left to validate on')
    held = max(1, len(starts) // 10)
    row = starts[-held]
    return (TrajectoryDataset(observations[:row], starts[:-held], ends[:-held], **sampling),
            TrajectoryDataset(observations[row:], starts[-held:] - row, ends[-held:] - row, **sampling),
            f'{note}; no -val file, so the last {held} trajectories are held out')


# --------------------------------------------------------------------------------------------- environments
def make_env(dataset):
    """The OGBench environment of a dataset's name; nothing is rendered and no OpenGL library is loaded."""
    import gymnasium
    import ogbench  # noqa: F401  registers its environments
    return gymnasium.make(parse_name(dataset))


def episode_seed(*entropy):
    """One 32-bit seed for an episode, from run seed, phase, task and number."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def reset_env(env, task_id, seed):
    """Reset to OGBench's task 1-5, repeatably -> (observation, goal), float32. An OGBench maze draws from three
    generators: numpy's global one (start and goal noise), its action space's and its own."""
    np.random.seed(seed % 2**32)
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed, options={'task_id': task_id})
    return observation.astype(np.float32), info['goal'].astype(np.float32)


def run_episodes(envs, jobs, agent, act=None, max_steps=None):
    """Run `jobs`, an iterable of (task_id, seed), in lock-step over `envs`; yields episodes as they end:
    dict(job, task, goal, observations (T + 1, S), actions (T, A), success, reward, length, cut).

    `act(observations, goals, state) -> (actions, state)`, default `agent.act`; the rows of idle environments are
    included, so that the batch keeps its size and an action never depends on how many episodes are left.
    After `max_steps` environment steps the episodes still running are cut.
    """
    jobs, act, n = enumerate(jobs), act or agent.act, len(envs)
    episodes, state, steps, observations, goals = [None] * n, agent.initial_state(n), 0, None, None
    limit = float('inf') if max_steps is None else max_steps
    while True:
        fresh = np.zeros(n, bool)
        for i in range(n):
            if episodes[i] is None and (job := next(jobs, None)) is not None:
                number, (task, seed) = job
                observation, goal = reset_env(envs[i], task, seed)
                episodes[i] = dict(job=number, task=task, goal=goal, observations=[observation], actions=[],
                                   success=0.0, reward=0.0, cut=False)
                if observations is None:
                    observations, goals = np.zeros((2, n, len(goal)), np.float32)
                observations[i], goals[i], fresh[i] = observation, goal, True
        running = [i for i in range(n) if episodes[i] is not None]
        if not running or steps + len(running) > limit:
            return
        if fresh.any():
            state = agent.reset_state(state, fresh)
        actions, state = act(observations, goals, state)
        steps += len(running)
        for i in running:
            episode = episodes[i]
            observation, reward, terminated, truncated, info = envs[i].step(actions[i])
            observations[i] = observation
            episode['observations'].append(observations[i].copy())
            episode['actions'].append(actions[i].copy())
            episode['reward'] += float(reward)
            episode['success'] = float(info['success'])
            episode['cut'] = steps + len(running) > limit
            if terminated or truncated or episode['cut']:
                episode.update(observations=np.stack(episode['observations']), length=len(episode['actions']),
                               actions=np.stack(episode['actions']))
                episodes[i] = None
                yield episode
        if steps + len(running) > limit:
            return


def evaluate(agent, envs, episodes_per_task, seed, progress=None, tasks=(1, 2, 3, 4, 5)):
    """OGBench's protocol: `episodes_per_task` episodes of each task, no noise; success is info['success'] at the
    last step, the overall figure the mean over tasks. Episode (task, i) has the same seed whatever the agent.

    Returns (metrics with OGBench's names, list of episodes in order of task and number).
    """
    jobs = [(task, episode_seed(seed, task, i)) for task in tasks for i in range(episodes_per_task)]
    episodes = [None] * len(jobs)
    for episode in run_episodes(envs, jobs, agent):
        episodes[episode['job']] = episode
        if progress is not None:
            progress.update()
    metrics = {f'evaluation/task{task}_success': float(np.mean([e['success'] for e in episodes if e['task'] == task]))
               for task in tasks}
    metrics['evaluation/overall_success'] = float(np.mean(list(metrics.values())))
    metrics['evaluation/episode_length'] = float(np.mean([e['length'] for e in episodes]))
    return metrics, episodes
