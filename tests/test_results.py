"""Tests of results/runs.csv, of the tables made from it, and of the comparison of runs from CSV files."""

import collections
import dataclasses
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import add_result
import make_tables
import numpy as np
import plot_runs
import pytest

from support import figures
from support.flags import run_main
from support.results import AnyRobotRun, Baseline, Run, read_rows, write_rows
from support.stats import last_three_mean, on_common_steps

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / 'results' / 'runs.csv'
ANT, LARGE = 'antmaze-medium-navigate-v0', 'antmaze-large-navigate-v0'
STITCH = 'antmaze-medium-stitch-v0'
NAME = '`antmaze-medium-navigate`'


def script(module, *flags):
    """Run the main function of a script and return (exit code, stdout, stderr)."""
    code, out, error = 0, io.StringIO(), io.StringIO()
    argv = [module.__name__, *map(str, flags)]
    with mock.patch.object(sys, 'argv', argv), redirect_stdout(out), redirect_stderr(error):
        try:
            run_main(module.main)
        except SystemExit as end:
            if isinstance(end.code, str):
                error.write(end.code)
            code = 1 if isinstance(end.code, str) else end.code or 0
    return code, out.getvalue(), error.getvalue()


def make_run(experiment, dataset, seed, success, **changes):
    """Return a row whose columns have plausible values."""
    tasks = {f'task{k}': success for k in range(1, 6)}
    row = Run(experiment, dataset, seed, 'abc1234', *4 * [''], 2000, 14_000, None, 10_000, None, 12345, 50,
              **tasks, success=success, success_without_plan=None)
    return dataclasses.replace(row, **changes)


def add_runs(page, *runs):
    path = page / 'results' / 'runs.csv'
    keys = {run.key for run in runs}
    old = read_rows(path) if path.is_file() else []
    write_rows(path, [*(run for run in old if run.key not in keys), *runs])


@pytest.fixture
def page(tmp_path):
    """Return a folder with READMEs with markers and stale tables, and a runs.csv of three runs."""
    (tmp_path / 'results').mkdir()
    (tmp_path / 'assets').mkdir()
    blocks = dict.fromkeys(make_tables.WORDS, [''])
    blocks[make_tables.DETAILS] = [f': {name}' for name in make_tables.make_details({}, [], {})]
    for page, names in blocks.items():
        text = '\n'.join(f'{make_tables.BEGIN.format(name)}\nold\n{make_tables.END}' for name in names)
        (tmp_path / page).write_text(f'before\n{text}\nafter\n', encoding='utf-8')
    add_runs(tmp_path, make_run('main', ANT, 0, 0.8, environment_steps=30_000),
             make_run('main', ANT, 1, 0.9, environment_steps=40_000),
             make_run('no-alignment', ANT, 0, 0.6, environment_steps=20_000, episodes_per_task=20))
    return tmp_path


def tables(page):
    """Make the tables and return (front page, results page)."""
    code, _, error = script(make_tables, '--root', page)
    assert code == 0, error
    return tuple((page / name).read_text(encoding='utf-8') for name in ('README.md', make_tables.DETAILS))


# ------------------------------------------------------------------------------------------------ runs.csv
def test_runs_csv_is_complete_and_consistent():
    rows = read_rows(RUNS)
    keys = [row.key for row in rows]
    assert keys == sorted(set(keys)), 'sorted, each run once'
    counts = collections.Counter(row.experiment.split('-')[0] for row in rows)
    least = {'main': 58, 'steps': 36, 'lost': 36, 'parts': 48, 'few': 9, 'true': 4, 'expert': 8}
    assert not [name for name, count in least.items() if counts[name] < count], counts
    for row in rows:
        tasks = [getattr(row, f'task{k}') for k in range(1, 6)]
        assert {0 <= task <= 1 for task in tasks} == {True}, row.key
        assert np.mean(tasks) == pytest.approx(row.success, abs=1e-4), row.key
        assert re.fullmatch('[0-9a-f]{7}', row.commit), row.key


