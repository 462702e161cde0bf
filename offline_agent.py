"""OPSO's first half: everything that is learned from trajectories of states, without actions or rewards.

One method per objective (docs/method.md), each `(latents, batch) -> (loss, info)`; `total_loss` adds them up and is
what `update` differentiates and what validation calls. The batch is a `trajectories.WindowBatch`.
"""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from model import Encoder, GoalValue, Proposer, minus_distance, mlp
from support.flags import flag, make_config
from utils import expectile_loss, load_weights, soft_update


@dataclasses.dataclass
class OfflineConfig:
    """networks and objectives of offline pretraining"""
    context_length: int = flag(100, 'states the encoder remembers', least=1)
    encoder: str = flag('mamba', 'what the encoder is made of: mamba, or for comparison gru or mlp (no memory) of as '
                                 'many parameters', choices=('mamba', 'gru', 'mlp'))
    sequence_windows: int = flag(4, 'windows of a batch whose whole sequence is encoded, for next-state prediction '
                                     'from f(s_<=t); where readings get lost (--observe dropped:P), all of them',
                                  least=0)
    d_model: int = flag(128, 'size of a latent z', least=1)
    n_layers: int = flag(2, 'Mamba-2 layers', least=1)
    d_state: int = flag(16, 'state dimensions per Mamba-2 channel', least=1)
    d_conv: int = flag(4, 'width of the convolution in a Mamba-2 layer, in steps', least=1)
    expand: int = flag(2, 'inner width of a Mamba-2 layer, in multiples of d_model', least=1)
    headdim: int = flag(32, 'channels per Mamba-2 head; must divide expand * d_model', least=1)
    hidden_dim: int = flag(256, 'width of the hidden layers of every head', least=1)
    lr: float = flag(3e-4, "Adam's learning rate", above=0)
    grad_clip: float = flag(5.0, 'largest gradient norm', above=0)
    discount: float = flag(0.998, 'discount per environment step', above=0, below=1)
    slow_goals: bool = flag(True, 'Q, V and proposer see the slowly changing dimensions of states and goals only, as '
                            'measured in the data')
    transition_steps: int = flag(25, 'k: steps from z to z\' for Q, V, alignment and proposer', least=1)
    expectile: float = flag(0.9, 'expectile of V toward Q; above 0.5 is optimistic', above=0, below=1)
    target_rate: float = flag(0.01, 'rate of the moving average that makes the target networks', above=0, most=1)
    reward_scale: float = flag(0.05, 'rewards are -reward_scale per step until the goal', above=0)
    proposer_temperature: float = flag(20.0, 'advantage weight of the proposer: min(exp(temperature * A), 100)',
                                       least=0)
    positions_per_window: int = flag(32, 'transitions taken from each window and update; 0 takes every position',
                                     least=0)
    current_goals: float = flag(0.2, 'share of value goals that are the current state', least=0, most=1)
    random_goals: float = flag(0.3, 'share of value goals from anywhere in the data; the rest lies ahead',
                               least=0, most=1)
    proposer_random_goals: float = flag(0.2, 'share of proposer goals from anywhere in the data', least=0, most=1)
    critic_weight: float = flag(1.0, 'weight of Q, which shapes z and is read by nothing that acts: V regresses on '
                                     "Q's own target", least=0)
    infonce_weight: float = flag(0.05, 'weight of InfoNCE', least=0)
    alignment_weight: float = flag(0.02, 'weight of trajectory alignment', least=0)
    state_weight: float = flag(1.0, 'weight of next-state prediction', least=0)
    reward_weight: float = flag(0.1, 'weight of reward/done prediction', least=0)

    def check(self):
        """Raise ValueError for combinations that cannot work."""
        if self.expand * self.d_model % self.headdim:
            raise ValueError(f'--headdim {self.headdim}: must divide --expand * --d_model = '
                             f'{self.expand * self.d_model}')
        if self.current_goals + self.random_goals > 1:
            raise ValueError(f'--current_goals {self.current_goals} and --random_goals {self.random_goals}: together '
                             'at most 1')

    def sampling(self):
        """The part that says how batches are drawn: keyword arguments of `TrajectoryDataset`."""
        names = ('context_length', 'transition_steps', 'discount', 'positions_per_window', 'current_goals',
                 'random_goals', 'proposer_random_goals')
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass
class Latents:
    """What the losses on transitions read, online as well as offline: latents (..., D), and embeddings of latents by
    V's target network (M, ..., E), M members of the ensemble. Only z, z_next and z_goal carry gradients."""

    z: torch.Tensor
    z_next: torch.Tensor
    z_goal: torch.Tensor
    target_z: torch.Tensor  # z from the target encoder
    proposer_goal: torch.Tensor  # from the target encoder
    e_z: torch.Tensor
    e_z_next: torch.Tensor
    e_z_goal: torch.Tensor
    e_proposer_goal: torch.Tensor


