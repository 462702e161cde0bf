"""Shared tools of the benchmark: rows, timing in turns, agents of the default size on synthetic data."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]
import torch  # noqa: E402

from offline_agent import OfflineAgent, OfflineConfig  # noqa: E402
from online_agent import OnlineAgent, OnlineConfig  # noqa: E402
from tasks import build_map  # noqa: E402
from trajectories import ReplayBuffer, TrajectoryDataset  # noqa: E402

NUMBERS = {'context_length': 100, 'transition_steps': 25, 'discount': 0.998}  # of the ant data
STATES, ACTIONS, ENV = 29, 8, 'antmaze-medium-navigate-v0'


@dataclasses.dataclass
class Row:
    """One line of the table: seconds of ours and of each peer (None: its package is missing)."""

    what: str
    ours: float
    peers: dict
    goal: str = ''
    note: str = ''
    shares: dict = dataclasses.field(default_factory=dict)  # fraction of the arithmetic of each part


def interleaved(functions, rounds, device='cpu', warmup=1, calls=1):
    """Time functions in turns.

    Args:
        functions: {name: function, or None for a missing package}.
        rounds: turns of each function that count, after `warmup` turns that do not.
        calls: calls of a function in one turn.

    Returns:
        {name: median seconds of a call, or None}.
    """
    times = {name: [] for name, function in functions.items() if function}
    for i in range(warmup + rounds):
        for name, seconds in times.items():
            begin = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            if device == 'cuda':
                torch.cuda.synchronize()
            if i >= warmup:
                seconds.append((time.perf_counter() - begin) / calls)
    return {name: float(np.median(times[name])) if name in times else None for name in functions}


def random_walks(count, length, **sampling):
    """Return a TrajectoryDataset of random walks."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((count, length, STATES), np.float32).cumsum(1).reshape(-1, STATES)
    ends = np.arange(1, count + 1) * length - 1
    return TrajectoryDataset(observations, ends - length + 1, ends, **sampling)


def make_offline(device='cpu', backend='torch', **changes):
    """Return an OfflineAgent of the default size and synthetic data."""
    config = OfflineConfig(**NUMBERS | changes)
    data = random_walks(50, 1001, **config.sampling())
    torch.manual_seed(0)
    agent = OfflineAgent(STATES, config, device, backend)
    agent.set_statistics(*data.statistics(), data.slowness())
    return agent, data


def make_online(**changes):
    """Return an OnlineAgent with a graph of synthetic data, the data, and a replay of random episodes."""
    offline, data = make_offline(**changes)
    config = OnlineConfig()
    data_map = build_map(offline, config, data)
    agent = OnlineAgent(offline, -np.ones(ACTIONS), np.ones(ACTIONS), config, data_map)

    replay = ReplayBuffer(STATES, ACTIONS, **offline.config.sampling())
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.uniform(-1, 1, (500, ACTIONS)).astype(np.float32)
        replay.add(rng.standard_normal((501, STATES), np.float32), actions)
    return agent, data, replay
