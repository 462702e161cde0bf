"""Tell the actions of a dataset by trying actions out at its states, in a simulator that can be set to them.

    python scripts/label_with_simulator.py --dataset humanoidmaze-medium-navigate-v0
    python online_trainer.py --dataset humanoidmaze-medium-navigate-v0 \\
        --actions_path labeling_checkpoints/humanoidmaze-medium-navigate-v0/seed0/actions.npz

For a robot whose own steps never come near what the data show. The file must have `qpos` and `qvel` besides its
`observations`, as OGBench's have, and what `collect_dataset.py --physics` writes; its actions are not read. Method:
labeling/rehearsals.py.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from environments.custom_env import name_flag  # noqa: E402
from labeling.simulator_labels import ActionSearch, Fit, Probes, Simulator  # noqa: E402
from ogbench_utils import check_name, make_env  # noqa: E402
from support.devices import choose_device, set_seed  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.npz import load_physics  # noqa: E402
from support.runs import RunConfig, open_run  # noqa: E402
from trajectories import load_dataset  # noqa: E402
from utils import normalize_actions, unnormalize_actions  # noqa: E402

SOLVING_ROUNDS = 3  # after each, the network learns from what was solved for so far, and the next begins nearer


@dataclasses.dataclass
class SimulatorLabelConfig(RunConfig):
    """data, probes and networks of a labeling"""
    stages: int = flag(3, 'how often corrections are learned and made; each probes two actions at a state', least=1)
    max_steps: int = flag(0, 'environment steps in all, one for each try; if they are too few for all states, some '
                             'are drawn, and the actions of the others guessed; 0: all states', least=0)
    solved_states: int = flag(60_000, 'at so many states actions are then solved for, by about two probes for each of '
                                      'their numbers; the network learns on from them to correct all others', least=0)
    random_range: float = flag(1.5, 'the first actions are uniform in so many times the action range, and clipped',
                               above=0)
    hidden_dim: int = flag(512, 'width of the networks', least=1)
    num_updates: int = flag(6000, 'gradient steps of each network', least=1)
    batch_size: int = flag(512, 'probes, or pairs of them, in a gradient step', least=1)
    lr: float = flag(1e-3, "Adam's learning rate, falling to 0 in the second half of the steps", above=0)

    @property
    def rounds(self):
        """Probes at each state: at random; in each stage one and one with noise; the last correction."""
        return 2 + 2 * self.stages


def label_dataset(config):
    """Run (or resume) a labeling -> path of actions.npz."""
    check_ranges(config)
    check_name(config.name, config.env)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)

    with open_run('labeling', __file__, config) as run:
        with run.stop.interruptible():
            data, _, source = load_dataset(config.name, config.dataset_path, config.data_dir, config.dataset_url,
                                           config.max_trajectories, context_length=1)
            env = make_env(config.name).unwrapped
            simulator = Simulator(env)
            qpos, qvel = load_physics(source.path, len(data), env.model.nq, env.model.nv)

        print(source.note)
        labeling = SimulatorLabeling(run, config, data, Physics(qpos, qvel), simulator, device)
        print(f'{len(data.transition_rows):,} steps of {len(data.starts):,} trajectories; actions are tried at '
              f'{len(labeling.rows):,} of them, {config.rounds} times')
        print(f'run folder: {run.folder}')
        with run.stop.interruptible():
            actions = labeling.loop()

        path = run.folder / 'actions.npz'
        labeling.write(path, actions)
        command = ['python', 'online_trainer.py', name_flag(config.name), config.name, '--actions_path', str(path)]
        print(f'{labeling.steps:,} environment steps; actions: {path}')
        print(f'next: {shlex.join(command)}')
    return path


@dataclasses.dataclass
class Physics:
    """States as the simulator has them."""

    qpos: np.ndarray  # (N, Q)
    qvel: np.ndarray  # (N, U)

    def __getitem__(self, rows):
        return Physics(self.qpos[rows], self.qvel[rows])


class SimulatorLabeling:
    """Rounds of probes, a network learned after each; goes on after the last round that `run.saved` has."""

    def __init__(self, run, config, data, physics, simulator, device):
        self.run = run
        self.config = config
        self.data = data
        self.physics = physics
        self.simulator = simulator

        self.space = simulator.env.action_space
        rng = np.random.default_rng([config.seed, 7])
        self.rows = data.transition_rows
        solvable = config.solved_states
        if config.max_steps:
            # half of them to solve for actions at most
            solvable = min(solvable, config.max_steps // (2 * simulator.probes_to_solve))
            affordable = (config.max_steps - solvable * simulator.probes_to_solve) // config.rounds
            if affordable < 100:
                raise ValueError(f'--max_steps {config.max_steps}: {config.rounds} probes at each state need at '
                                 f'least {100 * config.rounds}, and twice that with --solved_states')
            if affordable < len(self.rows):
                self.rows = np.sort(rng.choice(self.rows, affordable, replace=False))
        self.to_solve = rng.choice(len(self.rows), min(solvable, len(self.rows)), replace=False)  # (m,), which of them

        self.speed = np.maximum(physics.qvel.std(0), 1e-6)
        states, changes = self.seen(self.rows)
        self.search = ActionSearch(states, changes, len(self.space.low), config.hidden_dim, config.num_updates,
                                   config.batch_size, config.lr, device)
        self.done = 0  # rounds of probes
        self.fit = None  # the last network
        self.solved = torch.zeros(0, len(self.space.low))  # actions (k, A) in [-1, 1] of the first k of `to_solve`
        self.converged = torch.zeros(0, dtype=torch.bool)  # (k,): do they lead where the data went?
        self.solving_probes = 0
        if run.saved:
            self.load_state_dict(run.saved)
        self.log = run.start_logging('labeling.csv', self.steps, data.fingerprint())

    @property
    def steps(self):
        """Environment steps so far: probes."""
        return self.done * len(self.rows) + self.solving_probes

    def seen(self, rows):
        """What networks see of rows (m,) of the data -> states (m, F), changes (m, D)."""
        now = self.physics[rows]
        after = self.physics[rows + 1]
        states = self.simulator.states(now.qpos, now.qvel)
        changes = self.simulator.changes(now.qpos, now.qvel, after.qpos, after.qvel)
        return torch.from_numpy(states), torch.from_numpy(changes)

    def unnormalize_actions(self, actions):
        """Actions in [-1, 1] -> array in the environment's units."""
        return unnormalize_actions(actions.numpy(), self.space.low, self.space.high)

    def loop(self):
        """-> actions (N, A) in [-1, 1] for all rows of the data, 0 in the last one of a trajectory."""
        while self.done < self.config.rounds:
            self.simulate(self.next_actions())

        actions = self.correct()
        while len(self.solved) < len(self.to_solve):
            self.solve(actions)
            actions = self.correct()
        return self.all_actions(actions)

    def solve(self, actions):
        """A round of solving, from actions (n, A) of all rows; logged and saved."""
        count = -(-len(self.to_solve) // SOLVING_ROUNDS)
        chosen = self.to_solve[len(self.solved):][:count]
        rows = self.rows[chosen]
        now = self.physics[rows]
        after = self.physics[rows + 1]
        result = self.simulator.solve(now.qpos, now.qvel, after.qpos, after.qvel, self.unnormalize_actions(actions[chosen]),
                                      self.speed)

        solved = torch.from_numpy(normalize_actions(result.actions, self.space.low, self.space.high))
        self.solved = torch.cat([self.solved, solved])
        self.converged = torch.cat([self.converged, torch.from_numpy(result.converged)])
        self.solving_probes += result.probes
        share = self.converged.float().mean().item()
        print(f'{len(self.solved):,} states solved for by {self.solving_probes:,} probes; {share:.0%} of the actions '
              'lead where the data went')
        self.log.log(self.steps, {'solved_states': len(self.solved), 'solved_share': share})
        self.save()

    def correct(self):
        """-> actions (n, A) of all rows, corrected by the network; once some were solved for, those that lead where the
        data went, and the others corrected by a network that has learned from these."""
        rows = torch.from_numpy(self.to_solve[:len(self.solved)])[self.converged]
        solved = self.solved[self.converged]
        network = self.fit.network
        if len(rows) > 1:
            fit = self.search.fit_solved(network, rows, solved)
            print(f'corrections: R² {fit.r2:.2f} of differences from actions solved for that were held out')
            network = fit.network

        actions = self.search.correct(network, self.search.probes[-1])
        actions[rows] = solved
        return actions

    def next_actions(self):
        """What to try next (n, A)."""
        if self.done == 0:
            return self.config.random_range * (2 * torch.rand(len(self.rows), len(self.space.low)) - 1)

        if self.done == 1:
            self.fit = self.search.fit_guess()
            print(f'guesses: R² {self.fit.r2:.2f} of random probes that were held out')
            return self.search.guess(self.fit.network, self.search.states, self.search.changes)

        if self.done % 2 == 0:
            best = self.search.probes[-1].actions
            return best + self.fit.errors * torch.randn_like(best)

        self.fit = self.search.fit_correction()
        print(f'corrections: R² {self.fit.r2:.2f} of differences between probes that were held out')
        return self.search.correct(self.fit.network, self.search.probes[-2])

    def simulate(self, actions):
        """A round of probes, logged and saved."""
        actions = actions.clamp(-1, 1)
        now = self.physics[self.rows]
        after = self.simulator.simulate(now.qpos, now.qvel, self.unnormalize_actions(actions))
        changes = torch.from_numpy(self.simulator.changes(now.qpos, now.qvel, *after))

        probes = Probes(actions, changes)
        self.search.probes = [*self.search.probes[-1:], probes]
        self.done += 1
        residual = self.search.residual(probes)
        print(f'round {self.done}: {residual.mean():.3f} of the variance of changes residual, half of the '
              f'probes at most {residual.median():.3f}')
        self.log.log(self.steps, {'missed_mean': residual.mean().item(), 'missed_median': residual.median().item()})
        self.save()

    def all_actions(self, actions):
        """`actions` (n, A) of the rows that were tried, with those of all others guessed -> (N, A)."""
        result = torch.zeros(len(self.data), actions.shape[1])
        others = np.setdiff1d(self.data.transition_rows, self.rows)
        if len(others):
            # what was found out is one more try, whose change is known without making it
            self.search.probes.append(Probes(actions, self.search.changes))
            network = self.search.fit_guess().network
            result[others] = self.search.guess(network, *self.seen(others))
            self.search.probes.pop()
        result[self.rows] = actions
        return result

    # ----------------------------------------------------------------------------------------------- files
    def save(self):
        """last.pth, from which a resumed run goes on."""
        content = {
            'done': self.done,
            'probes': [vars(probes) for probes in self.search.probes],
            'fit': None,
            'solved': self.solved,
            'converged': self.converged,
            'solving_probes': self.solving_probes,
        }
        if self.fit:
            content['fit'] = vars(self.fit) | {'network': self.fit.network.state_dict()}
        self.run.save(content)

    def load_state_dict(self, saved):
        self.done = saved['done']
        if 'converged' in saved:  # else it is from before there were rounds of solving, and solves anew
            self.solved = saved['solved']
            self.converged = saved['converged']
            self.solving_probes = saved['solving_probes']
        self.search.probes = [Probes(**probes) for probes in saved['probes']]
        if saved['fit']:
            network = self.search.make_network(saved['fit']['network'])
            self.fit = Fit(**saved['fit'] | {'network': network})

    def write(self, path, actions):
        """The file that `online_trainer.py --actions_path` reads: actions of all rows in the environment's units, which
        data they belong to, and how many environment steps they took."""
        arrays = {
            'actions': self.unnormalize_actions(actions),
            'terminals': np.isin(np.arange(len(self.data)), self.data.ends),
            'fingerprint': np.array(self.data.fingerprint()),
            'steps': np.array(self.steps),
        }
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def main(argv=None):
    label_dataset(*parse_flags(__doc__.splitlines()[0], SimulatorLabelConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
