"""scripts/checkpoints: distilled directions, lessons, rebuilt maps, and errors on bad input."""

import dataclasses

import distil_plan
import numpy as np
import pytest
import rebuild_map
import shrink_checkpoint
import torch
import torch.nn.functional as F

from observing.observation_models import FULL_STATE
from online_agent import OnlineAgent, OnlineConfig
from planning.planners import ProposerPlanner
from support.files import load_checkpoint, save_checkpoint
from tasks import build_map
from trajectories import TrajectoryDataset

DATASET = 'pointmaze-medium-navigate-v0'
DIM = 5


def around_the_wall():
    """Return states (T, 5) of a walk up one corridor, over, and down the next one.

    A wall separates its ends. The last three dimensions are noise.
    """
    up = np.stack([np.zeros(40), np.arange(40) / 4], 1)
    over = np.stack([np.arange(8) / 4, np.full(8, 10.0)], 1)
    down = np.stack([np.full(41, 2.0), 10 - np.arange(41) / 4], 1)
    rng = np.random.default_rng(0)
    way = np.concatenate([up, over, down])
    way = way + 0.03 * rng.standard_normal(way.shape)  # dimensions that rest would be objects
    noise = 0.1 * rng.standard_normal((len(way), DIM - 2))
    return np.concatenate([way, noise], 1).astype(np.float32)


@pytest.fixture
def data(make_config):
    """Return the data of three walks around the wall and back."""
    there = around_the_wall()
    walks = [np.concatenate([there, there[::-1]])] * 3
    ends = np.cumsum([len(states) for states in walks]) - 1
    starts = np.append(0, ends[:-1] + 1)
    return TrajectoryDataset(np.concatenate(walks), starts, ends, **make_config().sampling())


