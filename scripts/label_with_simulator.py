"""Infer the actions of a dataset by probing actions in a simulator.

    python scripts/label_with_simulator.py --dataset humanoidmaze-medium-navigate-v0
    python online_trainer.py --dataset humanoidmaze-medium-navigate-v0 \\
        --actions_path labeling_checkpoints/humanoidmaze-medium-navigate-v0/seed0/actions.npz

Use it for robots whose own steps never come near the states of the data, such as a humanoid that falls at
once. The dataset needs `qpos` and `qvel` beside its `observations`, as in OGBench's files and in those of
`collect_dataset.py --physics`. Its actions are never read. Method: labeling/simulator_labels.py.
"""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from environments.checks import closing  # noqa: E402
from environments.custom_env import name_flag  # noqa: E402
from labeling.simulator_labels import (  # noqa: E402
    ActionSearch,
    Fit,
    NetworkConfig,
    PhysicsStates,
    Probes,
    Simulator,
)
from ogbench_utils import check_name, make_env  # noqa: E402
from support.contents import Number, Tensor, check_layout  # noqa: E402
from support.devices import choose_device, set_seed  # noqa: E402
from support.files import prefix_errors, write_atomic  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.npz import load_physics  # noqa: E402
from support.runs import RunConfig, open_run  # noqa: E402
from support.tolerances import divisor  # noqa: E402
from trajectories import load_dataset  # noqa: E402
from utils import normalize_actions, unnormalize_actions  # noqa: E402

SOLVING_ROUNDS = 3  # the correction network is fine-tuned after each
MIN_ROWS = 100  # probed states, for networks to learn from


@dataclasses.dataclass
class SimulatorLabelConfig(RunConfig):
    """data, probes and networks of simulator labels"""
    stages: int = flag(3, 'correction stages, with two probes per state each', least=1, basic=True)
    max_steps: int = flag(0, 'budget of environment steps (one per probe); 0 probes all states', least=0, basic=True)
    solved_states: int = flag(60_000, 'states whose actions least squares determine; 0 disables it', least=0,
                              basic=True)
    random_range: float = flag(1.5, 'range of the random actions before clipping, in action ranges', above=0)
    hidden_dim: int = flag(512, 'width of the networks', least=1)
    num_updates: int = flag(6000, 'gradient steps of each network', least=1)
    batch_size: int = flag(512, 'probes, or pairs of probes, per gradient step', least=1)
    lr: float = flag(1e-3, 'learning rate of Adam, which falls to 0 in the second half', above=0)

    @property
    def num_rounds(self):
        """Rounds of probes: random actions, two rounds per stage, last corrections."""
        return 2 + 2 * self.stages


def label_dataset(config):
    """Run or resume the labeling of a dataset and return the path of actions.npz."""
    check_ranges(config)
    check_name(config.name, config.env)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)

    with open_run('labeling', __file__, config) as run, contextlib.ExitStack() as opened:
        # load the data and its simulator
        with run.stop.interruptible():
            data, _, source = load_dataset(
                config.name, config.dataset_path, config.data_dir, config.dataset_url,
                config.max_trajectories, context_length=1,
            )
            simulator = Simulator(opened.enter_context(closing(make_env(config.name))))
            model = simulator.model
            physics = PhysicsStates(*load_physics(source.path, len(data), model.nq, model.nv))
            simulator.check_steps(physics)

        # infer the actions
        print(source.note)
        labeling = SimulatorLabeling(run, config, data, physics, simulator, device)
        print(f'{len(data.transition_rows):,} steps of {len(data.starts):,} trajectories; '
              f'{len(labeling.rows):,} of them are probed, {config.num_rounds} times each')
        print(f'run folder: {run.folder}')
        with run.stop.interruptible():
            actions = labeling.loop()

        # write them
        path = run.folder / 'actions.npz'
        labeling.write(path, actions)
        flags = [name_flag(config.name), config.name, '--actions_path', str(path)]
        print(f'{labeling.num_steps:,} environment steps; actions: {path}')
        print(f'next: {shlex.join(["python", "online_trainer.py", *flags])}')
    return path


