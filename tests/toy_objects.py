"""Toy manipulation data for the tests: a hand in motion that moves lamps, cubes or a drawer."""

import numpy as np

from planning.object_planner import ObjectPlanner
from planning.objects import ObjectMap, find_objects
from trajectories import ReplayBuffer, TrajectoryDataset

PAUSE = 60  # steps between two moves
ROBOT_DIMS = 3  # dimensions of the hand and of a spring, before those of the objects


def play(positions, rng, pause=PAUSE):
    """Return states (T, 3 + d) of one trajectory.

    Two dimensions are of a hand that is always in motion, one of a spring that is pressed before each move.
    The objects are at positions (n, d), for `pause` steps at each of them.
    """
    objects = np.repeat(positions, pause, axis=0)
    time = np.arange(len(objects))
    phase = rng.uniform(0, 6)
    hand = np.stack([np.sin(time / 5 + phase), np.cos(time / 7 + phase)], 1)
    spring = np.zeros(len(objects))
    spring[pause - 2::pause] = 1
    return np.concatenate([hand, spring[:, None], objects], 1).astype(np.float32)


def dataset(*trajectories, **options):
    """Return the TrajectoryDataset of arrays (T, S)."""
    ends = np.cumsum([len(states) for states in trajectories]) - 1
    starts = np.append(0, ends[:-1] + 1)
    return TrajectoryDataset(np.concatenate(trajectories), starts, ends, context_length=8, **options)


def make(kind, trajectories=20, **options):
    """Return a TrajectoryDataset of objects of a kind: one of the functions below."""
    rngs = [np.random.default_rng(i) for i in range(trajectories)]
    return dataset(*[play(kind(rng, **options), rng) for rng in rngs])


def make_map(data):
    """Return the ObjectMap of a dataset."""
    return ObjectMap.from_data(data, find_objects(data) / data.statistics()[1])


def make_planner(data):
    """Return an ObjectPlanner whose goal features are raw states."""
    return ObjectPlanner(make_map(data), lambda states: states)


def with_objects(data, positions):
    """Return the first state of a dataset with the objects at other positions (d,)."""
    state = data.observations[0].copy()
    state[ROBOT_DIMS:] = positions
    return state


def record(data, rng, actions=2):
    """Return a ReplayBuffer of an agent that waves its hand and moves no object."""
    replay = ReplayBuffer(data.observations.shape[1], actions, context_length=8)
    for _ in range(3):
        states = play(np.full((2, data.observations.shape[1] - ROBOT_DIMS), 1.5), rng)
        states[:, 2] = 0
        replay.add(states, rng.uniform(-1, 1, (len(states) - 1, actions)).astype(np.float32))
    return replay


def hand_change(pairs):
    """Label pairs of states (n, 2, S) with actions (n, 2) that are the change of the hand."""
    return (pairs[:, 1] - pairs[:, 0])[:, :2].clamp(-1, 1)


# ------------------------------------------------------------------------------------------- kinds of objects
def lamps(rng, moves=40, locked=False):
    """Return levels (moves, 2) of two lamps, of which each move switches one. If `locked`, the second one
    can be switched only while the first one is on."""
    state = rng.integers(0, 2, 2) if not locked else np.array([0, 0])
    rows = [state.copy()]
    while len(rows) < moves:
        lamp = rng.integers(2)
        if locked and lamp == 1 and not state[0]:
            continue
        state[lamp] = 1 - state[lamp]
        rows.append(state.copy())
    return np.array(rows, float)


def ring(rng, moves=40):
    """Return levels (moves, 5) of five lamps in a ring; each move switches two neighbours."""
    state = rng.integers(0, 2, 5)
    rows = [state.copy()]
    for _ in range(moves - 1):
        lamp = rng.integers(5)
        state[[lamp, (lamp + 1) % 5]] = 1 - state[[lamp, (lamp + 1) % 5]]
        rows.append(state.copy())
    return np.array(rows, float)


def cubes(rng, moves=40):
    """Return positions (moves, 4) of two cubes in the plane, of which each move places one anywhere."""
    positions = rng.uniform(-3, 3, 4)
    rows = [positions.copy()]
    for _ in range(moves - 1):
        cube = rng.integers(2)
        positions[2 * cube:2 * cube + 2] = rng.uniform(-3, 3, 2)
        rows.append(positions.copy())
    return np.array(rows)


def drawer(rng, moves=80):
    """Return positions (moves, 3) of a drawer, from closed (0) to open (4), and of a cube in the plane.

    The cube is placed anywhere on the table, or in the drawer while that is open (over 2). A cube in the
    drawer moves with it, along y.
    """
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


def lamp_and_cube(rng, moves=40):
    """Return positions (moves, 3) of a lamp and of a cube in the plane."""
    rows = [np.array([0, *rng.uniform(-3, 3, 2)])]
    while len(rows) < moves:
        row = rows[-1].copy()
        if rng.integers(2):
            row[0] = 1 - row[0]
        else:
            row[1:] = rng.uniform(-3, 3, 2)
        rows.append(row)
    return np.array(rows)


def turned_cubes(rng):
    """Return positions and yaws (moves, 6) of two cubes; a move changes the yaw of its cube a little."""
    positions = cubes(rng)
    angles = np.tile(rng.uniform(-3, 3, 2), (len(positions), 1))
    for move in range(1, len(positions)):
        changes = positions[move] != positions[move - 1]
        is_moved = changes.reshape(2, 2).any(1)
        angles[move] = angles[move - 1] + 0.6 * rng.standard_normal(2) * is_moved
    return np.column_stack([positions, angles])


def tilted_cubes(rng):
    """Return positions (moves, 4) of two cubes, and whether the first one lies on its side (moves, 1). One
    of its moves in ten tilts it."""
    positions = cubes(rng)
    is_moved = np.abs(np.diff(positions[:, :2], axis=0)).max(1) > 0
    is_tilted = np.cumsum(np.append(False, is_moved & (rng.random(len(is_moved)) < 0.1))) % 2
    return np.column_stack([positions, is_tilted])
