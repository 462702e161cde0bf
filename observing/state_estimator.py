"""What takes the place of readings that get lost (--observe dropped:P): what the encoder of sequences expects.

A lost reading repeats the one before it, number for number, which tells that it was lost. The encoder has learned
from states alone to foretell the next one, f(s_<=t) -> s_{t+1}, from whatever received; where nothing arrives, an agent
goes on with that. So memory is where it is needed and nowhere else: the plan, f_P and inverse dynamics see a state as
ever, which may be a belief.

Actions can be told of steps only whose two readings received. From such a step inverse dynamics learn to act without
its reading, too: the expectation stands in for it as often as readings get lost.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from model import EncoderState
from trajectories import RowQueue

WINDOWS_AT_ONCE = 64


def find_received(observations, starts):
    """Which of the readings (N, S) of trajectories that begin in rows `starts` received -> (N,) bool. The first of each
    does."""
    received = np.ones(len(observations), bool)
    received[1:] = (observations[1:] != observations[:-1]).any(1)
    received[starts] = True
    return received


class EstimatorState(NamedTuple):
    """What acting knows about its present states, of B environments."""

    encoder: EncoderState
    reading: torch.Tensor  # (B, S) raw, the last one
    expected: torch.Tensor  # (B, S) raw, what is expected to come next

    def reset(self, rows):
        """Forget everything in the rows where the bool mask `rows` (B,) is true."""
        return self._replace(encoder=self.encoder.reset(rows))


class EncoderEstimator:
    """Turns readings into imputed, with a trained OfflineAgent. `remembers`: whether lost readings are filled in; else
    the last one that received is taken for the present state."""

    def __init__(self, offline, remembers=True):
        self.offline = offline
        self.encoder = offline.encoder
        self.remembers = remembers

    def initial_state(self, batch_size):
        """-> EstimatorState before the first readings of `batch_size` episodes."""
        nothing = self.encoder.mean.expand(batch_size, -1)
        return EstimatorState(self.encoder.initial_state(batch_size), nothing, nothing)

    def step(self, observations, belief):
        """EpisodeObserver (B, S), raw, of the next step -> (estimated states (B, S), new EstimatorState)."""
        if not self.remembers:
            return observations, belief._replace(reading=observations, expected=observations)

        is_first = (belief.encoder.count == 0).unsqueeze(-1)
        lost = (observations == belief.reading).all(-1, keepdim=True) & ~is_first
        estimated = torch.where(lost, belief.expected, observations)
        latent, encoder = self.encoder.step(observations, belief.encoder)
        expected = self.encoder.denormalize(self.offline.predict_next(latent, observations))
        return estimated, EstimatorState(encoder, observations, expected)

    @torch.no_grad()
    def expect(self, observations):
        """EpisodeObserver (T, S) of a trajectory -> (T, S), what `step` would have expected of each; of the first, itself."""
        if not self.remembers or len(observations) < 2:
            return np.concatenate([observations[:1], observations[:-1]])

        # windows begin where one of the two streams of `Encoder.step` restarts, as far as anything is left to foretell
        context = self.encoder.context_length
        length = len(observations) - 1
        firsts = np.flatnonzero(np.isin(np.arange(length) % context, (0, context // 2)))
        firsts = firsts[:1 + np.sum(firsts[:-1] + context < length)]
        rows = np.minimum(firsts[:, None] + np.arange(context), length - 1)

        expected = observations.copy()
        done = 0  # rows whose successor is foretold, by the window that remembers most
        for i in range(0, len(firsts), WINDOWS_AT_ONCE):
            windows = torch.from_numpy(observations[rows[i:i + WINDOWS_AT_ONCE]]).to(self.encoder.mean.device)
            predicted = self.encoder.denormalize(self.offline.predict_next(self.encoder(windows), windows))
            for first, ahead in zip(firsts[i:i + WINDOWS_AT_ONCE], predicted.cpu().numpy(), strict=True):
                end = min(first + context, length)
                expected[done + 1:end + 1] = ahead[done - first:end - first]
                done = end
        return expected


class ImputedStates:
    """What acting would believe at all rows of a trajectory dataset whose readings get lost."""

    def __init__(self, dataset, estimator):
        self.dataset = dataset
        self.estimator = estimator
        size = dataset.observations.shape[1]
        self.queue = RowQueue(lambda n: np.empty((n, size), np.float32))
        self.refresh()

    @property
    def expected(self):
        """(N, S) raw, what was expected of a row before it came."""
        return self.queue.rows

    def refresh(self, dropped=0):
        """Take in trajectories that were added to the dataset; `dropped` rows went at its front."""
        data = self.dataset
        self.received = find_received(data.observations[:len(data)], data.starts)
        self.receive_rate = self.received.mean() if len(data) else 1.0
        # rows at which steps begin whose two readings received
        self.told = data.transition_rows[self.received[data.transition_rows] & self.received[data.transition_rows + 1]]

        known = max(0, len(self.expected) - dropped)
        self.queue.extend(len(data) - known, dropped)

        new = [(start, end) for start, end in zip(data.starts, data.ends, strict=True) if start >= known]
        for start, end in tqdm(new, 'lost readings', leave=False, dynamic_ncols=True, delay=1):
            self.expected[start:end + 1] = self.estimator.expect(data.observations[start:end + 1])

    @property
    def observed_pairs(self):
        """`told`, (n,) rows. ValueError where there are none."""
        if not len(self.told):
            raise ValueError(f'of {len(self.dataset.transition_rows):,} steps none has both its readings, so that no action '
                             'can be told; use a smaller P in --observe dropped:P or more steps')
        return self.told

    def estimated(self, rows):
        """What was estimated at some rows (a slice or an int array) -> (n, S) raw."""
        return np.where(self.received[rows, None], self.dataset.observations[rows], self.expected[rows])

    def lose(self, rows, rng):
        """The same at rows (n,) whose readings received, as if these had got lost as often as others do."""
        lost = rng.random(len(rows)) >= self.receive_rate
        return np.where(lost[:, None], self.expected[rows], self.dataset.observations[rows])
