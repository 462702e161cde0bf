"""The benchmark's sections on layers and offline updates, on a CPU and on a GPU; `benchmark.py` runs them."""

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


def layer_step(layer, batch, length, device='cpu'):
    """-> a function that runs the layer forward and backward on (batch, length, 128); None for no layer."""
    if layer is None:
        return None
    layer, u = layer.to(device), torch.randn(batch, length, 128, device=device, requires_grad=True)

    def step():
        layer(u).square().mean().backward()

    return step


def layers():
    ours = Mamba2(128)
    parameters = sum(p.numel() for p in ours.parameters())
    return {'ours': ours, '--encoder gru, of as many parameters': GRULayer(128, parameters),
            "transformers' Mamba2Mixer": transformers_mamba2(128),
            '… with its default chunks of 256': transformers_mamba2(128, 256), 'mambapy (Mamba-1)': mambapy_mamba1(128),
            'nn.GRU(128, 256)': gru(128), 'causal Transformer layer': CausalTransformer(128)}


def layer(options):
    times = interleaved({name: layer_step(net, 16, 100) for name, net in layers().items()}, options.rounds(15))
    yield Row('Mamba-2 layer, forward + backward (B 16, L 100, d 128)', times.pop('ours'), times,
              '1.5x transformers, 5x mambapy, 1x GRU')


def curve(options):
    """Time per position at growing L; a peer that took over 10 s is left out of what follows."""
    points = {}
    for length in (100, 500, 1000, 4000)[:3 if options.quick else 4]:
        slow = {name for name, seconds in points.items() if seconds[-1][1] > (2 if options.quick else 6)}
        functions = {name: layer_step(net, 2, length) for name, net in layers().items() if name not in slow}
        for name, seconds in interleaved(functions, options.rounds(3)).items():
            if seconds:
                points.setdefault(name, []).append((length, seconds))
        last = {name: f'{1e6 * s[-1][1] / 2 / length:.1f}' for name, s in points.items() if s[-1][0] == length}
        ours = points['ours'][-1][1]
        yield Row(f'the same layer, B 2, L {length}', ours,
                  {name: points[name][-1][1] for name in last if name != 'ours'},
                  'linear in L', f"{last['ours']} us per position")
    if options.figure:
        draw_curve(points, options.figure)


def draw_curve(points, path):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 3.8), layout='constrained')
    colors = itertools.cycle(('#222222', '#0072B2', '#56B4E9', '#E69F00', '#009E73', '#CC79A7'))
    for (name, line), color in zip(points.items(), colors, strict=False):
        axis.loglog(*zip(*line, strict=True), 'o-', label=name, color=color, lw=2.2 if name == 'ours' else 1.3, ms=4)
    axis.set(xlabel='sequence length L', ylabel='seconds, forward + backward',
             title='one layer, B 2, d 128')
    axis.grid(alpha=0.25, which='both', lw=0.5)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def offline(options):
    agent, data = make_offline()
    every, all_data = make_offline(positions_per_window=0)
    c, rng = agent.config, np.random.default_rng(0)
    theirs = OneTransitionPerWindow(STATES, c)
    windows = torch.from_numpy(data.observations[:16 * 102].reshape(16, 102, STATES))

    def ours():
        agent.update(data.sample(16, rng))

    def ours_everywhere():
        every.update(all_data.sample(16, rng))

    def seed():
        theirs.update(windows[:, :100], windows[:, 1:101], windows[:, 2:])

    times = interleaved({'ours': ours, 'seed': seed, 'every': ours_everywhere}, options.rounds(12))
    per_update = 16 * c.positions_per_window
    yield Row(f'offline update, per transition ({per_update} at once)', times['ours'] / per_update,
              {'one transition per window (16 at once)': times['seed'] / 16}, '50x',
              f"{per_update / times['ours']:,.0f} transitions per second, {1e3 * times['ours']:.0f} ms per update; "
              f"with --positions_per_window 0 (1,600 at once) {times['seed'] / 16 / (times['every'] / 1600):.0f}x")


OBJECTIVES = {'critic_weight': 'Q', 'infonce_weight': 'InfoNCE', 'alignment_weight': 'alignment',
              'state_weight': 'next state', 'reward_weight': 'reward/done'}


