"""scripts/checkpoints/distil_plan.py: a proposer that heads where the plan does, and what it says about bad input."""

import add_map
import distil_plan
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from online_agent import OnlineAgent
from support.files import load_checkpoint, save_checkpoint
from trajectories import TrajectoryDataset

DATASET = 'pointmaze-medium-navigate-v0'
DIM = 5


def around_the_wall():
    """States (T, 5) of a walk up one corridor, over, and down the next: its ends lie side by side, a wall between
    them. The last three numbers are noise."""
    up = np.stack([np.zeros(40), np.arange(40) / 4], 1)
    over = np.stack([np.arange(8) / 4, np.full(8, 10.0)], 1)
    down = np.stack([np.full(41, 2.0), 10 - np.arange(41) / 4], 1)
    rng = np.random.default_rng(0)
    way = np.concatenate([up, over, down])
    way = way + 0.03 * rng.standard_normal(way.shape)  # a walker sways: what stays exactly where it is was put there
    noise = 0.1 * rng.standard_normal((len(way), DIM - 2))
    return np.concatenate([way, noise], 1).astype(np.float32)


@pytest.fixture
def data(make_config):
    """Three walks around the wall and back."""
    there = around_the_wall()
    walks = [np.concatenate([there, there[::-1]])] * 3
    ends = np.cumsum([len(states) for states in walks]) - 1
    starts = np.append(0, ends[:-1] + 1)
    return TrajectoryDataset(np.concatenate(walks), starts, ends, **make_config().sampling())