def test_results_hold_no_paths_of_a_machine():
    for path in (ROOT / 'results').iterdir():
        text = path.read_text(encoding='utf-8')
        assert not re.findall(r'(?<![\w.])/(?:root|home|tmp|Users|work|mnt)/|[A-Z]:\\', text), path.name
        if path.suffix == '.csv':
            assert '/' not in text, path.name


def test_runs_csv_has_present_names_of_flags():
    old = ('heading_products', 'hop', 'rest_noise', 'recovery_share', 'gentle_labels', 'acting_rate', 'memory',
           'online_share', 'remember_lost', 'save_dir', 'data_dir', 'seed')
    flags = {word for row in read_rows(RUNS) for word in row.flags.split() if word.startswith('--')}
    assert len(flags) > 15 and not flags & {f'--{name}' for name in old}


def test_runs_csv_is_read_as_written(tmp_path):
    path = tmp_path / 'runs.csv'
    rows = [make_run('main', ANT, 0, 0.3333, online_flags='--progress_steps 5'), make_run('b', LARGE, 1, 0.5)]
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_fractions_are_written_with_4_digits(tmp_path):
    path = tmp_path / 'runs.csv'
    write_rows(path, [make_run('main', ANT, 0, 1 / 3), make_run('main', ANT, 1, 0.1 + 0.7)])
    assert [row.success for row in read_rows(path)] == [0.3333, 0.8]
    for name in ('runs.csv', 'baselines.csv'):
        assert not re.findall(r'\.\d{5,}', (ROOT / 'results' / name).read_text(encoding='utf-8')), name


def test_damaged_csv_is_refused_in_one_line(page):
    path = page / 'results' / 'runs.csv'
    lines = path.read_text().splitlines()
    for damaged, words in (
        ([*lines, 'main,x,1'], f'{path}, line 5'),
        (['a,b', *lines[1:]], f'{path}: its columns'),
    ):
        path.write_text('\n'.join(damaged) + '\n')
        code, _, error = script(make_tables, '--root', page)
        assert code == 2 and error.count('\n') == 1 and words in error


# ------------------------------------------------------------------------------------------------ add_result
@pytest.fixture
def folders(tmp_path):
    """Return the folders of a finished run: offline, simulator labels, online."""
    online_flags = {'dataset': ANT, 'seed': 3, 'initial_updates': 1000, 'update_ratio': 0.5,
                    'random_steps': 2000}
    given = ('--max_steps 4000 --progress_steps 5 --actions_path /x/labels/actions.npz --no-slow_goals '
             '--save-dir=/x')
    evaluation = {f'evaluation/task{k}_success': 0.8 for k in range(1, 6)} | {
        'evaluation/overall_success': 0.8, 'seed': 12345, 'episodes_per_task': 20, 'stuck_noise': 1.0,
        'checkpoint': 'a.pth', 'comparison': {'checkpoint': 'a.pth', 'overall': {'difference': 0.5}}}
    files = {
        'offline': ('offline_trainer.py --seed 3 --expectile 0.8', {}, 'train.csv',
                    'step,time\n100,1.0\n500,2.0\n'),
        'labels': ('scripts/label_with_simulator.py --stages 2 --save_dir /x', {}, 'labels.csv',
                   'step,time\n400000,1.0\n800000,2.0\n'),
        'online': (f'online_trainer.py {given}', online_flags, 'online.csv',
                   'step,time,labeler/r2\n2000,1.0,0.5\n4000,2.0,0.87654\n'),
    }
    for name, (argv, flags, csv, text) in files.items():
        (tmp_path / name).mkdir()
        config = {'argv': argv.split(), 'flags': flags, 'git_commit': 'c021413' + 33 * '0'}
        (tmp_path / name / 'config.json').write_text(json.dumps(config))
        (tmp_path / name / csv).write_text(text)
    (tmp_path / 'online' / 'evaluation.json').write_text(json.dumps(evaluation))
    return [tmp_path / name for name in files]


