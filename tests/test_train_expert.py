"""Experts for data collection: their features, their training and its resumption."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'scripts' / name) for name in ('data', 'experts')]

import distil_expert  # noqa: E402
import train_expert  # noqa: E402
from collect_maze import expert_inputs, load_expert  # noqa: E402
from distil_expert import ROBOTS, Walk, export, make_student  # noqa: E402
from train_expert import (  # noqa: E402
    MIRROR_ACTIONS,
    MIRROR_FEATURES,
    DirectedRobot,
    Humanoid,
    Replay,
    multiply,
    yaw_quaternion,
)

from support.metrics import read_csv  # noqa: E402

DIRECTION = np.array([0.6, 0.8])


def twin(body, change_qpos, change_qvel):
    """Return a second humanoid in a changed copy of the state of the first."""
    other = Humanoid(0, True)
    other.env.set_state(change_qpos(body.data.qpos.copy()), change_qvel(body.data.qvel.copy()))
    return other


def test_mirrored_humanoid_moves_like_its_mirror_image():
    def mirror_joints(x):
        return MIRROR_FEATURES[1][:21] * x[MIRROR_FEATURES[0][:21]]

    def change_qpos(qpos):
        qpos[[1, 4, 6]] *= -1
        qpos[7:] = mirror_joints(qpos[7:])
        return qpos

    def change_qvel(qvel):
        qvel[[1, 3, 5]] *= -1
        qvel[6:] = mirror_joints(qvel[6:])
        return qvel

    body = Humanoid(3, True)
    body.reset()
    other = twin(body, change_qpos, change_qvel)
    rng = np.random.default_rng(0)
    order, sign = MIRROR_FEATURES
    action_order, action_sign = MIRROR_ACTIONS

    for _ in range(8):
        features = body.features(DIRECTION)
        assert np.allclose(sign * features[order], other.features(DIRECTION * [1, -1]), atol=1e-5)
        action = rng.uniform(-1, 1, 21)
        body.step(action)
        other.step(action_sign * action[action_order])
    assert np.abs(features[37:]).max() > 0.5  # it moved


def test_features_do_not_depend_on_the_compass_direction():
    body = Humanoid(5, True)
    body.reset()
    angle = 2.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def change_qpos(qpos):
        qpos[3:7] = multiply(yaw_quaternion(angle), qpos[3:7])
        return qpos

    def change_qvel(qvel):
        qvel[:2] = rotation @ qvel[:2]
        return qvel

    other = twin(body, change_qpos, change_qvel)
    action = np.random.default_rng(0).uniform(-1, 1, 21)
    for robot in (body, other):
        robot.step(action)
    assert np.allclose(body.features(DIRECTION), other.features(rotation @ DIRECTION), atol=1e-4)

    states = [np.r_[0, 0, robot.env._get_obs()] for robot in (body, other)]
    inputs = [expert_inputs(state, direction, ROBOTS['humanoid'].ground_vectors)
              for state, direction in zip(states, (DIRECTION, rotation @ DIRECTION), strict=True)]
    assert np.allclose(*inputs, atol=1e-4)
    assert np.isclose(inputs[0][37], states[0][39:41] @ DIRECTION)  # along
    rotated = [37, 38, 40, 41]
    others = np.delete(states[0][2:], rotated).astype(np.float32)
    assert np.array_equal(np.delete(inputs[0], rotated), others)


def test_only_episodes_that_begin_upright_end_after_a_fall():
    lengths = {}
    for begins_standing in (True, False):
        robot = DirectedRobot(Humanoid, 0, begins_standing)
        steps = [robot.step(np.zeros(21)) for _ in range(60)]
        ends = [i for i, step in enumerate(steps) if step[3]]
        lengths[begins_standing] = ends[0] + 1 if ends else None
        assert np.isfinite([step[0] for step in steps]).all()
    assert 10 < lengths[True] < 60 and lengths[False] is None


def test_ant_has_the_same_dynamics_in_a_maze():
    """The same actions and pushes lead from the same state to the same state."""
    plain, walled = (train_expert.Ant(0, begins_standing) for begins_standing in (True, False))
    walled.reset()
    assert walled.env.maze_map[walled.env.xy_to_ij(walled.data.qpos[:2])] == 0
    assert walled.env.model.ngeom > plain.env.model.ngeom + 50

    for ant in (plain, walled):
        ant.env.set_state(plain.env.init_qpos, np.zeros(14))  # in the middle of a free cell
        ant.rng = np.random.default_rng(8)
        for _ in range(5):
            ant.step(np.linspace(-1, 1, 8))
    assert np.allclose(plain.features(DIRECTION), walled.features(DIRECTION), atol=1e-4)
    assert np.abs(plain.data.qvel).max() > 0.5, 'it moved'


def test_replay_returns_stop_at_cuts():
    replay = Replay(8, 1, 1, 1)
    for i in range(11):  # the first three are overwritten
        replay.add([[i]], [[0.0]], [float(i)], [[i + 0.5]], [i == 5])
    x, _, total, after, factor = replay.sample(np.random.default_rng(0), 200, 3, 0.5)
    begins = x[:, 0]
    assert set(begins) == {3, 4, 5, 6, 7, 8}
    for begin, value, last, weight in zip(begins, total, after[:, 0], factor, strict=True):
        steps = np.arange(begin, min(begin + 3, 6 if begin <= 5 else 99))
        assert value == sum(0.5 ** k * step for k, step in enumerate(steps))
        assert last == steps[-1] + 0.5 and weight == 0.5 ** len(steps)


@pytest.mark.parametrize('name', ROBOTS)
def test_collector_loads_the_exported_student(tmp_path, name):
    student = make_student(ROBOTS[name], 16)
    export(ROBOTS[name], student, tmp_path / 'expert.npz')
    walk = Walk(name, 'medium', 0, rows=5)
    action = load_expert(tmp_path / 'expert.npz')(walk.observation, walk.direction)
    with torch.no_grad():
        wanted = student(torch.from_numpy(walk.student_features)).numpy()
    assert action.shape == wanted.shape and np.allclose(action, wanted, atol=5e-3)  # half precision
    robot = DirectedRobot(train_expert.ROBOTS[name], 0, True)
    assert walk.teacher_features.shape == robot.features().shape
    assert walk.teacher_features.dtype == np.float32


def test_a_failed_distillation_is_saved_and_replaces_no_other(tmp_path, monkeypatch):
    """The student and its curve are kept when a robot fails; --resume adds to both."""
    steps = []

    class FailingWalk(Walk):
        def step(self, action):
            steps.append(action)
            if len(steps) == 9:
                raise OSError('a robot failed')
            super().step(action)

    flags = ['--robot', 'ant', '--num_envs', '2', '--hidden', '16', '--batch', '4', '--memory', '100',
             '--output', str(tmp_path / 'expert.npz'), '--student', str(tmp_path / 'student.pth')]
    monkeypatch.setattr(distil_expert, 'load_teacher', lambda _: lambda x: np.zeros((len(x), 8), np.float32))
    monkeypatch.setattr(distil_expert, 'Walk', FailingWalk)
    monkeypatch.setattr(distil_expert, 'LOG_INTERVAL', 4)
    with pytest.raises(OSError, match='a robot failed'):
        distil_expert.distil(distil_expert.parse_args(flags))
    assert load_expert(tmp_path / 'expert.npz') and (tmp_path / 'student.pth').exists()

    with pytest.raises(ValueError, match=r'expert.npz exists: add --resume, or name other files'):
        distil_expert.distil(distil_expert.parse_args(flags))
    distil_expert.distil(distil_expert.parse_args([*flags, '--resume', '--num_steps', '8']))
    assert [row['step'] for row in read_csv(tmp_path / 'expert_distil.csv')] == [4, 8, 12, 16]


@pytest.mark.parametrize('name', train_expert.ROBOTS)
def test_training_resumes(tmp_path, name):
    pytest.importorskip('jax')
    flags = ['--robot', name, '--output_dir', str(tmp_path), '--replay_path', str(tmp_path / 'replay.npz')]
    flags += ['--num_envs', '4', '--standing_envs', '2', '--updates', '2', '--batch', '8', '--hidden', '16',
              '--first_decisions', '40', '--replay', '400']
    state = train_expert.train(train_expert.parse_args([*flags, '--num_decisions', '80']))
    assert int(state['step']) == 2 * 11  # from the 40th decision on
    with pytest.raises(ValueError, match='add --resume'):
        train_expert.train(train_expert.parse_args(flags))

    more = train_expert.train(train_expert.parse_args([*flags, '--num_decisions', '100', '--resume']))
    assert int(more['step']) == 2 * 16
    with np.load(tmp_path / 'teacher.npz', allow_pickle=False) as file:
        assert file['decisions'] == 100 and np.array_equal(file['actor/0/w'], more['actor'][0]['w'])
    with np.load(tmp_path / 'replay.npz', allow_pickle=False) as file:
        assert len(file['cut']) == 25
