"""State estimation for dropped observations (--observe dropped:P, --estimator).

A dropped observation equals the one before it, which reveals the drop. `EncoderPrediction` replaces it by the
prediction of the next state that the encoder learned from states alone, f(s_<=t) -> s_{t+1}. `LastObservation`
keeps the repeated observation. The planner, the proposer and the policy receive estimated states and need no
history of observations.

Only transitions whose two observations were received can be labeled with actions. `ImputedStates.drop` drops
some of their observations in training, so that the policy also learns to act on estimated states.
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch

from model import EncoderState
from support.progress import progress_bar
from trajectories import RowQueue

WINDOWS_PER_BATCH = 64  # windows that the encoder processes at once


class StateEstimator(Protocol):
    """Estimates the present state of each of B environments from its observations."""

    def initial_state(self, batch_size):
        """Return the estimator's state before the first observations of `batch_size` episodes."""

    def reset(self, state, rows):
        """Return the state with new episodes in the rows where the mask `rows` (B,) is true."""

    def step(self, observations, state):
        """Estimate the present states.

        Args:
            observations: (B, S) raw.
            state: estimator's state before these observations.

        Returns:
            (B, S) raw estimated states, and the new estimator's state.
        """

    def predict(self, observations):
        """Return what `step` predicts of each row of a trajectory's observations (T, S) from the rows before.

        The first row, which has none before it, is returned as it is.
        """


class LastObservation:
    """The state estimator that returns each observation: the state itself, unless observations are dropped."""

    def initial_state(self, batch_size):
        return None

    def reset(self, state, rows):
        return state

    def step(self, observations, state):
        return observations, state

    def predict(self, observations):
        return np.concatenate([observations[:1], observations[:-1]])


class EstimatorState(NamedTuple):
    """What `EncoderPrediction` keeps between the steps of B environments."""

    encoder: EncoderState
    observations: torch.Tensor  # (B, S) raw, of the last step
    predicted: torch.Tensor  # (B, S) raw, prediction of the next state


class EncoderPrediction:
    """The state estimator that replaces dropped observations by predictions of a trained OfflineAgent."""

    def __init__(self, offline):
        self.offline = offline
        self.encoder = offline.encoder

    def initial_state(self, batch_size):
        mean = self.encoder.mean.expand(batch_size, -1)
        return EstimatorState(self.encoder.initial_state(batch_size), mean, mean)

    def reset(self, state, rows):
        rows = torch.as_tensor(rows, device=self.encoder.mean.device)
        return state._replace(encoder=state.encoder.reset(rows))

    def step(self, observations, state):
        # the first observation of an episode is never dropped
        is_first = (state.encoder.count == 0).unsqueeze(-1)
        is_dropped = (observations == state.observations).all(-1, keepdim=True) & ~is_first
        estimated = torch.where(is_dropped, state.predicted, observations)

        # the encoder reads what was observed, as in training
        latents, encoder_state = self.encoder.step(observations, state.encoder)
        predicted = self._predict_next(latents, observations)
        return estimated, EstimatorState(encoder_state, observations, predicted)

    @torch.no_grad()
    def predict(self, observations):
        if len(observations) < 2:
            return observations.copy()

        # windows of `context_length` rows begin where a stream of `Encoder.step` restarts; the first window
        # that reaches the end is the last one
        context = self.encoder.context_length
        length = len(observations) - 1  # rows with a successor
        firsts = np.flatnonzero(np.isin(np.arange(length) % context, (0, context // 2)))
        firsts = firsts[:1 + np.sum(firsts[:-1] + context < length)]
        rows = np.minimum(firsts[:, None] + np.arange(context), length - 1)

        predicted = observations.copy()
        num_done = 0  # rows whose successor is predicted
        for i in range(0, len(firsts), WINDOWS_PER_BATCH):
            windows = torch.from_numpy(observations[rows[i:i + WINDOWS_PER_BATCH]])
            windows = windows.to(self.encoder.mean.device)
            successors = self._predict_next(self.encoder(windows), windows).cpu().numpy()

            # the window that begins first has the longest context, as the older stream has in `Encoder.step`
            for first, window_successors in zip(firsts[i:i + WINDOWS_PER_BATCH], successors, strict=True):
                end = min(first + context, length)
                predicted[num_done + 1:end + 1] = window_successors[num_done - first:end - first]
                num_done = end
        return predicted

    def _predict_next(self, latents, observations):
        return self.encoder.denormalize(self.offline.predict_next(latents, observations))


def find_received(observations, starts):
    """Determine which observations of trajectories were received, i.e. differ from the ones before them.

    Args:
        observations: (N, S) raw.
        starts: (n,) first row of each trajectory, which is always received.

    Returns:
        (N,) bool.
    """
    received = np.ones(len(observations), bool)
    received[1:] = (observations[1:] != observations[:-1]).any(1)
    received[starts] = True
    return received


class ImputedStates:
    """The states that a `StateEstimator` estimates at all rows of a dataset with dropped observations.

    received: (N,) bool, rows whose observation was not dropped.
    receive_rate: fraction of received rows.
    labelable_rows: (n,) first rows of the transitions whose two observations were received.
    """

    def __init__(self, dataset, estimator):
        self.dataset = dataset
        self.estimator = estimator
        size = dataset.observations.shape[1]
        self.queue = RowQueue(lambda n: np.empty((n, size), np.float32))
        self.refresh()

    @property
    def predicted(self):
        """(N, S) raw predictions of each row from the rows before it."""
        return self.queue.rows

    def refresh(self, num_evicted=0):
        """Add the new trajectories of the dataset; `num_evicted` rows were removed at its front."""
        data = self.dataset
        self.received = find_received(data.observations[:len(data)], data.starts)
        self.receive_rate = self.received.mean() if len(data) else 1.0

        rows = data.transition_rows
        self.labelable_rows = rows[self.received[rows] & self.received[rows + 1]]

        num_known = max(0, len(self.predicted) - num_evicted)
        self.queue.extend(len(data) - num_known, num_evicted)

        borders = zip(data.starts, data.ends, strict=True)
        added = [(start, end) for start, end in borders if start >= num_known]
        for start, end in progress_bar(added, 'dropped observations', leave=False, delay=1):
            self.predicted[start:end + 1] = self.estimator.predict(data.observations[start:end + 1])

    @property
    def observed_pairs(self):
        """Return `labelable_rows`.

        Raises:
            ValueError: there are none.
        """
        if not len(self.labelable_rows):
            count = f'{len(self.dataset.transition_rows):,}'
            raise ValueError(f'none of {count} transitions has both observations to label an action; '
                             'use a smaller P in --observe dropped:P or more steps')
        return self.labelable_rows

    def estimated(self, rows):
        """Return the estimated states (n, S), raw, at some rows (a slice or an int array)."""
        return np.where(self.received[rows, None], self.dataset.observations[rows], self.predicted[rows])

    def drop(self, rows, rng):
        """Drop received observations at random, at the rate of the dataset.

        Args:
            rows: (n,) int, received rows.
            rng: numpy Generator.

        Returns:
            (n, S) raw observations, or predictions where they are dropped.
        """
        is_dropped = rng.random(len(rows)) >= self.receive_rate
        return np.where(is_dropped[:, None], self.predicted[rows], self.dataset.observations[rows])
