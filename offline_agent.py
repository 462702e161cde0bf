"""OPSO's offline half: pretraining on trajectories of states, without actions or rewards.

Each objective (docs/method.md) is one method that maps (latents, batch) to (loss, info).
`total_loss` adds them up, for updates and for validation. A batch is a `trajectories.WindowBatch`.
"""

import copy
import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import (
    Encoder,
    GoalValue,
    Proposer,
    find_layer,
    imitation_weight,
    minus_distance,
    mlp,
    soft_update,
)
from support.contents import Number, Tensor, check_layout
from support.flags import flag, make_config
from utils import load_optimizer, load_weights

MAX_PARAMETERS = 200_000_000  # of all networks; they take 16 bytes each in training, 1.5 million by default
POSITION_WEIGHT = 0.5  # goal weight above which a dimension is a position; the largest is 1


STATE_LAYOUT = {  # of `OfflineAgent.state_dict`, beside its networks
    'observation_dim': Number(int, least=1),
    'step': Number(int, least=0),
    'has_objects': Number(bool),
    'has_dropout': Number(bool),
}


@dataclasses.dataclass
class OfflineConfig:
    """networks and objectives of offline pretraining"""

    context_length: int = flag(0, 'states that the encoder remembers; 0: from the data', least=0, basic=True,
                               from_data=True)
    encoder: str = flag('mamba', 'layers of the encoder: mamba, gru, mlp (no memory) or module:Class',
                        basic=True)
    sequence_windows: int = flag(
        4, 'windows encoded as sequences in each update; all with --observe dropped:P', least=0)
    d_model: int = flag(128, 'dimensions of a latent z', least=1)
    n_layers: int = flag(2, 'Mamba-2 layers', least=1, most=100)
    d_state: int = flag(16, 'state dimensions per Mamba-2 channel', least=1)
    d_conv: int = flag(4, 'width of the convolution in a Mamba-2 layer, in steps', least=1)
    expand: int = flag(2, 'inner width of a Mamba-2 layer, in multiples of d_model', least=1)
    headdim: int = flag(32, 'channels per Mamba-2 head, a divisor of expand * d_model', least=1)
    hidden_dim: int = flag(256, 'width of the hidden layers of every head', least=1)
    lr: float = flag(3e-4, "Adam's learning rate", above=0, basic=True)
    grad_clip: float = flag(5.0, 'largest gradient norm', above=0)
    discount: float = flag(0.0, 'discount per environment step; 0: from --transition_steps', least=0, below=1,
                           basic=True, from_data=True)
    slow_goals: bool = flag(True, 'goal weights by slowness or by objects; else all weights are 1')
    transition_steps: int = flag(0, "steps k from z to z' for Q, V and proposer; 0: from the data", least=0,
                                 basic=True, from_data=True)
    expectile: float = flag(0.9, 'expectile of V; above 0.5 is optimistic', above=0, below=1,
                            basic=True)
    target_rate: float = flag(0.01, 'rate at which the target networks follow the trained ones',
                              above=0, most=1)
    reward_scale: float = flag(0.05, 'penalty per step until the goal', above=0)
    proposer_temperature: float = flag(
        20.0, 'inverse temperature of the proposer weights exp(temperature * A)', least=0)
    positions_per_window: int = flag(32, 'transitions of each window in an update; 0: every position',
                                     least=0)
    current_goals: float = flag(0.2, 'fraction of value goals that are the current state', least=0,
                                most=1)
    random_goals: float = flag(0.3, 'fraction of value goals from anywhere in the data', least=0,
                               most=1)
    proposer_random_goals: float = flag(0.2, 'fraction of proposer goals from anywhere in the data',
                                        least=0, most=1)
    value_weight: float = flag(1.0, 'weight of V; 0 disables it', least=0)
    critic_weight: float = flag(1.0, 'weight of Q, an auxiliary objective; 0 disables it', least=0)
    infonce_weight: float = flag(0.2, 'weight of InfoNCE; 0 disables it', least=0)
    alignment_weight: float = flag(0.02, 'weight of trajectory alignment; 0 disables it', least=0)
    state_weight: float = flag(1.0, 'weight of next-state prediction; 0 disables it', least=0)
    reward_weight: float = flag(0.1, 'weight of reward/done prediction; 0 disables it', least=0)

    def check(self):
        """Raise ValueError for combinations that cannot work."""
        if self.encoder != 'mamba':
            find_layer(self.encoder)
        if self.expand * self.d_model % self.headdim:
            raise ValueError(f'--headdim {self.headdim}: must divide --expand * --d_model = '
                             f'{self.expand * self.d_model}')
        if self.current_goals + self.random_goals > 1:
            raise ValueError(f'--current_goals {self.current_goals} and --random_goals '
                             f'{self.random_goals}: must be at most 1 together')
        if self.num_parameters > MAX_PARAMETERS:
            raise ValueError(f'--d_model {self.d_model}, --hidden_dim {self.hidden_dim}, --expand '
                             f'{self.expand}, --d_state {self.d_state}, --d_conv {self.d_conv}: networks of '
                             f'{self.num_parameters:,} parameters; at most {MAX_PARAMETERS:,}')

    @property
    def num_parameters(self):
        """Estimate the number of parameters of all networks."""
        inner = self.expand * self.d_model
        channels = inner + 2 * self.d_state
        layer = self.d_model * (2 * inner + channels) + channels * self.d_conv
        heads = 6 * self.hidden_dim * (self.hidden_dim + self.d_model)
        return self.n_layers * layer + heads

    def sampling(self):
        """Return the sampling parameters of `TrajectoryDataset` as a dict of keyword arguments."""
        names = ('context_length', 'transition_steps', 'discount', 'positions_per_window',
                 'current_goals', 'random_goals', 'proposer_random_goals')
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass
class Latents:
    """Latents of P transitions in each of B windows, encoded once for all losses.

    Embeddings are those of V's target network, with M members. z, z_next, z_goal, sequence and
    state_latents carry gradients.
    """

    z: torch.Tensor  # (B, P, D)
    z_next: torch.Tensor  # (B, P, D)
    z_goal: torch.Tensor  # (B, P, D)
    target_z: torch.Tensor  # (B, P, D) z from the target encoder
    proposer_goal: torch.Tensor  # (B, P, D) from the target encoder
    e_z: torch.Tensor  # (M, B, P, E)
    e_z_next: torch.Tensor  # (M, B, P, E)
    e_z_goal: torch.Tensor  # (M, B, P, E)
    e_proposer_goal: torch.Tensor  # (M, B, P, E)
    sequence: torch.Tensor  # (W, L, D) f(s_<=t) at every position of the first W windows
    state_latents: torch.Tensor  # (B, P, D) f(s_t), all dimensions of s_t


