"""Numbers of steps from time scales of the data, and random steps from robot and labels."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import offline_trainer
import online_trainer
from labeling.labeler import Labeler
from ogbench_utils import BUNDLED_NAME
from planning.goal_weights import find_goal_weights
from planning.time_scales import MIN_TRANSITIONS, choose_numbers, has_slow_direction, slow_steps
from rollouts import Collector
from support.files import load_checkpoint
from support.npz import load_trajectories
from tasks import Locomotion, Staying
from trajectories import TrajectoryDataset

ROOT = Path(__file__).resolve().parent.parent
ALL = {'transition_steps': 0, 'discount': 0, 'context_length': 0}
TINY = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --batch_size 2 --num_updates 1 '
                   '--no-maze_figures --env docs.own_robot:make_env --dataset_path swings.npz --save_dir run')


@pytest.fixture(scope='module')
def ant():
    """The first 20 bundled trajectories: (20, 1001, 29)."""
    return load_trajectories(ROOT / 'datasets' / f'{BUNDLED_NAME}.npz', 20)[0].reshape(20, -1, 29)


def dataset_of(states):
    """Return a TrajectoryDataset of states (trajectory, step, dimension)."""
    count, length, size = states.shape
    ends = length * np.arange(1, count + 1) - 1
    return TrajectoryDataset(states.reshape(-1, size).astype(np.float32), ends - length + 1, ends)


def swings(period, length=400, count=30):
    """Return angle and velocity (count, length, 2) of pendulums with a period in steps."""
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (count, 1))
    angle = phase + 2 * np.pi * np.arange(length) / period
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def test_ant_has_the_numbers_of_its_results(ant):
    numbers, reasons = choose_numbers(dataset_of(ant), ALL)
    assert numbers == {'transition_steps': 25, 'discount': 0.998, 'context_length': 100}
    assert [reason.split()[0] for reason in reasons] == ['--transition_steps', '--discount', '--context_length']


@pytest.mark.parametrize('period', [30, 60])
def test_steps_grow_with_the_time_scale(period):
    """The autocorrelation of a swing is a cosine, which is 0.8 after 0.1024 periods."""
    numbers, _ = choose_numbers(dataset_of(swings(period)), ALL)
    assert numbers['transition_steps'] == round(2 * 0.1024 * period)
    assert numbers['discount'] == pytest.approx(1 - 1 / (20 * numbers['transition_steps']), abs=1e-4)


def test_slow_steps_depend_neither_on_units_nor_on_the_basis(ant):
    slow = slow_steps(dataset_of(ant))
    assert slow > 50
    units = np.geomspace(1e-3, 1e3, 29)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((29, 29)))[0]
    turned = (ant - ant.mean((0, 1))) / ant.std((0, 1)) @ turn
    for states in ant * units, turned:
        assert slow_steps(dataset_of(states)) == pytest.approx(slow, rel=0.02)


def test_data_without_a_slow_direction_have_goals_about_all_dimensions(ant):
    states = np.concatenate([swings(60), 0.1 * np.random.default_rng(0).standard_normal((30, 400, 1))], -1)
    data = dataset_of(states)
    data.transition_steps = 5
    places, _ = find_goal_weights(data)
    assert places.are_dimensions and (places.weights == 1).all() and 'no direction' in places.excluded[0]
    assert find_goal_weights(data, [1])[0].weights[2] < 0.1
    assert has_slow_direction(dataset_of(ant))


def test_imitation_has_no_weights_by_progress_without_a_slow_direction(make_agent, make_online, make_dataset):
    agent = make_agent()
    assert agent.has_places and make_online(offline=agent).task.weighs_progress
    agent.set_statistics(*make_dataset().statistics(), np.ones(agent.observation_dim))
    assert not agent.has_places and not make_online(offline=agent).task.weighs_progress


def test_short_trajectories_hold_several_transitions(ant):
    numbers, reasons = choose_numbers(dataset_of(ant[:, :51]), ALL)
    assert numbers['transition_steps'] == 50 / MIN_TRANSITIONS and numbers['context_length'] == 50
    assert 'median trajectory' in reasons[0] and reasons[2].startswith('--context_length 50: ')


@pytest.mark.parametrize('states', [np.zeros((3, 9, 2)), np.arange(6.0).reshape(3, 2, 1), np.zeros((2, 1, 3))])
def test_degenerate_data_have_numbers(states):
    numbers, _ = choose_numbers(dataset_of(states), ALL)
    assert numbers['transition_steps'] >= 1 and numbers['context_length'] >= 1 and 0 < numbers['discount'] < 1


def test_given_numbers_stay(ant):
    numbers, reasons = choose_numbers(dataset_of(ant), ALL | {'transition_steps': 5, 'context_length': 7})
    assert numbers == {'discount': 0.99} and len(reasons) == 1


def test_runs_and_resumed_runs_hold_the_numbers(tmp_path, monkeypatch, quick_training, capsys):
    monkeypatch.chdir(tmp_path)
    states = swings(200, length=51).reshape(-1, 2)
    np.savez('swings.npz', observations=states, terminals=np.arange(len(states)) % 51 == 50)
    offline_trainer.main([*TINY])
    assert '--transition_steps 10: 1/5 of the 50 steps of the median trajectory' in capsys.readouterr().out
    saved = load_checkpoint('run/last.pth')
    for flags in saved['flags'], saved['agent']['config']:
        assert (flags['transition_steps'], flags['discount'], flags['context_length']) == (10, 0.995, 50)

    # a resumed run has the saved numbers, whatever the rule says, and refuses others
    monkeypatch.setattr('trajectories.choose_numbers', lambda data, given: ({}, []))
    offline_trainer.main([*TINY, '--resume'])
    with pytest.raises(ValueError, match='--transition_steps was 10, is 7'):
        offline_trainer.main([*TINY, '--resume', '--transition_steps', '7'])


def test_online_runs_hold_the_number_of_random_steps(tmp_path, monkeypatch, quick_training):
    monkeypatch.chdir(tmp_path)
    states = swings(200, length=51).reshape(-1, 2)
    np.savez('swings.npz', observations=states, terminals=np.arange(len(states)) % 51 == 50)
    offline_trainer.main([*TINY])
    online = shlex.split('--env docs.own_robot:make_env --offline_checkpoint run/last.pth --save_dir online '
                         '--num_envs 2 --initial_updates 1 --idm_hidden_dim 32 --batch_size 1 '
                         '--final_eval_episodes 1')
    online_trainer.main([*online, '--max_steps', '40'])
    assert json.loads(Path('online/config.json').read_text())['flags']['random_steps'] == 20
    assert load_checkpoint('online/last.pth', 'online')['flags']['random_steps'] == 20
    online_trainer.main([*online, '--max_steps', '44', '--resume'])
    assert load_checkpoint('online/last.pth', 'online')['flags']['random_steps'] == 20


def test_a_robot_with_declared_goals_must_stay(tmp_path, monkeypatch, quick_training, capsys):
    monkeypatch.chdir(tmp_path)
    states = swings(200, length=51).reshape(-1, 2)
    np.savez('swings.npz', observations=states, terminals=np.arange(len(states)) % 51 == 50)
    offline_trainer.main([*TINY, '--goal_dims', '0'])
    online = shlex.split('--env docs.own_robot:make_env --offline_checkpoint run/last.pth --num_envs 2 --max_steps 40 '
                         '--initial_updates 1 --idm_hidden_dim 32 --batch_size 1 --final_eval_episodes 1')
    for flags, stay in ([], 'yes'), (['--stay', 'no'], 'no'):
        online_trainer.main([*online, *flags, '--save_dir', stay])
        assert load_checkpoint(f'{stay}/last.pth', 'online')['agent']['config']['stay'] == stay
    assert capsys.readouterr().out.count('--stay yes: goal dimensions are declared') == 1
    online_trainer.main([*online, '--max_steps', '44', '--save_dir', 'yes', '--resume'])
    assert load_checkpoint('yes/last.pth', 'online')['flags']['stay'] == 'yes'


@pytest.mark.parametrize('actions, most, steps', [
    (2, 10_000, 1000), (8, 10_000, 1000), (21, 10_000, 2625), (100, 10_000, 10_000), (8, 400, 400)])
def test_random_steps_follow_from_actions_and_budget(actions, most, steps):
    assert online_trainer.first_random_steps(actions, most) == steps


def choose_updates(num_steps, task=Locomotion, **flags):
    """-> config of a run after 1,000 random steps, with batches of 400."""
    values = {'max_steps': 0, 'initial_updates': 0, 'update_ratio': None, 'lr_decay_updates': None, 'lr': None}
    config = SimpleNamespace(**values | flags)
    training = SimpleNamespace(
        config=config, agent=SimpleNamespace(config=config, task=task), collector=SimpleNamespace(steps=1000),
        batches=SimpleNamespace(num_steps=num_steps, size=400),
        run=SimpleNamespace(set_flags=lambda **chosen: vars(config).update(chosen)))
    online_trainer.OnlineTraining.choose_updates(training)
    return config


@pytest.mark.parametrize('flags, expected', [
    ({}, (4001, 0.2, 0, 0.001)),  # 16 passes over 100,001 steps, all of them now; later rounds need a rate, too
    ({'max_steps': 5000}, (800, 4001 / 5000, 800 + 3201, 0.004)),  # evenly
    ({'max_steps': 1000}, (4001, 4.001, 4001, 0.004)),  # no later round
    ({'max_steps': 5000, 'update_ratio': 1.0}, (4001, 1.0, 4001 + 4000, 0.004)),
    ({'max_steps': 5000, 'initial_updates': 9}, (9, 0.2, 0, 0.001)),
    ({'max_steps': 1000, 'lr_decay_updates': 0}, (4001, 4.001, 0, 0.004)),
    ({'lr_decay_updates': 7, 'lr': 0.5}, (4001, 0.2, 7, 0.5)),
])
def test_gradient_steps_follow_from_data_and_budget(flags, expected, capsys):
    found = choose_updates(100_001, **flags)
    assert (found.initial_updates, found.update_ratio, found.lr_decay_updates, found.lr) == pytest.approx(expected)
    said = '4,001 gradient steps: 16 passes over 100,001 steps'
    assert (said in capsys.readouterr().out) == ('initial_updates' not in flags)


def test_a_robot_that_must_stay_learns_for_longer(capsys):
    found = choose_updates(20_001, Staying, max_steps=10_000)
    assert (found.initial_updates, found.update_ratio, found.lr_decay_updates, found.lr) == (500, 0.5001, 0, 0.001)
    assert '5,001 gradient steps: 100 passes over 20,001 steps; 500 now' in capsys.readouterr().out


def test_gradient_steps_have_limits(capsys):
    limits = Locomotion.training
    assert choose_updates(10 ** 6).initial_updates == limits.most_updates
    assert f'{limits.most_updates:,} gradient steps: the most by default' in capsys.readouterr().out
    assert choose_updates(1000).initial_updates == limits.least_updates
    assert f'{limits.least_updates:,} gradient steps: the fewest by default' in capsys.readouterr().out


def collector(steps, episodes, length=0.0, **flags):
    """-> Collector of a run after some steps, 1,000 of them random, whose last episodes had a mean length."""
    config = online_trainer.OnlineTrainConfig(random_steps=1000, **flags)
    made = Collector(config, [], None)
    made.steps, made.episodes, made.length = steps, episodes, length
    return made


@pytest.mark.parametrize('length, flags, due', [
    (125.0, {'max_steps': 4000}, 4),  # an eighth of the budget
    (1000.0, {'max_steps': 4000}, 1),
    (0.0, {'max_steps': 4000}, 1),  # all were cut
    (50.0, {'max_steps': 20_000}, 50),
    (50.0, {'max_steps': 20_000, 'max_episodes': 30}, 10),
    (1000.0, {}, 8),  # a set of --num_envs
    (0.0, {}, 8),
    (50.0, {}, 16),  # about 1,000 steps
])
def test_rounds_follow_from_the_budget(length, flags, due):
    assert collector(1000, 20, length, **flags).episodes_due() == due


@pytest.mark.parametrize('steps, episodes, flags, epsilon', [
    (1000, 8, {'max_steps': 5000}, 0.30),
    (3000, 12, {'max_steps': 5000}, 0.175),
    (5000, 30, {'max_steps': 5000}, 0.05),
    (500, 8, {'max_steps': 1000}, 0.30),  # all steps are random
    (3000, 50, {'max_steps': 5000, 'schedule_episodes': 100}, 0.175),
    (10 ** 6, 100, {}, 0.175),
])
def test_schedules_follow_from_the_budget(steps, episodes, flags, epsilon):
    found = collector(steps, episodes, **flags).schedules()
    assert found == pytest.approx((epsilon, 0.05 + 0.15 * (epsilon - 0.05) / 0.25))


@pytest.mark.parametrize('r2, steps', [
    ([0.9], [1000]),
    ([0.5, 0.51], [1000, 1000]),
    ([0.5, 0.6, 0.7, 0.8, 0.84], [1000, 1000, 2000, 4000, 2000]),
    ([0.5, 0.9], [1000, 1000]),
])
def test_random_steps_double_while_poor_labels_become_better(r2, steps, capsys):
    collected, flags = [], {}
    collector = SimpleNamespace(steps=0, done=False)
    labeler = Labeler(2, 1)

    def collect_and_label(count):
        labeler.r2 = torch.tensor([r2[len(collected)]])
        collected.append(count)
        collector.steps += count
        return {'labeler/r2': float(labeler.r2)}

    training = SimpleNamespace(collect_and_label=collect_and_label, collector=collector,
                               agent=SimpleNamespace(labeler=labeler, action_dim=2),
                               config=SimpleNamespace(num_envs=8, max_steps=0),
                               run=SimpleNamespace(set_flags=flags.update))
    metrics = online_trainer.OnlineTraining.collect_random_steps(training)
    assert collected == steps and flags == {'random_steps': sum(steps)}
    assert metrics['labeler/r2'] == pytest.approx(r2[len(steps) - 1])
    assert capsys.readouterr().out.count('more (--random_steps') == len(steps) - 1
