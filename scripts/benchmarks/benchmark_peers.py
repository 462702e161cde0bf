"""Peers of the benchmark: other layers of the same width, and training on one transition per window.

Functions that make a layer return None if its package is missing. All layers map (B, L, d_model) to the
same shape.
"""

import importlib.util
import inspect

import torch
import torch.nn.functional as F
from torch import nn

from model import Encoder, GoalValue, mlp, soft_update
from offline_agent import expectile_loss


def transformers_mamba2(d_model, chunk_size=32):
    """Return transformers' Mamba2Mixer in plain PyTorch: the same function as our layer.

    Its default chunks of 256 are several times slower at L = 100.
    """
    if not importlib.util.find_spec('transformers'):
        return None
    from transformers.models.mamba2 import modeling_mamba2

    for name in ('causal_conv1d_fn', 'mamba2_chunk_scan'):  # mamba_ssm's CUDA kernels, if installed
        setattr(modeling_mamba2, name, inspect.unwrap(getattr(modeling_mamba2, name)))
    config = modeling_mamba2.Mamba2Config(
        hidden_size=d_model, state_size=16, conv_kernel=4, expand=2, head_dim=32, num_heads=2 * d_model // 32,
        n_groups=1, chunk_size=chunk_size, layer_norm_epsilon=1e-5, num_hidden_layers=1)
    return modeling_mamba2.Mamba2Mixer(config, layer_idx=0)


def mambapy_mamba1(d_model):
    """Return mambapy's Mamba-1 block, whose parallel scan is plain PyTorch."""
    if not importlib.util.find_spec('mambapy'):
        return None
    from mambapy.mamba import MambaBlock, MambaConfig
    return MambaBlock(MambaConfig(d_model=d_model, n_layers=1))


class GRU(nn.GRU):
    """An `nn.GRU` that returns its outputs only."""

    def forward(self, u):
        return super().forward(u)[0]


def gru(d_model):
    """Return a GRU of Mamba's inner width."""
    return GRU(d_model, 2 * d_model, batch_first=True)


class CausalTransformer(nn.TransformerEncoderLayer):
    """A pre-norm causal Transformer layer with 4 heads."""

    def __init__(self, d_model):
        super().__init__(d_model, 4, 4 * d_model, dropout=0.0, activation='gelu', batch_first=True,
                         norm_first=True)

    def forward(self, u):
        mask = nn.Transformer.generate_square_subsequent_mask(u.shape[1], u.device)
        return super().forward(u, src_mask=mask, is_causal=True)


class OneTransitionPerWindow:
    """Training on one transition per window of `context_length` states, its last, as in the original OPSO.

    States, next states and goals are windows that are encoded separately. Networks and losses are ours.
    """

    def __init__(self, observation_dim, config):
        self.config = config
        d = config.d_model
        h = config.hidden_dim
        self.nets = nn.ModuleDict({
            'encoder': Encoder(observation_dim, d, config.n_layers),
            'critic': GoalValue(d, h, n_inputs=3),
            'value': GoalValue(d, h),
            'next_state': mlp([d, h, observation_dim]),
            'reward': mlp([2 * d, h, 1]),
        })
        self.target = GoalValue(d, h, n_inputs=3).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=config.lr)

    def update(self, states, next_states, goals):
        """Take one gradient step on B transitions; arguments (B, L, S) each."""
        nets = self.nets
        z, z_next, z_goal = (nets['encoder'](window)[:, -1] for window in (states, next_states, goals))
        with torch.no_grad():
            target = -1 + self.config.discount * nets['value'](z_next, z_goal).mean(0)
            q_target = self.target(z, z_next, z_goal).mean(0)
        logits = F.normalize(z, dim=-1) @ F.normalize(z_goal, dim=-1).T / 0.1
        loss = ((nets['critic'](z, z_next, z_goal) - target).square().mean()
                + expectile_loss(nets['value'](z, z_goal), q_target, self.config.expectile)
                + (nets['next_state'](z) - next_states[:, -1]).square().mean()
                + F.cross_entropy(logits, torch.arange(len(z), device=z.device))
                + (1 - F.cosine_similarity(z_next - z, z_goal - z)).mean()
                + nets['reward'](torch.cat([z, z_goal], -1)).square().mean())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(nets.parameters(), self.config.grad_clip)
        self.optimizer.step()
        soft_update(self.target, nets['critic'], self.config.target_rate)
        return loss.detach()
