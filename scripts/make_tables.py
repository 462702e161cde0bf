"""Write the result tables of README.md and README.ko.md from the files under results/, so that they cannot drift.

    python scripts/make_tables.py            rewrite the tables and assets/success_curves.png
    python scripts/make_tables.py --check    change nothing; exit code 1 if the tables are not up to date

Reads results/<experiment>/<dataset>/seed<k>/: evaluation.json (needed for a row), offline.csv, online.csv, and the
flags in config_offline.json and config_online.json. `main` makes the first table, every other experiment a row of the
second; the third has the evaluations while training. What is missing is left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from plot_runs import read_metric  # noqa: E402

from support.figures import plot_bands  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.stats import mean_std  # noqa: E402

BEGIN, END = '<!-- made by scripts/make_tables.py -->', '<!-- end of what scripts/make_tables.py made -->'
METRIC = 'evaluation/overall_success'
MILESTONES = (10_000, 25_000, 50_000, 100_000, 250_000)
# what a run is called, where it lies, how long it is and how often it is looked at: no part of the method
BUDGET = {'dataset', 'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint', 'save_dir', 'resume', 'seed',
          'device', 'num_updates', 'num_epochs', 'max_steps', 'max_episodes', 'env_processes', 'log_interval',
          'val_interval', 'val_batches', 'eval_interval', 'eval_episodes', 'final_eval_episodes', 'maze_figures',
          'video', 'tensorboard', 'wandb', 'mamba_backend'}
WORDS = {
    'README.md': {
        'header': ('dataset', 'success, %', 'environment steps', 'updates offline', 'seeds × tasks × episodes',
                   'HIQL, %', 'best published, %'),
        'ablations': ('experiment', 'flags', 'dataset', 'success, %', 'minus `main`', 'environment steps',
                      'seeds × tasks × episodes'),
        'at': 'success, %, after so many environment steps',
        'flags': 'All with the default flags, except',
        'caption': 'Mean ± standard deviation over seeds of the last checkpoint, no action label offline. The last two '
                   'columns are references with all action labels, 1M updates and no environment steps; † another '
                   'evaluation than OGBench\'s, or not checked.',
        'curves': 'Success against environment steps, mean and 95 % interval over seeds'},
    'README.ko.md': {
        'header': ('데이터', '성공률, %', 'environment step', 'offline update', 'seed × task × episode', 'HIQL, %',
                   '발표된 최고, %'),
        'ablations': ('실험', 'flag', '데이터', '성공률, %', '`main`과의 차이', 'environment step',
                      'seed × task × episode'),
        'at': '이만큼의 environment step 뒤의 성공률, %',
        'flags': '모두 기본 flag이며, 예외는',
        'caption': '마지막 checkpoint의 성공률을 seed에 대해 평균 ± 표준편차로 나타냈으며, '
                   'offline action label은 쓰지 않았습니다. 마지막 두 열은 모든 action label과 update 1M회를 쓰고 '
                   'environment step은 쓰지 않은 참고 수치입니다. †는 평가 방식이 다르거나 확인하지 못한 것입니다.',
        'curves': 'Environment step에 따른 성공률, seed에 대한 평균과 95 % 구간'}}


def read_results(folder):
    """-> {(experiment, dataset): [run, ...]}, run = dict(success, episodes, online_steps, offline_steps, curve)."""
    results = {}
    for path in sorted(Path(folder).glob('*/*/seed*/evaluation.json')):
        metrics = json.loads(path.read_text(encoding='utf-8'))
        run = {'success': metrics[METRIC], 'episodes': metrics['episodes_per_task'], 'curve': None}
        for name in ('offline', 'online'):
            csv = path.with_name(f'{name}.csv')
            run[f'{name}_steps'] = int(read_csv(csv)[-1]['step']) if csv.is_file() else None
        if run['online_steps']:
            run['curve'] = read_metric(path.with_name('online.csv'), METRIC)
        run['flags'] = given_flags(path.parent)
        results.setdefault((path.parts[-4], path.parts[-3]), []).append(run)
    return results


def given_flags(folder):
    """-> the flags of the method that a run was given, as on its command lines; '' where no config is kept."""
    words, own = [], False
    for path in (folder / 'config_offline.json', folder / 'config_online.json'):
        argv = json.loads(path.read_text(encoding='utf-8'))['argv'][1:] if path.is_file() else []
        for word in argv:
            if word.startswith('--'):
                own = word[2:].split('=')[0].replace('-', '_') not in BUDGET
            words += [word] * own
    return ' '.join(words)


def numbers(runs):
    """-> cells (success, environment steps, offline updates, seeds x tasks x episodes) of some runs."""
    mean, std = mean_std([100 * run['success'] for run in runs])
    episodes = sorted({run['episodes'] for run in runs})
    return (f'{mean:.1f}' + (f' ± {std:.1f}' if len(runs) > 1 else ''), _range(run['online_steps'] for run in runs),
            _range(run['offline_steps'] for run in runs), f'{len(runs)} × 5 × {"–".join(map(str, episodes))}')


def curve_rows(results):
    """-> cells (name, success at each of `MILESTONES`), linear between evaluations; not for a single one."""
    rows = []
    for (experiment, name), runs in sorted(results.items(), key=lambda item: (item[0][0] != 'main', item[0])):
        curves = [run['curve'] for run in runs if run['curve'] and len(run['curve'][0]) > 1]
        if curves:
            label = f'`{name}`' if experiment == 'main' else f'`{name}`, `{experiment}`'
            rows.append((label, *(_at(curves, steps) for steps in MILESTONES)))
    return rows


def _at(curves, steps):
    # the last round ends a little before its budget, and the first evaluation comes a little after its interval
    values = [np.interp(steps, *curve) for curve in curves if curve[0][0] <= 1.05 * steps <= 1.1 * curve[0][-1]]
    return f'{100 * np.mean(values):.0f}' if len(values) == len(curves) else '–'


def _range(values):
    values = sorted(value for value in values if value is not None)
    if not values:
        return '–'
    return f'{values[0]:,}' if values[0] == values[-1] else f'{values[0]:,}–{values[-1]:,}'


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def make_block(results, words, published):
    """-> what stands between the markers of one README."""
    names = [name for name in published if ('main', name) in results]
    names += sorted(name for experiment, name in results if experiment == 'main' and name not in published)
    parts, rows = [], []
    for name in names:
        success, steps, updates, count = numbers(results['main', name])
        reference = published.get(name, {'HIQL': '–', 'best': '–', 'source': ''})
        best = f'{reference["best"]} {reference["source"]}'.strip()
        rows.append((f'`{name}`', f'**{success}**', steps, updates, count, reference['HIQL'], best))
    if rows:
        parts += [table(words['header'], rows), words['caption']]
        others = {}
        for name in names:
            for flags in sorted({run['flags'] for run in results['main', name]} - {''}):
                others.setdefault(flags, []).append(f'`{name}`')
        if others:
            listed = (f'{", ".join(datasets)}: `{flags}`' for flags, datasets in others.items())
            parts.append(f'{words["flags"]} {"; ".join(listed)}.')
        if any(run['curve'] for name in names for run in results['main', name]):
            picture = f'<img src="assets/success_curves.png" width="75%" alt="{words["curves"]}">'
            parts.append(f'<p align="center">{picture}</p>')
    rows = []
    for (experiment, name), runs in sorted(results.items()):
        if experiment != 'main':
            success, steps, _, count = numbers(runs)
            main = results.get(('main', name))
            less = '–' if not main else '{:+.1f}'.format(
                100 * (mean_std([run['success'] for run in runs])[0] - mean_std([run['success'] for run in main])[0]))
            flags = ', '.join(f'`{flags}`' for flags in sorted({run['flags'] for run in runs} - {''})) or '–'
            rows.append((f'`{experiment}`', flags, f'`{name}`', success, less, steps, count))
    if rows:
        parts.append(table(words['ablations'], rows))
    if rows := curve_rows(results):
        columns = zip((words['at'], *(f'{steps:,}' for steps in MILESTONES)), *rows, strict=True)
        header, *rows = zip(*(column for column in columns if set(column[1:]) != {'–'}), strict=True)
        parts.append(table(header, rows))
    return '\n\n'.join(parts)


def with_block(text, block, name):
    """A README's text with `block` between its markers. Raises ValueError unless each marker is there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f'{name} needs one line {BEGIN} and one line {END}')
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}'


