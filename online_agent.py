"""OPSO's second half: from latents to actions. The encoder is frozen, so latents are computed once and every
update trains small heads only: two inverse dynamics, the offline proposer further on and, on request, Q and V.

    labeler             I_1(s_t, s_{t+1}) -> a_t       physics; trained on the agent's own transitions only; reads
                                                       raw states
    inverse_dynamics    I(z, z', z_g) -> a             the policy's last step; trained on offline states with the
                                                       labeler's actions (BCO, Torabi et al. 2018, made
                                                       goal-conditioned) and on the agent's own transitions
"""

import contextlib
import copy
import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from model import EncoderState, InverseDynamics
from offline_agent import OfflineAgent, gain, imitation_weight
from support.flags import flag, make_config
from support.kernels import small_products
from utils import load_weights, soft_update


@dataclasses.dataclass
class OnlineConfig:
    """inverse dynamics and updates of the online half"""
    batch_size: int = flag(8, 'windows\' worth of transitions per update: batch_size * context_length transitions '
                              '(8 * 100 = 800), drawn one by one from cached latents', least=1)
    idm_hidden_dim: int = flag(256, 'width of the hidden layers of both inverse dynamics', least=1)
    lr: float = flag(1e-3, "Adam's learning rate for the inverse dynamics and the proposer; Q and V keep the offline "
                           'one', above=0)
    policy_rate: float = flag(0.002, 'rate of the moving averages of I and the proposer, which are what acts; 1 is '
                                     'they themselves', above=0, most=1)
    labeler_dropout: float = flag(0.3, "dropout in the labeler's training: it has few transitions to learn from",
                                  least=0, below=1)
    value_interval: int = flag(0, "Q and V are trained on in one update of so many; 0: they stay as they are, and V's "
                                  'embeddings of all states are computed once', least=0)
    online_share: float = flag(0.0, "share of the agent's own transitions in what Q, V, proposer and policy learn "
                                    'from (the labeler learns from nothing else)', least=0, most=1)
    proposal_share: float = flag(0.5, "share of the policy's training pairs whose z' is the proposer's instead of "
                                      'the one that the trajectory reached', least=0, most=1)
    progress_steps: int = flag(0, "weigh the policy's pairs by how much nearer to z' the trajectory came in so many "
                                  "steps (5 for data that wanders, as explore); 0: by the proposer's weight", least=0)
    progress_temperature: float = flag(1.5, "with progress_steps, the pair's weight: min(exp(temperature * progress), "
                                            '100), progress in standard deviations', least=0)


class ActState(NamedTuple):
    """What acting carries from step to step: the encoder's memory and the goals, encoded once."""
    encoder: EncoderState
    goals: torch.Tensor
    z_goal: torch.Tensor
    e_goal: torch.Tensor  # its embeddings (n_ensemble, B, E)
    biased: np.ndarray  # (B,) bool: was the last z' the goal-biased one?


