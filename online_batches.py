"""Where an online update's batch comes from: transitions of the offline data and of the agent's own episodes, with the
latents and embeddings that the losses read. The encoder is frozen online, so these are computed once and kept where
they fit, and for each batch where they do not.

    offline data  -> LatentStore -\
                                   OnlineBatches.sample -> OnlineBatch -> OnlineAgent.update
    own episodes  -> LatentStore -/
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils import RowQueue, TensorBatch

CACHE_BYTES = 512 << 20  # a store that would be larger computes the latents of each batch anew: 1.8 times the time
ROWS_AT_ONCE = 8192


@dataclasses.dataclass
class OnlineBatch(TensorBatch):
    """What one online update learns from. n transitions for the imitation of the data, with D latent dimensions, M
    members of V's ensemble and E dimensions of an embedding; and n one-step transitions for the labeler."""

    # transitions, k = transition_steps
    states: torch.Tensor  # (n, S) raw
    next_states: torch.Tensor  # (n, S) raw, one step later
    actions: torch.Tensor  # (n, A) in [-1, 1]; zero in rows of the offline data
    is_online: torch.Tensor  # (n,) bool, from the agent's own episodes, whose actions are real
    rewards: torch.Tensor  # (n,) see trajectories.Transitions; so are the next two
    discounts: torch.Tensor  # (n,)
    proposer_near: torch.Tensor  # (n,) bool
    use_proposal: torch.Tensor  # (n,) bool, the inverse dynamics see the proposer's z' here, not the one reached

    # latents
    z: torch.Tensor  # (n, D)
    proposer_goal: torch.Tensor  # (n, D)
    z_next: torch.Tensor | None  # (n, D) k steps on; only where Q and V learn on, as z_goal and e_goal are
    z_goal: torch.Tensor | None  # (n, D)

    # embeddings of latents by V's target network
    e_z: torch.Tensor  # (M, n, E)
    e_z_next: torch.Tensor  # (M, n, E)
    e_z_ahead: torch.Tensor  # (M, n, E) 1 to k steps on, or the proposer's goal where that is nearer
    e_z_soon: torch.Tensor | None  # (M, n, E) `progress_steps` steps on
    e_proposer_goal: torch.Tensor  # (M, n, E)
    e_z_goal: torch.Tensor | None  # (M, n, E)

    # the agent's own steps, for the labeler
    online_states: torch.Tensor  # (n, S) raw
    online_next_states: torch.Tensor  # (n, S) raw
    online_actions: torch.Tensor  # (n, A) in [-1, 1]
    dropout_seed: int  # of the labeler's dropout, so that a batch decides its loss

    # where the samples lie, for the report of a loss that is not finite
    rows: torch.Tensor  # (n,) int, in the data that `is_online` says
    online_rows: torch.Tensor  # (n,) int

    def __getitem__(self, rows):
        raise TypeError('an OnlineBatch is used whole')


