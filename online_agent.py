"""OPSO's second half: turn the frozen encoder and the proposer into a policy that learns actions while it acts. An
update trains small heads only: two inverse dynamics, the offline proposer further on and, on request, Q and V.

    labeler             I_1(s_t, s_{t+1}) -> a_t       physics; trained on the agent's own transitions only; reads
                                                       raw states
    inverse_dynamics    I(z, z', z_g) -> a             what acts; trained on offline states with the labeler's actions
                                                       (BCO, Torabi et al. 2018, made goal-conditioned) and, with
                                                       online_share, on the agent's own transitions

Actions in here lie in [-1, 1]; only `act` and `scale_to_unit` know the bounds of the environment's action space.
"""

import contextlib
import copy
import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from model import EncoderState, InverseDynamics
from offline_agent import Latents, OfflineAgent, advantage, imitation_weight
from online_batches import LatentStore, OnlineBatches
from planner import AT_GOAL, NO_PATH, StateMap
from support.flags import flag, make_config
from support.kernels import small_products
from utils import load_weights, soft_update

WANDERING = 0.4  # straightness below which data wander; OGBench's explore: 0.3, navigate and stitch: 0.5 to 0.55


@dataclasses.dataclass
class OnlineConfig:
    """inverse dynamics and updates of the online half"""
    batch_size: int = flag(8, 'windows\' worth of transitions per update: batch_size * context_length transitions '
                              '(8 * 100 = 800), drawn one by one from the data', least=1)
    idm_hidden_dim: int = flag(256, 'width of the hidden layers of both inverse dynamics', least=1)
    lr: float = flag(1e-3, "Adam's learning rate for the inverse dynamics and the proposer; Q and V keep the offline "
                           'one', above=0)
    acting_rate: float = flag(0.002, 'EMA rate of the acting networks, which are I and the proposer; 1 disables '
                                     'averaging', above=0, most=1)
    labeler_dropout: float = flag(0.3, "dropout in the labeler's training: it has few transitions to learn from",
                                  least=0, below=1)
    value_interval: int = flag(0, 'train Q and V in one of so many updates; 0 leaves them as they are, so that the '
                                  'embeddings of all states are computed once', least=0)
    online_share: float = flag(0.0, "share of the agent's own transitions in what Q, V, the proposer and I learn "
                                    'from (the labeler learns from nothing else)', least=0, most=1)
    proposal_share: float | None = flag(None, "share of I's training pairs whose z' is the proposer's instead of the "
                                        'one that the trajectory reached (default: by the data, 0.5, or 0 where they '
                                        'wander and there is a plan)', type=float, least=0, most=1)
    progress_steps: int | None = flag(None, "weight I's pairs by how much nearer to z' the trajectory came in so many "
                                      "steps; 0: by the proposer's weight (default: by the data, 0, or 5 where they "
                                      'wander)', type=int, least=0)
    progress_temperature: float = flag(3.0, "with progress_steps, a pair's weight: min(exp(temperature * progress), "
                                            '100), progress in standard deviations', least=0)
    plan: bool = flag(True, "z' is the next node of a shortest path on the map of the data (planner.py), and the "
                            "proposer's only where no path leads; with --head_memory state")

    def for_data(self, straightness=1.0):
        """-> the same with what was left to the data decided: trajectories that wander (`TrajectoryDataset.
        straightness`) do not show where to go but how to walk, so only their steps in the right direction are
        imitated. Where the proposer decides, I must know its z'; with a plan, z' is a state of the data."""
        wanders = straightness < WANDERING
        progress_steps = self.progress_steps
        if progress_steps is None:
            progress_steps = 5 if wanders else 0
        proposal_share = self.proposal_share
        if proposal_share is None:
            proposal_share = 0.0 if wanders and self.plan else 0.5
        return dataclasses.replace(self, progress_steps=progress_steps, proposal_share=proposal_share)


class ActState(NamedTuple):
    """What acting carries from step to step: the encoder's memory and the goals, encoded once."""

    encoder: EncoderState
    goals: torch.Tensor  # (B, S) raw
    z_goal: torch.Tensor  # (B, D)
    e_goal: torch.Tensor  # (M, B, E) its embeddings
    routes: np.ndarray | None  # (B, K + 1) ways to the goals on the map (`StateMap.route`); None without a plan
    biased: np.ndarray  # (B,) bool: was the last z' the goal-biased one?


