"""The benchmark's sections that need latents, environments or files; `benchmark.py` runs them."""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmark_tools import ACTIONS, ENV, ROOT, STATES, Row, interleaved, make_online


def acting(options):
    """Acting with memory (--memory), which is the slower kind, and without."""
    from ogbench_utils import make_env, reset_env

    env = make_env(ENV)
    reset_env(env, 1, 0)
    action = env.action_space.sample()
    for memory in (False, True):
        agent = make_online(memory=memory)[0]
        functions = {'ant': lambda: env.step(action)} | {f'act {n}': act_step(agent, n) for n in (1, 8, 64)}
        times = interleaved(functions, options.rounds(20), calls=10)
        kind = 'with' if memory else 'without'
        yield Row(f'act, batch of 8, {kind} memory', times['act 8'], {'one step of the ant': times['ant']},
                  'below one ant step', ', '.join(f'{n}: {1e3 * times[f"act {n}"]:.2f} ms' for n in (1, 8, 64))
                  + f"; {times['act 8'] / 8 / times['ant']:.0%} of the 8 steps that it decides")

    agent, data, _ = make_online()
    free = act_step(agent, 8)
    free()
    planning, _, _ = make_online()
    planning.build_map(data)
    times = interleaved({'plan': act_step(planning, 8), 'free': free}, options.rounds(20), calls=10)
    yield Row('act, batch of 8, with a plan', times['plan'], {'without': times['free']}, 'at least 0.67x',
              f'{len(planning.state_map):,} nodes; the first step to a new goal also searches the map')

    for context in (10, 100, 1000):
        agent = make_online(memory=True, context_length=context)[0]
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
    """Latents and embeddings from the cache, and computed anew for every batch, as with data too large to keep."""
    for interval in (0, 4):
        agent, data, replay = make_online(interval)
        kept = agent.open_batches(data, replay)
        fresh = agent.open_batches(data, replay)
        fresh.offline_store = agent.latent_store(data, cached=False)
        rng = np.random.default_rng(0)

        def updates(batches, agent=agent, rng=rng):
            for _ in range(4):  # Q and V are part of one in four, or of none
                agent.update(batches.sample(rng))

        functions = {'ours': functools.partial(updates, kept), 'fresh': functools.partial(updates, fresh)}
        times = interleaved(functions, options.rounds(6))
        one = times['ours'] / 4
        yield Row(f'online update of 800 transitions, value_interval {interval}', one,
                  {'without cached latents': times['fresh'] / 4}, '', f'{1 / one:.0f} updates per second')


def evaluation(options):
    """Environment steps of lock-step episodes, beside one environment at a time."""
    from environments.safe_env import open_envs
    from rollouts import run_episodes

    agent = make_online()[0]
    alone = open_envs(ENV, 1)
    side_by_side = open_envs(ENV, 8)
    jobs = [(n % 5 + 1, n) for n in range(8)]
    steps = 400 if options.quick else 1600

    def run(envs):
        return [episode for episode in run_episodes(envs, jobs, agent, max_steps=steps)]

    times = interleaved({'ours': lambda: run(side_by_side), 'one': lambda: run(alone)}, options.rounds(5), warmup=0)
    minutes = 1e5 / 60 * times['ours'] / steps
    yield Row('evaluation of 8 environments, per step', times['ours'] / steps,
              {'one environment at a time': times['one'] / steps}, '1.7x',
              f'5 x 20 episodes of 1,000 steps: {minutes:.1f} minutes at most')


LOADERS = {
    'ours': 'npz.load_trajectories(sys.argv[1])',
    'ogbench': 'ogbench.make_env_and_datasets({name!r}, dataset_dir=os.path.dirname(sys.argv[1]), dataset_only=True)',
}
LOAD = """
import os, sys, time, tracemalloc
sys.path.insert(0, {root!r})
import ogbench
from support import npz
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