def draw(results, path, published):
    """Success against environment steps, one colour per dataset of `main`; beside it HIQL's."""
    groups = {name.removesuffix('-v0'): curves for (experiment, name), runs in results.items()
              if experiment == 'main' and (curves := [run['curve'] for run in runs if run['curve']])}
    if groups:
        hiql = {name.removesuffix('-v0'): float(row['HIQL'].split()[0]) / 100 for name, row in published.items()}
        plot_bands(groups, path, 'success, %', 'OPSO, no action labels offline',
                   references=('HIQL: all labels,\n1M updates, no steps', hiql))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only say whether the tables are up to date')
    parser.add_argument('--root', default=str(ROOT), help='folder with README.md, README.ko.md and results/')
    flags = parser.parse_args()
    root, stale = Path(flags.root), []
    results = read_results(root / 'results')
    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    published.pop('about')
    for name, words in WORDS.items():
        text = (root / name).read_text(encoding='utf-8')
        new = with_block(text, make_block(results, words, published), name)
        if new != text:
            stale.append(name)
            if not flags.check:
                write_atomic(root / name, lambda file, new=new: file.write(new.encode()))
    if flags.check:
        if stale:
            sys.exit(f'not up to date: {", ".join(stale)}; run python scripts/make_tables.py')
        return
    draw(results, root / 'assets' / 'success_curves.png', published)
    print(f'{len(results)} experiments and datasets; rewritten: {", ".join(stale) or "nothing, all was up to date"}')


if __name__ == '__main__':
    run_main(main)
