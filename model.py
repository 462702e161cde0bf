"""The networks of OPSO, their moving averages and the imitation weight; no losses, no files.

    code             paper                     meaning
    B, L, S, D                                 sizes: batch, sequence, observation, latent (d_model)
    z, z_goal        z, z_g                    latents of the goal features of a state and a goal
    z_next           z'                        z some steps later
    sequence         f(s_<=t)                  latent of at most the last context_length states
    state latent     f(s)                      latent of all dimensions of a single state
    GoalValue        V(z, z_g), Q(z, z', z_g)
    Proposer         f_P(z, z_g) -> z'         the state-only policy
    InverseDynamics  pi(f(s), s, z', z_g) -> a the policy
"""

import math
from typing import NamedTuple

import support.threads  # noqa: F401  before torch

import torch
from torch import nn

from environments.checks import ERRORS, describe
from environments.user_modules import find_in_user_module
from mamba import Mamba2, load_mamba_ssm_scan, ssd_scan
from support.tolerances import divisor


def mlp(sizes):
    """Build linear layers with LayerNorm and GELU between them.

    Args:
        sizes: widths of the input, the hidden layers and the output.
    """
    layers = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers.append(nn.Linear(n_in, n_out))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(n_out), nn.GELU()]
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------ encoder
class GRULayer(nn.Module):
    """A GRU with about as many `parameters` as a Mamba-2 layer and the same methods, for comparison."""

    def __init__(self, d_model, parameters):
        super().__init__()
        # 3 h (d + h + 2) of the GRU and d (h + 1) of the projection
        linear = 4 * d_model + 6
        hidden = int((math.sqrt(linear ** 2 + 12 * (parameters - d_model)) - linear) / 6)
        self.gru = nn.GRU(d_model, hidden, batch_first=True)
        self.output = nn.Linear(hidden, d_model)

    def train(self, mode=True):
        """Keep the GRU in training mode, since cuDNN has no gradients in eval mode.

        Without dropout, both modes compute the same.
        """
        super().train(mode)
        self.gru.train()
        return self

    def forward(self, u):
        """Map u (B, L, d_model) to outputs of the same shape."""
        return self.output(self.gru(u)[0])

    def forward_single(self, u):
        """Map u (..., d_model), each row a sequence of length one, to outputs of the same shape."""
        return self.forward(u.reshape(-1, 1, u.shape[-1])).view(u.shape)

    def initial_state(self, batch_size):
        """Return the zero state before the first step: a tuple of one tensor (B, hidden)."""
        return (self.output.weight.new_zeros(batch_size, self.gru.hidden_size),)

    def step(self, u, state):
        """Map u (B, d_model) and the state to the output (B, d_model) and the next state."""
        hidden = self.gru(u.unsqueeze(1), state[0].unsqueeze(0))[1][0]
        return self.output(hidden), (hidden,)


