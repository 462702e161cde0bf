"""Videos of episodes, one per task, without a display: the goal is the disc, the outcome is written in.

MuJoCo picks its OpenGL library when it is imported, and one that does not fit can crash the process. So everything
that renders runs in a process of its own; first a probe of each library, then the videos with the one that works.

    python figures/videos.py probe            render one picture with the library that MUJOCO_GL names
    python figures/videos.py render JOB.npz   render one episode (`record` writes such files)
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

from environments.custom_env import is_custom
from observing.observation_models import FULL_STATE, ObservationModel

RATE = 12  # frames per second
PROBE_TIMEOUT = 60.0  # seconds
HOW_TO_INSTALL = ('install EGL (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri) or OSMesa (apt install '
                  'libosmesa6, pip install pyopengl)')


def find_gl():
    """-> (value of MUJOCO_GL that can render here or None, {value: why not}). '' is MuJoCo's own choice."""
    candidates = ('egl', 'osmesa') if sys.platform.startswith('linux') else ('',)
    failures = {}
    for name in dict.fromkeys([os.environ.get('MUJOCO_GL') or candidates[0], *candidates]):
        try:
            done = _run(name, 'probe', timeout=PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            failures[name] = f'no picture within {PROBE_TIMEOUT:.0f} s'
            continue
        if done.returncode == 0:
            return name, failures
        lines = done.stderr.strip().splitlines()
        failures[name] = lines[-1] if lines else f'the process ended with code {done.returncode}'
    return None, failures


def _run(gl, *arguments, timeout=None):
    """Run this file in a process of its own, with `gl` as its MUJOCO_GL -> CompletedProcess."""
    unwanted = ('MUJOCO_GL', 'PYOPENGL_PLATFORM')
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    if gl:
        environment['MUJOCO_GL'] = gl
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def record(dataset, episodes, folder, observation_model=FULL_STATE, size=320, every=8):
    """Render the first of the `episodes` of each task into `folder`/task<k>.mp4, or .gif where there is no ffmpeg
    -> paths. `observation_model`: through which the environment was seen.

    `size` in pixels; a frame every so many environment steps. What cannot be rendered is left out, with one line that
    says why: no result depends on it.
    """
    gl, failures = find_gl()
    if gl is None and not is_custom(dataset):  # your own environment may draw without OpenGL
        reasons = '; '.join(f'{name or "default"}: {reason}' for name, reason in failures.items())
        print(f'no video: no OpenGL library can render here ({reasons}); {HOW_TO_INSTALL}', file=sys.stderr)
        return []

    paths = []
    for task in sorted({episode.task for episode in episodes}):
        episode = next(e for e in episodes if e.task == task)
        with tempfile.TemporaryDirectory() as temporary:
            job = Path(temporary) / 'job.npz'
            write_job(job, dataset, episode, Path(folder).resolve() / f'task{task}', observation_model, size, every)
            done = _run(gl or '', 'render', job)

        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f'the process ended with code {done.returncode}']
            print(f'no video of task {task}: {lines[-1]}', file=sys.stderr)
        else:
            paths.append(Path(done.stdout.splitlines()[-1]))
    return paths


def write_job(path, dataset, episode, output, observation_model, size, every):
    """What `render` needs to run an `Episode` again, as an npz file."""
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


# ------------------------------------------------------------------------------------- in the rendering process
def probe():
    """Render a white ball; raises unless there is something on the picture."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/><camera name="c" pos="0 0 3"/></worldbody></mujoco>')
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)

    renderer = mujoco.Renderer(model, 64, 64)
    renderer.update_scene(data, camera='c')
    if np.ptp(renderer.render()) == 0:
        raise OSError('the picture is empty')


def render(job):
    """Run an evaluated episode again and render it -> path of the video. Raises OSError where it comes out otherwise:
    a video of another episode would be worse than none."""
    from ogbench_utils import reset_env

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

    env = observation_model.wrap(open_rendering(dataset, size))
    observation, _ = reset_env(env, task, seed)

    frames = []
    for step in range(len(actions) + 1):
        last = step == len(actions)
        if not np.allclose(observation, observations[step], atol=1e-4):
            raise OSError(f'step {step} is not that of the evaluated episode: other versions of the packages, or an '
                          'environment that the seed of a reset does not decide?')
        if last or step % every == 0:
            outcome = success if last else None
            frames.append(label(_frame(env), f'task {task}   step {step}', outcome))
        if not last:
            observation = env.step(actions[step])[0].astype(np.float32)

    return write_video(frames + [frames[-1]] * RATE, output)  # the outcome stays for a second


def open_rendering(name, size):
    """The environment of a name, for pictures of `size` pixels."""
    from ogbench_utils import make_env

    if is_custom(name):
        return make_env(name, render_mode='rgb_array', width=size, height=size)
    env = make_env(name, width=size, height=size)
    if hasattr(env.unwrapped, 'maze_map'):
        env.unwrapped.model.mat('target').rgba = (0.94, 0.89, 0.26, 1)  # the goal is yellow, as in the figures
    return env


def _frame(env):
    """(H, W, 3) uint8. OSError where an environment does not render."""
    pixels = np.asarray(env.unwrapped.render())
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise OSError("the environment's render() gives no picture (H, W, 3); does its factory take render_mode?")
    return pixels.astype(np.uint8)


def label(pixels, text, success=None):
    """A frame (H, W, 3) uint8 with a line of text above it, and the outcome in it once that is known -> PIL image."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = pixels.shape[:2]
    picture = Image.new('RGB', (width, height + 24), 'white')
    picture.paste(Image.fromarray(pixels), (0, 24))
    draw = ImageDraw.Draw(picture)
    draw.text((6, 5), text, 'black', ImageFont.load_default(14))

    if success is not None:
        word, color = ('success', '#009E73') if success else ('failure', '#D55E00')
        draw.rectangle((width - 78, height, width, height + 23), fill=color)
        draw.text((width - 39, height + 11), word, 'white', ImageFont.load_default(14), anchor='mm')
        draw.rectangle((0, 24, width - 1, height + 23), outline=color, width=4)

    return picture


def write_video(frames, output):
    """Frames (PIL images) -> `output`.mp4 by ffmpeg, or `output`.gif where ffmpeg is absent or fails."""
    output.parent.mkdir(parents=True, exist_ok=True)

    ffmpeg = shutil.which('ffmpeg')
    if ffmpeg:
        path = output.with_suffix('.mp4')
        size = '{}x{}'.format(*frames[0].size)
        command = [ffmpeg, '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', size,
                   '-r', str(RATE), '-i', '-', '-pix_fmt', 'yuv420p', str(path)]
        if subprocess.run(command, input=b''.join(frame.tobytes() for frame in frames)).returncode == 0:
            return path
        path.unlink(missing_ok=True)

    from PIL import Image

    path = output.with_suffix('.gif')
    frames = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // RATE, loop=0, optimize=True)
    return path


if __name__ == '__main__':
    if sys.argv[1] == 'probe':
        probe()
    else:
        print(render(sys.argv[2]))
