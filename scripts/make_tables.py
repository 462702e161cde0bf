"""Write the result tables from results/runs.csv into README.md, README.ko.md and results/README.md.

    python scripts/make_tables.py            rewrite the tables and assets/success_by_{steps,losses}.png
    python scripts/make_tables.py --check    change nothing; exit code 1 if the tables are not up to date

An experiment's name decides its table: `main` is the front page, `steps-<n>` success by environment steps,
`true-actions` and `expert-noise-<noise>[-<which>]` the comparison with the demonstrator, `lost-<P>-<encoder>`
dropped readings, `parts-<what differs>` the parts of the offline half, `few-<explorer>` exploration. Every
experiment without a table of its own is a row of the ablations, paired by seed with `main`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.figures import plot_budgets  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.results import TASKS, Baseline, read_rows  # noqa: E402
from support.stats import mean_half_width, mean_std  # noqa: E402

# on a page with several blocks, with the block's name
BEGIN = '<!-- made by scripts/make_tables.py{} -->'
END = '<!-- end of what scripts/make_tables.py made -->'
OUR_EXPERTS = ('antmaze-', 'humanoidmaze-')  # data by our own experts, not the official files
WORDS = {
    'README.md': {
        'header': ('data', 'success, %', 'environment steps', 'updates offline + online',
                   'seeds × tasks × episodes', 'HIQL, %', 'best published, %'),
        'flags': 'All with the default flags, except',
        'caption': 'Mean ± standard deviation over seeds of the last checkpoint, no action labels offline. '
                   'The last two columns are references on the official data, with all action labels, '
                   '1M updates and no environment steps; † evaluated differently from OGBench, or not '
                   'verified.',
        'like': ('success, % (seeds), on the same data', 'demonstrator, with the map',
                 'HIQL, true labels', 'OPSO, true labels', 'OPSO, no labels, same seeds'),
        'budgets': 'success, % (seeds), after environment steps',
        'same labels': 'HIQL, labels of as many steps',
        'figure': 'Success against environment steps, all of them random'},
    'README.ko.md': {
        'header': ('데이터', '성공률, %', 'environment step', 'offline + online update',
                   'seed × task × episode', 'HIQL, %', '발표된 최고, %'),
        'flags': '모두 기본 flag이며, 예외는',
        'caption': '마지막 checkpoint의 성공률을 seed에 대해 평균 ± 표준편차로 나타냈으며, '
                   'offline action label은 쓰지 않았습니다. 마지막 두 열은 공식 데이터에서 모든 '
                   'action label과 update 1M회를 쓰고 environment step은 쓰지 않은 참고 수치입니다. '
                   '†는 평가 방식이 다르거나 확인하지 못한 것입니다.',
        'like': ('같은 데이터에서의 성공률, % (seed 수)', '시연자(지도를 앎)', 'HIQL, 실제 label',
                 'OPSO, 실제 label', 'OPSO, label 없음, 같은 seed'),
        'budgets': 'environment step 수에 따른 성공률, % (seed 수)',
        'same labels': 'HIQL, 같은 수의 step에서 얻은 label',
        'figure': 'Environment step 수에 따른 성공률. 모든 step은 무작위 action입니다'}}
DETAILS = 'results/README.md'
OWN_TABLES = ('main', 'expert-', 'few-', 'lost-', 'parts-')  # experiments that are no ablations
STEPS_AND_EPISODES = ('environment steps', 'episodes per seed')
ABLATIONS = ('experiment', 'data', 'success, %', '`main`, same seeds, %', 'difference',
             'seeds', *STEPS_AND_EPISODES)
LOSSES = ('data', 'readings dropped', 'encoder', 'success, %', 'minus Mamba, 95 % interval (by seed)',
          'seeds', *STEPS_AND_EPISODES)
FILLERS = {'mamba': 'Mamba', 'gru': 'GRU', 'mlp': 'MLP, no memory', 'hold': 'none: last reading'}
PARTS = ('change', 'share of an update', 'data', 'with the map, %', 'difference, 95 % interval (by seed)',
         'without the map, %', 'difference, 95 % interval (by seed)', 'seeds')
PART_NAMES = {'no-critic': 'no Q', 'no-infonce': 'no InfoNCE', 'no-alignment': 'no alignment',
              'no-next-state': 'no next state', 'no-reward-done': 'no reward/done',
              'gru': 'GRU instead of Mamba', 'mlp': 'MLP instead of Mamba'}
EXPLORERS = {'random': 'random actions', 'own': 'the agent, ε = 0', 'goal-biased': 'the agent, goal-biased'}
EXPLORING = ('last 300 steps by', 'data', 'success, %', 'difference, 95 % interval (by seed)', 'seeds',
             *STEPS_AND_EPISODES)
DEMONSTRATORS = ('maze', 'expert', 'action noise', 'success, %', 'episodes')
HIQL = ('data', 'machine', 'updates', 'action labels', 'success, %', 'episodes')


# ------------------------------------------------------------------------------ reading
def group_runs(rows):
    """Return {(experiment, dataset): [Run, ...]}, sorted."""
    results = {}
    for run in sorted(rows, key=lambda run: run.key):
        results.setdefault((run.experiment, run.dataset), []).append(run)
    return results


def of_experiment(results, experiment):
    """Return {dataset: runs} of one experiment."""
    return {name: runs for (other, name), runs in results.items() if other == experiment}


def last_of_hiql(baselines):
    """Return {dataset: {label steps, 0 for true actions: success after most updates}} of HIQL on the GPU."""
    successes = {}
    for row in sorted(baselines, key=lambda row: row.updates):
        if row.machine != 'CPU core':
            successes.setdefault(row.dataset, {})[row.label_steps] = row.success
    return successes


def read_shares(path):
    """Return {what is left out: its share of an update's arithmetic}."""
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding='utf-8'))['rows']
    return {f'no {part}': share for row in rows for part, share in row['shares'].items()}


