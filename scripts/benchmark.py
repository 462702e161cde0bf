"""How fast OPSO is, as ratios to named peers that run in the same process, in turns with it.

    python scripts/benchmark.py --markdown              # the table of the README, under five minutes on two cores
    python scripts/benchmark.py --quick --only layer    # a few seconds

Every time is the median over rounds; in each round everything that is compared runs once, so that whatever else the
machine does falls on all alike. All run with the settings OPSO runs with, its matrix kernels included (kernels.py).
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402
from benchmark_peers import (  # noqa: E402
    CausalTransformer,
    OneTransitionPerWindow,
    gru,
    mambapy_mamba1,
    transformers_mamba2,
)

from model import Mamba2, choose_backend, load_mamba_ssm_scan  # noqa: E402
from offline_agent import OfflineAgent, OfflineConfig  # noqa: E402
from online_agent import LatentStore, OnlineAgent, OnlineConfig  # noqa: E402
from trajectories import ReplayBuffer, TrajectoryDataset  # noqa: E402
from utils import run_main  # noqa: E402

STATES, ACTIONS, ENV = 29, 8, 'antmaze-medium-navigate-v0'


@dataclasses.dataclass
class Row:
    """One line of the table: `ours` seconds against each peer's (None: the package is missing)."""
    what: str
    ours: float
    peers: dict
    goal: str = ''
    note: str = ''


def interleaved(functions, rounds, device='cpu', warmup=1, calls=1):
    """{name: function or None} -> {name: median seconds of a call or None}, the functions taking turns of `calls`."""
    times = {name: [] for name, function in functions.items() if function}
    for i in range(warmup + rounds):
        for name, taken in times.items():
            begin = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            if device == 'cuda':
                torch.cuda.synchronize()
            if i >= warmup:
                taken.append((time.perf_counter() - begin) / calls)
    return {name: float(np.median(times[name])) if name in times else None for name in functions}


# ---------------------------------------------------------------------------------------------------- layers
def layer_step(layer, batch, length, device='cpu'):
    """-> a function that runs the layer forward and backward on (batch, length, 128); None for no layer."""
    if layer is None:
        return None
    layer, u = layer.to(device), torch.randn(batch, length, 128, device=device, requires_grad=True)

    def step():
        layer(u).square().mean().backward()

    return step


