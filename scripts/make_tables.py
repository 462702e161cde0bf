"""Write the result tables from results/runs.csv into README.md, README.ko.md and results/README.md.

    python scripts/make_tables.py            rewrite the tables and the figures in assets/
    python scripts/make_tables.py --check    change nothing; exit code 1 if the tables are not up to date

The name of an experiment determines its table: `main` is the front page, `steps-<n>` success by environment
steps, `true-actions` and `expert-noise-<noise>[-<which>]` the comparison with the demonstrator,
`lost-<P>-<encoder>` dropped observations, `parts-<change>` parts of the offline half, `few-<explorer>`
exploration. All other experiments are compared with `main`, paired by seed.
"""

import argparse
import collections
import math
import shlex
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.figures import FORMATS, plot_bars, plot_before_after, plot_budgets  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.results import (  # noqa: E402
    BUDGET,
    TASKS,
    AnyRobotRun,
    Baseline,
    read_args_file,
    read_json,
    read_rows,
    split_flags,
)
from support.stats import mean_half_width, mean_std, signed  # noqa: E402

# around a block; on a page with several blocks with the name of the block
BEGIN = '<!-- make_tables.py{} -->'
END = '<!-- end of make_tables.py -->'

# ------------------------------------------------------------------------------ words
WORDS = {
    'README.md': {
        'mazes': '**Ant and point mazes**',
        'humanoid': '**Humanoid mazes**',
        'manipulation': '**Manipulation**',
        'header': ('dataset', 'success, %', 'seeds', 'environment steps', 'HIQL, %', 'best published, %'),
        'steps': '{} environment steps',
        'updates': 'offline + online updates {}',
        'episodes': f'{TASKS} tasks × {{}} episodes per seed',
        'flags': 'flags {}',
        'default': 'all other flags at their defaults',
        'defaults': 'the defaults',
        'evaluated': '{}, evaluated with {}',
        'caption': 'Mean ± standard deviation over seeds of the last checkpoint; environment steps are '
                   'rounded. Our own experts made the data of ants and humanoids; data of points and arms follow '
                   "OGBench's protocols. HIQL and the best published results are references on the official "
                   'data, with all action labels, 1M updates and no environment steps; † evaluated '
                   'differently from OGBench, or not verified.',
        'figure': 'Success against environment steps, all of them random'},
    'README.ko.md': {
        'mazes': '**개미와 point 미로**',
        'humanoid': '**Humanoid 미로**',
        'manipulation': '**Manipulation**',
        'header': ('데이터셋', '성공률, %', 'seed', 'environment step', 'HIQL, %', '발표된 최고, %'),
        'steps': 'environment step {}개',
        'updates': 'offline + online update {}',
        'episodes': f'seed마다 task {TASKS}개 × 에피소드 {{}}',
        'flags': 'flag {}',
        'default': '나머지 flag는 기본값',
        'defaults': '기본값',
        'evaluated': '{}, 평가할 때 {}',
        'caption': '마지막 checkpoint의 성공률을 seed에 대해 평균 ± 표준편차로 나타냈으며, environment step 수는 '
                   '반올림했습니다. 개미와 humanoid의 데이터는 우리 expert가 만들었고, point와 로봇 팔의 데이터는 '
                   'OGBench의 protocol을 따릅니다. HIQL과 발표된 최고는 공식 데이터에서 모든 action label과 '
                   'update 1M회를 쓰고 environment step은 쓰지 않은 참고 수치입니다. '
                   '†는 평가 방식이 다르거나 확인하지 못한 것입니다.',
        'figure': 'Environment step 수에 따른 성공률. 모든 step은 무작위 action입니다'}}
DETAILS = 'results/README.md'
ANY_ROBOT = 'results/any_robot.md'
OWN_TABLES = ('main', 'expert-', 'few-', 'lost-', 'parts-', 'steps-', 'true-actions')
INTERVAL = '95 % interval (by seed)'
EPISODES = 'episodes per seed'
SAME_DATA = ('success on the same data, % (seeds)', 'demonstrator, with the map', 'HIQL, true labels',
             'OPSO, true labels', 'OPSO, no labels, same seeds')
