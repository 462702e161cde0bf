"""The collector's protocols, its files, and the data set that is bundled with the repository."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts'))  # by path, so that the collector's spawned workers find it as well

import collect_dataset  # noqa: E402
import evaluate_expert  # noqa: E402
from collect_dataset import CollectConfig, Collector, find_vertex_cells, load_expert, main  # noqa: E402

EXPERT = ROOT / 'datasets' / 'ant_expert.npz'
MINI = ROOT / 'datasets' / 'antmaze-medium-navigate-mini-v0.npz'


def make_collector(env_id, kind, rows, noise=0.2, policy='expert', state_only=False):
    return Collector(CollectConfig(env_id, kind, policy, str(EXPERT), noise, rows, state_only, seed=3))


def steps_between(maze_map, start, goal):
    """Length of the shortest path in cells, found apart from OGBench by spreading over the map."""
    reached, steps = {start}, 0
    while goal not in reached:
        around = {(i + a, j + b) for i, j in reached for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))}
        reached |= {cell for cell in around if maze_map[cell] == 0}
        steps += 1
    return steps


def collect_files(tmp_path, *flags, name='antmaze-medium-navigate-v0'):
    """Run the command in `tmp_path`, return (exit code, training arrays, validation arrays)."""
    code = main(['--dataset', name, '--output_dir', str(tmp_path), '--seed', '3', *flags])
    arrays = []
    for path in (tmp_path / f'{name}.npz', tmp_path / f'{name}-val.npz'):
        with np.load(path, allow_pickle=False) as file:
            arrays.append(dict(file))
    return code, *arrays


def test_vertex_cells_are_dead_ends_corners_and_junctions():
    picture = ['#########',
               '#V.V..VV#',
               '###.##VV#',
               '#V.VV####',
               '#########']
    maze_map = np.array([[int(letter == '#') for letter in line] for line in picture])
    expected = [(i, j) for i, line in enumerate(picture) for j, letter in enumerate(line) if letter == 'V']
    assert find_vertex_cells(maze_map) == expected


def test_files_follow_ogbench_and_do_not_depend_on_the_number_of_workers(tmp_path):
    flags = ('--num_episodes', '4', '--num-val-episodes', '2', '--max_episode_steps', '40')
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
    # Episodes differ from each other and between the splits.
    starts = np.concatenate([arrays['observations'][::40, :2] for arrays in one[1:]])
    assert len(np.unique(starts, axis=0)) == 6


def test_navigate_walks_to_vertex_cells_and_picks_a_new_one_on_arrival(monkeypatch):
    collector = make_collector('pointmaze-medium-v0', 'navigate', rows=600)
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


def test_stitch_goals_are_four_cells_away_and_stay():
    collector = make_collector('pointmaze-large-v0', 'stitch', rows=201)
    maze, starts = collector.env, set()
    for number in range(20):
        xy = collector.episode(0, number)['observations'][:, :2]
        start, goal = maze.cur_task_info['init_ij'], maze.cur_task_info['goal_ij']
        assert steps_between(maze.maze_map, start, goal) == 4
        assert maze.xy_to_ij(xy[0]) == start
        assert maze.xy_to_ij(maze.cur_goal_xy) == goal == maze.xy_to_ij(xy[-1])  # there at the end, still
        starts.add(start)
    assert len(starts) > 8


def test_explore_holds_a_random_direction_for_ten_steps():
    collector = make_collector('pointmaze-medium-v0', 'explore', rows=40, noise=0.0)
    actions = collector.episode(0, 0)['actions'].reshape(4, 10, 2)
    assert (actions == actions[:, :1]).all()
    assert np.allclose(np.linalg.norm(actions, axis=-1), 1.0, atol=1e-5)
    assert len(np.unique(actions[:, 0], axis=0)) == 4
    noisy = make_collector('pointmaze-medium-v0', 'explore', rows=40, noise=1.0).episode(0, 0)['actions']
    assert np.abs(noisy - actions.reshape(40, 2)).max() > 0.5 and np.abs(noisy).max() == 1.0


def test_ant_expert_walks_where_it_is_told():
    collector = make_collector('antmaze-medium-v0', 'stitch', rows=201)
    ends = []
    for number in range(4):
        xy = collector.episode(0, number)['observations'][:, :2]
        target = np.array(collector.env.ij_to_xy(collector.env.cur_task_info['goal_ij']))
        ends.append(np.linalg.norm(xy - target, axis=1).min())
    assert np.median(ends) < 2.0  # within the goal's cell, from four cells (16 units of path) away


def test_recorded_actions_lead_from_row_to_row():
    """Replaying row t from its qpos and qvel with its action gives row t + 1: no array is shifted."""
    collector = make_collector('antmaze-medium-v0', 'navigate', rows=30)
    rows, maze = collector.episode(0, 1), collector.env
    for t in (0, 14, 28):
        maze.set_state(rows['qpos'][t].astype(float), rows['qvel'][t].astype(float))
        assert np.allclose(maze.step(rows['actions'][t])[0], rows['observations'][t + 1], atol=1e-2)


def test_a_random_humanoid():
    collector = make_collector('humanoidmaze-medium-v0', 'navigate', rows=12, policy='random')
    rows = collector.episode(0, 0)
    assert rows['observations'].shape == (12, 69) and rows['actions'].shape == (12, 21)
    assert 0.5 < rows['actions'].std() < 0.65 and np.abs(rows['actions']).max() <= 1  # uniform: 0.577


def test_state_only_files_hold_the_same_states_and_no_actions():
    whole = make_collector('pointmaze-medium-v0', 'navigate', rows=20).episode(1, 0)
    states = make_collector('pointmaze-medium-v0', 'navigate', rows=20, state_only=True).episode(1, 0)
    assert list(states) == ['observations']
    assert np.array_equal(states['observations'], whole['observations'])


def test_refuses_to_overwrite(tmp_path, capsys):
    name = 'pointmaze-medium-stitch-v0'
    flags = ('--num_episodes', '1', '--num_val_episodes', '1', '--max_episode_steps', '5', '--state_only')
    (tmp_path / f'{name}-val.npz').write_bytes(b'precious')
    command = ['--dataset', name, '--output_dir', str(tmp_path), *flags]
    assert main(command) == 2
    assert f'{name}-val.npz exists: pass --overwrite' in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'precious']
    code, train, val = collect_files(tmp_path, *flags, '--overwrite', name=name)
    assert code == 0 and len(list(tmp_path.iterdir())) == 2
    assert sorted(train) == sorted(val) == ['observations', 'terminals']


def test_a_failed_write_leaves_neither_a_file_nor_litter(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez_compressed', fail)
    with pytest.raises(OSError, match='disk full'):
        collect_dataset.save_npz(tmp_path / 'set.npz', {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags, message', [
    (['--dataset', 'cube-single-play-v0'], 'expected AGENT-MAZE-KIND-v0'),
    (['--dataset', 'antmaze-huge-navigate-v0'], 'no environment antmaze-huge-v0'),
    (['--dataset', 'antmaze-medium-explore-v0', '--num_episodes', '0'], '--num_episodes 0'),
    (['--dataset', 'antmaze-medium-explore-v0', '--noise', 'nan'], '--noise nan'),
    (['--dataset', 'antmaze-medium-explore-v0', '--expert_path', 'nowhere.npz'], 'nowhere.npz: no such npz'),
    (['--dataset', 'antmaze-medium-explore-v0', '--expert_path', str(MINI)], 'no expert; '),
])
def test_bad_input_is_one_line(tmp_path, capsys, flags, message):
    assert main([*flags, '--output_dir', str(tmp_path / 'new')]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1
    assert not (tmp_path / 'new').exists()


def test_protocol_defaults():
    args = collect_dataset.parse_args(['--dataset', 'antmaze-large-explore-v0'])
    config, episodes, paths = collect_dataset.check_args(args)
    assert (config.env_id, config.rows, config.noise) == ('antmaze-large-v0', 501, 1.0)
    assert episodes == (10000, 1000)
    assert paths[1] == Path('datasets/antmaze-large-explore-v0-val.npz')


def test_bundled_files_are_state_only_whole_and_small():
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


# ------------------------------------------------------------------------------------------------- how good it is
def test_the_expert_is_evaluated_on_the_episodes_of_a_seed(tmp_path, monkeypatch, capsys):
    """With the whole way before it, the noise-free expert solves an easy task; the numbers are printed and written."""
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
    assert run('--seed', '1', '--noise', '0.5')['evaluation/episode_length'] != numbers['evaluation/episode_length']
    with pytest.raises(ValueError, match='pointmaze-medium-navigate-v0: the experts are'):
        run('--dataset', 'pointmaze-medium-navigate-v0')