@dataclasses.dataclass
class WindowLatents(Latents):
    """Latents of the P transitions in each of B windows, (B, P, D), and what next-state prediction reads besides."""

    sequence: torch.Tensor  # (W, L, D) f(s_<=t) at every position of the first W windows
    full: torch.Tensor  # (B, P, D) f(s_t), all of s_t


class OfflineAgent:
    """Encoder, critic Q, value V, proposer and prediction heads, their targets and one Adam.

    Rests in eval mode; nothing in it is random. `observation_dim` and the config describe it completely.
    """

    def __init__(self, observation_dim, config, device='cpu', backend='torch'):
        self.observation_dim = observation_dim
        self.config = config
        self.device = torch.device(device)

        d = config.d_model
        h = config.hidden_dim
        encoder = Encoder(observation_dim, d, config.n_layers, config.d_state, config.d_conv, config.expand,
                          config.headdim, config.context_length, backend, config.encoder)
        self.nets = nn.ModuleDict({
            'encoder': encoder,
            'critic': GoalValue(d, h, n_inputs=3),
            'value': GoalValue(d, h, n_inputs=2),
            'proposer': Proposer(d, h),
            'next_state': mlp([d, h, observation_dim]),
            'reward': mlp([2 * d, h, 1]),
            'contrast': nn.Linear(d, d),
        }).to(self.device).eval()
        self.targets = copy.deepcopy(nn.ModuleDict({k: self.nets[k] for k in ('encoder', 'value')}))
        self.targets.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=config.lr, fused=True)
        self.step = 0
        self.moves_things = False  # are places those of things that rest until they are moved?
        self.has_dropout = False  # do states repeat where a reading was lost?

    @property
    def encoder(self):
        return self.nets['encoder']

    def goal_feature_affine(self):
        """-> mean, scale (S,), numpy: a state s lies at (s - mean) * scale, which is `Encoder.place`."""
        encoder = self.encoder
        mean, std, slowness = (t.cpu().numpy() for t in (encoder.mean, encoder.std, encoder.slowness))
        return mean, slowness / std

    def set_statistics(self, mean, std, slowness, moves_things=False, has_dropout=False):
        """Mean, std and slowness (S,) of the training observations, for the encoder and its target. `moves_things`: is
        that the weight of things to be moved (planning/things.py)? `has_dropout`: do observations repeat where a reading was
        lost (observing/imputed.py)?"""
        self.has_dropout = has_dropout
        self.moves_things = moves_things and self.config.slow_goals
        for encoder in (self.nets['encoder'], self.targets['encoder']):
            encoder.set_statistics(mean, std, slowness if self.config.slow_goals else None)

    # ------------------------------------------------------------------------------------------- objectives
    def encode(self, batch):
        """Encode a WindowBatch once -> WindowLatents.

        z, z_next and z_goal are single states seen through the encoder's `slowness`, and `full` is all of s_t: a V that
        sees the history knows where its trajectory is direction, and cannot be optimistic about where others went from
        the same state.
        """
        states = at_positions(batch.observations, batch.positions)
        next_states = at_positions(batch.observations, batch.next_positions)

        # next-state prediction alone needs sequences, and no more than the context
        count = len(batch.observations) if self.has_dropout else self.config.sequence_windows
        windows = batch.observations[:count, :self.config.context_length]
        sequence = self.encoder(windows) if len(windows) else windows.new_zeros(0, 0, self.config.d_model)

        z, z_next, z_goal = self.encoder.encode_features(torch.cat([states, next_states, batch.goals], 1)).chunk(3, 1)

        with torch.no_grad():
            everything = torch.cat([states, next_states, batch.goals, batch.proposer_goals], 1)
            targets = self.targets['encoder'].encode_features(everything).chunk(4, 1)

        return WindowLatents(
            z=z,
            z_next=z_next,
            z_goal=z_goal,
            sequence=sequence,
            full=self.encoder.encode_state(states),
            **self._embedded(*targets),
        )

    @torch.no_grad()
    def _embedded(self, target_z, target_z_next, target_z_goal, proposer_goal):
        """The fields of Latents that come from the target networks; all embeddings are made in one call."""
        stacked = torch.stack([target_z, target_z_next, target_z_goal, proposer_goal])
        e_z, e_z_next, e_z_goal, e_proposer_goal = self.targets['value'].embed(stacked).unbind(1)
        return {'target_z': target_z, 'proposer_goal': proposer_goal, 'e_z': e_z, 'e_z_next': e_z_next,
                'e_z_goal': e_z_goal, 'e_proposer_goal': e_proposer_goal}

    def k_step_return(self, latents, batch):
        """R + gamma^k V_target(z_{t+k}, z_g) (...), no gradient; `discounts` is 0 where the goal was met."""
        v_next = minus_distance(latents.e_z_next, latents.e_z_goal).mean(0)
        return self.config.reward_scale * batch.rewards + batch.discounts * v_next

    def critic_loss(self, latents, batch):
        """Q(z_t, z_{t+k}, z_g) -> `k_step_return`."""
        target = self.k_step_return(latents, batch)
        q = self.nets['critic'](latents.z, latents.z_next, latents.z_goal)
        loss = (q - target).square().mean()
        return loss, {'critic_loss': loss, 'q_mean': q.mean()}

    def value_loss(self, latents, batch):
        """Expectile regression of V(z, z_g) toward Q(z, z', z_g) (IQL, Kostrikov et al. 2021, eq. 5, without actions).

        Where the data shows the transition itself, Q's own target is exact, and V takes that: through an averaged Q
        that lags behind, values travel across a maze more slowly.
        """
        q = self.k_step_return(latents, batch)
        v = self.nets['value'](latents.z, latents.z_goal)
        loss = expectile_loss(v, q, self.config.expectile)
        return loss, {'value_loss': loss, 'v_mean': v.mean(), 'v_min': v.min(), 'v_max': v.max()}

    def infonce_loss(self, latents, batch):
        """Symmetric InfoNCE (van den Oord et al. 2018): z_t against goals from its own future; the rows of
        other windows are the negatives, since those of its own window may be futures of z_t as well."""
        z, goal = (F.normalize(self.nets['contrast'](latent.flatten(0, 1)), dim=-1)
                   for latent in (latents.z, latents.z_goal))
        window = torch.arange(len(batch.future), device=z.device).repeat_interleave(batch.future.shape[1])
        future = batch.future.flatten()
        # all rows, with a mask: oneDNN would compile each new number of rows anew, and keep it in memory
        logits = z @ goal.T / 0.1
        count = future.sum().clamp(min=1)
        masked = (window[:, None] == window).fill_diagonal_(False) | ~future
        labels = torch.arange(len(z), device=z.device).where(future, -100)  # what cross_entropy leaves out
        sides = [side.masked_fill(masked, -1e9) for side in (logits, logits.T)]
        loss = sum(F.cross_entropy(side, labels, reduction='sum') for side in sides) / (2 * count)
        hits = (sides[0].argmax(1) == labels).sum()
        return loss, {'infonce_loss': loss, 'infonce_accuracy': hits / count}

    def alignment_loss(self, latents, batch):
        """1 - cos(z_{t+k} - z_t, z_g - z_t) for goals in the future: latent moves point at the goal."""
        cosine = F.cosine_similarity(latents.z_next - latents.z, latents.z_goal - latents.z, dim=-1)
        loss = _mean_where(batch.future, 1 - cosine)
        return loss, {'alignment_loss': loss}

    def predict_next(self, latents, observations):
        """f(s_<=t) (..., D) and s_t (..., S), raw -> the normalised s_{t+1} (..., S) that is expected.

        Where readings get lost, as a change of the last one that received: what has to be foretold then is how far the
        robot has come since.
        """
        predicted = self.nets['next_state'](latents)
        if self.has_dropout:
            predicted = predicted + self.encoder.normalize(observations)
        return predicted

    def state_loss(self, latents, batch):
        """Predict the normalised s_{t+1} from f(s_<=t) at every position of the encoded windows, and from the single
        states s_t. It is also what keeps joint angles and velocities in f(s_t), which the inverse dynamics need."""
        states = batch.observations[:, :-1]
        target = self.encoder.normalize(batch.observations[:, 1:])
        known = batch.valids[:, 1:]
        if self.has_dropout:  # what was lost cannot be foretold
            known = known & (batch.observations[:, 1:] != states).any(-1)

        predicted = self.predict_next(latents.full, at_positions(states, batch.positions))
        error = (predicted - at_positions(target, batch.positions)).square().mean(-1)
        single = _mean_where(known.gather(1, batch.positions), error)
        windows = len(latents.sequence)
        if not windows:
            return single, {'state_loss': single}

        length = min(latents.sequence.shape[1], target.shape[1])
        predicted = self.predict_next(latents.sequence[:, :length], states[:windows, :length])
        error = (predicted - target[:windows, :length]).square().mean(-1)
        sequence = _mean_where(known[:windows, :length], error)

        loss = 0.5 * (sequence + single)
        return loss, {'state_loss': loss}

    def reward_loss(self, latents, batch):
        """Binary cross-entropy of "z is at z_g": the reward of the goal and the end of the episode in one."""
        logits = self.nets['reward'](torch.cat([latents.z, latents.z_goal], -1)).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, batch.at_goal.float())
        return loss, {'reward_loss': loss}

    def advantage_weight(self, latents):
        """How much better than the average row what the trajectory did next was for reaching its proposer goal;
        the mean is 1."""
        goal = latents.e_proposer_goal
        return imitation_weight(advantage(latents.e_z, latents.e_z_next, goal), self.config.proposer_temperature)

    def proposer_loss(self, latents, batch):
        """Move f_P(z, z_g) toward the latent k steps later (toward z_g where the goal is nearer), weighted by the
        advantage A = V(z', z_g) - V(z, z_g), min(exp(temperature * A), 100) over its mean, as HIQL's high-level
        policy (Park et al. 2023, eq. 5). The distance is taken in V's embedding: in z itself it is mostly joint
        angles, which nobody can foretell. No gradient into z or V.
        """
        proposed = self.nets['proposer'](latents.target_z, latents.proposer_goal)
        target = torch.where(batch.proposer_near.unsqueeze(-1), latents.e_proposer_goal, latents.e_z_next)
        weight = self.advantage_weight(latents)
        error = (self.targets['value'].embed(proposed) - target).square().sum(-1).mean(0)
        loss = (weight * error).mean()
        return loss, {'proposer_loss': loss, 'proposer_error': error.mean()}

    def total_loss(self, batch):
        """-> (loss, info); pure: the same batch gives the same number, and nothing changes but gradients. What weighs
        nothing is not computed."""
        config = self.config
        objectives = (
            (self.proposer_loss, 1),
            (self.critic_loss, config.critic_weight),
            (self.value_loss, 1),
            (self.infonce_loss, config.infonce_weight),
            (self.alignment_loss, config.alignment_weight),
            (self.state_loss, config.state_weight),
            (self.reward_loss, config.reward_weight),
        )

        latents = self.encode(batch)
        total = 0.0
        info = {}
        for objective, weight in objectives:
            if weight == 0:
                continue
            loss, numbers = objective(latents, batch)
            total = total + weight * loss
            info |= numbers
        return total, info | {'total_loss': total}

    # ----------------------------------------------------------------------------------------------- updates
    def update(self, batch):
        """One gradient step on `total_loss` and one of the targets -> info, detached tensors."""
        loss, info = self.total_loss(batch)
        info['grad_norm'] = self.apply_gradient(loss)
        return {name: value.detach() for name, value in info.items()}

    def apply_gradient(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.nets.parameters(), self.config.grad_clip)
        self.optimizer.step()
        for name, target in self.targets.items():
            soft_update(target, self.nets[name], self.config.target_rate)
        self.step += 1
        return norm

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors and builtins from which `from_state_dict` rebuilds this agent exactly."""
        return {'observation_dim': self.observation_dim, 'config': dataclasses.asdict(self.config),
                'nets': self.nets.state_dict(), 'targets': self.targets.state_dict(),
                'optimizer': self.optimizer.state_dict(), 'step': self.step, 'moves_things': self.moves_things,
                'has_dropout': self.has_dropout}

    def load_state_dict(self, state):
        """Load what `state_dict` returned. Raises ValueError that names the sizes that differ."""
        if state['observation_dim'] != self.observation_dim:
            raise ValueError(f"the checkpoint is for observations of {state['observation_dim']} dimensions, "
                             f'this environment or dataset has {self.observation_dim}')
        load_weights(self.nets, state['nets'])
        load_weights(self.targets, state['targets'])
        if state['optimizer'] is not None:
            self.optimizer.load_state_dict(state['optimizer'])
        self.step = state['step']
        self.moves_things = state.get('moves_things', False)  # older checkpoints know of no things
        self.has_dropout = state.get('has_dropout', False)

    @classmethod
    def from_state_dict(cls, state, device='cpu', backend='torch'):
        # older checkpoints say that Q, V and the proposer see single states, which goes without saying now
        config = {name: value for name, value in state['config'].items() if (name, value) != ('head_memory', 'state')}
        agent = cls(state['observation_dim'], make_config(OfflineConfig, config), device, backend)
        agent.load_state_dict(state)
        return agent


def advantage(e_z, e_later, e_goal):
    """V(z_later, z_g) - V(z, z_g) from embeddings (n_ensemble, ..., E) -> (...), mean of the members."""
    return (minus_distance(e_later, e_goal) - minus_distance(e_z, e_goal)).mean(0)


def imitation_weight(advantage, temperature):
    """min(exp(temperature * advantage), 100) over its mean, of any shape."""
    weight = (temperature * advantage).exp().clamp(max=100.0)
    return weight / weight.mean()


def _mean_where(mask, values):
    """Mean of `values` where the bool `mask` of the same shape is true."""
    mask = mask.float()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def at_positions(sequence, positions):
    """sequence (B, L, D), positions (B, P) -> (B, P, D)."""
    return sequence.gather(1, positions.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
