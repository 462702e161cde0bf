"""Finding, downloading and reading dataset files; the only server is one on 127.0.0.1."""

import dataclasses
import http.server
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import numpy as np
import pytest

import offline_trainer
import ogbench_utils
from observing.observation_models import FULL_STATE
from ogbench_utils import BUNDLED_FOR, BUNDLED_NAME, DATASETS, find_dataset, parse_name
from support import download as downloading
from support.download import download
from support.npz import load_trajectories
from trajectories import load_dataset, load_recorded

ROOT = Path(__file__).resolve().parents[1]
NAME = 'antmaze-large-stitch-v0'


def make_arrays(lengths=(5, 3, 4), dim=3):
    observations = np.arange(sum(lengths) * dim, dtype=np.float32).reshape(-1, dim)
    terminals = np.zeros(sum(lengths), dtype=bool)
    terminals[np.cumsum(lengths) - 1] = True
    actions = np.ones((len(terminals), 2), np.float32)
    return dict(observations=observations, terminals=terminals, actions=actions)


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    """Save the good arrays with some replaced (None: left out); returns the path."""

    def save(**changes):
        arrays = {key: value for key, value in {**make_arrays(), **changes}.items() if value is not None}
        path = tmp_path / 'some.npz'
        path.write_bytes(npz_bytes(**arrays))
        return path

    return save


@pytest.fixture
def places(tmp_path, monkeypatch):
    """data_dir, home data folder and bundled folder, all empty, with a host that has no address."""
    data_dir, home, bundled = tmp_path / 'data', tmp_path / 'home', tmp_path / 'bundled'
    for folder in (data_dir, home / '.ogbench' / 'data', bundled):
        folder.mkdir(parents=True)
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('USERPROFILE', str(home))
    monkeypatch.setattr(ogbench_utils, 'BUNDLED_DIR', bundled)
    monkeypatch.setattr(downloading, 'urlopen', no_network)
    return data_dir, home / '.ogbench' / 'data', bundled


def no_network(request, timeout):
    raise URLError(socket.gaierror(-2, 'Name or service not known'))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; cuts the next answers at `break_at`, or fails them with `status`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.requests, self.break_at, self.status = {}, [], [], []
        self.ranges = self.lengths = True
        self.url = f'http://127.0.0.1:{self.server_port}/sets'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.rpartition('/')[2]
        asked = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        server.requests.append((name, asked and int(asked[1])))
        body = server.files.get(name)
        if server.status or body is None:
            return self.send_error(server.status.pop(0) if server.status else 404)
        start = int(asked[1]) if asked and server.ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        if server.lengths:
            self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:server.break_at.pop(0) if server.break_at else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(downloading, 'RETRY_WAITS', (0.0, 0.0, 0.0))
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
        yield server
        server.shutdown()


# Names


@pytest.mark.parametrize('name, env_id', [
    ('antmaze-medium-navigate-v0', 'antmaze-medium-v0'),
    ('antmaze-medium-navigate-mini-v0', 'antmaze-medium-v0'),
    ('pointmaze-giant-stitch-v0', 'pointmaze-giant-v0'),
    ('antmaze-teleport-explore-v0', 'antmaze-teleport-v0'),
    ('pointmaze-medium-explore-v0', 'pointmaze-medium-v0'),  # not OGBench's, but it can be collected
    ('humanoidmaze-teleport-navigate-v0', 'humanoidmaze-teleport-v0'),
    ('antsoccer-arena-stitch-v0', 'antsoccer-arena-v0'),
    ('cube-quadruple-noisy-v0', 'cube-quadruple-v0'),
    ('scene-play-v0', 'scene-v0'),
    ('puzzle-4x6-play-v0', 'puzzle-4x6-v0'),
])
def test_parse_name_drops_the_kind_of_data(name, env_id):
    assert parse_name(name) == env_id


def test_dataset_table_covers_the_state_environments_of_ogbench():
    """Every dataset has an environment, and none of OGBench's environments of states is missing."""
    import gymnasium
    import ogbench  # noqa: F401
    registered = {name for name, spec in gymnasium.registry.items() if 'ogbench' in str(spec.entry_point)}
    unsupported = ('visual', 'singletask', 'powderworld', 'online')
    states = {name for name in registered if not any(word in name for word in unsupported)}
    assert states == {f'{name}-v0' for name in ogbench_utils.ENVIRONMENTS}
    assert {parse_name(name) for name in DATASETS} <= states and len(DATASETS) == len(set(DATASETS)) == 47