class LatentStore:
    """The latents of all rows of a trajectory dataset and V's embeddings of them, as acting would compute them.

    encoder: MambaEncoder, frozen. embed: function z (n, D) -> e (M, n, E). history: latents remember the trajectory,
    as with `--head_memory history`; a row then has another latent as a goal, which is seen without its past.
    embeddings_rest: V does not learn on, so that embeddings are worth keeping. cached: whether latents are kept; None
    decides by `CACHE_BYTES`. Latents that remember are kept in any case: each would cost a whole window.
    """

    def __init__(self, dataset, encoder, embed, history=False, embeddings_rest=True, cached=None):
        self.dataset = dataset
        self.encoder = encoder
        self.embed = embed
        self.history = history
        self.device = encoder.mean.device

        example = embed(encoder.encode_slow(encoder.mean[None]))  # (M, 1, E)
        members, _, size = example.shape
        row_bytes = 4 * (encoder.d_model + members * size)
        self.cached = history or (len(dataset) * row_bytes <= CACHE_BYTES if cached is None else cached)
        self.keeps_embeddings = self.cached and embeddings_rest and not history

        self.z_queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        self.goal_queue = RowQueue(lambda n: torch.empty(n, encoder.d_model, device=self.device))
        self.e_queue = RowQueue(lambda n: torch.empty(n, members, size, device=self.device))
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
        """rows (n,) int array -> (z (n, D), e (M, n, E)). `as_goals`: bool, or bool (n,), which of them are goals."""
        if not self.cached:
            z = self.encoder.encode_slow(self.states(rows))
            return z, self.embed(z)

        z = self.z[rows]
        if self.history:
            goals = torch.as_tensor(np.broadcast_to(as_goals, rows.shape).copy(), device=self.device)
            z = torch.where(goals.unsqueeze(-1), self.z_goal[rows], z)
        if self.keeps_embeddings:
            return z, self.e_queue.rows[rows].movedim(1, 0)
        return z, self.embed(z)

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
        if self.keeps_embeddings:
            self.e_queue.extend(new, dropped)

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
        if self.keeps_embeddings:
            self.e_queue.rows[rows] = self.embed(z).movedim(0, 1)[:len(states)]

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
    proposal_share: of the transitions, with the proposer's z'. progress_steps: 0, or how far on e_z_soon lies.
    with_values: Q and V learn on, so that z_next, z_goal and e_z_goal are needed.
    """

    def __init__(self, offline_store, online_store, size, action_dim, online_share=0.0, proposal_share=0.5,
                 progress_steps=0, with_values=False):
        self.offline_store = offline_store
        self.online_store = online_store
        self.size = size
        self.action_dim = action_dim
        self.online_share = online_share
        self.proposal_share = proposal_share
        self.progress_steps = progress_steps
        self.with_values = with_values

    def refresh(self, dropped):
        """Take in the episodes that were added to the replay; `dropped` rows went at its front."""
        self.online_store.refresh(dropped)

    def sample(self, rng):
        """-> OnlineBatch; draws from the numpy Generator `rng`."""
        n_online = round(self.online_share * self.size)
        parts = [self._transitions(self.offline_store, self.size - n_online, rng)]
        if n_online:
            parts.append(self._transitions(self.online_store, n_online, rng))
        fields = {name: self._join(name, [part[name] for part in parts]) for name in parts[0]}

        # always as many: oneDNN would compile each new number of rows anew, and keep it in memory
        use_proposal = rng.permutation(self.size) < round(self.proposal_share * self.size)
        dropout_seed = int(rng.integers(2**62))

        store = self.online_store
        origins = store.dataset.origins
        online_rows = origins[rng.integers(len(origins), size=self.size)]
        return OnlineBatch(
            **fields,
            use_proposal=torch.from_numpy(use_proposal).to(store.device),
            online_states=store.states(online_rows),
            online_next_states=store.states(online_rows + 1),
            online_actions=torch.from_numpy(store.dataset.actions[online_rows]).to(store.device),
            dropout_seed=dropout_seed,
            online_rows=torch.from_numpy(online_rows),
        )

    @staticmethod
    def _join(name, parts):
        if parts[0] is None:
            return None
        return torch.cat(parts, dim=1 if name.startswith('e_') else 0)

    def _transitions(self, store, n, rng):
        """n transitions of one store -> the fields of OnlineBatch that are about them."""
        data = store.dataset
        rows = data.origins[rng.integers(len(data.origins), size=n)]
        transitions = data.sample_transitions(rows, rng)

        ahead = np.minimum(rows + rng.integers(1, data.transition_steps + 1, size=n), data.end_of[rows])
        goal_first = transitions.proposer_near & (transitions.proposer_goal_rows <= ahead)
        ahead = np.where(goal_first, transitions.proposer_goal_rows, ahead)

        z, e_z = store.read(rows)
        z_next, e_z_next = store.read(transitions.next_rows)
        _, e_z_ahead = store.read(ahead, goal_first)
        proposer_goal, e_proposer_goal = store.read(transitions.proposer_goal_rows, True)

        e_z_soon = None
        if self.progress_steps:
            _, e_z_soon = store.read(np.minimum(rows + self.progress_steps, data.end_of[rows]))

        z_goal = e_z_goal = None
        if self.with_values:
            z_goal, e_z_goal = store.read(transitions.goal_rows, True)

        is_online = hasattr(data, 'actions')
        actions = data.actions[rows] if is_online else np.zeros((n, self.action_dim), np.float32)

        def tensor(array):
            return torch.from_numpy(array).to(store.device)

        return {
            'states': store.states(rows),
            'next_states': store.states(rows + 1),
            'actions': tensor(actions),
            'is_online': tensor(np.full(n, is_online)),
            'rewards': tensor(transitions.rewards),
            'discounts': tensor(transitions.discounts),
            'proposer_near': tensor(transitions.proposer_near),
            'z': z,
            'proposer_goal': proposer_goal,
            'z_next': z_next if self.with_values else None,
            'z_goal': z_goal,
            'e_z': e_z,
            'e_z_next': e_z_next,
            'e_z_ahead': e_z_ahead,
            'e_z_soon': e_z_soon,
            'e_proposer_goal': e_proposer_goal,
            'e_z_goal': e_z_goal,
            'rows': tensor(rows),
        }