def parts(options):
    """Where an update's time goes, beside the share of its multiplications."""
    from torch.utils.flop_counter import FlopCounterMode

    agent, data = make_offline()
    rng, nets, targets = np.random.default_rng(0), agent.nets, agent.targets
    batch = data.sample(16, rng)

    def encoder():
        sum(value.sum() for value in vars(agent.encode(batch)).values() if value.requires_grad).backward()

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

    weights = {name: getattr(agent.config, name) for name in OBJECTIVES}
    pieces = {'whole': whole, 'encoder': encoder, 'targets': target_networks, 'sampling': sampling,
              'optimiser': optimiser} | {name: without(name) for name in OBJECTIVES}
    times, flops = interleaved(pieces, options.rounds(9)), {}
    for name, piece in pieces.items():
        with FlopCounterMode(display=False) as counter:
            piece()
        flops[name] = counter.get_total_flops()
    for table in (times, flops):
        table['encoder'] -= table['targets']  # which `encode` runs as well
        table['heads'] = table['whole'] - sum(table[name] for name in ('encoder', 'targets', 'optimiser'))
    total = times['whole'] + times['sampling']
    note = ', '.join(f'{name} {times[name] / total:.0%} (of the arithmetic {flops[name] / flops["whole"]:.0%})'
                     for name in ('encoder', 'heads', 'targets'))
    note += f", optimiser {times['optimiser'] / total:.0%}, sampling {times['sampling'] / total:.1%}"
    yield Row('parts of an offline update', total, {}, 'shares of time and arithmetic within 1.5x, sampling < 5 %',
              f"{note}; {flops['whole'] / 1e9:.1f} GFLOP at {flops['whole'] / total / 1e9:.0f} GFLOP/s")

    shares = {text: 1 - flops[name] / flops['whole'] for name, text in OBJECTIVES.items()}
    saved = ', '.join(f'{text} {1 - times[name] / times["whole"]:.0%} (of the arithmetic {shares[text]:.1%})'
                      for name, text in OBJECTIVES.items())
    yield Row('offline update without one objective', total, {}, '', f'saves: {saved}', shares)


def cuda(options):
    """Layer and whole update on a GPU, beside what its own matrix products need for as many FLOPs."""
    device = options.device
    if device == 'cpu':
        yield Row('CUDA: layer and whole update', 0.0, {}, 'within 2x of the FLOPs', 'open: needs --device cuda')
        return
    torch.manual_seed(0)
    ours = Mamba2(128)
    functions = {'ours': layer_step(ours, 16, 100, device)}
    compiled = torch.compile(Mamba2(128).to(device))
    functions['torch.compile'] = layer_step(compiled, 16, 100, device)
    try:
        fast = Mamba2(128)
        fast.scan = load_mamba_ssm_scan()
        functions['our layer, mamba_ssm scan'] = layer_step(fast, 16, 100, device)
        from mamba_ssm import Mamba2 as Theirs
        functions['mamba_ssm.Mamba2'] = layer_step(Theirs(128, d_state=16, headdim=32), 16, 100, device)
    except ImportError as error:
        functions['mamba_ssm.Mamba2'] = None
        print(f'mamba_ssm: {error}', file=sys.stderr)
    times = interleaved(functions, options.rounds(30), device, warmup=5)
    backend, why = choose_backend('auto', device)
    yield Row(f'CUDA layer, forward + backward; auto takes {backend}', times.pop('ours'), times, 'auto the fastest',
              why)
    functions, agents = {}, {}
    for name in {'torch', backend}:
        agents[name], data = make_offline(device, name)
        batch = data.sample(16, np.random.default_rng(0)).to(agents[name].device)
        functions[name] = lambda agent=agents[name], batch=batch: agent.update(batch)
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        functions['torch']()
    a = torch.randn(4096, 4096, device=device)
    functions['product'] = lambda: a @ a
    times = interleaved(functions, options.rounds(20), device, warmup=5)
    bound = counter.get_total_flops() / (2 * 4096 ** 3 / times.pop('product'))
    yield Row('CUDA offline update', times[backend], {'its FLOPs at the speed of a 4096 x 4096 product': bound, **(
        {'torch backend': times['torch']} if backend != 'torch' else {})}, 'within 2x of the FLOPs')
