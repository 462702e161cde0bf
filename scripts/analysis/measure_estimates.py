"""How well does a checkpoint foretell readings that got lost? R2 of the true states, by how many readings it remembers.

    python offline_trainer.py --dataset antmaze-medium-navigate-v0 --observe dropped:0.5 --save_dir lossy
    python scripts/analysis/measure_estimates.py --checkpoint lossy/last.pth \\
        --states_path datasets/antmaze-medium-navigate-v0-val.npz

A diagnosis on states of which nothing is lost: it tells in a minute whether memory can matter in a setting. R2 is the
share of a number's variance that is explained, averaged over the numbers of a state. Beside it stands what an agent
without any model has: the last reading.
"""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from observing.observation_models import observation_model_of  # noqa: E402
from offline_agent import OfflineAgent  # noqa: E402
from support.files import load_checkpoint, prefix_errors  # noqa: E402
from support.flags import flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.npz import load_trajectories  # noqa: E402

REMEMBERED = (1, 2, 5, 10, 20, 50, 100)
STATES = 2000


@dataclasses.dataclass
class BeliefConfig:
    """what to measure"""
    checkpoint: str = flag('', 'last.pth of an offline run with --observe dropped:P (required)')
    states_path: str = flag('', 'npz file with `observations` and `terminals` that training has not seen (required)')


def run(config):
    """-> {number of readings remembered, 0 for the last reading itself: R2}; also printed."""
    if not config.checkpoint or not config.states_path:
        raise ValueError('--checkpoint and --states_path are required')

    checkpoint = load_checkpoint(config.checkpoint, 'offline')
    observation_model = observation_model_of(checkpoint)
    if not observation_model.drop_rate:
        raise ValueError(f'{config.checkpoint}: nothing gets lost with --observe {observation_model.setting}; train with '
                         '--observe dropped:P')
    prepare_cpu(torch.device('cpu'))
    with prefix_errors(config.checkpoint):
        agent = OfflineAgent.from_state_dict(checkpoint['agent'])
    agent.encoder.load_state_dict(agent.targets['encoder'].state_dict())  # what acts

    observations, starts, ends = load_trajectories(config.states_path)
    with prefix_errors(config.states_path):
        if observations.shape[1] != agent.observation_dim:
            raise ValueError(f'states of {observations.shape[1]} numbers, {config.checkpoint} has '
                             f'{agent.observation_dim}')
    seen = observation_model.observe_trajectories(observations, starts, ends, seed=0)

    # the same states are foretold from more and more of what came before them
    remembered = [n for n in REMEMBERED if n <= min(agent.config.context_length, (ends - starts).max())]
    longest = remembered[-1]
    foretold = np.concatenate([np.arange(start + longest, end + 1) for start, end in zip(starts, ends, strict=True)])
    rows = np.random.default_rng(0).choice(foretold, min(STATES, len(foretold)), replace=False)
    target = agent.encoder.normalize(torch.from_numpy(observations[rows]))

    r2 = {0: explained(agent.encoder.normalize(torch.from_numpy(seen[rows - 1])), target)}
    for n in remembered:
        windows = torch.from_numpy(seen[rows[:, None] + np.arange(-n, 0)])
        with torch.no_grad():
            expected = agent.predict_next(agent.encoder(windows)[:, -1], windows[:, -1])
        r2[n] = explained(expected, target)

    print(f'--observe {observation_model.setting}, encoder {agent.config.encoder}, {agent.step:,} updates')
    print(f'the last reading itself: R2 {r2[0]:.3f}')
    for n in remembered:
        print(f'expected from {n} readings: R2 {r2[n]:.3f}')
    return r2


def explained(expected, target):
    """R2 of normalised states (n, S), mean over the numbers that vary."""
    error = (expected - target).square().mean(0)
    variance = target.var(0, correction=0)
    varies = variance > 1e-8
    return float((1 - error[varies] / variance[varies]).mean())


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], BeliefConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
