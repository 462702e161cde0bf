"""The benchmark's sections that need latents, environments or files; `benchmark.py` runs them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmark_tools import ACTIONS, ENV, ROOT, STATES, Row, interleaved, make_online

from latents import LatentStore


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
    """Without the cache, the latents of every batch are encoded anew: windows with head_memory history; and V's
    embeddings of them as well, where they would be cached (value_interval 0)."""
    for memory, interval in (('state', 0), ('state', 4), ('history', 0)):
        agent, data, replay = make_online(interval, head_memory=memory)
        stores, rng = (LatentStore(data, agent), LatentStore(replay, agent)), np.random.default_rng(0)

        def cached(agent=agent, stores=stores, rng=rng):
            for _ in range(4):  # Q, V and proposer are part of one in four, or of none
                agent.update(agent.sample(*stores, rng))

        def encoded(agent=agent, data=data, cached=cached, memory=memory, interval=interval):
            for _ in range(4):
                encode_batch(agent, data, memory, not interval)
            cached()

        times = interleaved({'ours': cached, 'encoded': encoded}, options.rounds(3 if memory == 'history' else 6))
        one, other = times['ours'] / 4, times['encoded'] / 4
        yield Row(f'online update of 800 transitions, head_memory {memory}, value_interval {interval}', one,
                  {'without cached latents': other}, '5x', f'{1 / one:.0f} updates per second')


@torch.no_grad()
def encode_batch(agent, data, memory, embed):
    """What one update would have to encode: z, z', a later z', z_g and the proposer's goal of each row."""
    c = agent.offline.config
    rows = agent.config.batch_size * c.context_length
    if memory == 'state':
        z = agent.encoder.encode_goal(torch.from_numpy(data.observations[:5 * rows]))
        if embed:
            agent.offline.targets['value'].embed(z)
        return
    agent.encoder.encode_goal(torch.from_numpy(data.observations[:2 * rows]))
    windows = data_windows(data, rows, c.context_length)
    for _ in range(3):  # each of z, z' and the later z' sees its own past
        for i in range(0, rows, 100):
            agent.encoder(windows[i:i + 100])


def data_windows(data, count, length):
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(
        data.observations[:count + length - 1], length, 0).transpose(0, 2, 1).copy())


def evaluation(options):
    """Environment steps of lock-step episodes; the same episodes, bit by bit, in every arrangement of 8."""
    from ogbench_utils import make_env
    from rollouts import run_episodes
    from workers import EnvWorkers, cpu_cores, safe_envs

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
