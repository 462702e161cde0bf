"""What rests until it is moved, found in states alone, and plans that move one thing after the other."""

import itertools

import numpy as np
import pytest
import torch

from labeling.corrective_data import PERTURBATION_STEPS, find_corrective_transitions
from offline_agent import OfflineAgent
from planning.objects import (
    REST_STEPS,
    THERE,
    ThingsMap,
    by_chance,
    find_levels,
    find_moves,
    find_things,
    group_numbers,
)
from trajectories import ReplayBuffer, TrajectoryDataset

PAUSE = 60  # steps between two moves


def play(configurations, rng, pause=PAUSE):
    """States (T, 3 + d): two numbers of a hand, one of a spring, and those of things. The hand is always on its way and
    changes the things (places (n, d), one row a move) every `pause` steps."""
    things = np.repeat(configurations, pause, axis=0)
    time = np.arange(len(things))
    phase = rng.uniform(0, 6)
    hand = np.stack([np.sin(time / 5 + phase), np.cos(time / 7 + phase)], 1)
    spring = np.zeros(len(things))
    spring[pause - 2::pause] = 1  # pressed for a moment before each move
    return np.concatenate([hand, spring[:, None], things], 1).astype(np.float32)


def dataset(*trajectories, **options):
    ends = np.cumsum([len(states) for states in trajectories]) - 1
    starts = np.append(0, ends[:-1] + 1)
    return TrajectoryDataset(np.concatenate(trajectories), starts, ends, context_length=8, **options)


def lamps(rng, moves=40, locked=False):
    """Configurations (moves, 2) of two lamps, of which one is switched in each move; `locked`: the second one only
    while the first is on."""
    state = rng.integers(0, 2, 2) if not locked else np.array([0, 0])
    rows = [state.copy()]
    while len(rows) < moves:
        lamp = rng.integers(2)
        if locked and lamp == 1 and not state[0]:
            continue
        state[lamp] = 1 - state[lamp]
        rows.append(state.copy())
    return np.array(rows, float)


def cubes(rng, moves=40):
    """Places (moves, 4) of two cubes in the plane, one of which is put anywhere in each move."""
    places = rng.uniform(-3, 3, 4)
    rows = [places.copy()]
    for _ in range(moves - 1):
        cube = rng.integers(2)
        places[2 * cube:2 * cube + 2] = rng.uniform(-3, 3, 2)
        rows.append(places.copy())
    return np.array(rows)


def drawer(rng, moves=80):
    """Places (moves, 3) of a drawer, from shut (0) to open (4), and of a cube in the plane. The cube is put anywhere on
    the table, or into the drawer where that is open (over 2), and then it moves with it, along y."""
    opening = 0.0
    cube = rng.uniform(0, 4, 2)
    inside = False
    rows = [[opening, *cube]]
    while len(rows) < moves:
        if rng.random() < 0.5:
            before, opening = opening, rng.uniform(2, 4) if opening < 2 else rng.uniform(0, 2)
            cube[1] -= inside * (opening - before)
        elif opening > 2 or not inside:
            inside = opening > 2 and not inside and rng.random() < 0.7
            cube = (cube + rng.uniform(1, 3, 2)) % 4
            cube[1] = -1 - opening if inside else cube[1]
        rows.append([opening, *cube])
    return np.array(rows)


def make(kind, trajectories=20, **options):
    rngs = [np.random.default_rng(i) for i in range(trajectories)]
    return dataset(*[play(kind(rng, **options), rng) for rng in rngs])


def make_map(data):
    weights = find_things(data)
    return ThingsMap.from_data(data, weights / data.statistics()[1])


def test_things_are_what_rests_and_does_not_spring_back():
    assert np.flatnonzero(find_things(make(cubes))).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(find_things(make(lamps))).tolist() == [3, 4]


def test_walkers_are_no_things():
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (300, 4)), 0).astype(np.float32) for _ in range(8)]
    assert not find_things(dataset(*walks)).any()


def test_elbows_that_rest_at_their_limits_are_no_things():
    """As a humanoid's, whose goals would be postures of its arms: it walks on while they rest."""
    def walk(seed, speed):
        rng = np.random.default_rng(seed)
        places = np.cumsum(np.repeat(rng.normal(0, speed, (12, 2)), 100, axis=0), 0)
        elbow = np.repeat(rng.integers(0, 2, 24), 50)[:, None]
        joints = rng.normal(0, 1, (1200, 2))
        return np.concatenate([places, elbow, joints], 1).astype(np.float32)

    assert not find_things(dataset(*[walk(i, 0.1) for i in range(8)])).any()
    assert find_things(dataset(*[walk(i, 0.0) for i in range(8)])).any(), 'of a robot that stays, all the same'


