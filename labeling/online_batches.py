"""Batches of the online half: steps of the offline data and of the agent, with actions and latents.

    offline data  -> StateStore -> ImitatedSteps -> OnlineBatches.sample -> OnlineBatch -> OnlineAgent.update
    agent's steps -> StateStore -> ImitatedSteps ->
                                -> OnlineBatches.online_steps -> Labeler.fit

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
    actions: torch.Tensor  # (n, A) in [-1, 1], from the labeler, a file or the agent
    z: torch.Tensor  # (n, D)
    state_latents: torch.Tensor  # (n, D) f(s) of policy_states
    rows: torch.Tensor  # (n,) int, in the offline data, -1: own step; for reports of a loss that is not finite

    def first(self, count):
        """Return the OnlineBatch of the first `count` rows."""
        return OnlineBatch(**{name: value[:count] for name, value in vars(self).items()})

    def joined(self, other):
        """Return the OnlineBatch of the rows of both."""
        return OnlineBatch(**{field.name: torch.cat([getattr(self, field.name), getattr(other, field.name)])
                              for field in dataclasses.fields(self)})


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
        caches: whether latents are kept if they fit `CACHE_BYTES`; else they are computed for each batch.
    """

    def __init__(self, dataset, agent, caches=True):
        self.dataset = dataset
        self.agent = agent
        self.caches = caches
        self.device = agent.device
        self.drops = agent.offline.has_dropout
        self.source = ImputedStates(dataset, agent.estimator) if self.drops else ObservedStates(dataset)
        self._fill_caches()

    def refresh(self, num_evicted):
        """Include the trajectories that were added to the dataset.

        Args:
            num_evicted: number of rows that left the front of the dataset.
        """
        self.source.refresh(num_evicted)
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
        """Encode all rows, `ENCODED_ROWS` at a time, if the latents fit `CACHE_BYTES`."""
        count = len(self.dataset)
        latent_dim = self.agent.encoder.d_model
        size = 4 * latent_dim * count
        self.caches_z = self.caches and size <= CACHE_BYTES
        self.caches_state_latents = self.caches_z and not self.drops and 2 * size <= CACHE_BYTES
        if not self.caches_z:
            return

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


class ImitatedSteps:
    """Steps of one StateStore that the policy imitates.

    Args:
        store: StateStore. task: Locomotion or Manipulation.
        pairs: (m,) rows of states that were observed like the next one.
        actions: (N, A) numpy, in [-1, 1], of all rows.

    Attributes:
        rows: (n,) rows of `pairs` in which steps to imitate begin; there may be none.
        labels: (N, A) tensor, the actions.
    """

    def __init__(self, store, task, pairs, actions):
        self.store = store
        self.sampler = task.sampler(store.dataset)
        self.rows = self.sampler.transition_rows(pairs)
        self.labels = torch.from_numpy(actions).to(store.device)
        self.progress_steps = task.progress_steps

    def draw(self, count, rng):
        """Draw an OnlineBatch of `count` steps with the numpy Generator `rng`."""
        store = self.store
        rows = self.rows[rng.integers(len(self.rows), size=count)]

        # rows of z_g, z' and the state that measures progress
        goal_rows = store.dataset.sample_transitions(rows, rng).proposer_goal_rows
        subgoal_rows = self.sampler.subgoal_rows(rows, rng)
        progress_rows = np.minimum(rows + self.progress_steps, store.dataset.end_of[rows])

        # states and latents
        states = store.states(rows)
        policy_states = store.policy_states(rows, rng)
        at = torch.from_numpy(rows).to(store.device)
        return OnlineBatch(
            states=states,
            policy_states=policy_states,
            subgoal_states=store.states(subgoal_rows),
            progress_states=store.states(progress_rows),
            steps_to_subgoal=torch.from_numpy(
                (subgoal_rows - rows).astype(np.float32)).to(store.device),
            goal_states=store.states(goal_rows),
            actions=self.labels[at],
            z=store.z(rows, states),
            state_latents=store.state_latents(rows, policy_states),
            rows=at,
        )


