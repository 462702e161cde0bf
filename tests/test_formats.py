"""Files of other formats and other layouts: one line names what the file is and what to do with it."""

import gzip
import io
import json
import pickle
import re
import zipfile
from types import SimpleNamespace

import convert_data
import numpy as np
import pytest
import torch

import ogbench_utils
import online_trainer
from support import npz
from support.flags import run_main
from support.formats import CONVERTIBLE, recognize
from support.npz import load_actions, load_arrays, load_trajectories
from support.text import foreign, printable

ROWS = 60
ENDS = np.arange(ROWS) % 20 == 19
STATES = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


def written(save, *content):
    """Return what a function writes to a file."""
    buffer = io.BytesIO()
    save(buffer, *content)
    return buffer.getvalue()


def zipped(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name in names:
            archive.writestr(name, 'text')
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    """Save arrays as mine.npz; returns the path."""

    def save(**arrays):
        np.savez(tmp_path / 'mine.npz', **arrays)
        return tmp_path / 'mine.npz'

    return save


# Formats

OTHERS = {
    'an HDF5 file': b'\x89HDF\r\n\x1a\n' + bytes(100),
    'a parquet file': b'PAR1' + bytes(100) + b'PAR1',
    'an Arrow file': b'ARROW1' + bytes(100),
    'a MATLAB file': b'MATLAB 5.0 MAT-file, Platform: GLNXA64' + bytes(200),
    'a single array': written(np.save, STATES),
    'a pickle': pickle.dumps({'observations': [1.0, 2.0]}),
    'a PyTorch checkpoint': written(lambda file: torch.save({'a': torch.zeros(3)}, file)),
    'a table of text': b'time,x,y\n0.0,1.5,2\n0.1,1.6,2\n',
    'a JSON file': json.dumps([{'x': 1}]).encode(),
    'a gzip archive': gzip.compress(b'1,2'),
    'a Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
    'a ROS bag': b'#ROSBAG V2.0\n' + bytes(50),
    'a web page': b'\n <!DOCTYPE html><html></html>',
    'an empty file': b'',
    'a zip archive without arrays': zipped(['readme.txt']),
}


@pytest.mark.parametrize('name', OTHERS)
def test_a_file_of_another_format_is_named(name, tmp_path):
    path = tmp_path / 'mine.npz'
    path.write_bytes(OTHERS[name])
    assert recognize(path).startswith(name)
    with pytest.raises(ValueError) as caught:
        ogbench_utils.main(['check', str(path)])
    message = str(caught.value)
    assert message.startswith(f'{path}: this is {name}') and '\n' not in message
    for words in ('an npz file with the arrays `observations`, `terminals`', 'docs/data.md'):
        assert words in message
    is_convertible = recognize(path) in CONVERTIBLE
    assert message.endswith(f'; `python scripts/convert_data.py {path} states.npz` converts it') == is_convertible
    for words in ('delete', 'download', 'zip file;'):
        assert words not in message
    assert path.read_bytes() == OTHERS[name]


def test_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='it is a folder, `python scripts/convert_data.py .* converts it'):
        load_trajectories(tmp_path)
    with pytest.raises(FileNotFoundError, match='--dataset_path .* is a folder, name the npz file in it'):
        ogbench_utils.find_dataset('a:b', tmp_path)
    assert recognize(tmp_path) == 'a folder'


def test_recognize_knows_arrays_and_leaves_the_rest(tmp_path, write):
    assert recognize(write(observations=STATES)) == 'an npz file'
    for content in (b'\x00\x01\x02', b'one word', bytes(range(256)), b'PK\x03\x04 cut off'):
        (tmp_path / 'odd').write_bytes(content)
        assert recognize(tmp_path / 'odd') is None


# Other names and layouts

