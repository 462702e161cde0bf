"""scripts/checkpoints/export_policy.py: files equal to the agent, the loops of docs/library.md, refusals."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import export_policy
import numpy as np
import onnxruntime
import pytest
import torch

import opso
from observing.observation_models import FULL_STATE, ObservationModel
from offline_agent import OfflineAgent
from trajectories import TrajectoryDataset

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'docs' / 'library.md').read_text(encoding='utf-8')


def block(word):
    """Return the block of Python on the page that has a word."""
    found, = [text for text in re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S) if word in text]
    return found


@pytest.fixture(autouse=True)
def short_checks(monkeypatch):
    """Compare 80 states and time 9 steps; `export_policy.main` compares 1,000."""
    monkeypatch.setattr(export_policy, 'COMPARED_STEPS', 10)
    monkeypatch.setattr(export_policy, 'TIMED_STEPS', 1)


@pytest.fixture
def export(save_online, tmp_path):
    """export(agent, suffix, flag, ..., observation_model) -> (path, opso.Policy)"""

    def run(agent, suffix, *flags, observation_model=FULL_STATE):
        checkpoint = save_online(agent, observation_model)
        path = tmp_path / f'policy{suffix}'
        export_policy.main(['--checkpoint', str(checkpoint), '--output', str(path), *flags])
        return path, opso.load(checkpoint)

    return run


@pytest.fixture
def uneven(agent):
    """Return an agent whose actions have uneven bounds."""
    agent.action_low, agent.action_high = np.float32([-1, 0, -3]), np.float32([1, 5, -2])
    return agent


def test_torchscript_equals_act_in_1000_states(uneven, export, monkeypatch, capsys):
    monkeypatch.setattr(export_policy, 'COMPARED_STEPS', 125)
    path, policy = export(uneven, '.pt')  # refuses differences above 1e-4
    exported = export_policy.ExportedAgent(path, policy)
    assert 'in 1,000 states: ' in capsys.readouterr().out

    about = exported.metadata
    assert about['observation_dim'] == 5 and about['action_dim'] == 3 and about['state_size'] == 8
    assert about['action_low'] == [-1, 0, -3] and about['action_high'] == [1, 5, -2]
    assert about['environment'] == 'pointmaze-medium-navigate-v0' and about['observation_type'] == 'float32'
    assert about['goal_dims'] == sorted(uneven.offline.position_dims().tolist()) and about['opso_commit']
    assert 'nodes' in about['map']


def test_comparison_notices_another_policy_and_another_plan(agent, export):
    path, policy = export(agent, '.pt')
    exported = export_policy.ExportedAgent(path, policy)
    planner = policy.agent.planner
    policy.agent.planner = planner.second
    assert export_policy.compare_states(exported, policy, seed=1) > 1e-3

    policy.agent.planner = planner
    policy.agent.ema_nets['inverse_dynamics'].net[-1].bias.data += 1e-3
    assert export_policy.compare_states(exported, policy, seed=1) > 5e-4


def test_robots_are_independent_and_states_hold_the_plan(agent, export, states):
    path, policy = export(agent, '.pt')
    run, _ = export_policy.open_file(path)
    known = policy.agent.data_map.known_states
    goals = known[[20, 40]]
    both = one = np.full((2, 8), np.nan, np.float32)
    one = one[:1]
    for row in (0, 5, 10):
        actions, both = run(known[[row, row + 1]], goals, both)
        action, one = run(known[[row]], goals[:1], one)
        np.testing.assert_allclose(actions[0], action[0], atol=1e-5)
    np.testing.assert_array_equal(both[:, :5], goals)


def test_a_policy_without_a_plan_has_no_state(make_online, export):
    path, policy = export(make_online(plan=False), '.pt')
    run, about = export_policy.open_file(path)
    assert about['state_size'] == 0 and about['map'] == ''
    states = policy.agent.data_map.known_states[:3]
    action, = run(states, states[::-1].copy())
    np.testing.assert_allclose(action, policy.act(states, states[::-1]), atol=1e-5)


@pytest.mark.parametrize('plan', [True, False])
def test_goals_may_be_nan(make_online, export, plan):
    path, policy = export(make_online(plan=plan), '.pt')
    run, about = export_policy.open_file(path)
    known = policy.agent.data_map.known_states
    goals = known[[20, 40]]
    goals[0, 1:3] = goals[1, 4] = np.nan
    state = [np.full((2, about['state_size']), np.nan, np.float32)] if plan else []
    for row in (0, 5, 10):
        action, *state = run(known[[row, row + 1]], goals, *state)
        np.testing.assert_allclose(action, policy.act(known[[row, row + 1]], goals), atol=1e-5)


def test_angles_and_offsets_are_inside(make_online, export):
    model = ObservationModel(origin=(0.0, 5e6, 0.0, 0.0, 0.0), angles=((0, 4, 360.0),))
    path, policy = export(make_online(), '.pt', observation_model=model)
    run, about = export_policy.open_file(path)
    assert about['observation_dim'] == 4 and about['observation_type'] == 'float64'
    readings = np.array([[90.0, 5e6 + 1.25, 1, 2], [-30.0, 5e6 - 0.5, 3, 4]])
    action, _ = run(readings, readings[::-1].copy(), np.full((2, 8), np.nan, np.float32))
    np.testing.assert_allclose(action, policy.act(readings, readings[::-1]), atol=1e-5)


def test_onnx_equals_act_and_drives_the_page(make_config, make_online, export, monkeypatch, capsys):
    """The arm of docs/own_robot.py; torch's exporter is fastest for layers without memory."""
    angles = np.cumsum(np.random.default_rng(0).normal(0, 0.05, (300, 2)), 0).astype(np.float32)
    config = make_config(encoder='mlp', n_layers=1)
    data = TrajectoryDataset(angles, np.array([0]), np.array([299]), **config.sampling())
    offline = OfflineAgent(2, config)
    offline.set_statistics(*data.statistics(), data.slowness())
    agent = make_online(offline=offline, action_dim=2, data=data)
    agent.action_low, agent.action_high = np.float32([-0.05, -0.05]), np.float32([0.05, 0.05])

    monkeypatch.setattr(export_policy, 'COMPARED_STEPS', 125)
    path, policy = export(agent, '.onnx')  # refuses differences above 1e-4
    assert export_policy.open_file(path)[1]['observation_dim'] == 2

    # a goal that is NaN in a dimension
    run, _ = export_policy.open_file(path)
    goal = np.float32([[0.3, np.nan]])
    action, _ = run(angles[:1], goal, np.full((1, 5), np.nan, np.float32))
    policy.reset()
    np.testing.assert_allclose(action, policy.act(angles[:1], goal), atol=1e-5)
    policy.reset()

    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(ROOT))
    capsys.readouterr()

    # the actions of the loop are those of the agent
    names = {}
    sessions = []
    real = onnxruntime.InferenceSession

    def record(*arguments):
        sessions.append(Recorder(real(*arguments)))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, 'InferenceSession', record)
    loop = block('docs.own_robot')
    assert len(loop.splitlines()) <= 30
    exec(compile(loop, 'docs/library.md', 'exec'), names)
    assert capsys.readouterr().out.strip() in ('success', 'failure')
    assert len(sessions[0].calls) > 1
    for inputs, action in sessions[0].calls:
        np.testing.assert_allclose(action, policy.act(inputs['observation'], inputs['goal']), atol=1e-5)

    # the node publishes an action once it has a goal and an observation
    published = []
    node = fake_ros(monkeypatch, published)
    listing = block('rclpy')
    assert len(listing.splitlines()) <= 30
    exec(compile(listing, 'docs/library.md', 'exec'), names)
    node.act()
    node.subscribed['goal'](SimpleNamespace(data=[0.5, 0.5]))
    node.subscribed['observation'](SimpleNamespace(data=[0.0, float('nan')]))
    node.act()
    assert not published
    node.subscribed['observation'](SimpleNamespace(data=[0.0, 0.1]))
    node.act()
    policy.reset()
    np.testing.assert_allclose(published, [policy.act([0.0, 0.1], [0.5, 0.5])], atol=1e-5)
    node.subscribed['goal'](SimpleNamespace(data=[0.3, float('nan')]))
    node.act()
    np.testing.assert_allclose(published[1:], [policy.act([0.0, 0.1], [0.3, np.nan])], atol=1e-5)