def make_planning(make_agent, data, nodes=60):
    """Return an agent with a graph of the data, whose feature decoder is trained on them."""
    offline = make_agent()
    offline.set_statistics(*data.statistics(), data.slowness())
    config = OnlineConfig(idm_hidden_dim=32, waypoint_steps=4)
    data_map = build_map(offline, config, data, nodes=nodes)
    agent = OnlineAgent(offline, -np.ones(3), np.ones(3), config, data_map)

    states = torch.from_numpy(data.observations)
    z = agent.encoder.encode_features(states)
    feature_decoder = agent.ema_nets['feature_decoder'].requires_grad_(True)
    optimizer = torch.optim.Adam(feature_decoder.parameters(), lr=3e-3)
    for _ in range(200):
        loss = (feature_decoder(z) - agent.encoder.goal_features(states)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    feature_decoder.requires_grad_(False)
    return agent


@pytest.fixture
def planner_agent(make_agent, data):
    return make_planning(make_agent, data)


def directions(agent, states, goals, plan):
    """Return the unit vectors (B, 5) from `states` (B, 5) to their subgoals on the way to `goals`.

    `plan` chooses the agent's graph planner, else its proposer.
    """
    planner = agent.planner.first if plan else agent.planner.second
    states, goals = torch.from_numpy(states), torch.from_numpy(goals)
    with torch.no_grad():
        subgoals, _ = planner.step(states, goals, planner.initial_state(len(states)))
        return F.normalize(subgoals.features - agent.encoder.goal_features(states), dim=-1)


@pytest.mark.parametrize('objective', ['direction', 'embedding'])
def test_distilled_proposer_follows_the_plan(planner_agent, data, objective):
    """The goals lie in the next corridor, and some of them right behind the wall."""
    states = data.observations[:38]
    goals = data.observations[88:50:-1].copy()
    planned = directions(planner_agent, states, goals, True)
    assert (planned[:, 1] > 0.5).all()  # up, to the end of the wall

    before = directions(planner_agent, states, goals, False)
    config = distil_plan.DistilConfig(objective=objective, num_updates=400, batch_size=128, lr=3e-3)
    distil_plan.distil(planner_agent, distil_plan.Teacher(planner_agent, data), config)
    after = directions(planner_agent, states, goals, False)

    cosines = [(proposed * planned).sum(-1).mean() for proposed in (before, after)]
    assert cosines[0] < 0.6, cosines
    assert cosines[1] > (0.95 if objective == 'direction' else 0.8), cosines
    assert not planner_agent.config.plan


def draw_states(agent, data, near_goals, monkeypatch):
    """Return a Lesson of 200 pairs whose z and z_goal are the raw states."""
    teacher = distil_plan.Teacher(agent, data, near_goals)
    monkeypatch.setattr(teacher.store, 'z', lambda rows, states: states)
    return teacher.draw(200, np.random.default_rng(0))


def test_lessons_match_the_plans_of_acting(planner_agent, data, monkeypatch):
    lesson = draw_states(planner_agent, data, 0.5, monkeypatch)
    goals = lesson.z_goal.numpy()
    planned = directions(planner_agent, lesson.states.numpy(), goals, True)
    features = planner_agent.encoder.goal_features
    expected = F.normalize(features(lesson.next_states) - features(lesson.states), dim=-1)
    torch.testing.assert_close(planned, expected)


def test_near_goals_lie_in_the_nearest_nodes(planner_agent, data, monkeypatch):
    """Near nodes are 6 of 60 along 22 units of corridor. Other goals are drawn from all data."""
    farthest = []
    for share in (1.0, 0.0):
        lesson = draw_states(planner_agent, data, share, monkeypatch)
        farthest.append((lesson.z_goal - lesson.z)[:, :2].norm(dim=-1).max())
    assert 0.5 < farthest[0] < 3 and farthest[1] > 8, farthest


def test_lessons_exclude_pairs_without_a_path(make_agent, data):
    """No trajectory joins the two parts of the data."""
    far = data.observations + np.float32([50, 0, 0, 0, 0])
    ends = np.append(data.ends, data.ends + len(data))
    starts = np.append(data.starts, data.starts + len(data))
    islands = TrajectoryDataset(np.concatenate([data.observations, far]), starts, ends, context_length=12,
                                transition_steps=4)
    planner_agent = make_planning(make_agent, islands, nodes=80)
    lesson = distil_plan.Teacher(planner_agent, islands, near_goals=0).draw(400, np.random.default_rng(0))
    assert 120 < len(lesson.z) < 280
    assert ((lesson.states[:, 0] > 25) == (lesson.next_states[:, 0] > 25)).all()
    assert (lesson.states[:, 0] > 25).any() and (lesson.states[:, 0] < 25).any()


def write_checkpoint(path, agent, data, file, **changes):
    """Save a checkpoint of `agent` that records `file` as its data; `changes` replace records."""
    recorded = {
        'dataset': DATASET,
        'path': str(file),
        'max_trajectories': 0,
        'fingerprint': data.fingerprint(),
        'observation_model': dataclasses.asdict(FULL_STATE),
    }
    content = {'dataset': DATASET, 'data': recorded | changes, 'agent': agent.state_dict()}
    save_checkpoint(path, {'kind': 'online', **content})


def load_agent(path):
    return load_checkpoint(path, 'online')['agent']


@pytest.fixture
def states_file(data, tmp_path):
    """Write the data, with a -val file beside it, and return its path."""
    is_end = np.isin(np.arange(len(data)), data.ends)
    for name in ('states.npz', 'states-val.npz'):
        np.savez(tmp_path / name, observations=data.observations, terminals=is_end)
    return tmp_path / 'states.npz'


@pytest.fixture
def distil_flags(tmp_path):
    """distil_flags(checkpoint name) -> flags of a short distillation to distilled.pth"""
    short = ['--num_updates', '3', '--batch_size', '16', '--output', str(tmp_path / 'distilled.pth')]
    return lambda name: ['--checkpoint', str(tmp_path / name), *short]


def test_distil_plan_changes_only_the_proposer(planner_agent, data, states_file, distil_flags, tmp_path,
                                               monkeypatch, capsys):
    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file)
    distil_plan.main(distil_flags('last.pth'))
    assert '45 degrees' in capsys.readouterr().out

    old, new = (load_agent(tmp_path / name) for name in ('last.pth', 'distilled.pth'))
    assert old['config']['plan'] and not new['config']['plan']
    for nets in ('nets', 'ema_nets'):
        assert all(value.equal(old[nets][name]) for name, value in new[nets].items())
    offline_nets = old['offline']['nets'], new['offline']['nets']
    changed = {name.split('.')[0] for name, value in offline_nets[1].items()
               if not value.equal(offline_nets[0][name])}
    assert changed == {'proposer'}

    # a shrunk checkpoint keeps the distilled proposer
    files = ['--checkpoint', str(tmp_path / 'distilled.pth'), '--output', str(tmp_path / 'small.pth')]
    monkeypatch.setattr('sys.argv', ['', *files])
    shrink_checkpoint.main()
    small = OnlineAgent.from_state_dict(load_agent(tmp_path / 'small.pth'))
    assert isinstance(small.planner, ProposerPlanner)
    for name, value in small.offline.nets['proposer'].state_dict().items():
        torch.testing.assert_close(value, offline_nets[1][f'proposer.{name}'], rtol=1e-3, atol=1e-4)