def layers():
    return {'ours': Mamba2(128), "transformers' Mamba2Mixer": transformers_mamba2(128),
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


# --------------------------------------------------------------------------------------------------- updates
def random_walks(count, length, **sampling):
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((count, length, STATES), np.float32).cumsum(1).reshape(-1, STATES)
    ends = np.arange(1, count + 1) * length - 1
    return TrajectoryDataset(observations, ends - length + 1, ends, **sampling)


def make_offline(device='cpu', backend='torch', **changes):
    config = OfflineConfig(**changes)
    data = random_walks(50, 1001, **config.sampling())
    torch.manual_seed(0)
    agent = OfflineAgent(STATES, config, device, backend)
    agent.set_statistics(*data.statistics(), data.slowness())
    return agent, data


def offline(options):
    agent, data = make_offline()
    every, all_data = make_offline(positions_per_window=0)
    c, rng = agent.config, np.random.default_rng(0)
    theirs = OneTransitionPerWindow(STATES, c)
    windows = torch.from_numpy(data.observations[:16 * 102].reshape(16, 102, STATES))

    def ours():
        agent.update(agent.to_device(data.sample(16, rng)))

    def ours_everywhere():
        every.update(every.to_device(all_data.sample(16, rng)))

    def seed():
        theirs.update(windows[:, :100], windows[:, 1:101], windows[:, 2:])

    times = interleaved({'ours': ours, 'seed': seed, 'every': ours_everywhere}, options.rounds(12))
    per_update = 16 * c.positions_per_window
    yield Row(f'offline update, per transition ({per_update} at once)', times['ours'] / per_update,
              {'one transition per window (16 at once)': times['seed'] / 16}, '50x',
              f"{per_update / times['ours']:,.0f} transitions per second, {1e3 * times['ours']:.0f} ms per update; "
              f"with --positions_per_window 0 (1,600 at once) {times['seed'] / 16 / (times['every'] / 1600):.0f}x")


def parts(options):
    """Where an update's time goes, beside the share of its multiplications."""
    from torch.utils.flop_counter import FlopCounterMode

    agent, data = make_offline()
    rng, nets, targets = np.random.default_rng(0), agent.nets, agent.targets
    batch = data.sample(16, rng)
    with torch.no_grad():
        latents = agent.encode(batch)

    def encoder():
        x = torch.cat([batch[k].flatten(0, 1) for k in ('goals', 'goals', 'goals')])  # as many rows as z, z', z_g
        loss = agent.encoder(batch['observations'][:, :agent.config.context_length]).sum()
        (loss + agent.encoder.encode_goal(x).sum()).backward()

    @torch.no_grad()
    def target_networks():
        rows = batch['goals'].flatten(0, 1)
        targets['encoder'].encode_goal(torch.cat([rows] * 4))
        agent.embed_targets(latents)
        targets['critic'](latents['target_z'], latents['target_z_next'], latents['target_z_goal'])

    def sampling():
        data.sample(16, rng)

    def optimiser():
        agent.apply_gradient(sum(p.sum() * 0 for p in nets.parameters()))

    def whole():
        agent.update(batch)

    pieces = {'whole': whole, 'encoder': encoder, 'targets': target_networks, 'sampling': sampling,
              'optimiser': optimiser}
    times, flops = interleaved(pieces, options.rounds(9)), {}
    for name, piece in pieces.items():
        with FlopCounterMode(display=False) as counter:
            piece()
        flops[name] = counter.get_total_flops()
    for table in (times, flops):
        table['heads'] = table['whole'] - sum(table[name] for name in ('encoder', 'targets', 'optimiser'))
    total = times['whole'] + times['sampling']
    note = ', '.join(f'{name} {times[name] / total:.0%} (of the arithmetic {flops[name] / flops["whole"]:.0%})'
                     for name in ('encoder', 'heads', 'targets'))
    note += f", optimiser {times['optimiser'] / total:.0%}, sampling {times['sampling'] / total:.1%}"
    yield Row('parts of an offline update', total, {}, 'shares of time and arithmetic within 1.5x, sampling < 5 %',
              f"{note}; {flops['whole'] / 1e9:.1f} GFLOP at {flops['whole'] / total / 1e9:.0f} GFLOP/s")


def make_online(device='cpu', **changes):
    agent, data = make_offline(device, **changes)
    online = OnlineAgent(agent, ACTIONS, OnlineConfig())
    replay, rng = ReplayBuffer(STATES, ACTIONS, **agent.config.sampling()), np.random.default_rng(0)
    for _ in range(10):
        actions = rng.uniform(-1, 1, (500, ACTIONS)).astype(np.float32)
        replay.add(rng.standard_normal((501, STATES), np.float32), actions)
    return online, data, replay


def acting(options):
    """Acting with memory (--head_memory history), which is the slower kind, and without."""
    from ogbench_utils import make_env, reset_env

    env = make_env(ENV)
    reset_env(env, 1, 0)
    action = env.action_space.sample()
    for memory in ('state', 'history'):
        agent = make_online(head_memory=memory)[0]
        functions = {'ant': lambda: env.step(action)} | {f'act {n}': act_step(agent, n) for n in (1, 8, 64)}
        times = interleaved(functions, options.rounds(20), calls=10)
        yield Row(f'act, batch of 8, head_memory {memory}', times['act 8'], {'one step of the ant': times['ant']},
                  'below one ant step', ', '.join(f'{n}: {1e3 * times[f"act {n}"]:.2f} ms' for n in (1, 8, 64))
                  + f"; {times['act 8'] / 8 / times['ant']:.0%} of the 8 steps that it decides")
    for context in (10, 100, 1000):
        agent = make_online(head_memory='history', context_length=context)[0]
        window = torch.randn(8, context, STATES)
        times = interleaved({'act': act_step(agent, 8), 'window': lambda a=agent, w=window: encode(a.encoder, w)},
                            options.rounds(20), calls=3)
        yield Row(f'act, batch of 8, context {context}', times['act'],
                  {'encoding the window at each step': times['window']}, 'flat in the context')


@torch.no_grad()
def encode(encoder, window):
    return encoder(window)


def act_step(agent, n):
    observations, goals = np.random.default_rng(0).standard_normal((2, n, STATES), np.float32)
    memory = [agent.initial_state(n)]

    def step():
        memory[0] = agent.act(observations, goals, memory[0])[1]

    return step


def online(options):
    """Without the cache, the latents of every batch are encoded anew: windows with head_memory history."""
    for memory in ('state', 'history'):
        agent, data, replay = make_online(head_memory=memory)
        stores, rng = (LatentStore(data, agent), LatentStore(replay, agent)), np.random.default_rng(0)

        def cached(agent=agent, stores=stores, rng=rng):
            for _ in range(agent.config.value_interval):  # Q, V and proposer are part of one in so many
                agent.update(agent.sample(*stores, rng))

        def encoded(agent=agent, data=data, cached=cached, memory=memory):
            c = agent.offline.config
            rows = agent.config.batch_size * c.context_length
            states = torch.from_numpy(data.observations[:5 * rows])
            for _ in range(agent.config.value_interval):
                with torch.no_grad():
                    if memory == 'state':
                        agent.encoder.encode_goal(states)  # z, z', z_g, the proposer's goal and a later z'
                    else:  # each of z, z' and the later z' sees its own past
                        agent.encoder.encode_goal(states[:2 * rows])
                        for _ in range(3):
                            for i in range(0, rows, 100):
                                agent.encoder(data_windows(data, rows, c.context_length)[i:i + 100])
            cached()

        times = interleaved({'ours': cached, 'encoded': encoded}, options.rounds(3 if memory == 'history' else 6))
        one, other = (times[name] / agent.config.value_interval for name in ('ours', 'encoded'))
        yield Row(f'online update of 800 transitions, head_memory {memory}', one, {'without cached latents': other},
                  '5x', f'{1 / one:.0f} updates per second')


def data_windows(data, count, length):
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(
        data.observations[:count + length - 1], length, 0).transpose(0, 2, 1).copy())


