"""Recordings that h5py, minari, pyarrow and pandas wrote become npz files, with all states and borders."""

import importlib
import json

import gymnasium
import numpy as np
import pytest
from convert_data import main
from gymnasium.spaces import Box, Dict

from environments.custom_env import GoalDict, find_other_dims
from support import recordings
from support.npz import load_actions, load_trajectories

LENGTHS = 20, 12, 28
ROWS = sum(LENGTHS)
STATES = np.random.default_rng(0).standard_normal((ROWS, 3)).cumsum(0).astype(np.float32)
ENDS = np.isin(np.arange(ROWS), np.cumsum(LENGTHS) - 1)
EPISODE = np.repeat([0, 1, 2], LENGTHS)
EARLY = np.arange(ROWS) < 25


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*words):
    """Convert into new.npz -> states, lengths of the trajectories."""
    main([*map(str, words[:1]), 'new.npz', '--overwrite', *words[1:]])
    states, starts, ends = load_trajectories('new.npz')
    return states, (ends - starts + 1).tolist()


def assert_same(*words):
    states, lengths = convert(*words)
    np.testing.assert_array_equal(states, STATES)
    assert lengths == [*LENGTHS]


# ----------------------------------------------------------------------------------------------------- arrays
@pytest.mark.parametrize('arrays', [
    dict(observations=STATES, terminals=ENDS & EARLY, timeouts=ENDS & ~EARLY, actions=STATES),
    dict(observation=STATES, terminated=ENDS & EARLY, truncated=ENDS),
    dict(obs=STATES, dones=ENDS[:, None]),
    dict(states=STATES, is_first=np.roll(ENDS, 1)),
    dict(state=STATES, episode_ids=EPISODE, infos=np.array([None, 1], object)),
    dict(observations=STATES, masks=~ENDS),
    dict(observations=STATES, lengths=np.array(LENGTHS)),
    dict(observations=np.stack([np.pad(part, ((0, 30 - len(part)), (0, 0)))
                                for part in np.split(STATES, [20, 32])]), episode_lengths=np.array(LENGTHS)),
], ids=lambda arrays: ' '.join(arrays))
def test_arrays_with_other_names_and_borders(folder, arrays):
    np.savez('old.npz', **arrays)
    assert_same('old.npz')


def test_episodes_of_equal_length_and_one_array(folder, capsys):
    np.save('stack', STATES.reshape(3, 20, 3))
    states, lengths = convert('stack.npy')
    np.testing.assert_array_equal(states, STATES)
    assert lengths == [20, 20, 20]
    np.savez('one', obs=STATES, infos=np.array([None], object))
    assert convert('one.npz')[1] == [60]
    out = capsys.readouterr().out
    assert 'not read: infos\n' in out and 'warning: this is one episode; if it holds several' in out


def test_named_ends_alone_count(folder):
    np.savez('old.npz', observations=STATES, terminals=np.arange(ROWS) % 2 == 0, timeouts=ENDS)
    assert_same('old.npz', '--ends', 'timeouts')


def test_the_content_decides_not_the_name(folder):
    np.savez('array.csv.npz', observations=STATES, dones=ENDS)
    (folder / 'array.csv.npz').rename('recording.csv')
    assert_same('recording.csv')


def test_nan_cuts_trajectories_of_arrays(folder, capsys):
    states = STATES.copy()
    states[[5, 19, 40], 1] = np.nan, np.inf, np.nan
    np.savez('old.npz', observations=states, dones=ENDS)
    assert convert('old.npz')[1] == [5, 13, 12, 8, 19]
    assert 'changes: 3 rows with NaN left out\n' in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- HDF5
def test_d4rl(folder, capsys):
    h5py = pytest.importorskip('h5py')
    with h5py.File('d4rl.hdf5', 'w') as file:
        file['observations'], file['actions'], file['rewards'] = STATES, STATES[:, :2], STATES[:, 0]
        file['terminals'], file['timeouts'] = ENDS & EARLY, ENDS & ~EARLY
        file['infos/qpos'], file['metadata/algorithm'] = STATES, 'SAC'
    assert_same('d4rl.hdf5')
    out = capsys.readouterr().out
    assert 'episodes: terminals, timeouts\n' in out and 'not read: actions, infos/qpos, rewards\n' in out
    with np.load('new.npz', allow_pickle=False) as file:
        assert {*file} == {'observations', 'terminals', 'names'}

    convert('d4rl.hdf5', '--actions')
    np.testing.assert_array_equal(load_actions('new.npz', ROWS), STATES[:, :2])
    np.testing.assert_array_equal(convert('d4rl.hdf5', '--columns', 'infos/qpos')[0], STATES)


