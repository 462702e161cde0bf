"""Videos: replays of evaluated episodes, the choice of an OpenGL library, and files."""

import contextlib
import io
import os
import stat
import subprocess
import types

import gymnasium
import numpy as np
import pytest
from PIL import Image

import ogbench_utils
from figures import videos
from observing.observation_models import FULL_STATE
from ogbench_utils import make_env, reset_env
from rollouts import Episode
from support.flags import run_main

ANT = 'antmaze-medium-navigate-v0'


@pytest.fixture
def episode():
    """Return an Episode of eighteen random steps in task 2."""
    env = make_env(ANT)
    rng = np.random.default_rng(0)
    observation, goal = reset_env(env, 2, 5)
    episode = Episode(0, 2, 5, goal, [observation], [])
    for _ in range(18):
        episode.actions.append(rng.uniform(-1, 1, 8).astype(np.float32))
        episode.observations.append(env.step(episode.actions[-1])[0].astype(np.float32))
    return episode.finish(8)


@pytest.fixture
def no_gl(monkeypatch):
    """Render empty frames, which need no OpenGL library."""

    def make(dataset, **options):
        env = make_env(dataset, **options)
        env.unwrapped.render = lambda: np.zeros((options['height'], options['width'], 3), np.uint8)
        return env

    monkeypatch.setattr(ogbench_utils, 'make_env', make)


def write_job(episode, folder):
    """Write the job of a video and return its path."""
    path = folder / 'job.npz'
    videos.write_job(path, ANT, episode, folder / 'video' / 'task2', FULL_STATE, size=200, every=4)
    return path


def outcome_color(picture):
    """Return the colour of a frame below the word of the outcome; black without an outcome."""
    return picture.convert('RGB').getpixel((picture.width - 74, picture.height - 6))


def test_render_writes_a_gif_with_the_outcome_at_its_end(episode, no_gl, tmp_path, monkeypatch):
    monkeypatch.setattr(videos.shutil, 'which', lambda name: None)
    path = videos.render(write_job(episode, tmp_path))
    assert path == tmp_path / 'video' / 'task2.gif'
    with Image.open(path) as gif:
        assert gif.size == (200, 224) and gif.n_frames >= 6
        assert outcome_color(gif) == (0, 0, 0), 'no outcome in the first frame'
        gif.seek(gif.n_frames - 1)
        failure = outcome_color(gif)
        assert failure != (0, 0, 0)

    episode.success = 1.0
    with Image.open(videos.render(write_job(episode, tmp_path))) as gif:
        gif.seek(gif.n_frames - 1)
        assert outcome_color(gif) != failure


def test_render_refuses_a_replay_that_differs(episode, no_gl, tmp_path):
    episode.observations[9, 3] += 0.01
    with pytest.raises(OSError, match='step 9 '):
        videos.render(write_job(episode, tmp_path))


def test_write_video_prefers_ffmpeg_and_falls_back_to_gif(tmp_path, monkeypatch):
    if os.name == 'nt':
        pytest.skip('the stand-in for ffmpeg is a shell script')
    program = tmp_path / 'ffmpeg'
    program.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(videos.shutil, 'which', lambda name: str(program))
    frames = [videos.label(np.full((8, 8, 3), i, np.uint8), '') for i in range(3)]
    path = videos.write_video(frames, tmp_path / 'a' / 'b')
    assert path.suffix == '.mp4' and path.stat().st_size == 3 * 8 * 32 * 3
    program.write_text('#!/bin/sh\nexit 1\n')
    path = videos.write_video(frames, tmp_path / 'a' / 'c')
    assert path.suffix == '.gif' and not path.with_suffix('.mp4').exists()


def test_environment_without_render_is_named(episode, tmp_path, monkeypatch, capsys):
    """gymnasium.Env.render raises NotImplementedError."""
    def make(dataset, **options):
        env = make_env(dataset)
        env.unwrapped.render = lambda: gymnasium.Env.render(env.unwrapped)
        return env

    def run(gl, what, job, progress):
        error = io.StringIO()
        monkeypatch.setattr(ogbench_utils, 'make_env', make)
        with contextlib.redirect_stderr(error), pytest.raises(SystemExit):
            run_main(lambda: videos.render(job))
        return subprocess.CompletedProcess([], 2, '', error.getvalue())

    monkeypatch.setattr(videos, 'find_gl', lambda: ('', {}))
    monkeypatch.setattr(videos, '_run', run)
    assert videos.record(ANT, [episode], tmp_path) == []
    assert capsys.readouterr().err == ('no video of task 2: the environment has no render(), which returns a '
                                       'picture (H, W, 3)\n')


def test_find_gl_skips_a_library_that_fails(monkeypatch):
    """MuJoCo refuses the name when it is imported in the probe's subprocess."""
    monkeypatch.setenv('MUJOCO_GL', 'nonsense')
    name, failures = videos.find_gl()
    assert 'nonsense' in failures and name != 'nonsense'
    assert os.environ['MUJOCO_GL'] == 'nonsense', 'unchanged in this process'


def test_record_names_what_to_install_without_gl(episode, tmp_path, monkeypatch, capsys):
    codes = {'egl': -11, 'osmesa': 1}  # a segmentation fault, an exception
    errors = {'egl': '', 'osmesa': 'Traceback\nno such library'}

    def fail(gl, *arguments, timeout=None):
        return subprocess.CompletedProcess(arguments, codes[gl], '', errors[gl])

    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(videos.sys, 'platform', 'linux')
    monkeypatch.setattr(videos, '_run', fail)
    assert videos.record(ANT, [episode], tmp_path) == []
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    for part in ('egl: the process ended with code -11', 'no such library', 'libegl1', 'libosmesa6'):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_record_renders_one_video_per_task(episode, tmp_path, capsys, monkeypatch):
    if videos.find_gl()[0] is None:
        pytest.skip('no GL library renders here')
    counted = []
    bar = contextlib.nullcontext(types.SimpleNamespace(update=counted.append))
    monkeypatch.setattr(videos, 'progress_bar', lambda total, **_: counted.append(-total) or bar)
    (path,) = videos.record(ANT, [episode, episode], tmp_path)
    assert counted[0] == -4 and sum(counted) == 0, 'a count for each of the frames 0, 8, 16 and 18'
    with Image.open(path) as video:
        frame = np.asarray(video.convert('RGB'))
    assert frame[30:].std() > 30, 'walls and floor'
    episode.observations[4] += 1
    assert videos.record(ANT, [episode], tmp_path) == []
    assert 'no video of task 2' in capsys.readouterr().err