@pytest.mark.parametrize('name', [
    'pointmaze-giant-navigate-v0', 'antsoccer-medium-stitch-v0', 'cube-triple-play-v0', 'scene-noisy-v0',
    'puzzle-4x5-play-v0', 'humanoidmaze-giant-stitch-v0'])
def test_official_shape_has_the_dimensions_of_the_environment(name):
    env = ogbench_utils.make_env(name)
    observation, goal = ogbench_utils.reset_env(env, 5, 3)
    assert observation.shape == goal.shape == ogbench_utils.official_shape(name)[2:]


def test_official_shape_has_the_sizes_of_ogbench():
    """Numbers copied from OGBench's commands.sh, independently of the table."""
    assert ogbench_utils.official_shape('pointmaze-giant-navigate-v0') == (500, 2001, 2)
    assert ogbench_utils.official_shape('humanoidmaze-giant-stitch-v0') == (10_000, 401, 69)
    assert ogbench_utils.official_shape('antsoccer-medium-stitch-v0') == (8000, 501, 42)
    assert ogbench_utils.official_shape('cube-triple-noisy-v0') == (3000, 1001, 46)
    with pytest.raises(KeyError):
        ogbench_utils.official_shape('pointmaze-medium-explore-v0')


def test_parse_name_suggests_the_nearest_name():
    with pytest.raises(ValueError, match='nearest: antmaze-medium-navigate-v0'):
        parse_name('antmaze-medum-navigate-v0')
    with pytest.raises(ValueError, match='nearest: humanoidmaze-large-stitch-v0'):
        parse_name('humanoidmaze-large-stich')
    with pytest.raises(ValueError, match='nearest: cube-single-play-v0'):
        parse_name('cube-single-v0')
    with pytest.raises(ValueError, match='python ogbench_utils.py list'):  # nothing is near
        parse_name('zzz')


@pytest.mark.parametrize('name', [
    'xantmaze-medium-navigate-v0', 'antmaze-medium-navigate-v0.npz', 'antmaze-large-navigate-mini-v0',
    'antmaze-medium-v0', 'antmaze-medium-naviget-v0', 'scene-v0', 'play-v0', 'v0', '',
])
def test_parse_name_refuses_unknown_names(name):
    with pytest.raises(ValueError, match='unknown --dataset'):
        parse_name(name)


@pytest.mark.parametrize('name, reason', [
    ('visual-antmaze-medium-navigate-v0', 'images'),
    ('visual-scene-play-v0', 'images'),
    ('powderworld-easy-play-v0', 'images'),
    ('cube-double-play-singletask-task2-v0', 'rewards for one task'),
    ('antmaze-large-navigate-singletask-v0', 'rewards for one task'),
    ('antmaze-medium-navigate-oraclerep-v0', 'goals that are no states'),
])
def test_parse_name_gives_the_reason_for_unsupported_datasets(name, reason):
    with pytest.raises(ValueError, match=reason) as error:
        parse_name(name)
    assert '\n' not in str(error.value) and str(error.value).startswith(f'--dataset {name} has ')


# Search order


def test_find_dataset_searches_in_order(places, tmp_path):
    data_dir, home, bundled = places
    given = tmp_path / 'given.npz'
    for path in (given, data_dir / f'{NAME}.npz', home / f'{NAME}.npz'):
        path.touch()
    assert find_dataset(NAME, given, data_dir)[0] == given
    assert find_dataset(NAME, data_dir=data_dir)[0] == data_dir / f'{NAME}.npz'
    (data_dir / f'{NAME}.npz').unlink()
    path, val_path, note = find_dataset(NAME, data_dir=data_dir)
    assert (path, val_path) == (home / f'{NAME}.npz', None)
    assert str(path) in note


def test_find_dataset_takes_the_validation_file_beside_the_training_file(places, tmp_path):
    data_dir, home, _ = places
    (home / f'{NAME}.npz').touch()
    (data_dir / f'{NAME}-val.npz').touch()
    assert find_dataset(NAME, data_dir=data_dir)[1] is None
    (home / f'{NAME}-val.npz').touch()
    assert find_dataset(NAME, data_dir=data_dir)[1] == home / f'{NAME}-val.npz'
    given = tmp_path / 'given.npz'
    given.touch()
    assert find_dataset(NAME, given)[1] is None
    (tmp_path / 'given-val.npz').touch()
    assert find_dataset(NAME, str(given))[1] == tmp_path / 'given-val.npz'


def test_find_dataset_requires_the_given_path(places):
    data_dir = places[0]
    (data_dir / f'{NAME}.npz').touch()
    with pytest.raises(FileNotFoundError, match='--dataset_path nowhere.npz'):
        find_dataset(NAME, 'nowhere.npz', data_dir)