class MLPLayer(nn.Module):
    """A layer without memory, for comparison: the output at t depends on the input at t alone."""

    def __init__(self, d_model, parameters):
        super().__init__()
        self.net = mlp([d_model, (parameters - d_model) // (2 * d_model + 3), d_model])

    def forward(self, u):
        """Map u (..., d_model) to outputs of the same shape."""
        return self.net(u)

    forward_single = forward

    def initial_state(self, batch_size):
        """Return the empty state of a layer without memory."""
        return ()

    def step(self, u, state):
        """Map u (B, d_model) to the output (B, d_model); the state stays empty."""
        return self.net(u), ()


class EncoderState(NamedTuple):
    """Memory of the encoder while it reads B sequences step by step.

    Two streams, folded into the batch (2B rows), restart every `context_length` steps, half a
    period apart.
    """

    layers: tuple  # for each layer, a tuple of tensors (2B, ...)
    count: torch.Tensor  # (B,) int, states read

    def reset(self, rows):
        """Clear the memory of the rows where the bool mask `rows` (B,) is true (a new episode)."""
        return EncoderState(_clear(self.layers, torch.cat([rows, rows])), self.count * ~rows)


def _clear(layers, rows):
    """Zero the memories of all layers where the bool mask `rows` (2B,) is true.

    Args:
        layers: for each layer, a tuple of tensors (2B, ...).
    """
    return tuple(tuple(memory.masked_fill(rows.view(-1, *[1] * (memory.ndim - 1)), 0)
                       for memory in layer)
                 for layer in layers)


LAYERS = {'gru': GRULayer, 'mlp': MLPLayer}  # beside 'mamba'; choices of --encoder


def find_layer(kind):
    """Return the class of layers of --encoder: one of `LAYERS`, or your own, 'module:Class'.

    Raises:
        ValueError: in one line, if there is none.
    """
    if kind in LAYERS:
        return LAYERS[kind]
    if ':' not in kind:
        raise ValueError(f'--encoder {kind}: must be mamba, {", ".join(LAYERS)} or module:Class of your own')
    found = find_in_user_module(kind, '--encoder', 'class')
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f'--encoder {kind}: it is no class of torch.nn.Module; derive it from it')
    return found


def make_layer(kind, d_model, parameters):
    """Return a layer of --encoder, of about as many `parameters`; your own are checked.

    Raises:
        ValueError: if your own layer fails, or `step` and `forward_single` are not what `forward` computes.
    """
    layer_class = find_layer(kind)
    if kind in LAYERS:
        return layer_class(d_model, parameters=parameters)
    try:
        layer = layer_class(d_model, parameters=parameters)
        with torch.no_grad():
            problem = _find_problem(layer.eval(), torch.linspace(-1, 1, 6 * d_model).view(2, 3, d_model))
    except ERRORS as error:
        raise ValueError(f'--encoder {kind}: it fails with {describe(error)}; docs/library.md has an '
                         'example') from error
    if problem:
        raise ValueError(f'--encoder {kind}: {problem}; docs/library.md has an example')
    return layer


def _find_problem(layer, inputs):
    """Return what is wrong with the outputs of a layer for inputs (2, 3, d_model), in words, or ''."""
    outputs = layer(inputs)
    if outputs.shape != inputs.shape:
        return f'`forward` maps {tuple(inputs.shape)} to {tuple(outputs.shape)}; the shape must stay'

    # step by step, as in acting
    memory = layer.initial_state(2)
    if not isinstance(memory, tuple) or any(part.any() for part in memory):
        return '`initial_state` must be a tuple of zeros, since zeros begin an episode'
    steps = []
    for t in range(3):
        output, memory = layer.step(inputs[:, t], memory)
        steps.append(output)
    if not torch.allclose(torch.stack(steps, 1), outputs, rtol=1e-3, atol=1e-4):
        return '`step` gives other outputs than `forward`; both must compute the same from the states so far'
    if not torch.allclose(layer.forward_single(inputs[:, 0]), outputs[:, 0], rtol=1e-3, atol=1e-4):
        return '`forward_single` differs from `forward` on sequences of one state'
    return ''


class Encoder(nn.Module):
    """Causal encoder of state sequences.

    Observations are normalised and projected; `n_layers` pre-norm residual blocks and a norm
    follow. `kind` names the block: mamba (Mamba-2), or for comparison gru or mlp (no memory) with
    as many parameters, or module:Class of your own layer with the methods of `GRULayer`. Its state is
    a tuple of tensors with the batch first, and zeros are an empty memory.

    Inputs are raw observations. Their mean and std are buffers of this module (`set_statistics`).
    `context_length` bounds the memory of `step` as windows do in training.
    """

    def __init__(self, observation_dim, d_model=128, n_layers=2, d_state=16, d_conv=4, expand=2,
                 headdim=32, context_length=100, backend='torch', kind='mamba'):
        super().__init__()
        self.d_model = d_model
        self.context_length = context_length

        self.register_buffer('mean', torch.zeros(observation_dim))
        self.register_buffer('std', torch.ones(observation_dim))
        self.register_buffer('goal_directions', torch.eye(observation_dim))
        self.register_buffer('goal_weights', torch.ones(observation_dim))

        # the blocks, with as many parameters whatever their kind
        self.input = nn.Linear(observation_dim, d_model)
        layers = [Mamba2(d_model, d_state, d_conv, expand, headdim) for _ in range(n_layers)]
        if kind != 'mamba':
            size = sum(p.numel() for p in layers[0].parameters())
            layers = [make_layer(kind, d_model, size) for _ in range(n_layers)]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers))
        self.final_norm = nn.RMSNorm(d_model, eps=1e-5)

        self.set_backend(backend)

    def set_backend(self, backend):
        """Choose the scan of all Mamba-2 layers: 'torch' or 'mamba_ssm'."""
        for layer in self.layers:
            if isinstance(layer, Mamba2):
                layer.scan = load_mamba_ssm_scan() if backend == 'mamba_ssm' else ssd_scan

    def set_statistics(self, mean, std, goal_weights=None, goal_directions=None):
        """Store the statistics of the training observations.

        Args:
            mean, std: (S,); a dimension that never varies is normalised to nearly 0 (`divisor`).
            goal_weights: (S,) in [0, 1], weight of each direction in `goal_features`; None leaves
                them as they are, initially 1.
            goal_directions: (S, S), directions of the normalised state in columns; None leaves them
                as they are, initially its dimensions.
        """
        mean = torch.as_tensor(mean, dtype=torch.float32)
        std = torch.as_tensor(std, dtype=torch.float32)
        self.mean.copy_(mean)
        self.std.copy_(divisor(std, mean))
        if goal_weights is not None:
            self.goal_weights.copy_(torch.as_tensor(goal_weights))
        if goal_directions is not None:
            self.goal_directions.copy_(torch.as_tensor(goal_directions))

    def normalize(self, observations):
        """Subtract the training mean from raw observations (..., S) and divide by the std."""
        return (observations - self.mean) / self.std

    def denormalize(self, states):
        """Invert `normalize`."""
        return states * self.std + self.mean

    def goal_features(self, observations):
        """Normalise raw states (..., S), project them on `goal_directions` and weight the result."""
        return self.normalize(observations) @ self.goal_directions * self.goal_weights

    def forward(self, observations):
        """Encode sequences (B, L, S) of raw observations to f(s_<=t) (B, L, D) at every t."""
        return self._encode(self.normalize(observations), [layer.forward for layer in self.layers])

    def encode_features(self, observations):
        """Encode the goal features of raw states or goals (..., S) to z (..., D).

        Each row is a sequence of length one.
        """
        return self._encode(self.goal_features(observations),
                            [layer.forward_single for layer in self.layers])

    def encode_state(self, observations):
        """Encode all dimensions of raw states (..., S) to f(s) (..., D).

        Each row is a sequence of length one.
        """
        return self._encode(self.normalize(observations),
                            [layer.forward_single for layer in self.layers])

    def _encode(self, inputs, layers):
        """Project inputs (..., S), add each layer's output, normalise; return latents (..., D)."""
        h = self.input(inputs)
        for norm, layer in zip(self.norms, layers, strict=True):
            h = h + layer(norm(h))
        return self.final_norm(h)

    def initial_state(self, batch_size):
        """Return the EncoderState before the first states of `batch_size` sequences."""
        layers = tuple(layer.initial_state(2 * batch_size) for layer in self.layers)
        count = torch.zeros(batch_size, dtype=torch.long, device=self.mean.device)
        return EncoderState(layers, count)

    def step(self, observations, state):
        """Encode the next raw states (B, S) of B sequences in O(1) time, whatever the context.

        The result equals `forward` on the states since the older stream's last restart. These are
        all of the first `context_length` states, and later between context_length / 2 and
        context_length states.

        Returns:
            f(s_<=t) (B, D) and the next EncoderState.
        """
        # which streams restart at this step
        count = state.count
        c = self.context_length
        restart = torch.cat([count % c == 0, count % c == c // 2])
        h = self.input(self.normalize(observations)).repeat(2, 1)

        # both streams advance side by side
        layers = []
        for norm, layer, memory in zip(self.norms, self.layers, _clear(state.layers, restart),
                                       strict=True):
            out, new = layer.step(norm(h), memory)
            h = h + out
            layers.append(new)

        # the stream that restarted longer ago has the longer memory
        first, second = self.final_norm(h).unflatten(0, (2, -1))
        second_is_older = (count >= c) & (count % c < c // 2)
        z = torch.where(second_is_older[:, None], second, first)
        return z, EncoderState(tuple(layers), count + 1)


# -------------------------------------------------------------------------------------------- heads
def minus_distance(a, b):
    """Return -|a - b| (...) for embeddings a, b (..., E)."""
    return -(a - b).square().sum(-1).add(1e-6).sqrt()


class GoalValue(nn.Module):
    """Ensemble of goal-conditioned values: V(z, z_g) has `n_inputs` 2 and Q(z, z', z_g) has 3.

    A value is minus a distance between embeddings, -|e(z) - e(z_g)| for V (HILP, Park et al. 2024,
    eq. 3) and -|h(z, z') - e(z_g)| for Q. Distances in V's embedding e are distances in time.
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
        """Embed z (..., D) by each member: e(z) (n_ensemble, ..., embedding_dim)."""
        return torch.stack([e(z) for e in self.goal])

    def forward(self, *latents):
        """Return the values (n_ensemble, ...) of latents (..., D).

        Args:
            latents: (z, z_g) for V, (z, z', z_g) for Q.
        """
        *source, z_goal = latents
        source = torch.cat(source, -1)
        return minus_distance(torch.stack([f(source) for f in self.source]), self.embed(z_goal))


class Proposer(nn.Module):
    """The state-only policy f_P(z, z_g) -> z', a residual network: its output is added to z."""

    def __init__(self, latent_dim, hidden_dim=256):
        super().__init__()
        self.net = mlp([2 * latent_dim, hidden_dim, hidden_dim, latent_dim])

    def forward(self, z, z_goal):
        """Propose z' (..., D) from z and z_goal (..., D)."""
        return z + self.net(torch.cat([z, z_goal], -1))


class InverseDynamics(nn.Module):
    """The policy pi(f(s), s, z', z_g) -> a. Its actions are unbounded: clip them to [-1, 1].

    Args:
        input_dim: dimensions of f(s) and of the task's inputs (tasks.py) together.
    """

    def __init__(self, input_dim, action_dim, hidden_dim=256):
        super().__init__()
        self.net = mlp([input_dim, hidden_dim, hidden_dim, action_dim])

    def forward(self, latent, *inputs):
        """Return actions (..., A) for f(s) (..., D) and the inputs (..., n) of `Locomotion.inputs`."""
        return self.net(torch.cat([latent, *inputs], -1))


@torch.no_grad()
def soft_update(target, source, rate):
    """Move every parameter of `target` toward the same one of `source` by the fraction `rate`."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def imitation_weight(advantage, temperature):
    """Return min(exp(temperature * advantage), 100) divided by its mean, of the advantage's shape."""
    weight = (temperature * advantage).exp().clamp(max=100.0)
    return weight / weight.mean()
