"""Training data: windows of trajectories with hindsight goals, and the agent's episodes.

support/npz.py describes the layout of trajectories in arrays (`starts`, `ends`).
"""

import dataclasses
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from observing.observation_models import FULL_STATE, ObservationModel
from ogbench_utils import advise_download, check_dimensions, find_dataset
from planning.time_scales import choose_numbers
from support.contents import Tensor, check_layout
from support.files import DATA_KEYS, check_types, prefix_errors
from support.npz import load_trajectories
from support.steps import step_notes
from support.text import listed
from support.tolerances import precision_warning, varies

TRAINING_SEED, VALIDATION_SEED = 0, 1  # of the dropped observations and the noise in the two files
ROWS_AT_ONCE = 1 << 18  # for statistics: a float64 copy of all rows would take twice their memory
MAX_SLOWNESS_ROWS = 100_000  # pairs of rows that the time scales are estimated from
MIN_RELATIVE_CHANGE = 1e-12  # mean squared change over variance, below which a dimension is constant
DOMINANT_SLOWNESS = 0.9  # fraction of the summed slowness in one dimension that gives a warning


# ------------------------------------------------------------------------------------------ batches
@dataclasses.dataclass
class Transitions:
    """Transitions of at most k = `transition_steps` steps with sampled goals.

    All arrays have the shape of the rows at which the transitions begin.
    """

    next_rows: np.ndarray  # int, k steps later, or the end of the trajectory
    goal_rows: np.ndarray  # int, hindsight goal of Q and V
    rewards: np.ndarray  # float32, sum of discount^i * -1 until the goal
    discounts: np.ndarray  # float32, discount^steps; 0 if the goal was met on the way
    at_goal: np.ndarray  # bool, the goal is the row itself
    future: np.ndarray  # bool, the goal lies ahead in the same trajectory
    proposer_goal_rows: np.ndarray  # int, goal of the proposer and of the policy
    proposer_near: np.ndarray  # bool, the proposer's goal is at most as far as next_rows


@dataclasses.dataclass
class TensorBatch:
    """Base class of batches: a dataclass of tensors with one row per sample."""

    def to(self, device):
        """Return the same batch on another device."""
        moved = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, torch.Tensor) else value
        return type(self)(**moved)

    def row_numbers(self):
        """Return the fields that locate the samples in their data, as {name: int array}."""
        names = [field.name for field in dataclasses.fields(self) if field.name.endswith('rows')]
        return {name: getattr(self, name).cpu().numpy() for name in names}


@dataclasses.dataclass
class WindowBatch(TensorBatch):
    """B windows of L = context_length + transition_steps states, with P transitions in each."""

    observations: torch.Tensor  # (B, L, S) raw
    valids: torch.Tensor  # (B, L) bool, false in the padding after the end of a trajectory
    positions: torch.Tensor  # (B, P) int, of the transitions in their window
    next_positions: torch.Tensor  # (B, P) int, k steps later
    rewards: torch.Tensor  # (B, P), as the next four, of `Transitions`
    discounts: torch.Tensor  # (B, P)
    at_goal: torch.Tensor  # (B, P) bool
    future: torch.Tensor  # (B, P) bool
    proposer_near: torch.Tensor  # (B, P) bool
    goals: torch.Tensor  # (B, P, S) raw
    proposer_goals: torch.Tensor  # (B, P, S) raw
    rows: torch.Tensor  # (B, P) int, of the transitions in the data
    goal_rows: torch.Tensor  # (B, P) int, of their goals
    proposer_goal_rows: torch.Tensor  # (B, P) int, of the proposer's goals


class Windows(NamedTuple):
    """Windows of `context_length` states, and the piece of each in which its transitions begin."""

    first: np.ndarray  # (B, 1) int, first row of the window
    piece: np.ndarray  # (B, 1) int, first row of the piece
    size: np.ndarray  # (B, 1) int, rows of the piece, at most context_length
    end: np.ndarray  # (B, 1) int, last row of the trajectory, which may end before the window


