"""Write the result tables from the files under results/, so that they cannot drift: the main one into README.md and
README.ko.md, the others into results/README.md.

    python scripts/make_tables.py            rewrite the tables and assets/success_curves.png
    python scripts/make_tables.py --check    change nothing; exit code 1 if the tables are not up to date

Reads results/<experiment>/<dataset>/seed<k>/: evaluation.json (needed for a row), offline.csv, online.csv, and the
flags in config_offline.json and config_online.json. `main` makes the main table, `expert-noise-*` the one of the
demonstrator, every other experiment a row of the ablations, paired with `main` by seed; the last table has the
evaluations while training. What is missing is left out. The data are of our own expert, which every name says.
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
MILESTONES = (10_000, 50_000, 100_000, 250_000)
NEAR = 0.1  # an evaluation this share of a milestone away from it stands for it; nothing is interpolated
SUFFIX = ' (our expert)'  # not the official files, whatever their names
# what a run is called, where it lies, how long it is and how often it is looked at: no part of the method
BUDGET = {'dataset', 'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint', 'save_dir', 'resume', 'seed',
          'device', 'num_updates', 'num_epochs', 'max_steps', 'max_episodes', 'env_processes', 'log_interval',
          'val_interval', 'val_batches', 'eval_interval', 'eval_episodes', 'final_eval_episodes', 'maze_figures',
          'video', 'tensorboard', 'wandb', 'mamba_backend'}
WORDS = {
    'README.md': {
        'header': ('data', 'success, %', 'environment steps', 'updates offline + online', 'seeds × tasks × episodes',
                   'HIQL, %', 'best published, %'),
        'flags': 'All with the default flags, except',
        'caption': 'Mean ± standard deviation over seeds of the last checkpoint, no action label offline. The last two '
                   'columns are references on the official data, with all action labels, 1M updates and no '
                   'environment steps; † another evaluation than OGBench\'s, or not checked.',
        'curves': 'Success against environment steps, mean and 95 % interval over seeds'},
    'README.ko.md': {
        'header': ('데이터', '성공률, %', 'environment step', 'offline + online update', 'seed × task × episode',
                   'HIQL, %', '발표된 최고, %'),
        'flags': '모두 기본 flag이며, 예외는',
        'caption': '마지막 checkpoint의 성공률을 seed에 대해 평균 ± 표준편차로 나타냈으며, '
                   'offline action label은 쓰지 않았습니다. 마지막 두 열은 공식 데이터에서 모든 action label과 update '
                   '1M회를 쓰고 environment step은 쓰지 않은 참고 수치입니다. †는 평가 방식이 다르거나 확인하지 못한 '
                   '것입니다.',
        'curves': 'Environment step에 따른 성공률, seed에 대한 평균과 95 % 구간'}}
DETAILS = 'results/README.md'
ABLATIONS = ('experiment', 'flags', 'data', 'success, %', '`main`, same seeds', 'difference', 'n seeds',
             'environment steps', 'episodes a seed')
DEMONSTRATOR = ('maze', 'noise on its actions', 'success, %', 'episodes')


def read_results(folder):
    """-> {(experiment, dataset): [run, ...]}, run = dict(success, episodes, online_steps, offline_steps, curve)."""
    results = {}
    for path in sorted(Path(folder).glob('*/*/seed*/evaluation.json')):
        metrics = json.loads(path.read_text(encoding='utf-8'))
        run = {'success': metrics[METRIC], 'episodes': metrics['episodes_per_task'], 'curve': None,
               'seed': path.parts[-2]}
        for name in ('offline', 'online'):
            csv = path.with_name(f'{name}.csv')
            run[f'{name}_steps'] = int(read_csv(csv)[-1]['step']) if csv.is_file() else None
        if run['online_steps']:
            run['curve'] = read_metric(path.with_name('online.csv'), METRIC)
        run['flags'] = given_flags(path.parent)
        config = path.with_name('config_online.json')
        run['online_flags'] = json.loads(config.read_text(encoding='utf-8')).get('flags') if config.is_file() else None
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


def label(dataset):
    return f'`{dataset.removesuffix("-v0")}`{SUFFIX}'


def mean_text(values):
    """Mean ± standard deviation of successes, in percent."""
    mean, std = mean_std([100 * value for value in values])
    return f'{mean:.1f}' + (f' ± {std:.1f}' if len(values) > 1 else '')


def online_updates(folder_run):
    """Gradient steps of the online half, from the flags it was run with; None where they are not kept."""
    flags = folder_run['online_flags']
    if not flags or not folder_run['online_steps']:
        return None
    later = folder_run['online_steps'] - flags['random_steps']
    return round(flags['initial_updates'] + flags['update_ratio'] * max(0, later))


def updates_text(runs):
    offline = _range(run['offline_steps'] for run in runs)
    online = [online_updates(run) for run in runs if online_updates(run)]
    return f'{offline} + {round(np.mean(online), -2):,.0f}' if online else offline


def curve_rows(results):
    """-> cells (name, mean success at the evaluations nearest to each of `MILESTONES`); not for a single evaluation."""
    rows = []
    for (experiment, name), runs in sorted(results.items(), key=lambda item: (item[0][0] != 'main', item[0])):
        curves = [run['curve'] for run in runs if run['curve'] and len(run['curve'][0]) > 1]
        if curves:
            text = label(name) if experiment == 'main' else f'{label(name)}, `{experiment}`'
            rows.append((text, *(_at(curves, steps) for steps in MILESTONES)))
    return rows


def _at(curves, milestone):
    values = []
    for steps, successes in curves:
        nearest = int(np.argmin(np.abs(np.subtract(steps, milestone))))
        if abs(steps[nearest] - milestone) <= NEAR * milestone:
            values.append(successes[nearest])
    return f'{100 * np.mean(values):.0f}' if len(values) == len(curves) else '–'


def _range(values):
    values = sorted(value for value in values if value is not None)
    if not values:
        return '–'
    return f'{values[0]:,}' if values[0] == values[-1] else f'{values[0]:,}–{values[-1]:,}'


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def make_front(results, words, published):
    """-> what stands between the markers of a README's front page."""
    names = [name for name in published if ('main', name) in results]
    names += sorted(name for experiment, name in results if experiment == 'main' and name not in published)
    if not names:
        return ''

    rows = []
    for name in names:
        runs = results['main', name]
        reference = published.get(name, {'HIQL': '–', 'best': '–', 'source': ''})
        best = f'{reference["best"]} {reference["source"]}'.strip()
        rows.append((label(name), f'**{mean_text([run["success"] for run in runs])}**',
                     _range(run['online_steps'] for run in runs), updates_text(runs), counts(runs),
                     reference['HIQL'], best))
    parts = [table(words['header'], rows), words['caption']]

    others = {}
    for name in names:
        for flags in sorted({run['flags'] for run in results['main', name]} - {''}):
            others.setdefault(flags, []).append(f'`{name.removesuffix("-v0")}`')
    if others:
        listed = (f'{", ".join(datasets)}: `{flags}`' for flags, datasets in others.items())
        parts.append(f'{words["flags"]} {"; ".join(listed)}.')

    if any(run['curve'] for name in names for run in results['main', name]):
        picture = f'<img src="assets/success_curves.png" width="75%" alt="{words["curves"]}">'
        parts.append(f'<p align="center">{picture}</p>')
    return '\n\n'.join(parts)