OTHERS = ('experiment', 'data', 'success, %', '`main`, same seeds, %', 'difference', 'seeds',
          'environment steps', EPISODES)
FILLERS = {'mamba': 'Mamba', 'gru': 'GRU', 'mlp': 'MLP', 'hold': 'last observation'}
LOSSES = ('data', 'dropped', *FILLERS.values(), f'GRU minus Mamba, {INTERVAL}', 'seeds',
          'environment steps', EPISODES)
PARTS = ('change', 'share of an update', 'data', 'with the map, %', f'difference, {INTERVAL}',
         'without the map, %', 'difference, 95 % interval')
PART_NAMES = {'no-critic': 'no Q', 'no-infonce': 'no InfoNCE', 'no-alignment': 'no alignment',
              'no-next-state': 'no next state', 'no-reward-done': 'no reward/done',
              'gru': 'GRU instead of Mamba', 'mlp': 'MLP instead of Mamba'}
EXPLORERS = {'random': 'random actions', 'own': 'the agent, ε = 0', 'goal-biased': 'the agent, goal-biased'}
EXPLORING = ('last 300 steps by', 'data', 'success, %', f'difference, {INTERVAL}', 'seeds',
             'environment steps', EPISODES)
ROBOTS = ('state or robot', 'success before, %', 'success, %', 'by seed', 'seeds', 'environment steps', EPISODES)
DEMONSTRATORS = ('maze', 'expert', 'action noise', 'success, %', 'episodes')
# columns that become a line above the table if all their cells are equal, and are left out if they are empty
FOLDED = ('data', 'seeds', 'environment steps', EPISODES, *FILLERS.values())


# ------------------------------------------------------------------------------ reading
def group_runs(rows):
    """Return {(experiment, dataset): [Run, ...]}, sorted."""
    results = {}
    for run in sorted(rows, key=lambda run: run.key):
        results.setdefault((run.experiment, run.dataset), []).append(run)
    return results


def select(results, experiment):
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
    """Return {objective that is left out: its share of an update's arithmetic}."""
    if not path.is_file():
        return {}
    rows = read_json(path)['rows']
    return {f'no {part}': share for row in rows for part, share in row['shares'].items()}