def test_robomimic(folder, capsys):
    """Its layout: a group for each demonstration, with named parts of the observation."""
    h5py = pytest.importorskip('h5py')
    with h5py.File('demo.hdf5', 'w') as file:
        for episode in (0, 2, 1):  # demo_10 comes after demo_2
            rows, group = STATES[episode == EPISODE], file.create_group(f'data/demo_{(0, 2, 10)[episode]}')
            group['obs/object'], group['obs/arm'] = rows[:, 1:], rows[:, :1]
            group['obs/camera'] = np.zeros((len(rows), 2, 2, 3))
            group['actions'], group['states'], group['dones'] = rows, rows, rows[:, 0]
    assert_same('demo.hdf5')
    assert 'dimensions: 0 obs/arm, 1 object[0], 2 object[1]\n' in capsys.readouterr().out
    np.testing.assert_array_equal(convert('demo.hdf5', '--columns', 'obs/object,obs/arm')[0], STATES[:, [1, 2, 0]])


class Cart(gymnasium.Env):
    """A goal environment whose first two observed numbers are the achieved goal."""

    vector = Box(-np.inf, np.inf, (2,), np.float64)
    observation_space = Dict(observation=Box(-np.inf, np.inf, (4,), np.float64), achieved_goal=vector,
                             desired_goal=vector)
    action_space = Box(-1.0, 1.0, (2,))

    def observe(self):
        return dict(observation=np.concatenate([self.place, self.speed]), achieved_goal=self.place.copy(),
                    desired_goal=self.goal)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.speed = np.zeros(2)
        return self.observe(), {}

    def step(self, action):
        self.speed = 0.9 * self.speed + 0.01 * action
        self.place = self.place + self.speed
        return self.observe(), 0.0, False, False, {'is_success': False}


@pytest.mark.filterwarnings('ignore:.*(eval_env|env_spec)')
@pytest.mark.parametrize('data_format', ['hdf5', 'parquet', 'arrow'])
def test_minari_goal_environments_have_the_order_of_env(folder, monkeypatch, data_format):
    """A state is what `--env` presents to the agent, and the state after the last action is kept."""
    pytest.importorskip('minari')
    pytest.importorskip('pyarrow')
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(folder / 'minari'))
    import minari
    from minari.data_collector import EpisodeBuffer

    env = Cart()
    adapted = GoalDict(env, find_other_dims(env))
    buffers, expected = [], []
    for seed in range(11):
        observations = [env.reset(seed=seed)[0]]
        actions = [env.action_space.sample() for _ in range(seed + 2)]
        observations += [env.step(action)[0] for action in actions]
        expected += [adapted.observation(observation) for observation in observations]
        flags = [False] * len(actions)
        buffers.append(EpisodeBuffer(
            seed, observations={key: np.stack([part[key] for part in observations])
                                for key in observations[0]},
            actions=np.stack(actions), rewards=[0.0] * len(actions), terminations=flags,
            truncations=[*flags[1:], True], infos={}))
    minari.create_dataset_from_buffers(
        'cart/test-v0', buffers, data_format=data_format, action_space=env.action_space,
        observation_space=env.observation_space, algorithm_name='none', author='A', author_email='a@b.c',
        code_permalink='none', description='none')

    states, lengths = convert(folder / 'minari' / 'cart' / 'test-v0')
    np.testing.assert_array_equal(states, np.float32(expected))
    assert lengths == [*range(3, 14)]


# ----------------------------------------------------------------------------------------------------- tables
def lerobot_table(episodes):
    """Return rows of LeRobot's layout."""
    pyarrow = pytest.importorskip('pyarrow')
    rows = np.flatnonzero(np.isin(EPISODE, episodes))
    frame = np.concatenate([np.arange(LENGTHS[episode]) for episode in episodes])
    return pyarrow.table({
        'observation.state': pyarrow.array(list(STATES[rows]), pyarrow.list_(pyarrow.float32(), 3)),
        'observation.images.top': pyarrow.array([{'bytes': b'', 'path': ''}] * len(rows)),
        'action': list(STATES[rows, :2]), 'timestamp': np.float32(frame / 30), 'frame_index': frame,
        'episode_index': EPISODE[rows], 'index': rows, 'task_index': 0 * rows, 'next.done': ENDS[rows]})


