"""Numbers on a page: tables of the READMEs, and comparison of runs from CSVs alone."""

import json
import subprocess
import sys
from pathlib import Path

import make_tables
import numpy as np
import plot_runs
import pytest

from support import figures
from support.stats import last_three_mean, on_common_steps

ROOT = Path(__file__).resolve().parent.parent
ANT, LARGE = 'antmaze-medium-navigate-v0', 'antmaze-large-navigate-v0'
STITCH = 'antmaze-medium-stitch-v0'
DATA = '`antmaze-medium-navigate` (our expert)'


def script(name, *flags, cwd=None):
    done = subprocess.run([sys.executable, str(next(ROOT.glob(f'scripts/**/{name}.py'))), *map(str, flags)], cwd=cwd,
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def write_run(folder, successes, episodes=50, csv=True):
    """A finished run whose evaluations gave `successes`, at steps 10,000, 20,000, ..."""
    folder.mkdir(parents=True)
    metrics = {'evaluation/overall_success': successes[-1], 'episodes_per_task': episodes}
    (folder / 'evaluation.json').write_text(json.dumps(metrics))
    if csv:
        rows = [f'{10_000 * i},1.0,{value}' for i, value in enumerate(successes, 1)]
        (folder / 'online.csv').write_text('\n'.join(['step,time,evaluation/overall_success', *rows]) + '\n')
        (folder / 'offline.csv').write_text('step,time\n500,1.0\n2000,2.0\n')


@pytest.fixture
def page(tmp_path):
    """READMEs with markers and old tables, and results of three runs."""
    (tmp_path / 'results' / 'before').mkdir(parents=True)
    for name in (*make_tables.WORDS, make_tables.DETAILS, make_tables.BEFORE):
        (tmp_path / name).write_text(f'before\n{make_tables.BEGIN}\nold\n{make_tables.END}\nafter\n', encoding='utf-8')
    write_run(tmp_path / 'results' / 'main' / ANT / 'seed0', [0.2, 0.5, 0.8])
    write_run(tmp_path / 'results' / 'main' / ANT / 'seed1', [0.2, 0.6, 0.7, 0.9])
    write_run(tmp_path / 'results' / 'no-alignment' / ANT / 'seed0', [0.4, 0.6], episodes=20)
    (tmp_path / 'results' / 'main' / LARGE / 'seed0').mkdir(parents=True)  # not finished: no row
    return tmp_path


def test_the_tables_in_the_readmes_are_up_to_date():
    code, _, error = script('make_tables', '--check')
    assert code == 0, error


def test_tables_come_from_the_files(page):
    assert script('make_tables', '--root', page, '--check')[0] == 1, 'the old tables'
    code, out, error = script('make_tables', '--root', page)
    assert code == 0 and 'README.md, README.ko.md, results/README.md' in out, error
    text = (page / 'README.md').read_text(encoding='utf-8')
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    row, = (line for line in text.splitlines() if line.startswith(f'| {DATA}'))
    assert row.startswith(f'| {DATA} | **85.0 ± 7.1** | 30,000–40,000 | 2,000 | 2 × 5 × 50 | 96 ± 1 | 97.3 ± 1.2 [')
    details = (page / 'results' / 'README.md').read_text(encoding='utf-8')
    line = f'| `no-alignment` | – | {DATA} | 60.0 | 80.0 (`main`) | -20.0 | 1 | 20,000 | 100 |'
    assert line in details, 'seed 0 beside seed 0 of main, not beside the mean of its seeds'
    assert LARGE not in text + details
    assert script('make_tables', '--root', page, '--check')[0] == 0
    (page / 'results' / 'main' / ANT / 'seed1' / 'evaluation.json').unlink()
    code, _, error = script('make_tables', '--root', page, '--check')
    assert code == 1 and 'README.md' in error, 'a number that went away'


def test_a_run_without_curves_has_a_row_and_no_curve(page):
    write_run(page / 'results' / 'main' / LARGE / 'seed0b', [0.5], csv=False)
    assert script('make_tables', '--root', page)[0] == 0
    text = (page / 'README.md').read_text(encoding='utf-8')
    assert f'| {DATA.replace("medium", "large")} | **50.0** | – | – | 1 × 5 × 50 | 91 ± 2 |' in text


def test_updates_of_both_halves_are_told(page):
    for seed, updates in (('seed0', 1000), ('seed1', 3000)):
        flags = {'random_steps': 10_000, 'initial_updates': updates, 'update_ratio': 0.2}
        path = page / 'results' / 'main' / ANT / seed / 'config_online.json'
        path.write_text(json.dumps({'argv': ['online_trainer.py'], 'flags': flags}))
    assert script('make_tables', '--root', page)[0] == 0
    assert '| 2,000 + 7,000 |' in (page / 'README.md').read_text(), '1,000 + 4,000 and 3,000 + 6,000'


def test_runs_of_former_versions_have_a_page_of_their_own(page):
    """Beside what was `main` at their time; those without a map beside `no-plan`."""
    before = page / 'results' / 'before'
    write_run(before / 'no-plan' / ANT / 'seed0', [0.7])
    write_run(before / 'older-weights' / ANT / 'seed0', [0.5])
    for experiment, flags in (('no-infonce', {'lr': 1}), ('k-10', {'plan': True})):
        write_run(before / experiment / ANT / 'seed0', [0.4, 0.6])
        content = {'argv': [''], 'flags': flags | {'random_steps': 0, 'initial_updates': 1, 'update_ratio': 0}}
        (before / experiment / ANT / 'seed0' / 'config_online.json').write_text(json.dumps(content))

    assert script('make_tables', '--root', page)[0] == 0
    rows = (before / 'README.md').read_text()
    assert f'| `no-infonce` | – | {DATA} | 60.0 | 70.0 (`no-plan`) | -10.0 | 1 |' in rows
    assert f'| `k-10` | – | {DATA} | 60.0 | 50.0 (`older-weights`) | +10.0 | 1 |' in rows
    assert f'| `older-weights` | – | {DATA} | 50.0 | – | – | ' in rows
    assert f'| {DATA}, `k-10` | 40 |' in rows and '50,000' not in rows, 'no evaluation at 50,000 steps'
    assert 'k-10' not in (page / 'results' / 'README.md').read_text()


def test_a_dataset_without_a_run_of_main_shows_what_was_main_before(page):
    for name in (ANT, LARGE):
        write_run(page / 'results' / 'before' / 'network-labels' / name / 'seed0', [0.7])
    assert script('make_tables', '--root', page)[0] == 0
    text = (page / 'README.md').read_text(encoding='utf-8')
    assert f'| {DATA} | **85.0 ± 7.1** |' in text
    assert f'| {DATA.replace("medium", "large")} | **70.0** | 10,000 |' in text


def test_one_measurement_of_a_demonstrator_is_shown_once(page):
    for name in (ANT, ANT.replace('navigate', 'stitch'), LARGE):
        write_run(page / 'results' / 'expert-noise-0.2' / name / 'seed0', [0.9], episodes=60, csv=False)
    write_run(page / 'results' / 'expert-noise-0.2-steady' / ANT / 'seed0', [0.95], episodes=60, csv=False)
    assert script('make_tables', '--root', page)[0] == 0
    details = (page / 'results' / 'README.md').read_text()
    assert details.count('| `antmaze-medium` | `ant_expert.npz` | 0.2 | 90.0 | 300 |') == 1
    assert details.count('| `antmaze-medium` | `steady_ant_expert.npz` | 0.2 | 95.0 | 300 |') == 1
    assert details.count('| `antmaze-large` | `ant_expert.npz` | 0.2 | 90.0 | 300 |') == 1


def write_hiql(page, *rows):
    """Evaluations (updates, steps of the labels, success) of HIQL."""
    path = page / 'results' / 'baselines' / 'hiql_gpu' / ANT / 'evaluations.jsonl'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(dict(zip(('updates', 'label_steps', 'overall'), row, strict=True))) + '\n'
                            for row in rows))


