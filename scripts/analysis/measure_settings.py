"""Measure whether memory can help in a setting of --observe: R2 of next states and of demonstrated actions.

    python scripts/data/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 100 \\
        --num_val_episodes 10 --output_dir with_actions --seed 77 --no-state_only
    python scripts/analysis/measure_settings.py --actions_path with_actions/antmaze-medium-navigate-v0.npz

Two networks predict the next state and the action: an MLP from the last observation, and a GRU from the last
1, 10 and 100. A setting takes about a minute. The -val file beside --actions_path has the test trajectories.
OPSO itself does not train on these actions.
"""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure_estimates import r2_score  # noqa: E402
from torch import nn  # noqa: E402

from environments.checks import closing  # noqa: E402
from model import mlp  # noqa: E402
from observing.observation_models import ObservationModel  # noqa: E402
from ogbench_utils import make_env  # noqa: E402
from support.devices import set_seed  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.npz import load_actions, load_trajectories  # noqa: E402
from support.tolerances import divisor  # noqa: E402

CONTEXTS = (1, 10, 100)  # observations that the GRU reads in the test
NUM_STATES = 2000  # states of the test
LEARNING_RATE = 1e-3


@dataclasses.dataclass
class SettingsConfig:
    """what to measure"""
    actions_path: str = flag('', 'npz file with actions, a -val file beside it (required)')
    dataset: str = flag('antmaze-medium-navigate-v0', 'environment of the states')
    settings: str = flag('full,positions,noise:0.5,torso,dropped:0.5,dropped:0.8', 'values of --observe')
    num_updates: int = flag(500, 'gradient steps of each network', least=1)
    batch_size: int = flag(32, 'windows of 100 observations in a gradient step', least=1)
    hidden_dim: int = flag(128, 'width of the GRU; the MLP has twice that', least=1)
    seed: int = flag(0, 'seed of all random numbers', least=0)


class ObservedTrajectories:
    """Normalized observations, and the targets at each step: the next state and the action.

    observations: (N, S') normalized.
    targets: (N, S + A) normalized next state, action.
    mean_std: mean and std of observations and of states; by default those of this file.
    last_rows: last rows of all windows of the longest context.
    """

    def __init__(self, path, observation_model, mean_std=None):
        states, starts, ends = load_trajectories(path, None, CONTEXTS[-1] + 1, '--actions_path')
        actions = load_actions(path, len(states), '--actions_path')
        observations = observation_model.observe_trajectories(states, starts, ends, seed=0)
        if mean_std is None:
            mean_std = [(array.mean(0), divisor(array.std(0), array.mean(0)))
                        for array in (observations, states)]
        self.mean_std = mean_std

        (observation_mean, observation_std), (mean, std) = mean_std
        next_states = np.append(states[1:], states[-1:], 0)  # the last row of a trajectory is not used
        self.observations = torch.from_numpy((observations - observation_mean) / observation_std)
        self.targets = torch.from_numpy(np.concatenate([(next_states - mean) / std, actions], 1))

        self.state_dim = states.shape[1]
        first_rows = starts + CONTEXTS[-1] - 1
        borders = zip(first_rows, ends, strict=True)
        self.last_rows = np.concatenate([np.arange(first, end) for first, end in borders])

    def draw(self, count, rng):
        """Return the last rows (count,) of random windows."""
        return rng.choice(self.last_rows, count)

    def windows(self, rows, length):
        """Return the observations (n, length, S') of windows that end in `rows` (n,)."""
        return self.observations[_window_rows(rows, length)]

    def window_targets(self, rows, length):
        """Return the targets (n, length, S + A) of the same windows."""
        return self.targets[_window_rows(rows, length)]


def _window_rows(rows, length):
    return torch.from_numpy(rows[:, None] + np.arange(1 - length, 1))


class GRUPredictor(nn.Module):
    """Predicts the targets at each position of a window from the observations up to it."""

    def __init__(self, input_dim, output_dim, hidden_dim):
        super().__init__()
        self.gru = nn.GRU(input_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, windows):
        return self.output(self.gru(windows)[0])


def fit(predictor, data, config, rng):
    """Minimize the squared error at all positions of windows of the longest context."""
    optimizer = torch.optim.Adam(predictor.parameters(), LEARNING_RATE)
    for _ in range(config.num_updates):
        rows = data.draw(config.batch_size, rng)
        error = predictor(data.windows(rows, CONTEXTS[-1])) - data.window_targets(rows, CONTEXTS[-1])
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()


@torch.no_grad()
def measure_r2(predictor, data, context, rows):
    """Return R2 of next states and R2 of actions at `rows` (n,), predicted from `context` observations."""
    predicted = predictor(data.windows(rows, context))[:, -1]
    target = data.window_targets(rows, 1)[:, 0]
    n = data.state_dim
    return r2_score(predicted[:, :n], target[:, :n]), r2_score(predicted[:, n:], target[:, n:])


def run(config):
    """Print and return R2 for each setting and context.

    Returns:
        {(setting, context): (R2 of the next state, R2 of the action)}, where context 0 is the MLP.
    """
    check_ranges(config)
    if not config.actions_path:
        raise ValueError('--actions_path is required')
    path = Path(config.actions_path)
    val_path = path.with_name(f'{path.stem}-val.npz')

    with closing(make_env(config.dataset)) as env:
        models = {setting: ObservationModel.from_setting(setting, env)
                  for setting in config.settings.split(',')}
    std = load_trajectories(path, flag='--actions_path')[0].std(0)
    r2 = {}
    print(f'R2 of the next state, of the action; MLP | GRU of {", ".join(map(str, CONTEXTS))} observations')
    for setting, model in models.items():
        # observe the data
        set_seed(config.seed)
        rng = np.random.default_rng(config.seed)
        observation_model = model.with_noise_scale(std)
        data = ObservedTrajectories(path, observation_model)
        val_data = ObservedTrajectories(val_path, observation_model, data.mean_std)
        rows = val_data.draw(NUM_STATES, np.random.default_rng(1))

        # train both networks
        input_dim, output_dim = data.observations.shape[1], data.targets.shape[1]
        memoryless = mlp([input_dim, 2 * config.hidden_dim, 2 * config.hidden_dim, output_dim])
        gru = GRUPredictor(input_dim, output_dim, config.hidden_dim)
        fit(memoryless, data, config, rng)
        fit(gru, data, config, rng)

        # test them
        r2[setting, 0] = measure_r2(memoryless, val_data, 1, rows)
        for context in CONTEXTS:
            r2[setting, context] = measure_r2(gru, val_data, context, rows)
        cells = [f'{state:.2f} {action:.2f}' for state, action in (r2[setting, n] for n in (0, *CONTEXTS))]
        print(f'{setting}: {cells[0]} | {", ".join(cells[1:])}', flush=True)
    return r2


def main(argv=None):
    run(*parse_flags(__doc__, SettingsConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