@pytest.mark.parametrize('files', [
    {'episode_000000': [0], 'episode_000001': [1], 'episode_000002': [2]},  # v2
    {'file-000': [0, 1], 'file-001': [2]},  # v3
], ids=['v2', 'v3'])
def test_lerobot(folder, capsys, files):
    pytest.importorskip('pyarrow')
    import pyarrow.parquet as parquet
    for part in ('data/chunk-000', 'meta/episodes/chunk-000'):
        (folder / 'robot' / part).mkdir(parents=True)
    features = {'observation.state': {'dtype': 'float32', 'names': {'motors': ['pan', 'lift', 'grip']}}}
    (folder / 'robot/meta/info.json').write_text(json.dumps({'fps': 30, 'features': features}))
    parquet.write_table(lerobot_table([0]), folder / 'robot/meta/episodes/chunk-000/file-000.parquet')
    for name, episodes in files.items():
        parquet.write_table(lerobot_table(episodes), folder / f'robot/data/chunk-000/{name}.parquet')

    assert_same('robot')
    out = capsys.readouterr().out
    assert 'dimensions: 0 pan, 1 lift, 2 grip\n' in out and 'rate: 30 rows per second' in out
    assert f'read: {len(files)} file(s), a parquet file; 60 rows, 3 episode(s)\n' in out


def mocap():
    """Return a table of three takes at 10 Hz with jitter, each with a gap of a second."""
    pandas = pytest.importorskip('pandas')
    rng = np.random.default_rng(0)
    takes = []
    for take in 'abc':
        time = np.arange(100) / 10 + rng.uniform(-0.02, 0.02, 100)
        time = time[(time < 4) | (time > 5)]
        takes.append(pandas.DataFrame({'time': time, 'take': take, 'x': np.sin(time), 'y': 3 * time}))
    return pandas.concat(takes)


def test_csv_is_resampled_and_cut_at_gaps(folder, capsys):
    mocap().to_csv('mocap.csv')
    states, lengths = convert('mocap.csv', '--velocities')
    assert len(lengths) == 6 and min(lengths) > 35
    out = capsys.readouterr().out
    assert 'rate: 10 rows per second\nchanges: 3 gaps cut, 6 episodes resampled\n' in out
    assert 'dimensions: 0 x, 1 y, 2 x, velocity, 3 y, velocity\n' in out
    np.testing.assert_allclose(states[:, 0], np.sin(states[:, 1] / 3), atol=2e-3)
    np.testing.assert_allclose(states[:, 3], 3, rtol=1e-5)
    np.testing.assert_allclose(states[:, 2], np.cos(states[:, 1] / 3), atol=0.08)  # one-sided at gaps

    # other rates and gaps, dates, separators
    whole = convert('mocap.csv', '--gap', '2', '--rate', '20')
    assert whole[1] == pytest.approx([198] * 3, abs=2)
    table = mocap()
    microseconds = (1e6 * table['time']).astype(int).to_numpy(dtype='timedelta64[us]')
    table['time'] = np.datetime64('2026-01-01') + microseconds
    table.to_csv('dates.csv', sep=';', index=False, decimal=',')
    np.testing.assert_allclose(convert('dates.csv', '--velocities')[0], states, atol=1e-4)


def test_evenly_spaced_rows_of_a_table_stay_as_they_are(folder, capsys):
    pandas = pytest.importorskip('pandas')
    table = pandas.DataFrame(STATES, columns=['x', 'y', 'z'])
    table.assign(take=EPISODE, time=np.arange(ROWS) * 4.0).to_csv('even.csv', index=False)
    assert_same('even.csv', '--time_unit', 'ms')
    assert 'rate: 250 rows per second\nchanges: none\n' in capsys.readouterr().out
    table.assign(time=np.tile(np.arange(20), 3)).to_csv('restart.csv', index=False)  # the clock begins anew
    assert convert('restart.csv')[1] == [20, 20, 20]
    np.savetxt('plain.txt', np.column_stack([np.arange(ROWS), STATES]), delimiter='\t')
    states = convert('plain.txt', '--columns', '1,2,3', '--time', '0')[0]
    np.testing.assert_allclose(states, STATES, rtol=1e-6)


