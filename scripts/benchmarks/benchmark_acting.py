"""Sections of the benchmark on acting, online updates, evaluation and loading; `benchmark.py` runs them."""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmark_tools import ACTIONS, ENV, ROOT, STATES, Row, interleaved, make_online

from labeling.online_batches import StateStore


def acting(options):
    """Time one step of acting, with the graph and with the proposer, and one step of the ant."""
    from ogbench_utils import make_env, reset_env

    env = make_env(ENV)
    reset_env(env, 1, 0)
    action = env.action_space.sample()
    agent, _, _ = make_online()
    functions = {'ant': lambda: env.step(action)} | {f'act {n}': act_step(agent, n) for n in (1, 8, 64)}
    times = interleaved(functions, options.rounds(20), calls=10)
    sizes = ', '.join(f'{n}: {1e3 * times[f"act {n}"]:.2f} ms' for n in (1, 8, 64))
    fraction = times['act 8'] / 8 / times['ant']
    yield Row('act, batch of 8', times['act 8'], {'one step of the ant': times['ant']}, 'below one ant step',
              f'{sizes}; {fraction:.0%} of the time of 8 environment steps; {len(agent.data_map):,} nodes')

    proposing, _, _ = make_online()
    proposing.planner = proposing.planner.second
    functions = {'plan': act_step(agent, 8), 'proposer': act_step(proposing, 8)}
    times = interleaved(functions, options.rounds(20), calls=10)
    yield Row('act, batch of 8, with the graph', times['plan'],
              {"with the proposer's subgoals": times['proposer']}, 'at least 0.67x',
              'the first step toward a new goal also searches the graph')

    for context in (10, 100, 1000):
        encoder = make_online(context_length=context)[0].encoder
        window = torch.randn(8, context, STATES)
        functions = {'step': encoder_step(encoder, 8), 'window': functools.partial(encode, encoder, window)}
        times = interleaved(functions, options.rounds(20), calls=3)
        yield Row(f'one recurrent step of the encoder, batch of 8, context {context}', times['step'],
                  {'encoding the window at each step': times['window']}, 'constant in the context')


@torch.no_grad()
def encode(encoder, window):
    """Encode whole windows."""
    return encoder(window)


def encoder_step(encoder, n):
    """Return a function that advances the encoder by one step."""
    states = torch.randn(n, STATES)
    memory = [encoder.initial_state(n)]

    @torch.no_grad()
    def step():
        memory[0] = encoder.step(states, memory[0])[1]

    return step


def act_step(agent, n):
    """Return a function that acts once."""
    observations, goals = np.random.default_rng(0).standard_normal((2, n, STATES), np.float32)
    state = [agent.initial_state(n)]

    def step():
        state[0] = agent.act(observations, goals, state[0])[1]

    return step


def online(options):
    """Time online updates with cached latents and with latents computed for each batch."""
    agent, data, replay = make_online()
    cached = agent.open_batches(data, replay)
    computed = agent.open_batches(data, replay)
    computed.offline_steps.store = StateStore(data, agent, caches=False)
    rng = np.random.default_rng(0)

    def update(batches):
        agent.update(batches.sample(rng))

    functions = {'ours': functools.partial(update, cached), 'computed': functools.partial(update, computed)}
    times = interleaved(functions, options.rounds(12), calls=4)
    yield Row('online update of 800 steps', times['ours'], {'without cached latents': times['computed']}, '',
              f"{1 / times['ours']:.0f} updates per second")


def evaluation(options):
    """Time environment steps of lock-step episodes and of one environment at a time."""
    from environments.safe_env import open_envs
    from rollouts import run_episodes

    agent = make_online()[0]
    alone = open_envs(ENV, 1)
    side_by_side = open_envs(ENV, 8)
    jobs = [(n % 5 + 1, n) for n in range(8)]
    steps = 400 if options.quick else 1600

    def run(envs):
        return [episode for episode in run_episodes(envs, jobs, agent, max_steps=steps)]

    functions = {'ours': lambda: run(side_by_side), 'one': lambda: run(alone)}
    times = interleaved(functions, options.rounds(5), warmup=0)
    minutes = 1e5 / 60 * times['ours'] / steps
    yield Row('evaluation of 8 environments, per step', times['ours'] / steps,
              {'one environment at a time': times['one'] / steps}, '1.7x',
              f'5 x 20 episodes of 1,000 steps: {minutes:.1f} minutes at most')


LOADERS = {
    'ours': 'npz.load_trajectories(sys.argv[1])',
    'ogbench': ('ogbench.make_env_and_datasets({name!r}, dataset_dir=os.path.dirname(sys.argv[1]), '
                'dataset_only=True)'),
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
    """Time loading in fresh processes, without the imports, and measure its peak memory in another one."""
    count, rows = (200, 1001) if options.quick else (1000, 1001)

    def measure(name, traced):
        code = LOAD.format(root=str(ROOT), load=LOADERS[name].format(name=ENV), traced=traced)
        command = [sys.executable, '-c', code, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'{ENV}.npz'
        write_dataset(path, count, rows)
        write_dataset(path.with_name(f'{ENV}-val.npz'), 1, rows)
        seconds = {name: [] for name in LOADERS}
        for name in (*LOADERS,) * options.rounds(3):
            seconds[name].append(measure(name, False))
        megabytes = {name: measure(name, True) for name in LOADERS}

    ours, theirs = (float(np.median(seconds[name])) for name in LOADERS)
    yield Row(f'loading {count:,} trajectories of {rows:,} states', ours,
              {'ogbench.make_env_and_datasets': theirs}, '2x, half the memory',
              f"peak memory {megabytes['ours']:.0f} MB, with ogbench {megabytes['ogbench']:.0f} MB")


def write_dataset(path, count, rows):
    """Write a file in OGBench's layout that repeats the bundled states, which compress like real data."""
    with np.load(ROOT / 'datasets' / 'antmaze-medium-navigate-mini-v0.npz', allow_pickle=False) as bundled:
        observations = np.resize(bundled['observations'], (count * rows, STATES)).astype(np.float32)
    terminals = np.zeros((count, rows), bool)
    terminals[:, -1] = True
    np.savez_compressed(path, observations=observations, terminals=terminals.ravel(),
                        qpos=observations[:, :15], qvel=observations[:, 15:],
                        actions=np.tanh(observations[:, :ACTIONS]))