def test_find_dataset_refuses_bad_names_and_urls(places):
    with pytest.raises(ValueError, match='unknown --dataset'):
        find_dataset('antmaze', data_dir=places[0])
    with pytest.raises(ValueError, match='--dataset_url example'):
        find_dataset(NAME, data_dir=places[0], dataset_url='example.org/sets')


def test_find_dataset_announces_the_bundled_fallback(places):
    data_dir, _, bundled = places
    mini = bundled / f'{BUNDLED_NAME}.npz'
    mini.touch()
    path, val_path, note = find_dataset(BUNDLED_FOR, data_dir=data_dir)
    assert (path, val_path) == (mini, None)
    for words in ('100 trajectories', 'our own expert', f'NOT the official {BUNDLED_FOR}', 'not known'):
        assert words in note
    assert '\n' not in note
    with pytest.raises(FileNotFoundError):
        find_dataset(BUNDLED_FOR, data_dir=data_dir, allow_fallback=False)
    mini.unlink()
    with pytest.raises(FileNotFoundError):
        find_dataset(BUNDLED_FOR, data_dir=data_dir)


def test_find_dataset_finds_the_bundled_set_by_name(places):
    data_dir, _, bundled = places
    with pytest.raises(FileNotFoundError, match=re.escape(str(bundled))):
        find_dataset(BUNDLED_NAME, data_dir=data_dir)
    (bundled / f'{BUNDLED_NAME}.npz').touch()
    path, _, note = find_dataset(BUNDLED_NAME, data_dir=data_dir)
    assert path == bundled / f'{BUNDLED_NAME}.npz'
    assert 'official' not in note
    (data_dir / f'{BUNDLED_NAME}.npz').touch()
    assert find_dataset(BUNDLED_NAME, data_dir=data_dir)[0] == data_dir / f'{BUNDLED_NAME}.npz'


def test_find_dataset_error_names_places_reason_and_ways_out(places):
    data_dir, home, bundled = places
    (bundled / f'{BUNDLED_NAME}.npz').touch()
    with pytest.raises(FileNotFoundError) as caught:
        find_dataset(NAME, data_dir=data_dir, dataset_url='http://mirror.invalid/x/')
    for words in (str(data_dir), str(home), f'http://mirror.invalid/x/{NAME}', ogbench_utils.OGBENCH_URL,
                  'Name or service not known', '--dataset_path', '--dataset_url', BUNDLED_NAME,
                  f'python scripts/data/collect_dataset.py --dataset {NAME}'):
        assert words in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('reason', [socket.gaierror(-2, 'Name not known'), TimeoutError('timed out')])
def test_download_does_not_retry_an_unreachable_host(places, monkeypatch, reason):
    asked = []

    def fail(request, timeout):
        asked.append(request.full_url)
        raise URLError(reason)

    monkeypatch.setattr(downloading, 'urlopen', fail)
    monkeypatch.setattr(downloading.time, 'sleep', lambda seconds: pytest.fail('waited for a retry'))
    with pytest.raises(FileNotFoundError):
        find_dataset(NAME, data_dir=places[0])
    assert len(asked) == 1  # the training file is not requested after the validation file failed


# Download


def big_body():
    observations = np.random.default_rng(0).normal(size=(10_000, 8)).astype(np.float32)
    return npz_bytes(**{**make_arrays((5_000, 5_000)), 'observations': observations})


