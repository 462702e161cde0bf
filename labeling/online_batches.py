"""Batches of the online half: labeled steps of the offline data and their latents.

    offline data ->  StateStore -> OnlineBatches.sample -> OnlineBatch -> OnlineAgent.update
    agent's steps -> StateStore -> OnlineBatches.online_steps -> Labeler.fit

The encoder is frozen online. Latents are computed once if they fit `CACHE_BYTES`, else for each
batch.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from labeling.corrective_data import find_corrective_transitions
from observing.state_estimator import ImputedStates
from support.progress import progress_bar
from trajectories import TensorBatch

CACHE_BYTES = 512 << 20  # latents that would take more are computed for each batch
ENCODED_ROWS = 8192  # rows that are encoded or labeled at a time
PADDED_ROWS = 128  # encoder batches are padded to multiples: oneDNN compiles each new number of rows


@dataclasses.dataclass
class OnlineBatch(TensorBatch):
    """A batch of n steps to imitate, with S state, A action and D latent dimensions."""

    states: torch.Tensor  # (n, S) raw
    policy_states: torch.Tensor  # (n, S) raw, estimated as in acting if observations are dropped
    subgoal_states: torch.Tensor  # (n, S) raw, z': some steps later, or after the next move
    progress_states: torch.Tensor  # (n, S) raw, `progress_steps` later
    steps_to_subgoal: torch.Tensor  # (n,) float, from states to subgoal_states
    goal_states: torch.Tensor  # (n, S) raw, z_g: later in the trajectory, or from anywhere
    actions: torch.Tensor  # (n, A) in [-1, 1], from the labeler or a file
    z: torch.Tensor  # (n, D)
    state_latents: torch.Tensor  # (n, D) f(s) of policy_states
    rows: torch.Tensor  # (n,) int, in the offline data; for reports of a loss that is not finite


class ObservedStates:
    """The states of a dataset whose observations are never dropped."""

    def __init__(self, dataset):
        self.dataset = dataset

    @property
    def observed_pairs(self):
        """Return the rows (n,) of states that were observed like the next one: all transitions."""
        return self.dataset.transition_rows

    def refresh(self, num_evicted=0):
        """Do nothing: trajectories added to the dataset need no estimates."""

    def estimated(self, rows):
        """Return the raw states (..., S) of rows, a slice or an int array (...)."""
        return self.dataset.observations[rows]

    def drop(self, rows, rng):
        """Return the raw states (n, S) of rows (n,) without dropping any."""
        return self.dataset.observations[rows]


class StateStore:
    """States of a trajectory dataset and their latents z and f(s), on the encoder's device.

    Args:
        dataset: TrajectoryDataset or ReplayBuffer.
        agent: OnlineAgent, whose frozen encoder, task and estimator are used.
        caches: whether latents are kept; None: if they fit `CACHE_BYTES`.
    """

    def __init__(self, dataset, agent, caches=None):
        self.dataset = dataset
        self.agent = agent
        self.device = agent.device
        drops = agent.offline.has_dropout
        self.source = ImputedStates(dataset, agent.estimator) if drops else ObservedStates(dataset)

        size = 4 * agent.encoder.d_model * len(dataset)
        self.caches_z = size <= CACHE_BYTES if caches is None else caches
        self.caches_state_latents = self.caches_z and not drops and 2 * size <= CACHE_BYTES
        if self.caches_z:
            self._fill_caches()

    def states(self, rows):
        """Return the raw states (..., S) of rows, a slice or an int array (...).

        Dropped observations are replaced by estimates.
        """
        return torch.from_numpy(self.source.estimated(rows)).to(self.device)

    def policy_states(self, rows, rng):
        """Return the raw states (n, S) of rows (n,), some of them estimated as in acting.

        The numpy Generator `rng` draws which observations are dropped, if any are in the data.
        """
        return torch.from_numpy(self.source.drop(rows, rng)).to(self.device)

    def steps(self, rows):
        """Return raw pairs of states (n, 2, S): those of rows (n,) and of the next rows."""
        return self.states(rows[:, None] + np.arange(2))

    @torch.no_grad()
    def z(self, rows, states):
        """Return the latents z (n, D) of rows (n,) and their raw states (n, S)."""
        return self._z[rows] if self.caches_z else self.agent.encoder.encode_features(states)

    @torch.no_grad()
    def state_latents(self, rows, policy_states):
        """Return f(s) (n, D) of rows (n,) and their raw policy states (n, S)."""
        if self.caches_state_latents:
            return self._state_latents[rows]
        return self.agent.encode_policy_states(policy_states)

    @torch.no_grad()
    def _fill_caches(self):
        """Encode all rows, `ENCODED_ROWS` at a time."""
        count = len(self.dataset)
        latent_dim = self.agent.encoder.d_model
        self._z = torch.empty(count, latent_dim, device=self.device)
        self._state_latents = torch.empty(count if self.caches_state_latents else 0, latent_dim,
                                          device=self.device)

        starts = range(0, count, ENCODED_ROWS)
        for start in progress_bar(starts, 'latents of the data', leave=False, delay=1):
            rows = slice(start, min(start + ENCODED_ROWS, count))
            states = self.states(rows)
            padded = F.pad(states, (0, 0, 0, -len(states) % PADDED_ROWS))
            self._z[rows] = self.agent.encoder.encode_features(padded)[:len(states)]
            if self.caches_state_latents:
                self._state_latents[rows] = self.agent.encode_policy_states(padded)[:len(states)]


def label_steps(store, rows, label):
    """Infer the actions (n, A) of steps of a StateStore, `ENCODED_ROWS` at a time.

    Args:
        store: StateStore. rows: (n,) in which the steps begin.
        label: function from raw pairs of states (m, 2, S) to actions (m, A).
    """
    pieces = np.array_split(rows, -(-len(rows) // ENCODED_ROWS))
    progress = progress_bar(pieces, 'labels of the data', leave=False, delay=1)
    return torch.cat([label(store.steps(some)) for some in progress])


class OnlineBatches:
    """Draw batches of labeled steps of the offline data.

    Args:
        agent: OnlineAgent.
        data: TrajectoryDataset of the offline states; its actions, if any, replace labels.
        replay: ReplayBuffer of the agent's episodes.
    """

    def __init__(self, agent, data, replay):
        # states and latents
        self.agent = agent
        self.task = agent.task
        self.offline_store = StateStore(data, agent)
        self.online_store = StateStore(replay, agent, caches=False)
        self.size = agent.config.batch_size * agent.offline.config.context_length

        # steps to imitate, and their actions
        self.sampler = self.task.sampler(data)
        self.rows = self.sampler.transition_rows(self.offline_store.source.observed_pairs)
        self.infers_actions = data.actions is None
        actions = (np.zeros((len(data), agent.action_dim), np.float32) if self.infers_actions
                   else data.actions)
        self.labels = torch.from_numpy(actions).to(agent.device)
        self.corrective = None  # CorrectiveTransitions, with --corrective_fraction and labels

    def refresh(self, num_evicted):
        """Include the episodes that were added to the replay.

        Args:
            num_evicted: number of rows that left the front of the replay.
        """
        self.online_store.source.refresh(num_evicted)

    def online_steps(self):
        """Return the agent's steps: raw pairs of states (n, 2, S) and their actions (n, A)."""
        rows = self.online_store.source.observed_pairs
        return self.online_store.steps(rows), torch.from_numpy(self.online_store.dataset.actions[rows])

    def label_data(self, label):
        """Infer the actions of the offline data, unless they are given.

        Args:
            label: function from raw pairs of states (n, 2, S) to actions (n, A).
        """
        if not self.infers_actions:
            return

        # labels of the data
        rows = self.offline_store.dataset.transition_rows
        self.labels[torch.from_numpy(rows)] = label_steps(self.offline_store, rows, label)

        # labels of perturbed states; the seed lets a resumed run draw the same ones
        if self.task.corrective_fraction:
            replay = self.online_store.dataset
            rng = np.random.default_rng(len(replay))
            self.corrective = find_corrective_transitions(self.offline_store.dataset, replay,
                                                          self.task.scale, label, rng)

    def sample(self, rng):
        """Draw an OnlineBatch of `size` steps with the numpy Generator `rng`."""
        store = self.offline_store
        rows = self.rows[rng.integers(len(self.rows), size=self.size)]

        # rows of z_g, z' and the state that measures progress
        goal_rows = store.dataset.sample_transitions(rows, rng).proposer_goal_rows
        subgoal_rows = self.sampler.subgoal_rows(rows, rng)
        progress_rows = np.minimum(rows + self.task.progress_steps, store.dataset.end_of[rows])

        # states, labels and latents, a fraction of them perturbed
        states = store.states(rows)
        policy_states = store.policy_states(rows, rng)
        actions = self.labels[torch.from_numpy(rows).to(store.device)]
        latents = store.state_latents(rows, policy_states)
        z = store.z(rows, states)
        if self.corrective is not None:
            self._perturb(rows, states, actions, latents, rng)
            policy_states = states

        return OnlineBatch(
            states=states,
            policy_states=policy_states,
            subgoal_states=store.states(subgoal_rows),
            progress_states=store.states(progress_rows),
            steps_to_subgoal=torch.from_numpy(
                (subgoal_rows - rows).astype(np.float32)).to(store.device),
            goal_states=store.states(goal_rows),
            actions=actions,
            z=z,
            state_latents=latents,
            rows=torch.from_numpy(rows).to(store.device),
        )

    def _perturb(self, rows, states, actions, latents, rng):
        """Replace a random fraction of the steps by corrective transitions, in place.

        Perturbations change dimensions of goal weight 0 alone, so that a state keeps its z.

        Args:
            rows: (n,). states: (n, S) raw. actions: (n, A). latents: (n, D) f(s).
            rng: numpy Generator.
        """
        valid = self.corrective.valid[rows]
        chosen = np.flatnonzero(valid & (rng.random(len(rows)) < self.task.corrective_fraction))
        states[chosen] = self.corrective.states[rows[chosen]].to(states.device)
        actions[chosen] = self.corrective.actions[rows[chosen]].to(states.device)
        with torch.no_grad():
            latents[chosen] = self.agent.encode_policy_states(states[chosen])