def choose_rows(config, data, simulator):
    """Draw the steps that `--max_steps` allows to probe and to solve.

    Returns:
        rows: sorted rows (n,) of the data that are probed.
        solve_order: (m,) indices of `rows` whose actions are solved for.

    Raises:
        ValueError: `--max_steps` is too small.
    """
    rng = np.random.default_rng([config.seed, 7])
    rows = data.transition_rows
    num_solved = config.solved_states

    if config.max_steps:
        # at most half of the budget for solving
        num_solved = min(num_solved, config.max_steps // (2 * simulator.max_probes_per_solve))
        num_rows = (config.max_steps - num_solved * simulator.max_probes_per_solve) // config.num_rounds
        if num_rows < MIN_ROWS:
            needed = MIN_ROWS * config.num_rounds
            raise ValueError(f'--max_steps {config.max_steps}: {config.num_rounds} probes at each state need '
                             f'at least {needed} steps, and {2 * needed} with --solved_states')
        if num_rows < len(rows):
            rows = np.sort(rng.choice(rows, num_rows, replace=False))

    solve_order = rng.choice(len(rows), min(num_solved, len(rows)), replace=False)
    return rows, solve_order


class SimulatorLabeling:
    """Rounds of probes and of solving, each saved; it continues after the last round in `run.saved`.

    Shapes: n probed rows, A action dimensions. Actions are in [-1, 1].
    """

    def __init__(self, run, config, data, physics, simulator, device):
        self.run = run
        self.config = config
        self.data = data
        self.physics = physics
        self.simulator = simulator
        self.space = simulator.env.action_space
        self.action_dim = len(self.space.low)
        self.velocity_std = divisor(physics.qvel.std(0), physics.qvel.mean(0))

        # what is probed
        self.rows, self.solve_order = choose_rows(config, data, simulator)
        networks = NetworkConfig(config.hidden_dim, config.num_updates, config.batch_size, config.lr)
        self.search = ActionSearch(*self.network_inputs(self.rows), self.action_dim, networks, device)

        # progress
        self.rounds_done = 0  # rounds of probes
        self.fit = None  # Fit of the last network
        self.solved_actions = torch.zeros(0, self.action_dim)  # (k, A), of the first k of `solve_order`
        self.converged = torch.zeros(0, dtype=torch.bool)  # (k,)
        self.solving_probes = 0
        if run.saved:
            with prefix_errors(run.last):
                self.load_state_dict(run.saved)
        self.log = run.start_logging('labeling.csv', self.num_steps, data.fingerprint())

    @property
    def num_steps(self):
        """Environment steps so far, one per probe."""
        return self.rounds_done * len(self.rows) + self.solving_probes

    def network_inputs(self, rows):
        """Return features (m, F) of states and changes (m, D) to the next ones, at rows (m,) of the data."""
        states = self.physics[rows]
        features = self.simulator.features(states)
        changes = self.simulator.changes(states, self.physics[rows + 1])
        return torch.from_numpy(features), torch.from_numpy(changes)

    def unnormalize_actions(self, actions):
        """Return actions in [-1, 1] as an array in the environment's units."""
        return unnormalize_actions(actions.numpy(), self.space.low, self.space.high)

    # ------------------------------------------------------------------------------------------------- rounds
    def loop(self):
        """Run all rounds and return actions (N, A) of all rows of the data, 0 at the end of a trajectory."""
        while self.rounds_done < self.config.num_rounds:
            self.probe(self.next_actions())

        actions = self.best_actions()
        while len(self.solved_actions) < len(self.solve_order):
            self.solve(actions)
            actions = self.best_actions()
        return self.complete_actions(actions)

    def next_actions(self):
        """Return the actions (n, A) of the next round of probes, before clipping."""
        # uniform actions
        if self.rounds_done == 0:
            return self.config.random_range * (2 * torch.rand(len(self.rows), self.action_dim) - 1)

        # guesses
        if self.rounds_done == 1:
            self.fit = self.search.fit_guess()
            print(f'guesses: R² {self.fit.r2:.2f} on held-out random probes')
            return self.search.guess(self.fit.network, self.search.features, self.search.changes)

        # the best actions with noise
        if self.rounds_done % 2 == 0:
            best = self.search.probes[-1].actions
            return best + self.fit.rmse * torch.randn_like(best)

        # corrections of the best actions
        self.fit = self.search.fit_correction()
        print(f'corrections: R² {self.fit.r2:.2f} on held-out differences between probes')
        return self.search.correct(self.fit.network, self.search.probes[-2])

    def probe(self, actions):
        """Probe actions (n, A) at all rows, log and save."""
        # simulate
        actions = actions.clamp(-1, 1)
        states = self.physics[self.rows]
        next_states = self.simulator.simulate(states, self.unnormalize_actions(actions))
        probes = Probes(actions, torch.from_numpy(self.simulator.changes(states, next_states)))
        self.search.probes = [*self.search.probes[-1:], probes]
        self.rounds_done += 1

        # save and report
        residuals = self.search.residuals(probes)
        mean, median = residuals.mean().item(), residuals.median().item()
        self.log.log(self.num_steps, {'residual_mean': mean, 'residual_median': median})
        self.save()
        print(f'round {self.rounds_done}: mean residual {mean:.3f} of the variance of changes, '
              f'median {median:.3f}')

    def solve(self, actions):
        """Solve for the actions of the next part of `solve_order`, log and save.

        The initial actions (n, A) are those of all probed rows.
        """
        # solve
        count = -(-len(self.solve_order) // SOLVING_ROUNDS)
        indices = self.solve_order[len(self.solved_actions):][:count]
        rows = self.rows[indices]
        initial = self.unnormalize_actions(actions[indices])
        result = self.simulator.solve(self.physics[rows], self.physics[rows + 1], initial, self.velocity_std)

        # append
        solved = torch.from_numpy(normalize_actions(result.actions, self.space.low, self.space.high))
        self.solved_actions = torch.cat([self.solved_actions, solved])
        self.converged = torch.cat([self.converged, torch.from_numpy(result.converged)])
        self.solving_probes += result.num_probes

        # save and report
        count = len(self.solved_actions)
        fraction = self.converged.float().mean().item()
        self.log.log(self.num_steps, {'solved_states': count, 'converged_fraction': fraction})
        self.save()
        print(f'least squares at {count:,} states, {self.solving_probes:,} probes: {fraction:.0%} converged')

    def best_actions(self):
        """Return solved actions where they converged, and corrections elsewhere (n, A).

        The correction network is fine-tuned on the solved actions first.
        """
        indices = torch.from_numpy(self.solve_order[:len(self.solved_actions)])[self.converged]
        solved = self.solved_actions[self.converged]
        network = self.fit.network
        if len(indices) > 1:
            fit = self.search.fine_tune_correction(network, indices, solved)
            print(f'corrections: R² {fit.r2:.2f} on held-out differences from solved actions')
            network = fit.network

        actions = self.search.correct(network, self.search.probes[-1])
        actions[indices] = solved
        return actions

    def complete_actions(self, actions):
        """Return actions (N, A) of all rows: `actions` (n, A) of the probed ones, guesses of the others."""
        result = torch.zeros(len(self.data), self.action_dim)
        other_rows = np.setdiff1d(self.data.transition_rows, self.rows)
        if len(other_rows):
            # the labels are another round of probes for the guess network, with the changes of the data
            self.search.probes.append(Probes(actions, self.search.changes))
            network = self.search.fit_guess().network
            result[other_rows] = self.search.guess(network, *self.network_inputs(other_rows))
            self.search.probes.pop()
        result[self.rows] = actions
        return result

    # -------------------------------------------------------------------------------------------------- files
    def save(self):
        """Write last.pth, from which a resumed run continues."""
        fit = None
        if self.fit:
            fit = vars(self.fit) | {'network': self.fit.network.state_dict()}
        self.run.save({
            'rounds_done': self.rounds_done,
            'probes': [vars(probes) for probes in self.search.probes],
            'fit': fit,
            'solved_actions': self.solved_actions,
            'converged': self.converged,
            'solving_probes': self.solving_probes,
        })

    def load_state_dict(self, saved):
        """Restore what `save` wrote; raise ValueError if it is of other data."""
        # sizes: n probed rows, D changes, A actions, k solved states
        sizes = {'n': len(self.rows), 'D': self.search.changes.shape[1], 'A': self.action_dim}
        check_layout(saved, {
            'rounds_done': Number(int, least=1),
            'solving_probes': Number(int, least=0),
            'solved_actions': Tensor('float32', 'k A'),
            'converged': Tensor('bool', 'k'),
        }, **sizes)
        for probes in saved['probes']:
            check_layout(probes, {'actions': Tensor('float32', 'n A'), 'changes': Tensor('float32', 'n D')},
                         **sizes)
        rounds = saved['rounds_done']
        if rounds > self.config.num_rounds or len(saved['probes']) != min(rounds, 2):
            raise ValueError(f'{rounds} rounds and {len(saved["probes"])} kept probes do not belong together')
        if len(saved['solved_actions']) > len(self.solve_order):
            raise ValueError(f'{len(saved["solved_actions"])} states are solved; at most {len(self.solve_order)} are')

        self.rounds_done = saved['rounds_done']
        self.search.probes = [Probes(**probes) for probes in saved['probes']]
        if saved['fit']:
            check_layout(saved['fit'], {'rmse': Tensor('float32', 'A'), 'r2': Number(float)}, **sizes)
            network = self.search.load_network(saved['fit']['network'])
            self.fit = Fit(**saved['fit'] | {'network': network})
        self.solved_actions = saved['solved_actions']
        self.converged = saved['converged']
        self.solving_probes = saved['solving_probes']

    def write(self, path, actions):
        """Write the file that `online_trainer.py --actions_path` reads.

        It holds actions of all rows in the environment's units, the fingerprint of the data and the number of
        environment steps.
        """
        arrays = {
            'actions': self.unnormalize_actions(actions),
            'terminals': np.isin(np.arange(len(self.data)), self.data.ends),
            'fingerprint': np.array(self.data.fingerprint()),
            'steps': np.array(self.num_steps),
        }
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def main(argv=None):
    label_dataset(*parse_flags(__doc__, SimulatorLabelConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