class RowQueue:
    """A queue of rows in an array or tensor, added at the end and dropped at the front.

    The storage has spare room, so that few additions copy all rows. `rows` is a view of the queue.

    Args:
        empty: function that returns an array or tensor with room for n rows.
    """

    def __init__(self, empty):
        self.empty = empty
        self.storage = empty(0)
        self.first = 0  # index of the first row in the storage
        self.rows = self.storage

    def extend(self, n, dropped=0):
        """Drop `dropped` rows at the front, add n at the end, and return a view of the added rows."""
        kept = self.rows[dropped:]
        self.first += dropped

        # move to a larger storage; it has no spare room at first, for a queue that is filled once
        if self.first + len(kept) + n > len(self.storage):
            spare = len(kept) // 4
            self.storage = self.empty(len(kept) + n + spare)
            self.storage[:len(kept)] = kept
            self.first = 0

        self.rows = self.storage[self.first:self.first + len(kept) + n]
        return self.rows[len(kept):]


# ------------------------------------------------------------------------------------- trajectories
class TrajectoryDataset:
    """Trajectories of states, from which windows, transitions and hindsight goals are sampled.

    A transition leads from row t to row min(t + transition_steps, end).

    Attributes:
        observations: (N, S) states.
        actions: (N, A) in [-1, 1], from each row to the next; None if they are unknown.
        starts, ends: (n,) first and last row of each trajectory.
        end_of: (N,) last row of the trajectory of each row.
        transition_rows: rows that have a next state.
    """

    actions = None

    def __init__(self, observations, starts, ends, context_length=100, transition_steps=25,
                 discount=0.99, positions_per_window=32, current_goals=0.2, random_goals=0.3,
                 proposer_random_goals=0.2):
        """Check and keep the data and the sampling parameters.

        Args:
            observations: (N, S) states.
            starts, ends: (n,) first and last row of each trajectory, in order.
            context_length: states in a window, without those that transitions add.
            transition_steps: steps of a transition.
            discount: per step, below 1.
            positions_per_window: transitions in a window; 0: one at each position.
            current_goals, random_goals: fractions of the goals of Q and V at the row itself and
                anywhere in the data.
            proposer_random_goals: fraction of the proposer's goals anywhere in the data.

        Raises:
            ValueError: a parameter is out of range.
        """
        # ranges
        fractions = current_goals, random_goals, proposer_random_goals
        if min(fractions) < 0 or max(current_goals + random_goals, proposer_random_goals) > 1:
            raise ValueError('goal fractions must be >= 0, the first two together and the third <= 1: '
                             f'{current_goals=} {random_goals=} {proposer_random_goals=}')
        if (min(context_length, transition_steps) < 1 or positions_per_window < 0
                or not 0 < discount < 1):
            raise ValueError('must be positive (positions_per_window: or 0), discount below 1: '
                             f'{context_length=} {transition_steps=} {positions_per_window=} '
                             f'{discount=}')

        # data and parameters
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
        """Store the first and last rows (n,) of the trajectories and what follows from them."""
        self.starts = starts
        self.ends = ends

        # int32 halves the memory of both arrays; the data have fewer than 2^31 rows
        self.end_of = np.repeat(ends.astype(np.int32), ends - starts + 1)
        has_next = np.ones(len(self.end_of), bool)
        has_next[ends] = False
        self.transition_rows = np.flatnonzero(has_next).astype(np.int32)

    def __len__(self):
        return len(self.end_of)

    def numbers(self):
        """Return the sampling parameters that may follow from the data, as a dict."""
        return {name: getattr(self, name) for name in ('context_length', 'transition_steps', 'discount')}

    @property
    def num_windows(self):
        """Return the number of windows that cover the trajectories once: one epoch."""
        return int(np.sum(-(-(self.ends - self.starts) // self.context_length)))

    # ----------------------------------------------------------------------------------- statistics
    def statistics(self):
        """Return mean and standard deviation (S,) of the observations, in float64."""
        rows = self.observations[:len(self)]

        # two passes, so that the mean is subtracted before values are squared
        mean = sum(piece.sum(0, dtype=np.float64) for piece in _pieces(rows)) / len(rows)
        squares = sum(np.square(piece - mean).sum(0) for piece in _pieces(rows))
        return mean, np.sqrt(squares / len(rows))

    def slowness(self):
        """Estimate how slowly each dimension changes: (S,) in [0, 1], 1 for the slowest.

        Slowness is the squared time scale of a dimension, relative to the longest one (slow
        features, Wiskott and Sejnowski 2002). Positions are slow, joint angles are not. It is 1 if no
        dimension has a time scale.
        """
        time_scale = self.time_scales()
        return np.square(time_scale / time_scale.max()) if time_scale.any() else np.ones(len(time_scale))

    @property
    def longest_time_scale(self):
        """Return the largest time scale that the data can show, in steps."""
        return max(2 * self.transition_steps, int(np.max(self.ends - self.starts)))

    def time_scales(self):
        """Estimate the time scale of each dimension: (S,), in units of k = transition_steps.

        It is that of an exponential decay of the autocorrelation: -1 / ln(autocorrelation at lag k), at most
        the length of the longest trajectory. A dimension that never changes within a trajectory (a mass, an
        identifier) has 0.
        """
        # pairs of rows k steps apart in the same trajectory
        rows = np.flatnonzero(np.arange(len(self)) + self.transition_steps <= self.end_of)
        if not len(rows):
            return np.zeros(self.observations.shape[1])
        rows = rows[::max(1, len(rows) // MAX_SLOWNESS_ROWS)]

        # mean squared change over variance = 2 (1 - autocorrelation)
        change = self.observations[rows + self.transition_steps] - self.observations[rows]
        change = np.square(change.astype(np.float64)).mean(0)
        mean, std = self.statistics()
        variance = np.square(std)
        changes = varies(std, mean) & (change > MIN_RELATIVE_CHANGE * variance)
        relative_change = np.divide(change, variance, np.full_like(variance, 2.0), where=changes)

        autocorrelation = np.clip(1 - 0.5 * relative_change, 1e-6,
                                  np.exp(-self.transition_steps / self.longest_time_scale))
        return np.where(changes, -1 / np.log(autocorrelation), 0.0)

    def fingerprint(self):
        """Return a short text that identifies the data by their size and a checksum."""
        crc = zlib.crc32(self.ends, zlib.crc32(np.ascontiguousarray(self.observations[:len(self)])))
        return f'{len(self.starts)} trajectories of {len(self)} states, checksum {crc:08x}'

    # ------------------------------------------------------------------------------------- sampling
    def sample_transitions(self, rows, rng):
        """Sample goals for transitions from some rows.

        Args:
            rows: int array of any shape, with elements of `transition_rows`.
            rng: numpy Generator.

        Returns:
            Transitions of the shape of `rows`.
        """
        # k steps later, or the end of the trajectory
        end = self.end_of[rows]
        next_rows = np.minimum(rows + self.transition_steps, end)

        # a goal ahead: geometric among the remaining steps, by inversion of the truncated distribution;
        # with a discount near 1, clipping at the end would make most goals last states
        quantile = rng.random(rows.shape) * (1 - self.discount ** (end - rows))
        steps_ahead = 1 + (np.log1p(-quantile) / np.log(self.discount)).astype(np.int64)
        ahead = np.minimum(rows + steps_ahead, end)

        # goals of Q and V: the row itself, a row ahead, or any row
        anywhere = rng.integers(len(self), size=rows.shape)
        kind = rng.random(rows.shape)
        at_goal = kind < self.current_goals
        is_random = kind > 1 - self.random_goals
        goal_rows = np.where(at_goal, rows, np.where(is_random, anywhere, ahead))

        # -1 per step until the goal; a random goal counts as never met
        steps = next_rows - rows
        distance = np.where(is_random, len(self), goal_rows - rows)
        rewarded = np.minimum(distance, steps)
        rewards = -(1 - self.discount ** rewarded) / (1 - self.discount)
        discounts = np.where(distance > steps, self.discount ** steps, 0)

        # goals of the proposer, which imitates trajectories: uniform over the rows ahead, or any row
        proposer_random = rng.random(rows.shape) < self.proposer_random_goals
        uniform = rows + 1 + (rng.random(rows.shape) * (end - rows)).astype(np.int64)
        proposer_goal_rows = np.where(proposer_random, rng.integers(len(self), size=rows.shape),
                                      uniform)

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
        """Return the first row of the trajectory of each row (...)."""
        return self.starts[np.searchsorted(self.ends, self.end_of[rows])]

    def draw_windows(self, count, rng):
        """Draw the Windows of `count` random rows.

        The trajectory of a row is cut into pieces of `context_length` rows, of which the first and the last
        may be shorter; the transitions of the window lie in the piece of the row. A piece is drawn in
        proportion to its size, so that all rows are drawn equally often.
        """
        drawn = self.transition_rows[rng.integers(len(self.transition_rows), size=count)].astype(np.int64)
        cut = rng.integers(self.context_length, size=count)
        begin = self.start_of(drawn)
        end = self.end_of[drawn].astype(np.int64)
        last = np.maximum(begin, end - self.context_length)  # first row of the last full window

        # the piece of the drawn row; a trajectory that fits into a window stays whole
        cut = np.where(last > begin, cut, 0)
        piece = begin + cut + (drawn - begin - cut) // self.context_length * self.context_length
        piece_end = np.minimum(piece + self.context_length, end)
        piece = np.maximum(piece, begin)

        columns = np.minimum(piece, last), piece, piece_end - piece, end
        return Windows(*(column[:, None] for column in columns))

    def sample(self, batch_size, rng):
        """Sample a WindowBatch of `batch_size` windows with the numpy Generator `rng`."""
        # windows
        windows = self.draw_windows(batch_size, rng)
        first, end = windows.first, windows.end
        window_rows = first + np.arange(self.context_length + self.transition_steps)

        # rows of the transitions in the pieces: all of them, evenly repeated in short ones, or random ones
        count = self.positions_per_window
        if count == self.context_length:
            offsets = (np.arange(count) * windows.size + rng.integers(windows.size)) // count
        else:
            offsets = (rng.random((batch_size, count)) * windows.size).astype(np.int64)
        rows = windows.piece + offsets
        transitions = self.sample_transitions(rows, rng)

        # states of the windows and goals
        arrays = {
            'observations': self.observations[np.minimum(window_rows, end)],
            'valids': window_rows <= end,
            'positions': rows - first,
            'next_positions': transitions.next_rows - first,
            'rewards': transitions.rewards,
            'discounts': transitions.discounts,
            'at_goal': transitions.at_goal,
            'future': transitions.future,
            'proposer_near': transitions.proposer_near,
            'goals': self.observations[transitions.goal_rows],
            'proposer_goals': self.observations[transitions.proposer_goal_rows],
            'rows': rows,
            'goal_rows': transitions.goal_rows,
            'proposer_goal_rows': transitions.proposer_goal_rows,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array))
                   for name, array in arrays.items()}
        return WindowBatch(**tensors)


def _pieces(rows):
    """Yield `ROWS_AT_ONCE` rows at a time."""
    return (rows[i:i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))


def slowness_summary(slowness):
    """Describe slowness (S,): return a line for the banner, and a warning or ''."""
    order = np.argsort(slowness)[::-1]
    shown = ', '.join(f'{dimension}: {slowness[dimension]:.2g}' for dimension in order[:4])
    median = np.median(slowness)
    line = f'slow dimensions (--slow_goals): {shown}; median of all {len(slowness)}: {median:.2g}'

    fraction = slowness[order[0]] / slowness.sum()
    if len(slowness) == 1 or fraction < DOMINANT_SLOWNESS:
        return line, ''
    return line, (f'warning: dimension {order[0]} of the states holds {fraction:.0%} of the goal '
                  'weights; if goals are not about this dimension, use --no-slow_goals')


class ReplayBuffer(TrajectoryDataset):
    """States and actions of the agent's episodes; the oldest ones are dropped beyond `capacity` rows.

    The last row of each episode in `actions` (N, A) is unused.

    Args:
        observation_dim, action_dim: S and A.
        sampling: sampling parameters of TrajectoryDataset.
    """

    def __init__(self, observation_dim, action_dim, capacity=1_000_000, **sampling):
        self.capacity = capacity
        self.queues = {
            'observations': RowQueue(lambda n: np.empty((n, observation_dim), np.float32)),
            'actions': RowQueue(lambda n: np.empty((n, action_dim), np.float32)),
        }
        self.actions = self.queues['actions'].rows
        empty = np.zeros(0, np.int64)
        super().__init__(self.queues['observations'].rows, empty, empty, **sampling)

    def add(self, observations, actions):
        """Append one episode and return the number of rows that were dropped at the front.

        Args:
            observations: (T + 1, S) raw.
            actions: (T, A) in [-1, 1], T >= 1.

        Raises:
            ValueError: the lengths do not fit together, or the episode exceeds the capacity.
        """
        rows = len(observations)
        if rows < 2 or len(actions) != rows - 1 or rows > self.capacity:
            raise ValueError('an episode needs T + 1 states for T >= 1 actions and at most '
                             f'{self.capacity} rows, got {rows} and {len(actions)}')

        # whole episodes from the oldest one on, until there is room
        dropped = 0
        while len(self) - dropped + rows > self.capacity:
            dropped = int(self.ends[self.ends >= dropped][0]) + 1

        # append the rows and shift the borders
        kept = self.starts >= dropped
        start = len(self) - dropped
        self._append(dropped, observations=observations, actions=np.append(actions, actions[-1:], 0))
        self._set_borders(np.append(self.starts[kept] - dropped, start),
                          np.append(self.ends[kept] - dropped, start + rows - 1))
        return dropped

    def _append(self, dropped, **arrays):
        """Drop `dropped` rows at the front of all queues, and append the array of each name."""
        for name, new in arrays.items():
            queue = self.queues[name]
            queue.extend(len(new), dropped)[:] = new
            setattr(self, name, queue.rows)

    def state_dict(self):
        """Return tensors from which `load_state_dict` restores the buffer."""
        arrays = {'observations': self.observations, 'actions': self.actions, 'starts': self.starts,
                  'ends': self.ends}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, state):
        """Replace the episodes by those of a `state_dict`; raise ValueError if it is of another buffer."""
        rows = {'least': 0, 'below': 'N'}
        layout = {'observations': Tensor('float32', 'N S'), 'actions': Tensor('float32', 'N A'),
                  'starts': Tensor('int64', 'n', **rows), 'ends': Tensor('int64', 'n', **rows)}
        check_layout(state, layout, S=self.observations.shape[1], A=self.actions.shape[1])
        self._append(len(self), observations=state['observations'].numpy(),
                     actions=state['actions'].numpy())
        self._set_borders(state['starts'].numpy(), state['ends'].numpy())


# ----------------------------------------------------------------------------------------- datasets
@dataclasses.dataclass
class DataSource:
    """Origin of a dataset."""

    path: str  # of the training file, absolute
    note: str  # one line for the banner
    observation_model: ObservationModel  # applied to its states
    reasons: list  # of str, lines on the sampling parameters that follow from the data


def load_dataset(name, dataset_path='', data_dir='datasets', dataset_url='', max_trajectories=0,
                 batch_size=1, observation_model=FULL_STATE, num_dimensions=None, **sampling):
    """Load the training and validation data of a dataset.

    Without a -val file, the last tenth of the trajectories is held out for validation.

    Args:
        name, dataset_path, data_dir, dataset_url: see `ogbench_utils.find_dataset`; '' means not given.
        max_trajectories: number of training trajectories to use; 0 uses all.
        batch_size: smallest number of windows that the training data must have.
        observation_model: applied to all states; fitted to the training data if it needs that.
        num_dimensions: of a state of the environment; None: not compared.
        sampling: parameters of TrajectoryDataset; 0: from the training data (planning/time_scales.py).

    Returns:
        training TrajectoryDataset, validation TrajectoryDataset, DataSource.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the data cannot be trained on; the message names the file.
    """
    train_path, val_path, note = find_dataset(name, dataset_path or None, data_dir, dataset_url or None)
    context_length = sampling.get('context_length') or 1
    with advise_download(name, dataset_path):
        observations, starts, ends = load_trajectories(train_path, max_trajectories or None,
                                                       context_length)

    if num_dimensions is not None:
        check_dimensions(name, train_path, observations.shape[1], num_dimensions)

    warning = precision_warning(train_path, observations, ends)
    if warning:
        print(warning, file=sys.stderr)
    for line in step_notes(observations, ends, may_jump='teleport' in name or 'teleport' in train_path.name):
        print(f'warning: {train_path}: {line}', file=sys.stderr)

    # the states as the agent observes them
    observation_model = observation_model.with_angles(observations, ends)
    if observation_model:
        mean, std = TrajectoryDataset(observation_model.unwrapped(observations), starts, ends).statistics()
        observation_model = observation_model.with_noise_scale(std).with_transform(mean, std)
    observation_model = observation_model.with_origin(observations)
    observations = observation_model.observe_trajectories(observations, starts, ends, seed=TRAINING_SEED)

    # validation data: a file, or the last trajectories
    if val_path is not None:
        with advise_download(name, dataset_path):
            states, *borders = load_trajectories(val_path)
        states = observation_model.observe_trajectories(states, *borders, seed=VALIDATION_SEED)
        train = observations, starts, ends
        val = states, *borders
    else:
        if len(starts) < 2:
            raise ValueError(f'{train_path}: only one trajectory is used and there is no -val file '
                             'beside it; use more trajectories or add that file')
        held = max(1, len(starts) // 10)
        row = starts[-held]
        train = observations[:row], starts[:-held], ends[:-held]
        val = observations[row:], starts[-held:] - row, ends[-held:] - row
        note = f'{note}; no -val file, so the last {held} trajectories are held out'

    # sampling parameters that follow from the training data
    numbers, reasons = choose_numbers(TrajectoryDataset(*train), sampling)
    train, val = (TrajectoryDataset(*part, **sampling | numbers) for part in (train, val))

    _check_data(train, val, train_path, val_path, batch_size)
    return train, val, DataSource(str(Path(train_path).resolve()), note, observation_model, reasons)


def load_recorded(recorded, origin, agent, dataset_path='', data_dir='', dataset_url='',
                  max_trajectories=0, observation_model=FULL_STATE):
    """Load the data that an offline checkpoint was trained on, or other data that a flag names.

    Fingerprints are compared, since imitation of data that V was not trained on would fail silently.

    Args:
        recorded: dict of dataset, path, max_trajectories and fingerprint, from the checkpoint.
        origin: path of the checkpoint, for messages.
        agent: OfflineAgent of the checkpoint, which observes the data and has sampling parameters.
        dataset_path, data_dir, dataset_url: flags; one of them overrides the recorded path.
        max_trajectories: overrides the recorded value unless 0.
        observation_model: see `load_dataset`.

    Returns:
        training TrajectoryDataset, DataSource.

    Raises:
        FileNotFoundError: the recorded file is missing; the message names the way out.
        ValueError: the recorded file has changed; the message names the way out.
    """
    with prefix_errors(origin):
        check_types(recorded, DATA_KEYS)

    # the recorded file, unless a flag names another
    overridden = dataset_path or data_dir or dataset_url
    path = dataset_path
    if not overridden:
        path = recorded['path']
        if not Path(path).is_file():
            raise FileNotFoundError(f'{path}, the data of {origin}, is missing; name it with '
                                    '--dataset_path FILE, or its folder with --data_dir FOLDER')

    count = max_trajectories or recorded['max_trajectories']
    data, _, source = load_dataset(recorded['dataset'], path, data_dir or 'datasets', dataset_url,
                                   count, observation_model=observation_model,
                                   num_dimensions=None if observation_model else agent.observation_dim,
                                   **agent.config.sampling())

    # compare fingerprints, unless a flag asks for another number of trajectories
    found = data.fingerprint()
    same_count = count == recorded['max_trajectories']
    if same_count and found != recorded['fingerprint']:
        difference = f"{origin} was trained on {recorded['fingerprint']}; {source.path} has {found}"
        if not overridden:
            raise ValueError(f'{difference}. The file has changed: to train on it all the same, give '
                             f'--dataset_path {source.path}')
        print(f'warning: other data than offline, as asked: {difference}', file=sys.stderr)
    return data, source


def _check_data(train, val, train_path, val_path, batch_size):
    """Raise ValueError for data that cannot be trained on; warn about constant dimensions.

    Args:
        train, val: TrajectoryDataset. train_path, val_path: their files, for messages.
        batch_size: smallest number of training windows.
    """
    # the same dimensions in both files
    train_dim, val_dim = (data.observations.shape[1] for data in (train, val))
    if train_dim != val_dim:
        raise ValueError(f'{val_path}: states of {val_dim} dimensions, those of {train_path} have '
                         f'{train_dim}; move the file that does not belong here to another folder')

    # dimensions that vary
    mean, std = train.statistics()
    constant = np.flatnonzero(~varies(std, mean))
    if len(constant) == train_dim:
        raise ValueError(f'{train_path}: all states in `observations` are the same, so that nothing '
                         'can be learned from them; name another file with --dataset_path')
    if len(constant):
        print(f'warning: {train_path}: {len(constant)} dimension(s) of `observations` never vary '
              f'({listed(constant, 8)}); nothing can be learned from them', file=sys.stderr)

    # at least one batch
    if train.num_windows < batch_size:
        raise ValueError(f'{train_path}: {train.num_windows} windows of --context_length '
                         f'{train.context_length} states are fewer than --batch_size {batch_size}; '
                         'lower one of them or use more trajectories')