def fake_ros(monkeypatch, published):
    """Stand in for rclpy; return the node that the listing makes, whose publisher appends to `published`."""
    class Node:
        subscribed = {}

        def __init__(self, name):
            pass

        def create_subscription(self, kind, topic, callback, depth):
            self.subscribed[topic] = callback

        def create_publisher(self, kind, topic, depth):
            return SimpleNamespace(publish=lambda message: published.append(message.data))

        def create_timer(self, seconds, callback):
            Node.act = callback

    modules = {'rclpy': {'init': lambda: None, 'spin': lambda node: None}, 'rclpy.node': {'Node': Node},
               'std_msgs': {}, 'std_msgs.msg': {'Float64MultiArray': SimpleNamespace}}
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return Node


class Recorder:
    """An onnxruntime session that records its inputs and the actions."""

    def __init__(self, session):
        self.session = session
        self.calls = []

    def get_modelmeta(self):
        return self.session.get_modelmeta()

    def run(self, names, inputs):
        outputs = self.session.run(names, inputs)
        self.calls.append((inputs, outputs[0]))
        return outputs


# ------------------------------------------------------------------------------------------------- refusals
def test_what_a_file_cannot_hold_is_refused_in_one_line(agent, make_online, export, monkeypatch, tmp_path):
    def refused(agent, words):
        with pytest.raises(ValueError) as error:
            export(agent, '.pt')
        text = str(error.value)
        assert text.startswith(str(tmp_path / 'last.pth')) and '\n' not in text and words in text, text
        assert not (tmp_path / 'policy.pt').exists()

    monkeypatch.setattr(export_policy, 'MAX_TABLE_BYTES', 100)
    refused(agent, 'scripts/checkpoints/distil_plan.py')
    monkeypatch.setattr(export_policy, 'MAX_TABLE_BYTES', 1 << 20)
    agent.offline.has_dropout = True
    refused(agent, '--estimator last_observation')

    policy = opso.Policy(agent, FULL_STATE, 'name')
    agent.offline.has_objects = True
    with pytest.raises(ValueError, match='file.pth: its plans move objects'):
        export_policy.check_exportable(policy, 'file.pth')


