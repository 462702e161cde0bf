"""Protocols and files of the collectors, and the bundled dataset."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts' / 'data'))  # by path, so that spawned workers find the modules

import collect_dataset  # noqa: E402
import collect_manipulation  # noqa: E402
import collect_maze  # noqa: E402
import evaluate_expert  # noqa: E402
from collect_dataset import CollectConfig, main  # noqa: E402
from collect_manipulation import cube_is_visible  # noqa: E402
from collect_maze import find_vertex_cells, load_expert  # noqa: E402

EXPERT = ROOT / 'datasets' / 'ant_expert.npz'
MINI = ROOT / 'datasets' / 'antmaze-medium-navigate-mini-v0.npz'


def make_collector(dataset, rows, noise=0.2, policy='expert', state_only=False):
    family = collect_dataset.FAMILIES[dataset.split('-')[0]]
    return family(CollectConfig(dataset, policy, str(EXPERT), noise, rows, state_only, seed=3))


def steps_between(maze_map, start, goal):
    """Return the length of the shortest path in cells, without OGBench's search."""
    reached, steps = {start}, 0
    while goal not in reached:
        around = {(i + a, j + b) for i, j in reached for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))}
        reached |= {cell for cell in around if maze_map[cell] == 0}
        steps += 1
    return steps


def collect_files(tmp_path, *flags, name='antmaze-medium-navigate-v0'):
    """Run the command; return (exit code, training arrays, validation arrays)."""
    code = main(['--dataset', name, '--output_dir', str(tmp_path), '--seed', '3', *flags])
    arrays = []
    for path in (tmp_path / f'{name}.npz', tmp_path / f'{name}-val.npz'):
        with np.load(path, allow_pickle=False) as file:
            arrays.append(dict(file))
    return code, *arrays


def test_find_vertex_cells_returns_dead_ends_corners_and_junctions():
    picture = ['#########',
               '#V.V..VV#',
               '###.##VV#',
               '#V.VV####',
               '#########']
    maze_map = np.array([[int(letter == '#') for letter in line] for line in picture])
    expected = [(i, j) for i, line in enumerate(picture) for j, letter in enumerate(line) if letter == 'V']
    assert find_vertex_cells(maze_map) == expected


def test_collected_files_do_not_depend_on_the_number_of_workers(tmp_path):
    flags = ('--num_episodes', '4', '--num-val-episodes', '2', '--max_episode_steps', '40', '--no-state_only')
    one = collect_files(tmp_path / 'one', *flags)
    two = collect_files(tmp_path / 'two', *flags, '--num_workers', '2')
    assert one[0] == two[0] == 0
    assert sorted(path.name for path in (tmp_path / 'one').iterdir()) == [
        'antmaze-medium-navigate-v0-val.npz', 'antmaze-medium-navigate-v0.npz']
    for episodes, arrays, same in zip((4, 2), one[1:], two[1:], strict=True):
        assert {key: (value.shape, value.dtype.name) for key, value in arrays.items()} == {
            'observations': ((episodes * 40, 29), 'float32'),
            'actions': ((episodes * 40, 8), 'float32'),
            'qpos': ((episodes * 40, 15), 'float32'),
            'qvel': ((episodes * 40, 14), 'float32'),
            'terminals': ((episodes * 40,), 'bool'),
        }
        assert np.flatnonzero(arrays['terminals']).tolist() == [40 * k + 39 for k in range(episodes)]
        assert np.array_equal(arrays['observations'], np.hstack([arrays['qpos'], arrays['qvel']]))
        assert np.abs(arrays['actions']).max() <= 1
        for key, value in arrays.items():
            assert np.array_equal(value, same[key]), key

    # episodes differ from each other and between the splits
    starts = np.concatenate([arrays['observations'][::40, :2] for arrays in one[1:]])
    assert len(np.unique(starts, axis=0)) == 6


