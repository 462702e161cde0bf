"""Damaged and unsuitable dataset files: one line names the file, the problem and the way out."""

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import offline_trainer
from support.flags import run_main
from support.npz import load_trajectories
from trajectories import load_dataset

ROOT = Path(__file__).resolve().parent.parent
DATASET = 'pointmaze-medium-navigate-v0'  # of two dimensions
SMALL = ['--d_model', '32', '--headdim', '16', '--context_length', '5', '--batch_size', '2',
         '--num_updates', '1']
MANY = settings(max_examples=120, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def arrays(lengths=(8, 6, 7), dim=2):
    """A good dataset."""
    observations = np.random.default_rng(0).normal(size=(sum(lengths), dim)).astype(np.float32)
    terminals = np.zeros(sum(lengths), bool)
    terminals[np.cumsum(lengths) - 1] = True
    return {'observations': observations, 'terminals': terminals}


def pack(**content):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def changed(key, index, value, **options):
    content = arrays(**options)
    content[key][index] = value
    return pack(**content)


def npy(header, body=b''):
    """An npz whose observations have this header text."""
    text = header.encode().ljust(118) + b'\n'
    buffer = io.BytesIO(pack(**arrays()))
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out := io.BytesIO(), 'w') as new:
        new.writestr('terminals.npy', old.read('terminals.npy'))
        new.writestr('observations.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + body)
    return out.getvalue()


GOOD = arrays()
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (21, 1000000000000000), }"
BAD = {
    'truncated zip': (pack(**arrays())[:-100], ['no npz file, or a part of one is missing']),
    'a web page': (b'\n<!DOCTYPE html><html><body>404</body></html>', ['web page']),
    'empty file': (b'', ['empty file']),
    'missing key': (pack(observations=GOOD['observations']), ['no `terminals`']),
    'wrong shape': (pack(**GOOD | {'observations': np.zeros((21, 3, 2), np.float32)}),
                    ['shape (21, 3, 2)', '2-d', 'scripts/convert_data.py']),
    'wrong dtype': (pack(**GOOD | {'observations': np.full((21, 3), 'x')}), ['<U1', 'numeric']),
    'complex numbers': (pack(**GOOD | {'observations': np.ones((21, 3), complex)}),
                        ['complex128', 'numeric']),
    'pickled objects': (pack(**GOOD | {'observations': np.array([[print] * 3] * 21)}), ['object', 'numeric']),
    'nan': (changed('observations', (4, 1), np.nan), ['`observations[4, 1]` is nan']),
    'inf': (changed('observations', (20, 1), np.inf), ['`observations[20, 1]` is inf']),
    'too large for float32': (pack(**GOOD | {'observations': GOOD['observations'] * np.float64(1e300)}),
                              ['too large for float32']),
    'no terminals': (changed('terminals', slice(None), False), ['no terminal ends the last 21 of 21 rows']),
    'last row not terminal': (changed('terminals', -1, False), ['no terminal ends the last 7 of 21 rows']),
    'inverted terminals': (pack(**GOOD | {'terminals': ~GOOD['terminals']}),
                           ['18 of 21 rows', 'save `terminals == 0`']),
    'states of another environment': (pack(**arrays(dim=4)),
                                      ['4 dimensions', '--dataset pointmaze-', 'name the environment']),
    'zero variance': (pack(**GOOD | {'observations': np.ones((21, 2), np.float32)}),
                      ['all states', 'the same']),
    'fewer windows than the batch': (pack(**arrays((4, 5, 3))),
                                     ['2 windows', '--batch_size 3', '--context_length 5']),
    'context longer than every trajectory': (pack(**arrays((4, 3, 4))),
                                             ['--context_length 5', 'longest has 4 states']),
    'one trajectory': (pack(**arrays((21,))), ['only one trajectory', '-val']),
    'forged shape': (npy(HUGE), ['bytes']),
    'shape below zero': (npy(HUGE.replace(' 1', ' -1')), ['bytes']),
    'shape of text': (npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('a', 3), }"), ['shape']),
    'header with a bad key': (npy("{[]: 1}"), ['']),
    'header cut off': (npy("{'descr': '<f4', 'fortran"), ['']),
    'header of brackets': (npy('(' * 100), ['']),
    'npy of the future': (npy(HUGE).replace(b'NUMPY\x01', b'NUMPY\x09'), ['']),
}


def error_line(capsys, *flags):
    """Run the offline trainer, which must end with exit code 2; return its only line on stderr."""
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        warnings.simplefilter('error')
        run_main(lambda: offline_trainer.main([*SMALL, '--dataset', DATASET, '--batch_size', '3', *flags]))
    stderr = capsys.readouterr().err
    assert end.value.code == 2 and stderr.startswith('error: ') and stderr.count('\n') == 1, stderr
    return stderr