class OnlineBatches:
    """Draw batches of steps to imitate: labeled ones of the offline data, and the agent's own.

    All steps are drawn equally often. Own steps are imitated where the robot must stay at its goal: they show
    small and slow motions near any state that they lead to, which demonstrations of a robot that always moves
    do not contain (hindsight goals, as in GCSL, Ghosh et al. 2021). Other robots imitate the data alone.

    Args:
        agent: OnlineAgent.
        data: TrajectoryDataset of the offline states; its actions, if any, replace labels.
        replay: ReplayBuffer of the agent's episodes.
    """

    def __init__(self, agent, data, replay):
        self.agent = agent
        self.task = agent.task
        self.size = agent.config.batch_size * agent.offline.config.context_length

        # states and latents
        self.offline_store = StateStore(data, agent)
        self.online_store = StateStore(replay, agent, caches=self.task.imitates_own_steps)

        # steps to imitate, and their actions
        self.infers_actions = data.actions is None
        actions = (np.zeros((len(data), agent.action_dim), np.float32) if self.infers_actions
                   else data.actions)
        pairs = self.offline_store.source.observed_pairs
        self.offline_steps = ImitatedSteps(self.offline_store, self.task, pairs, actions)
        if not len(self.offline_steps.rows):  # no object moves in the data
            self.offline_steps.rows = pairs
        self.corrective = None  # CorrectiveTransitions, with --corrective_fraction and labels
        self._gather_own_steps()

    def refresh(self, num_evicted):
        """Include the episodes that were added to the replay.

        Args:
            num_evicted: number of rows that left the front of the replay.
        """
        self.online_store.refresh(num_evicted)
        self._gather_own_steps()

    def _gather_own_steps(self):
        """Make the ImitatedSteps of the replay, without any if the task imitates none."""
        store = self.online_store
        imitates = self.task.imitates_own_steps and len(store.dataset)
        pairs = store.source.observed_pairs if imitates else np.zeros(0, np.int64)
        self.own_steps = ImitatedSteps(store, self.task, pairs, store.dataset.actions)

    @property
    def num_steps(self):
        """Return the number of steps to imitate."""
        return len(self.offline_steps.rows) + len(self.own_steps.rows)

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
        self.offline_steps.labels[torch.from_numpy(rows)] = label_steps(self.offline_store, rows, label)

        # labels of perturbed states; the seed lets a resumed run draw the same ones
        if self.task.corrective_fraction:
            replay = self.online_store.dataset
            rng = np.random.default_rng(len(replay))
            self.corrective = find_corrective_transitions(self.offline_store.dataset, replay,
                                                          self.task.scale, label, rng)

    def sample(self, rng):
        """Draw an OnlineBatch of `size` steps with the numpy Generator `rng`."""
        own_count = rng.binomial(self.size, len(self.own_steps.rows) / self.num_steps)

        # steps of the data, a fraction of them perturbed
        batch = self.offline_steps.draw(self.size - own_count, rng)
        if self.corrective is not None:
            self._perturb(batch, rng)
        if not own_count:
            return batch

        # own steps
        own_batch = self.own_steps.draw(own_count, rng)
        own_batch.rows.fill_(-1)
        return batch.joined(own_batch)

    def _perturb(self, batch, rng):
        """Replace a random fraction of the steps of an OnlineBatch by corrective transitions, in place.

        Perturbations change dimensions of goal weight 0 alone, so that a state keeps its z.
        """
        rows = batch.rows.cpu().numpy()
        valid = self.corrective.valid[rows]
        chosen = np.flatnonzero(valid & (rng.random(len(rows)) < self.task.corrective_fraction))
        batch.states[chosen] = self.corrective.states[rows[chosen]].to(batch.states.device)
        batch.actions[chosen] = self.corrective.actions[rows[chosen]].to(batch.states.device)
        with torch.no_grad():
            batch.state_latents[chosen] = self.agent.encode_policy_states(batch.states[chosen])
        batch.policy_states = batch.states