def test_find_dataset_downloads_a_missing_dataset(server, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    server.files[f'{NAME}.npz'] = npz_bytes(**make_arrays())
    server.files[f'{NAME}-val.npz'] = npz_bytes(**make_arrays((4,)))
    data_dir = tmp_path / 'new' / 'data'
    path, val_path, note = find_dataset(NAME, data_dir=data_dir, dataset_url=server.url + '/')
    assert (path, val_path) == (data_dir / f'{NAME}.npz', data_dir / f'{NAME}-val.npz')
    assert len(load_trajectories(path)[1]) == 3 and len(load_trajectories(val_path)[1]) == 1
    assert 'downloaded' in note
    assert sorted(file.name for file in data_dir.iterdir()) == [f'{NAME}-val.npz', f'{NAME}.npz']
    count = len(server.requests)
    find_dataset(NAME, data_dir=data_dir, dataset_url=server.url)
    assert len(server.requests) == count


def test_download_resumes_a_broken_connection(server, tmp_path):
    body = big_body()
    server.files['a.npz'], server.break_at = body, [100_000, 200_000]
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body
    assert server.requests == [('a.npz', None), ('a.npz', 100_000), ('a.npz', 200_000)]


def test_download_resumes_the_part_file_of_an_earlier_call(server, tmp_path):
    body = big_body()
    server.files['a.npz'], server.break_at = body, [100_000, 100_000, 100_000, 100_000]
    with pytest.raises(OSError, match='broke after 100,000 of'):
        download('a.npz', tmp_path, [server.url])
    assert len(server.requests) == 4  # the first attempt and three retries
    assert (tmp_path / 'a.npz.part').stat().st_size == 100_000 and not (tmp_path / 'a.npz').exists()
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body
    assert server.requests[-1] == ('a.npz', 100_000)


def test_download_works_if_the_server_ignores_range(server, tmp_path):
    body = big_body()
    server.files['a.npz'], server.ranges = body, False
    (tmp_path / 'a.npz.part').write_bytes(body[:100_000])
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body
    assert server.requests == [('a.npz', 100_000)]


def test_download_works_without_content_length(server, tmp_path):
    server.files['a.npz'], server.lengths = big_body(), False
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == server.files['a.npz']


def test_download_retries_a_protocol_error(server, tmp_path, monkeypatch):
    server.files['a.npz'] = body = npz_bytes(**make_arrays())
    answers = [IncompleteRead(b''), None]
    urlopen = downloading.urlopen

    def fail_once(request, timeout):
        if error := answers.pop(0):
            raise error
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(downloading, 'urlopen', fail_once)
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body


def test_download_accepts_a_complete_part_file(server, tmp_path):
    body = big_body()
    server.files['a.npz'] = body
    (tmp_path / 'a.npz.part').write_bytes(body)
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body
    assert server.requests == [('a.npz', len(body))]


@pytest.mark.parametrize('size', [100_000, 1_000_000])
def test_download_discards_the_part_of_another_file(server, tmp_path, size):
    body = big_body()
    server.files['a.npz'] = body
    (tmp_path / 'a.npz.part').write_bytes(b'x' * size)  # resumed at its end, or answered by 416
    assert download('a.npz', tmp_path, [server.url]).read_bytes() == body
    assert server.requests == [('a.npz', size), ('a.npz', None)]


def test_download_refuses_a_web_page_without_retries(server, tmp_path):
    server.files['a.npz'] = b'<!DOCTYPE html><html>moved</html>'
    with pytest.raises(OSError, match='not an OGBench dataset, perhaps a web page'):
        download('a.npz', tmp_path, [server.url])
    assert list(tmp_path.iterdir()) == [] and len(server.requests) == 1


def test_download_refuses_an_npz_without_observations(server, tmp_path):
    server.files['a.npz'] = npz_bytes(terminals=np.ones(3))
    with pytest.raises(OSError, match='observations'):
        download('a.npz', tmp_path, [server.url])
    assert list(tmp_path.iterdir()) == []


def test_download_detects_a_flipped_byte(server, tmp_path):
    body = bytearray(big_body())
    body[50_000] ^= 0xFF
    server.files['a.npz'] = bytes(body)
    with pytest.raises(OSError, match='not an OGBench dataset'):
        download('a.npz', tmp_path, [server.url])
    assert list(tmp_path.iterdir()) == []


def test_download_requires_the_training_file_only(server, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert download('a-val.npz', tmp_path, [server.url]) is None
    with pytest.raises(OSError, match='404'):
        download('a.npz', tmp_path, [server.url])
    monkeypatch.setattr(ogbench_utils, 'OGBENCH_URL', server.url)
    with pytest.raises(FileNotFoundError, match='404'):
        find_dataset(NAME, data_dir=tmp_path)
    server.files[f'{NAME}.npz'] = npz_bytes(**make_arrays())
    assert find_dataset(NAME, data_dir=tmp_path)[:2] == (tmp_path / f'{NAME}.npz', None)


def test_download_retries_server_errors_and_tries_the_next_url(server, tmp_path):
    server.files['a.npz'] = body = npz_bytes(**make_arrays())
    server.status = [503, 503]
    assert download('a.npz', tmp_path / 'retry', [server.url]).read_bytes() == body
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))  # bound, but not listening: connections are refused
        closed = f'http://127.0.0.1:{unused.getsockname()[1]}'
        assert download('a.npz', tmp_path / 'next', [closed, server.url]).read_bytes() == body
    with pytest.raises(OSError, match=f'{closed}/a.npz: .*; {closed}/b/a.npz: '):
        download('a.npz', tmp_path, [closed, f'{closed}/b'])


