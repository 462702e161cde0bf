"""Measure how well a checkpoint predicts dropped observations: R2 of the true states, by context length.

    python offline_trainer.py --dataset antmaze-medium-navigate-v0 --observe dropped:0.5 --save_dir lossy
    python scripts/analysis/measure_estimates.py --checkpoint lossy/last.pth \\
        --states_path datasets/antmaze-medium-navigate-v0-val.npz

The states of --states_path are complete; the script drops observations of them. R2 is the explained fraction
of the variance of a dimension, averaged over the dimensions of a state. The baseline is the last observation.
Memory can help in a setting if predictions improve with the context.
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

CONTEXTS = (1, 2, 5, 10, 20, 50, 100)  # observations before a predicted state
NUM_STATES = 2000  # predicted states
MIN_VARIANCE = 1e-8  # of a normalized dimension that counts in R2


@dataclasses.dataclass
class EstimatesConfig:
    """what to measure"""
    checkpoint: str = flag('', 'last.pth of an offline run with --observe dropped:P (required)')
    states_path: str = flag('', 'npz file of `observations`, `terminals`, not of training (required)')


def run(config):
    """Print and return R2 of the predicted states.

    Returns:
        {context: R2}, where context 0 is the last observation itself.
    """
    if not config.checkpoint or not config.states_path:
        raise ValueError('--checkpoint and --states_path are required')

    # the agent, with the target encoder that acts
    checkpoint = load_checkpoint(config.checkpoint, 'offline')
    observation_model = observation_model_of(checkpoint)
    if not observation_model.drop_rate:
        raise ValueError(f'{config.checkpoint}: --observe {observation_model.setting} drops no observations; '
                         'use a checkpoint of --observe dropped:P')
    prepare_cpu(torch.device('cpu'))
    with prefix_errors(config.checkpoint):
        agent = OfflineAgent.from_state_dict(checkpoint['agent'])
    agent.encoder.load_state_dict(agent.targets['encoder'].state_dict())

    # states and their observations
    states, starts, ends = load_trajectories(config.states_path, flag='--states_path')
    with prefix_errors(config.states_path):
        if states.shape[1] != agent.observation_dim:
            raise ValueError(f'its states have {states.shape[1]} dimensions, those of {config.checkpoint} '
                             f'{agent.observation_dim}; use states of the same environment')
    observations = observation_model.observe_trajectories(states, starts, ends, seed=0)

    # all contexts predict the same states, which have the longest context before them
    contexts = [n for n in CONTEXTS if n <= min(agent.config.context_length, (ends - starts).max())]
    first_rows = starts + contexts[-1]
    borders = zip(first_rows, ends, strict=True)
    candidates = np.concatenate([np.arange(first, end + 1) for first, end in borders])
    rows = np.random.default_rng(0).choice(candidates, min(NUM_STATES, len(candidates)), replace=False)
    target = agent.encoder.normalize(torch.from_numpy(states[rows]))

    r2 = {0: r2_score(agent.encoder.normalize(torch.from_numpy(observations[rows - 1])), target)}
    for n in contexts:
        windows = torch.from_numpy(observations[rows[:, None] + np.arange(-n, 0)])
        with torch.no_grad():
            predicted = agent.predict_next(agent.encoder(windows)[:, -1], windows[:, -1])
        r2[n] = r2_score(predicted, target)

    print(f'--observe {observation_model.setting}, encoder {agent.config.encoder}, {agent.step:,} updates')
    print(f'last observation: R2 {r2[0]:.3f}')
    for n in contexts:
        print(f'prediction from {n} observations: R2 {r2[n]:.3f}')
    return r2


def r2_score(predicted, target):
    """Return the mean R2 of the dimensions that vary, of normalized states (n, S)."""
    error = (predicted - target).square().mean(0)
    variance = target.var(0, correction=0)
    varies = variance > MIN_VARIANCE
    return float((1 - error[varies] / variance[varies]).mean())


def main(argv=None):
    run(*parse_flags(__doc__, EstimatesConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
