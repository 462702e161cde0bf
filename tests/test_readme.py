"""Tests of the pages: their commands, flags, code, links and pictures exist, and both front pages agree."""

import csv
import functools
import importlib
import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import online_trainer
import opso
import rollouts
from offline_agent import OfflineAgent, OfflineConfig
from online_agent import OnlineConfig
from planning.time_scales import HORIZON, MOST_STEPS
from tasks import Locomotion, Manipulation, Staying
from trajectories import TrajectoryDataset

ROOT = Path(__file__).resolve().parent.parent
FRONT = ('README.md', 'README.ko.md')
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
         for path in [*(ROOT / name for name in FRONT), ROOT / 'CONTRIBUTING.md',
                      *sorted(ROOT.glob('docs/*.md')), ROOT / 'results' / 'README.md', ROOT / 'datasets' / 'README.md']}
SCRIPT = re.compile(r'(?:[\w/.-]+/)?(?:python3?|sh) (?:.*? )??([\w/]+\.(?:py|sh))\b(.*)')
SUBCOMMANDS = {'ogbench_utils.py': ('list', 'check', 'download')}
# programs with flags; those of baselines/ need other packages
PROGRAMS = [path.relative_to(ROOT).as_posix()
            for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('scripts/**/*.py')])
            if path.parent.name != 'baselines'
            and re.search(r'parse_flags\(__doc__|ArgumentParser\(', path.read_text(encoding='utf-8'))]
FLAG = re.compile(r'(?<![\w-])--[a-z][\w-]*')


def blocks(text, language=''):
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def commands(text):
    """Return [(script, [word, ...])] of every command that runs a file of this project.

    Commands are fenced, indented or between backticks; lines are joined at backslashes.
    """
    text = text.replace('\\\n', ' ')
    quoted = re.findall(r'`([^`\n]+)`', text)
    found = []
    for line in [*text.splitlines(), *quoted]:
        match = SCRIPT.match(re.split(r' #', line)[0].strip())
        if match and '`' not in match[0]:
            found.append((match[1], shlex.split(match[2])))
    return found


def given_flags(words):
    """Return the flags of a command, without those after a lone --, which another script gets."""
    words = words[:words.index('--')] if '--' in words else words
    return {word.split('=')[0] for word in words if word.startswith('--')}


@functools.cache
def known_flags(script):
    """Return all flags of a program: of its --help_all if it has one, else of its --help, in this process."""
    module = importlib.import_module(Path(script).stem)
    assert Path(module.__file__) == ROOT / script
    text = ''
    for command in SUBCOMMANDS.get(script, ('',)):
        text += print_help(module, command, '--help')
        if '--help_all' in text:
            text += print_help(module, command, '--help_all')
    return set(FLAG.findall(text))


def print_help(module, *words):
    """Return what the main function of a module prints for a flag of help."""
    argv = [module.__name__, *filter(None, words)]
    with mock.patch.object(sys, 'argv', argv), redirect_stdout(io.StringIO()) as out:
        with pytest.raises(SystemExit) as end:
            module.main()
        assert not end.value.code, argv
    return out.getvalue()


def test_commands_are_found_in_blocks_indents_and_backticks():
    text = ('```\npython a.py --x 1  # why\n```\n\n    OMP_NUM_THREADS=1\n    python3 b.py --y \\\n'
            '        --z\n\nthen `sh scripts/c.sh main` or `scripts/d.py`, and `.venv/bin/python e.py -- --no`')
    assert commands(text) == [('a.py', ['--x', '1']), ('b.py', ['--y', '--z']), ('scripts/c.sh', ['main']),
                              ('e.py', ['--', '--no'])]
    assert given_flags(['--a=1', 'b', '--', '--c']) == {'--a'}


@pytest.mark.parametrize('script', PROGRAMS)
def test_programs_print_their_flags(script):
    assert len(known_flags(script)) >= 2


def test_known_flags_include_those_of_help_all():
    assert len(PROGRAMS) > 15
    assert {'--dataset', '--random_steps', '--estimator'} <= known_flags('online_trainer.py')


