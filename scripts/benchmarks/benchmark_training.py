"""Sections of the benchmark on layers and offline updates, on a CPU and a GPU; `benchmark.py` runs them."""

import functools
import itertools
import sys

import numpy as np
import torch
from benchmark_peers import (
    CausalTransformer,
    OneTransitionPerWindow,
    gru,
    mambapy_mamba1,
    transformers_mamba2,
)
from benchmark_tools import STATES, Row, interleaved, make_offline

from mamba import Mamba2, choose_backend, load_mamba_ssm_scan
from model import GRULayer
from support.figures import default_style, optional_picture, save, subplots


def layer_step(layer, batch, length, device='cpu'):
    """Return a function that runs a layer forward and backward on (batch, length, 128); None for no layer."""
    if layer is None:
        return None
    layer = layer.to(device)
    u = torch.randn(batch, length, 128, device=device, requires_grad=True)

    def step():
        layer(u).square().mean().backward()

    return step


def layers():
    """Return our layer and its peers by name, all of width 128."""
    ours = Mamba2(128)
    parameters = sum(p.numel() for p in ours.parameters())
    return {
        'ours': ours,
        '--encoder gru, with as many parameters': GRULayer(128, parameters),
        "transformers' Mamba2Mixer": transformers_mamba2(128),
        '… with its default chunks of 256': transformers_mamba2(128, 256),
        'mambapy (Mamba-1)': mambapy_mamba1(128),
        'nn.GRU(128, 256)': gru(128),
        'causal Transformer layer': CausalTransformer(128),
    }


def layer(options):
    """Time one layer on batches of training."""
    functions = {name: layer_step(net, 16, 100) for name, net in layers().items()}
    times = interleaved(functions, options.rounds(15))
    yield Row('Mamba-2 layer, forward + backward (B 16, L 100, d 128)', times.pop('ours'), times,
              '1.5x transformers, 5x mambapy, 1x GRU')


def curve(options):
    """Time one layer at growing lengths L; peers over the limit are left out of greater lengths."""
    limit = 2 if options.quick else 6  # seconds
    points = {}  # name -> [(length, seconds)]
    for length in (100, 500, 1000, 4000)[:3 if options.quick else 4]:
        slow = {name for name, line in points.items() if line[-1][1] > limit}
        functions = {name: layer_step(net, 2, length) for name, net in layers().items() if name not in slow}
        times = interleaved(functions, options.rounds(3))
        for name, seconds in times.items():
            if seconds:
                points.setdefault(name, []).append((length, seconds))

        ours = times.pop('ours')
        peers = {name: seconds for name, seconds in times.items() if seconds}
        yield Row(f'the same layer, B 2, L {length}', ours, peers, 'linear in L',
                  f'{1e6 * ours / 2 / length:.1f} us per position')
    if options.figure:
        with optional_picture(options.figure):
            draw_curve(points, options.figure)


@default_style()
def draw_curve(points, path):
    """Draw the times of `curve`, {name: [(length, seconds)]}, with logarithmic axes."""
    figure, ((axis,),) = subplots(1, 1, (5.6, 3.8))
    colors = itertools.cycle(('#222222', '#0072B2', '#56B4E9', '#E69F00', '#009E73', '#CC79A7'))
    for (name, line), color in zip(points.items(), colors, strict=False):
        width = 2.2 if name == 'ours' else 1.3
        axis.loglog(*zip(*line, strict=True), 'o-', label=name, color=color, lw=width, ms=4)
    axis.set(xlabel='sequence length L', ylabel='seconds, forward + backward',
             title='one layer, B 2, d 128')
    axis.grid(alpha=0.25, which='both', lw=0.5)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def offline(options):
    """Time offline updates, per transition, and updates on one transition per window."""
    agent, data = make_offline()
    full_agent, full_data = make_offline(positions_per_window=0)
    peer = OneTransitionPerWindow(STATES, agent.config)
    windows = torch.from_numpy(data.observations[:16 * 102].reshape(16, 102, STATES))
    rng = np.random.default_rng(0)

    functions = {
        'ours': lambda: agent.update(data.sample(16, rng)),
        'peer': lambda: peer.update(windows[:, :100], windows[:, 1:101], windows[:, 2:]),
        'full': lambda: full_agent.update(full_data.sample(16, rng)),
    }
    times = interleaved(functions, options.rounds(12))
    count = 16 * agent.config.positions_per_window
    full_ratio = times['peer'] / 16 / (times['full'] / 1600)
    yield Row(f'offline update, per transition ({count} at once)', times['ours'] / count,
              {'one transition per window (16 at once)': times['peer'] / 16}, '50x',
              f"{count / times['ours']:,.0f} transitions per second, "
              f"{1e3 * times['ours']:.0f} ms per update; "
              f'with --positions_per_window 0 (1,600 at once) {full_ratio:.0f}x')


OBJECTIVES = {'critic_weight': 'Q', 'infonce_weight': 'InfoNCE', 'alignment_weight': 'alignment',
              'state_weight': 'next state', 'reward_weight': 'reward/done'}