def test_add_result_adds_or_replaces_a_row(folders, tmp_path):
    path = tmp_path / 'results' / 'runs.csv'
    code, out, error = script(add_result, '--csv', path, 'main', *folders)
    assert code == 0 and f'main, {ANT}, seed 3: 80.0 % of 100 episodes' in out and 'added to' in out, error
    row, = read_rows(path)
    assert row == make_run(
        'main', ANT, 3, 0.8, commit='c021413', offline_flags='--expectile 0.8', simulator_flags='--stages 2',
        online_flags='--progress_steps 5 --actions_path actions.npz --no-slow_goals',
        evaluation_flags='--stuck_noise 1', offline_updates=500, online_updates=2000, simulator_steps=800_000,
        environment_steps=804_000, labels_r2=0.8765, episodes_per_task=20, success_without_plan=0.3)

    # the same run again replaces its row, another experiment has a row of its own
    assert 'replaced in' in script(add_result, '--csv', path, 'main', *folders)[1]
    assert script(add_result, '--csv', path, 'fewer', folders[0], folders[2])[0] == 0
    fewer, main = read_rows(path)
    assert main == row and fewer.environment_steps == 4000 and fewer.simulator_flags == ''


def give_online_flags(folders, words):
    """Replace the command line of the online run."""
    path = folders[-1] / 'config.json'
    config = json.loads(path.read_text()) | {'argv': ['online_trainer.py', *words]}
    path.write_text(json.dumps(config))


def test_add_result_takes_the_evaluation_with_the_most_episodes(folders, tmp_path):
    """A look at a few episodes does not count, nor do episodes of best_model.pth; of equal ones the newest does."""
    online = folders[-1]
    metrics = json.loads((online / 'evaluation.json').read_text())
    for name, time, changes in (
            ('look', 40, {'episodes_per_task': 1, 'evaluation/overall_success': 0.1}),
            ('best', 50, {'episodes_per_task': 99, 'checkpoint': 'x/best_model.pth'}),
            ('older', 10, {'evaluation/overall_success': 0.2}),
            ('newer', 30, {'evaluation/overall_success': 0.3, 'comparison': None})):
        path = online / f'evaluation_{name}.json'
        path.write_text(json.dumps(metrics | changes))
        os.utime(path, (time, time))
    os.utime(online / 'evaluation.json', (20, 20))
    code, out, error = script(add_result, '--csv', tmp_path / 'runs.csv', 'main', *folders)
    assert code == 0 and str(online / 'evaluation_newer.json') in out, error
    row, = read_rows(tmp_path / 'runs.csv')
    assert row.success == 0.3 and row.episodes_per_task == 20


def test_add_result_expands_files_of_flags(folders, tmp_path):
    path = tmp_path / 'runs.csv'
    give_online_flags(folders, ['@configs/puzzle.args', '--seed', '3', '--progress_steps', '5'])
    assert script(add_result, '--csv', path, 'main', *folders)[0] == 0
    row, = read_rows(path)
    main, = {run.online_flags for run in read_rows(RUNS) if run.key[:2] == ('main', 'puzzle-3x3-play-v0')}
    assert row.online_flags == f'{main} --progress_steps 5', 'without --max_steps, which is a budget'

    give_online_flags(folders, ['@configs/nothing.args'])
    code, _, error = script(add_result, '--csv', path, 'main', *folders)
    assert code == 2 and error.count('\n') == 1 and 'nothing.args: no such file of flags' in error


def test_add_result_reads_the_evaluation_of_an_expert(tmp_path):
    metrics = {f'evaluation/task{k}_success': 0.9 for k in range(1, 6)} | {
        'evaluation/overall_success': 0.9, 'seed': 1, 'episodes_per_task': 60, 'noise': 0.2, 'dataset': ANT}
    (tmp_path / 'evaluation.json').write_text(json.dumps(metrics))
    path = tmp_path / 'runs.csv'
    assert script(add_result, '--csv', path, 'expert-noise-0.2', tmp_path)[0] == 0
    row, = read_rows(path)
    assert row.key == ('expert-noise-0.2', ANT, 0) and row.success == 0.9 and row.environment_steps is None


