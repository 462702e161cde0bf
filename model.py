"""Networks of OPSO and nothing else: no losses, no optimiser, no files.

    code          paper               meaning
    B, L, S, D                        batch, sequence length, observation size, latent size (d_model)
    z             z_t = f(s_<=t)      latent of the causal encoder after the last <= context_length states
    z_goal        z_g = f(g)          the goal, encoded as a sequence of length one by the same encoder
    z_next        z'                  a latent some steps later
    GoalValue     V(z, z_g), Q(z, z', z_g)
    Proposer      f_P(z, z_g) -> z'
    InverseDynamics  I(z, z', z_g) -> a
"""

import math
from typing import NamedTuple

import support.threads  # noqa: F401  before torch

import torch
from torch import nn

from mamba import Mamba2, load_mamba_ssm_scan, ssd_scan
from support.kernels import GELU


def mlp(sizes):
    """Linear layers with LayerNorm and GELU between them; `sizes` counts input and output."""
    layers = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers.append(nn.Linear(n_in, n_out))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(n_out), GELU()]
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------------- encoder
class GRULayer(nn.Module):
    """What a Mamba-2 layer is compared with: a GRU of about as many `parameters`, with the same methods."""

    def __init__(self, d_model, parameters):
        super().__init__()
        # 3 h (d + h + 2) of the GRU and d (h + 1) of the projection
        linear = 4 * d_model + 6
        hidden = int((math.sqrt(linear ** 2 + 12 * (parameters - d_model)) - linear) / 6)
        self.gru = nn.GRU(d_model, hidden, batch_first=True)
        self.output = nn.Linear(hidden, d_model)

    def train(self, mode=True):
        """cuDNN has gradients of a GRU in training mode only. Without dropout both modes compute the same."""
        super().train(mode)
        self.gru.train()
        return self

    def forward(self, u):
        """u (B, L, d_model) -> (B, L, d_model)."""
        return self.output(self.gru(u)[0])

    def forward_single(self, u):
        """u (..., d_model), each row a sequence of length one -> (..., d_model)."""
        return self.forward(u.reshape(-1, 1, u.shape[-1])).view(u.shape)

    def initial_state(self, batch_size):
        return (self.output.weight.new_zeros(batch_size, self.gru.hidden_size),)

    def step(self, u, state):
        """u (B, d_model), state -> (output (B, d_model), new state)."""
        hidden = self.gru(u.unsqueeze(1), state[0].unsqueeze(0))[1][0]
        return self.output(hidden), (hidden,)


