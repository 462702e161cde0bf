"""OPSO as a library (opso.py): loading, acting, values, messages, and a user's modules of the same names."""

import textwrap

import numpy as np
import pytest

import opso
from observing.observation_models import ObservationModel


@pytest.fixture
def policy(agent, save_online):
    return opso.load(save_online(agent))


def test_act_is_that_of_the_agent_for_a_batch_and_for_one_robot(policy, agent, states):
    goals = states(3, seed=9)
    state = agent.initial_state(3)
    for step in range(5):
        observations = states(3, seed=step)
        expected, state = agent.act(observations, goals, state)
        np.testing.assert_array_equal(policy.act(observations, goals), expected)

    policy.reset()
    first = policy.act(observations[0], goals[0])
    assert first.shape == (3,) and first.dtype == np.float32
    np.testing.assert_allclose(first, agent.act(observations, goals, agent.initial_state(3))[0][0], atol=1e-5)


def test_acting_makes_no_optimizer(policy, agent, states):
    """With it torch would load its compiler, which takes seconds."""
    assert agent.state_dict()['optimizer'] is not None
    policy.act(states(1)[0], states(1, seed=3)[0])
    assert not any('optimizer' in vars(part) for part in (policy.agent, policy.agent.offline))


def test_reset_of_rows_and_a_single_goal_of_all_robots(policy, agent, states):
    goal = states(1, seed=9)
    policy.act(states(2, seed=0), goal[0])
    policy.reset(rows=[1])
    state = agent.act(states(2, seed=0), goal.repeat(2, 0), agent.initial_state(2))[1]
    state = agent.reset_state(state, np.array([False, True]))
    expected = agent.act(states(2, seed=1), goal.repeat(2, 0), state)[0]
    np.testing.assert_array_equal(policy.act(states(2, seed=1), goal), expected)
    with pytest.raises(ValueError, match='mask or indices of 2 robots'):
        policy.reset(rows=[2])


def test_goals_may_have_nan_and_change_at_any_time(policy, agent, states):
    goal = states(1, seed=3)[0]
    goal[2] = np.nan
    policy.act(states(1)[0], goal)
    filled = agent.read_goal(goal)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(policy.act(states(1)[0], filled), policy.act(states(1)[0], goal))
    with pytest.raises(ValueError, match='NaN in all observed dimensions'):
        policy.act(states(1)[0], np.full(5, np.nan))
    policy.act(states(1)[0], goal)


def test_values_of_a_goal_with_nan_are_those_of_the_goal_that_is_read(policy, states):
    goal = states(2)[1].copy()
    goal[3] = np.nan
    filled = policy.agent.read_goal(goal)
    assert policy.steps_to(states(1)[0], goal) == policy.steps_to(states(1)[0], filled)
    offline = opso.Representation(policy.offline, policy.observation_model, policy.name)
    with pytest.raises(ValueError, match=r'`goals\[3\]` is nan'):
        offline.value(states(1)[0], goal)


@pytest.mark.parametrize('name, call', [
    ('observation[3]', lambda policy, x: policy.act(x, np.zeros(5))),
    ('observation[1, 3]', lambda policy, x: policy.act(np.stack([np.zeros(5), x]), np.zeros(5))),
    ('states[3]', lambda policy, x: policy.latents(x)),
])
def test_nan_is_refused_by_name(policy, name, call):
    with pytest.raises(ValueError) as error:
        call(policy, np.array([0, 0, 0, np.nan, 0]))
    assert f'`{name}` is nan' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('arguments, words', [
    ((np.zeros(4), np.zeros(5)), r'`observation` has the shape \(4,\); it must be \(5,\) for one robot'),
    ((np.zeros(5), np.zeros((1, 1, 5))), r'`goal` has the shape \(1, 1, 5\)'),
    ((np.zeros(5), 'corner'), '`goal` is str'),
    ((np.zeros((2, 5)), np.zeros((3, 5))), '`observation` has 2 rows and `goal` 3'),
    ((np.zeros((0, 5)), np.zeros(5)), r'shape \(0, 5\)'),
])
def test_wrong_shapes_are_refused_by_name(policy, arguments, words):
    with pytest.raises(ValueError, match=words):
        policy.act(*arguments)


def test_another_number_of_robots_needs_a_reset(policy, states):
    policy.act(states(2), states(2))
    with pytest.raises(ValueError, match=r'1 rows, after 2 in the steps before; call reset\(\)'):
        policy.act(states(1), states(1))
    policy.reset()
    policy.act(states(1), states(1))


