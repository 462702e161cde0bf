"""Record videos of episodes, one for each task, without a display.

A disc marks the goal, and the last frames show the outcome. MuJoCo chooses its OpenGL library when it is
imported, and an unsuitable one can crash the process. All rendering therefore runs in subprocesses: a probe
of each library, and the videos with the first library that works.

    python -m figures.videos probe            render one frame with the library in MUJOCO_GL
    python -m figures.videos render JOB.npz   render one episode (`record` writes such files)
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from environments.checks import closing
from environments.custom_env import is_custom
from observing.observation_models import FULL_STATE, ObservationModel
from support.flags import run_main
from support.progress import progress_bar, warn

ROOT = Path(__file__).resolve().parents[1]
FRAME = 'frame'  # a line for each rendered frame
FRAME_RATE = 12  # frames per second
PROBE_TIMEOUT = 60.0  # seconds
REPLAY_TOL = 1e-4  # error of a replayed dimension, relative to its largest absolute value
INSTALL_HINT = ('install EGL (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri) or OSMesa (apt install '
                'libosmesa6, pip install pyopengl)')
OUTCOMES = {True: ('success', '#009E73'), False: ('failure', '#D55E00')}  # word and colour in the last frames
GOAL_RGBA = (0.94, 0.89, 0.26, 1)  # yellow, as in the figures


def find_gl():
    """Find an OpenGL library that renders on this machine.

    Returns:
        name: a value for MUJOCO_GL ('' is MuJoCo's default), or None if no library renders.
        failures: {name: reason} of the libraries that failed.
    """
    candidates = ('egl', 'osmesa') if sys.platform.startswith('linux') else ('',)
    failures = {}
    for name in dict.fromkeys([os.environ.get('MUJOCO_GL') or candidates[0], *candidates]):
        try:
            done = _run(name, 'probe', timeout=PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            failures[name] = f'no frame within {PROBE_TIMEOUT:.0f} s'
            continue
        if done.returncode == 0:
            return name, failures
        lines = done.stderr.strip().splitlines()
        failures[name] = lines[-1] if lines else f'the process ended with code {done.returncode}'
    return None, failures


def _run(gl, *arguments, timeout=None, progress=None):
    """Run this file in a subprocess with `gl` as its MUJOCO_GL; return the CompletedProcess.

    `progress` counts the lines `FRAME` of its output; `timeout`, in seconds, is for calls without it.
    """
    unwanted = ('MUJOCO_GL', 'PYOPENGL_PLATFORM')
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    if gl:
        environment['MUJOCO_GL'] = gl
    paths = [str(ROOT), *filter(None, [environment.get('PYTHONPATH')])]
    environment['PYTHONPATH'] = os.pathsep.join(paths)

    command = [sys.executable, __file__, *map(str, arguments)]
    environment['PYTHONIOENCODING'] = 'utf-8'  # paths pass through the output
    if progress is None:
        return subprocess.run(command, env=environment, capture_output=True, encoding='utf-8', timeout=timeout)

    lines = []
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as errors, \
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors,
                             encoding='utf-8') as process:
        try:
            for line in process.stdout:
                lines.append(line)
                progress.update(line.strip() == FRAME)
            process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, ''.join(lines), errors.read())


def record(dataset, episodes, folder, observation_model=FULL_STATE, size=320, every=8):
    """Render the first episode of each task into `folder`/task<k>.mp4, or .gif without ffmpeg.

    An episode that cannot be rendered is skipped, with one line on stderr that gives the reason.

    Args:
        dataset: name of the dataset or custom environment.
        episodes: list of `rollouts.Episode`.
        folder: where the videos go.
        observation_model: the `ObservationModel` of the evaluation.
        size: width and height in pixels.
        every: environment steps per frame.

    Returns:
        The list of paths.
    """
    first = {episode.task: episode for episode in reversed(episodes)}
    total = sum(-(-len(episode.actions) // every) + 1 for episode in first.values())
    with progress_bar(total=total, desc='videos', unit='frame', leave=False) as progress:
        gl, failures = find_gl()
        if gl is None and not is_custom(dataset):  # a custom environment may render without OpenGL
            reasons = '; '.join(f'{name or "default"}: {reason}' for name, reason in failures.items())
            warn(f'no video: no OpenGL library can render here ({reasons}); {INSTALL_HINT}')
            return []

        paths = []
        for task, episode in sorted(first.items()):
            with tempfile.TemporaryDirectory() as temporary:
                job = Path(temporary) / 'job.npz'
                output = Path(folder).resolve() / f'task{task}'
                write_job(job, dataset, episode, output, observation_model, size, every)
                done = _run(gl or '', 'render', job, progress=progress)

            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f'the process ended with code {done.returncode}']
                warn(f'no video of task {task}: {lines[-1].removeprefix("error: ")}')
            else:
                paths.append(Path(done.stdout.splitlines()[-1]))
        return paths


def write_job(path, dataset, episode, output, observation_model, size, every):
    """Write an npz file with all that `render` needs to replay an `Episode`."""
    np.savez(
        path,
        dataset=dataset,
        task=episode.task,
        seed=episode.seed,
        actions=episode.actions,
        observations=episode.observations,
        success=episode.success,
        output=str(output),
        observation_model=json.dumps(dataclasses.asdict(observation_model)),
        size=size,
        every=every,
    )


# -------------------------------------------------------------------------- in the subprocess that renders
def probe():
    """Render a white ball.

    Raises:
        OSError: if the frame is empty.
    """
    import mujoco

    ball = '<light pos="0 0 3"/><geom size="1"/><camera name="c" pos="0 0 3"/>'
    model = mujoco.MjModel.from_xml_string(f'<mujoco><worldbody>{ball}</worldbody></mujoco>')
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)

    renderer = mujoco.Renderer(model, 64, 64)
    renderer.update_scene(data, camera='c')
    if np.ptp(renderer.render()) == 0:
        raise OSError('the frame is empty')


def render(job):
    """Replay an evaluated episode, render it and return the path of the video.

    Raises:
        OSError: if a replayed observation differs from the evaluated one.
    """
    with np.load(job, allow_pickle=False) as file:
        dataset = str(file['dataset'])
        task = int(file['task'])
        seed = int(file['seed'])
        actions = file['actions']
        observations = file['observations']
        success = bool(file['success'])
        output = Path(str(file['output']))
        observation_model = ObservationModel.from_dict(json.loads(str(file['observation_model'])))
        size = int(file['size'])
        every = int(file['every'])

    with closing(open_rendering(dataset, size)) as env:
        # a wrapper may render a custom environment; those of gymnasium.make refuse to render OGBench's
        draw = env.render if is_custom(dataset) else env.unwrapped.render
        env = observation_model.wrap(env)
        frames = _replay(env, draw, task, seed, actions, observations, success, every)

    outcome_second = [frames[-1]] * FRAME_RATE
    return write_video(frames + outcome_second, output)


def _replay(env, draw, task, seed, actions, observations, success, every):
    """Return frames (PIL images) of an episode that is repeated in `env` and rendered by `draw()`.

    It prints a line for each frame. Other arguments: those of `write_job`, or parts of its `Episode`.
    """
    from ogbench_utils import reset_env

    observation, _ = reset_env(env, task, seed)
    frames = []
    for step in range(len(actions) + 1):
        last = step == len(actions)
        if (np.abs(observation - observations[step]) > REPLAY_TOL * np.abs(observations).max(0)).any():
            raise OSError(f'step {step} differs from the evaluated episode: install the same package '
                          "versions, or let the environment's reset(seed) determine the episode")
        if last or step % every == 0:
            outcome = success if last else None
            frames.append(label(_render_frame(draw), f'task {task}   step {step}', outcome))
            print(FRAME, flush=True)
        if not last:
            observation = np.array(env.step(actions[step].copy())[0], np.float32)
    return frames


def open_rendering(name, size):
    """Return the environment of a name that renders `size` by `size` pixels."""
    from ogbench_utils import make_env

    if is_custom(name):
        return make_env(name, render_mode='rgb_array', width=size, height=size)
    env = make_env(name, width=size, height=size)
    if hasattr(env.unwrapped, 'maze_map'):
        env.unwrapped.model.mat('target').rgba = GOAL_RGBA
    return env


def _render_frame(draw):
    """Return a frame (H, W, 3) uint8.

    Raises:
        OSError: if the environment has no render(), or it returns no frame.
    """
    try:
        pixels = np.asarray(draw())
    except NotImplementedError:  # of gymnasium.Env
        raise OSError('the environment has no render(), which returns a picture (H, W, 3)') from None
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise OSError("the environment's render() returned no array (H, W, 3); "
                      'let its factory pass render_mode on')
    return pixels.astype(np.uint8)


def label(pixels, text, success=None):
    """Return a frame (H, W, 3) uint8 as a PIL image with a line of text above it.

    `success` (True, False or None) adds the outcome and a border in its colour.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = pixels.shape[:2]
    picture = Image.new('RGB', (width, height + 24), 'white')
    picture.paste(Image.fromarray(pixels), (0, 24))
    draw = ImageDraw.Draw(picture)
    draw.text((6, 5), text, 'black', ImageFont.load_default(14))

    if success is not None:
        word, color = OUTCOMES[bool(success)]
        draw.rectangle((width - 78, height, width, height + 23), fill=color)
        draw.text((width - 39, height + 11), word, 'white', ImageFont.load_default(14), anchor='mm')
        draw.rectangle((0, 24, width - 1, height + 23), outline=color, width=4)

    return picture


def write_video(frames, output):
    """Write frames (PIL images) to `output`.mp4 by ffmpeg, or to `output`.gif without it; return the path."""
    output.parent.mkdir(parents=True, exist_ok=True)

    ffmpeg = shutil.which('ffmpeg')
    if ffmpeg:
        path = output.with_suffix('.mp4')
        size = '{}x{}'.format(*frames[0].size)
        command = [ffmpeg, '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', size,
                   '-r', str(FRAME_RATE), '-i', '-', '-pix_fmt', 'yuv420p', str(path)]
        if subprocess.run(command, input=b''.join(frame.tobytes() for frame in frames)).returncode == 0:
            return path
        path.unlink(missing_ok=True)

    from PIL import Image

    path = output.with_suffix('.gif')
    frames = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = 1000 // FRAME_RATE
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0,
                   optimize=True)
    return path


if __name__ == '__main__':
    if sys.argv[1] == 'probe':
        probe()
    else:
        run_main(lambda: print(render(sys.argv[2])))