def pair(runs, others):
    """Return [(run, the one of `others` with its seed), ...]."""
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


# ------------------------------------------------------------------------------ cells
def label(dataset):
    """A dataset's name, and whose data it is: OGBench's protocol moves points and arms without an expert."""
    whose = 'our expert' if dataset.startswith(OUR_EXPERTS) else 'official protocol'
    return f'`{short(dataset)}` ({whose})'


def short(dataset):
    return dataset.removesuffix('-v0')


def maze_of(dataset):
    """antmaze-large-navigate-v0 -> antmaze-large."""
    return dataset.rsplit('-', 2)[0]


def mean_text(runs, column='success'):
    """Mean ± standard deviation of a column of runs, in percent."""
    values = [100 * getattr(run, column) for run in runs]
    mean, std = mean_std(values)
    return f'{mean:.1f}' + (f' ± {std:.1f}' if len(values) > 1 else '')


def difference_text(pairs, column='success'):
    """Mean difference of pairs in percent, its 95 % interval by Student's t, and each of them."""
    values = [100 * (getattr(run, column) - getattr(other, column)) for run, other in pairs]
    if not values:
        return '–'
    width = f' ± {mean_half_width(values):.0f}' if len(values) > 1 else ''
    each = ', '.join(f'{value:+.0f}' for value in values)
    return f'{np.mean(values):+.1f}{width} ({each})'


def range_text(values):
    """`1,000` or `1,000–2,000`; `–` without values."""
    values = sorted({value for value in values if value is not None})
    return '–'.join(f'{value:,}' for value in dict.fromkeys([*values[:1], *values[-1:]])) or '–'


def steps_and_episodes(runs):
    """The two cells that end most tables."""
    episodes = range_text(TASKS * run.episodes_per_task for run in runs)
    return range_text(run.environment_steps for run in runs), episodes


def updates_text(runs):
    """Offline + online gradient updates."""
    offline = range_text(run.offline_updates for run in runs)
    online = [run.online_updates for run in runs if run.online_updates]
    return f'{offline} + {round(np.mean(online), -2):,.0f}' if online else offline


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


# ------------------------------------------------------------------------------ front pages
def make_front(results, hiql, words, published):
    """Return what stands between the markers of a README's front page."""
    mains = of_experiment(results, 'main')
    if not mains:
        return ''
    mains = {name: mains[name] for name in dict.fromkeys([*published, *mains]) if name in mains}

    rows = [front_row(name, runs, published) for name, runs in mains.items()]
    parts = [table(words['header'], rows), words['caption']]
    if text := flags_text(mains):
        parts.append(f'{words["flags"]} {text}.')
    if rows := like_for_like_rows(results, hiql):
        parts.append(table(words['like'], rows))
    if budgets := by_steps(results):
        parts.append(budget_table(budgets, hiql, words))
        picture = f'<img src="assets/success_by_steps.png" width="75%" alt="{words["figure"]}">'
        parts.append(f'<p align="center">{picture}</p>')
    return '\n\n'.join(parts)


