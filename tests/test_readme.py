"""What the pages promise: their commands, flags, code, links and pictures exist, and the Korean front page says what
the English one says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offline_agent import OfflineAgent, OfflineConfig
from online_agent import OnlineAgent, OnlineConfig
from support.files import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
FRONT = ('README.md', 'README.ko.md')
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
         for path in [*(ROOT / name for name in FRONT), ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
                      ROOT / 'results' / 'README.md', ROOT / 'datasets' / 'README.md']}
SCRIPT = re.compile(r'(?:[\w/.-]+/)?(?:python3?|torchrun|sh) (?:.*? )??([\w/]+\.(?:py|sh))\b(.*)')


def blocks(text, language=''):
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def commands(text):
    """Every command that runs a file of this project, fenced, indented or between backticks, with lines joined at
    backslashes -> [(script, [word, ...])]."""
    text = text.replace('\\\n', ' ')
    quoted = re.findall(r'`([^`\n]+)`', text)
    found = []
    for line in [*text.splitlines(), *quoted]:
        match = SCRIPT.match(re.split(r' #', line)[0].strip())
        if match and '`' not in match[0]:
            found.append((match[1], shlex.split(match[2])))
    return found


def given_flags(words):
    """The flags among the words of a command; what follows a lone -- belongs to another script."""
    words = words[:words.index('--')] if '--' in words else words
    return {word.split('=')[0] for word in words if word.startswith('--')}


def help_of(script, first=()):
    word = '--help_all' if 'parse_flags' in (ROOT / script).read_text(encoding='utf-8') else '--help'
    done = subprocess.run([sys.executable, str(ROOT / script), *first, word], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_are_found_wherever_they_stand():
    text = ('```\npython a.py --x 1  # why\n```\n\n    OMP_NUM_THREADS=1\n    torchrun --nproc_per_node 2 b.py --y \\\n'
            '        --z\n\nthen `sh scripts/c.sh main` or `scripts/d.py`, and `.venv/bin/python e.py -- --no`')
    assert commands(text) == [('a.py', ['--x', '1']), ('b.py', ['--y', '--z']), ('scripts/c.sh', ['main']),
                              ('e.py', ['--', '--no'])]
    assert given_flags(['--a=1', 'b', '--', '--c']) == {'--a'}


@pytest.mark.parametrize('name', PAGES)
def test_flags_of_the_commands_exist(name):
    helps = {}
    for script, words in commands(PAGES[name]):
        assert (ROOT / script).is_file(), f'{script} does not exist'
        if script.endswith('.sh') or not given_flags(words):
            continue
        first = tuple(words[:1]) if script == 'ogbench_utils.py' else ()
        if (script, first) not in helps:
            helps[script, first] = help_of(script, first)
        unknown = [flag for flag in given_flags(words) if not re.search(rf'{flag}\b', helps[script, first])]
        assert not unknown, f'{script} has no {unknown}'


def test_there_are_commands_to_check():
    assert {len(commands(PAGES[name])) > 2 for name in ('README.md', 'README.ko.md', 'docs/running.md')} == {True}


@pytest.mark.parametrize('name', PAGES)
def test_flags_named_in_the_text_exist(name):
    known = ''.join(help_of(script) for script in (
        'offline_trainer.py', 'online_trainer.py', 'scripts/label_with_simulator.py', 'evaluate.py', 'scripts/data/collect_dataset.py'))
    own = ''.join(path.read_text(encoding='utf-8') for path in
                  [*ROOT.glob('scripts/*.*'), *ROOT.glob('scripts/*/*.py')])
    elsewhere = {'--help', '--resume', '--timeout', '--nproc_per_node'}
    flags = set(re.findall(r'`(--[\w-]+)', PAGES[name])) - elsewhere
    known_flags = set(re.findall(r'--[\w-]+', known + own))
    assert not [flag for flag in flags if flag not in known_flags and not flag.startswith('--action_noise_')]


def anchors(text):
    """What GitHub calls the directions of a page."""
    directions = re.findall(r'^#+ (.+)$', text, re.M)
    return {re.sub(r'[^\w -]', '', direction.lower()).replace(' ', '-') for direction in directions}


@pytest.mark.parametrize('name', PAGES)
def test_links_and_pictures_exist(name):
    text = PAGES[name]
    page = ROOT / name
    pictures = re.findall(r'src="([^"]+)"', text)
    assert not [target for target in pictures if not target.startswith('http') and not (page.parent / target).exists()]

    for target, anchor in re.findall(r'\]\(([^)#]*)(?:#([^)]+))?\)', text):
        if target.startswith('http'):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding='utf-8')), f'{target}#{anchor}'


def test_both_front_pages_have_the_same_code_commands_and_pictures():
    english, korean = (PAGES[name] for name in FRONT)
    assert [re.sub(r' +#.*', '', block) for block in blocks(english)] == [
        re.sub(r' +#.*', '', block) for block in blocks(korean)]
    assert sorted(map(str, commands(english))) == sorted(map(str, commands(korean)))
    pictures = [re.findall(r'src="([^"]+)"', text) for text in (english, korean)]
    assert pictures[0] == pictures[1] and len(pictures[0]) >= 4
    links = [set(re.findall(r'\]\((https?[^)]+)\)', text)) for text in (english, korean)]
    assert links[0] == links[1]


def test_the_front_page_is_one_page():
    assert len(PAGES['README.md'].splitlines()) <= 200


def test_defaults_named_on_the_pages_are_the_defaults():
    """`name` = value in the text of the method is what the code does."""
    text = PAGES['docs/method.md']
    defaults = {field: getattr(OfflineConfig(), field) for field in ('expectile', 'infonce_weight', 'alignment_weight',
                                                                     'state_weight', 'reward_weight')}
    weights = {row.split('|')[1].strip(): float(row.split('|')[3]) for row in text.splitlines()
               if re.match(r'\| (InfoNCE|alignment|next state|reward/done) \|', row)}
    assert weights == {'InfoNCE': defaults['infonce_weight'], 'alignment': defaults['alignment_weight'],
                       'next state': defaults['state_weight'], 'reward/done': defaults['reward_weight']}
    assert f'expectile {defaults["expectile"]}' in text
    front = PAGES['README.md']
    assert f'up to k = {OfflineConfig().transition_steps} steps' in front
    assert f'`--expectile` (optimism: {OfflineConfig().expectile})' in front


def test_library_code_runs(make_config, tmp_path, monkeypatch, capsys):
    acting, encoding = blocks(PAGES['docs/running.md'], 'python')
    agent = OnlineAgent(OfflineAgent(29, make_config()), -np.ones(8), np.ones(8), OnlineConfig(idm_hidden_dim=32))
    path = tmp_path / re.search(r"'(online_checkpoints/\S+)'", acting)[1]
    path.parent.mkdir(parents=True)
    save_checkpoint(path, {'kind': 'online', 'dataset': 'pointmaze-medium-navigate-v0', 'agent': agent.state_dict()})
    monkeypatch.chdir(tmp_path)

    import ogbench_utils
    real = ogbench_utils.make_env
    monkeypatch.setattr(ogbench_utils, 'make_env', lambda name: real('antmaze-medium-navigate-v0', max_episode_steps=5))
    exec(compile(acting, 'docs/running.md', 'exec'), {})
    assert capsys.readouterr().out in ('success\n', 'failure\n')

    names = {}
    exec(compile(encoding, 'docs/running.md', 'exec'), names)
    assert names['z'].shape == (16, 128)
