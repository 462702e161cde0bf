"""Videos of episodes, one per task, without a display: the goal is the disc, the outcome is written in.

MuJoCo picks its OpenGL library when it is imported, and one that does not fit can crash the process. So everything
that renders runs in a process of its own; first a probe of each library, then the videos with the one that works.

    python videos.py probe            render one picture with the library that MUJOCO_GL names
    python videos.py render JOB.npz   render one episode (`record` writes such files)
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

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
    environment = {name: value for name, value in os.environ.items() if name not in ('MUJOCO_GL', 'PYOPENGL_PLATFORM')}
    if gl:
        environment['MUJOCO_GL'] = gl
    return subprocess.run([sys.executable, __file__, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, timeout=timeout)


def record(dataset, episodes, folder, size=320, every=8):
    """Render the first of `episodes` (`run_episodes`'s) of each task into `folder`/task<k>.mp4, or .gif where there
    is no ffmpeg -> paths. `size` in pixels; a frame every so many environment steps. What cannot be rendered is left
    out, with one line that says why: no result depends on it.
    """
    gl, failures = find_gl()
    if gl is None:
        reasons = '; '.join(f'{name or "default"}: {reason}' for name, reason in failures.items())
        print(f'no video: no OpenGL library can render here ({reasons}); {HOW_TO_INSTALL}', file=sys.stderr)
        return []
    paths = []
    for task in sorted({episode['task'] for episode in episodes}):
        episode = next(e for e in episodes if e['task'] == task)
        with tempfile.TemporaryDirectory() as temporary:
            job = Path(temporary) / 'job.npz'
            np.savez(job, dataset=dataset, size=size, every=every, output=str(Path(folder).resolve() / f'task{task}'),
                     **{key: episode[key] for key in ('task', 'seed', 'actions', 'observations', 'success')})
            done = _run(gl, 'render', job)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f'the process ended with code {done.returncode}'])[-1]
            print(f'no video of task {task}: {reason}', file=sys.stderr)
        else:
            paths.append(Path(done.stdout.splitlines()[-1]))
    return paths


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
    """Repeat the episode of a job file in the same environment, and write its video -> path."""
    from ogbench_utils import make_env, reset_env
    with np.load(job, allow_pickle=False) as file:
        task, seed, success = int(file['task']), int(file['seed']), bool(file['success'])
        actions, observations = file['actions'], file['observations']
        dataset, output = str(file['dataset']), Path(str(file['output']))
        size, every = int(file['size']), int(file['every'])
    env = make_env(dataset, width=size, height=size)
    env.unwrapped.model.mat('target').rgba = (0.94, 0.89, 0.26, 1)  # the goal is yellow, as in the figures
    observation, _ = reset_env(env, task, seed)
    frames = []
    for step in range(len(actions) + 1):
        last = step == len(actions)
        if not np.allclose(observation, observations[step], atol=1e-4):
            raise OSError(f'step {step} is not that of the evaluated episode: other versions of the packages?')
        if last or step % every == 0:
            frames.append(label(env.unwrapped.render(), f'task {task}   step {step}', success if last else None))
        if not last:
            observation = env.step(actions[step])[0].astype(np.float32)
    return write_video(frames + [frames[-1]] * RATE, output)


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
    if ffmpeg := shutil.which('ffmpeg'):
        path = output.with_suffix('.mp4')
        size = '{}x{}'.format(*frames[0].size)
        command = [ffmpeg, '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', size,
                   '-r', str(RATE), '-i', '-', '-pix_fmt', 'yuv420p', str(path)]
        if subprocess.run(command, input=b''.join(frame.tobytes() for frame in frames)).returncode == 0:
            return path
        path.unlink(missing_ok=True)
    path = output.with_suffix('.gif')
    from PIL import Image
    frames = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // RATE, loop=0, optimize=True)
    return path


if __name__ == '__main__':
    if sys.argv[1] == 'probe':
        probe()
    else:
        print(render(sys.argv[2]))