class MLPLayer(nn.Module):
    """The same without a memory: position t depends on position t alone."""

    def __init__(self, d_model, parameters):
        super().__init__()
        self.net = mlp([d_model, (parameters - d_model) // (2 * d_model + 3), d_model])

    def forward(self, u):
        """u (..., d_model) -> (..., d_model)."""
        return self.net(u)

    forward_single = forward

    def initial_state(self, batch_size):
        return ()

    def step(self, u, state):
        return self.net(u), ()


class EncoderState(NamedTuple):
    """What acting remembers. Two streams (first axis of each tensor, folded into the batch: 2B rows) restart
    every `context_length` steps, half a period apart; `count` (B,) is the number of states seen."""
    layers: tuple
    count: torch.Tensor

    def reset(self, rows):
        """Forget everything in the rows where the bool mask `rows` (B,) is true (a new episode)."""
        return EncoderState(_forget(self.layers, torch.cat([rows, rows])), self.count * ~rows)


def _forget(layers, rows):
    """The memories of all layers, each a tuple of tensors (2B, ...), with zeros where the mask `rows` (2B,) is true."""
    return tuple(tuple(memory.masked_fill(rows.view(-1, *[1] * (memory.ndim - 1)), 0) for memory in layer)
                 for layer in layers)


class Encoder(nn.Module):
    """Causal encoder of state sequences: normalise, project, `n_layers` pre-norm residual blocks, norm. `kind` says
    what a block is: mamba (Mamba-2), or for comparison gru or mlp, of as many parameters; mlp remembers nothing.

    Observations go in raw: their mean and std are buffers of this module (`set_statistics`), and nothing
    else in the project normalises. `context_length` bounds the memory of `step` as training windows do.
    """

    def __init__(self, observation_dim, d_model=128, n_layers=2, d_state=16, d_conv=4, expand=2, headdim=32,
                 context_length=100, backend='torch', kind='mamba'):
        super().__init__()
        self.d_model = d_model
        self.context_length = context_length

        self.register_buffer('mean', torch.zeros(observation_dim))
        self.register_buffer('std', torch.ones(observation_dim))
        self.register_buffer('slowness', torch.ones(observation_dim))

        self.input = nn.Linear(observation_dim, d_model)
        layers = [Mamba2(d_model, d_state, d_conv, expand, headdim) for _ in range(n_layers)]
        if kind != 'mamba':
            block = {'gru': GRULayer, 'mlp': MLPLayer}[kind]
            layers = [block(d_model, parameters=sum(p.numel() for p in layer.parameters())) for layer in layers]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers))
        self.final_norm = nn.RMSNorm(d_model, eps=1e-5)

        self.set_backend(backend)

    def set_backend(self, backend):
        for layer in self.layers:
            if isinstance(layer, Mamba2):
                layer.scan = load_mamba_ssm_scan() if backend == 'mamba_ssm' else ssd_scan

    def set_statistics(self, mean, std, slowness=None):
        """mean, std (S,) of the training observations; a dimension that never varies keeps std 1. `slowness`
        (S,): how much of each dimension `encode_features` sees, default all of it."""
        mean = torch.as_tensor(mean, dtype=torch.float32)
        std = torch.as_tensor(std, dtype=torch.float32)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
        if slowness is not None:
            self.slowness.copy_(torch.as_tensor(slowness))

    def normalize(self, observations):
        return (observations - self.mean) / self.std

    def denormalize(self, states):
        return states * self.std + self.mean

    def forward(self, observations):
        """(B, L, S) raw observations -> z (B, L, D); z at t depends on observations 0..t of its row."""
        h = self.input(self.normalize(observations))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(norm(h))
        return self.final_norm(h)

    def place(self, observations):
        """(..., S) raw states -> (..., S), normalised and weighted by `slowness`: where a state is."""
        return self.normalize(observations) * self.slowness

    def encode_features(self, observations):
        """(..., S) raw states or goals -> z (..., D): each a sequence of length one, seen as its `place`."""
        return self._encode_single(self.place(observations))

    def encode_state(self, observations):
        """(..., S) raw states -> f(s_t) (..., D): each a sequence of length one, all of it."""
        return self._encode_single(self.normalize(observations))

    def _encode_single(self, normalized):
        h = self.input(normalized)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer.forward_single(norm(h))
        return self.final_norm(h)

    def initial_state(self, batch_size):
        layers = tuple(layer.initial_state(2 * batch_size) for layer in self.layers)
        count = torch.zeros(batch_size, dtype=torch.long, device=self.mean.device)
        return EncoderState(layers, count)

    def step(self, observations, state):
        """(B, S), state -> (z (B, D), new state): O(1) however long the context.

        Equal to `forward` on the states since the older stream's last restart: all of the first
        `context_length` states, and between context_length / 2 and context_length states from then on.
        """
        count = state.count
        c = self.context_length
        restart = torch.cat([count % c == 0, count % c == c // 2])
        h = self.input(self.normalize(observations)).repeat(2, 1)

        layers = []
        for norm, layer, memory in zip(self.norms, self.layers, _forget(state.layers, restart), strict=True):
            out, new = layer.step(norm(h), memory)
            h = h + out
            layers.append(new)

        first, second = self.final_norm(h).unflatten(0, (2, -1))
        second_is_older = (count >= c) & (count % c < c // 2)
        z = torch.where(second_is_older[:, None], second, first)
        return z, EncoderState(tuple(layers), count + 1)


# --------------------------------------------------------------------------------------------------- heads
def minus_distance(a, b):
    """-|a - b| over the last axis: what a `GoalValue` makes of two embeddings (..., E) -> (...)."""
    return -(a - b).square().sum(-1).add(1e-6).sqrt()


class GoalValue(nn.Module):
    """Ensemble of goal-conditioned values: V(z, z_g) has `n_inputs` 2 and Q(z, z', z_g) has 3.

    Minus a distance between embeddings, -|e(z) - e(z_g)| for V (HILP, Park et al. 2024, eq. 3) and
    -|f(z, z') - e(z_g)| for Q, so that V's embedding e holds how far apart in time two states are and little
    else: `embed` is the space in which z' is compared and read. forward(*latents (..., D)) -> (n_ensemble, ...).
    """

    def __init__(self, latent_dim, hidden_dim=256, n_inputs=2, n_ensemble=2, embedding_dim=64):
        super().__init__()
        sizes = [latent_dim, hidden_dim, hidden_dim, embedding_dim]
        self.goal = nn.ModuleList(mlp(sizes) for _ in range(n_ensemble))
        self.source = self.goal
        if n_inputs == 3:
            sizes[0] = 2 * latent_dim
            self.source = nn.ModuleList(mlp(sizes) for _ in range(n_ensemble))

    def embed(self, z):
        """z (..., D) -> e(z) (n_ensemble, ..., embedding_dim)."""
        return torch.stack([e(z) for e in self.goal])

    def forward(self, *latents):
        *source, z_goal = latents
        source = torch.cat(source, -1)
        return minus_distance(torch.stack([f(source) for f in self.source]), self.embed(z_goal))


class Proposer(nn.Module):
    """The state-only policy f_P(z, z_g) -> z': a step in latent space, added to z."""

    def __init__(self, latent_dim, hidden_dim=256):
        super().__init__()
        self.net = mlp([2 * latent_dim, hidden_dim, hidden_dim, latent_dim])

    def forward(self, z, z_goal):
        return z + self.net(torch.cat([z, z_goal], -1))


class InverseDynamics(nn.Module):
    """I(z, *targets) -> action (..., A); unbounded, so clip to the action space where it is executed.

    `targets` say what lies ahead, relative to now; `input_dim` counts all of them and z.
    """

    def __init__(self, input_dim, action_dim, hidden_dim=256):
        super().__init__()
        self.net = mlp([input_dim, hidden_dim, hidden_dim, action_dim])

    def forward(self, z, *targets):
        return self.net(torch.cat([z, *targets], -1))