def spoil(path, text):
    return lambda folders: (folders[-1] / path).write_text(text)


@pytest.mark.parametrize('change, words', [
    (lambda folders: (folders[-1] / 'evaluation.json').unlink(), 'holds no evaluation*.json; run python evaluate.py'),
    (lambda folders: (folders[-1] / 'online.csv').unlink(), 'holds no online.csv'),
    (lambda folders: (folders[0] / 'config.json').unlink(), 'config.json does not exist'),
    (lambda folders: folders.pop(0), 'no offline run among them'),
    (spoil('evaluation.json', '{'), 'evaluation.json is damaged'),
    (spoil('evaluation.json', '{"seed": 1}'), 'evaluation.json lacks episodes_per_task'),
    (spoil('config.json', '{"argv": ["x.py"]}'), 'config.json: not of offline_trainer'),
    (spoil('config.json', '{"argv": ["online_trainer.py"]}'), 'config.json lacks flags'),
])
def test_add_result_refuses_an_unfinished_run_in_one_line(folders, tmp_path, change, words):
    change(folders)
    code, _, error = script(add_result, '--csv', tmp_path / 'runs.csv', 'main', *folders)
    assert code == 2 and error.count('\n') == 1 and words in error, error
    assert not (tmp_path / 'runs.csv').exists()


# ------------------------------------------------------------------------------------------------ tables
def test_tables_of_the_readmes_are_up_to_date():
    code, _, error = script(make_tables, '--check')
    assert code == 0, error


def test_make_tables_reads_the_csv(page):
    assert script(make_tables, '--root', page, '--check')[0] == 1, 'stale tables'
    text, details = tables(page)
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    assert f'\n| {NAME} | **85.0 ± 7.1** | 2 | 96 ± 1 | 97.3 ± 1.2 [' in text
    caption = ('**Ant and point mazes**: 30,000–40,000 environment steps; '
               'offline + online updates 2,000 + 14,000; 5 tasks × 50 episodes per seed; all other flags '
               'at their defaults.')
    assert caption in text
    line = f'| `no-alignment` | {NAME} | 60.0 | 80.0 | -20.0 | 1 | 20,000 | 100 |'
    assert line in details, 'seed 0 is paired with seed 0 of main, not with the mean of its seeds'
    assert script(make_tables, '--root', page, '--check')[0] == 0

    add_runs(page, make_run('main', ANT, 1, 0.5))
    code, _, error = script(make_tables, '--root', page, '--check')
    assert code == 1 and 'README.md' in error, 'a changed success'


def test_datasets_of_one_maze_share_their_demonstrator(page):
    runs = [make_run('expert-noise-0.2', name, 0, 0.9, episodes_per_task=60)
            for name in (ANT, ANT.replace('navigate', 'stitch'), LARGE)]
    add_runs(page, *runs, make_run('expert-noise-0.2-steady', ANT, 0, 0.95, episodes_per_task=60))
    _, details = tables(page)
    assert details.count('| `antmaze-medium` | `ant_expert.npz` | 0.2 | 90.0 | 300 |') == 1
    assert details.count('| `antmaze-medium` | `steady_ant_expert.npz` | 0.2 | 95.0 | 300 |') == 1
    assert details.count('| `antmaze-large` | `ant_expert.npz` | 0.2 | 90.0 | 300 |') == 1


def write_hiql(page, *rows):
    """Write evaluations (updates, steps of the labels, success) of HIQL on a GPU."""
    lines = [Baseline('HIQL', ANT, 'H200', 1024, 512, updates, steps, 50, *5 * [success], success)
             for updates, steps, success in rows]
    write_rows(page / 'results' / 'baselines.csv', lines, Baseline)