class OnlineAgent:
    """An offline agent with a frozen encoder, plus inverse dynamics. `act` is deterministic unless asked."""

    def __init__(self, offline, action_dim, config):
        self.offline, self.action_dim, self.config, self.device = offline, action_dim, config, offline.device
        for name, target in offline.targets.items():  # the averaged networks are the better ones, and the
            offline.nets[name].load_state_dict(target.state_dict())  # proposer was trained on their latents
        d, h = offline.config.d_model, config.idm_hidden_dim
        self.nets = nn.ModuleDict({
            'labeler': InverseDynamics(2 * offline.observation_dim, action_dim, h),
            'inverse_dynamics': InverseDynamics(d + 2 * offline.embedding_dim, action_dim, h),
            'proposer': offline.nets['proposer'],
        }).to(self.device).eval()
        acting = nn.ModuleDict({name: self.nets[name] for name in ('inverse_dynamics', 'proposer')})
        self.averaged = copy.deepcopy(acting).requires_grad_(False)
        self.encoder = offline.encoder.requires_grad_(False)
        self.heads = nn.ModuleDict({name: offline.nets[name] for name in ('critic', 'value')})
        self.optimizer = torch.optim.Adam([
            {'params': self.nets.parameters(), 'lr': config.lr},
            {'params': self.heads.parameters(), 'lr': offline.config.lr}], fused=True)
        self.step = 0

    # ------------------------------------------------------------------------------------------------ acting
    def initial_state(self, batch_size):
        goals = torch.zeros(batch_size, self.offline.observation_dim, device=self.device)
        return ActState(self.encoder.initial_state(batch_size), goals, *self._encode_goals(goals),
                        np.zeros(batch_size, bool))

    @torch.no_grad()
    def _encode_goals(self, goals):
        z_goal = self.encoder.encode_goal(goals)
        return z_goal, self.offline.targets['value'].embed(z_goal)

    def reset_state(self, state, rows):
        """Forget the episodes of the rows where the bool array `rows` (B,) is true."""
        return state._replace(encoder=state.encoder.reset(torch.as_tensor(rows, device=self.device)))

    def propose(self, z, z_goal, epsilon=0.0, rng=None):
        """-> (z' (B, D), biased (B,) bool): the proposer's z', or with probability `epsilon` the goal-biased
        z + alpha (z_g - z), alpha ~ U(0.2, 1)."""
        z_next, biased = self.averaged['proposer'](z, z_goal), np.zeros(len(z), bool)
        if epsilon > 0:
            alpha = torch.as_tensor(rng.uniform(0.2, 1.0, (len(z), 1)), dtype=z.dtype, device=z.device)
            biased = rng.random(len(z)) < epsilon
            mask = torch.as_tensor(biased, device=z.device).unsqueeze(-1)
            z_next = torch.where(mask, z + alpha * (z_goal - z), z_next)
        return z_next, biased

    @torch.no_grad()
    def act(self, observations, goals, state, epsilon=0.0, noise=0.0, rng=None):
        """observations, goals (B, S) numpy, raw; -> (actions (B, A) float32 numpy in [-1, 1], new state).

        One recurrent step, whatever the context. `epsilon`: share of goal-biased proposals; `noise`: standard
        deviation added to the action; both draw from the numpy Generator `rng`.
        """
        observations = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        goals = torch.as_tensor(goals, dtype=torch.float32, device=self.device)
        if not torch.equal(goals, state.goals):
            z_goal, e_goal = self._encode_goals(goals)
            state = state._replace(goals=goals.clone(), z_goal=z_goal, e_goal=e_goal)
        with small_products() if len(observations) <= 32 else contextlib.nullcontext():
            if self.offline.config.head_memory == 'history':
                z, memory = self.encoder.step(observations, state.encoder)
                body = z
            else:
                z, memory = self.encoder.encode_goal(observations), state.encoder
                body = self.encoder.encode_state(observations)
            z_next, biased = self.propose(z, state.z_goal, epsilon, rng)
            e_z, e_next = self.offline.targets['value'].embed(torch.stack([z, z_next])).unbind(1)
            actions = self.infer_action(body, e_z, e_next, state.e_goal).cpu().numpy()
        if noise > 0:
            actions = actions + noise * rng.standard_normal(actions.shape)
        return np.clip(actions, -1, 1).astype(np.float32), state._replace(encoder=memory, biased=biased)

    # -------------------------------------------------------------------------------------------- objectives
    def infer_action(self, z, e_z, e_next, e_goal, averaged=True):
        """I(z, z', z_g) -> action; z' and z_g are read in V's embedding (n_ensemble, ..., E), relative to z. By the
        moving average of I, or by I itself."""
        ahead = [(e - e_z).movedim(0, -2).flatten(-2) for e in (e_next, e_goal)]
        return (self.averaged if averaged else self.nets)['inverse_dynamics'](z, *ahead)

    def label(self, states, next_states, **dropout):
        """I_1(s_t, s_{t+1}) -> the action between two raw states."""
        states, next_states = self.encoder.normalize(states), self.encoder.normalize(next_states)
        return self.nets['labeler'](states, next_states - states, **dropout)

    def labeler_loss(self, batch):
        """One-step inverse dynamics on the agent's own transitions: mean squared error of the action."""
        generator = torch.Generator(self.device).manual_seed(batch['dropout_seed'])
        labels = self.label(batch['own_states'], batch['own_next_states'], dropout=self.config.labeler_dropout,
                            generator=generator)
        error = (labels - batch['own_actions']).square()
        return error.mean(), {'labeler_loss': error.mean()}

    def policy_loss(self, latents, batch):
        """Regress I(z_t, z', z_g) on a_t, weighted by how good what the trajectory did next was; a_t is real
        in the agent's own rows and the labeler's in offline rows; z' is a later latent of the trajectory, or
        the proposer's, which is what acting will feed in."""
        with torch.no_grad():
            labels = self.label(batch['states'], batch['next_states']).clamp(-1, 1)
            actions = torch.where(batch['own'].unsqueeze(-1), batch['actions'], labels)
            e_next, use = latents['e_z_ahead'].clone(), batch['use_proposal']
            e_next[:, use] = self.offline.targets['value'].embed(
                self.averaged['proposer'](batch['z'][use], batch['proposer_goal'][use]))
            weight = self.policy_weight(latents, e_next)
            body = latents['z'] if self.offline.config.head_memory == 'history' else self.encoder.encode_state(
                batch['states'])
        inferred = self.infer_action(body, latents['e_z'], e_next, latents['e_proposer_goal'], averaged=False)
        error = (inferred - actions).square().mean(-1)
        loss = (weight * error).mean()
        return loss, {'inverse_dynamics_loss': loss, 'inverse_dynamics_error': error.mean()}

    def policy_weight(self, latents, e_next):
        """-> (n,), mean 1: `OfflineAgent.advantage_weight`, or with `progress_steps` the progress toward z' itself,
        V(z_soon, z') - V(z, z'), as HIQL's low-level policy (Park et al. 2023, eq. 6) but over several steps and in
        standard deviations over the batch: how long a step is in V differs from dataset to dataset."""
        if not self.config.progress_steps:
            return self.offline.advantage_weight(latents)
        progress = gain(latents['e_z'], latents['e_z_soon'], e_next)
        progress = (progress - progress.mean()) / progress.std(correction=min(1, len(progress) - 1)).clamp(min=1e-8)
        return imitation_weight(progress, self.config.progress_temperature)

    def total_loss(self, batch):
        """-> (loss, info): both inverse dynamics, the proposer and, in batches with `train_values`, Q and V."""
        latents = {**batch, 'target_z': batch['z'], 'target_z_next': batch['z_next']}
        objectives = [self.offline.proposer_loss, self.policy_loss]
        if batch['train_values']:
            latents['target_z_goal'] = batch['z_goal']
            objectives += [self.offline.critic_loss, self.offline.value_loss]
        if 'e_z' in batch:
            latents |= {name: batch[name].movedim(1, 0) for name in batch if name.startswith('e_')}
        else:
            self.offline.embed_targets(latents)
        total, info = self.labeler_loss(batch)
        for objective in objectives:
            loss, numbers = objective(latents, batch)
            total, info = total + loss, info | numbers
        return total, info | {'total_loss': total}

    def update(self, batch):
        """One gradient step on `total_loss` and one of the moving averages -> info."""
        loss, info = self.total_loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        info['grad_norm'] = sum(nn.utils.clip_grad_norm_(group, self.offline.config.grad_clip)
                                for group in (self.nets.parameters(), self.heads.parameters()))
        self.optimizer.step()
        for name, average in self.averaged.items():
            soft_update(average, self.nets[name], self.config.policy_rate)
        if batch['train_values']:
            soft_update(self.offline.targets['value'], self.heads['value'], self.offline.config.target_rate)
        self.step += 1
        return {name: value.detach() for name, value in info.items()}

    def sample(self, offline_store, own_store, rng):
        """One update's batch: `online_share` of it from the agent's own episodes (see `latents.LatentStore.sample`)."""
        size = self.config.batch_size * self.offline.config.context_length
        n_own = round(self.config.online_share * size)
        parts = [offline_store.sample(size - n_own, rng), own_store.sample(n_own, rng)]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        interval = self.config.value_interval
        batch['train_values'] = interval > 0 and self.step % interval == 0
        # always as many: oneDNN would compile each new number of rows anew, and keep it in memory
        use = rng.permutation(size) < round(self.config.proposal_share * size)
        batch['use_proposal'] = torch.from_numpy(use).to(self.device)
        return batch | own_store.sample_steps(size, rng)

    # ------------------------------------------------------------------------------------------- checkpoints
    def checkpoint(self):
        """-> tensors and builtins from which `from_checkpoint` rebuilds this agent exactly."""
        return {'offline': self.offline.checkpoint() | {'optimizer': None}, 'action_dim': self.action_dim,
                'step': self.step, 'config': dataclasses.asdict(self.config), 'nets': self.nets.state_dict(),
                'averaged': self.averaged.state_dict(), 'optimizer': self.optimizer.state_dict()}

    def restore(self, content):
        self.offline.restore(content['offline'])
        load_weights(self.nets, content['nets'])
        load_weights(self.averaged, content['averaged'])
        if content['optimizer'] is not None:
            self.optimizer.load_state_dict(content['optimizer'])
        self.step = content['step']

    @classmethod
    def from_checkpoint(cls, content, device='cpu', backend='torch'):
        offline = OfflineAgent.from_checkpoint(content['offline'], device, backend)
        agent = cls(offline, content['action_dim'], make_config(OnlineConfig, content['config']))
        agent.restore(content)
        return agent