def test_what_labels_cost_stands_beside_the_demonstrator(page):
    for name, success in ('expert-noise-0.2', 0.95), ('true-actions', 0.9):
        write_run(page / 'results' / name / ANT / 'seed0', [success])
    write_run(page / 'results' / 'true-actions' / ANT / 'seed7', [0.1])  # `main` has no such seed
    write_hiql(page, (1, 0, 0.2), (2, 0, 0.7), (2, 500, 0.6))
    assert script('make_tables', '--root', page)[0] == 0
    for name in make_tables.WORDS:
        assert f'| {DATA} | 95.0 | 70.0 (1) | 90.0 (1) | 80.0 (1) |' in (page / name).read_text(encoding='utf-8')


def test_flags_that_are_not_the_defaults_are_told(page):
    def write(seed, name=ANT, experiment='main', **argv):
        for half, flags in argv.items():
            content = json.dumps({'argv': [f'{half}_trainer.py', *flags.split()]})
            (page / 'results' / experiment / name / seed / f'config_{half}.json').write_text(content)

    write_run(page / 'results' / 'main' / LARGE / 'seed7', [0.5])
    write('seed7', LARGE, online='--progress_steps 5', offline='--no-slow_goals --expectile=0.8')
    write('seed0', offline=f'--dataset {ANT} --seed 0', online='--max-steps 9 --resume')
    write('seed1', offline='--no-slow_goals --num_updates 9 --expectile=0.8', online='--save_dir x --progress_steps 5')
    noisy = page / 'results' / 'main' / STITCH / 'seed7'  # told when it was evaluated
    write_run(noisy, [0.5])
    write('seed7', STITCH, online='--waypoint_steps 60')
    metrics = json.loads((noisy / 'evaluation.json').read_text())
    (noisy / 'evaluation.json').write_text(json.dumps(metrics | {'stuck_noise': 1.0}))
    write('seed0', experiment='no-alignment', offline='--alignment_weight 0 --seed 0', online='--max_steps 5')
    assert script('make_tables', '--root', page)[0] == 0
    details = (page / 'results' / 'README.md').read_text()
    assert f'| `no-alignment` | `--alignment_weight 0` | {DATA} |' in details
    line, = (line for line in (page / 'README.md').read_text().splitlines() if line.startswith('All with the default'))
    flags = '`--no-slow_goals --expectile=0.8 --progress_steps 5`'
    assert line == (f'All with the default flags, except `antmaze-medium-navigate`, `antmaze-large-navigate`: {flags}; '
                    '`antmaze-medium-stitch`: `--waypoint_steps 60 --stuck_noise 1`.')