@pytest.mark.parametrize('name', BAD)
def test_bad_training_file_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, words = BAD[name]
    path = tmp_path / 'some.npz'
    path.write_bytes(content)
    line = error_line(capsys, '--dataset_path', str(path))
    assert str(path) in line
    for word in words:
        assert word in line
    ways = ('save `', 'set `terminals`', 'needs an npz', 'name the environment', 'name another file', 'repair it',
            'use more trajectories', 'give at most', 'lower one of them', 'converts it')
    assert any(way in line for way in ways), line
    assert list(tmp_path.iterdir()) == [path]  # no run folder is left


def test_bad_validation_file_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, val = tmp_path / 'some.npz', tmp_path / 'some-val.npz'
    path.write_bytes(pack(**arrays()))
    for content, words in ((b'<html>', 'web page'), (pack(**arrays(dim=4)), '4 dimensions'),
                           (changed('observations', 0, np.nan), 'nan')):
        val.write_bytes(content)
        line = error_line(capsys, '--dataset_path', str(path))
        assert str(val) in line and words in line


def test_bad_file_prints_no_traceback(tmp_path, run_script):
    path = tmp_path / 'some.npz'
    path.write_bytes(BAD['nan'][0])
    _, error = run_script('offline_trainer.py', *SMALL, '--dataset_path', path, cwd=tmp_path, code=2)
    assert error.startswith(f'error: {path}: ') and error.count('\n') == 1


# Generated files


def outcome(path, content):
    """Load generated bytes; return True for valid data, False for an error of one line."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            train, val, _ = load_dataset('antmaze-medium-navigate-v0', str(path), context_length=5)
    except ValueError as error:
        text = str(error)
        assert text.startswith(f'{path}: ') and '\n' not in text and len(text) < 1000
        return False
    for data in (train, val):
        assert np.isfinite(data.observations).all() and data.observations.dtype == np.float32
        assert (data.ends > data.starts).all() and data.ends[-1] == len(data.observations) - 1
        batch = data.sample(3, np.random.default_rng(0))
        assert all(np.isfinite(value.numpy()).all() for value in vars(batch).values())
    return True


@MANY
@given(data=st.data())
def test_load_dataset_survives_generated_arrays(tmp_path, data):
    """Shapes, types, values and borders of all kinds."""
    rows = data.draw(st.integers(0, 40))
    number = st.one_of(st.floats(width=32), st.floats(-5, 5, width=32), st.integers(-3, 3).map(float))
    values = st.lists(number, min_size=rows * 2, max_size=rows * 2)
    observations = np.array(data.draw(values), np.float64).reshape(rows, 2)
    flags = st.lists(st.sampled_from([False] * 6 + [True]), min_size=rows, max_size=rows)
    terminals = np.array(data.draw(flags), bool)
    if rows and data.draw(st.booleans()):
        terminals[-1] = True
        walk = np.random.default_rng(0).normal(size=(rows, 2))
        observations = walk + np.where(abs(observations) < 5, observations, 0)
    kind = data.draw(st.sampled_from(['<f4', '>f8', '<f2', '<i2', '|b1', '<c8', '<U3', 'O']))
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if kind == '<i2':
            observations = np.nan_to_num(observations)
        observations = observations.astype(kind)
    cut = data.draw(st.sampled_from([None, None, None, -1, -2]))
    content = {'observations': observations, 'terminals': terminals[:cut]}
    if data.draw(st.integers(0, 20)) == 0:
        del content[data.draw(st.sampled_from(sorted(content)))]
    outcome(tmp_path / 'some.npz', pack(**content))


@MANY
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), min_size=1, max_size=4),
       cut=st.booleans(), stored=st.booleans())
def test_load_dataset_survives_generated_damage(tmp_path, edits, cut, stored):
    """Bytes are overwritten, inserted and cut anywhere, in compressed and in plain files."""
    buffer = io.BytesIO()
    (np.savez if stored else np.savez_compressed)(buffer, **arrays())
    body = bytearray(buffer.getvalue())
    for position, piece in edits:
        position %= len(body)
        body[position:position + len(piece) * (position % 2)] = piece
    outcome(tmp_path / 'some.npz', bytes(body[:edits[0][0] % len(body)]) if cut else bytes(body))


@MANY
@given(header=st.one_of(st.text(max_size=110),
                        st.text('{}()[]\'":,0123456789-<fFalseTruedshcor_ \\', max_size=110)),
       body=st.binary(max_size=300))
def test_load_dataset_refuses_generated_headers(tmp_path, header, body):
    """Any text as the header of an npy file."""
    header = header.encode(errors='ignore')[:118].decode(errors='ignore')
    assert not outcome(tmp_path / 'some.npz', npy(header, body))


@settings(MANY, max_examples=60)
@given(content=st.binary(max_size=200))
def test_load_dataset_refuses_generated_bytes(tmp_path, content):
    assert not outcome(tmp_path / 'some.npz', content)


def test_load_dataset_accepts_a_good_file(tmp_path):
    assert outcome(tmp_path / 'some.npz', pack(**arrays()))
    np.testing.assert_array_equal(load_trajectories(tmp_path / 'some.npz')[0], arrays()['observations'])