def front_row(name, runs, published):
    reference = published.get(name, {'HIQL': '–', 'best': '–', 'source': ''})
    episodes = '–'.join(map(str, sorted({run.episodes_per_task for run in runs})))
    return (
        label(name),
        f'**{mean_text(runs)}**',
        range_text(run.environment_steps for run in runs),
        updates_text(runs),
        f'{len(runs)} × {TASKS} × {episodes}',
        reference['HIQL'],
        f'{reference["best"]} {reference["source"]}'.strip(),
    )


def flags_text(mains):
    """The datasets that were not run with the default flags, and with which."""
    datasets = {}
    for name, runs in mains.items():
        for flags in sorted({run.flags for run in runs} - {''}):
            datasets.setdefault(flags, []).append(f'`{short(name)}`')
    return '; '.join(f'{", ".join(names)}: `{flags}`' for flags, names in datasets.items())


def like_for_like_rows(results, hiql):
    """Cells of the methods on one file of data: the demonstrator at the noise of the data, HIQL and OPSO with
    true actions, and OPSO without labels on the same seeds."""
    experts = {maze_of(name): runs for name, runs in of_experiment(results, 'expert-noise-0.2').items()}
    rows = []
    for name, runs in of_experiment(results, 'true-actions').items():
        pairs = pair(runs, results.get(('main', name), []))
        if pairs:
            # the data of explore head for no goal
            expert = None if 'explore' in name else experts.get(maze_of(name))
            rows.append((
                label(name),
                mean_text(expert) if expert else '–',
                f'{100 * hiql[name][0]:.1f} (1)' if name in hiql else '–',
                *(f'{mean_text(side)} ({len(pairs)})' for side in zip(*pairs, strict=True)),
            ))
    return rows


def by_steps(results):
    """Return {dataset: {environment steps: runs}} of `steps-<n>`, and of the same seeds of `main`."""
    budgets = {}
    for (experiment, name), runs in results.items():
        before, _, steps = experiment.rpartition('-')
        pairs = pair(runs, results.get(('main', name), []))
        if before != 'steps' or not steps.isdigit() or not pairs:
            continue

        own = budgets.setdefault(name, {})
        own[int(steps)] = [run for run, _ in pairs]
        # of `main`, the budget that shares most seeds counts
        whole = pairs[0][1].environment_steps
        own[whole] = max(own.get(whole, []), [main for _, main in pairs], key=len)
    return {name: dict(sorted(own.items())) for name, own in sorted(budgets.items())}


def budget_table(budgets, hiql, words):
    """Success by steps, a row for each dataset, and below it one of HIQL with labels of as many steps."""
    steps = sorted({count for own in budgets.values() for count in own})
    rows = []
    for name, own in budgets.items():
        cells = [f'{mean_text(own[count])} ({len(own[count])})' if count in own else '–'
                 for count in steps]
        rows.append((label(name), *cells))
        inferred = hiql.get(name, {})
        if set(inferred) - {0}:
            cells = [f'{100 * inferred[count]:.1f} (1)' if count in inferred else '–' for count in steps]
            rows.append((words['same labels'], *cells))
    return table((words['budgets'], *(f'{count:,}' for count in steps)), rows)


# ------------------------------------------------------------------------------ results/README.md
def make_details(results, baselines, shares):
    """Return {name of a block of results/README.md: its table}."""
    tables = {
        'ablations': (ABLATIONS, ablation_rows(results)),
        'dropped readings': (LOSSES, losses_rows(results)),
        'parts': (PARTS, part_rows(results, shares)),
        'exploration': (EXPLORING, exploring_rows(results)),
        'demonstrators': (DEMONSTRATORS, demonstrator_rows(results)),
        'HIQL': (HIQL, hiql_rows(baselines)),
    }
    return {name: table(header, rows) if rows else '' for name, (header, rows) in tables.items()}


