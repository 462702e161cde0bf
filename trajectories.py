"""What training samples from: windows of trajectories of states with hindsight goals, and the agent's own episodes.

`ogbench_utils` draws how trajectories lie in their arrays (`starts`, `ends`).
"""

import dataclasses
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from observing.observation_models import FULL_STATE, ObservationModel
from ogbench_utils import find_dataset, load_trajectories
from utils import RowQueue, TensorBatch

TRAINING, VALIDATION = 0, 1  # seeds of what is lost, and of the noise, in the states of the two files
ROWS_AT_ONCE = 1 << 18  # statistics take the rows in pieces: a float64 copy of all would be twice the data


@dataclasses.dataclass
class Transitions:
    """Where some rows lead within `transition_steps` steps, with goals drawn for them; arrays of the rows' shape."""

    next_rows: np.ndarray  # int, k steps on, or the end of the trajectory
    goal_rows: np.ndarray  # int, hindsight goal of Q and V
    rewards: np.ndarray  # float32, sum of discount^i * -1 until the goal
    discounts: np.ndarray  # float32, discount^steps; 0 where the goal was met on the way
    at_goal: np.ndarray  # bool, the goal is the row itself
    future: np.ndarray  # bool, the goal lies ahead in the same trajectory
    proposer_goal_rows: np.ndarray  # int, goal of the proposer and of the inverse dynamics
    proposer_near: np.ndarray  # bool, that goal is no further than next_rows


@dataclasses.dataclass
class WindowBatch(TensorBatch):
    """Windows of states and P transitions of each; B windows of L = context_length + transition_steps states."""

    observations: torch.Tensor  # (B, L, S) raw
    valids: torch.Tensor  # (B, L) bool, false in the padding that ends windows of short trajectories
    positions: torch.Tensor  # (B, P) int, of the transitions in their window
    next_positions: torch.Tensor  # (B, P) int, k steps on
    rewards: torch.Tensor  # (B, P), see Transitions; so are the next four
    discounts: torch.Tensor  # (B, P)
    at_goal: torch.Tensor  # (B, P) bool
    future: torch.Tensor  # (B, P) bool
    proposer_near: torch.Tensor  # (B, P) bool
    goals: torch.Tensor  # (B, P, S) raw
    proposer_goals: torch.Tensor  # (B, P, S) raw
    rows: torch.Tensor  # (B, P) int, where the transitions lie in the data; so do the next two
    goal_rows: torch.Tensor  # (B, P) int
    proposer_goal_rows: torch.Tensor  # (B, P) int