def test_tries_of_a_rehearsal_are_environment_steps_and_its_flags_are_told(page):
    folder = page / 'results' / 'main' / LARGE / 'seed7'
    write_run(folder, [0.5])
    (folder / 'labeling.csv').write_text('step,time,missed_mean\n400000,1.0,0.3\n800000,2.0,0.2\n')
    for half, flags in (('labeling', '--stages 2 --max_steps 800000 --save_dir x/labeling'),
                        ('online', '--max_steps 10000 --actions_path x/labeling/actions.npz')):
        (folder / f'config_{half}.json').write_text(json.dumps({'argv': ['script.py', *flags.split()]}))
    assert script('make_tables', '--root', page)[0] == 0
    text = (page / 'README.md').read_text(encoding='utf-8')
    row, = (line for line in text.splitlines() if line.startswith('| `antmaze-large-navigate`') and '**50.0**' in line)
    assert '| 810,000 |' in row
    assert '`antmaze-large-navigate`: `--stages 2 --actions_path actions.npz`.' in text


def test_success_by_steps(page):
    """Of datasets that have runs of several budgets, in the README and as a picture; with the same seeds of `main`."""
    assert script('make_tables', '--root', page)[0] == 0
    assert 'success_by_steps' not in (page / 'README.md').read_text()
    for path in (page / 'results' / 'main' / ANT).glob('*/online.csv'):
        path.write_text('step,time,evaluation/overall_success\n10000,1.0,0.5\n')
    write_run(page / 'results' / 'steps-2000' / ANT / 'seed0', [0.3], csv=False)
    write_run(page / 'results' / 'steps-2000' / LARGE / 'seed0', [0.3], csv=False)
    assert script('make_tables', '--root', page)[0] == 0
    text = (page / 'README.md').read_text()
    assert '| success, % (seeds), after environment steps | 2,000 | 10,000 |' in text
    assert f'| {DATA} | 30.0 (1) | 80.0 (1) |' in text and 'assets/success_by_steps.png' in text
    assert text.count(DATA.replace('medium', 'large')) == 0, 'nothing to compare the other dataset with'
    assert (page / 'assets' / 'success_by_steps.png').stat().st_size > 20_000

    write_hiql(page, (7, 0, 0.9), (7, 2000, 0.25))
    assert script('make_tables', '--root', page)[0] == 0
    text = (page / 'README.md').read_text()
    assert f'| {DATA} | 30.0 (1) | 80.0 (1) |\n| HIQL, labels of as many steps | 25.0 (1) | – |' in text