def ablation_rows(results):
    """Cells of each experiment that is compared with `main`, paired by seed."""
    rows = []
    for (experiment, name), runs in results.items():
        if experiment.startswith(OWN_TABLES):
            continue
        pairs = pair(runs, results.get(('main', name), []))
        difference = 100 * np.mean([run.success - other.success for run, other in pairs]) if pairs else None
        rows.append((
            f'`{experiment}`',
            f'`{short(name)}`',
            mean_text(runs),
            mean_text([other for _, other in pairs]) if pairs else '–',
            f'{difference:+.1f}' if pairs else '–',
            str(len(pairs)),
            *steps_and_episodes(runs),
        ))
    return rows


def by_losses(results):
    """Return {dataset: {encoder: {share of dropped readings: runs}}} of `lost-<share>-<encoder>`."""
    losses = {}
    for (experiment, name), runs in results.items():
        if experiment.startswith('lost-'):
            _, share, filler = experiment.split('-')
            losses.setdefault(name, {}).setdefault(filler, {})[float(share)] = runs
    return losses


def losses_rows(results):
    """Cells of the table of dropped readings, paired by seed with those of the Mamba."""
    rows = []
    for name, fillers in by_losses(results).items():
        for share in sorted({share for own in fillers.values() for share in own}):
            mamba = fillers.get('mamba', {}).get(share, [])
            for filler, text in FILLERS.items():
                if runs := fillers.get(filler, {}).get(share):
                    rows.append((f'`{short(name)}`', f'{share:.0%}', text, *beside_cells(runs, mamba)))
    return rows


def beside_cells(runs, others):
    """Success, difference from other runs with the same seeds, seeds, environment steps, episodes."""
    difference = '–' if runs is others else difference_text(pair(runs, others))
    return mean_text(runs), difference, str(len(runs)), *steps_and_episodes(runs)


def part_rows(results, shares):
    """Cells of the offline halves that differ in one part, paired by seed with `parts-all`.
    shares: {what is left out: its share of the arithmetic}."""
    rows = []
    by_part = {}  # what differs -> {dataset: its pairs}
    for name, whole in of_experiment(results, 'parts-all').items():
        with_plan, without = mean_text(whole), mean_text(whole, 'success_without_plan')
        rows.append(('none', '–', f'`{short(name)}`', with_plan, '–', without, '–', str(len(whole))))
        for part, text in PART_NAMES.items():
            if pairs := pair(results.get((f'parts-{part}', name), []), whole):
                by_part.setdefault(text, {})[name] = pairs

    for text, datasets in by_part.items():
        data = f'`{short(next(iter(datasets)))}`' if len(datasets) == 1 else f'all {len(datasets)}'
        rows.append(part_row(text, shares, data, sum(datasets.values(), [])))
    return rows


def part_row(text, shares, data, pairs):
    """Cells of pairs of runs (with the part that differs, with nothing different)."""
    runs = [run for run, _ in pairs]
    share = f'{shares[text]:.0%}' if text in shares else '–'
    columns = 'success', 'success_without_plan'
    cells = [cell for column in columns for cell in (mean_text(runs, column), difference_text(pairs, column))]
    return text, share, data, *cells, str(len(pairs))


def exploring_rows(results):
    """Cells of the table of exploration with few steps, paired by seed with random actions only."""
    rows = []
    for name, random in of_experiment(results, 'few-random').items():
        for explorer, text in EXPLORERS.items():
            runs = results.get((f'few-{explorer}', name), [])
            if runs := runs if runs is random else [run for run, _ in pair(runs, random)]:
                rows.append((text, f'`{short(name)}`', *beside_cells(runs, random)))
    return rows


def demonstrator_rows(results):
    """Cells of the expert of our data, which knows the maze; datasets of one maze share the measurement."""
    rows = {}
    for (experiment, name), runs in results.items():
        if experiment.startswith('expert-noise-'):
            maze = maze_of(name)
            noise, _, which = experiment.removeprefix('expert-noise-').partition('-')
            weights = f'{which}_{maze.partition("maze")[0]}_expert.npz'.removeprefix('_')
            episodes = range_text(TASKS * run.episodes_per_task for run in runs)
            rows[maze, experiment] = f'`{maze}`', f'`{weights}`', noise, mean_text(runs), episodes
    return list(rows.values())