def test_distil_plan_saves_before_it_measures(planner_agent, data, states_file, distil_flags, tmp_path,
                                              monkeypatch):
    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file)
    results = iter([(0.5, 0.5)])  # before the distillation only
    monkeypatch.setattr(distil_plan, 'measure', lambda *_: next(results))
    with pytest.raises(StopIteration):
        distil_plan.main(distil_flags('last.pth'))
    assert not load_agent(tmp_path / 'distilled.pth')['config']['plan']


def test_distil_plan_finds_a_bad_output_at_once(planner_agent, data, states_file, distil_flags, tmp_path,
                                                monkeypatch):
    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file)
    monkeypatch.setattr(distil_plan, 'Teacher', lambda *_: pytest.fail('a distillation'))
    with pytest.raises(OSError, match=f'^{tmp_path} cannot be written .it is a folder.; name another file'):
        distil_plan.main([*distil_flags('last.pth'), '--output', str(tmp_path)])


def test_distil_plan_refuses_other_data_without_dataset_path(planner_agent, data, states_file, distil_flags,
                                                             tmp_path, capsys):
    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file, fingerprint='other data')
    with pytest.raises(ValueError, match='trained on other data.*--dataset_path'):
        distil_plan.main(distil_flags('last.pth'))
    distil_plan.main([*distil_flags('last.pth'), '--dataset_path', str(states_file)])
    assert 'as asked' in capsys.readouterr().err


def test_distil_plan_names_missing_flags_and_files(planner_agent, data, distil_flags, tmp_path):
    with pytest.raises(ValueError, match='--checkpoint.*required'):
        distil_plan.main(['--output', str(tmp_path / 'distilled.pth')])

    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, tmp_path / 'gone.npz')
    with pytest.raises(FileNotFoundError, match='gone.npz.*--dataset_path'):
        distil_plan.main(distil_flags('last.pth'))


def test_distil_plan_refuses_plans_that_move_objects(make_agent, make_online, data, distil_flags, tmp_path):
    offline = make_agent()
    offline.set_statistics(*data.statistics(), data.slowness(), has_objects=True)
    agent = make_online(offline=offline, data=data)
    write_checkpoint(tmp_path / 'last.pth', agent, data, tmp_path / 'gone.npz')
    with pytest.raises(ValueError, match='its plans move objects'):
        distil_plan.main(distil_flags('last.pth'))


# ------------------------------------------------------------------------------------------------ rebuild_map
def test_rebuild_map_replaces_only_the_map(planner_agent, data, states_file, tmp_path, assert_same):
    expected = str(planner_agent.data_map)
    planner_agent.config.waypoint_steps = 0
    planner_agent.data_map = build_map(planner_agent.offline, planner_agent.config, data, nodes=20)
    assert str(planner_agent.data_map) != expected

    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file)
    old = load_agent(tmp_path / 'last.pth')
    rebuild_map.main(['--checkpoint', str(tmp_path / 'last.pth'), '--nodes', '60', '--waypoint_steps', '4'])
    new = load_agent(tmp_path / 'last.pth')
    rebuilt = OnlineAgent.from_state_dict(new)
    assert str(rebuilt.data_map) == expected
    assert rebuilt.config.waypoint_steps == 4
    for name in ('offline', 'nets', 'ema_nets', 'optimizer', 'labeler', 'step'):
        assert_same(old[name], new[name])


def test_rebuild_map_refuses_other_data_without_dataset_path(planner_agent, data, states_file, tmp_path):
    write_checkpoint(tmp_path / 'last.pth', planner_agent, data, states_file, fingerprint='other data')
    with pytest.raises(ValueError, match='trained on other data.*--dataset_path'):
        rebuild_map.main(['--checkpoint', str(tmp_path / 'last.pth')])