def test_navigate_draws_a_new_vertex_cell_on_arrival(monkeypatch):
    collector = make_collector('pointmaze-medium-navigate-v0', rows=600)
    maze, arrivals = collector.env, []
    set_goal = maze.set_goal

    def record(goal_xy):
        arrivals.append((maze.get_xy(), maze.cur_goal_xy, goal_xy))
        set_goal(goal_xy=goal_xy)

    monkeypatch.setattr(maze, 'set_goal', record)
    xy = collector.episode(0, 0)['observations']
    del arrivals[:2]  # those of the reset
    assert len(arrivals) >= 5
    assert all(np.linalg.norm(place - goal) <= 1.0 for place, goal, _ in arrivals)
    assert {maze.xy_to_ij(goal) for _, _, goal in arrivals} <= set(find_vertex_cells(maze.maze_map))
    assert len({maze.xy_to_ij(goal) for _, _, goal in arrivals}) >= 4
    assert not any(maze.maze_map[maze.xy_to_ij(place)] for place in xy)  # never inside a wall


def test_stitch_goals_are_four_cells_away_and_fixed():
    collector = make_collector('pointmaze-large-stitch-v0', rows=201)
    maze, starts = collector.env, set()
    for number in range(20):
        xy = collector.episode(0, number)['observations'][:, :2]
        start, goal = maze.cur_task_info['init_ij'], maze.cur_task_info['goal_ij']
        assert steps_between(maze.maze_map, start, goal) == 4
        assert maze.xy_to_ij(xy[0]) == start
        assert maze.xy_to_ij(maze.cur_goal_xy) == goal == maze.xy_to_ij(xy[-1])  # still there at the end
        starts.add(start)
    assert len(starts) > 8


def test_explore_keeps_a_random_direction_for_ten_steps():
    collector = make_collector('pointmaze-medium-explore-v0', rows=40, noise=0.0)
    actions = collector.episode(0, 0)['actions'].reshape(4, 10, 2)
    assert (actions == actions[:, :1]).all()
    assert np.allclose(np.linalg.norm(actions, axis=-1), 1.0, atol=1e-5)
    assert len(np.unique(actions[:, 0], axis=0)) == 4
    noisy = make_collector('pointmaze-medium-explore-v0', rows=40, noise=1.0).episode(0, 0)['actions']
    assert np.abs(noisy - actions.reshape(40, 2)).max() > 0.5 and np.abs(noisy).max() == 1.0


def test_ant_expert_walks_in_the_given_direction():
    collector = make_collector('antmaze-medium-stitch-v0', rows=201)
    ends = []
    for number in range(4):
        xy = collector.episode(0, number)['observations'][:, :2]
        target = np.array(collector.env.ij_to_xy(collector.env.cur_task_info['goal_ij']))
        ends.append(np.linalg.norm(xy - target, axis=1).min())
    assert np.median(ends) < 2.0  # within the goal's cell, from four cells (16 units of path) away


def test_actions_of_the_ant_lead_to_the_next_row():
    """A simulator step from qpos and qvel of row t with its action gives row t + 1."""
    collector = make_collector('antmaze-medium-navigate-v0', rows=30)
    rows, maze = collector.episode(0, 1), collector.env
    for t in (0, 14, 28):
        maze.set_state(rows['qpos'][t].astype(float), rows['qvel'][t].astype(float))
        assert np.allclose(maze.step(rows['actions'][t])[0], rows['observations'][t + 1], atol=1e-2)