def test_methods_on_the_same_data_are_compared(page):
    add_runs(page, make_run('expert-noise-0.2', ANT, 0, 0.95), make_run('true-actions', ANT, 0, 0.9),
             make_run('true-actions', ANT, 7, 0.1))  # `main` has no such seed
    write_hiql(page, (1, 0, 0.2), (2, 0, 0.7), (2, 500, 0.6))
    _, details = tables(page)
    assert f'| {NAME} | 95.0 | 70.0 (1) | 90.0 (1) | 80.0 (1) |' in details, 'HIQL after most updates'


def test_front_page_has_a_table_for_each_family(page):
    """Environment steps are a column if they differ within the family."""
    add_runs(page, make_run('main', 'puzzle-3x3-play-v0', 0, 0.5, environment_steps=9_994),
             make_run('main', 'scene-play-v0', 0, 0.6, environment_steps=19_996, episodes_per_task=20),
             make_run('main', 'humanoidmaze-medium-stitch-v0', 0, 0.7, environment_steps=6_379_906))
    text, _ = tables(page)
    captions = [line.split('; ')[0] for line in text.splitlines() if line.startswith('**')]
    assert captions == ['**Ant and point mazes**: 30,000–40,000 environment steps',
                        '**Humanoid mazes**: 6,400,000 environment steps',
                        '**Manipulation**: offline + online updates 2,000 + 14,000']
    assert '| `puzzle-3x3-play` | **50.0** | 1 | 10,000 | 12 |' in text
    assert '| `scene-play` | **60.0** | 1 | 20,000 | 38 |' in text
    assert '; 5 tasks × 50 episodes per seed (scene: 20); ' in text
    assert '| `humanoidmaze-medium-stitch` | **70.0** | 1 | 88 ± 2 |' in text


def test_robots_stay_together_and_groups_are_named_by_robot():
    mains = dict.fromkeys(['antmaze-c-v0', 'pointmaze-a-v0', 'antmaze-b-v0', 'antmaze-a-v0'])
    published = dict.fromkeys(['antmaze-a-v0', 'pointmaze-a-v0', 'antmaze-b-v0', 'antmaze-d-v0'])
    names = make_tables.sort_datasets(mains, published)
    assert names == ['antmaze-a-v0', 'antmaze-b-v0', 'antmaze-c-v0', 'pointmaze-a-v0']
    assert make_tables.names_text(names[:3], names) == 'antmaze'
    assert make_tables.names_text(names[2:], names) == '`antmaze-c`, pointmaze'


def test_flags_other_than_the_defaults_are_named(page):
    flags = dict(offline_flags='--no-slow_goals --expectile=0.8', online_flags='--progress_steps 5')
    add_runs(page, make_run('main', LARGE, 7, 0.5, **flags), make_run('main', ANT, 1, 0.9, **flags),
             make_run('main', STITCH, 7, 0.5, online_flags='--waypoint_steps 60',
                      evaluation_flags='--stuck_noise 1'))
    text, _ = tables(page)
    line, = (line for line in text.splitlines() if line.startswith('**Ant and point mazes**'))
    assert line.endswith('; flags the defaults (`antmaze-medium-navigate`), '
                         '`--no-slow_goals --expectile=0.8 --progress_steps 5` (`antmaze-medium-navigate`, '
                         '`antmaze-large-navigate`), `--waypoint_steps 60`, evaluated with `--stuck_noise 1` '
                         '(`antmaze-medium-stitch`).')


def test_flags_of_a_file_are_named_by_the_file(page):
    words = [word for word in (ROOT / 'configs' / 'puzzle.args').read_text().splitlines()
             if word.startswith('--') and not word.startswith('--max_steps')]
    add_runs(page, make_run('main', 'puzzle-3x3-play-v0', 0, 0.5, online_flags=' '.join(words)),
             make_run('main', 'puzzle-4x4-play-v0', 0, 0.5, online_flags=' '.join([*words, '--seeds 1'])),
             make_run('main', 'scene-play-v0', 0, 0.5, online_flags=' '.join(words[1:])))
    text, _ = tables(page)
    flags = ('`@configs/puzzle.args` (`puzzle-3x3-play`), '
             '`@configs/puzzle.args --seeds 1` (`puzzle-4x4-play`), '
             f'`{" ".join(words[1:])}` (scene).')
    assert f'; flags {flags}' in text, 'a run without one of the flags of a file is not of this file'