# ---------------------------------------------------------------------------------- environments and loading
def evaluation(options):
    """Environment steps of lock-step episodes; the same episodes, bit by bit, in every arrangement of 8."""
    from ogbench_utils import make_env, safe_envs
    from rollouts import run_episodes
    from workers import EnvWorkers, cpu_cores

    agent = make_online()[0]
    processes = min(4, cpu_cores())
    alone, side_by_side = safe_envs(lambda: make_env(ENV), 1), safe_envs(lambda: make_env(ENV), 8)
    spread = EnvWorkers(ENV, 8, processes) if processes > 1 else side_by_side
    jobs, steps = [(n % 5 + 1, n) for n in range(8)], 400 if options.quick else 1600

    def run(envs):
        return [episode for episode in run_episodes(envs, jobs, agent, max_steps=steps)]

    episodes = [run(side_by_side), run(spread)]
    same = all(np.array_equal(a['observations'], b['observations']) for a, b in zip(*episodes, strict=True))
    times = interleaved({'ours': lambda: run(spread), 'one': lambda: run(alone), 'list': lambda: run(side_by_side)},
                        options.rounds(5), warmup=0)
    yield Row(f'evaluation, {processes} processes of 8 environments, per step', times['ours'] / steps,
              {'one environment at a time': times['one'] / steps, '8 in one process': times['list'] / steps}, '1.7x',
              f"episodes {'identical' if same else 'DIFFERENT'} to those of one process; "
              f"5 x 20 episodes of 1,000 steps: {1e5 / 60 * times['ours'] / steps:.1f} minutes at most")


LOADERS = {
    'ours': 'ogbench_utils.load_trajectories(sys.argv[1])',
    'ogbench': 'ogbench.make_env_and_datasets({name!r}, dataset_dir=os.path.dirname(sys.argv[1]), dataset_only=True)',
}
LOAD = """
import os, sys, time, tracemalloc
sys.path.insert(0, {root!r})
import ogbench, ogbench_utils
if {traced}:
    tracemalloc.start()
begin = time.perf_counter()
{load}
print(tracemalloc.get_traced_memory()[1] / 1e6 if {traced} else time.perf_counter() - begin)
"""