def test_missing_and_repeated_rows_of_a_table(folder, capsys):
    table = mocap().reset_index(drop=True)
    table.loc[10, 'x'] = np.nan
    table.loc[12, 'time'] = table.loc[11, 'time']
    table.to_csv('mocap.csv')
    states, lengths = convert('mocap.csv')
    assert len(lengths) == 6 and np.abs(states[:, 0] - np.sin(states[:, 1] / 3)).max() < 0.06
    out = capsys.readouterr().out
    assert '1 rows with NaN left out' in out and '1 rows with the time of the row before left out' in out


def test_angles_are_interpolated_the_short_way(folder):
    time = np.sort(np.random.default_rng(0).uniform(0, 60, 1200))
    yaw = (0.9 * time + np.pi) % (2 * np.pi) - np.pi
    pytest.importorskip('pandas').DataFrame({'time': time, 'yaw': yaw}).to_csv('yaw.csv', index=False)
    states, lengths = convert('yaw.csv', '--rate', '20', '--gap', '10', '--velocities')
    assert lengths == [pytest.approx(1200, abs=3)] and np.abs(states[:, 0]).max() <= np.float32(np.pi)
    np.testing.assert_allclose(states[:, 1], 0.9, rtol=1e-3)


def test_large_offsets_stay_float64(folder):
    np.savez('utm.npz', observations=STATES.astype(float) + 5e6, dones=ENDS)
    assert convert('utm.npz')[0].dtype == np.float64
    np.savez('near.npz', observations=STATES.astype(float), dones=ENDS)
    assert convert('near.npz')[0].dtype == np.float32


# --------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize('text, words', [
    ('', 'this is an empty file; it must be one of an HDF5 file, a parquet file'),
    ('x,y\n', 'no rows of numbers'),
    ('x,y\n1,2\n3,n/k\n', "`y` holds text ('n/k'); name the columns of the state with --columns"),
    ('time,x\n' + '1,5\n0,5\n' * 9, 'time decreases 9 times in 18 rows; sort the rows'),
    ('time,x\n1,nan\n2,3\n9,nan\n', 'no two successive rows have finite states'),
    ('time,take\n1,2\n', 'no columns are states; name them with --columns, of `time`, `take`'),
    ('time,x\n1.5.2026 10:00,1\n2.5.2026 10:00,1\n', 'the time stamp 1.5.2026 10:00 is no ISO date'),
    ('{"x": 1}', 'this is a JSON file; it must be'),
    ('x', 'this is a file of an unknown format, or a part'),
    ('x,y\n1,2\n3,4,5\n', 'Expected 2 fields in line 3, saw 3'),
])
def test_bad_tables_are_refused_in_one_line(folder, text, words):
    pytest.importorskip('pandas')
    (folder / 'bad.csv').write_text(text)
    with pytest.raises(ValueError, match='bad.csv|nothing is left') as caught:
        main(['bad.csv', 'new.npz'])
    assert words in str(caught.value) and '\n' not in str(caught.value)
    assert not (folder / 'new.npz').exists()


@pytest.mark.parametrize('arrays, flags, words', [
    (dict(observations=STATES, dones=ENDS), ['--gap', '5'], 'no time stamps, which --gap needs; name their column'),
    (dict(observations=STATES, dones=ENDS), ['--velocities'], 'or give --rate if rows are evenly spaced'),
    (dict(observations=STATES, dones=ENDS), ['--time_unit', 'ms'], 'no time stamps, which --time_unit needs'),
    (dict(observations=STATES, dones=ENDS), ['--actions'], 'no actions in it; leave out --actions'),
    (dict(observations=STATES, dones=ENDS), ['--columns', 'q'], 'no `q` in it, only `observations`, `dones`'),
    (dict(observations=STATES, dones=ENDS), ['--gap', '-1'], '--gap -1.0: must be at least 0'),
    (dict(observations=STATES, lengths=np.array([3, 4])), [], 'lengths of its episodes sum to 7, there are'),
    (dict(observations=np.array([None, 1], object)), [], 'no rows of numbers'),
    (dict(observations=STATES, terminals=np.ones(3)), [], '`terminals` has 3 values, there are 60 states'),
    (dict(observations=STATES, time=1e7 * np.arange(len(STATES))), [], 'by its time stamps there are 1e-07 rows per'),
])
def test_bad_arrays_and_flags_are_refused_in_one_line(folder, arrays, flags, words):
    np.savez('old.npz', **arrays)
    with pytest.raises(ValueError) as caught:
        main(['old.npz', 'new.npz', *flags])
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_rows_without_time_stamps_have_those_of_the_rate(folder):
    np.savez('old.npz', observations=STATES, dones=ENDS)
    states, lengths = convert('old.npz', '--rate', '10', '--velocities')
    assert lengths == [*LENGTHS]
    np.testing.assert_array_equal(states[:, :3], STATES)
    first = STATES[:lengths[0]]
    np.testing.assert_allclose(states[1:lengths[0] - 1, 3:], 5 * (first[2:] - first[:-2]), rtol=1e-4, atol=1e-4)