def test_values_steps_and_latents(policy, states):
    a, b = states(4, seed=0), states(4, seed=1)
    values = policy.value(a, b)
    assert values.shape == (4,) and (values < 0).all()
    assert policy.value(a[1], b[1]) == pytest.approx(values[1], rel=1e-4)
    np.testing.assert_allclose(policy.value(a, b[0])[0], values[0], rtol=1e-4)

    # V of n steps is -reward_scale * (1 + gamma + ... + gamma^(n-1))
    config = policy.offline.config
    steps = policy.steps_to(a, b)
    returns = config.reward_scale * (config.discount ** steps - 1) / (1 - config.discount)
    inside = steps < 1000
    np.testing.assert_allclose(returns[inside], values[inside], rtol=1e-4)
    assert policy.latents(a).shape == (4, 32) and policy.latents(a[0]).shape == (32,)
    with pytest.raises(ValueError, match='`states` have 4 rows and `goals` 2'):
        policy.value(a, b[:2])


def test_subgoals_are_nodes_on_the_path_or_the_goal(policy, agent, make_dataset):
    data = make_dataset().observations
    start, goal = data[:1], data[35:36]
    planner = agent.planner.first
    first = planner.path(*planner.locate(np.concatenate([start, goal])))[1]
    np.testing.assert_array_equal(policy.subgoal(start, goal)[0], agent.data_map.states[first])
    np.testing.assert_array_equal(policy.subgoal(goal[0], goal[0]), goal[0])
    before = policy.act(start[0], goal[0])
    policy.subgoal(data[20], goal[0])
    policy.reset()
    np.testing.assert_array_equal(policy.act(start[0], goal[0]), before)


def test_readings_of_angles_and_large_offsets_are_converted(make_online, save_online, states):
    """The agent observes sine and cosine; the caller has the angle, in float64 far from zero."""
    model = ObservationModel(origin=(0.0, 5e6, 0.0, 0.0, 0.0), angles=((0, 4, 360.0),))
    agent = make_online()
    policy = opso.load(save_online(agent, model))
    readings = np.array([[90.0, 5e6 + 1.25, 1, 2], [-30.0, 5e6 - 0.5, 3, 4]])
    observed = np.array([[1, 1.25, 1, 2, 0], [-0.5, -0.5, 3, 4, 3 ** 0.5 / 2]], np.float32)
    expected = agent.act(observed, observed[::-1].copy(), agent.initial_state(2))[0]
    np.testing.assert_allclose(policy.act(readings, readings[::-1]), expected, atol=1e-6)
    np.testing.assert_allclose(policy.to_states(observed), readings, rtol=1e-6)
    assert policy.subgoal(readings, readings[0]).shape == (2, 4)


def test_an_offline_checkpoint_is_loaded_by_its_own_function(make_agent, save_online, agent, tmp_path):
    path = save_online(agent)
    with pytest.raises(ValueError, match='is an online checkpoint, an offline one is needed'):
        opso.load_offline(path)
    offline = opso.Representation(agent.offline, ObservationModel(), 'name')
    np.testing.assert_array_equal(offline.latents(np.ones(5)), opso.load(path).latents(np.ones(5)))
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        opso.load(tmp_path / 'none.pth')


SCRIPT = '''
    import sys
    names = [name for name in sys.modules if name.partition('.')[0] in {names!r}]
    for name in names:  # this process has the modules of the tests
        del sys.modules[name]

    import utils  # before OPSO's
    import opso
    import model, figures.mine, tasks  # after them
    assert utils.MINE and model.MINE and figures.mine.MINE and sys.modules['utils'] is utils
    assert tasks.__file__ == {tasks!r}, 'a name that only OPSO has is OPSO\\'s'

    from rollouts import evaluate
    assert evaluate is opso.evaluate
    policy = opso.load('last.pth')
    print(policy.act([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]))
'''


def test_opso_works_beside_modules_of_the_same_names(agent, save_online, tmp_path, run_script):
    save_online(agent)
    (tmp_path / 'figures').mkdir()
    for name in ('utils.py', 'model.py', 'figures/__init__.py', 'figures/mine.py'):
        (tmp_path / name).write_text('MINE = True')
    names = sorted({path.stem for path in opso.ROOT.glob('*.py')} | {
        path.parent.name for path in opso.ROOT.glob('*/__init__.py')})
    script = textwrap.dedent(SCRIPT).format(names=names, tasks=str(opso.ROOT / 'tasks.py'))
    (tmp_path / 'mine.py').write_text(script)
    out, _ = run_script(tmp_path / 'mine.py', cwd=tmp_path)
    action = opso.load(tmp_path / 'last.pth').act([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    np.testing.assert_allclose(np.array(out.strip('[] \n').split(), float), action, atol=1e-5)