def test_what_always_rests_is_nothing_to_be_moved():
    """A walker with a number that tells trajectories apart: it rests, but is never moved."""
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (300, 3)), 0) for _ in range(8)]
    named = [np.insert(walk, 1, i, axis=1).astype(np.float32) for i, walk in enumerate(walks)]
    assert not find_things(dataset(*named)).any()


def test_data_in_which_all_rests_have_no_robot():
    rng = np.random.default_rng(0)
    data = dataset(*[np.repeat(cubes(rng), 30, axis=0).astype(np.float32) for _ in range(9)])
    assert not find_things(data).any()


def test_short_trajectories_tell_nothing():
    data = dataset(*[play(cubes(np.random.default_rng(i), moves=2), np.random.default_rng(i), 40) for i in range(4)])
    assert not find_things(data).any()


def test_a_number_that_moves_hardly_change_weighs_little():
    """How a cube is turned differs between trajectories and is changed a little by each move."""
    def turned(rng):
        places = cubes(rng)
        angle = rng.uniform(-3, 3) + 0.3 * rng.standard_normal(len(places))
        return np.column_stack([places, angle])

    weights = find_things(make(turned))
    assert weights[7] < 0.2 < 0.5 < weights[3:7].min()


def test_moves_are_counted_once_each():
    data = make(cubes, trajectories=3)
    scale = find_things(data) / data.statistics()[1]
    moves = find_moves(data.observations, data.starts, data.ends, scale)
    places = data.observations[::PAUSE].reshape(3, -1, 7)[:, :, 3:] * scale[3:]
    assert len(moves.after) == (np.linalg.norm(np.diff(places, axis=1), axis=2) > 0.1).sum() > 100
    assert (data.observations[moves.before, 3:] != data.observations[moves.after, 3:]).any(1).all()