def counts(runs):
    episodes = sorted({run['episodes'] for run in runs})
    return f'{len(runs)} × 5 × {"–".join(map(str, episodes))}'


def make_details(results):
    """-> what stands between the markers of results/README.md."""
    parts = []
    if rows := [row for key in sorted(results) if (row := ablation_row(results, *key))]:
        parts.append(table(ABLATIONS, rows))
    if rows := demonstrator_rows(results):
        parts.append(table(DEMONSTRATOR, rows))
    if rows := curve_rows(results):
        header = ('success, %, at the evaluation nearest to', *(f'{steps:,} steps' for steps in MILESTONES))
        columns = zip(header, *rows, strict=True)
        header, *rows = zip(*(column for column in columns if set(column[1:]) != {'–'}), strict=True)
        parts.append(table(header, rows))
    return '\n\n'.join(parts)


def ablation_row(results, experiment, name):
    """Cells of one experiment, beside `main` of the same seeds; None for what is no ablation."""
    if experiment == 'main' or experiment.startswith('expert-'):
        return None

    runs = results[experiment, name]
    main = {run['seed']: run['success'] for run in results.get(('main', name), [])}
    pairs = [(run['success'], main[run['seed']]) for run in runs if run['seed'] in main]
    beside = mean_text([other for _, other in pairs]) if pairs else '–'
    difference = f'{100 * np.mean([ours - other for ours, other in pairs]):+.1f}' if pairs else '–'
    flags = ', '.join(f'`{flags}`' for flags in sorted({run['flags'] for run in runs} - {''})) or '–'
    return (f'`{experiment}`', flags, label(name), mean_text([run['success'] for run in runs]), beside, difference,
            str(len(pairs)), _range(run['online_steps'] for run in runs), _range(5 * run['episodes'] for run in runs))


def demonstrator_rows(results):
    """The expert of our data, which knows the maze and every action; datasets of one maze share the measurement."""
    rows = {}
    for (experiment, name), runs in sorted(results.items()):
        if experiment.startswith('expert-noise-'):
            maze = name.rsplit('-', 2)[0]
            noise = experiment.removeprefix('expert-noise-')
            rows[maze, noise] = (f'`{maze}`', noise, mean_text([run['success'] for run in runs]),
                                 _range(5 * run['episodes'] for run in runs))
    return list(rows.values())


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
        plot_bands(groups, path, 'success, %', 'OPSO, no action labels offline, data of our own expert',
                   references=('HIQL: official data,\nall labels, 1M updates', hiql))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only say whether the tables are up to date')
    parser.add_argument('--root', default=str(ROOT), help='folder with README.md, README.ko.md and results/README.md')
    flags = parser.parse_args()
    root, stale = Path(flags.root), []
    results = read_results(root / 'results')
    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    published.pop('about')
    blocks = {name: make_front(results, words, published) for name, words in WORDS.items()}
    blocks[DETAILS] = make_details(results)
    for name, block in blocks.items():
        text = (root / name).read_text(encoding='utf-8')
        new = with_block(text, block, name)
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