def pair(runs, others):
    """Return [(run, the one of `others` with its seed), ...]."""
    by_seed = {other.seed: other for other in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


# ------------------------------------------------------------------------------ cells
def short(dataset):
    """Return the name of a dataset without its version."""
    return dataset.removesuffix('-v0')


def code(dataset):
    """Return the name of a dataset as a cell."""
    return f'`{short(dataset)}`'


def maze_of(dataset):
    """Return the maze of a dataset: antmaze-large for antmaze-large-navigate-v0."""
    return dataset.rsplit('-', 2)[0]


def mean_text(runs, column='success'):
    """Return mean ± standard deviation of a column of runs, in percent."""
    values = [100 * getattr(run, column) for run in runs]
    mean, std = mean_std(values)
    return f'{mean:.1f}' + (f' ± {std:.1f}' if len(values) > 1 else '')


def difference_text(pairs, column='success', by_seed=True):
    """Return the mean difference of pairs in percent, its 95 % interval by Student's t, and each difference.

    `by_seed` False leaves out the last.
    """
    values = [100 * (getattr(run, column) - getattr(other, column)) for run, other in pairs]
    if not values:
        return '–'
    width = f' ± {mean_half_width(values):.0f}' if len(values) > 1 else ''
    each = f' ({", ".join(signed(value, 0) for value in values)})' if by_seed else ''
    return f'{signed(np.mean(values), 1)}{width}{each}'


def range_text(values):
    """Return `1,000` or `1,000–2,000`; `–` without values."""
    values = sorted({value for value in values if value is not None})
    return '–'.join(f'{value:,}' for value in dict.fromkeys([*values[:1], *values[-1:]])) or '–'


def round_digits(value, digits=2):
    """Round a positive integer to significant digits."""
    return round(value, digits - 1 - math.floor(math.log10(value)))


def steps_and_episodes(runs):
    """Return the two cells that end most tables."""
    episodes = range_text(TASKS * run.episodes_per_task for run in runs)
    return range_text(run.environment_steps for run in runs), episodes


def updates_text(runs):
    """Return the numbers of offline + online gradient updates."""
    offline = range_text(run.offline_updates for run in runs)
    online = [run.online_updates for run in runs if run.online_updates]
    return f'{offline} + {round(np.mean(online), -2):,.0f}' if online else offline


def table(header, rows):
    """Return a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def folded_table(header, rows):
    """Return a Markdown table below a line with its constant columns of `FOLDED`; '' without rows."""
    if len(rows) < 2:
        return table(header, rows) if rows else ''
    constant = {name for name, *cells in zip(header, *rows, strict=True)
                if name in FOLDED and len(set(cells)) == 1}
    kept = [place for place, name in enumerate(header) if name not in constant]

    text = table([header[place] for place in kept], [[row[place] for place in kept] for row in rows])
    named = zip(header, rows[0], strict=True)
    line = '; '.join(f'{name} {cell}' for name, cell in named if name in constant and cell != '–')
    return f'All rows: {line}.\n\n{text}' if line else text


# ------------------------------------------------------------------------------ front pages
def make_front(results, words, published, args_files):
    """Return the block of a README's front page: a table for each family of datasets.

    Args:
        results: {(experiment, dataset): [Run, ...]}.
        words: the words of the page's language.
        published: {dataset: references}, in the order of the rows.
        args_files: {name of a file of flags: [(flag, its words), ...]}.
    """
    mains = select(results, 'main')
    if not mains:
        return ''
    families = {}
    for name in sort_datasets(mains, published):
        families.setdefault(family_of(name), {})[name] = mains[name]

    parts = []
    for family, datasets in families.items():
        parts.append(family_caption(family, datasets, words, args_files))
        parts.append(family_table(datasets, words, published))
    parts.append(words['caption'])
    if by_steps(results):
        picture = f'<img src="assets/success_by_steps.png" width="75%" alt="{words["figure"]}">'
        parts.append(f'<p align="center">{picture}</p>')
    return '\n\n'.join(parts)


def family_of(dataset):
    """Return the family of a dataset, a key of the words of a page."""
    if dataset.startswith('humanoidmaze-'):
        return 'humanoid'
    return 'mazes' if 'maze' in dataset else 'manipulation'


def robot_of(dataset):
    """Return the first word of a dataset's name: its robot, or the kind of its objects."""
    return dataset.partition('-')[0]


def sort_datasets(mains, published):
    """Return the datasets of `mains` in the order of `published`, those of one robot together."""
    names = [name for name in dict.fromkeys([*published, *mains]) if name in mains]
    robots = list(dict.fromkeys(map(robot_of, names)))
    return sorted(names, key=lambda name: robots.index(robot_of(name)))


def family_table(datasets, words, published):
    """Return the table of one family; environment steps are a column if they differ between its rows."""
    steps = {name: rounded_steps(runs) for name, runs in datasets.items()}
    rows = []
    for name, runs in datasets.items():
        reference = published.get(name, {'HIQL': '–', 'best': '–', 'source': ''})
        best = f'{reference["best"]} {reference["source"]}'.strip()
        success = f'**{mean_text(runs)}**'
        rows.append([code(name), success, str(len(runs)), steps[name], reference['HIQL'], best])

    header = list(words['header'])
    if len(set(steps.values())) == 1:
        for line in (header, *rows):
            del line[3]
    return table(header, rows)


def rounded_steps(runs):
    """Return the environment steps of runs, with two significant digits."""
    return range_text(round_digits(run.environment_steps) for run in runs)


def family_caption(family, datasets, words, args_files):
    """Return the line above the table of one family: what its rows have in common."""
    updates = {name: updates_text(runs) for name, runs in datasets.items()}
    episodes = {name: range_text(run.episodes_per_task for run in runs) for name, runs in datasets.items()}
    steps = {rounded_steps(runs) for runs in datasets.values()}

    parts = [words['steps'].format(*steps)] if len(steps) == 1 else []
    parts.append(constant_text(words['updates'], updates))
    parts.append(constant_text(words['episodes'], episodes))
    parts.append(flags_text(datasets, words, args_files))
    return f'{words[family]}: {"; ".join(parts)}.'


def constant_text(template, values):
    """Put the most frequent of the values {dataset: text} into a template, and add the exceptions."""
    most, _ = collections.Counter(values.values()).most_common(1)[0]
    others = {}
    for name, value in values.items():
        if value != most:
            others.setdefault(value, []).append(name)
    exceptions = '; '.join(f'{names_text(names, values)}: {value}' for value, names in others.items())
    return template.format(most) + (f' ({exceptions})' if exceptions else '')


def names_text(names, all_names):
    """Name some of all datasets: those of a robot by the robot if they are all of it."""
    texts = []
    for robot in dict.fromkeys(map(robot_of, names)):
        own = [name for name in names if robot_of(name) == robot]
        is_whole = len(own) == sum(robot_of(name) == robot for name in all_names)
        texts += [robot] if is_whole else map(code, own)
    return ', '.join(texts)


def flags_text(datasets, words, args_files):
    """Name the flags of the runs of {dataset: runs}, by their file of flags if there is one."""
    groups = {}
    for name, runs in datasets.items():
        for text in dict.fromkeys(run_flags_text(run, words, args_files) for run in runs):
            groups.setdefault(text, []).append(name)
    if groups.keys() == {''}:
        return words['default']
    if len(groups) == 1:
        return words['flags'].format(*groups)
    named = (f'{text or words["defaults"]} ({names_text(names, datasets)})' for text, names in groups.items())
    return words['flags'].format(', '.join(named))


def run_flags_text(run, words, args_files):
    """Return the flags of a run: a file of flags with the flags to add, then those of the evaluation."""
    flags = split_flags(shlex.split(run.online_flags))
    text = run.online_flags
    for name, in_file in args_files.items():
        if in_file and all(flag in flags for flag in in_file):
            added = [word for flag in flags if flag not in in_file for word in flag[1]]
            text = shlex.join([f'@{name}', *added]).replace(f"'@{name}'", f'@{name}')

    text = ' '.join(filter(None, (run.offline_flags, run.simulator_flags, text)))
    text = f'`{text}`' if text else ''
    if run.evaluation_flags:
        text = words['evaluated'].format(text or words['defaults'], f'`{run.evaluation_flags}`')
    return text


def read_args_files(folder):
    """Return {configs/NAME.args: [(flag of the method, its words), ...]}."""
    return {f'{folder.name}/{path.name}': [(name, words) for name, words in split_flags(read_args_file(path))
                                           if name not in BUDGET]
            for path in sorted(folder.glob('*.args'))}


# ------------------------------------------------------------------------------ results/README.md
def make_details(results, baselines, shares):
    """Return {name of a block of results/README.md: its table}."""
    hiql = last_of_hiql(baselines)
    tables = {
        'environment steps': budget_table(by_steps(results), hiql),
        'true actions': folded_table(SAME_DATA, same_data_rows(results, hiql)),
        'demonstrators': folded_table(DEMONSTRATORS, demonstrator_rows(results)),
        'dropped observations': folded_table(LOSSES, losses_rows(results)),
        'parts': folded_table(PARTS, part_rows(results, shares)),
        'exploration': folded_table(EXPLORING, exploring_rows(results)),
    }
    if others := folded_table(OTHERS, other_rows(results)):
        tables['true actions'] = '\n\n'.join(filter(None, (tables['true actions'], others)))
    return tables


def by_steps(results):
    """Return {dataset: {environment steps: runs}} of `steps-<n>`, and of the same seeds of `main`."""
    budgets = {}
    for (experiment, name), runs in results.items():
        prefix, _, steps = experiment.rpartition('-')
        pairs = pair(runs, results.get(('main', name), []))
        if prefix != 'steps' or not steps.isdigit() or not pairs:
            continue

        own = budgets.setdefault(name, {})
        own[int(steps)] = [run for run, _ in pairs]
        # the runs of `main` that share most seeds count
        whole = pairs[0][1].environment_steps
        own[whole] = max(own.get(whole, []), [main for _, main in pairs], key=len)
    return {name: dict(sorted(own.items())) for name, own in sorted(budgets.items())}


def budget_table(budgets, hiql):
    """Return success by steps: a row for each dataset, below it one of HIQL with labels of equal steps."""
    if not budgets:
        return ''
    steps = sorted({count for own in budgets.values() for count in own})
    rows = []
    for name, own in budgets.items():
        cells = [f'{mean_text(own[count])} ({len(own[count])})' if count in own else '–' for count in steps]
        rows.append((code(name), *cells))
        inferred = hiql.get(name, {})
        if set(inferred) - {0}:
            cells = [f'{100 * inferred[count]:.1f} (1)' if count in inferred else '–' for count in steps]
            rows.append(('the same, HIQL', *cells))
    return table(('success, % (seeds), after environment steps', *(f'{count:,}' for count in steps)), rows)


def same_data_rows(results, hiql):
    """Return cells of the methods on the data of `true-actions`, OPSO without labels on the same seeds.

    The demonstrator acts with the action noise of the data.
    """
    experts = {maze_of(name): runs for name, runs in select(results, 'expert-noise-0.2').items()}
    rows = []
    for name, runs in select(results, 'true-actions').items():
        pairs = pair(runs, results.get(('main', name), []))
        if pairs:
            # the data of explore head for no goal
            expert = None if 'explore' in name else experts.get(maze_of(name))
            rows.append((
                code(name),
                mean_text(expert) if expert else '–',
                f'{100 * hiql[name][0]:.1f} (1)' if name in hiql else '–',
                *(f'{mean_text(side)} ({len(pairs)})' for side in zip(*pairs, strict=True)),
            ))
    return rows


def other_rows(results):
    """Return cells of each experiment without a table of its own, compared with `main` by seed."""
    rows = []
    for (experiment, name), runs in results.items():
        if experiment.startswith(OWN_TABLES):
            continue
        pairs = pair(runs, results.get(('main', name), []))
        difference = 100 * np.mean([run.success - other.success for run, other in pairs]) if pairs else None
        rows.append((
            f'`{experiment}`',
            code(name),
            mean_text(runs),
            mean_text([other for _, other in pairs]) if pairs else '–',
            signed(difference, 1) if pairs else '–',
            str(len(pairs)),
            *steps_and_episodes(runs),
        ))
    return rows


def by_losses(results):
    """Return {dataset: {encoder: {share of dropped observations: runs}}} of `lost-<share>-<encoder>`."""
    losses = {}
    for (experiment, name), runs in results.items():
        if experiment.startswith('lost-'):
            _, share, filler = experiment.split('-')
            losses.setdefault(name, {}).setdefault(filler, {})[float(share)] = runs
    return losses


def losses_rows(results):
    """Return cells of the table of dropped observations, GRU and Mamba paired by seed."""
    rows = []
    for name, fillers in by_losses(results).items():
        for share in sorted({share for own in fillers.values() for share in own}):
            runs_of = {filler: fillers.get(filler, {}).get(share, []) for filler in FILLERS}
            rows.append((
                code(name),
                f'{share:.0%}',
                *(mean_text(runs) if runs else '–' for runs in runs_of.values()),
                difference_text(pair(runs_of['gru'], runs_of['mamba'])),
                range_text(map(len, filter(None, runs_of.values()))),
                *steps_and_episodes(sum(runs_of.values(), [])),
            ))
    return rows


def compared_cells(runs, others):
    """Return success, difference from other runs with the same seeds, seeds, environment steps, episodes."""
    difference = '–' if runs is others else difference_text(pair(runs, others))
    return mean_text(runs), difference, str(len(runs)), *steps_and_episodes(runs)


def part_rows(results, shares):
    """Return cells of the changes to the offline half, paired by seed with `parts-all`.

    Args:
        results: {(experiment, dataset): [Run, ...]}.
        shares: {objective that is left out: its share of the arithmetic}.
    """
    rows = []
    by_part = {}  # change -> {dataset: its pairs}
    for name, whole in select(results, 'parts-all').items():
        with_plan, without = mean_text(whole), mean_text(whole, 'success_without_plan')
        rows.append(('none', '–', code(name), with_plan, '–', without, '–'))
        for part, text in PART_NAMES.items():
            if pairs := pair(results.get((f'parts-{part}', name), []), whole):
                by_part.setdefault(text, {})[name] = pairs

    for text, datasets in by_part.items():
        data = code(next(iter(datasets))) if len(datasets) == 1 else f'all {len(datasets)}'
        rows.append(part_row(text, shares, data, sum(datasets.values(), [])))
    return rows


def part_row(text, shares, data, pairs):
    """Return cells of pairs of runs (with the change, without it)."""
    runs = [run for run, _ in pairs]
    share = f'{shares[text]:.0%}' if text in shares else '–'
    without = 'success_without_plan'
    return (text, share, data, mean_text(runs), difference_text(pairs),
            mean_text(runs, without), difference_text(pairs, without, by_seed=False))


def exploring_rows(results):
    """Return cells of exploration with few steps, paired by seed with random actions only."""
    rows = []
    for name, random in select(results, 'few-random').items():
        for explorer, text in EXPLORERS.items():
            runs = results.get((f'few-{explorer}', name), [])
            if runs := runs if runs is random else [run for run, _ in pair(runs, random)]:
                rows.append((text, code(name), *compared_cells(runs, random)))
    return rows


def demonstrator_rows(results):
    """Return cells of the experts of our data; the datasets of one maze share a measurement."""
    rows = {}
    for (experiment, name), runs in results.items():
        if experiment.startswith('expert-noise-'):
            maze = maze_of(name)
            noise, _, which = experiment.removeprefix('expert-noise-').partition('-')
            weights = f'{which}_{maze.partition("maze")[0]}_expert.npz'.removeprefix('_')
            episodes = range_text(TASKS * run.episodes_per_task for run in runs)
            rows[maze, experiment] = f'`{maze}`', f'`{weights}`', noise, mean_text(runs), episodes
    return list(rows.values())


# ------------------------------------------------------------------------------ pictures
def draw_losses(results, path):
    """Draw success by the share of dropped observations, by encoder, of the dataset with most runs."""
    losses = by_losses(results)
    if not losses:
        return
    name = max(losses, key=lambda name: sum(map(len, losses[name].values())))
    fillers = losses[name]
    # without drops all encoders have the runs of `main`
    whole = {0.0: results['main', name]} if ('main', name) in results else {}
    groups = {}
    for filler, text in FILLERS.items():
        if filler in fillers:
            shares = (whole | fillers[filler]).items()
            groups[text] = {100 * share: [run.success for run in runs] for share, runs in shares}
    plot_bars(groups, path, 'dropped observations, %', 'success, %',
              f'{short(name)}, no action labels offline')


def draw_steps(results, hiql, path):
    """Draw success against environment steps by dataset; dashed, HIQL with labels of equal steps."""
    budgets = by_steps(results)
    if not budgets:
        return
    own = {short(name): {steps: [run.success for run in runs] for steps, runs in counts.items()}
           for name, counts in budgets.items()}
    inferred = {short(name): {steps: [success] for steps, success in counts.items() if steps}
                for name, counts in hiql.items() if name in budgets and set(counts) - {0}}
    plot_budgets(own, path, 'random environment steps', 'success, %',
                 'No action labels offline, data of our own expert', beside=('HIQL', inferred))


def draw_any_robot(rows, path):
    """Draw success before and after by case.

    Args:
        rows: list of AnyRobotRun, whose order gives that of sections and cases.

    Raises:
        ValueError: a version is neither before nor after.
    """
    sections = {}
    for row in rows:
        before_and_after = sections.setdefault(row.section, {}).setdefault(row.case, ([], []))
        if row.version not in ('before', 'after'):
            raise ValueError(f'any_robot.csv: version {row.version} of {row.case}; it must be before or '
                             'after')
        before_and_after[row.version == 'after'].append(row.success)
    if sections:
        plot_before_after(sections, path, 'The same code on other coordinates and other robots')


def any_robot_table(rows):
    """Return the table of a list of AnyRobotRun, one line for each case."""
    cases = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)

    lines = []
    for case, runs in cases.items():
        before = [run for run in runs if run.version == 'before']
        after = [run for run in runs if run.version == 'after']
        if after:
            lines.append((
                case, mean_text(before) if before else '–', mean_text(after),
                ', '.join(f'{100 * run.success:.3g}' for run in after), range_text(run.seed for run in after),
                range_text(round(run.environment_steps, -3) for run in after),
                range_text(run.episodes for run in after)))
    return folded_table(ROBOTS, lines)