class TrajectoryDataset:
    """Trajectories of states, windows of them, and hindsight goals (OGBench's mixture, sampled afresh each time).

    observations (N, S); starts, ends (n,) first and last row of each trajectory, in order. A transition goes
    from row t to row min(t + transition_steps, end). Raises ValueError for numbers that cannot be sampled from.

    actions (N, A) in [-1, 1] are those between a row and the next, None where they are unknown.
    """

    actions = None

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
        self.context_length = context_length
        self.transition_steps = transition_steps
        self.discount = discount
        self.positions_per_window = min(positions_per_window or context_length, context_length)
        self.current_goals = current_goals
        self.random_goals = random_goals
        self.proposer_random_goals = proposer_random_goals
        self._set_borders(starts, ends)

    def _set_borders(self, starts, ends):
        self.starts = starts
        self.ends = ends
        # int32 halves what two arrays of the length of the data take; there are never 2^31 rows in memory
        self.end_of = np.repeat(ends.astype(np.int32), ends - starts + 1)  # row -> last row of its trajectory
        has_next = np.ones(len(self.end_of), bool)
        has_next[ends] = False
        self.transition_rows = np.flatnonzero(has_next).astype(np.int32)  # rows that have a next state

    def __len__(self):
        return len(self.end_of)

    @property
    def num_windows(self):
        """Windows of context_length states that cover the trajectories once: one epoch."""
        return int(np.sum(-(-(self.ends - self.starts) // self.context_length)))

    def statistics(self):
        """Mean and std (S,) of the observations, accumulated in float64, piece by piece."""
        rows = self.observations[:len(self)]
        mean = sum(piece.sum(0, dtype=np.float64) for piece in _pieces(rows)) / len(rows)

        squares = sum(np.square(piece - mean).sum(0) for piece in _pieces(rows))  # float64, as the mean is
        return mean, np.sqrt(squares / len(rows))

    def slowness(self):
        """(S,) in [0, 1]: the squared time scale of each dimension, in those of the slowest; the time scale is that
        of an exponential decay of the autocorrelation, -k / ln(autocorrelation at lag k = transition_steps).

        What lasts is what a goal is about and what a plan can foretell (slow features, Wiskott and Sejnowski 2002);
        joint angles that are back in a moment only blur it. No time scale is longer than the longest trajectory, since
        the data cannot show it; a dimension that never changes within a trajectory (a mass, an identifier) says
        nothing about where a trajectory can go, and has 0.
        """
        rows = np.flatnonzero(np.arange(len(self)) + self.transition_steps <= self.end_of)
        if not len(rows):
            return np.ones(self.observations.shape[1])

        rows = rows[::max(1, len(rows) // 100_000)]
        change = (self.observations[rows + self.transition_steps] - self.observations[rows]).astype(np.float64)
        change = np.square(change).mean(0)
        variance = np.square(self.statistics()[1])
        moves = change > 1e-12 * np.maximum(variance, 1e-12)
        share = np.divide(change, variance, np.full_like(variance, 2.0), where=moves)

        longest = max(2 * self.transition_steps, int(np.max(self.ends - self.starts)))
        slowest = np.exp(-self.transition_steps / longest)  # autocorrelation at lag k of the longest time scale
        time_scale = -1 / np.log(np.clip(1 - 0.5 * share, 1e-6, slowest))
        time_scale = np.where(moves, time_scale, 0.0)
        if not moves.any():
            return np.ones(self.observations.shape[1])
        return np.square(time_scale / time_scale.max())

    def fingerprint(self):
        """Tells this data from other data, in a few words."""
        crc = zlib.crc32(self.ends, zlib.crc32(np.ascontiguousarray(self.observations[:len(self)])))
        return f'{len(self.starts)} trajectories of {len(self)} states, checksum {crc:08x}'

    def sample_transitions(self, rows, rng):
        """rows: int array, any shape, each with a next state -> Transitions of that shape."""
        end = self.end_of[rows]
        next_rows = np.minimum(rows + self.transition_steps, end)

        # geometric, but only among the steps that are left: cut off at the end instead, with a discount near 1 most
        # goals would be last states
        share = rng.random(rows.shape) * (1 - self.discount ** (end - rows))
        ahead = np.minimum(rows + 1 + (np.log1p(-share) / np.log(self.discount)).astype(np.int64), end)

        anywhere = rng.integers(len(self), size=rows.shape)
        kind = rng.random(rows.shape)
        at_goal = kind < self.current_goals
        is_random = kind > 1 - self.random_goals
        goal_rows = np.where(at_goal, rows, np.where(is_random, anywhere, ahead))

        steps = next_rows - rows
        distance = np.where(is_random, len(self), goal_rows - rows)
        rewarded = np.minimum(distance, steps)
        rewards = -(1 - self.discount ** rewarded) / (1 - self.discount)
        discounts = np.where(distance > steps, self.discount ** steps, 0)

        # the proposer imitates where trajectories went, so its goals are uniform over what followed
        proposer_random = rng.random(rows.shape) < self.proposer_random_goals
        uniform = rows + 1 + (rng.random(rows.shape) * (end - rows)).astype(np.int64)
        proposer_goal_rows = np.where(proposer_random, rng.integers(len(self), size=rows.shape), uniform)

        return Transitions(
            next_rows=next_rows,
            goal_rows=goal_rows,
            rewards=rewards.astype(np.float32),
            discounts=discounts.astype(np.float32),
            at_goal=at_goal,
            future=~at_goal & ~is_random,
            proposer_goal_rows=proposer_goal_rows,
            proposer_near=~proposer_random & (uniform <= next_rows),
        )

    def start_of(self, rows):
        """First row of the trajectory of each of some rows, of any shape."""
        return self.starts[np.searchsorted(self.ends, self.end_of[rows])]

    def draw_windows(self, count, rng):
        """-> first (count, 1) row of windows of `context_length` states, and the last row (count, 1) of their
        trajectories, which may come before the end of a window."""
        drawn = self.transition_rows[rng.integers(len(self.transition_rows), size=count)]
        begin = self.start_of(drawn)
        end = self.end_of[drawn]

        # a window lies anywhere around the row that was drawn, so that rows near both borders are drawn as often
        first = drawn - rng.integers(self.context_length, size=count)
        first = np.clip(first, begin, np.maximum(begin, end - self.context_length))
        return first[:, None], end[:, None]

    def sample(self, batch_size, rng):
        """-> WindowBatch of `batch_size` windows. No actions: they were never read."""
        first, end = self.draw_windows(batch_size, rng)
        rows = first + np.arange(self.context_length + self.transition_steps)

        limit = np.minimum(self.context_length, end - first)
        if self.positions_per_window == self.context_length:
            positions = np.minimum(np.arange(self.context_length)[None], limit - 1)
        else:
            positions = (rng.random((batch_size, self.positions_per_window)) * limit).astype(np.int64)
        origin = first + positions
        transitions = self.sample_transitions(origin, rng)

        arrays = {
            'observations': self.observations[np.minimum(rows, end)],
            'valids': rows <= end,
            'positions': positions,
            'next_positions': transitions.next_rows - first,
            'rewards': transitions.rewards,
            'discounts': transitions.discounts,
            'at_goal': transitions.at_goal,
            'future': transitions.future,
            'proposer_near': transitions.proposer_near,
            'goals': self.observations[transitions.goal_rows],
            'proposer_goals': self.observations[transitions.proposer_goal_rows],
            'rows': origin,
            'goal_rows': transitions.goal_rows,
            'proposer_goal_rows': transitions.proposer_goal_rows,
        }
        return WindowBatch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _pieces(rows):
    return (rows[i:i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))


def slowness_summary(slowness):
    """slowness (S,) -> (one line for the banner, warning or '')."""
    order = np.argsort(slowness)[::-1]
    shown = ', '.join(f'{dimension}: {slowness[dimension]:.2g}' for dimension in order[:4])
    line = f'slow dimensions (--slow_goals): {shown}; median of all {len(slowness)}: {np.median(slowness):.2g}'

    share = slowness[order[0]] / max(slowness.sum(), 1e-12)
    if len(slowness) == 1 or share < 0.9:
        return line, ''
    return line, (f'warning: dimension {order[0]} of the states holds {share:.0%} of what Q, V and the proposer see of '
                  'them; if that is not what a goal is about, use --no-slow_goals')


class ReplayBuffer(TrajectoryDataset):
    """Growing trajectories of the agent's own states and actions; whole episodes, so that borders hold.

    Beyond `capacity` rows the oldest episodes go. `actions` (N, A): the row at an episode's end is unused.
    """

    def __init__(self, observation_dim, action_dim, capacity=1_000_000, **sampling):
        self.capacity = capacity
        self.queues = {name: RowQueue(lambda n, size=size: np.empty((n, size), np.float32))
                       for name, size in (('observations', observation_dim), ('actions', action_dim))}
        self.actions = self.queues['actions'].rows
        empty = np.zeros(0, np.int64)
        super().__init__(self.queues['observations'].rows, empty, empty, **sampling)

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
        start = len(self) - dropped
        self._append(dropped, observations=observations, actions=np.append(actions, actions[-1:], 0))
        self._set_borders(np.append(self.starts[kept] - dropped, start),
                          np.append(self.ends[kept] - dropped, start + rows - 1))
        return dropped

    def _append(self, dropped, **arrays):
        for name, new in arrays.items():
            queue = self.queues[name]
            queue.extend(len(new), dropped)[:] = new
            setattr(self, name, queue.rows)

    def state_dict(self):
        """-> tensors from which `load_state_dict` makes the same buffer."""
        arrays = {'observations': self.observations, 'actions': self.actions, 'starts': self.starts, 'ends': self.ends}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, state):
        """Take over the episodes of another buffer's `state_dict`."""
        self._append(len(self), observations=state['observations'].numpy(), actions=state['actions'].numpy())
        self._set_borders(state['starts'].numpy(), state['ends'].numpy())


@dataclasses.dataclass
class DataSource:
    """Where a dataset came from."""

    path: str  # of the training file, absolute
    note: str  # one line for the banner
    observation_model: ObservationModel  # through which its states are seen


def load_dataset(name, dataset_path='', data_dir='datasets', dataset_url='', max_trajectories=0, batch_size=1,
                 observation_model=FULL_STATE, **sampling):
    """-> (training TrajectoryDataset, validation one, DataSource).

    Where there is no -val file, the last tenth of the trajectories is held out. All states are seen through `observation_model`,
    which are fitted to the training data if they need it. Raises FileNotFoundError, or ValueError that names the file,
    for data that cannot be trained on with windows of `context_length` states, `batch_size` of them at a time.
    """
    train_path, val_path, note = find_dataset(name, dataset_path or None, data_dir, dataset_url or None)
    longest = sampling.get('context_length', 1)
    observations, starts, ends = load_trajectories(train_path, max_trajectories or None, longest)

    if observation_model:
        std = TrajectoryDataset(observations, starts, ends).statistics()[1]
        observation_model = observation_model.with_noise_scale(std)
        observations = observation_model.observe_trajectories(observations, starts, ends, seed=TRAINING)

    if val_path is not None:
        val_observations, *borders = load_trajectories(val_path)
        val_observations = observation_model.observe_trajectories(val_observations, *borders, seed=VALIDATION)
        val = TrajectoryDataset(val_observations, *borders, **sampling)
        train = TrajectoryDataset(observations, starts, ends, **sampling)
    else:
        if len(starts) < 2:
            raise ValueError(f'{train_path}: only one trajectory is used and there is no -val file beside it, so that '
                             'nothing is left to validate on; use more trajectories or add that file')
        held = max(1, len(starts) // 10)
        row = starts[-held]
        train = TrajectoryDataset(observations[:row], starts[:-held], ends[:-held], **sampling)
        val = TrajectoryDataset(observations[row:], starts[-held:] - row, ends[-held:] - row, **sampling)
        note = f'{note}; no -val file, so the last {held} trajectories are held out'

    _check(train, val, train_path, val_path, batch_size)
    return train, val, DataSource(str(Path(train_path).resolve()), note, observation_model)


def load_recorded(recorded, origin, dataset_path='', data_dir='', dataset_url='', max_trajectories=0, observation_model=FULL_STATE,
                  **sampling):
    """-> (training TrajectoryDataset, DataSource) of the file that the offline half was trained on, or of another that
    the user insists on by one of the flags. `recorded`: dataset, path, max_trajectories and fingerprint, as the offline
    trainer wrote them; origin: the checkpoint that says so.

    Raises FileNotFoundError or ValueError where that file is gone or has changed: what was found where, and how to
    insist. Imitating other data than V was trained on would fail silently.
    """
    insists = dataset_path or data_dir or dataset_url
    path = dataset_path
    if not insists:
        path = recorded['path']
        if not Path(path).is_file():
            raise FileNotFoundError(f'{path}, the data of {origin}, is not there any more; name it with '
                                    '--dataset_path FILE, or its folder with --data_dir FOLDER')

    count = max_trajectories or recorded['max_trajectories']
    data, _, source = load_dataset(recorded['dataset'], path, data_dir or 'datasets', dataset_url, count,
                                   observation_model=observation_model, **sampling)

    found = data.fingerprint()
    same_count = count == recorded['max_trajectories']
    if same_count and found != recorded['fingerprint']:
        difference = f"{origin} was trained on {recorded['fingerprint']}; {source.path} has {found}"
        if not insists:
            raise ValueError(f'{difference}. The file has changed: to train on it all the same, give --dataset_path '
                             f'{source.path}')
        print(f'warning: other data than offline, as asked: {difference}', file=sys.stderr)
    return data, source


def _check(train, val, train_path, val_path, batch_size):
    sizes = [data.observations.shape[1] for data in (train, val)]
    if sizes[0] != sizes[1]:
        raise ValueError(f'{val_path}: states of {sizes[1]} dimensions, those of {train_path} have {sizes[0]}; delete '
                         'the one that does not belong here')

    constant = np.flatnonzero(train.observations.min(0) == train.observations.max(0))
    if len(constant) == sizes[0]:
        raise ValueError(f'{train_path}: all states in `observations` are the same, so that nothing can be learned '
                         'from them')
    if len(constant):
        numbers = ', '.join(map(str, constant[:8])) + (', …' if len(constant) > 8 else '')
        print(f'warning: {train_path}: {len(constant)} dimension(s) of `observations` never vary ({numbers}); nothing '
              'can be learned from them', file=sys.stderr)

    if train.num_windows < batch_size:
        raise ValueError(f'{train_path}: {train.num_windows} windows of --context_length {train.context_length} states '
                         f'are fewer than --batch_size {batch_size}; lower one of them or use more trajectories')