def hiql_rows(baselines):
    """Cells of HIQL after most updates, on the GPU first."""
    # a later evaluation replaces an earlier one of the same training
    last = {(row.machine == 'CPU core', row.dataset, row.label_steps): row
            for row in sorted(baselines, key=lambda row: row.updates)}
    rows = []
    for _, row in sorted(last.items()):
        labels = f'of {row.label_steps:,} steps' if row.label_steps else 'true'
        rows.append((f'`{short(row.dataset)}`', row.machine, f'{row.updates:,}', labels, mean_text([row]),
                     str(TASKS * row.episodes_per_task)))
    return rows


# ------------------------------------------------------------------------------ pictures
def draw_losses(results, folder):
    """Success against the share of dropped readings, by encoder, of the dataset with most runs."""
    losses = by_losses(results)
    if not losses:
        return
    name = max(losses, key=lambda name: sum(map(len, losses[name].values())))
    fillers = losses[name]
    whole = {0.0: results['main', name]} if ('main', name) in results else {}  # nothing dropped: same for all
    groups = {}
    for filler, text in FILLERS.items():
        if filler in fillers:
            shares = (whole | fillers[filler]).items()
            groups[text] = {100 * share: [run.success for run in runs] for share, runs in shares}
    plot_budgets(groups, folder / 'success_by_losses.png', 'dropped readings, %', 'success, %',
                 f'{short(name)}, no action labels offline', log_scale=False)


def draw_steps(results, hiql, folder):
    """Success against environment steps by dataset; dashed, HIQL's with labels of as many steps."""
    budgets = by_steps(results)
    if not budgets:
        return
    own = {short(name): {steps: [run.success for run in runs] for steps, runs in counts.items()}
           for name, counts in budgets.items()}
    inferred = {short(name): {steps: [success] for steps, success in counts.items() if steps}
                for name, counts in hiql.items() if name in budgets and set(counts) - {0}}
    plot_budgets(own, folder / 'success_by_steps.png', 'random environment steps', 'success, %',
                 'No action labels offline, data of our own expert', beside=('HIQL', inferred))


# ------------------------------------------------------------------------------ pages
def with_block(text, block, page, name=''):
    """Put `block` between its markers. Raises ValueError unless each of them is there."""
    begin = BEGIN.format(f': {name}' if name else '')
    before, *rest = text.split(begin)
    if len(rest) != 1 or END not in rest[0]:
        raise ValueError(f'{page} needs one line {begin} and one line {END} after it')
    after = rest[0].split(END, 1)[1]
    return f'{before}{begin}\n{block}\n{END}{after}'


def stale_pages(root, pages):
    """Return {page: new text} of the pages {page: {name: block}} whose tables are not up to date."""
    stale = {}
    for page, blocks in pages.items():
        old = new = (root / page).read_text(encoding='utf-8')
        for name, block in blocks.items():
            new = with_block(new, block, page, name)
        if new != old:
            stale[page] = new
    return stale


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only say whether the tables are up to date')
    parser.add_argument('--root', default=str(ROOT), help='folder with the READMEs and results/')
    flags = parser.parse_args()

    root = Path(flags.root)
    results = group_runs(read_rows(root / 'results' / 'runs.csv'))
    path = root / 'results' / 'baselines.csv'
    baselines = read_rows(path, Baseline) if path.is_file() else []
    hiql = last_of_hiql(baselines)
    shares = read_shares(root / 'results' / 'parts.json')
    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    published.pop('about')

    pages = {name: {'': make_front(results, hiql, words, published)} for name, words in WORDS.items()}
    pages[DETAILS] = make_details(results, baselines, shares)
    stale = stale_pages(root, pages)
    if flags.check:
        if stale:
            sys.exit(f'not up to date: {", ".join(stale)}; run python scripts/make_tables.py')
        return

    for name, text in stale.items():
        write_atomic(root / name, lambda file, text=text: file.write(text.encode()))
    draw_steps(results, hiql, root / 'assets')
    draw_losses(results, root / 'assets')
    rewritten = ', '.join(stale) or 'nothing, all was up to date'
    print(f'{sum(map(len, results.values()))} runs; rewritten: {rewritten}')


if __name__ == '__main__':
    run_main(main)
