"""Where an online update's batch comes from: transitions of the offline data and of the agent's own episodes, with the
latents that the losses read. The encoder of z is frozen online, so these are computed once and kept where they fit, and
for each batch where they do not.

    offline data  -> LatentStore -\
                                   OnlineBatches.sample -> OnlineBatch -> OnlineAgent.update
    own episodes  -> LatentStore -/
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from labeling.corrective_data import find_corrective_transitions
from observing.state_estimator import ImputedStates
from offline_agent import Latents
from planning.objects import find_moves
from trajectories import RowQueue, TensorBatch

CACHE_BYTES = 512 << 20  # a store that would be larger computes the latents of each batch anew
ROWS_AT_ONCE = 8192


@dataclasses.dataclass
class OnlineBatch(TensorBatch):
    """What one online update learns from: n transitions to imitate. k = transition_steps, D latent dimensions."""

    states: torch.Tensor  # (n, S) raw
    policy_states: torch.Tensor  # (n, S) raw, what acting would see of them: the same, unless readings get lost
    windows: torch.Tensor | None  # (W, L, S) raw, with the past of the states; None without memory
    positions: torch.Tensor | None  # (W, L) int, of the n = W L transitions in their windows; None without memory
    subgoal_states: torch.Tensor  # (n, S) raw, `progress_steps` to k steps on, or after the next move: what z' is
    progress_states: torch.Tensor | None  # (n, S) raw, `progress_steps` steps on; None without progress
    steps_to_subgoal: torch.Tensor | None  # (n,) steps to subgoal_states, where these are after the next move; else None
    goal_states: torch.Tensor  # (n, S) raw, later in the trajectory or from anywhere: what z_g is
    actions: torch.Tensor  # (n, A) in [-1, 1]: the labeler's or a file's, or real ones of own episodes
    is_online: torch.Tensor  # (n,) bool, from the agent's own episodes
    z: torch.Tensor  # (n, D)
    full: torch.Tensor | None  # (n, D) f(s) as acting computes it; None where it is not kept for the offline data

    # what Q, V and the proposer learn from, see trajectories.Transitions; None while they rest
    latents: Latents | None
    rewards: torch.Tensor | None  # (n,)
    discounts: torch.Tensor | None  # (n,)
    proposer_near: torch.Tensor | None  # (n,) bool

    # where the samples lie, for the report of a loss that is not finite
    rows: torch.Tensor  # (n,) int, in the data that `is_online` says

    @property
    def shows_progress(self):
        """Is there something to weigh imitation by?"""
        return self.progress_states is not None or self.steps_to_subgoal is not None


class LatentStore:
    """The states of a trajectory dataset and the latents z and f(s) of all its rows, as acting would see and compute
    them.

    encoder: Encoder, frozen. cached: whether latents are kept; None decides by `CACHE_BYTES`. things_scale (S,): what
    makes places of states where there are things (planning/things.py), else None. estimator: EncoderEstimator, where readings get lost
    (observing/imputed.py), else None. encode_state: function, raw states (n, S) -> f(s) (n, D), where a state tells it; it is kept
    as well if both fit.
    """

    def __init__(self, dataset, encoder, cached=None, things_scale=None, estimator=None, encode_state=None):
        self.dataset = dataset
        self.imputed = ImputedStates(dataset, estimator) if estimator else None
        self.encoder = encoder
        self.device = encoder.mean.device
        self.things_scale = things_scale
        self.next_rest = None  # (N,) int, the row after the next move, -1: there is none; None without things
        self._find_moves()

        size = 4 * encoder.d_model * len(dataset)
        self.cached = size <= CACHE_BYTES if cached is None else cached
        self.encode_state = encode_state
        self.keeps_state_latents = encode_state is not None and self.cached and 2 * size <= CACHE_BYTES
        self.queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        self.state_latent_queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        if self.cached:
            self.refresh()

    @property
    def z(self):
        """(N, D) latents of all rows."""
        return self.queue.rows

    @torch.no_grad()
    def read(self, rows):
        """rows (n,) int array -> z (n, D)."""
        if not self.cached:
            return self.encoder.encode_features(self.states(rows))
        return self.z[rows]

    @torch.no_grad()
    def read_state_latents(self, rows):
        """rows (n,) int array -> f(s) (n, D), None where a state does not tell it."""
        if self.keeps_state_latents:
            return self.state_latent_queue.rows[rows]
        return self.encode_state(self.states(rows)) if self.encode_state else None

    def states(self, rows):
        """Raw states (..., S) of some rows (a slice or an int array), estimated ones where readings got lost."""
        states = self.imputed.estimated(rows) if self.imputed else self.dataset.observations[rows]
        return torch.from_numpy(states).to(self.device)

    def policy_states(self, rows, rng):
        """What acting would see at the rows (n,) of a batch, raw (n, S): of some the reading is lost, if readings get
        lost."""
        if not self.imputed:
            return self.states(rows)
        return torch.from_numpy(self.imputed.lose(rows, rng)).to(self.device)

    def steps(self, rows):
        """Raw states (n, 2, S): those in `rows` (n,), and the ones after them."""
        return self.states(rows[:, None] + np.arange(2))

    @torch.no_grad()
    def refresh(self, dropped=0):
        """Encode the rows added since the last call (`dropped` rows went at the front in the meantime)."""
        if self.imputed:
            self.imputed.refresh(dropped)
        self._find_moves()
        if not self.cached:
            return

        known = max(0, len(self.z) - dropped)
        self.queue.extend(len(self.dataset) - known, dropped)
        if self.keeps_state_latents:
            self.state_latent_queue.extend(len(self.dataset) - known, dropped)

        starts = [(i, piece.stop) for piece in self._pieces(known)
                  for i in range(piece.start, piece.stop, ROWS_AT_ONCE)]
        for i, stop in tqdm(starts, 'latents of the data', leave=False, dynamic_ncols=True, delay=1):
            self._encode_rows(slice(i, min(i + ROWS_AT_ONCE, stop)))

    def _find_moves(self):
        data = self.dataset
        if self.things_scale is not None:
            self.next_rest = find_moves(data.observations, data.starts, data.ends, self.things_scale).next_rest
            steps = self.imputed.told if self.imputed else np.arange(len(data))
            self._leading = steps[self.next_rest[steps] >= 0]

    @property
    def transition_rows(self):
        """Rows (n,) at which transitions begin: those with a next state; where there are things, those that lead to a
        move; where readings get lost, those at which an action can be told."""
        if self.next_rest is None or not len(self._leading):
            return self.observed_pairs
        return self._leading

    @property
    def observed_pairs(self):
        """Rows (n,) at which steps begin whose two readings received: all steps, unless readings get lost."""
        return self.imputed.observed_pairs if self.imputed else self.dataset.transition_rows

    def _pieces(self, known):
        """The rows from `known` on, as slices. Of a dataset that grows, episodes are encoded one by one: the last bits
        of a product depend on the size of the matrix, and a resumed run must get the latents of the run before it."""
        data = self.dataset
        if not hasattr(data, 'add'):
            return [slice(known, len(data))]
        return [slice(start, end + 1) for start, end in zip(data.starts, data.ends, strict=True) if start >= known]

    def _encode_rows(self, rows):
        states = self.states(rows)
        padding = -len(states) % 128  # few different sizes: see `OnlineBatches.sample`
        padded = F.pad(states, (0, 0, 0, padding))
        self.z[rows] = self.encoder.encode_features(padded)[:len(states)]
        if self.keeps_state_latents:
            self.state_latent_queue.rows[rows] = self.encode_state(padded)[:len(states)]


def label_rows(store, rows, label):
    """-> (n, A) what `label`, a function of raw pairs of states (m, 2, S), infers of the steps of a LatentStore that
    begin in `rows` (n,); piece by piece, since the data may be large."""
    pieces = np.array_split(rows, -(-len(rows) // ROWS_AT_ONCE))
    progress = tqdm(pieces, 'labels of the data', leave=False, dynamic_ncols=True, delay=1)
    return torch.cat([label(store.steps(some)) for some in progress])


class OnlineBatches:
    """Draws batches of `size` transitions from the offline data and the agent's own episodes.

    online_share: of the transitions, from own episodes. progress_steps: how far on the states lie by which progress is
    measured; 0: it is not. window: the datasets' context_length, to take all transitions of windows, so that one can
    remember; 0: transitions are drawn one by one. corrective_fraction: of the offline transitions, where no thing moves, so
    many begin in a state beside the data (labeling/corrective.py). embed: function z (n, D) -> e (M, n, E), V's target
    embedding, where Q, V and the proposer learn on; None while they rest.
    """

    def __init__(self, offline_store, online_store, size, action_dim, online_share=0.0, progress_steps=0,
                 window=0, corrective_fraction=0.0, embed=None):
        self.offline_store = offline_store
        self.online_store = online_store
        self.size = size
        self.action_dim = action_dim
        self.online_share = online_share
        self.progress_steps = progress_steps
        self.window = window
        self.corrective_fraction = corrective_fraction
        self.corrective = None
        self.embed = embed
        self.labels = torch.zeros(len(offline_store.dataset), action_dim, device=offline_store.device)

    def own_steps(self):
        """-> (raw pairs of states (n, 2, S), actions (n, A) between them) of the agent's own episodes."""
        rows = self.online_store.observed_pairs
        return self.online_store.steps(rows), torch.from_numpy(self.online_store.dataset.actions[rows])

    def label_data(self, label):
        """Infer the actions of the offline data; `label`: function, raw pairs of states (n, 2, S) -> (n, A)."""
        if self.offline_store.dataset.actions is not None:
            return

        rows = self.offline_store.dataset.transition_rows
        self.labels[torch.from_numpy(rows)] = label_rows(self.offline_store, rows, label)
        if self.corrective_fraction:
            own = self.online_store.dataset
            rng = np.random.default_rng(len(own))  # the same for a run that is resumed
            self.corrective = find_corrective_transitions(self.offline_store.dataset, own, self.offline_store.things_scale, label,
                                              rng)

    def refresh(self, dropped):
        """Take in the episodes that were added to the replay; `dropped` rows went at its front."""
        self.online_store.refresh(dropped)

    def sample(self, rng):
        """-> OnlineBatch; draws from the numpy Generator `rng`."""
        unit = self.window or 1
        n_online = round(self.online_share * self.size / unit) * unit
        parts = [self._transitions(self.offline_store, self.size - n_online, rng)]
        if n_online:
            parts.append(self._transitions(self.online_store, n_online, rng))

        fields = {}
        for name, first in parts[0].items():
            fields[name] = None if first is None else torch.cat([part[name] for part in parts])
        latents = self._latents(fields.pop('z_next'), fields.pop('z_goal'), fields.pop('proposer_goal'), fields['z'])

        return OnlineBatch(**fields, latents=latents)

    @torch.no_grad()
    def _latents(self, z_next, z_goal, proposer_goal, z):
        if self.embed is None:
            return None
        return Latents(
            z=z,
            z_next=z_next,
            z_goal=z_goal,
            target_z=z,  # the encoder rests: it is its own target
            proposer_goal=proposer_goal,
            e_z=self.embed(z),
            e_z_next=self.embed(z_next),
            e_z_goal=self.embed(z_goal),
            e_proposer_goal=self.embed(proposer_goal),
        )

    def _transitions(self, store, n, rng):
        """n transitions of one store -> {field of OnlineBatch, or latent: tensor (n, ...) or None}."""
        data = store.dataset
        if self.window:
            first, end = data.draw_windows(n // self.window, rng)
            offsets = np.arange(self.window)
            window_rows = np.minimum(first + offsets, end)
            positions = np.minimum(offsets, end - first - 1)  # the last step again where a trajectory is shorter
            rows = (first + positions).ravel()
        else:
            rows = store.transition_rows[rng.integers(len(store.transition_rows), size=n)]
        transitions = data.sample_transitions(rows, rng)

        ahead = self._rows_ahead(store, rows, rng)
        soon = np.minimum(rows + self.progress_steps, data.end_of[rows])
        to_move = store.next_rest is not None  # progress is the time that a move takes

        def tensor(array):
            return torch.from_numpy(array).to(store.device)

        states = store.states(rows)
        policy_states = store.policy_states(rows, rng)
        actions = self.labels[tensor(rows)] if data.actions is None else tensor(data.actions[rows])
        full = store.read_state_latents(rows) if self.offline_store.keeps_state_latents else None
        if self.corrective is not None and store is self.offline_store:
            self._perturb(rows, states, actions, full, rng)
            policy_states = states

        learns = self.embed is not None
        return {
            'states': states,
            'policy_states': policy_states,
            'windows': store.states(window_rows) if self.window else None,
            'positions': tensor(positions) if self.window else None,
            'subgoal_states': store.states(ahead),
            'progress_states': store.states(soon) if self.progress_steps and not to_move else None,
            'steps_to_subgoal': tensor((ahead - rows).astype(np.float32)) if self.progress_steps and to_move else None,
            'goal_states': store.states(transitions.proposer_goal_rows),
            'actions': actions,
            'is_online': tensor(np.full(n, store is self.online_store)),
            'z': store.read(rows),
            'full': full,
            'z_next': store.read(transitions.next_rows) if learns else None,
            'z_goal': store.read(transitions.goal_rows) if learns else None,
            'proposer_goal': store.read(transitions.proposer_goal_rows) if learns else None,
            'rewards': tensor(transitions.rewards) if learns else None,
            'discounts': tensor(transitions.discounts) if learns else None,
            'proposer_near': tensor(transitions.proposer_near) if learns else None,
            'rows': tensor(rows),
        }

    def _perturb(self, rows, states, actions, full, rng):
        """Let a share of the offline transitions in rows (n,) begin beside the data: changes states (n, S), actions
        (n, A) and full (n, D), if that is not None."""
        store = self.offline_store
        strayed = np.flatnonzero(self.corrective.known[rows] & (rng.random(len(rows)) < self.corrective_fraction))
        states[strayed] = self.corrective.states[rows[strayed]].to(store.device)
        actions[strayed] = self.corrective.actions[rows[strayed]].to(store.device)
        if full is not None:
            full[strayed] = store.encode_state(states[strayed])

    def _rows_ahead(self, store, rows, rng):
        """rows (n,) -> rows (n,) of the states that z' is: after the next move, or `progress_steps` to k steps on."""
        data = store.dataset
        if store.next_rest is not None:
            return np.where(store.next_rest[rows] >= 0, store.next_rest[rows], data.end_of[rows])

        nearest = min(max(1, self.progress_steps), data.transition_steps)
        steps = rng.integers(nearest, data.transition_steps + 1, size=len(rows))
        return np.minimum(rows + steps, data.end_of[rows])
