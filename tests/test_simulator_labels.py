"""Actions found by trying them out: the simulator, what is seen of it, what is learned, and the files."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import offline_trainer
import online_trainer
from labeling.labeler import explained
from labeling.simulator_labels import ActionSearch, Probes, Simulator
from ogbench_utils import make_env
from online_batches import OnlineBatches
from support.files import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts' / 'data'))  # by path, so that the collector's spawned workers find it as well

import collect_dataset  # noqa: E402
import label_with_simulator  # noqa: E402
import measure_labels  # noqa: E402

DATASET = 'antmaze-medium-navigate-v0'
TINY = shlex.split(f'--dataset {DATASET} --hidden_dim 64 --num_updates 30 --batch_size 64 --solved_states 8 '
                   '--device cpu')
OFFLINE = shlex.split(f'--dataset {DATASET} --d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 '
                      '--transition_steps 5 --batch_size 4 --num_updates 1 --val_batches 1 --no-maze_figures')
ONLINE = shlex.split(f'--dataset {DATASET} --idm_hidden_dim 32 --batch_size 4 --num_envs 2 --random_steps 40 '
                     '--initial_updates 1 --max_steps 40 --final_eval_episodes 1')


@pytest.fixture(scope='module')
def ant():
    return make_env(DATASET).unwrapped


@pytest.fixture(scope='module')
def walk(ant):
    """Some random steps of the ant -> qpos, qvel (60, …), actions (59, A), the first state in the air."""
    rng = np.random.default_rng(0)
    ant.reset(seed=0)
    qpos, qvel, actions = [], [], []
    for _ in range(60):
        qpos.append(ant.data.qpos.copy())
        qvel.append(ant.data.qvel.copy())
        actions.append(rng.uniform(-1, 1, 8).astype(np.float32))
        ant.step(actions[-1])
    return np.array(qpos, np.float32), np.array(qvel, np.float32), np.array(actions[:-1])


def test_what_is_tried_again_leads_to_where_it_led(ant, walk):
    qpos, qvel, actions = walk
    next_qpos, next_qvel = Simulator(ant).simulate(qpos[:-1], qvel[:-1], actions)
    assert np.allclose(next_qpos, qpos[1:], atol=1e-3)
    assert np.allclose(next_qvel, qvel[1:], atol=0.1)


def test_a_place_and_a_heading_change_nothing_that_is_seen(ant, walk):
    """Moved over the ground and turned about the vertical, a robot sees the same and changes in the same way."""
    simulator = Simulator(ant)
    qpos, qvel, _ = walk
    turn = Rotation.from_euler('z', 1.2)
    moved = qpos.copy()
    moved[:, :3] = turn.apply(qpos[:, :3]) + [3.0, -4.0, 0.0]
    moved[:, 3:7] = (turn * Rotation.from_quat(qpos[:, 3:7], scalar_first=True)).as_quat(scalar_first=True)
    speed = qvel.copy()
    speed[:, :3] = turn.apply(qvel[:, :3])

    assert np.allclose(simulator.states(moved, speed), simulator.states(qpos, qvel), atol=1e-4)
    expected = simulator.changes(qpos[:-1], qvel[:-1], qpos[1:], qvel[1:])
    found = simulator.changes(moved[:-1], speed[:-1], moved[1:], speed[1:])
    assert np.allclose(found, expected, atol=1e-4)
    assert expected.std(0).min() > 1e-4, 'each number changes'


def test_actions_are_solved_for(ant, walk):
    qpos, qvel, actions = walk
    first = (actions + np.random.default_rng(1).normal(0, 0.3, actions.shape)).clip(-1, 1).astype(np.float32)
    simulator = Simulator(ant)
    next_qpos, next_qvel = simulator.simulate(qpos[:-1], qvel[:-1], actions)
    solved = simulator.solve(qpos[:-1], qvel[:-1], next_qpos, next_qvel, first, qvel.std(0))

    error = np.abs(solved.actions - actions)
    assert solved.converged.mean() > 0.3, 'the others stop in a minimum that is none of the whole'
    assert np.median(error[solved.converged]) < 0.02 * np.median(np.abs(first - actions))
    assert len(actions) * 9 < solved.probes <= len(actions) * simulator.probes_to_solve


def test_an_action_that_leads_elsewhere_is_not_solved_for(ant, walk):
    """No action of a step makes a jump."""
    qpos, qvel, actions = walk
    simulator = Simulator(ant)
    up = qpos[1:] + np.eye(qpos.shape[1], dtype=np.float32)[2]
    solved = simulator.solve(qpos[:-1], qvel[:-1], up, qvel[1:], actions, qvel.std(0))
    assert not solved.converged.any()
    assert (np.abs(solved.actions) <= 1).all()


def test_a_robot_that_is_not_free_is_seen_as_it_is():
    simulator = Simulator(make_env('pointmaze-medium-navigate-v0'))
    qpos = np.array([[1.0, 2.0], [1.5, 2.0]], np.float32)
    qvel = np.array([[0.0, 1.0], [0.25, 1.0]], np.float32)
    changes = simulator.changes(qpos[:1], qvel[:1], qpos[1:], qvel[1:])
    assert changes.tolist() == [[0.5, 0.0, 0.25, 0.0]]
    assert simulator.states(qpos, qvel)[:, :4].tolist() == [[1.0, 2.0, 0.0, 1.0], [1.5, 2.0, 0.25, 1.0]]


def test_who_cannot_be_set_to_a_state_says_so():
    with pytest.raises(ValueError, match='cannot be set to states of the data'):
        Simulator(make_env('cube-single-play-v0'))


def test_guesses_come_near_and_corrections_nearer():
    """A body whose state decides what its two actions do, with a force that nothing tells."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    states = torch.randn(4000, 3, generator=generator)
    hidden = torch.randn(4000, 1, generator=generator)
    true = 0.7 * torch.rand(4000, 2, generator=generator) - 0.35

    def act(actions):
        first = (1.5 + states[:, :1].tanh()) * actions[:, :1] + 0.5 * states[:, 1:2] + 0.3 * hidden
        second = (1.5 + states[:, 2:].tanh()) * actions[:, 1:] - 0.3 * hidden
        return torch.cat([first, second], 1)

    search = ActionSearch(states, act(true), action_dim=2, hidden_dim=64, updates=800, batch_size=128)

    def simulate(actions):
        search.probes.append(Probes(actions, act(actions)))

    simulate(2 * torch.rand(4000, 2, generator=generator) - 1)
    guesses = search.fit_guess()
    guessed = search.guess(guesses.network, states, search.changes)
    assert 0.3 < guesses.r2 < 0.97, 'the hidden force is in the way'
    assert torch.allclose(guesses.errors, (guessed - true).square().mean(0).sqrt(), rtol=0.3), 'it knows how wrong'

    simulate(guessed)
    simulate((guessed + guesses.errors * torch.randn(4000, 2, generator=generator)).clamp(-1, 1))

    corrections = search.fit_correction()
    labels = search.correct(corrections.network, search.probes[-2])
    assert corrections.r2 > 0.97, 'between two probes, it drops out'
    assert explained(labels, true) > 0.9 > explained(guessed, true) + 0.1