def test_success_by_steps(page):
    """Datasets with runs of several budgets have a row and a line, with the same seeds of `main`."""
    assert 'success_by_steps' not in tables(page)[0]
    add_runs(page, *(make_run('main', ANT, seed, 0.5) for seed in (0, 1)),
             make_run('steps-2000', ANT, 0, 0.3), make_run('steps-2000', LARGE, 0, 0.3))
    text, details = tables(page)
    assert 'success_by_steps.png' in text
    assert '| success, % (seeds), after environment steps | 2,000 | 10,000 |' in details
    assert f'| {NAME} | 30.0 (1) | 50.0 (1) |' in details and 'large-navigate` | 30' not in details
    assert (page / 'assets' / 'success_by_steps.png').stat().st_size > 10_000

    write_hiql(page, (9, 2000, 0.4))
    assert '| the same, HIQL | 40.0 (1) | – |' in tables(page)[1]


def test_dropped_observations(page):
    """Encoders stand in one row, paired by seed with the Mamba, and in a picture."""
    successes = {(ANT, 'mamba'): (0.9, 0.8), (ANT, 'gru'): (0.1, 0.2), (ANT, 'mlp'): (0, 0),
                 (LARGE, 'mamba'): (0.7, 0.8), (LARGE, 'gru'): (0.3, 0.3), (LARGE, 'mlp'): (0, 0)}
    add_runs(page, *(make_run(f'lost-0.5-{encoder}', name, seed, success, environment_steps=8000)
                     for (name, encoder), values in successes.items() for seed, success in enumerate(values)))
    _, details = tables(page)
    assert 'All rows: MLP 0.0 ± 0.0; seeds 2; environment steps 8,000; episodes per seed 250.' in details
    assert f'| {NAME} | 50% | 85.0 ± 7.1 | 15.0 ± 7.1 | -70.0 ± 127 (-80, -60) |' in details
    assert 'lost-' not in details, 'they are no ablations'
    assert (page / 'assets' / 'success_by_losses.png').stat().st_size > 10_000


def test_any_robot(page):
    """Success before and after is a table and a picture with a row for each case."""
    tables(page)
    assert not (page / 'assets' / 'any_robot.png').exists()
    (page / make_tables.ANY_ROBOT).write_text(f'{make_tables.BEGIN.format(": any robot")}\n{make_tables.END}\n')
    path = page / 'results' / 'any_robot.csv'
    rows = [AnyRobotRun('robots', 'Reacher', version, seed, success, 50, 9997, 'abc')
            for version, seed, success in (('before', None, 0.02), ('after', 0, 0.9), ('after', 1, 1.0))]
    write_rows(path, rows, AnyRobotRun)
    tables(page)
    assert (page / 'assets' / 'any_robot.png').stat().st_size > 10_000
    lines = (page / make_tables.ANY_ROBOT).read_text().splitlines()
    assert '| Reacher | 2.0 | 95.0 ± 7.1 | 90, 100 | 0–1 | 10,000 | 50 |' in lines

    write_rows(path, [dataclasses.replace(rows[0], version='then')], AnyRobotRun)
    with pytest.raises(ValueError, match='version then of Reacher; it must be before or after'):
        make_tables.draw_any_robot(read_rows(path, AnyRobotRun), page / 'x.png')


def add_parts(page, dataset, experiments):
    """Add runs of {name: [(success, success without the plan), ...]}."""
    add_runs(page, *(make_run(name, dataset, seed, success, success_without_plan=without)
                     for name, successes in experiments.items()
                     for seed, (success, without) in enumerate(successes)))