@pytest.fixture
def planner_agent(make_agent, make_online, data):
    """An agent with a map of the data, whose feature_decoder knows where latents lie."""
    offline = make_agent()
    offline.set_statistics(*data.statistics(), data.slowness())
    agent = make_online(offline=offline, hop=4)
    agent.build_map(data, nodes=60)

    states = torch.from_numpy(data.observations)
    z = agent.encoder.encode_features(states)
    feature_decoder = agent.acting['feature_decoder'].requires_grad_(True)
    optimizer = torch.optim.Adam(feature_decoder.parameters(), lr=3e-3)
    for _ in range(200):
        loss = (feature_decoder(z) - agent.encoder.place(states)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    feature_decoder.requires_grad_(False)
    return agent


def directions(agent, states, goals, plan, monkeypatch):
    """Where the agent heads for from `states` (B, 5) to `goals`, as I reads it: (B, 5), unit vectors."""
    seen = []

    def watch(full, observations, targets, goal_places):
        seen.append(F.normalize(targets - agent.encoder.place(observations), dim=-1))
        return torch.zeros(len(targets), agent.action_dim)

    with monkeypatch.context() as patch:
        patch.setattr(agent, 'infer_action', watch)
        patch.setattr(agent.config, 'plan', plan)
        agent.act(states, goals, agent.initial_state(len(states)))
    return seen[0]


@pytest.mark.parametrize('objective', ['direction', 'embedding'])
def test_the_distilled_agent_heads_where_the_plan_does(planner_agent, data, objective, monkeypatch):
    """From one corridor to the next, also where the goal lies right behind the wall."""
    states = data.observations[:38]
    goals = data.observations[88:50:-1].copy()
    planned = directions(planner_agent, states, goals, True, monkeypatch)
    assert (planned[:, 1] > 0.5).all()  # up, to the end of the wall

    before = directions(planner_agent, states, goals, False, monkeypatch)
    config = distil_plan.DistilConfig(objective=objective, num_updates=400, batch_size=128, lr=3e-3)
    distil_plan.distil(planner_agent, distil_plan.Teacher(planner_agent, data), config)
    after = directions(planner_agent, states, goals, False, monkeypatch)

    cosines = [(proposed * planned).sum(-1).mean() for proposed in (before, after)]
    assert cosines[0] < 0.6, cosines
    assert cosines[1] > (0.95 if objective == 'direction' else 0.8), cosines
    assert not planner_agent.plans


def draw_states(agent, data, near_goals, monkeypatch):
    """-> a Lesson of 200 pairs whose z and z_goal are the raw states."""
    teacher = distil_plan.Teacher(agent, data, near_goals)
    monkeypatch.setattr(teacher.store, 'read', teacher.store.states)
    return teacher.draw(200, np.random.default_rng(0))


def test_lessons_are_what_acting_plans(planner_agent, data, monkeypatch):
    lesson = draw_states(planner_agent, data, 0.5, monkeypatch)
    goals = lesson.z_goal.numpy()
    planned = directions(planner_agent, lesson.states.numpy(), goals, True, monkeypatch)
    place = planner_agent.encoder.place
    expected = F.normalize(place(lesson.next_states) - place(lesson.states), dim=-1)
    torch.testing.assert_close(planned, expected)


def test_near_goals_are_nearby(planner_agent, data, monkeypatch):
    """In the nearest 6 of 60 nodes, along 22 units of corridor; the others are anywhere."""
    farthest = []
    for share in (1.0, 0.0):
        lesson = draw_states(planner_agent, data, share, monkeypatch)
        farthest.append((lesson.z_goal - lesson.z)[:, :2].norm(dim=-1).max())
    assert 0.5 < farthest[0] < 3 and farthest[1] > 8, farthest


def test_pairs_without_a_path_are_left_out(planner_agent, data):
    """Of two places that no trajectory joins."""
    far = data.observations + np.float32([50, 0, 0, 0, 0])
    ends = np.append(data.ends, data.ends + len(data))
    starts = np.append(data.starts, data.starts + len(data))
    islands = TrajectoryDataset(np.concatenate([data.observations, far]), starts, ends, context_length=12,
                                transition_steps=4)
    planner_agent.build_map(islands, nodes=80)
    lesson = distil_plan.Teacher(planner_agent, islands, near_goals=0).draw(400, np.random.default_rng(0))
    assert 120 < len(lesson.z) < 280
    assert ((lesson.states[:, 0] > 25) == (lesson.next_states[:, 0] > 25)).all()
    assert (lesson.states[:, 0] > 25).any() and (lesson.states[:, 0] < 25).any()


def write(path, agent, data, file, **changes):
    known = {'dataset': DATASET, 'path': str(file), 'max_trajectories': 0, 'fingerprint': data.fingerprint()}
    save_checkpoint(path, {'kind': 'online', 'dataset': DATASET, 'data': known | changes, 'agent': agent.state_dict()})


def test_script(planner_agent, data, tmp_path, capsys):
    """From files to a file; only the proposer differs, and the plan is off. Other data are refused."""
    files = {name: tmp_path / f'{name}.npz' for name in ('states', 'states-val')}
    terminals = np.isin(np.arange(len(data)), data.ends)
    for file in files.values():
        np.savez(file, observations=data.observations, terminals=terminals)
    write(tmp_path / 'last.pth', planner_agent, data, files['states'])
    flags = ['--num_updates', '3', '--batch_size', '16', '--output', str(tmp_path / 'distilled.pth')]

    distil_plan.main(['--checkpoint', str(tmp_path / 'last.pth'), *flags])
    assert '45 degrees' in capsys.readouterr().out
    old, new = (load_checkpoint(tmp_path / name, 'online')['agent'] for name in ('last.pth', 'distilled.pth'))
    assert old['config']['plan'] and not new['config']['plan']
    changed = {name.split('.')[0] for name, value in new['acting'].items() if not value.equal(old['acting'][name])}
    assert changed == {'proposer'}
    for name, value in new['acting'].items():
        if name.startswith('proposer'):
            assert value.equal(new['offline']['nets'][name])

    write(tmp_path / 'other.pth', planner_agent, data, files['states'], fingerprint='other data')
    with pytest.raises(ValueError, match='trained on other data.*--dataset_path'):
        distil_plan.main(['--checkpoint', str(tmp_path / 'other.pth'), *flags])
    distil_plan.main(['--checkpoint', str(tmp_path / 'other.pth'), '--dataset_path', str(files['states']), *flags])
    assert 'as asked' in capsys.readouterr().err


def test_a_checkpoint_without_a_map_gets_one(planner_agent, data, tmp_path):
    for name in ('states', 'states-val'):
        terminals = np.isin(np.arange(len(data)), data.ends)
        np.savez(tmp_path / f'{name}.npz', observations=data.observations, terminals=terminals)
    known, planner_agent.state_map = planner_agent.state_map, None
    planner_agent.config.hop = 0
    write(tmp_path / 'last.pth', planner_agent, data, tmp_path / 'states.npz')
    add_map.main(['--checkpoint', str(tmp_path / 'last.pth'), '--nodes', '60', '--waypoint_steps', '4'])
    saved = OnlineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    assert str(saved.state_map) == str(known)
    assert saved.config.hop == 4

    write(tmp_path / 'other.pth', planner_agent, data, tmp_path / 'states.npz', fingerprint='other data')
    with pytest.raises(ValueError, match='trained on other data.*--dataset_path'):
        add_map.main(['--checkpoint', str(tmp_path / 'other.pth')])


def test_bad_input_is_named(planner_agent, data, tmp_path):
    flags = ['--output', str(tmp_path / 'distilled.pth')]
    with pytest.raises(ValueError, match='--checkpoint.*required'):
        distil_plan.main(flags)

    write(tmp_path / 'last.pth', planner_agent, data, tmp_path / 'gone.npz')
    with pytest.raises(FileNotFoundError, match='gone.npz.*--dataset_path'):
        distil_plan.main(['--checkpoint', str(tmp_path / 'last.pth'), *flags])

    planner_agent.state_map = None
    write(tmp_path / 'last.pth', planner_agent, data, tmp_path / 'gone.npz')
    with pytest.raises(ValueError, match='no map.*add_map'):
        distil_plan.main(['--checkpoint', str(tmp_path / 'last.pth'), *flags])


def test_what_moves_things_has_no_ways_to_teach(make_agent, make_online, data, tmp_path):
    offline = make_agent()
    offline.moves_things = True
    agent = make_online(offline=offline)
    agent.build_map(data)
    write(tmp_path / 'last.pth', agent, data, tmp_path / 'gone.npz')
    with pytest.raises(ValueError, match='things that it moves'):
        distil_plan.main(['--checkpoint', str(tmp_path / 'last.pth'), '--output', str(tmp_path / 'distilled.pth')])