@pytest.mark.parametrize('name', PAGES)
def test_scripts_and_flags_of_commands_exist(name):
    for script, words in commands(PAGES[name]):
        assert (ROOT / script).is_file(), f'{script} does not exist'
        if given_flags(words) and not script.endswith('.sh'):
            unknown = given_flags(words) - known_flags(script)
            assert not unknown, f'{script} has no {unknown}'


@pytest.mark.parametrize('name', ('README.md', 'README.ko.md', 'docs/running.md'))
def test_pages_have_commands_to_check(name):
    assert len(commands(PAGES[name])) > 2


@pytest.mark.parametrize('name', PAGES)
def test_flags_named_on_pages_exist(name):
    known = set().union(*map(known_flags, PROGRAMS))
    elsewhere = {'--timeout'}  # of pytest
    quoted = ' '.join(re.findall(r'`([^`\n]+)`', PAGES[name]))
    unknown = set(FLAG.findall(quoted)) - known - elsewhere
    assert not unknown


@pytest.mark.parametrize('name', PAGES)
def test_scripts_and_files_of_flags_named_on_pages_exist(name):
    named = re.findall(r'(?<![\w/.])(?:scripts/[\w/]+\.(?:py|sh)|configs/\w+\.args)', PAGES[name])
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*.args')), ids=lambda path: path.name)
def test_files_of_flags_hold_flags_of_the_online_trainer(path):
    words = shlex.split(path.read_text(encoding='utf-8'), comments=True)
    flags = given_flags(words)
    assert len(flags) > 5 and flags <= known_flags('online_trainer.py')
    assert f'@configs/{path.name}' in PAGES['README.md']


def anchors(text):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', text, re.M)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('name', PAGES)
def test_links_and_pictures_exist(name):
    text = PAGES[name]
    page = ROOT / name
    pictures = re.findall(r'src="([^"]+)"', text)
    local = [target for target in pictures if not target.startswith('http')]
    assert not [target for target in local if not (page.parent / target).exists()]

    for target, anchor in re.findall(r'\]\(([^)#]*)(?:#([^)]+))?\)', text):
        if target.startswith('http'):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding='utf-8')), f'{target}#{anchor}'


def test_front_pages_have_the_same_code_commands_and_pictures():
    english, korean = (PAGES[name] for name in FRONT)
    assert [re.sub(r' +#.*', '', block) for block in blocks(english)] == [
        re.sub(r' +#.*', '', block) for block in blocks(korean)]
    assert sorted(map(str, commands(english))) == sorted(map(str, commands(korean)))
    pictures = [re.findall(r'src="([^"]+)"', text) for text in (english, korean)]
    assert pictures[0] == pictures[1] and len(pictures[0]) >= 4
    links = [set(re.findall(r'\]\((https?[^)]+)\)', text)) for text in (english, korean)]
    assert links[0] == links[1]


@pytest.mark.parametrize('name', FRONT)
def test_front_page_has_at_most_170_lines(name):
    assert len(PAGES[name].splitlines()) <= 170


def test_results_page_has_at_most_3000_words():
    assert len(PAGES['results/README.md'].split()) <= 3000


def test_front_pages_count_the_commits_of_the_tables():
    with open(ROOT / 'results' / 'runs.csv', encoding='utf-8', newline='') as file:
        commits = {row['commit'] for row in csv.DictReader(file) if row['experiment'] == 'main'}
    assert f'come from {len(commits)} commits' in PAGES['README.md']
    assert f'commit {len(commits)}개' in PAGES['README.ko.md']


