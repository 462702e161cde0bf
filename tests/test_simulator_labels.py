"""Simulator labels: the simulator, least squares, the networks, and the script with its files."""

import shlex
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import offline_trainer
import online_trainer
from labeling.labeler import r2_score
from labeling.online_batches import OnlineBatches
from labeling.simulator_labels import ActionSearch, NetworkConfig, PhysicsStates, Probes, Simulator
from ogbench_utils import make_env
from support.files import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts' / 'data'))  # by path, so that spawned workers of the collector find it

import collect_dataset  # noqa: E402
import label_with_simulator  # noqa: E402
import measure_labels  # noqa: E402

DATASET = 'antmaze-medium-navigate-v0'
TINY = shlex.split(f'--dataset {DATASET} --hidden_dim 64 --num_updates 30 --batch_size 64 --solved_states 8 '
                   '--device cpu')
RESUMED = [*TINY, '--num_updates', '5', '--stages', '2']
OFFLINE = shlex.split(f'--dataset {DATASET} --d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 '
                      '--context_length 20 --transition_steps 5 --batch_size 4 --num_updates 1 '
                      '--no-maze_figures')
ONLINE = shlex.split(f'--dataset {DATASET} --idm_hidden_dim 32 --batch_size 4 --num_envs 2 --random_steps 40 '
                     '--initial_updates 1 --max_steps 40 --final_eval_episodes 1')


@pytest.fixture(scope='module')
def ant():
    return make_env(DATASET).unwrapped


@pytest.fixture(scope='module')
def walk(ant):
    """Return PhysicsStates (59,), next PhysicsStates and actions (59, A) of random steps."""
    rng = np.random.default_rng(0)
    ant.reset(seed=0)
    qpos, qvel, actions = [], [], []
    for _ in range(60):
        qpos.append(ant.data.qpos.copy())
        qvel.append(ant.data.qvel.copy())
        actions.append(rng.uniform(-1, 1, 8).astype(np.float32))
        ant.step(actions[-1])
    states = PhysicsStates(np.array(qpos, np.float32), np.array(qvel, np.float32))
    return states[:-1], states[1:], np.array(actions[:-1])


# ------------------------------------------------------------------------------------------------ simulator
def test_simulate_repeats_recorded_steps(ant, walk):
    states, next_states, actions = walk
    simulated = Simulator(ant).simulate(states, actions)
    assert np.allclose(simulated.qpos, next_states.qpos, atol=1e-3)
    assert np.allclose(simulated.qvel, next_states.qvel, atol=0.1)


def test_features_and_changes_do_not_depend_on_position_and_yaw(ant, walk):
    turn = Rotation.from_euler('z', 1.2)

    def move(states):
        qpos, qvel = states.qpos.copy(), states.qvel.copy()
        qpos[:, :3] = turn.apply(qpos[:, :3]) + [3.0, -4.0, 0.0]
        rotation = turn * Rotation.from_quat(qpos[:, 3:7], scalar_first=True)
        qpos[:, 3:7] = rotation.as_quat(scalar_first=True)
        qvel[:, :3] = turn.apply(qvel[:, :3])
        return PhysicsStates(qpos, qvel)

    simulator = Simulator(ant)
    states, next_states, _ = walk
    assert np.allclose(simulator.features(move(states)), simulator.features(states), atol=1e-4)
    expected = simulator.changes(states, next_states)
    assert np.allclose(simulator.changes(move(states), move(next_states)), expected, atol=1e-4)
    assert expected.std(0).min() > 1e-4, 'each dimension changes'


def test_features_without_a_free_root_are_the_raw_state():
    simulator = Simulator(make_env('pointmaze-medium-navigate-v0'))
    states = PhysicsStates(np.array([[1.0, 2.0], [1.5, 2.0]], np.float32),
                           np.array([[0.0, 1.0], [0.25, 1.0]], np.float32))
    assert simulator.changes(states[:1], states[1:]).tolist() == [[0.5, 0.0, 0.25, 0.0]]
    assert simulator.features(states)[:, :4].tolist() == [[1.0, 2.0, 0.0, 1.0], [1.5, 2.0, 0.25, 1.0]]