def test_download_does_not_retry_a_refusal(server, tmp_path):
    server.status = [403]
    with pytest.raises(OSError, match='403'):
        download('a.npz', tmp_path, [server.url])
    assert len(server.requests) == 1


class Answer(io.BytesIO):
    """A response of a server: `body` in pieces of `step` bytes, each after `seconds` of a clock."""

    status = 200

    def __init__(self, body, length=None, step=1 << 16, clock=None, seconds=0.0):
        super().__init__(body)
        self.headers = {'Content-Length': length}
        self.step, self.clock, self.seconds = step, clock, seconds

    def read1(self, size):
        if self.clock:
            self.clock.time += self.seconds
        return super().read1(min(size, self.step))


def answer_with(monkeypatch, *answers):
    """Let the next requests get these answers; returns the number of requests."""
    answers = list(answers)
    monkeypatch.setattr(downloading, 'urlopen', lambda request, timeout: answers.pop(0))
    monkeypatch.setattr(downloading, 'RETRY_WAITS', (0.0, 0.0, 0.0))
    return answers


@pytest.mark.parametrize('length', [None, '3000000'])
def test_download_stops_at_the_size_of_a_dataset(tmp_path, monkeypatch, length):
    monkeypatch.setattr(downloading, 'MAX_BYTES', 1_000_000)
    left = answer_with(monkeypatch, Answer(bytes(3_000_000), length), 'a second request')
    with pytest.raises(OSError, match='larger than 1,000,000 bytes.* --data_dir'):
        download('a.npz', tmp_path, ['http://host'])
    assert list(tmp_path.iterdir()) == [] and len(left) == 1


def test_download_leaves_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(downloading.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 0, 2000))
    for length in (None, '3000'):
        answer_with(monkeypatch, Answer(bytes(3000), length))
        with pytest.raises(OSError, match='larger than 1,900 bytes'):
            download('a.npz', tmp_path, ['http://host'])
    assert list(tmp_path.iterdir()) == []


def test_download_gives_up_on_a_slow_server(tmp_path, monkeypatch):
    """One byte every half second would take a year; the connection itself never times out."""
    clock = SimpleNamespace(time=0.0)
    monkeypatch.setattr(downloading.time, 'monotonic', lambda: clock.time)
    slow = [Answer(bytes(10_000), None, 1, clock, 0.5) for _ in range(4)]
    answer_with(monkeypatch, *slow)
    with pytest.raises(OSError, match='too slow: 2 bytes per second'):
        download('a.npz', tmp_path, ['http://host'])
    assert clock.time < 5 * downloading.RATE_WINDOW

    fast = Answer(big_body(), None, 4000, clock, 1.0)
    answer_with(monkeypatch, fast)
    (tmp_path / 'a.npz.part').unlink()
    assert download('a.npz', tmp_path, ['http://host']).read_bytes() == big_body()


def test_download_gives_up_on_an_answer_that_never_begins(tmp_path, monkeypatch):
    asked = []

    def wait(request, timeout):
        asked.append(request)
        threading.Event().wait(3)

    monkeypatch.setattr(downloading, 'ANSWER_TIMEOUT', 0.05)
    monkeypatch.setattr(downloading, 'urlopen', wait)
    with pytest.raises(OSError, match='no answer within'):
        download('a.npz', tmp_path, ['http://host'])
    assert len(asked) == 1


def test_download_refuses_what_unpacks_to_too_much(tmp_path, monkeypatch):
    body = npz_bytes(observations=np.zeros((300_000, 3)), terminals=np.ones(3))
    monkeypatch.setattr(downloading, 'MAX_BYTES', 1_000_000)
    answer_with(monkeypatch, Answer(body))
    with pytest.raises(OSError, match='unpacks to more than 1,000,000 bytes'):
        download('a.npz', tmp_path, ['http://host'])
    assert list(tmp_path.iterdir()) == []


def test_download_cleans_the_text_of_a_server(tmp_path, monkeypatch):
    def fail(request, timeout):
        raise HTTPError(request.full_url, 403, 'no\x1b[2J\r\n\x07entry' + 'x' * 9999, {}, None)

    monkeypatch.setattr(downloading, 'urlopen', fail)
    with pytest.raises(OSError) as caught:
        download('a.npz', tmp_path, ['http://host'])
    message = str(caught.value)
    assert message.isprintable() and 'no\\x1b[2J \\x07entry' in message and len(message) < 1000


# Files that do not fit