class OfflineAgent:
    """Encoder, Q, V, proposer and prediction heads, their target networks and one Adam optimiser.

    The networks stay in eval mode and have no random parts. `observation_dim` and the config
    determine their sizes. The config has no 0 that stands for a number from the data.

    Attributes:
        nets: ModuleDict of the trained networks. targets: moving averages of encoder and value.
        has_objects: whether goals are about objects (planning/objects.py).
        has_dropout: whether observations are dropped and repeat the one before
            (observing/state_estimator.py).
    """

    def __init__(self, observation_dim, config, device='cpu', backend='torch'):
        if not min(config.context_length, config.transition_steps, config.discount) > 0:
            raise ValueError(f'context_length {config.context_length}, transition_steps '
                             f'{config.transition_steps} and discount {config.discount} of an agent must be above 0')
        self.observation_dim = observation_dim
        self.config = config
        self.device = torch.device(device)

        # networks
        d = config.d_model
        h = config.hidden_dim
        encoder = Encoder(observation_dim, d, config.n_layers, config.d_state, config.d_conv,
                          config.expand, config.headdim, config.context_length, backend,
                          config.encoder)
        self.nets = nn.ModuleDict({
            'encoder': encoder,
            'critic': GoalValue(d, h, n_inputs=3),
            'value': GoalValue(d, h, n_inputs=2),
            'proposer': Proposer(d, h),
            'next_state': mlp([d, h, observation_dim]),
            'reward': mlp([2 * d, h, 1]),
            'contrast': nn.Linear(d, d),
        }).to(self.device).eval()

        # targets
        self.targets = copy.deepcopy(nn.ModuleDict({k: self.nets[k] for k in ('encoder', 'value')}))
        self.targets.requires_grad_(False)
        self.step = 0
        self.has_objects = False
        self.has_dropout = False

    @functools.cached_property
    def optimizer(self):
        """Return the Adam optimiser of `nets`, made when it is first used: with it, torch loads its compiler (3 s)."""
        return torch.optim.Adam(self.nets.parameters(), lr=self.config.lr, fused=True)

    @property
    def encoder(self):
        """Return the trained encoder."""
        return self.nets['encoder']

    def goal_feature_affine(self):
        """Return the numpy arrays mean (S,) and scale (S, S) of `Encoder.goal_features`.

        The goal features of a state s are (s - mean) @ scale.
        """
        encoder = self.encoder
        mean, std, weights, directions = (
            t.cpu().numpy()
            for t in (encoder.mean, encoder.std, encoder.goal_weights, encoder.goal_directions))
        return mean, directions * weights / std[:, None]

    def position_dims(self):
        """Return the position dimensions, an int array in order of falling goal weight.

        They are the dimensions of goal features whose weight exceeds `POSITION_WEIGHT`; none with
        --no-slow_goals.
        """
        if not self.config.slow_goals:
            return np.zeros(0, int)
        weights = self.encoder.goal_weights.cpu().numpy()
        order = np.argsort(-weights, kind='stable')
        return order[weights[order] > POSITION_WEIGHT]

    @property
    def has_axis_aligned_goals(self):
        """Return whether goal features are dimensions of the state."""
        directions = self.encoder.goal_directions
        return torch.equal(directions, torch.eye(len(directions), device=directions.device))

    @property
    def has_places(self):
        """Return whether goal features weigh slow directions more than others, or slowness is not used."""
        return not self.config.slow_goals or bool((self.encoder.goal_weights != 1).any())

    def position_directions(self):
        """Return the directions (S, r) of the normalised state that are position dimensions, a tensor."""
        return self.encoder.goal_directions[:, torch.as_tensor(self.position_dims())]

    def set_statistics(self, mean, std, goal_weights, has_objects=False, has_dropout=False,
                       goal_directions=None):
        """Store the statistics of the training observations in the encoder and its target.

        Args:
            mean, std, goal_weights: (S,); goal weights are ignored with --no-slow_goals.
            goal_directions: (S, S), ignored with them; None: the dimensions.
            has_objects: whether the weights are those of objects (`find_objects`).
            has_dropout: whether observations are dropped and repeat the one before.
        """
        self.has_dropout = has_dropout
        self.has_objects = has_objects and self.config.slow_goals
        for encoder in (self.nets['encoder'], self.targets['encoder']):
            if self.config.slow_goals:
                encoder.set_statistics(mean, std, goal_weights, goal_directions)
            else:
                encoder.set_statistics(mean, std)

    # ----------------------------------------------------------------------------------- objectives
    def encode(self, batch):
        """Encode a WindowBatch once, for all losses.

        z, z_next and z_goal encode goal features of single states. A V that saw the history would
        infer where its trajectory leads, and could not combine parts of different trajectories.

        Returns:
            Latents.
        """
        states = at_positions(batch.observations, batch.positions)
        next_states = at_positions(batch.observations, batch.next_positions)

        # only next-state prediction needs sequences, and no more than the context
        count = len(batch.observations) if self.has_dropout else self.config.sequence_windows
        windows = batch.observations[:count, :self.config.context_length]
        sequence = (self.encoder(windows) if len(windows)
                    else windows.new_zeros(0, 0, self.config.d_model))

        # one call encodes all single states
        z, z_next, z_goal = self.encoder.encode_features(
            torch.cat([states, next_states, batch.goals], 1)).chunk(3, 1)

        # the same by the target encoder
        with torch.no_grad():
            everything = torch.cat([states, next_states, batch.goals, batch.proposer_goals], 1)
            targets = self.targets['encoder'].encode_features(everything).chunk(4, 1)

        return Latents(
            z=z,
            z_next=z_next,
            z_goal=z_goal,
            sequence=sequence,
            state_latents=self.encoder.encode_state(states),
            **self._embedded(*targets),
        )

    @torch.no_grad()
    def _embedded(self, target_z, target_z_next, target_z_goal, proposer_goal):
        """Return the fields of Latents that come from the target networks, as a dict.

        Args:
            target_z, target_z_next, target_z_goal, proposer_goal: (B, P, D) latents of the target
                encoder.
        """
        stacked = torch.stack([target_z, target_z_next, target_z_goal, proposer_goal])
        e_z, e_z_next, e_z_goal, e_proposer_goal = self.targets['value'].embed(stacked).unbind(1)
        return {'target_z': target_z, 'proposer_goal': proposer_goal, 'e_z': e_z, 'e_z_next': e_z_next,
                'e_z_goal': e_z_goal, 'e_proposer_goal': e_proposer_goal}

    def k_step_return(self, latents, batch):
        """Return R + gamma^k V_target(z_{t+k}, z_g) (B, P), without gradient.

        `discounts` holds gamma^k, or 0 if the goal was met on the way.
        """
        v_next = minus_distance(latents.e_z_next, latents.e_z_goal).mean(0)
        return self.config.reward_scale * batch.rewards + batch.discounts * v_next

    def critic_loss(self, latents, batch):
        """Regress Q(z_t, z_{t+k}, z_g) on `k_step_return`."""
        target = self.k_step_return(latents, batch)
        q = self.nets['critic'](latents.z, latents.z_next, latents.z_goal)
        loss = (q - target).square().mean()
        return loss, {'critic_loss': loss, 'q_mean': q.mean()}

    def value_loss(self, latents, batch):
        """Regress V(z, z_g) on `k_step_return` by expectiles (IQL, Kostrikov et al. 2021, eq. 5).

        The data contain the transition from z to z', so that V does not need an averaged Q, which
        would delay values.
        """
        q = self.k_step_return(latents, batch)
        v = self.nets['value'](latents.z, latents.z_goal)
        loss = expectile_loss(v, q, self.config.expectile)
        return loss, {'value_loss': loss, 'v_mean': v.mean(), 'v_min': v.min(), 'v_max': v.max()}

    def infonce_loss(self, latents, batch):
        """Contrast f(s_t) with z_{t+k}: symmetric InfoNCE (van den Oord et al. 2018).

        Negatives are latents of other windows, since those of the same window may be as near. The
        prediction needs what moves the robot, such as heading and velocity, and keeps it in f(s_t).
        """
        # cosines of predicted and actual latents
        predicted = F.normalize(self.nets['contrast'](latents.state_latents.flatten(0, 1)), dim=-1)
        actual = F.normalize(latents.z_next.flatten(0, 1), dim=-1)
        logits = predicted @ actual.T / 0.1

        # without other transitions of the same window
        count, positions = batch.positions.shape
        window = torch.arange(count, device=logits.device).repeat_interleave(positions)
        same = (window[:, None] == window).fill_diagonal_(False)
        logits = logits.masked_fill(same, -1e9)

        # predictions against latents, and latents against predictions
        labels = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        accuracy = (logits.argmax(1) == labels).float().mean()
        return loss, {'infonce_loss': loss, 'infonce_accuracy': accuracy}

    def alignment_loss(self, latents, batch):
        """Align latent steps with the direction to future goals: 1 - cos(z_{t+k} - z_t, z_g - z_t)."""
        cosine = F.cosine_similarity(latents.z_next - latents.z, latents.z_goal - latents.z, dim=-1)
        loss = _mean_where(batch.future, 1 - cosine)
        return loss, {'alignment_loss': loss}

    def predict_next(self, latents, observations):
        """Predict the normalised s_{t+1} (..., S).

        If observations are dropped, the network predicts the change since the last observation.

        Args:
            latents: (..., D) f(s_<=t) or f(s_t).
            observations: (..., S) s_t, raw.
        """
        predicted = self.nets['next_state'](latents)
        if self.has_dropout:
            predicted = predicted + self.encoder.normalize(observations)
        return predicted

    def state_loss(self, latents, batch):
        """Predict the normalised s_{t+1} from f(s_<=t) and from f(s_t): mean squared error.

        The loss keeps joint angles and velocities in f(s_t), which the policy reads.
        """
        # next states that were observed
        states = batch.observations[:, :-1]
        target = self.encoder.normalize(batch.observations[:, 1:])
        observed = batch.valids[:, 1:]
        if self.has_dropout:  # a dropped observation is no target
            observed = observed & (batch.observations[:, 1:] != states).any(-1)

        # from single states
        predicted = self.predict_next(latents.state_latents, at_positions(states, batch.positions))
        error = (predicted - at_positions(target, batch.positions)).square().mean(-1)
        single = _mean_where(observed.gather(1, batch.positions), error)
        windows = len(latents.sequence)
        if not windows:
            return single, {'state_loss': single}

        # from sequences
        length = min(latents.sequence.shape[1], target.shape[1])
        predicted = self.predict_next(latents.sequence[:, :length], states[:windows, :length])
        error = (predicted - target[:windows, :length]).square().mean(-1)
        sequence = _mean_where(observed[:windows, :length], error)

        loss = 0.5 * (sequence + single)
        return loss, {'state_loss': loss}

    def reward_loss(self, latents, batch):
        """Classify "z is at z_g" by cross-entropy; it stands for both the reward and the end."""
        logits = self.nets['reward'](torch.cat([latents.z, latents.z_goal], -1)).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, batch.at_goal.float())
        return loss, {'reward_loss': loss}

    def proposer_loss(self, latents, batch):
        """Regress f_P(z, z_g) on the latent k steps later, or on z_g if the goal is nearer.

        The distance is taken in V's embedding. Rows are weighted by the advantage of what is imitated,
        V(target, z_g) - V(z, z_g), as in HIQL's high-level policy (Park et al. 2023, eq. 5; OGBench's
        `high_actor_targets`). The targets and the proposer's inputs have no gradient.
        """
        # the imitated latent and its weight
        goal = latents.e_proposer_goal
        target = torch.where(batch.proposer_near.unsqueeze(-1), goal, latents.e_z_next)
        weight = imitation_weight(advantage(latents.e_z, target, goal), self.config.proposer_temperature)

        # the proposal
        proposed = self.nets['proposer'](latents.target_z, latents.proposer_goal)
        error = (self.targets['value'].embed(proposed) - target).square().sum(-1).mean(0)
        loss = (weight * error).mean()
        return loss, {'proposer_loss': loss, 'proposer_error': error.mean()}

    def total_loss(self, batch):
        """Return the weighted sum of all losses and their metrics; losses of weight 0 are skipped.

        The result depends on the batch and the networks alone.
        """
        config = self.config
        objectives = (
            (self.proposer_loss, 1),
            (self.critic_loss, config.critic_weight),
            (self.value_loss, config.value_weight),
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
            loss, metrics = objective(latents, batch)
            total = total + weight * loss
            info |= metrics
        return total, info | {'total_loss': total}

    # -------------------------------------------------------------------------------------- updates
    def update(self, batch):
        """Take one gradient step on `total_loss`, move the targets; return the metrics as floats."""
        loss, info = self.total_loss(batch)
        info['grad_norm'] = self.apply_gradient(loss)
        return {name: value.item() for name, value in info.items()}

    def apply_gradient(self, loss):
        """Take one optimiser step, move the targets, and return the gradient norm before clipping."""
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.nets.parameters(), self.config.grad_clip)
        self.optimizer.step()
        for name, target in self.targets.items():
            soft_update(target, self.nets[name], self.config.target_rate)
        self.step += 1
        return norm

    # ---------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """Return tensors and builtins from which `from_state_dict` rebuilds this agent exactly."""
        return {
            'observation_dim': self.observation_dim,
            'config': dataclasses.asdict(self.config),
            'nets': self.nets.state_dict(),
            'targets': self.targets.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
            'has_objects': self.has_objects,
            'has_dropout': self.has_dropout,
        }

    def load_state_dict(self, state):
        """Load what `state_dict` returned.

        Raises:
            ValueError: if sizes differ; the message names them.
        """
        if state['observation_dim'] != self.observation_dim:
            raise ValueError(f"the checkpoint is for observations of {state['observation_dim']} "
                             f'dimensions, this environment or dataset has {self.observation_dim}')
        load_weights(self.nets, state['nets'])
        load_weights(self.targets, state['targets'])
        if state['optimizer'] is not None:
            load_optimizer(self.optimizer, state['optimizer'])
        self.step = state['step']
        self.has_objects = state['has_objects']
        self.has_dropout = state['has_dropout']

    @classmethod
    def from_state_dict(cls, state, device='cpu', backend='torch'):
        """Rebuild the agent of a `state_dict` on a device.

        Raises:
            ValueError: if `state` is not one of this code.
        """
        check_layout(state, STATE_LAYOUT)
        check_layout(state['nets'], {'encoder.mean': Tensor('float32', 'S')}, S=state['observation_dim'])
        config = make_config(OfflineConfig, state['config'])
        config.check()

        agent = cls(state['observation_dim'], config, device, backend)
        agent.load_state_dict(state)
        return agent


def expectile_loss(prediction, target, expectile):
    """Return the mean of |expectile - 1(d < 0)| d^2 with d = target - prediction (IQL, eq. 5).

    Its minimiser is the expectile of the targets, which is optimistic above 0.5.
    """
    difference = target - prediction
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean()


def advantage(e_z, e_later, e_goal):
    """Return V(z_later, z_g) - V(z, z_g) (...), averaged over the M members of V.

    Args:
        e_z, e_later, e_goal: (M, ..., E) embeddings.
    """
    return (minus_distance(e_later, e_goal) - minus_distance(e_z, e_goal)).mean(0)


def _mean_where(mask, values):
    """Average `values` where the bool `mask` of the same shape is true."""
    mask = mask.float()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def at_positions(sequence, positions):
    """Select positions (B, P) of a sequence (B, L, D): (B, P, D)."""
    return sequence.gather(1, positions.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