def test_simulator_refuses_environments_without_settable_states():
    with pytest.raises(ValueError, match='cannot be set to states of the data'):
        Simulator(make_env('cube-single-play-v0'))


# ------------------------------------------------------------------------- steps and what stands for them
def altered(env, **methods):
    """Return a wrapper of an environment whose class is changed."""
    return type('Altered', (gymnasium.Wrapper,), methods)(env)


def test_steps_of_ant_and_humanoid_equal_the_simulation(ant, walk):
    Simulator(make_env(DATASET)).check_steps(walk[0])
    humanoid = make_env('humanoidmaze-medium-navigate-v0')
    humanoid.reset(seed=0)
    states = []
    for _ in range(5):
        states.append((humanoid.unwrapped.data.qpos.copy(), humanoid.unwrapped.data.qvel.copy()))
        humanoid.step(humanoid.action_space.sample())
    Simulator(humanoid).check_steps(PhysicsStates(*(np.array(part) for part in zip(*states, strict=True))))


@pytest.mark.parametrize('change', [
    lambda step, a: step(0.5 * a),
    lambda step, a: step(a.clip(-0.8, 0.8)),
    lambda step, a: (step(a), step(a))[1],
    lambda step, a: step(0 * a),
    lambda step, a: step(a[::-1]),
], ids=['half', 'clipped', 'repeated', 'delayed', 'reordered'])
def test_steps_other_than_the_simulation_are_refused(walk, change):
    env = altered(make_env(DATASET), step=lambda self, action: change(self.env.step, action))
    with pytest.raises(ValueError, match='do_simulation.*: positions differ at 1?. of 16 states, by') as error:
        Simulator(env).check_steps(walk[0])
    assert '\n' not in str(error.value)


