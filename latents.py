"""Latents of trajectories, computed once: the encoder is frozen online, so an update reads them from here."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils import RowQueue


class LatentStore:
    """A trajectory dataset with the latents of all its rows: z (N, D), with the same memory as acting has, and
    z_goal (N, D), each row encoded as a goal; one and the same where acting has no memory. Where V stays as it is,
    e (N, n_ensemble, E) holds its embeddings of them as well."""

    def __init__(self, dataset, agent):
        self.dataset, self.encoder, self.action_dim = dataset, agent.encoder, agent.action_dim
        self.history, self.own = agent.offline.config.head_memory == 'history', hasattr(dataset, 'actions')
        self.device, self.progress_steps = agent.device, agent.config.progress_steps
        width = agent.offline.config.d_model
        self.queues = [RowQueue(lambda n: torch.empty(n, width, device=self.device)) for _ in range(1 + self.history)]
        self.value = None
        if not agent.config.value_interval and not self.history:
            self.value = agent.offline.targets['value']
            shape = len(self.value.goal), agent.offline.embedding_dim // len(self.value.goal)
            self.e_queue = RowQueue(lambda n: torch.empty(n, *shape, device=self.device))
        self.refresh()

    @torch.no_grad()
    def refresh(self, dropped=0, rows_at_once=8192):
        """Encode the rows added since the last call (`dropped` rows went at the front in the meantime)."""
        known = max(0, len(self.queues[0].rows) - dropped)
        for queue in self.queues:
            queue.extend(len(self.dataset) - known, dropped)
        self.z, self.z_goal = (queue.rows for queue in (self.queues[-1], self.queues[0]))
        if self.value:
            self.e_queue.extend(len(self.dataset) - known, dropped)
        starts = [(i, piece.stop) for piece in self._pieces(known)
                  for i in range(piece.start, piece.stop, rows_at_once)]
        for i, stop in tqdm(starts, 'latents of the data', leave=False, dynamic_ncols=True, delay=1):
            rows = slice(i, min(i + rows_at_once, stop))
            states = self._states(rows)
            padding = -len(states) % 128  # few different sizes: see `OnlineAgent.sample`
            z = self.encoder.encode_goal(F.pad(states, (0, 0, 0, padding)))
            self.z_goal[rows] = z[:len(states)]
            if self.value:
                self.e_queue.rows[rows] = self.value.embed(z).movedim(0, 1)[:len(states)]
        if self.history:
            for piece in self._pieces(known):
                self._encode_windows(piece, max(1, rows_at_once // self.encoder.context_length))

    def _pieces(self, known):
        """The rows from `known` on, as slices. Own episodes are encoded one by one: the last bits of a product depend
        on the size of the matrix, and a resumed run must get the latents of the run before it."""
        data = self.dataset
        if not self.own:
            return [slice(known, len(data))]
        return [slice(start, end + 1) for start, end in zip(data.starts, data.ends, strict=True) if start >= known]

    def _states(self, rows):
        return torch.from_numpy(self.dataset.observations[rows]).to(self.device)

    def _encode_windows(self, piece, windows_at_once):
        """z of the trajectories in the slice `piece`. Windows start where the two streams of `MambaEncoder.step`
        restart, and give the rows for which that stream is the older one."""
        data, c, half = self.dataset, self.encoder.context_length, self.encoder.context_length // 2
        begins, skips = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        inside = slice(*np.searchsorted(data.starts, (piece.start, piece.stop)))
        for start, end in zip(data.starts[inside], data.ends[inside], strict=True):
            number = np.arange(2 * -(-(end - start + 1) // c) + 1)
            begin = start + number // 2 * c + number % 2 * half
            skip = np.where(number % 2, c - half, half) * (number > 0)
            used = begin + skip <= end
            begins.append(begin[used])
            skips.append(skip[used])
        begins, skips = np.concatenate(begins), np.concatenate(skips)
        for i in tqdm(range(0, len(begins), windows_at_once), 'latents of the data', leave=False, dynamic_ncols=True,
                      delay=1):
            rows = begins[i:i + windows_at_once, None] + np.arange(c)
            end = data.end_of[rows[:, :1]]
            keep = (rows <= end) & (np.arange(c) >= skips[i:i + windows_at_once, None])
            z = self.encoder(self._states(np.minimum(rows, end)))
            self.z[torch.from_numpy(rows[keep]).to(self.device)] = z[torch.from_numpy(keep).to(self.device)]

    def sample(self, n, rng):
        """n transitions: latents (n, D) z, z_next (k steps on), z_goal, proposer_goal, z_ahead (1 to k steps on, or the
        goal where that is nearer) and, with `progress_steps`, z_soon (so many steps on); states and next_states (n, S),
        one step apart; the numbers of `sample_transitions`, rows and own (n,), and actions (n, A), zero where there
        are none; where V stays as it is, e_z, e_z_next, e_z_ahead, e_z_soon and e_proposer_goal (n, n_ensemble, E)."""
        data = self.dataset
        rows = data.origins[rng.integers(len(data.origins), size=n)]
        batch = data.sample_transitions(rows, rng)
        next_rows, goal_rows, proposer_rows = (batch[k] for k in ('next_rows', 'goal_rows', 'proposer_goal_rows'))
        ahead = np.minimum(rows + rng.integers(1, data.transition_steps + 1, size=n), data.end_of[rows])
        goal_first = batch['proposer_near'] & (proposer_rows <= ahead)
        read = {'z': rows, 'z_next': next_rows, 'z_ahead': np.where(goal_first, proposer_rows, ahead)}
        if self.progress_steps:
            read['z_soon'] = np.minimum(rows + self.progress_steps, data.end_of[rows])
        actions = data.actions[rows] if self.own else np.zeros((n, self.action_dim), np.float32)
        batch.update(own=np.full(n, self.own), actions=actions, rows=rows)
        batch = {name: torch.from_numpy(value).to(self.device) for name, value in batch.items()}
        batch |= {name: self.z[at] for name, at in read.items()}
        batch['z_ahead'] = torch.where(torch.from_numpy(goal_first).to(self.device).unsqueeze(-1),
                                       self.z_goal[proposer_rows], batch['z_ahead'])
        if self.value:
            read['proposer_goal'] = proposer_rows
            batch |= {f'e_{name}': self.e_queue.rows[at] for name, at in read.items()}
        return batch | {'z_goal': self.z_goal[goal_rows], 'proposer_goal': self.z_goal[proposer_rows],
                        'states': self._states(rows), 'next_states': self._states(rows + 1)}

    def sample_steps(self, n, rng):
        """n one-step transitions of the agent's own, for the labeler: own_states, own_next_states, own_actions,
        own_rows; and dropout_seed, so that a batch decides its loss."""
        seed = int(rng.integers(2**62))
        rows = self.dataset.origins[rng.integers(len(self.dataset.origins), size=n)]
        return {'own_states': self._states(rows), 'own_next_states': self._states(rows + 1),
                'own_actions': torch.from_numpy(self.dataset.actions[rows]).to(self.device),
                'own_rows': torch.from_numpy(rows), 'dropout_seed': seed}