def loading(options):
    """Each in a fresh process: seconds after the imports; in one more, the most memory it held at a time."""
    count, rows = (200, 1001) if options.quick else (1000, 1001)

    def measure(name, traced):
        code = LOAD.format(root=str(ROOT), load=LOADERS[name].format(name=ENV), traced=traced)
        return float(subprocess.run([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True,
                                    check=True).stdout.split()[-1])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'{ENV}.npz'
        write_dataset(path, count, rows)
        write_dataset(path.with_name(f'{ENV}-val.npz'), 1, rows)
        seconds = {name: [] for name in LOADERS}
        for name in (*LOADERS,) * options.rounds(3):
            seconds[name].append(measure(name, False))
        megabytes = {name: measure(name, True) for name in LOADERS}
    ours, theirs = (float(np.median(seconds[name])) for name in LOADERS)
    yield Row(f'loading {count:,} trajectories of {rows:,} states', ours, {'ogbench.make_env_and_datasets': theirs},
              '2x, half the memory', f"{megabytes['ours']:.0f} MB at most, against {megabytes['ogbench']:.0f} MB")


def write_dataset(path, count, rows):
    """A file in OGBench's layout, of the bundled states over and over: real numbers compress like real data."""
    with np.load(ROOT / 'datasets' / 'antmaze-medium-navigate-mini-v0.npz', allow_pickle=False) as bundled:
        observations = np.resize(bundled['observations'], (count * rows, STATES)).astype(np.float32)
    terminals = np.zeros((count, rows), bool)
    terminals[:, -1] = True
    np.savez_compressed(path, observations=observations, terminals=terminals.ravel(), qpos=observations[:, :15],
                        qvel=observations[:, 15:], actions=np.tanh(observations[:, :ACTIONS]))


# ------------------------------------------------------------------------------------------------------ CUDA
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
        batch = agents[name].to_device(data.sample(16, np.random.default_rng(0)))
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


# ----------------------------------------------------------------------------------------------------- table
SECTIONS = {f.__name__: f for f in (layer, curve, offline, parts, acting, online, evaluation, loading, cuda)}


def seconds_text(seconds):
    scale, unit = next((s, u) for s, u in ((1, 's'), (1e3, 'ms'), (1e6, 'us')) if seconds * s >= 1 or u == 'us')
    return f'{seconds * scale:.3g} {unit}' if seconds else ''


def ratios_text(row):
    return '; '.join(f'{seconds / row.ours:.2g}x {name}' if seconds else f'(not installed: {name})'
                     for name, seconds in row.peers.items())


def machine():
    names = {name: metadata.version(name) for name in ('torch', 'numpy', 'mujoco', 'ogbench', 'transformers', 'mambapy',
                                                       'mamba-ssm')
             if name in {d.metadata['Name'].lower() for d in metadata.distributions()}}
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), cpu)
    versions = ', '.join(f'{name} {version}' for name, version in names.items())
    return (f'{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) for torch, '
            f'Python {platform.python_version()}, {versions}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='fewer rounds and smaller sizes: under a minute')
    parser.add_argument('--only', default='', help=f'comma-separated sections out of {", ".join(SECTIONS)}')
    parser.add_argument('--device', default='cpu', help='cuda adds the rows of a GPU')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch (default: 1)')
    parser.add_argument('--markdown', action='store_true', help='print a table for a README')
    parser.add_argument('--json', default='', help='file for the numbers')
    parser.add_argument('--figure', default='', help='PNG of the time over the sequence length')
    options = parser.parse_args(argv)
    options.rounds = lambda n: max(2, n // 4) if options.quick else n
    chosen = options.only.split(',') if options.only else list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise ValueError(f'--only {unknown[0]}: the sections are {", ".join(SECTIONS)}')
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch sees no CUDA device here')
    torch.set_num_threads(options.threads)
    rows, begin = [], time.perf_counter()
    if options.markdown:
        print('| what | ours | ratio: time of the peer over ours | goal | remarks |\n|---|---|---|---|---|')
    for name in chosen:
        for row in SECTIONS[name](options):
            rows.append(dataclasses.asdict(row))
            cells = (row.what, seconds_text(row.ours), ratios_text(row), row.goal, row.note)
            text = '| ' + ' | '.join(cells) + ' |' if options.markdown else '\n    '.join(filter(None, cells))
            print(text, flush=True)
    print(f'\n{machine()}; {time.perf_counter() - begin:.0f} s')
    if options.json:
        Path(options.json).write_text(json.dumps({'machine': machine(), 'rows': rows}, indent=2), encoding='utf-8')


if __name__ == '__main__':
    run_main(main)