class OnlineAgent:
    """An offline agent with a frozen encoder, plus inverse dynamics. `act` is deterministic unless asked.

    trained: labeler, inverse_dynamics, proposer. acting: moving averages of the last two. values: critic and value,
    trained only with `value_interval`. action_low, action_high: bounds (A,) of the environment's actions. state_map:
    the StateMap on which it plans, None until `set_map` or `build_map`; z_nodes (K, D): the latents of its nodes.
    """

    def __init__(self, offline, action_low, action_high, config):
        self.offline = offline
        self.config = config.for_data()  # what the caller has not decided by the data is as for data that do not wander
        self.device = offline.device

        self.action_low = np.asarray(action_low, np.float32)
        self.action_high = np.asarray(action_high, np.float32)
        self.action_dim = len(self.action_low)
        if not np.isfinite([self.action_low, self.action_high]).all() or (self.action_low >= self.action_high).any():
            raise ValueError(f'the action space needs finite bounds, low below high; it has {self.action_low} and '
                             f'{self.action_high}')

        # the averaged networks are the better ones, and the proposer was trained on their latents
        for name, target in offline.targets.items():
            offline.nets[name].load_state_dict(target.state_dict())

        d = offline.config.d_model
        h = config.idm_hidden_dim
        self.trained = nn.ModuleDict({
            'labeler': InverseDynamics(2 * offline.observation_dim, self.action_dim, h),
            'inverse_dynamics': InverseDynamics(d + 2 * offline.embedding_dim, self.action_dim, h),
            'proposer': offline.nets['proposer'],
        }).to(self.device).eval()
        acting = nn.ModuleDict({name: self.trained[name] for name in ('inverse_dynamics', 'proposer')})
        self.acting = copy.deepcopy(acting).requires_grad_(False)
        self.values = nn.ModuleDict({name: offline.nets[name] for name in ('critic', 'value')})
        self.encoder = offline.encoder.requires_grad_(False)

        self.optimizer = torch.optim.Adam([
            {'params': self.trained.parameters(), 'lr': config.lr},
            {'params': self.values.parameters(), 'lr': offline.config.lr}], fused=True)
        self.state_map = None
        self.z_nodes = None
        self.step = 0

    def build_map(self, data, seed=0, hop=0, nodes=0):
        """Make the StateMap of a `TrajectoryDataset`, seen as the encoder sees places, and plan on it. `hop`,
        `nodes`: 0 for what `StateMap.from_data` chooses."""
        mean, scale = self.offline.place_scale()
        self.set_map(StateMap.from_data(data, mean, scale, hop, nodes, seed))

    @torch.no_grad()
    def set_map(self, state_map):
        self.state_map = state_map
        self.z_nodes = self.encoder.encode_slow(torch.from_numpy(state_map.states).to(self.device))

    @property
    def plans(self):
        """Does acting follow the map? Not with memory: the latent of a node has no past."""
        return self.config.plan and self.state_map is not None and self.offline.config.head_memory == 'state'

    def open_batches(self, data, replay):
        """-> OnlineBatches of the offline data and the agent's own episodes (a ReplayBuffer)."""
        config = self.config
        return OnlineBatches(
            self.latent_store(data),
            # few of its rows are ever read, so that their latents are computed when they are
            self.latent_store(replay, cached=False),
            size=config.batch_size * self.offline.config.context_length,
            action_dim=self.action_dim,
            online_share=config.online_share,
            proposal_share=config.proposal_share,
            progress_steps=config.progress_steps,
            with_values=config.value_interval > 0,
        )

    def latent_store(self, dataset, cached=None):
        """-> LatentStore of a dataset, with this agent's encoder and embeddings."""
        return LatentStore(
            dataset,
            self.encoder,
            self.offline.targets['value'].embed,
            history=self.offline.config.head_memory == 'history',
            embeddings_rest=not self.config.value_interval,
            cached=cached,
        )

    # ------------------------------------------------------------------------------------------------ acting
    def initial_state(self, batch_size):
        goals = torch.zeros(batch_size, self.offline.observation_dim, device=self.device)
        return ActState(self.encoder.initial_state(batch_size), goals, *self._encode_goals(goals), None,
                        np.zeros(batch_size, bool))

    @torch.no_grad()
    def _encode_goals(self, goals):
        z_goal = self.encoder.encode_slow(goals)
        return z_goal, self.offline.targets['value'].embed(z_goal)

    def reset_state(self, state, rows):
        """Forget the episodes of the rows where the bool array `rows` (B,) is true."""
        return state._replace(encoder=state.encoder.reset(torch.as_tensor(rows, device=self.device)))

    def propose(self, z, z_goal, epsilon=0.0, rng=None, ahead=None):
        """-> (z' (B, D), biased (B,) bool): the proposer's z', or with probability `epsilon` the goal-biased
        z + alpha (z_g - z), alpha ~ U(0.2, 1). `ahead` (B,) int, the plan: the node that z' is instead of the
        proposer's, AT_GOAL for z_g, or NO_PATH."""
        z_next = self.acting['proposer'](z, z_goal)
        if ahead is not None:
            ahead = torch.as_tensor(ahead, dtype=torch.long, device=self.device).unsqueeze(-1)
            z_next = torch.where(ahead == NO_PATH, z_next, self.z_nodes[ahead.squeeze(-1).clamp(min=0)])
            z_next = torch.where(ahead == AT_GOAL, z_goal, z_next)
        biased = np.zeros(len(z), bool)

        if epsilon > 0:
            alpha = torch.as_tensor(rng.uniform(0.2, 1.0, (len(z), 1)), dtype=z.dtype, device=z.device)
            biased = rng.random(len(z)) < epsilon
            mask = torch.as_tensor(biased, device=z.device).unsqueeze(-1)
            z_next = torch.where(mask, z + alpha * (z_goal - z), z_next)
        return z_next, biased

    @torch.no_grad()
    def act(self, observations, goals, state, epsilon=0.0, noise=0.0, rng=None):
        """observations, goals (B, S) numpy, raw; -> (actions (B, A) float32 numpy in the environment's action space,
        new state).

        One recurrent step, whatever the context. `epsilon`: share of goal-biased proposals; `noise`: standard
        deviation added to the action, in half widths of its range; both draw from the numpy Generator `rng`.
        """
        raw_observations = observations
        raw_goals = goals
        observations = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        goals = torch.as_tensor(goals, dtype=torch.float32, device=self.device)
        if not torch.equal(goals, state.goals):
            z_goal, e_goal = self._encode_goals(goals)
            routes = self.state_map.routes(raw_goals) if self.plans else None
            state = state._replace(goals=goals.clone(), z_goal=z_goal, e_goal=e_goal, routes=routes)

        ahead = None
        if state.routes is not None:
            nodes = self.state_map.locate(raw_observations)
            ahead = state.routes[np.arange(len(nodes)), nodes]

        with small_products() if len(observations) <= 32 else contextlib.nullcontext():
            if self.offline.config.head_memory == 'history':
                z, memory = self.encoder.step(observations, state.encoder)
                full = z
            else:
                z = self.encoder.encode_slow(observations)
                full = self.encoder.encode_full(observations)
                memory = state.encoder

            z_next, biased = self.propose(z, state.z_goal, epsilon, rng, ahead)
            e_z, e_next = self.offline.targets['value'].embed(torch.stack([z, z_next])).unbind(1)
            actions = self.infer_action(full, e_z, e_next, state.e_goal).cpu().numpy()

        if noise > 0:
            actions = actions + noise * rng.standard_normal(actions.shape)
        return self._scale_from_unit(np.clip(actions, -1, 1)), state._replace(encoder=memory, biased=biased)

    def _scale_from_unit(self, actions):
        """Actions (..., A) in [-1, 1] -> the same in the environment's bounds, float32."""
        middle = (self.action_high + self.action_low) / 2
        half_width = (self.action_high - self.action_low) / 2
        scaled = (middle + half_width * actions).astype(np.float32)
        return np.clip(scaled, self.action_low, self.action_high)  # rounding must not leave the space

    def scale_to_unit(self, actions):
        """Actions (..., A) in the environment's bounds -> the same in [-1, 1], as a replay keeps them, float32."""
        middle = (self.action_high + self.action_low) / 2
        half_width = (self.action_high - self.action_low) / 2
        return ((actions - middle) / half_width).astype(np.float32)

    # -------------------------------------------------------------------------------------------- objectives
    def infer_action(self, z, e_z, e_next, e_goal, networks=None):
        """I(z, z', z_g) -> action (..., A), unbounded; z' and z_g are read in V's embedding (M, ..., E), relative to z.
        `networks`: whose I, default `acting`."""
        ahead = [(e - e_z).movedim(0, -2).flatten(-2) for e in (e_next, e_goal)]
        return (networks or self.acting)['inverse_dynamics'](z, *ahead)

    def label(self, states, next_states, **dropout):
        """I_1(s_t, s_{t+1}) -> the action between two raw states."""
        states = self.encoder.normalize(states)
        next_states = self.encoder.normalize(next_states)
        return self.trained['labeler'](states, next_states - states, **dropout)

    def labeler_loss(self, batch):
        """One-step inverse dynamics on the agent's own transitions: mean squared error of the action."""
        generator = torch.Generator(self.device).manual_seed(batch.dropout_seed)
        labels = self.label(batch.online_states, batch.online_next_states, dropout=self.config.labeler_dropout,
                            generator=generator)
        loss = (labels - batch.online_actions).square().mean()
        return loss, {'labeler_loss': loss}

    def imitation_loss(self, batch):
        """Regress I(z_t, z', z_g) on a_t, weighted by how good what the trajectory did next was; a_t is real in the
        agent's own rows and the labeler's in offline rows; z' is a later latent of the trajectory, or the proposer's,
        which is what acting will feed in."""
        with torch.no_grad():
            labels = self.label(batch.states, batch.next_states).clamp(-1, 1)
            actions = torch.where(batch.is_online.unsqueeze(-1), batch.actions, labels)

            use = batch.use_proposal
            e_next = batch.e_z_ahead.clone()
            proposed = self.acting['proposer'](batch.z[use], batch.proposer_goal[use])
            e_next[:, use] = self.offline.targets['value'].embed(proposed)

            weights = self.imitation_weights(batch, e_next)
            history = self.offline.config.head_memory == 'history'
            full = batch.z if history else self.encoder.encode_full(batch.states)

        inferred = self.infer_action(full, batch.e_z, e_next, batch.e_proposer_goal, self.trained)
        error = (inferred - actions).square().mean(-1)
        loss = (weights * error).mean()
        return loss, {'inverse_dynamics_loss': loss, 'inverse_dynamics_error': error.mean()}

    def imitation_weights(self, batch, e_next):
        """-> (n,), mean 1: `OfflineAgent.advantage_weight`, or with `progress_steps` the progress toward z' itself,
        V(z_soon, z') - V(z, z'), as HIQL's low-level policy (Park et al. 2023, eq. 6) but over several steps and in
        standard deviations over the batch: how long a step is in V differs from dataset to dataset."""
        if not self.config.progress_steps:
            return self.offline.advantage_weight(batch)

        progress = advantage(batch.e_z, batch.e_z_soon, e_next)
        deviation = progress.std(correction=min(1, len(progress) - 1)).clamp(min=1e-8)
        return imitation_weight((progress - progress.mean()) / deviation, self.config.progress_temperature)

    def total_loss(self, batch, train_values=False):
        """-> (loss, info): both inverse dynamics, the proposer and, with `train_values`, Q and V."""
        latents = Latents(
            z=batch.z,
            z_next=batch.z_next,
            z_goal=batch.z_goal,
            target_z=batch.z,  # the encoder rests: it is its own target
            proposer_goal=batch.proposer_goal,
            e_z=batch.e_z,
            e_z_next=batch.e_z_next,
            e_z_goal=batch.e_z_goal,
            e_proposer_goal=batch.e_proposer_goal,
        )
        results = [
            self.labeler_loss(batch),
            self.offline.proposer_loss(latents, batch),
            self.imitation_loss(batch),
        ]
        if train_values:
            results.append(self.offline.critic_loss(latents, batch))
            results.append(self.offline.value_loss(latents, batch))

        total = sum(loss for loss, _ in results)
        info = {name: value for _, numbers in results for name, value in numbers.items()}
        return total, info | {'total_loss': total}

    def update(self, batch):
        """One gradient step on `total_loss` and one of the moving averages -> info. Q and V are part of one update in
        `value_interval`."""
        interval = self.config.value_interval
        train_values = interval > 0 and self.step % interval == 0

        loss, info = self.total_loss(batch, train_values)
        self.optimizer.zero_grad()
        loss.backward()
        info['grad_norm'] = sum(nn.utils.clip_grad_norm_(group, self.offline.config.grad_clip)
                                for group in (self.trained.parameters(), self.values.parameters()))
        self.optimizer.step()

        for name, average in self.acting.items():
            soft_update(average, self.trained[name], self.config.acting_rate)
        if train_values:
            soft_update(self.offline.targets['value'], self.values['value'], self.offline.config.target_rate)
        self.step += 1
        return {name: value.detach() for name, value in info.items()}

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors and builtins from which `from_state_dict` rebuilds this agent exactly."""
        return {
            'offline': self.offline.state_dict() | {'optimizer': None},
            'action_low': self.action_low.tolist(),
            'action_high': self.action_high.tolist(),
            'config': dataclasses.asdict(self.config),
            'step': self.step,
            'trained': self.trained.state_dict(),
            'acting': self.acting.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'map': self.state_map.state_dict() if self.state_map else None,
        }

    def load_state_dict(self, state):
        """Load what `state_dict` returned. Raises ValueError that names sizes that differ."""
        self.offline.load_state_dict(state['offline'])
        load_weights(self.trained, state['trained'])
        load_weights(self.acting, state['acting'])
        if state['optimizer'] is not None:
            self.optimizer.load_state_dict(state['optimizer'])
        self.step = state['step']
        if state.get('map') is not None:  # checkpoints from before there were maps have none
            self.set_map(StateMap.from_state_dict(state['map']))

    @classmethod
    def from_state_dict(cls, state, device='cpu', backend='torch'):
        offline = OfflineAgent.from_state_dict(state['offline'], device, backend)
        config = make_config(OnlineConfig, state['config'])
        agent = cls(offline, state['action_low'], state['action_high'], config)
        agent.load_state_dict(state)
        return agent