def test_what_may_be_meant_in_another_way_is_a_warning(folder, capsys):
    """A clock with an unusual name, and terminals in all rows at a goal."""
    clock = np.arange(len(STATES))[:, None] * 0.1
    np.savez('old.npz', observations=np.concatenate([STATES, clock], 1), dones=ENDS)
    convert('old.npz')
    assert '`observations[3]` grows in nearly every row; if it is time, name it with --time' in capsys.readouterr().out

    at_goal = np.arange(len(STATES)) % 20 > 14
    np.savez('old.npz', observations=STATES, terminals=at_goal, timeouts=ENDS)
    convert('old.npz')
    out = capsys.readouterr().out
    assert 'rows are episodes of their own by `terminals`, `timeouts`; if these do not end episodes' in out
    convert('old.npz', '--ends', 'timeouts')
    assert 'warning' not in capsys.readouterr().out


def test_the_input_is_no_output(folder):
    np.savez('old.npz', observations=STATES, dones=ENDS, more=np.ones(3))
    with pytest.raises(ValueError, match='old.npz is the input, which stays as it is'):
        main(['old.npz', 'old.npz', '--overwrite'])
    assert 'more' in np.load('old.npz', allow_pickle=False)


def test_an_output_that_exists_is_kept(folder):
    np.savez('old.npz', observations=STATES, dones=ENDS)
    (folder / 'new.npz').write_text('mine')
    with pytest.raises(ValueError, match='new.npz exists; name another output, or replace it with --over'):
        main(['old.npz', 'new'])
    assert (folder / 'new.npz').read_text() == 'mine'


def test_files_of_a_folder_must_agree(folder):
    np.save('a', STATES[:20])
    np.save('b', STATES[20:, :2])
    with pytest.raises(ValueError, match=r'b.npy: its dimensions are .*, those of .*a.npy observations\[0\]'):
        convert('.')
    (folder / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no file in this folder is one of'):
        convert('empty')
    with pytest.raises(FileNotFoundError, match='none.npz: no such file'):
        convert('none.npz')


def test_files_of_a_folder_are_in_the_order_of_their_numbers(folder):
    for number, rows in enumerate(np.split(STATES, np.cumsum(LENGTHS)[:-1])):
        np.save(f'take_{9 + number}.npy', rows)
    (folder / 'notes.md').write_text('x, y\n1, 2\n')
    assert_same('.')


def test_a_missing_package_is_named(folder, monkeypatch):
    def fail(name):
        raise ImportError

    (folder / 'a.hdf5').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.raises(ValueError, match='a.hdf5: h5py is needed to read it: pip install -r requirements-data'):
        main(['a.hdf5', 'new.npz'])
    assert (recordings.Path(__file__).parents[1] / recordings.REQUIREMENTS).is_file()


@pytest.mark.parametrize('content', ['npz', 'npy', 'parquet', 'hdf5'])
def test_damaged_files_are_refused_in_one_line(folder, content):
    np.savez('good', observations=STATES, dones=ENDS)
    np.save('good', STATES)
    starts = {'parquet': b'PAR1', 'hdf5': b'\x89HDF\r\n\x1a\n'}
    data = (folder / f'good.{content}').read_bytes() if content not in starts else starts[content] + bytes(200)
    damaged = bytearray(data)
    damaged[150:155] = b'\xff' * 5
    (folder / 'bad').write_bytes(damaged[:-3] if content == 'npy' else damaged)
    with pytest.raises(ValueError, match='bad: ') as caught:
        main(['bad', 'new.npz'])
    assert '\n' not in str(caught.value)