# --------------------------------------------------------------------------------------------------- files
@pytest.fixture
def physics(tmp_path, monkeypatch):
    """Files of an ant that have qpos and qvel, and the working directory."""
    monkeypatch.chdir(tmp_path)
    flags = f'--dataset {DATASET} --num_episodes 3 --num_val_episodes 1 --max_episode_steps 60 --output_dir data'
    assert collect_dataset.main([*flags.split(), '--physics']) == 0
    return tmp_path / 'data' / f'{DATASET}.npz'


@pytest.fixture
def quick(monkeypatch, make_short_env):
    for script in (offline_trainer, online_trainer):
        monkeypatch.setattr(script, 'plot_curves', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'draw_evaluation', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'make_env', make_short_env)


def test_what_is_found_is_imitated(physics, quick, monkeypatch, capsys):
    """The printed command imitates the actions of the file, of that data only."""
    with np.load(physics, allow_pickle=False) as file:
        assert set(file.files) == {'observations', 'terminals', 'qpos', 'qvel'}, 'no action is collected'

    label_with_simulator.main([*TINY, '--data_dir', 'data', '--save_dir', 'found'])
    printed = capsys.readouterr().out
    assert '177 steps of 3 trajectories; actions are tried at 177 of them, 8 times' in printed
    path = printed.split('--actions_path ')[1].split()[0]
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    assert found['actions'].shape == (180, 8) and np.abs(found['actions']).max() <= 1
    assert 1416 + 8 * 9 <= found['steps'] <= 1416 + 8 * 27, 'three evaluations of eight actions'
    assert not found['actions'][found['terminals']].any(), 'after the last state there is no step'

    with np.load(physics, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ('observations', 'terminals')}
    for name, others in ('same', 0), ('other', 1):
        np.savez(f'{name}.npz', **{**arrays, 'observations': arrays['observations'] + others}, actions=found['actions'])
    flags = ['--rehearsed_path', path, '--actions_path']
    measure_labels.main([*flags, 'same.npz'])
    assert 'of 177 steps that are imitated: 1.000' in capsys.readouterr().out
    with pytest.raises(ValueError, match='actions.npz: its actions are not of the episodes in other.npz'):
        measure_labels.main([*flags, 'other.npz'])

    offline_trainer.main([*OFFLINE, '--data_dir', 'data', '--save_dir', 'offline'])
    batches = []
    sample = OnlineBatches.sample
    monkeypatch.setattr(OnlineBatches, 'sample', lambda self, rng: batches.append(sample(self, rng)) or batches[-1])
    online = [*ONLINE, '--offline_checkpoint', 'offline/last.pth']
    online_trainer.main([*online, '--actions_path', path, '--save_dir', 'online'])
    assert np.array_equal(batches[-1].actions, found['actions'][batches[-1].rows])

    with pytest.raises(ValueError, match='actions.npz: its actions were told for 3 trajectories.*is 2 trajectories'):
        online_trainer.main([*online, '--actions_path', path, '--max_trajectories', '2', '--save_dir', 'other'])
    with pytest.raises(FileNotFoundError, match='nowhere.npz: no such file of actions'):
        online_trainer.main([*online, '--actions_path', 'nowhere.npz', '--save_dir', 'other'])