# ------------------------------------------------------------------------------ pages
def with_block(text, block, page, name=''):
    """Return the text of a page with `block` between its markers.

    Raises:
        ValueError: a marker is missing.
    """
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
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--check', action='store_true', help='only say whether the tables are up to date')
    parser.add_argument('--format', choices=FORMATS, default='png',
                        help='format of the pictures in assets/ (default: %(default)s)')
    parser.add_argument('--root', default=str(ROOT), help='folder with the READMEs and results/')
    flags = parser.parse_args()

    root = Path(flags.root)
    results = group_runs(read_rows(root / 'results' / 'runs.csv'))
    path = root / 'results' / 'baselines.csv'
    baselines = read_rows(path, Baseline) if path.is_file() else []
    shares = read_shares(root / 'results' / 'parts.json')
    published = read_json(ROOT / 'scripts' / 'published.json')
    published.pop('about')
    args_files = read_args_files(ROOT / 'configs')

    pages = {name: {'': make_front(results, words, published, args_files)} for name, words in WORDS.items()}
    pages[DETAILS] = make_details(results, baselines, shares)
    path = root / 'results' / 'any_robot.csv'
    robots = read_rows(path, AnyRobotRun) if path.is_file() else []
    if robots:
        pages[ANY_ROBOT] = {'any robot': any_robot_table(robots)}
    stale = stale_pages(root, pages)
    if flags.check:
        if stale:
            sys.exit(f'not up to date: {", ".join(stale)}; run python scripts/make_tables.py')
        return

    for name, text in stale.items():
        write_atomic(root / name, lambda file, text=text: file.write(text.encode()))
    pictures = root / 'assets'
    draw_steps(results, last_of_hiql(baselines), pictures / f'success_by_steps.{flags.format}')
    draw_losses(results, pictures / f'success_by_losses.{flags.format}')
    if robots:
        draw_any_robot(robots, pictures / f'any_robot.{flags.format}')
    rewritten = ', '.join(stale) or 'nothing, all was up to date'
    print(f'{sum(map(len, results.values()))} runs; rewritten: {rewritten}')


if __name__ == '__main__':
    run_main(main)