def test_parts_are_paired_with_all_parts(page):
    add_parts(page, ANT, {'parts-all': [(0.9, 0.4), (0.8, 0.5)], 'parts-no-critic': [(0.9, 0.3), (0.9, 0.7)]})
    shares = {'rows': [{'shares': {}}, {'shares': {'Q': 0.159}}]}
    (page / 'results' / 'parts.json').write_text(json.dumps(shares))
    _, details = tables(page)
    assert f'All rows: data {NAME}.' in details
    assert '| none | – | 85.0 ± 7.1 | – | 45.0 ± 7.1 | – |' in details
    cells = '90.0 ± 0.0 | +5.0 ± 64 (+0, +10) | 50.0 ± 28.3 | +5.0 ± 191 |'
    assert f'| no Q | 16% | {cells}' in details, 'intervals: 12.7 times the standard error of two'
    assert 'parts-' not in details, 'they are no ablations'

    add_parts(page, STITCH, {'parts-all': [(0.5, 0.5)], 'parts-no-critic': [(0.6, 0.5)],
                             'parts-mlp': [(0.6, 0.5)]})
    _, details = tables(page)
    assert '| no Q | 16% | all 2 | 80.0 ± 17.3 | +6.7 ± 14 (+0, +10, +10) |' in details
    assert '| MLP instead of Mamba | – | `antmaze-medium-stitch` |' in details, 'one dataset only'


def test_exploration_with_few_steps(page):
    """Explorers are paired by seed with random actions."""
    successes = {'few-random': [0.5, 0.6], 'few-own': [0.6, 0.8], 'few-goal-biased': [0.4]}
    add_runs(page, *(make_run(name, ANT, seed, success) for name, values in successes.items()
                     for seed, success in enumerate(values)))
    _, details = tables(page)
    assert f'All rows: data {NAME}; environment steps 10,000; episodes per seed 250.' in details
    assert '| random actions | 55.0 ± 7.1 | – | 2 |' in details
    assert '| the agent, ε = 0 | 70.0 ± 14.1 | +15.0 ± 64 (+10, +20) | 2 |' in details
    assert '| the agent, goal-biased | 40.0 | -10.0 (-10) | 1 |' in details
    assert 'few-' not in details, 'they are no ablations'


def test_differences_in_tables_have_no_negative_zero():
    pairs = [(make_run('a', ANT, seed, 0.5), make_run('main', ANT, seed, other))
             for seed, other in enumerate((0.504, 0.4965))]
    assert make_tables.difference_text(pairs).startswith('+0.0 ± ')
    assert make_tables.difference_text(pairs).endswith('(+0, +0)')


def test_plot_budgets_draws_the_other_method_dashed(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, 'save', lambda figure, path: drawn.append(figure.axes[0].lines))
    runs = {1000: [0.2], 5000: [0.6, 0.8]}
    for others in ({}, {'b': {1000: [0.4]}}):
        figures.plot_budgets({'a': runs, 'b': runs}, 'picture.png', 'steps', 'success', 'title',
                             beside=('HIQL', others))
    without, lines = drawn
    curve, = (line for line in lines if line.get_label() == 'b')
    other, = (line for line in lines if line.get_label() == 'b, HIQL')
    assert [*other.get_ydata()] == [40.0] and other.get_color() == curve.get_color()
    assert other.get_marker() == curve.get_marker() and other.get_linestyle() == '--'
    assert len(lines) == len(without) + 1
    assert [*curve.get_ydata()] == pytest.approx([20, 70]), 'the mean of two runs'
    dots = [[*line.get_ydata()] for line in lines if line.get_marker() == '.' and len(line.get_ydata())]
    assert dots == [pytest.approx([60, 80])] * 2, 'a dot for each of several runs'


def test_readme_without_markers_is_refused(page):
    (page / 'README.md').write_text('no markers')
    code, _, error = script(make_tables, '--root', page)
    assert code == 2 and 'README.md needs one line' in error


def test_published_results_are_of_datasets_of_ogbench():
    from ogbench_utils import DATASETS

    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    assert len(published) > 10 and set(published) - {'about'} <= set(DATASETS)