def parts(options):
    """Time the parts of an update and count their arithmetic."""
    from torch.utils.flop_counter import FlopCounterMode

    agent, data = make_offline()
    nets = agent.nets
    targets = agent.targets
    rng = np.random.default_rng(0)
    batch = data.sample(16, rng)
    weights = {name: getattr(agent.config, name) for name in OBJECTIVES}

    def encoder():
        latents = vars(agent.encode(batch)).values()
        sum(value.sum() for value in latents if value.requires_grad).backward()

    @torch.no_grad()
    def target_networks():
        z = targets['encoder'].encode_features(torch.cat([batch.goals] * 4))
        targets['value'].embed(z)

    def sampling():
        data.sample(16, rng)

    def optimiser():
        agent.apply_gradient(sum(p.sum() * 0 for p in nets.parameters()))

    def whole():
        agent.update(batch)

    def without(weight):
        def step():
            setattr(agent.config, weight, 0.0)
            agent.update(batch)
            setattr(agent.config, weight, weights[weight])

        return step

    pieces = {
        'whole': whole,
        'encoder': encoder,
        'targets': target_networks,
        'sampling': sampling,
        'optimiser': optimiser,
        **{name: without(name) for name in OBJECTIVES},
    }
    times = interleaved(pieces, options.rounds(9))
    flops = {}
    for name, piece in pieces.items():
        with FlopCounterMode(display=False) as counter:
            piece()
        flops[name] = counter.get_total_flops()
    for table in (times, flops):
        table['encoder'] -= table['targets']  # `encode` runs the targets as well
        table['heads'] = table['whole'] - sum(table[name] for name in ('encoder', 'targets', 'optimiser'))

    # the parts
    total = times['whole'] + times['sampling']
    notes = [f'{name} {times[name] / total:.0%} ({flops[name] / flops["whole"]:.0%} of the arithmetic)'
             for name in ('encoder', 'heads', 'targets')]
    notes.append(f"optimiser {times['optimiser'] / total:.0%}, sampling {times['sampling'] / total:.1%}")
    yield Row('parts of an offline update', total, {},
              'fractions of time and arithmetic within 1.5x, sampling < 5 %',
              f"{', '.join(notes)}; {flops['whole'] / 1e9:.1f} GFLOP "
              f"at {flops['whole'] / total / 1e9:.0f} GFLOP/s")

    # the objectives, by leaving out each
    fractions = {text: 1 - flops[name] / flops['whole'] for name, text in OBJECTIVES.items()}
    saved = [f'{text} {1 - times[name] / times["whole"]:.0%} ({fractions[text]:.1%} of the arithmetic)'
             for name, text in OBJECTIVES.items()]
    yield Row('offline update without one objective', total, {}, '', f"saves: {', '.join(saved)}", fractions)


def cuda(options):
    """Time layer and whole update on a GPU, and a bound: its FLOPs at the speed of a matrix product."""
    device = options.device
    if device == 'cpu':
        yield Row('CUDA: layer and whole update', 0.0, {}, 'within 2x of the FLOPs',
                  'not measured: needs --device cuda')
        return

    # one layer
    torch.manual_seed(0)
    functions = {'ours': layer_step(Mamba2(128), 16, 100, device)}
    compiled = torch.compile(Mamba2(128).to(device))
    functions['torch.compile'] = layer_step(compiled, 16, 100, device)
    try:
        fast = Mamba2(128)
        fast.scan = load_mamba_ssm_scan()
        functions['our layer, mamba_ssm scan'] = layer_step(fast, 16, 100, device)
        from mamba_ssm import Mamba2 as OriginalMamba2
        original = OriginalMamba2(128, d_state=16, headdim=32)
        functions['mamba_ssm.Mamba2'] = layer_step(original, 16, 100, device)
    except ImportError as error:
        functions['mamba_ssm.Mamba2'] = None
        print(f'mamba_ssm: {error}', file=sys.stderr)
    times = interleaved(functions, options.rounds(30), device, warmup=5)
    backend, why = choose_backend('auto', device)
    yield Row(f'CUDA layer, forward + backward; auto chooses {backend}', times.pop('ours'), times,
              'auto the fastest', why)

    # the whole update
    functions = {}
    for name in {'torch', backend}:
        agent, data = make_offline(device, name)
        batch = data.sample(16, np.random.default_rng(0)).to(agent.device)
        functions[name] = functools.partial(agent.update, batch)
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        functions['torch']()
    a = torch.randn(4096, 4096, device=device)
    functions['product'] = lambda: a @ a
    times = interleaved(functions, options.rounds(20), device, warmup=5)
    bound = counter.get_total_flops() / (2 * 4096 ** 3 / times.pop('product'))
    peers = {'its FLOPs at the speed of a 4096 x 4096 product': bound}
    if backend != 'torch':
        peers['torch backend'] = times['torch']
    yield Row('CUDA offline update', times[backend], peers, 'within 2x of the FLOPs')