def test_collecting_without_an_expert_names_the_ways_out(tmp_path, capsys, monkeypatch):
    """One line names the ways out, for example random actions or other weights."""
    name = 'humanoidmaze-medium-navigate-v0'
    monkeypatch.setattr(collect_maze, 'DATASETS_DIR', tmp_path)
    assert main(['--dataset', name, '--output_dir', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --dataset {name}: no humanoid expert is bundled; ')
    assert error.count('\n') == 1
    assert all(way in error for way in ('--expert_path', 'datasets/README.md', '--policy random'))
    with pytest.raises(ValueError, match='no humanoid expert is bundled'):
        evaluate_expert.Expert(name, None, 0.0, 0)
    assert collect_maze.expert_path(name, 'mine.npz') == 'mine.npz'
    assert collect_maze.expert_path('pointmaze-medium-navigate-v0') is None

    collector = make_collector(name, rows=12, policy='random')
    rows = collector.episode(0, 0)
    assert rows['observations'].shape == (12, 69) and rows['actions'].shape == (12, 21)
    assert 0.5 < rows['actions'].std() < 0.65 and np.abs(rows['actions']).max() <= 1  # uniform: 0.577


def test_state_only_episodes_have_the_same_states():
    whole = make_collector('pointmaze-medium-navigate-v0', rows=20).episode(1, 0)
    states = make_collector('pointmaze-medium-navigate-v0', rows=20, state_only=True).episode(1, 0)
    assert list(states) == ['observations']
    assert np.array_equal(states['observations'], whole['observations'])


def test_collecting_refuses_to_overwrite(tmp_path, capsys):
    name = 'pointmaze-medium-stitch-v0'
    flags = ('--num_episodes', '1', '--num_val_episodes', '1', '--max_episode_steps', '5')
    (tmp_path / f'{name}-val.npz').write_bytes(b'precious')
    command = ['--dataset', name, '--output_dir', str(tmp_path), *flags]
    assert main(command) == 2
    assert f'{name}-val.npz exists: pass --overwrite' in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'precious']
    code, train, val = collect_files(tmp_path, *flags, '--overwrite', name=name)
    assert code == 0 and len(list(tmp_path.iterdir())) == 2
    assert sorted(train) == sorted(val) == ['observations', 'terminals']


def test_a_failing_print_loses_no_episodes(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError('nothing reads stdout')

    arrays = {'terminals': np.arange(5) == 4}
    monkeypatch.setattr(collect_dataset, 'collect', lambda *_: [arrays, arrays])
    monkeypatch.setattr(collect_dataset, 'print', fail, raising=False)
    flags = ['--num_episodes', '1', '--num_val_episodes', '1', '--max_episode_steps', '5', '--output_dir']
    with pytest.raises(OSError, match='nothing reads'):
        main(['--dataset', 'pointmaze-medium-stitch-v0', *flags, str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 2


def test_save_npz_leaves_no_file_after_an_error(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez_compressed', fail)
    with pytest.raises(OSError, match='disk full'):
        collect_dataset.save_npz(tmp_path / 'set.npz', {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags, message', [
    (['--dataset', 'antmaze-huge-navigate-v0'], 'unknown --dataset antmaze-huge-navigate-v0'),
    (['--dataset', 'visual-cube-single-play-v0'], 'images'),
    (['--dataset', 'antsoccer-arena-navigate-v0'], 'no expert that plays soccer'),
    (['--dataset', 'cube-single-play-v0', '--policy', 'random'], '--policy random: is for mazes'),
    (['--dataset', 'pointmaze-medium-explore-v0'], 'give --num_episodes and --max_episode_steps'),
    (['--dataset', 'antmaze-medium-explore-v0', '--num_episodes', '0'], '--num_episodes 0'),
    (['--dataset', 'antmaze-medium-explore-v0', '--noise', 'nan'], '--noise nan'),
    (['--dataset', 'antmaze-medium-explore-v0', '--expert_path', 'nowhere.npz'], 'nowhere.npz: no such npz'),
    (['--dataset', 'antmaze-medium-explore-v0', '--expert_path', str(MINI)], 'no `w1`, `b1`'),
])
def test_collecting_reports_bad_flags_in_one_line(tmp_path, capsys, flags, message):
    assert main([*flags, '--output_dir', str(tmp_path / 'new')]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('dataset, rows, noise, episodes', [
    ('antmaze-large-explore-v0', 501, 1.0, (10000, 1000)),
    ('antmaze-giant-navigate-v0', 2001, 0.2, (500, 50)),
    ('pointmaze-medium-navigate-v0', 1001, 0.5, (1000, 100)),
    ('pointmaze-giant-navigate-v0', 2001, 0.5, (500, 50)),
    ('pointmaze-teleport-stitch-v0', 201, 0.5, (5000, 500)),
    ('cube-single-play-v0', 1001, 0.1, (1000, 100)),
    ('cube-triple-play-v0', 1001, 0.1, (3000, 300)),
    ('puzzle-4x4-noisy-v0', 1001, 0.1, (1000, 100)),
])
def test_collecting_defaults_equal_ogbench(dataset, rows, noise, episodes):
    """Numbers copied from its commands.sh."""
    config, counts, paths = collect_dataset.check_args(collect_dataset.parse_args(['--dataset', dataset]))
    assert (config.dataset, config.rows, config.noise, config.state_only) == (dataset, rows, noise, True)
    assert counts == episodes
    assert paths[1] == Path(f'datasets/{dataset}-val.npz')


def test_collecting_defaults_of_humanoids_equal_ogbench():
    flags = ['--dataset', 'humanoidmaze-giant-navigate-v0', '--policy', 'random']
    config, counts, _ = collect_dataset.check_args(collect_dataset.parse_args(flags))
    assert (config.rows, counts) == (4001, (1000, 100))


def test_bundled_files_are_state_only_complete_and_small():
    paths = [MINI, MINI.with_name('antmaze-medium-navigate-mini-v0-val.npz')]
    assert sum(path.stat().st_size for path in paths) <= 12_000_000
    for path, episodes in zip(paths, (100, 10), strict=True):
        with np.load(path, allow_pickle=False) as file:
            assert sorted(file.files) == ['observations', 'terminals']
            observations, terminals = file['observations'], file['terminals']
        assert observations.shape == (episodes * 1001, 29) and observations.dtype == np.float32
        assert np.flatnonzero(terminals).tolist() == [1001 * k + 1000 for k in range(episodes)]
        assert np.isfinite(observations).all()
    action = load_expert(EXPERT)(np.zeros(29), np.array([1.0, 0.0]))
    assert action.shape == (8,) and action.dtype == np.float32 and np.abs(action).max() <= 1


# ------------------------------------------------------------------------------------------------ robot arm
@pytest.fixture(scope='module')
def cube():
    return make_collector('cube-double-play-v0', 260, noise=0.1)


def test_oracle_moves_cubes_to_their_targets(cube, monkeypatch):
    """When the arm leaves after about 90 steps, the cube lies at its target."""
    outcomes = []
    set_new_target = cube.env.set_new_target

    def record(**options):
        if 'p_stack' in options:
            outcomes.append(bool(cube.env._success))
            assert 0 <= options['p_stack'] <= 0.25
        return set_new_target(**options)

    monkeypatch.setattr(cube.env, 'set_new_target', record)
    rows = cube.episode(0, 0)
    assert len(outcomes) == 2 and all(outcomes)
    assert rows['observations'].shape == (260, 37) and rows['actions'].shape == (260, 5)
    assert np.abs(rows['actions']).max() == 1
    moved = np.ptp(rows['qpos'][:, [14, 15, 21, 22]], axis=0)  # x, y of both cubes, in m
    assert moved.max() > 0.05


def test_episode_of_the_arm_depends_on_its_number_only(cube, monkeypatch):
    monkeypatch.setattr(cube, 'config', dataclasses.replace(cube.config, rows=100))  # past the first target
    first = cube.episode(1, 2)
    cube.episode(0, 1)
    fresh = make_collector('cube-double-play-v0', 100, noise=0.1).episode(1, 2)
    for again in (cube.episode(1, 2), fresh):
        for key, values in first.items():
            assert np.array_equal(values, again[key]), key
    assert not np.array_equal(first['observations'][0], cube.episode(1, 3)['observations'][0])


def test_actions_of_the_arm_lead_to_the_next_row(cube):
    """x, y and z of the gripper follow the action of the same row."""
    rows = cube.episode(0, 4)
    gripper = rows['observations'][:, 12:15]
    moves = np.diff(gripper, axis=0)
    for axis in range(3):
        shifted = [np.corrcoef(moves[2:-2, axis], rows['actions'][2 + k:len(moves) - 2 + k, axis])[0, 1]
                   for k in (-1, 0, 1)]
        assert shifted[1] > 0.8 and np.argmax(shifted) == 1


@pytest.mark.parametrize('name, targets', [('scene-play-v0', {'cube', 'button', 'drawer', 'window'}),
                                           ('puzzle-3x3-noisy-v0', {'button'})])
def test_episodes_of_the_arm_have_the_layout_of_ogbench(tmp_path, name, targets):
    flags = ('--num_episodes', '1', '--num_val_episodes', '1', '--max_episode_steps', '12', '--no-state_only')
    code, whole, val = collect_files(tmp_path, *flags, name=name)
    assert code == 0 and sorted(whole) == sorted(val)
    collector = make_collector(name, 12, noise=0.1, state_only=True)
    states = collector.episode(0, 0)
    assert list(states) == ['observations'] and np.array_equal(states['observations'], whole['observations'])
    buttons = {'scene': 2, 'puzzle': 9}[name.split('-')[0]]
    assert whole['button_states'].shape == (12, buttons) and whole['button_states'].dtype == np.int64
    assert set(whole) == {'observations', 'terminals', 'actions', 'qpos', 'qvel', 'button_states'}
    assert set(collector.oracles) == targets


def test_noisy_data_have_more_noise_than_play():
    """The noise of the gripper's action is ten times larger."""
    play, noisy = (make_collector(f'cube-single-{kind}-v0', 60, noise=0.1).episode(0, 0)['actions']
                   for kind in ('play', 'noisy'))
    assert np.abs(np.diff(noisy[:, 4])).mean() > 3 * np.abs(np.diff(play[:, 4])).mean()


def test_scene_episode_is_repeated_if_its_cube_leaves_the_view(monkeypatch):
    collector = make_collector('scene-play-v0', 3, noise=0.1)
    answers = [False, True]
    monkeypatch.setattr(collect_manipulation, 'cube_is_visible', lambda qpos: answers.pop(0))
    second = collector.episode(0, 0)
    assert not answers
    answers.append(True)
    assert not np.array_equal(collector.episode(0, 0)['observations'], second['observations'])

    qpos = np.zeros((5, 17))
    qpos[:, 16] = 0.02
    assert cube_is_visible(qpos)
    for y, z, visible in ((0.3, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True), (-0.31, 0.2, False)):
        qpos[3, 15:] = y, z
        assert cube_is_visible(qpos) == visible


# ---------------------------------------------------------------------------------------- expert evaluation
def test_evaluate_expert_uses_the_episodes_of_a_seed(tmp_path, monkeypatch, capsys):
    """The noise-free expert solves an easy task; the metrics are printed and written."""
    def run(*flags):
        output = tmp_path / 'new' / 'expert.json'
        monkeypatch.setattr(sys, 'argv', ['', '--episodes_per_task', '1', '--output', str(output), *flags])
        evaluate_expert.main()
        return json.loads(output.read_text())

    monkeypatch.setattr(evaluate_expert, 'evaluate', functools.partial(evaluate_expert.evaluate, tasks=(2,)))
    numbers = run('--seed', '1')
    assert numbers['evaluation/task2_success'] == numbers['evaluation/overall_success'] == 1
    assert 100 < numbers['evaluation/episode_length'] < 500 and numbers['evaluation/on_its_back'] == 0
    assert run('--seed', '1') == numbers and 'evaluation/on_its_back' in capsys.readouterr().out
    noisy = run('--seed', '1', '--noise', '0.5')
    assert noisy['evaluation/episode_length'] != numbers['evaluation/episode_length']
    with pytest.raises(ValueError, match='pointmaze-medium-navigate-v0: the experts are'):
        run('--dataset', 'pointmaze-medium-navigate-v0')