def write_seeds(page, runs):
    """runs: {experiment: [success of each seed]}."""
    for experiment, successes in runs.items():
        for seed, success in enumerate(successes):
            write_run(page / 'results' / experiment / ANT / f'seed{seed}', [success])


def test_success_by_losses(page):
    """What fills in lost readings, paired with the Mamba; a table of its own and a picture."""
    write_seeds(page, {'lost-0.5-mamba': [0.8, 0.7], 'lost-0.5-mlp': [0.5, 0.3], 'lost-0.8-gru': [0.2]})
    assert script('make_tables', '--root', page)[0] == 0
    rows = [line for line in (page / 'results' / 'README.md').read_text().splitlines() if line.startswith(f'| {DATA}')]
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows if 'seed' not in row]
    losses = [row[1:6] for row in cells if row[1].endswith('%')]
    assert losses == [
        ['50%', 'Mamba', '75.0 ± 7.1', '–', '2'],
        ['50%', 'MLP, no memory', '40.0 ± 14.1', '-35.0 ± 64 (-30, -40)', '2'],
        ['80%', 'GRU', '20.0', '–', '1'],
    ]
    assert 'lost-' not in (page / 'results' / 'README.md').read_text(), 'no ablations'
    assert (page / 'assets' / 'success_by_losses.png').stat().st_size > 20_000


def write_parts(page, dataset, runs):
    """runs: {experiment: [(success, without the map) of each seed]}."""
    for experiment, successes in runs.items():
        for seed, (success, without) in enumerate(successes):
            folder = page / 'results' / experiment / dataset / f'seed{seed}'
            write_run(folder, [success])
            metrics = json.loads((folder / 'evaluation.json').read_text())
            comparison = {'overall': {'difference': success - without}}
            (folder / 'evaluation.json').write_text(json.dumps(metrics | {'comparison': comparison}))


def test_what_each_part_is_worth(page):
    """With the map and without, paired by seed with all parts."""
    write_parts(page, ANT, {'parts-all': [(0.9, 0.4), (0.8, 0.5)], 'parts-no-critic': [(0.9, 0.3), (0.9, 0.7)]})
    shares = {'rows': [{'shares': {}}, {'shares': {'Q': 0.159}}]}
    (page / 'results' / 'parts.json').write_text(json.dumps(shares))
    assert script('make_tables', '--root', page)[0] == 0
    details = (page / 'results' / 'README.md').read_text()
    assert f'| nothing | – | {DATA} | 85.0 ± 7.1 | – | 45.0 ± 7.1 | – | 2 |' in details
    cells = f'{DATA} | 90.0 ± 0.0 | +5.0 ± 64 (+0, +10) | 50.0 ± 28.3 | +5.0 ± 191 (-10, +20) | 2 |'
    assert f'| no Q | 16% | {cells}' in details, 'intervals: 12.7 times the standard error of two'
    assert 'parts-' not in details, 'no ablations'
    assert 'these 2' not in details

    write_parts(page, STITCH, {'parts-all': [(0.5, 0.5)], 'parts-no-critic': [(0.6, 0.5)], 'parts-mlp': [(0.6, 0.5)]})
    assert script('make_tables', '--root', page)[0] == 0
    details = (page / 'results' / 'README.md').read_text()
    assert '| no Q | 16% | these 2 | 80.0 ± 17.3 | +6.7 ± 14 (+0, +10, +10) |' in details
    assert details.count('an MLP for the Mamba') == 1, 'of one dataset only'


