"""What the READMEs promise: their code runs, their commands and pictures exist, and the two say the same."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from offline_agent import OfflineAgent
from online_agent import OnlineAgent, OnlineConfig
from support.files import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {name: (ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'README.ko.md')}


def blocks(text, language=''):
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def commands(text):
    """The lines of unnamed blocks that run a script of this project -> [[script, flag, ...]]."""
    lines = [line.split(' #')[0] for block in blocks(text) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r'python \S+\.py', line)]


def test_both_readmes_have_the_same_code_commands_and_pictures():
    english, korean = TEXTS.values()
    assert blocks(english, 'python') == blocks(korean, 'python')
    assert commands(english) == commands(korean)
    pictures = [re.findall(r'src="([^"]+)"', text) for text in (english, korean)]
    assert pictures[0] == pictures[1] and len(pictures[0]) > 5
    assert all((ROOT / path).is_file() for path in pictures[0])


@pytest.mark.parametrize('name', TEXTS)
def test_flags_of_the_commands_exist(name):
    helps = {}
    for script, *words in commands(TEXTS[name]):
        flags = {word.split('=')[0] for word in words if word.startswith('--') and word != '--'}
        words = ['list', '--help'] if script == 'ogbench_utils.py' else ['--help']
        if script not in helps:
            done = subprocess.run([sys.executable, str(ROOT / script), *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            helps[script] = done.stdout
        if script == 'scripts/launch.py':  # what follows -- goes to the trainers
            continue
        assert not [flag for flag in flags if not re.search(rf'{flag}\b', helps[script])], script


def test_library_code_runs(make_config, tmp_path, monkeypatch, capsys):
    acting, encoding = blocks(TEXTS['README.md'], 'python')
    assert len(acting.strip().splitlines()) <= 13
    agent = OnlineAgent(OfflineAgent(29, make_config()), 8, OnlineConfig(idm_hidden_dim=32))
    path = tmp_path / re.search(r"'(online_checkpoints/\S+)'", acting)[1]
    path.parent.mkdir(parents=True)
    save_checkpoint(path, {'kind': 'online', 'dataset': 'pointmaze-medium-navigate-v0', 'agent': agent.state_dict()})
    monkeypatch.chdir(tmp_path)
    import ogbench_utils
    real = ogbench_utils.make_env
    monkeypatch.setattr(ogbench_utils, 'make_env', lambda name: real('antmaze-medium-navigate-v0', max_episode_steps=5))
    exec(compile(acting, 'README.md', 'exec'), {})
    assert capsys.readouterr().out in ('success\n', 'failure\n')
    names = {}
    exec(compile(encoding, 'README.md', 'exec'), names)
    assert names['z'].shape == (16, 128)