def test_a_damaged_file_of_ogbench_can_be_downloaded_again(places, tmp_path):
    """Only a file that a search by name found may be one that OPSO has downloaded."""
    data_dir = places[0]
    own = tmp_path / 'own.npz'
    for path in (data_dir / f'{NAME}.npz', own):
        path.write_bytes(big_body()[:1000])
    with pytest.raises(ValueError, match="if it is OGBench's file, move it .* downloaded again") as caught:
        load_dataset(NAME, data_dir=data_dir)
    assert 'delete' not in str(caught.value)
    for name in (NAME, 'robot:make'):
        with pytest.raises(ValueError, match='own.npz: ') as caught:
            load_dataset(name, own)
        assert 'download' not in str(caught.value) and 'delete' not in str(caught.value)


def test_states_of_another_environment_are_refused_at_once(tmp_path, monkeypatch):
    """A forgotten --env is the usual cause: the default dataset has 29 dimensions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offline_trainer, 'OfflineAgent', lambda *_: pytest.fail('training began'))
    observations = np.random.default_rng(0).uniform(-2, 2, (400, 4))
    np.savez('mine.npz', observations=observations, terminals=np.arange(400) % 100 == 99)
    with pytest.raises(ValueError, match='mine.npz: its states have 4 dimensions, .*navigate-v0 29; .* --env'):
        offline_trainer.main(['--dataset_path', 'mine.npz', '--context_length', '20'])
    with pytest.raises(ValueError, match='mine.npz: its states have 4 dimensions, .*navigate-v0 29; .* --env'):
        offline_trainer.main(['--dataset_path', 'mine.npz', '--context_length', '20', '--observe', 'positions'])
    assert [path.name for path in tmp_path.iterdir()] == ['mine.npz']


def test_other_data_of_an_online_run_have_its_dimensions(write):
    agent = SimpleNamespace(observation_dim=29, config=SimpleNamespace(sampling=dict))
    recorded = dict(dataset=NAME, path='gone.npz', max_trajectories=0, fingerprint='of the data',
                    observation_model=dataclasses.asdict(FULL_STATE))
    with pytest.raises(ValueError, match='some.npz: its states have 3 dimensions, .* 29; '):
        load_recorded(recorded, 'last.pth', agent, dataset_path=str(write()))


def test_states_in_the_walls_of_their_maze_are_refused():
    bundled = load_trajectories(ogbench_utils.BUNDLED_DIR / f'{BUNDLED_NAME}.npz', 20)[0]
    for name, fits in (('antmaze-medium-stitch-v0', True), ('antmaze-large-navigate-v0', False),
                       ('antmaze-giant-navigate-v0', False)):
        env = ogbench_utils.make_env(name)
        if fits:
            ogbench_utils.check_positions(name, env, 'some.npz', bundled)
        else:
            with pytest.raises(ValueError, match=f'some.npz: .*% of its states lie in the walls of {name}; .*--env'):
                ogbench_utils.check_positions(name, env, 'some.npz', bundled)
    no_maze = SimpleNamespace(unwrapped=object())
    ogbench_utils.check_positions('scene-play-v0', no_maze, 'some.npz', bundled)


# Reading


def test_load_trajectories_returns_states_and_borders(write):
    observations, starts, ends = load_trajectories(write())
    np.testing.assert_array_equal(observations, make_arrays()['observations'])
    assert (observations.dtype, starts.dtype, ends.dtype) == (np.float32, np.int64, np.int64)
    assert observations.flags.c_contiguous and observations.flags.writeable
    assert (starts.tolist(), ends.tolist()) == ([0, 5, 8], [4, 7, 11])


@pytest.mark.parametrize('convert', [
    lambda x: x.astype(np.float64), lambda x: x.astype('>f8'), lambda x: x.astype(np.int32), np.asfortranarray
])
@pytest.mark.parametrize('limit', [None, 2])
def test_load_trajectories_converts_types_and_orders(write, convert, limit):
    arrays = make_arrays()
    terminals = arrays['terminals'].astype(np.float32)
    path = write(observations=convert(arrays['observations']), terminals=terminals)
    observations, starts, ends = load_trajectories(path, limit)
    np.testing.assert_array_equal(observations, arrays['observations'][:8 if limit else None])
    converted = convert(arrays['observations']).dtype
    assert observations.dtype == (np.float32 if np.can_cast(converted, np.float32) else np.float64)
    assert observations.flags.c_contiguous


def test_load_trajectories_keeps_max_trajectories(write):
    path = write()
    observations, starts, ends = load_trajectories(path, max_trajectories=2)
    np.testing.assert_array_equal(observations, make_arrays()['observations'][:8])
    assert (starts.tolist(), ends.tolist()) == ([0, 5], [4, 7])
    assert len(load_trajectories(path, max_trajectories=100)[1]) == 3
    with pytest.raises(ValueError, match='max_trajectories'):
        load_trajectories(path, max_trajectories=0)


def test_load_trajectories_reads_in_pieces_with_little_memory(write):
    arrays = make_arrays((100_000,) * 4, dim=29)  # 46 MB, 23 pieces
    arrays['observations'][:, 1:] = 0  # compresses quickly
    path, size = write(**arrays), arrays['observations'].nbytes
    tracemalloc.start()
    observations, _, _ = load_trajectories(path)
    full_peak = tracemalloc.get_traced_memory()[1]
    np.testing.assert_array_equal(observations, arrays['observations'])
    del observations
    tracemalloc.reset_peak()
    observations, _, _ = load_trajectories(path, max_trajectories=1)
    part_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(observations, arrays['observations'][:100_000])
    assert full_peak < 1.4 * size and part_peak < 0.6 * size


@pytest.mark.parametrize('order', 'CF')
def test_load_trajectories_checks_later_pieces(write, order):
    arrays = make_arrays((60_000, 60_000), dim=8)  # 3.8 MB, two pieces
    observations = arrays['observations'].copy(order=order)
    expected = arrays['observations'].copy()
    loaded = load_trajectories(write(**{**arrays, 'observations': observations}))[0]
    np.testing.assert_array_equal(loaded, expected)
    observations[110_000, 5] = np.nan
    with pytest.raises(ValueError, match=r'`observations\[110000, 5\]` is nan'):
        load_trajectories(write(**{**arrays, 'observations': observations}))


def test_load_trajectories_never_reads_actions(tmp_path, write):
    good = write()
    path = tmp_path / 'bad_actions.npz'
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as new:
        new.writestr('actions.npy', b'ACTIONS' * 100)
        for member in ('observations.npy', 'terminals.npy'):
            new.writestr(member, old.read(member))
    path.write_bytes(path.read_bytes().replace(b'ACTIONS', b'GARBAGE'))
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read('actions.npy')
    assert len(load_trajectories(path)[0]) == 12


def replaced(key, index, value):
    array = make_arrays()[key].astype(np.float32)
    array[index] = value
    return {key: array}


@pytest.mark.parametrize('changes, words', [
    (dict(observations=None), 'no `observations`'),
    (dict(terminals=None), r'no `terminals` in it, only `observations`, `actions` \(docs/data.md\); `python'),
    (dict(observations=np.zeros(12)), r'`observations` is float64 of shape \(12,\)'),
    (dict(observations=np.zeros((12, 2, 2))), '`observations` .* 2-d'),
    (dict(terminals=np.ones((12, 1))), '`terminals` .* 1-d'),
    (dict(observations=np.zeros((11, 3))), '`observations` has 11 rows, `terminals` 12'),
    (dict(observations=np.array([[None]] * 12)), '`observations` is object'),
    (dict(observations=np.array([['1']] * 12)), '`observations` is <U1'),
    (dict(terminals=np.array([None] * 12)), '`terminals` is object'),
    (dict(observations=np.zeros((0, 3)), terminals=np.zeros(0)), 'not empty'),
    (dict(observations=np.zeros((12, 0))), 'not empty'),
    (replaced('observations', (7, 1), np.nan), r'`observations\[7, 1\]` is nan'),
    (replaced('observations', (slice(9, 11), 2), -np.inf), r'`observations\[9, 2\]` is -inf'),
    (replaced('terminals', 3, np.nan), r'`terminals\[3\]` is nan'),
    (replaced('terminals', slice(None), 0), 'no terminal ends the last 12 of 12 rows; set `terminals` in the'),
    (replaced('terminals', 11, 0), 'no terminal ends the last 4 of 12 rows'),
    (dict(terminals=~make_arrays()['terminals']), 'set in 9 of 12 rows; .* save `terminals == 0`'),
])
def test_load_trajectories_reports_bad_content_in_one_line(write, changes, words):
    path = write(**changes)
    with pytest.raises(ValueError, match=words) as caught:
        load_trajectories(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and '\n' not in message
    assert any(words in message for words in ('--dataset_path', 'docs/data.md', 'save `', 'convert_data.py'))


def test_load_trajectories_ignores_nan_in_dropped_trajectories(write):
    path = write(**replaced('observations', (8, 0), np.nan))
    assert len(load_trajectories(path, max_trajectories=2)[0]) == 8
    with pytest.raises(ValueError, match='nan'):
        load_trajectories(path, max_trajectories=3)


@pytest.mark.parametrize('damage', [
    lambda body: b'', lambda body: b'<html>not here</html>', lambda body: body[:len(body) // 2],
    lambda body: body[:100_000] + bytes(50) + body[100_050:],
])
def test_load_trajectories_reports_a_damaged_file_in_one_line(tmp_path, damage):
    path = tmp_path / 'bad.npz'
    path.write_bytes(damage(big_body()))
    with pytest.raises(ValueError, match='--dataset_path') as caught:
        load_trajectories(path)
    assert str(caught.value).startswith(f'{path}: ') and 'download' not in str(caught.value)


def test_load_trajectories_detects_every_flipped_byte(write):
    path = write()
    body, expected = path.read_bytes(), make_arrays()['observations']
    for i in range(len(body)):
        path.write_bytes(body[:i] + bytes([body[i] ^ 0x55]) + body[i + 1:])
        try:
            observations = load_trajectories(path)[0]
        except ValueError as error:
            assert str(error).startswith(f'{path}: ')
        else:
            np.testing.assert_array_equal(observations, expected)


def test_load_trajectories_reports_a_missing_file(tmp_path):
    for path in (tmp_path / 'none.npz', tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            load_trajectories(path)


# Commands


@pytest.mark.skipif(os.name == 'nt', reason='a closed pipe is no error on Windows')
def test_list_command_ignores_a_closed_stdout():
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, 'ogbench_utils.py', 'list'], cwd=ROOT, stdout=theirs,
                          stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, '')

    closed = f'exec {shlex.quote(sys.executable)} ogbench_utils.py list >&-'
    done = subprocess.run(['sh', '-c', closed], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, '')


def test_list_command_shows_datasets_by_family(places, write, capsys):
    data_dir, home, bundled = places
    (data_dir / f'{NAME}.npz').write_bytes(write().read_bytes())
    (home / 'antmaze-medium-stitch-v0.npz').write_text('damaged')
    ogbench_utils.main(['list', '--data_dir', str(data_dir)])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if '-v0 ' in line}
    assert set(lines) == {BUNDLED_NAME, *DATASETS}
    assert lines[NAME].split()[1:4] == ['3', '3-5', '3'], 'from the file'
    assert str(data_dir / NAME) in lines[NAME]
    assert 'DAMAGED' in lines['antmaze-medium-stitch-v0'] and str(home) in lines['antmaze-medium-stitch-v0']
    assert lines['humanoidmaze-large-stitch-v0'].split()[1:] == ['5,000', '401', '69', '-', 'not', 'here']
    families = out.split('\n\n')
    assert families[4].startswith('ant soccer\n') and families[4].count('antsoccer-') == 4
    assert families[6] == f"scene\n{lines['scene-play-v0']}\n{lines['scene-noisy-v0']}"
    assert 'download NAME' in families[-1] and 'collect_dataset.py --dataset NAME' in families[-1]


def test_check_command_prints_the_content_or_the_error(write, capsys):
    path = write()
    ogbench_utils.main(['check', str(path)])
    out = capsys.readouterr().out
    assert f'{path}: good. 3 trajectories of 3-5 rows, 12 observations of 3 dimensions' in out
    assert 'vary' not in out
    observations = make_arrays()['observations']
    observations[:, 1] = 7
    ogbench_utils.main(['check', str(write(observations=observations))])
    assert '1 dimension(s) never vary' in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match='some.npz'):
        ogbench_utils.main(['check', str(path)])


def test_download_command_checks_both_files(places, server, monkeypatch, capsys):
    monkeypatch.undo()  # the network is there
    monkeypatch.setattr(ogbench_utils, 'OGBENCH_URL', server.url)
    server.files[f'{NAME}.npz'] = npz_bytes(**make_arrays())
    server.files[f'{NAME}-val.npz'] = npz_bytes(**make_arrays((4, 6)))
    ogbench_utils.main(['download', NAME, '--data_dir', str(places[0])])
    out = capsys.readouterr().out
    assert '(downloaded)' in out and '3 trajectories' in out
    assert f'{NAME}-val.npz: good. 2 trajectories' in out
    with pytest.raises(ValueError, match='unknown --dataset antmaze-medum'):
        ogbench_utils.main(['download', 'antmaze-medum-navigate-v0'])


def test_commands_report_errors_in_one_line(tmp_path):
    script = Path(ogbench_utils.__file__)
    done = subprocess.run([sys.executable, script, 'check', 'none.npz'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        'ogbench_utils.py: loading libraries', 'error: none.npz: no such npz file']
