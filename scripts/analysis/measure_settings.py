"""Can memory matter in a setting of --observe? R2 of the next state, and of the demonstrator's action, told by what is
seen: by a network that sees the last reading only, and by a GRU that sees the last 1, 10 and 100.

    python scripts/data/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 100 --num_val_episodes 10 \\
        --output_dir with_actions --seed 77 --no-state_only
    python scripts/analysis/measure_settings.py --actions_path with_actions/antmaze-medium-navigate-v0.npz

A cheap diagnosis, before any agent is trained: it takes a minute a setting. Beside the file lies its -val file, whose
trajectories are foretold. OPSO itself never reads actions of data.
"""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure_estimates import explained  # noqa: E402
from torch import nn  # noqa: E402

from model import mlp  # noqa: E402
from observing.observation_models import ObservationModel  # noqa: E402
from ogbench_utils import make_env  # noqa: E402
from support.devices import set_seed  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.npz import load_actions, load_trajectories  # noqa: E402

CONTEXTS = (1, 10, 100)
STATES = 2000
LR = 1e-3


@dataclasses.dataclass
class SettingsConfig:
    """what to measure"""
    actions_path: str = flag('', 'npz file with `observations`, `terminals` and `actions`, -val beside it (required)')
    dataset: str = flag('antmaze-medium-navigate-v0', 'which environment the states are of')
    settings: str = flag('full,positions,noise:0.5,torso,dropped:0.5,dropped:0.8', 'of --observe, with commas between')
    num_updates: int = flag(500, 'gradient steps of each network', least=1)
    batch_size: int = flag(32, 'windows of 100 readings in a gradient step', least=1)
    hidden_dim: int = flag(128, 'width of the GRU; the network without memory has twice that', least=1)
    seed: int = flag(0, 'seed of everything random', least=0)


class Data:
    """Trajectories as they are seen, and what is to be told at each step: the next state, and the action."""

    def __init__(self, path, observation_model, mean_std=None):
        observations, starts, ends = load_trajectories(path, context_length=CONTEXTS[-1] + 1)
        actions = load_actions(path, len(observations))
        seen = observation_model.observe_trajectories(observations, starts, ends, seed=0)
        self.mean_std = mean_std or [(array.mean(0), array.std(0) + 1e-6) for array in (seen, observations)]

        (seen_mean, seen_std), (mean, std) = self.mean_std
        following = np.append(observations[1:], observations[-1:], 0)  # of the last step of a trajectory it is unused
        self.seen = torch.from_numpy((seen - seen_mean) / seen_std)
        self.targets = torch.from_numpy(np.concatenate([(following - mean) / std, actions], 1))
        self.state_dim = observations.shape[1]
        self.last_rows = np.concatenate([np.arange(start + CONTEXTS[-1] - 1, end)
                                         for start, end in zip(starts, ends, strict=True)])

    def draw(self, count, rng):
        """-> last rows (count,) of windows of the longest context."""
        return rng.choice(self.last_rows, count)

    def windows(self, rows, length):
        """-> what is seen in windows that end in the rows (n,), (n, length, S')."""
        return self.seen[self._rows(rows, length)]

    def told(self, rows, length):
        """-> what is to be told there (n, length, T)."""
        return self.targets[self._rows(rows, length)]

    def _rows(self, rows, length):
        return torch.from_numpy(rows[:, None] + np.arange(1 - length, 1))


class GRUReader(nn.Module):
    """Tells from all readings of a window up to each."""

    def __init__(self, input_dim, output_dim, hidden_dim):
        super().__init__()
        self.gru = nn.GRU(input_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, windows):
        return self.output(self.gru(windows)[0])


def fit(reader, data, config, rng):
    """Train on all positions of windows."""
    optimizer = torch.optim.Adam(reader.parameters(), LR)
    for _ in range(config.num_updates):
        rows = data.draw(config.batch_size, rng)
        error = reader(data.windows(rows, CONTEXTS[-1])) - data.told(rows, CONTEXTS[-1])
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()


@torch.no_grad()
def judge(reader, data, context, rows):
    """-> R2 of the next state, of the action, from so many readings."""
    told = reader(data.windows(rows, context))[:, -1]
    target = data.told(rows, 1)[:, 0]
    n = data.state_dim
    return explained(told[:, :n], target[:, :n]), explained(told[:, n:], target[:, n:])


def run(config):
    """-> {(setting, readings, 0 for no memory): (R2 of the next state, of the action)}; also printed."""
    check_ranges(config)
    if not config.actions_path:
        raise ValueError('--actions_path is required')
    path = Path(config.actions_path)
    val_path = path.with_name(f'{path.stem}-val.npz')

    env = make_env(config.dataset)
    std = load_trajectories(path)[0].std(0)
    found = {}
    print('R2 of the next state, of the action; no memory | GRU of ' + ', '.join(map(str, CONTEXTS)) + ' readings')
    for setting in config.settings.split(','):
        set_seed(config.seed)
        rng = np.random.default_rng(config.seed)
        observation_model = ObservationModel.from_setting(setting, env).fit(std)
        data = Data(path, observation_model)
        val_data = Data(val_path, observation_model, data.mean_std)
        rows = val_data.draw(STATES, np.random.default_rng(1))

        dims = data.seen.shape[1], data.targets.shape[1]
        memoryless = mlp([dims[0], 2 * config.hidden_dim, 2 * config.hidden_dim, dims[1]])
        gru = GRUReader(*dims, config.hidden_dim)
        fit(memoryless, data, config, rng)
        fit(gru, data, config, rng)

        found[setting, 0] = judge(memoryless, val_data, 1, rows)
        for context in CONTEXTS:
            found[setting, context] = judge(gru, val_data, context, rows)
        cells = [f'{state:.2f} {action:.2f}' for state, action in (found[setting, n] for n in (0, *CONTEXTS))]
        print(f'{setting}: {cells[0]} | {", ".join(cells[1:])}', flush=True)
    return found


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], SettingsConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