def test_point_without_motors_is_refused():
    states = PhysicsStates(np.random.default_rng(0).uniform(4, 5, (9, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match='positions differ at 16 of 16 states'):
        Simulator(make_env('pointmaze-medium-navigate-v0')).check_steps(states)


def test_random_models_and_other_ranges_of_actions_are_refused(walk):
    def lighter(self, **options):
        result = self.env.reset(**options)
        self.unwrapped.model.actuator_gear[:, 0] = 20
        return result

    with pytest.raises(ValueError, match='differ at 16 of 16'):
        Simulator(altered(make_env(DATASET), reset=lighter)).check_steps(walk[0])
    scaled = gymnasium.wrappers.RescaleAction(make_env(DATASET), -2, 2)
    with pytest.raises(ValueError, match='wrappers change the range of actions'):
        Simulator(scaled).check_steps(walk[0])


def test_labeling_refuses_before_it_probes(physics, monkeypatch):
    env = altered(make_env(DATASET), step=lambda self, action: self.env.step(0.5 * action))
    monkeypatch.setattr(label_with_simulator, 'make_env', lambda name: env)
    monkeypatch.setattr(Simulator, 'simulate', None)
    with pytest.raises(ValueError, match='simulator labels would be wrong'):
        label_with_simulator.main([*TINY, '--data_dir', 'data', '--save_dir', 'found'])


# -------------------------------------------------------------------------------------------- least squares
def test_solve_recovers_actions(ant, walk):
    states, _, actions = walk
    noise = np.random.default_rng(1).normal(0, 0.3, actions.shape)
    initial = (actions + noise).clip(-1, 1).astype(np.float32)
    simulator = Simulator(ant)
    next_states = simulator.simulate(states, actions)
    solved = simulator.solve(states, next_states, initial, states.qvel.std(0))

    error = np.abs(solved.actions - actions)
    assert solved.converged.mean() > 0.3, 'the others stop in a local minimum'
    assert np.median(error[solved.converged]) < 0.02 * np.median(np.abs(initial - actions))
    assert len(actions) * 9 < solved.num_probes <= len(actions) * simulator.max_probes_per_solve


def test_solve_does_not_converge_to_unreachable_states(ant, walk):
    states, next_states, actions = walk
    raised = next_states.qpos + np.eye(next_states.qpos.shape[1], dtype=np.float32)[2]
    next_states = PhysicsStates(raised, next_states.qvel)
    solved = Simulator(ant).solve(states, next_states, actions, states.qvel.std(0))
    assert not solved.converged.any()
    assert (np.abs(solved.actions) <= 1).all()


# ------------------------------------------------------------------------------------------------- networks
def test_corrections_improve_on_guesses():
    """The effect of two actions depends on the state and on a force that no feature contains."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    states = torch.randn(4000, 3, generator=generator)
    force = torch.randn(4000, 1, generator=generator)
    true = 0.7 * torch.rand(4000, 2, generator=generator) - 0.35

    def changes_of(actions):
        first = (1.5 + states[:, :1].tanh()) * actions[:, :1] + 0.5 * states[:, 1:2] + 0.3 * force
        second = (1.5 + states[:, 2:].tanh()) * actions[:, 1:] - 0.3 * force
        return torch.cat([first, second], 1)

    config = NetworkConfig(hidden_dim=64, num_updates=800, batch_size=128)
    search = ActionSearch(states, changes_of(true), 2, config)

    def probe(actions):
        search.probes.append(Probes(actions, changes_of(actions)))

    probe(2 * torch.rand(4000, 2, generator=generator) - 1)
    guesses = search.fit_guess()
    guessed = search.guess(guesses.network, states, search.changes)
    assert 0.3 < guesses.r2 < 0.97, 'the force limits the accuracy of guesses'
    assert torch.allclose(guesses.rmse, (guessed - true).square().mean(0).sqrt(), rtol=0.3)

    probe(guessed)
    probe((guessed + guesses.rmse * torch.randn(4000, 2, generator=generator)).clamp(-1, 1))

    corrections = search.fit_correction()
    labels = search.correct(corrections.network, search.probes[-2])
    assert corrections.r2 > 0.97, 'the force cancels between two probes'
    assert r2_score(labels, true) > 0.9 > r2_score(guessed, true) + 0.1


# ---------------------------------------------------------------------------------------------------- files
@pytest.fixture(scope='module')
def collected(tmp_path_factory):
    """Collect a dataset of an ant with qpos and qvel; return its folder."""
    folder = tmp_path_factory.mktemp('physics')
    flags = f'--dataset {DATASET} --num_episodes 3 --num_val_episodes 1 --max_episode_steps 60'
    assert collect_dataset.main([*flags.split(), '--output_dir', str(folder), '--physics']) == 0
    return folder


@pytest.fixture
def physics(collected, tmp_path, monkeypatch):
    """Copy the dataset into a new working directory and return its path."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(collected, 'data')
    return tmp_path / 'data' / f'{DATASET}.npz'


def test_online_trainer_imitates_simulator_labels_of_the_same_data(physics, quick_training, monkeypatch, capsys):
    with np.load(physics, allow_pickle=False) as file:
        assert set(file.files) == {'observations', 'terminals', 'qpos', 'qvel'}, 'no actions'

    label_with_simulator.main([*TINY, '--data_dir', 'data', '--save_dir', 'found'])
    printed = capsys.readouterr().out
    assert '177 steps of 3 trajectories; 177 of them are probed, 8 times each' in printed
    path = printed.split('--actions_path ')[1].split()[0]
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    assert found['actions'].shape == (180, 8) and np.abs(found['actions']).max() <= 1
    assert 1416 + 8 * 9 <= found['steps'] <= 1416 + 8 * 27, '9 to 27 probes at each of 8 solved states'
    assert not found['actions'][found['terminals']].any(), 'no step begins in a last state'

    with np.load(physics, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ('observations', 'terminals')}
    for name, offset in ('same', 0), ('other', 1):
        changed = arrays | {'observations': arrays['observations'] + offset, 'actions': found['actions']}
        np.savez(f'{name}.npz', **changed)
    flags = ['--labels_path', path, '--actions_path']
    measure_labels.main([*flags, 'same.npz'])
    assert 'of 177 steps: 1.000' in capsys.readouterr().out
    with pytest.raises(ValueError, match='actions.npz: its actions are not of the episodes in other.npz'):
        measure_labels.main([*flags, 'other.npz'])

    offline_trainer.main([*OFFLINE, '--data_dir', 'data', '--save_dir', 'offline'])
    batches = []
    sample = OnlineBatches.sample

    def record(self, rng):
        batches.append(sample(self, rng))
        return batches[-1]

    monkeypatch.setattr(OnlineBatches, 'sample', record)
    online = [*ONLINE, '--offline_checkpoint', 'offline/last.pth']
    online_trainer.main([*online, '--actions_path', path, '--save_dir', 'online'])
    is_data = batches[-1].rows >= 0
    assert np.array_equal(batches[-1].actions[is_data], found['actions'][batches[-1].rows[is_data]])

    online += ['--save_dir', 'other']
    with pytest.raises(ValueError, match='actions.npz: its actions .* 3 trajectories.* 2 trajectories'):
        online_trainer.main([*online, '--actions_path', path, '--max_trajectories', '2'])
    with pytest.raises(FileNotFoundError, match='nowhere.npz: no such file'):
        online_trainer.main([*online, '--actions_path', 'nowhere.npz'])


@pytest.fixture(scope='module')
def whole(collected, tmp_path_factory):
    """Label the dataset without an interruption; return the folder."""
    folder = tmp_path_factory.mktemp('labels') / 'whole'
    label_with_simulator.main([*RESUMED, '--data_dir', str(collected), '--save_dir', str(folder)])
    return folder


@pytest.mark.parametrize('rounds, at', [(1, 'simulation'), (3, 'print'), (4, 'simulation')])
def test_labeling_resumes_exactly(whole, physics, monkeypatch, rounds, at):
    flags = [*RESUMED, '--data_dir', 'data']
    calls = []
    simulate = Simulator.simulate

    def stop_after_some(self, *arguments):
        if len(calls) == rounds:
            raise KeyboardInterrupt
        calls.append(arguments)
        return simulate(self, *arguments)

    def fail_to_print(text):
        if text.startswith(f'round {rounds}:'):
            raise OSError('nothing reads stdout')

    with monkeypatch.context() as patch:
        if at == 'print':
            patch.setattr(label_with_simulator, 'print', fail_to_print, raising=False)
        else:
            patch.setattr(Simulator, 'simulate', stop_after_some)
        with pytest.raises((KeyboardInterrupt, OSError)):
            label_with_simulator.main([*flags, '--save_dir', 'stopped'])
    assert load_checkpoint('stopped/last.pth', 'labeling')['rounds_done'] == rounds

    label_with_simulator.main([*flags, '--save_dir', 'stopped', '--resume'])
    found = []
    for folder in whole, Path('stopped'):
        with np.load(folder / 'actions.npz', allow_pickle=False) as file:
            found.append(file['actions'])
    assert np.array_equal(*found)


def test_max_steps_limits_probed_states_and_others_are_guessed(physics, capsys):
    flags = [*TINY, '--data_dir', 'data', '--stages', '1', '--num_updates', '5', '--save_dir', 'few']
    label_with_simulator.main([*flags, '--max_steps', '912'])
    assert '150 of them are probed, 4 times each' in capsys.readouterr().out
    with np.load('few/actions.npz', allow_pickle=False) as file:
        assert 600 < file['steps'] <= 912
        steps = file['actions'][~file['terminals']]
    assert steps.any(1).all(), 'steps that were not probed have guesses'

    with pytest.raises(ValueError, match='--max_steps 50: 4 probes at each state need at least 400'):
        label_with_simulator.main([*flags[:-1], 'fewer', '--max_steps', '50'])


def test_datasets_without_physics_or_of_another_robot_are_refused(physics):
    with np.load(physics, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez('short.npz', **{**arrays, 'qvel': arrays['qvel'][:, 1:]})
    np.savez('without.npz', observations=arrays['observations'], terminals=arrays['terminals'])
    for name, problem in (('short', r'\(15, 13\).*\(15, 14\)'),
                          ('without', 'no `qpos` and `qvel`.*--physics')):
        with pytest.raises(ValueError, match=f'{name}.npz: .*{problem}'):
            label_with_simulator.main([*TINY, '--dataset_path', f'{name}.npz', '--save_dir', name])