def test_every_row_leads_to_the_next_place_of_rest():
    data = make(lamps, trajectories=2)
    moves = find_moves(data.observations, data.starts, data.ends, find_things(data) / data.statistics()[1])
    rows = np.arange(PAUSE * 40)  # of the first trajectory
    expected = np.where(rows < PAUSE * 39, (rows // PAUSE + 1) * PAUSE, -1)
    np.testing.assert_array_equal(moves.next_rest[rows], expected)
    assert moves.next_rest[PAUSE * 40] == PAUSE * 41  # and none into the next one


def test_a_cube_may_be_turned_otherwise_than_in_the_goal():
    """Each cube is turned a little whenever it is moved. The plan goes on to the second one all the same."""
    def turned(rng):
        places = cubes(rng)
        angles = np.tile(rng.uniform(-3, 3, 2), (len(places), 1))
        for move in range(1, len(places)):
            moved = [(places[move, 2 * i:2 * i + 2] != places[move - 1, 2 * i:2 * i + 2]).any() for i in range(2)]
            angles[move] = angles[move - 1] + 0.6 * rng.standard_normal(2) * moved
        return np.column_stack([places, angles])

    data = make(turned)
    assert find_things(data)[7:].min() > 0, 'else there is nothing to leave out'
    state_map = make_map(data)
    assert sorted(group.tolist() for group in state_map.loose) == [[3, 4], [5, 6]]

    goal = with_things(data, [1, 1, -1, 0.5, 0, 0])
    first_done = with_things(data, [1, 1, 2, 2, 3, 3])
    ahead, _ = waypoints(state_map, first_done[None], goal[None])
    np.testing.assert_array_equal(ahead[0, 3:], [1, 1, -1, 0.5, 3, 3])


def test_numbers_that_change_together_are_one_thing():
    data = make(cubes)
    state_map = make_map(data)
    assert sorted(group.tolist() for group in state_map.loose) == [[3, 4], [5, 6]]
    assert not state_map.switches


def test_lamps_are_switches():
    state_map = make_map(make(lamps))
    assert [group.tolist() for group in state_map.switches] == [[3], [4]]
    assert not state_map.loose


def test_few_places_or_many():
    rng = np.random.default_rng(0)
    assert len(find_levels(rng.integers(0, 3, (500, 1)).astype(float))) == 3
    assert find_levels(rng.uniform(-2, 2, (500, 1))) is None
    assert find_levels(np.zeros((500, 1))) is None  # it has one place, so there is nothing to switch
    assert find_levels(np.zeros((0, 1))) is None


def waypoints(state_map, states, goals):
    """-> states to head for, and where a plan leads there."""
    ahead, found, _ = state_map.waypoints(states, goals, state_map.routes(goals), state_map.no_pursuit(len(goals)))
    return ahead, found


def follow(state_map, state, goal, moves=20):
    """The states of the plan, each reached exactly."""
    states = [state]
    for _ in range(moves):
        ahead, found = waypoints(state_map, states[-1][None], goal[None])
        assert found.all()
        states.append(ahead[0])
        if np.allclose(ahead[0, 3:], goal[3:]):
            return states
    raise AssertionError('the plan does not arrive')


def with_things(data, places):
    state = data.observations[0].copy()
    state[3:] = places
    return state


@pytest.mark.parametrize(('start', 'goal'), [*itertools.permutations([(0, 0), (0, 1), (1, 0), (1, 1)], 2)])
def test_a_lock_is_opened_first(start, goal):
    """The second lamp can be switched only while the first is on; nobody said so but the data."""
    data = make(lamps, locked=True)
    way = follow(make_map(data), with_things(data, start), with_things(data, goal))
    for before, after in itertools.pairwise(state[3:] for state in way):
        assert np.abs(after - before).sum() <= 1, 'one lamp a move'
        if after[1] != before[1]:
            assert before[0] == 1


def test_cubes_go_to_their_goals_one_after_the_other():
    data = make(cubes)
    start = with_things(data, [-2, -2, 2, 2])
    goal = with_things(data, [1, 1, -1, 0.5])
    way = follow(make_map(data), start, goal)
    assert len(way) == 3
    between = way[1][3:]
    assert np.array_equal(between[:2], start[3:5]) != np.array_equal(between[2:], start[5:])


def test_a_cube_on_its_way_is_brought_there():
    """The cube that is nearer to its goal is the one that is being carried; another one must wait."""
    data = make(cubes)
    goal = with_things(data, [1, 1, -1, 0.5])
    state_map = make_map(data)
    for share in (0.1, 0.3, 0.4):
        moving = with_things(data, [1 + 2 * (1 - share), 1, 2, 2.5])
        ahead, _ = waypoints(state_map, moving[None], goal[None])
        np.testing.assert_array_equal(ahead[0, 3:], [1, 1, 2, 2.5])


def test_a_cube_over_its_goal_is_put_down_first():
    """Who carries it there has not done yet: the next one's turn comes when all things rest."""
    data = make(cubes)
    state_map = make_map(data)
    goal = with_things(data, [1, 1, -1, 0.5])
    routes = state_map.routes(goal[None])
    pursuit = state_map.no_pursuit(1)

    near = 0.1
    assert near < THERE / state_map.scale[3] < 4 * near
    for x in (-1.0, 0.5, 1 + 4 * near, 1 + near):
        carried = with_things(data, [x, 1, 2, 2.5])
        ahead, _, pursuit = state_map.waypoints(carried[None], goal[None], routes, pursuit)
        let_go = x == 1 + near  # it is told that the cube is there, a little beside its goal
        np.testing.assert_allclose(ahead[0, 3:], [x if let_go else 1, 1, 2, 2.5])

    for _ in range(REST_STEPS - 1):
        ahead, _, pursuit = state_map.waypoints(carried[None], goal[None], routes, pursuit)
        np.testing.assert_allclose(ahead[0, 3:], [1 + near, 1, 2, 2.5])
    ahead, _, pursuit = state_map.waypoints(carried[None], goal[None], routes, pursuit)
    np.testing.assert_allclose(ahead[0, 3:], [1.1, 1, -1, 0.5])

    forgotten = pursuit.forget(np.array([True]))
    assert forgotten.moves.tolist() == [-1]
    assert forgotten.still.tolist() == [0]


def test_a_short_move_is_begun_as_a_longer_one():
    """Else whoever imitates is asked for what nobody has shown; once the cube moves he is told how far it is."""
    data = make(cubes)
    state_map = make_map(data)
    goal = with_things(data, [1, 1, 2, 2.5])
    routes = state_map.routes(goal[None])
    near = with_things(data, [0.4, 1, 2, 2.5])
    pursuit = state_map.no_pursuit(1)

    for _ in range(2):
        ahead, _, pursuit = state_map.waypoints(near[None], goal[None], routes, pursuit)
        pursuit = pursuit._replace(still=np.array([50]))
        assert ahead[0, 3] > 1.1
        np.testing.assert_allclose(ahead[0, 4:], [1, 2, 2.5])

    near[3] = 0.5
    ahead, _, _ = state_map.waypoints(near[None], goal[None], routes, pursuit)
    np.testing.assert_allclose(ahead[0, 3:], [1, 1, 2, 2.5])


def test_a_cube_goes_into_a_drawer_that_is_open_and_then_shut():
    """Its goal is in the shut drawer, where no hand has ever put it; nobody said what a drawer is but the data."""
    data = make(drawer)
    state_map = make_map(data)
    assert sorted(group.tolist() for group in state_map.loose) == [[3], [4, 5]]

    goal = with_things(data, [0.3, 0.5, -1.3])
    way = follow(state_map, with_things(data, [0.3, 2, 2]), goal)
    opened, filled, shut = (state[3:] for state in way[1:])
    assert len(way) == 4
    assert opened[0] > 2
    np.testing.assert_array_equal(opened[1:], [2, 2])
    np.testing.assert_allclose(filled, [opened[0], 0.5, -1 - opened[0]], atol=0.1)
    np.testing.assert_allclose(shut, goal[3:], atol=1e-5)

    # what can be had at once is: the cube onto the table, or the empty drawer
    way = follow(state_map, with_things(data, [3, 2, 2]), with_things(data, [0.3, 1, 0.5]))
    assert len(way) == 3


def test_who_waits_in_vain_goes_back_to_where_the_data_begin():
    data = make(lamps, locked=True)
    state_map = make_map(data)
    assert state_map.patience == PAUSE
    start = with_things(data, [1, 0])
    start[:3] = [5, 6, 7]  # a posture as in no state of the data
    goal = with_things(data, [1, 1])
    pursuit = state_map.no_pursuit(2)

    here = np.stack([start, goal])  # the second one has received, and waits for nothing
    headed = []
    returning = []
    for _ in range(2 * PAUSE + 30):
        ahead, _, pursuit = state_map.waypoints(here, here[[1, 1]], state_map.routes(here[[1, 1]]), pursuit)
        headed.append(ahead)
        returning.append(pursuit.return_left > 0)
    headed = np.array(headed)
    returning = np.array(returning)

    assert pursuit.returns.tolist() == [2, 0]
    assert returning[:, 1].sum() == 0 and returning[:PAUSE].sum() == 0
    assert returning[:, 0].sum() == 2 * 12, 'a fifth of the time, twice'
    assert not returning[PAUSE + 12:2 * PAUSE].any(), 'the whole time is waited again'
    assert (headed[~returning[:, 0], 0, 3:] == [1, 1]).all()

    back = headed[returning[:, 0], 0]
    np.testing.assert_array_equal(back[:, 3:], np.tile(start[3:], (24, 1)))  # things are left as they are
    begins = data.observations[data.starts, :3]
    assert all((posture == begins).all(1).any() for posture in back[:, :3])
    assert (back[:12] == back[0]).all() and (back[12:] == back[12]).all() and (back[0] != back[12]).any()
    assert pursuit.forget(np.array([True, False])).returns.tolist() == [0, 0]


def test_a_thing_that_is_only_pushed_about_is_waited_for_in_vain():
    data = make(cubes)
    state_map = make_map(data)
    goal = with_things(data, [2, 2, -1, 0.5])
    pursuit = state_map.no_pursuit(1)
    for step in range(PAUSE + 2):
        here = with_things(data, [-2 - step / 50, 0, -1, 0.5])[None]
        _, _, pursuit = state_map.waypoints(here, goal[None], state_map.routes(goal[None]), pursuit)
    assert pursuit.returns.tolist() == [1]


def test_what_is_switched_at_once_by_chance_is_no_move():
    data = make(lamps)
    both = data.observations.copy()
    both[PAUSE:2 * PAUSE, 3:] = 1 - both[:1, 3:]  # the first move of all switches both of them
    data = TrajectoryDataset(both, data.starts, data.ends, context_length=8)
    state_map = make_map(data)
    assert ((state_map.sources != state_map.targets).sum(1) == 1).all()
    assert len(state_map.sources) == 8

    changes = np.array([[True, False]] * 30 + [[False, True]] * 30 + [[True, True]] + [[False, False]] * 99)
    assert np.flatnonzero(by_chance(changes)).tolist() == [60]
    assert not by_chance(changes[61:]).any()


def ring(rng, moves=40):
    """Configurations (moves, 5) of five lamps in a ring; whoever presses one switches the next one as well."""
    state = rng.integers(0, 2, 5)
    rows = [state.copy()]
    for _ in range(moves - 1):
        lamp = rng.integers(5)
        state[[lamp, (lamp + 1) % 5]] = 1 - state[[lamp, (lamp + 1) % 5]]
        rows.append(state.copy())
    return np.array(rows, float)


def test_kinds_of_moves_lead_where_no_trajectory_was():
    data = make(ring)
    whole = make_map(data)
    assert len(whole.switches) == 5 and len(whole._kinds) == 5
    states = np.stack([with_things(data, lamps) for lamps in itertools.product([0, 1], repeat=5)])
    goal = states[24]  # 1 1 0 0 0
    place = whole.configurations(states)

    never_there = ~((whole.sources == place[24]).all(1) | (whole.targets == place[24]).all(1))
    assert 0 < never_there.sum() < len(never_there)
    saved = whole.state_dict()
    kept = {name: saved[name][torch.from_numpy(never_there)] for name in ('sources', 'targets')}
    few = ThingsMap.from_state_dict(saved | kept)
    left = [few.routes(goal[None])[0][-1].left(tuple(row), ()) for row in place.tolist()]

    whole._kinds = whole._kinds[:0]  # by the moves of the data alone, which show every configuration
    assert left == [whole.routes(goal[None])[0][-1].left(tuple(row), ()) for row in place.tolist()]
    assert left[0] == 1 and left[1] == -1  # they change two at once

    ahead, found = waypoints(few, states[:1], goal[None])
    assert found.all()
    np.testing.assert_array_equal(few.configurations(ahead), place[24:25])
    again = few.routes(goal[None] + np.float32(1e-3))[0][-1]
    assert again.moves_left is few.routes(goal[None])[0][-1].moves_left  # one table for one configuration


def test_a_lock_is_no_free_kind():
    assert len(make_map(make(lamps))._kinds) == 2
    assert not len(make_map(make(lamps, locked=True))._kinds)
    assert not len(make_map(make(cubes))._kinds)


def test_a_tilt_belongs_to_what_is_tilted():
    """A cube falls on its side in one move of ten. It is no thing of its own, and no plan waits for it."""
    def tilted(rng):
        places = cubes(rng)
        moved = np.abs(np.diff(places[:, :2], axis=0)).max(1) > 0
        tilt = np.cumsum(np.append(False, moved & (rng.random(len(moved)) < 0.1))) % 2
        return np.column_stack([places, tilt])

    data = make(tilted)
    assert find_things(data)[7] > 0, 'else there is nothing to leave out'
    state_map = make_map(data)
    assert not state_map.switches
    assert sorted(group.tolist() for group in state_map.loose) == [[3, 4], [5, 6]]


def test_one_axis_of_a_thing_weighs_as_much_as_the_other():
    """Places of trajectories lie far apart along y, and moves lead as far along either."""
    def shifted(rng):
        places = cubes(rng)
        places[:, [1, 3]] += rng.uniform(-4, 4, 2)
        return places

    weights = find_things(make(shifted))
    assert weights[3] == weights[4] > 0.5
    assert weights[5] == weights[6] > 0.5


def test_where_no_moves_lead_the_goal_is_headed_for():
    data = make(cubes)
    state_map = make_map(data)
    goal = with_things(data, [90, 90, -1, 0.5])
    state = with_things(data, [0, 0, 0, 0])
    ahead, found = waypoints(state_map, state[None], goal[None])
    assert found.all()
    np.testing.assert_array_equal(ahead[0], goal)


def test_what_was_never_moved_makes_an_empty_map():
    data = make(cubes, trajectories=2, moves=1)
    state_map = ThingsMap.from_data(data, np.array([0, 0, 0, 1, 1, 1, 1]))
    state = data.observations[:1]
    ahead, _ = waypoints(state_map, state, data.observations[-1:])
    np.testing.assert_array_equal(ahead, data.observations[-1:])


def test_groups_of_nothing():
    assert group_numbers(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(4), np.zeros(4)) == []


@pytest.mark.parametrize('kind', [lamps, cubes])
def test_round_trip(kind, tmp_path, assert_same):
    data = make(kind)
    state_map = make_map(data)
    torch.save(state_map.state_dict(), tmp_path / 'map.pth')
    loaded = ThingsMap.from_state_dict(torch.load(tmp_path / 'map.pth', weights_only=True))
    assert_same(state_map.state_dict(), loaded.state_dict())
    states, goals = data.observations[::500], data.observations[::500][::-1].copy()
    ways = [waypoints(a, states, goals)[0] for a in (state_map, loaded)]
    np.testing.assert_array_equal(*ways)


def test_routes_are_kept_but_not_without_bound(monkeypatch):
    monkeypatch.setattr('things.KEPT_GOALS', 3)
    data = make(lamps)
    state_map = make_map(data)
    goals = data.observations[::30][:10]
    assert len(state_map.routes(goals)) == 10
    assert state_map._kept_way.cache_info().currsize == 3


# ------------------------------------------------------------------------------------------------------- agent
def record(data, rng, actions=2):
    """A ReplayBuffer of somebody who waved the hand and touched nothing."""
    replay = ReplayBuffer(data.observations.shape[1], actions, context_length=8)
    for _ in range(3):
        states = play(np.full((2, data.observations.shape[1] - 3), 1.5), rng)
        states[:, 2] = 0
        replay.add(states, rng.uniform(-1, 1, (len(states) - 1, actions)).astype(np.float32))
    return replay


@pytest.fixture
def make_mover(make_config, make_online):
    """Function (kind of things, options of the OnlineAgent) -> (an agent that plans on such things, their data, a
    replay)."""
    def make_one(kind, **options):
        data = make(kind)
        offline = OfflineAgent(data.observations.shape[1], make_config(transition_steps=data.transition_steps))
        offline.set_statistics(*data.statistics(), find_things(data), moves_things=True)
        agent = make_online(offline=offline, action_dim=2, online_share=0.0, value_interval=0, **options)
        agent.build_map(data)
        return agent, data, record(data, np.random.default_rng(0))
    return make_one


@pytest.fixture
def mover(make_mover):
    """An agent that plans on the things of two cubes, their data, a replay."""
    return make_mover(cubes)


def test_z_next_is_the_state_after_the_next_move(mover):
    agent, data, replay = mover
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    rows = batch.rows.numpy()
    ahead = (rows // PAUSE + 1) * PAUSE
    usual = ahead == rows + batch.steps_to_subgoal.numpy()  # all but cubes that were put back where they had been
    assert usual.mean() > 0.9
    np.testing.assert_array_equal(batch.subgoal_states[usual], data.observations[ahead[usual]])
    assert batch.progress_states is None


def test_quick_moves_are_imitated_more(mover):
    agent, data, replay = mover
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    agent.usual_progress = lambda batch, networks: torch.zeros(len(batch.states))
    weights = agent.imitation_weights(batch)
    assert weights[batch.steps_to_subgoal < 10].min() > weights[batch.steps_to_subgoal > 50].max()
    assert agent.total_loss(batch)[1]['baseline_loss'] > 0


def test_switches_are_imitated_all_alike(make_mover):
    agent, data, replay = make_mover(lamps)
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    assert (agent.imitation_weights(batch) == 1).all()
    assert 'baseline_loss' not in agent.total_loss(batch)[1]


def test_a_switch_beside_a_cube_is_imitated_all_alike(make_mover):
    """What the cube's moves are worth is weighed by their haste, and has mean 1 as well."""
    def lamp_and_cube(rng, moves=40):
        rows = [np.array([0, *rng.uniform(-3, 3, 2)])]
        while len(rows) < moves:
            row = rows[-1].copy()
            if rng.integers(2):
                row[0] = 1 - row[0]
            else:
                row[1:] = rng.uniform(-3, 3, 2)
            rows.append(row)
        return np.array(rows)

    agent, data, replay = make_mover(lamp_and_cube, progress_temperature=1.0)
    assert [len(agent.state_map.switches), len(agent.state_map.loose)] == [1, 1]
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    weights = agent.imitation_weights(batch)
    switches = batch.states[:, 3] != batch.subgoal_states[:, 3]
    assert 0.2 < switches.float().mean() < 0.8
    assert (weights[switches] == 1).all()
    assert weights[~switches].std() > 0.2
    torch.testing.assert_close(weights[~switches].mean(), torch.tensor(1.0))


def test_what_lies_far_from_the_data_is_seen_at_its_border(mover):
    """In acting as in training."""
    agent, data, replay = mover
    states = torch.from_numpy(data.observations[:3])
    assert torch.allclose(agent.bounded(states), states, atol=1e-5)
    far = states.clone()
    far[:, 0] += 100
    further = states.clone()
    further[:, 0] += 200
    torch.testing.assert_close(agent.bounded(far), agent.bounded(further))
    torch.testing.assert_close(agent.encoder.normalize(agent.bounded(far))[:, 0], torch.full((3,), 4.0))
    goals = data.observations[-3:]
    acted = [agent.act(observations.numpy(), goals, agent.initial_state(3))[0] for observations in (far, further)]
    np.testing.assert_allclose(*acted, atol=1e-6)


def test_moves_of_things_are_not_scaled(mover):
    agent, data, _ = mover
    observations, goals = data.observations[:3], data.observations[-3:]
    acted = []
    for scale in 1.0, 0.5:
        agent.config.action_scale = scale
        acted.append(agent.act(observations, goals, agent.initial_state(3))[0])
    assert np.array_equal(*acted) and np.abs(acted[0]).max() > 0


@pytest.mark.parametrize('flag', ['hop', 'direction_products', 'stuck_noise'])
def test_flags_of_walking_are_refused_where_things_are_moved(make_mover, flag):
    with pytest.raises(ValueError, match=f'--{flag}: where things are moved'):
        make_mover(cubes, **{flag: 1})


def test_a_map_of_moves_is_asked_for_no_number_of_nodes(mover):
    agent, data, _ = mover
    with pytest.raises(ValueError, match='--nodes: where things are moved'):
        agent.build_map(data, nodes=20)


def test_progress_steps_0_imitates_all_alike(mover):
    agent, data, replay = mover
    agent.config.progress_steps = 0
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    assert (agent.imitation_weights(batch) == 1).all()


def test_labels_are_gentle_where_there_are_things(mover, monkeypatch):
    agent, data, replay = mover
    told = []
    monkeypatch.setattr(agent.labeler, 'fit', lambda *args, **options: told.append(options['small_action_prior']))
    agent.fit_labeler(agent.open_batches(data, replay), np.random.default_rng(0))
    assert told == [0.2]


@pytest.mark.parametrize('point_out', [True, False])
def test_acting_heads_for_the_next_move(mover, stub, point_out):
    """I sees how far the thing is to be moved whose turn it is, and that thing apart from the others."""
    agent, data, _ = mover
    agent.config.point_out = point_out
    seen = []
    agent.acting['inverse_dynamics'] = stub(lambda full, *inputs: seen.append(inputs) or full[:, :2])
    state = with_things(data, [2.5, 1, 2, 2.5])
    goal = with_things(data, [1, 1, -1, 0.5])
    agent.act(state[None], goal[None], agent.initial_state(1))
    normalized, direction, mask_to_moved_object = seen[0]
    scale = agent.encoder.slowness / agent.encoder.std
    expected = torch.tensor([0, 0, 0, -1.5, 0, 0, 0]) * scale
    torch.testing.assert_close(direction[0], expected, atol=1e-5, rtol=1e-4)
    its_numbers = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    torch.testing.assert_close(mask_to_moved_object, normalized * its_numbers * point_out)


def test_who_goes_back_to_begin_anew_is_led_by_the_labeler(mover, monkeypatch):
    agent, data, _ = mover
    agent.state_map.patience = 4
    agent.labeler.points = torch.zeros(1, 14, dtype=torch.float64)  # as if it had been fitted
    monkeypatch.setattr(agent, 'label', pulled_back)
    state = with_things(data, [2.5, 1, 2, 2.5])
    state[:2] = [9, -9]  # out of every posture's reach in one step
    goals = np.stack([with_things(data, [1, 1, -1, 0.5]), state])  # the second one is where it shall be
    observations = np.stack([state, state])

    acting = agent.initial_state(2)
    converged = []
    for _ in range(7):
        actions, acting = agent.act(observations, goals, acting)
        converged.append((actions == agent._scale_from_unit(np.array([-1, 1]))).all(1))
    assert np.array(converged).tolist() == [[False, False]] * 4 + [[True, False]] + [[False, False]] * 2

    agent.labeler.forget()
    for _ in range(2):
        actions, acting = agent.act(observations, goals, acting)
    assert acting.pursuit.return_left.any() and not (actions[0] == [-1, 1]).all(), 'nobody knows the way back'


def test_without_slow_goals_there_are_no_things(make_config, make_online):
    data = make(cubes)
    offline = OfflineAgent(7, make_config(slow_goals=False))
    offline.set_statistics(*data.statistics(), find_things(data), moves_things=True)
    agent = make_online(offline=offline, action_dim=2)
    agent.build_map(data, nodes=20)
    assert not agent.moves_things


# -------------------------------------------------------------------------------------------------- corrective
def pulled_back(steps):
    """A labeler for which an action is what moves the hand from one state to the next."""
    return (steps[:, 1] - steps[:, 0])[:, :2].clamp(-1, 1)


def test_states_beside_the_data_lead_back(mover):
    agent, data, replay = mover
    scale = agent.offline.goal_feature_affine()[1]
    found = find_corrective_transitions(data, replay, scale, pulled_back, np.random.default_rng(0))
    strayed = found.states.numpy()

    np.testing.assert_array_equal(strayed[:, 3:], data.observations[:, 3:])  # nobody has touched a cube
    away = strayed[:, :2] - data.observations[:, :2]
    own_changes = replay.observations[PERTURBATION_STEPS:] - replay.observations[:-PERTURBATION_STEPS]
    assert 0.1 < np.abs(away).max() <= np.abs(own_changes[:, :2]).max() + 1e-6
    assert abs(away.mean()) < 0.05

    back = np.clip(data.observations[1:, :2] - strayed[:-1, :2], -1, 1)
    np.testing.assert_allclose(found.actions[:-1], back, atol=1e-6)

    # where a cube is moved within three steps of a row, or has just been, none is known
    border = np.append(np.abs(np.diff(data.observations[:, 3:], axis=0)).max(1) > 0, True)
    near = np.convolve(border, np.ones(2 * PERTURBATION_STEPS), 'full')[PERTURBATION_STEPS - 1:][:len(data)] > 0
    assert not found.known[border].any()
    assert found.known[PERTURBATION_STEPS:][~near[PERTURBATION_STEPS:]].all()
    assert 0.8 < found.known.mean() < 1
    assert not found.known[data.ends].any()


def test_so_much_of_a_batch_begins_beside_the_data(make_mover):
    agent, data, replay = make_mover(cubes, corrective_fraction=0.5)
    batches = agent.open_batches(data, replay)
    batches.label_data(pulled_back)
    batch = batches.sample(np.random.default_rng(0))

    rows = batch.rows.numpy()
    moved = (batch.states.numpy() != data.observations[rows]).any(1)
    assert 0.3 < moved.mean() < 0.6
    assert batches.corrective.known[rows[moved]].all()
    assert torch.equal(batch.policy_states, batch.states)
    assert torch.equal(batch.actions[moved], batches.corrective.actions[rows[moved]])
    assert torch.equal(batch.actions[~moved], batches.labels[rows[~moved]])
    torch.testing.assert_close(batch.full, agent.encode_seen(batch.states))

    again = agent.open_batches(data, replay)
    again.label_data(pulled_back)
    assert torch.equal(again.corrective.states, batches.corrective.states), 'a resumed run goes on with the same'


def test_nobody_strays_unless_asked_or_shown(mover, make_mover):
    agent, data, replay = mover
    batches = agent.open_batches(data, replay)
    batches.label_data(pulled_back)
    assert batches.corrective is None

    scale = agent.offline.goal_feature_affine()[1]
    nothing = ReplayBuffer(data.observations.shape[1], 2, context_length=8)
    assert find_corrective_transitions(data, nothing, scale, pulled_back, np.random.default_rng(0)) is None

    with pytest.raises(ValueError, match='--corrective_fraction'):
        make_mover(cubes, corrective_fraction=0.5, memory=True)