def test_flags_are_checked_first(agent, save_online, tmp_path, monkeypatch):
    checkpoint = str(save_online(agent))
    with pytest.raises(ValueError, match='--checkpoint .* and --output .* are required'):
        export_policy.main([])
    with pytest.raises(ValueError, match='must end in .onnx or .pt'):
        export_policy.main(['--checkpoint', checkpoint, '--output', str(tmp_path / 'policy.tflite')])
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ValueError, match='pip install -r requirements-export.txt; or write policy.pt'):
        export_policy.main(['--checkpoint', checkpoint, '--output', str(tmp_path / 'policy.onnx')])


def test_stuck_noise_is_left_out_and_a_file_that_differs_is_an_error(make_online, export, monkeypatch, capsys):
    monkeypatch.setattr(export_policy, 'compare_states', lambda *_: float('nan'))
    with pytest.raises(ValueError, match='do not use it'):
        export(make_online(stuck_noise=0.5), '.pt')
    assert 'leaves out --stuck_noise 0.5' in capsys.readouterr().out


def test_compute_both_takes_one_result():
    def half(x):
        return x / 2
    x = torch.ones(2)
    assert export_policy.compute_both(torch.tensor(True), half, torch.neg, (x,)).tolist() == [0.5, 0.5]
    assert export_policy.compute_both(torch.tensor(False), half, torch.neg, (x,)).tolist() == [-1, -1]