def test_exploration_with_few_steps(page):
    """Who takes the later steps, paired by seed with random actions alone."""
    write_seeds(page, {'few-random': [0.5, 0.6], 'few-own': [0.6, 0.8], 'few-goal-biased': [0.4]})
    assert script('make_tables', '--root', page)[0] == 0
    details = (page / 'results' / 'README.md').read_text()
    assert f'| random actions | {DATA} | 55.0 ± 7.1 | – | 2 |' in details
    assert f'| the agent, ε = 0 | {DATA} | 70.0 ± 14.1 | +15.0 ± 64 (+10, +20) | 2 |' in details
    assert f'| the agent, goal-biased | {DATA} | 40.0 | -10.0 (-10) | 1 |' in details
    assert 'few-' not in details, 'no ablations'


def test_what_stands_beside_the_budgets_is_dashed_in_their_colours(monkeypatch):
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
    dots = [[*line.get_ydata()] for line in lines if line.get_marker() == '.']
    assert dots == [pytest.approx([60, 80])] * 2, 'a dot for each of several runs'


def test_a_readme_without_markers_is_refused(page):
    (page / 'README.md').write_text('no markers')
    code, _, error = script('make_tables', '--root', page)
    assert code == 2 and 'README.md needs one line' in error


def test_published_numbers_are_of_datasets_of_ogbench():
    from ogbench_utils import DATASETS
    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    assert len(published) > 10 and set(published) - {'about'} <= set(DATASETS)


def test_runs_are_compared_on_the_steps_that_all_have():
    steps, values = on_common_steps([((0, 10), (0.0, 1.0)), ((5, 25), (0.0, 1.0))], points=3)
    np.testing.assert_allclose(steps, [5, 7.5, 10])
    np.testing.assert_allclose(values, [[0.5, 0.75, 1.0], [0.0, 0.125, 0.25]])
    assert len(on_common_steps([((0, 1), (0, 1)), ((2, 3), (0, 1))])[0]) == 0
    assert last_three_mean([9, 1, 2, 3]) == 2 and last_three_mean([4]) == 4


def test_plot_runs(page):
    runs = page / 'results' / '*' / ANT / 'seed*'
    labelled = f'a = b={page}/results/main/{ANT}/seed*'
    code, out, error = script('plot_runs', labelled, runs, '--output', 'x.png', cwd=page)
    assert code == 0, error
    line, = (line for line in out.splitlines() if line.startswith('a = b '))
    assert line.split() == ['a', '=', 'b', '2', '40,000', '61.67', '+-', '16.5', '61.67', '50', 'to', '73.33']
    line, = (line for line in out.splitlines() if line.startswith(ANT))
    assert line.split()[1] == '3', 'without a label, runs are grouped by the folder above'
    assert (page / 'x.png').stat().st_size > 15_000


def test_plot_runs_says_what_is_missing(page):
    code, _, error = script('plot_runs', page / 'nothing*')
    assert code == 2 and error.count('\n') == 1 and 'nothing*' in error
    code, _, error = script('plot_runs', page / 'results' / 'main' / ANT / 'seed0', '--metric', 'training/loss')
    assert code == 2 and 'has no training/loss; it has evaluation/overall_success' in error
    assert plot_runs.find_runs([str(page / 'results/main' / ANT / 'seed0/offline.csv')])