def test_exploration_and_averages_of_the_method_are_the_defaults():
    """Numbers in the text of docs/method.md, and the formulas of the code that they stand for."""
    text = ' '.join(PAGES['docs/method.md'].split())
    online, agent, offline = online_trainer.OnlineTrainConfig(), OnlineConfig(), OfflineConfig()
    assert (f'over {rollouts.SCHEDULE_EPISODES} episodes, ε falls from {online.epsilon_start:g} to '
            f'{online.epsilon_end:g} and the noise from {online.action_noise_start:g} to '
            f'{online.action_noise_end:g}') in text
    assert f'first {online_trainer.RANDOM_STEPS:,} steps (`random_steps`)' in text
    move, stay = Locomotion.training, Staying.training
    assert (f'{move.passes} passes over the steps to imitate, at least {move.least_updates:,} and at most '
            f'{move.most_updates:,}') in text
    assert f'({Manipulation.training.passes} passes over moves of objects)' in text
    assert f'{stay.passes} passes, at most {stay.most_updates:,}' in text
    assert f'there are about {rollouts.ROUNDS} rounds' in text
    assert f'about {rollouts.ROUND_STEPS:,} steps' in text
    assert f'`targets`, rate {offline.target_rate}; online `ema_nets`, rate {agent.ema_rate}' in text
    assert f'current state (fraction {offline.current_goals})' in text
    assert f'anywhere in the data ({offline.random_goals})' in text
    assert f'a state from anywhere ({offline.proposer_random_goals})' in text
    assert f'discount per environment step, {1 - 1 / (HORIZON * MOST_STEPS):g}' in text
    assert f'\\beta = {offline.proposer_temperature:g}.' in text
    assert f'with β = {agent.progress_temperature:g} (`progress_temperature`' in text
    assert f'executes {agent.action_scale} times the predicted action' in text


def test_defaults_named_on_pages_are_the_defaults():
    text = PAGES['docs/method.md']
    fields = 'expectile', 'infonce_weight', 'alignment_weight', 'state_weight', 'reward_weight'
    defaults = {field: getattr(OfflineConfig(), field) for field in fields}
    weights = {row.split('|')[1].strip(): float(row.split('|')[3]) for row in text.splitlines()
               if re.match(r'\| (InfoNCE|alignment|next state|reward/done) \|', row)}
    assert weights == {'InfoNCE': defaults['infonce_weight'], 'alignment': defaults['alignment_weight'],
                       'next state': defaults['state_weight'], 'reward/done': defaults['reward_weight']}
    assert f'expectile {defaults["expectile"]}' in text
    front = PAGES['README.md']
    assert f'up to k steps later ({MOST_STEPS} for' in front
    assert f'`--expectile` (optimism: {OfflineConfig().expectile})' in front


def test_code_of_the_page_on_the_library_runs(make_config, make_online, save_online, tmp_path, monkeypatch, capsys):
    acting, learned, encoding, baseline = blocks(PAGES['docs/library.md'], 'python')[:4]
    states = np.random.default_rng(0).standard_normal((100, 29)).cumsum(0).astype(np.float32)
    data = TrajectoryDataset(states, np.array([0]), np.array([99]), **make_config().sampling())
    agent = make_online(action_dim=8, offline=OfflineAgent(29, make_config()), data=data)
    save_online(agent, path=tmp_path / re.search(r"'(online_checkpoints/\S+)'", acting)[1])
    monkeypatch.chdir(tmp_path)
    make_env = functools.partial(opso.make_env, 'antmaze-medium-navigate-v0', max_episode_steps=5)
    monkeypatch.setattr(opso, 'make_env', lambda name: make_env())

    names = {}
    exec(compile(acting, 'docs/library.md', 'exec'), names)
    assert capsys.readouterr().out in ('success\n', 'failure\n')
    exec(compile(learned, 'docs/library.md', 'exec'), names)
    assert re.fullmatch(r'\d+ steps\n', capsys.readouterr().out) and names['waypoint'].shape == (29,)
    exec(compile(baseline, 'docs/library.md', 'exec'), names)
    assert capsys.readouterr().out == '0.0 10\n'

    exec(compile(encoding, 'docs/library.md', 'exec'), names)
    assert names['z'].shape == (16, 100, 128) and names['z_t'].shape == (16, 128)
    torch.testing.assert_close(names['z_t'], names['z'][:, -1], rtol=1e-4, atol=1e-5)
