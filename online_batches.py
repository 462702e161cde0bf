"""Where an online update's batch comes from: transitions of the offline data and of the agent's own episodes, with the
latents that the losses read. The encoder is frozen online, so these are computed once and kept where they fit, and for
each batch where they do not.

    offline data  -> LatentStore -\
                                   OnlineBatches.sample -> OnlineBatch -> OnlineAgent.update
    own episodes  -> LatentStore -/
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from offline_agent import Latents
from utils import RowQueue, TensorBatch

CACHE_BYTES = 512 << 20  # a store that would be larger computes the latents of each batch anew
ROWS_AT_ONCE = 8192


@dataclasses.dataclass
class OnlineBatch(TensorBatch):
    """What one online update learns from: n transitions for the imitation of the data, and n one-step transitions for
    the labeler. k = transition_steps, D latent dimensions."""

    states: torch.Tensor  # (n, S) raw
    next_states: torch.Tensor  # (n, S) raw, one step later
    states_ahead: torch.Tensor  # (n, S) raw, `progress_steps` to k steps on: what z' is
    states_soon: torch.Tensor | None  # (n, S) raw, `progress_steps` steps on; None without progress
    goal_states: torch.Tensor  # (n, S) raw, later in the trajectory or from anywhere: what z_g is
    actions: torch.Tensor  # (n, A) in [-1, 1]; zero in rows of the offline data
    is_online: torch.Tensor  # (n,) bool, from the agent's own episodes, whose actions are real
    z: torch.Tensor  # (n, D)

    # the agent's own steps, for the labeler
    online_states: torch.Tensor  # (n, S) raw
    online_next_states: torch.Tensor  # (n, S) raw
    online_actions: torch.Tensor  # (n, A) in [-1, 1]
    dropout_seed: int  # of the labeler's dropout, so that a batch decides its loss

    # what Q, V and the proposer learn from, see trajectories.Transitions; None while they rest
    latents: Latents | None
    rewards: torch.Tensor | None  # (n,)
    discounts: torch.Tensor | None  # (n,)
    proposer_near: torch.Tensor | None  # (n,) bool

    # where the samples lie, for the report of a loss that is not finite
    rows: torch.Tensor  # (n,) int, in the data that `is_online` says
    online_rows: torch.Tensor  # (n,) int

    def __getitem__(self, rows):
        raise TypeError('an OnlineBatch is used whole')


class LatentStore:
    """The latents of all rows of a trajectory dataset, as acting would compute them.

    encoder: MambaEncoder, frozen. history: latents remember the trajectory, as with `--head_memory history`; a row then
    has another latent as a goal, which is seen without its past. cached: whether latents are kept; None decides by
    `CACHE_BYTES`. Latents that remember are kept in any case: each would cost a whole window.
    """

    def __init__(self, dataset, encoder, history=False, cached=None):
        self.dataset = dataset
        self.encoder = encoder
        self.history = history
        self.device = encoder.mean.device

        fits = 4 * encoder.d_model * len(dataset) <= CACHE_BYTES
        self.cached = history or (fits if cached is None else cached)
        self.z_queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        self.goal_queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        if self.cached:
            self.refresh()

    @property
    def z(self):
        """(N, D) latents of all rows, as acting computes them."""
        return self.z_queue.rows

    @property
    def z_goal(self):
        """(N, D) latents of all rows as goals."""
        return self.goal_queue.rows if self.history else self.z

    @torch.no_grad()
    def read(self, rows, as_goals=False):
        """rows (n,) int array -> z (n, D). `as_goals`: are they read as goals?"""
        if not self.cached:
            return self.encoder.encode_slow(self.states(rows))
        return (self.z_goal if as_goals else self.z)[rows]

    def states(self, rows):
        """Raw states (n, S) of some rows (a slice or an int array)."""
        return torch.from_numpy(self.dataset.observations[rows]).to(self.device)

    @torch.no_grad()
    def refresh(self, dropped=0):
        """Encode the rows added since the last call (`dropped` rows went at the front in the meantime)."""
        if not self.cached:
            return

        known = max(0, len(self.z) - dropped)
        new = len(self.dataset) - known
        self.z_queue.extend(new, dropped)
        if self.history:
            self.goal_queue.extend(new, dropped)

        pieces = self._pieces(known)
        starts = [(i, piece.stop) for piece in pieces for i in range(piece.start, piece.stop, ROWS_AT_ONCE)]
        for i, stop in tqdm(starts, 'latents of the data', leave=False, dynamic_ncols=True, delay=1):
            self._encode_rows(slice(i, min(i + ROWS_AT_ONCE, stop)))

        if self.history:
            for piece in pieces:
                self._encode_windows(piece, max(1, ROWS_AT_ONCE // self.encoder.context_length))

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
        z = self.encoder.encode_slow(F.pad(states, (0, 0, 0, padding)))

        self.z_goal[rows] = z[:len(states)]

    def _encode_windows(self, piece, windows_at_once):
        """z of the trajectories in the slice `piece`. Windows start where the two streams of `MambaEncoder.step`
        restart, and give the rows for which that stream is the older one."""
        data = self.dataset
        c = self.encoder.context_length
        half = c // 2

        begins = [np.zeros(0, np.int64)]
        skips = [np.zeros(0, np.int64)]
        inside = slice(*np.searchsorted(data.starts, (piece.start, piece.stop)))
        for start, end in zip(data.starts[inside], data.ends[inside], strict=True):
            number = np.arange(2 * -(-(end - start + 1) // c) + 1)
            begin = start + number // 2 * c + number % 2 * half
            skip = np.where(number % 2, c - half, half) * (number > 0)
            used = begin + skip <= end
            begins.append(begin[used])
            skips.append(skip[used])
        begins = np.concatenate(begins)
        skips = np.concatenate(skips)

        for i in tqdm(range(0, len(begins), windows_at_once), 'latents of the data', leave=False, dynamic_ncols=True,
                      delay=1):
            rows = begins[i:i + windows_at_once, None] + np.arange(c)
            end = data.end_of[rows[:, :1]]
            keep = (rows <= end) & (np.arange(c) >= skips[i:i + windows_at_once, None])

            z = self.encoder(self.states(np.minimum(rows, end)))
            self.z[torch.from_numpy(rows[keep]).to(self.device)] = z[torch.from_numpy(keep).to(self.device)]


class OnlineBatches:
    """Draws batches of `size` transitions from the offline data and the agent's own episodes.

    online_share: of the transitions, from own episodes; the labeler learns from these alone, whatever the share.
    progress_steps: how far on the states lie by which progress is measured; 0: it is not. embed: function z (n, D) ->
    e (M, n, E), V's target embedding, where Q, V and the proposer learn on; None while they rest.
    """

    def __init__(self, offline_store, online_store, size, action_dim, online_share=0.0, progress_steps=0, embed=None):
        self.offline_store = offline_store
        self.online_store = online_store
        self.size = size
        self.action_dim = action_dim
        self.online_share = online_share
        self.progress_steps = progress_steps
        self.embed = embed

    def refresh(self, dropped):
        """Take in the episodes that were added to the replay; `dropped` rows went at its front."""
        self.online_store.refresh(dropped)

    def sample(self, rng):
        """-> OnlineBatch; draws from the numpy Generator `rng`."""
        n_online = round(self.online_share * self.size)
        parts = [self._transitions(self.offline_store, self.size - n_online, rng)]
        if n_online:
            parts.append(self._transitions(self.online_store, n_online, rng))

        fields = {}
        for name, first in parts[0].items():
            fields[name] = None if first is None else torch.cat([part[name] for part in parts])
        latents = self._latents(fields.pop('z_next'), fields.pop('z_goal'), fields.pop('proposer_goal'), fields['z'])

        dropout_seed = int(rng.integers(2**62))
        store = self.online_store
        origins = store.dataset.origins
        online_rows = origins[rng.integers(len(origins), size=self.size)]
        return OnlineBatch(
            **fields,
            latents=latents,
            online_states=store.states(online_rows),
            online_next_states=store.states(online_rows + 1),
            online_actions=torch.from_numpy(store.dataset.actions[online_rows]).to(store.device),
            dropout_seed=dropout_seed,
            online_rows=torch.from_numpy(online_rows),
        )

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
        rows = data.origins[rng.integers(len(data.origins), size=n)]
        transitions = data.sample_transitions(rows, rng)

        nearest = min(max(1, self.progress_steps), data.transition_steps)
        steps_ahead = rng.integers(nearest, data.transition_steps + 1, size=n)
        ahead = np.minimum(rows + steps_ahead, data.end_of[rows])
        soon = np.minimum(rows + self.progress_steps, data.end_of[rows])

        is_online = hasattr(data, 'actions')
        actions = data.actions[rows] if is_online else np.zeros((n, self.action_dim), np.float32)

        def tensor(array):
            return torch.from_numpy(array).to(store.device)

        learns = self.embed is not None
        return {
            'states': store.states(rows),
            'next_states': store.states(rows + 1),
            'states_ahead': store.states(ahead),
            'states_soon': store.states(soon) if self.progress_steps else None,
            'goal_states': store.states(transitions.proposer_goal_rows),
            'actions': tensor(actions),
            'is_online': tensor(np.full(n, is_online)),
            'z': store.read(rows),
            'z_next': store.read(transitions.next_rows) if learns else None,
            'z_goal': store.read(transitions.goal_rows, as_goals=True) if learns else None,
            'proposer_goal': store.read(transitions.proposer_goal_rows, as_goals=True) if learns else None,
            'rewards': tensor(transitions.rewards) if learns else None,
            'discounts': tensor(transitions.discounts) if learns else None,
            'proposer_near': tensor(transitions.proposer_near) if learns else None,
            'rows': tensor(rows),
        }