@pytest.mark.parametrize('rounds', [1, 3, 4])
def test_a_rehearsal_that_was_stopped_finds_the_same(physics, monkeypatch, rounds):
    flags = [*TINY, '--data_dir', 'data', '--num_updates', '5', '--stages', '2']
    label_with_simulator.main([*flags, '--save_dir', 'whole'])

    tried = []
    simulate = Simulator.simulate

    def stop_after_some(self, *arguments):
        if len(tried) == rounds:
            raise KeyboardInterrupt
        tried.append(arguments)
        return simulate(self, *arguments)

    monkeypatch.setattr(Simulator, 'simulate', stop_after_some)
    with pytest.raises(KeyboardInterrupt):
        label_with_simulator.main([*flags, '--save_dir', 'stopped'])
    monkeypatch.setattr(Simulator, 'simulate', simulate)
    assert load_checkpoint('stopped/last.pth', 'labeling')['done'] == rounds

    label_with_simulator.main([*flags, '--save_dir', 'stopped', '--resume'])
    found = []
    for folder in 'whole', 'stopped':
        with np.load(f'{folder}/actions.npz', allow_pickle=False) as file:
            found.append(file['actions'])
    assert np.array_equal(*found)


def test_too_few_steps_for_all_states_leave_some_to_be_guessed(physics, capsys):
    flags = [*TINY, '--data_dir', 'data', '--stages', '1', '--num_updates', '5', '--save_dir', 'few']
    label_with_simulator.main([*flags, '--max_steps', '912'])
    assert 'actions are tried at 150 of them, 4 times' in capsys.readouterr().out
    with np.load('few/actions.npz', allow_pickle=False) as file:
        assert 600 < file['steps'] <= 912
        steps = file['actions'][~file['terminals']]
    assert steps.any(1).all(), 'the others are guessed'

    with pytest.raises(ValueError, match='--max_steps 50: 4 probes at each state need at least 400'):
        label_with_simulator.main([*flags[:-1], 'fewer', '--max_steps', '50'])


def test_files_without_physics_or_of_another_robot_are_named(physics):
    with np.load(physics, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez('short.npz', **{**arrays, 'qvel': arrays['qvel'][:, 1:]})
    np.savez('without.npz', observations=arrays['observations'], terminals=arrays['terminals'])
    for name, problem in (('short', r'numbers, the simulator has \(15, 14\)'),
                          ('without', 'there are no `qpos` and `qvel` in it.*--physics')):
        with pytest.raises(ValueError, match=f'{name}.npz: .*{problem}'):
            label_with_simulator.main([*TINY, '--dataset_path', f'{name}.npz', '--save_dir', name])