# ------------------------------------------------------------------------------------------------ curves
def write_curve(folder, successes):
    """Write the CSV of a run with evaluations `successes` at steps 10,000, 20,000, ..."""
    folder.mkdir(parents=True)
    rows = [f'{10_000 * i},1.0,{value}' for i, value in enumerate(successes, 1)]
    (folder / 'online.csv').write_text('\n'.join(['step,time,evaluation/overall_success', *rows]) + '\n')


@pytest.fixture
def runs(tmp_path):
    """Return a folder with runs of two experiments with several evaluations."""
    write_curve(tmp_path / 'main' / ANT / 'seed0', [0.2, 0.5, 0.8])
    write_curve(tmp_path / 'main' / ANT / 'seed1', [0.2, 0.6, 0.7, 0.9])
    write_curve(tmp_path / 'other' / ANT / 'seed0', [0.4, 0.6])
    return tmp_path


def test_on_common_steps_interpolates_within_all_runs():
    steps, values = on_common_steps([((0, 10), (0.0, 1.0)), ((5, 25), (0.0, 1.0))], points=3)
    np.testing.assert_allclose(steps, [5, 7.5, 10])
    np.testing.assert_allclose(values, [[0.5, 0.75, 1.0], [0.0, 0.125, 0.25]])
    assert len(on_common_steps([((0, 1), (0, 1)), ((2, 3), (0, 1))])[0]) == 0
    assert last_three_mean([9, 1, 2, 3]) == 2 and last_three_mean([4]) == 4


def test_plot_runs_groups_runs_by_label_or_folder(runs):
    labelled = f'a = b={runs}/main/{ANT}/seed*'
    code, out, error = script(plot_runs, labelled, runs / '*' / ANT / 'seed*', '--output', runs / 'x.png')
    assert code == 0, error
    line, = (line for line in out.splitlines() if line.startswith('a = b '))
    assert line.split() == ['a', '=', 'b', '2', '40,000', '61.67', '+-', '16.5', '61.67', '50', 'to', '73.33']
    line, = (line for line in out.splitlines() if line.startswith(ANT))
    assert line.split()[1] == '3', 'without a label, runs are grouped by the folder above'
    assert (runs / 'x.png').stat().st_size > 15_000


def test_plot_runs_finds_paths_with_brackets_and_equals_signs(runs):
    for name in ('[a] 1', 'lr=3'):
        write_curve(runs / name / 'seed0', [0.2, 0.5])
        write_curve(runs / name / 'seed1', [0.2, 0.5])
    for name in ('[a] 1', 'lr=3'):
        found = {
            'seed0': plot_runs.find_runs([f'{runs}/{name}/seed0']),
            'seed*': plot_runs.find_runs([f'{runs}/{name}/seed*']),
            'seed[01]': plot_runs.find_runs([f'{runs}/lr=3/seed[01]']),
        }
        assert [len(groups.popitem()[1]) for groups in found.values()] == [1, 2, 2]
        assert list(plot_runs.find_runs([f'k = 1={runs}/{name}/seed*'])) == ['k = 1']
        assert list(plot_runs.find_runs([f'{runs}/{name}/seed*'])) == [name]


def test_plot_runs_checks_the_format_before_it_reads(runs):
    code, out, error = script(plot_runs, runs / 'main' / ANT / 'seed*', '--output', runs / 'x.doc')
    assert code == 2 and 'unknown figure format .doc' in error and out == ''
    code, out, error = script(plot_runs, runs / 'main' / ANT / 'seed*', '--output', runs / 'x.PDF')
    assert code == 0 and (runs / 'x.PDF').read_bytes().startswith(b'%PDF')


def test_plot_runs_names_missing_files_and_metrics(runs):
    code, _, error = script(plot_runs, runs / 'nothing*')
    assert code == 2 and error.count('\n') == 1 and 'nothing*' in error
    code, _, error = script(plot_runs, runs / 'main' / ANT / 'seed0', '--metric', 'training/loss')
    assert code == 2 and 'has no training/loss; it has evaluation/overall_success' in error
    assert plot_runs.find_runs([str(runs / 'main' / ANT / 'seed0/online.csv')])