OTHER_LAYOUTS = [
    (dict(obs=STATES, acts=STATES, dones=ENDS),
     'no `observations` and no `terminals` in it, only `obs`, `acts`, `dones`'),
    (dict(observations=STATES, terminated=ENDS, truncated=ENDS), 'no `terminals` in it'),
    (dict(observations=STATES, masks=~ENDS), 'no `terminals` in it'),
    (dict(observations=STATES, episode_index=np.arange(ROWS) // 20), 'no `terminals` in it'),
    (dict(observations=STATES, terminals=np.zeros(ROWS), timeouts=ENDS),
     '`timeouts` ends trajectories in 3 rows where `terminals` does not'),
    (dict(observations=STATES.reshape(3, 20, 3), terminals=ENDS.reshape(3, 20)),
     '`terminals` is bool of shape (3, 20)'),
    (dict(observations=STATES.reshape(3, 20, 3), terminals=ENDS), '`observations` is float32 of shape (3, 20, 3)'),
    (dict(observations=STATES, terminals=ENDS & (np.arange(ROWS) > 30), timeouts=ENDS),
     '`timeouts` ends trajectories in 1 rows where `terminals` does not'),
    (dict(observations=STATES, terminals=ENDS & (np.arange(ROWS) > 30), episode_ids=np.arange(ROWS) // 20),
     '`episode_ids` ends trajectories in 1 rows'),
]


@pytest.mark.parametrize('arrays, words', OTHER_LAYOUTS)
def test_other_names_and_layouts_are_converted_by_the_command_of_the_message(write, arrays, words, tmp_path):
    path = write(**arrays)
    with pytest.raises(ValueError) as caught:
        load_trajectories(path)
    message = str(caught.value)
    assert words in message and '\n' not in message and 'delete' not in message and message.isprintable()

    command = re.search('`python scripts/convert_data.py (.*) states.npz` converts it', message)[1]
    convert_data.main([command, str(tmp_path / 'states.npz')])
    states, _, ends = load_trajectories(tmp_path / 'states.npz')
    np.testing.assert_array_equal(states, STATES)
    assert ends.tolist() == [19, 39, 59]


@pytest.mark.parametrize('arrays, words', [
    (dict(observations=STATES, terminals=~ENDS), 'set in 57 of 60 rows; .* save `terminals == 0`'),
    ({'observations': STATES, 'a\x1b[31m\nb': ENDS}, r'`a\\x1b\[31m b`'),
])
def test_other_mistakes_are_named(write, arrays, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_trajectories(write(**arrays))
    assert '\n' not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize('arrays, words', [
    (dict(timeouts=np.zeros(ROWS)), ''),
    (dict(timeouts=ENDS & (np.arange(ROWS) < 30), dones=ENDS[:, None]), ''),
    (dict(episode_index=np.arange(ROWS) // 20, masks=~ENDS), ''),
    (dict(timeouts=np.zeros(7)), '`timeouts` does not have one value per row; it is not read'),
    (dict(dones=np.array([None, 1], object)), '`dones` does not have one value per row; it is not read'),
])
def test_other_ends_that_agree_are_accepted(write, capsys, arrays, words):
    path = write(observations=STATES, terminals=ENDS, **arrays)
    assert len(load_trajectories(path)[1]) == 3
    stderr = capsys.readouterr().err
    assert (words in stderr and stderr.startswith(f'warning: {path}: ')) if words else not stderr


def test_trajectories_of_one_state_are_skipped(write, capsys):
    ends = ENDS.copy()
    ends[[0, 20, 21]] = True
    path = write(observations=STATES, terminals=ends, actions=STATES[:, :2])
    states, starts, last = load_trajectories(path)
    assert capsys.readouterr().err == (f'warning: {path}: 3 of 6 trajectories are one state only (the first one '
                                       'is row 0) and are skipped\n')
    kept = np.setdiff1d(np.arange(ROWS), [0, 20, 21])
    np.testing.assert_array_equal(states, STATES[kept])
    assert (starts.tolist(), last.tolist()) == ([0, 19, 37], [18, 36, 56])
    np.testing.assert_array_equal(load_actions(path, 57), STATES[kept, :2])
    np.testing.assert_array_equal(load_actions(path, 20), STATES[kept[:20], :2])

    states, starts, last = load_trajectories(path, max_trajectories=2)
    np.testing.assert_array_equal(states, STATES[kept[:37]])


# Memory

def test_arrays_beyond_the_memory_are_refused_by_their_header(write, monkeypatch):
    path = write(observations=STATES, terminals=ENDS)
    monkeypatch.setattr(npz, 'available_memory', lambda: 500)
    empty = np.empty
    monkeypatch.setattr(npz.np, 'empty', lambda shape, *_: empty(shape) if len(shape) == 1 else pytest.fail('used'))
    with pytest.raises(ValueError, match='`observations` needs .* GB of memory, .* --max_trajectories'):
        load_trajectories(path)


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, 'SMALL_ARRAY', 1 << 20)
    path = tmp_path / 'bomb.npz'
    np.savez_compressed(path, observations=np.zeros((500_000, 3), np.float32), terminals=np.ones(500_000))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(npz.np, 'empty', lambda *_: pytest.fail('read'))
    with pytest.raises(ValueError, match='unpacks from 0.0 MB to 0.0 GB'):
        load_trajectories(path)


def test_too_little_memory_names_the_flag(write, monkeypatch):
    def fail(*_):
        raise MemoryError

    path = write(observations=STATES, terminals=ENDS)
    monkeypatch.setattr(npz.np, 'empty', fail)
    with pytest.raises(ValueError, match='memory is too small for it; use fewer .* --max_trajectories') as caught:
        load_trajectories(path)
    assert 'download' not in str(caught.value) and 'repair' not in str(caught.value)


def test_available_memory_is_a_size():
    from support.memory import available_memory
    size = available_memory()
    assert size is None or 1e7 < size < 1e15


# Other files that flags name

def test_load_arrays_names_flag_and_arrays(tmp_path, write):
    path = write(w1=STATES)
    assert set(load_arrays(path, ['w1'], '--expert_path')) == {'w1'}
    with pytest.raises(ValueError, match='no `b1` in it, only `w1`; name another file with --expert_path'):
        load_arrays(path, ['w1', 'b1'], '--expert_path')
    path.write_bytes(OTHERS['a pickle'])
    with pytest.raises(ValueError, match='this is a pickle; --expert_path needs an npz file .* `w1`'):
        load_arrays(path, ['w1'], '--expert_path')


def test_an_expert_of_another_robot_is_refused(capsys, tmp_path):
    import collect_dataset
    flags = ['--dataset', 'antmaze-medium-navigate-v0', '--output_dir', str(tmp_path), '--expert_path']
    for name, words in (('humanoid_expert.npz', 'an expert with 67 inputs, this robot has 27'),
                        ('antmaze-medium-navigate-mini-v0-val.npz', 'no `w1`, `b1`')):
        path = str(collect_dataset.ROOT / 'datasets' / name)
        assert collect_dataset.main([*flags, path]) == 2
        stderr = capsys.readouterr().err
        assert path in stderr and words in stderr and '--expert_path' in stderr and stderr.count('\n') == 1


# Given actions

@pytest.fixture
def given(tmp_path):
    """Return given(**arrays) -> load_given_actions of a file of these arrays, for 40 of 60 rows."""
    ends = np.array([19, 39])
    data = SimpleNamespace(observations=STATES[:40], ends=ends, fingerprint=lambda: 'the data')
    data_class = type('Data', (SimpleNamespace,), {'__len__': lambda self: 40})
    space = SimpleNamespace(shape=(2,), low=-np.ones(2), high=np.ones(2))

    def load(**arrays):
        path = tmp_path / 'actions.npz'
        np.savez(path, **arrays)
        return online_trainer.load_given_actions(path, data_class(**vars(data)), space)

    return load


ACTIONS = np.random.default_rng(1).uniform(-1, 1, (ROWS, 2)).astype(np.float32)


def test_actions_of_the_data_are_accepted(given):
    exact = dict(actions=ACTIONS[:40], terminals=ENDS[:40])
    for arrays in (exact, exact | {'fingerprint': np.array('the data')},
                   dict(actions=ACTIONS, terminals=ENDS, observations=STATES)):
        np.testing.assert_allclose(given(**arrays), ACTIONS[:40])


@pytest.mark.parametrize('arrays, words', [
    (dict(actions=ACTIONS[:1], terminals=np.array([True])), '`actions` has 1 rows, the data have 40'),
    (dict(actions=ACTIONS[:20], terminals=ENDS[:20]), '`actions` has 20 rows, the data have 40'),
    (dict(actions=ACTIONS, terminals=ENDS), 'its trajectories are not those of the data'),
    (dict(actions=ACTIONS[:40], terminals=np.arange(40) % 10 == 9), 'its trajectories are not those'),
    (dict(actions=ACTIONS, terminals=ENDS, observations=STATES + 1), 'its trajectories are not those'),
    (dict(actions=ACTIONS[:40], terminals=ENDS[:40], fingerprint=np.array('o\x1bther')), r'belong to o\\x1bther; '),
    (dict(actions=ACTIONS[:40] * 100, terminals=ENDS[:40]), '100% of its `actions` lie outside the bounds'),
    (dict(actions=ACTIONS[:40, :1], terminals=ENDS[:40]), '`actions` have 1 dimensions'),
    (dict(actions=ACTIONS[:40] * np.nan, terminals=ENDS[:40]), r'`actions\[0, 0\]` is nan'),
    (dict(terminals=ENDS[:40]), 'no `actions` in it, only `terminals`; .* --actions_path'),
])
def test_actions_of_other_data_are_refused(given, arrays, words):
    with pytest.raises(ValueError, match=words) as caught:
        given(**arrays)
    assert 'actions.npz: ' in str(caught.value) and '\n' not in str(caught.value)


def test_a_missing_file_of_actions_names_the_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match='--actions_path .*none.npz: no such file'):
        online_trainer.load_given_actions(tmp_path / 'none.npz', None, None)


# Text

def test_printable_is_one_line():
    assert printable('a\n b\t\x1b[2Jc\u202ed é…') == 'a b \\x1b[2Jc\\u202ed é…'
    assert printable('a  b \udc80') == 'a  b \\udc80'
    assert len(printable('x' * 10_000)) == 10_000 and len(foreign('x' * 10_000)) < 1000


def test_errors_are_printed_without_control_characters(capsys):
    def fail():
        raise ValueError('two\nlines \x1b[31m')

    with pytest.raises(SystemExit):
        run_main(fail)
    assert capsys.readouterr().err == 'error: two lines \\x1b[31m\n'


def test_too_little_memory_anywhere_is_one_line(capsys):
    def fail():
        raise MemoryError('Unable to allocate 9 GiB')

    with pytest.raises(SystemExit, match='2'):
        run_main(fail)
    assert '9 GiB); use fewer data, with --max_trajectories' in capsys.readouterr().err
