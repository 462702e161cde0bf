"""Draw the overview of OPSO in the README: what is learned from states, and how the agent acts.

    python scripts/analysis/draw_overview.py
    python scripts/analysis/draw_overview.py --format pdf
"""

import argparse
import os
import sys
from pathlib import Path

os.environ['MPLBACKEND'] = 'agg'  # before the import, which fails with a backend of a notebook

import numpy as np
from matplotlib import colors, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from PIL import Image  # matplotlib requires it

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

from support.figures import add_format, output_path  # noqa: E402
from support.flags import run_main, summary  # noqa: E402

OUTPUT = Path(__file__).resolve().parents[2] / 'assets' / 'overview.png'
WIDTH, HEIGHT = 16.0, 9.0  # drawing units of half an inch
DPI = 200  # twice the size at which the README shows it

# Okabe and Ito's colours; labels and dashes carry the same information, for prints in grey
BLUE, ORANGE, GREEN, YELLOW, GREY = '#0072B2', '#D55E00', '#009E73', '#F0E442', '#777777'
INK = '#222222'
OFFLINE, ONLINE = BLUE, ORANGE

BOX_SIZE = 12.5  # points
ARROW_SIZE = 11.5
DASHED = (0, (3.5, 2))

# nodes of the drawn graph, in the unit square, its edges, and the planned path
NODES = np.array([(0.06, 0.30), (0.28, 0.52), (0.25, 0.10), (0.47, 0.26), (0.50, 0.72), (0.20, 0.88),
                  (0.68, 0.48), (0.72, 0.10), (0.77, 0.86), (0.94, 0.64)])
EDGES = ((0, 1), (0, 2), (1, 3), (1, 4), (2, 3), (1, 5), (4, 5), (3, 6), (3, 7), (4, 6), (4, 8), (6, 7),
         (8, 9), (6, 9))
PATH = (0, 1, 4, 8, 9)


def tint(color, amount=0.15):
    """Return a colour mixed into white."""
    return tuple(1 - amount * (1 - np.array(colors.to_rgb(color))))


def draw_text(axis, x, y, string, size=ARROW_SIZE, **style):
    """Draw a text centred at (x, y)."""
    style = {'color': INK, 'ha': 'center', 'va': 'center', 'linespacing': 1.3} | style
    axis.text(x, y, string, fontsize=size, **style)


def draw_box(axis, x, y, width, height, label, color):
    """Draw a rounded box with a label around the centre (x, y)."""
    corner = x - width / 2, y - height / 2
    shape = 'round,pad=0,rounding_size=0.2'
    axis.add_patch(FancyBboxPatch(corner, width, height, shape, fc=tint(color), ec=color, lw=1.7))
    draw_text(axis, x, y, label, BOX_SIZE)


def draw_arrow(axis, *points, label='', at=None, **style):
    """Draw an arrow along straight pieces through `points`, and its label at the point `at`."""
    style = {'lw': 1.7, 'color': INK} | style
    for (x0, y0), (x1, y1) in zip(points[:-2], points[1:-1], strict=True):
        axis.plot((x0, x1), (y0, y1), solid_capstyle='round', zorder=1, **style)
    head = {'arrowstyle': '-|>', 'mutation_scale': 15, 'shrinkA': 0, 'shrinkB': 0}
    axis.add_patch(FancyArrowPatch(*points[-2:], **head, **style))
    if label:
        draw_text(axis, *at, label)


def draw_trajectories(axis, x, y, width, height):
    """Draw the data: a tall box with three trajectories of states."""
    draw_box(axis, x, y, width, height, '', GREY)
    draw_text(axis, x, y + height / 2 - 0.75, 'state-only\ntrajectories', BOX_SIZE)

    t = np.linspace(0, 1, 11)
    top = y + height / 2 - 1.5
    bottom = y - height / 2 + 0.35
    for k in range(3):
        states_x = x + (k - 1) * 0.72 + 0.24 * np.sin(7 * t + 2.1 * k)
        states_y = top - (top - bottom) * t
        axis.plot(states_x, states_y, 'o-', color='#999999', lw=1.3, ms=3.6, mfc=INK, mec=INK)


def draw_graph(axis, x, y, width, height):
    """Draw the graph of the data with a path from the state s over the subgoal z' to the goal g."""
    draw_box(axis, x, y, width, height, '', OFFLINE)
    draw_text(axis, x, y + height / 2 - 0.38, 'map of the data', BOX_SIZE)

    low = np.array([x - width / 2 + 0.35, y - height / 2 + 0.3])
    size = np.array([width - 0.75, height - 1.2])
    nodes = low + NODES * size
    for i, j in EDGES:
        axis.plot(*nodes[[i, j]].T, color='#8a8f98', lw=1.2, zorder=2)
    axis.plot(*nodes[list(PATH)].T, color=ORANGE, lw=2.6, zorder=3)
    axis.plot(*nodes.T, 'o', color='white', mec=INK, mew=1.1, ms=6, zorder=4)

    start, subgoal, goal = nodes[[PATH[0], PATH[1], PATH[-1]]]
    axis.plot(*start, 'o', color=GREEN, mec=INK, mew=1.1, ms=8, zorder=5)
    axis.plot(*subgoal, 'o', color=BLUE, mec=INK, mew=1.1, ms=8, zorder=5)
    axis.plot(*goal, '*', color=YELLOW, mec=INK, mew=0.9, ms=14, zorder=5)
    draw_text(axis, start[0] + 0.05, start[1] - 0.36, '$s$')
    draw_text(axis, subgoal[0] + 0.03, subgoal[1] - 0.38, "$z'$")
    draw_text(axis, goal[0] + 0.02, goal[1] - 0.42, '$g$')


def draw_overview(axis):
    """Draw all boxes and arrows: data on the left, models in the middle, the policy on the right."""
    # data and environment, offline part, online part
    draw_trajectories(axis, 1.4, 4.95, 2.4, 7.7)
    draw_box(axis, 10.15, 3.85, 3.0, 1.2, 'environment', GREY)
    draw_box(axis, 5.75, 7.95, 3.8, 1.5, 'Mamba encoder\n$z = f(s)$', OFFLINE)
    draw_box(axis, 10.15, 7.95, 3.0, 1.5, "$V$, $Q$, proposer\n$z' = f_P(z, z_g)$", OFFLINE)
    draw_graph(axis, 5.75, 4.7, 3.8, 2.9)
    draw_box(axis, 5.75, 1.85, 3.8, 1.5, 'labeler\n(Gaussian process)', ONLINE)
    draw_box(axis, 14.6, 4.95, 2.4, 7.7, 'policy\n(inverse\ndynamics)', ONLINE)

    # learning
    for y, label in ((7.95, '$s_t$'), (4.7, '$s_t$'), (1.85, '$s_t, s_{t+1}$')):
        draw_arrow(axis, (2.6, y), (3.85, y), label=label, at=(3.19, y + 0.34), linestyle=DASHED)
    draw_arrow(axis, (10.15, 3.25), (10.15, 2.2), (7.65, 2.2), label='steps $(s_t, a_t)$', at=(8.95, 2.54),
               linestyle=DASHED)
    draw_arrow(axis, (11.65, 3.5), (13.4, 3.5), label='$(s_t, a_t)$', at=(12.5, 3.13), linestyle=DASHED)
    draw_arrow(axis, (7.65, 1.5), (13.4, 1.5), label='inferred actions of the data', at=(10.5, 1.14),
               linestyle=DASHED)

    # acting
    draw_arrow(axis, (7.65, 7.95), (8.65, 7.95), label='$z, z_g$', at=(8.12, 8.29))
    draw_arrow(axis, (11.65, 7.95), (13.4, 7.95), label="$z'$", at=(12.5, 8.29))
    draw_text(axis, 12.5, 7.6, 'if no path')
    draw_arrow(axis, (6.6, 7.2), (6.6, 6.6), (13.4, 6.6), label='state latent', at=(10.15, 6.92))
    draw_arrow(axis, (7.65, 5.5), (13.4, 5.5), label="subgoal $z'$", at=(10.15, 5.84))
    draw_arrow(axis, (13.4, 4.2), (11.65, 4.2), label='action', at=(12.55, 4.52))
    draw_arrow(axis, (8.65, 3.85), (7.65, 3.85), label='$s, g$', at=(8.18, 4.19))


def draw_legend(figure):
    """Explain colours and dashes below the boxes."""
    entries = [
        Patch(fc=tint(OFFLINE), ec=OFFLINE, lw=1.5, label='offline, from states'),
        Patch(fc=tint(ONLINE), ec=ONLINE, lw=1.5, label='online'),
        Line2D([], [], color=INK, lw=1.7, label='acting'),
        Line2D([], [], color=INK, lw=1.7, ls=DASHED, label='learning'),
    ]
    figure.legend(handles=entries, loc='lower center', ncols=4, fontsize=ARROW_SIZE, frameon=False,
                  borderpad=0.1)


def save(figure, path):
    """Write a figure; a PNG with 256 colours, which halves its size without a visible difference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != '.png':
        figure.savefig(path)
        return

    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--output', type=Path, default=OUTPUT,
                        help='.png, .pdf or .svg file (default: %(default)s)')
    add_format(parser)
    flags = parser.parse_args(argv)
    output = output_path(flags.output, flags.format)

    with style.context(['default', {'mathtext.fontset': 'cm'}]):
        figure = Figure(figsize=(WIDTH / 2, HEIGHT / 2), dpi=DPI)
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axis.axis('off')
        draw_overview(axis)
        draw_legend(figure)
        save(figure, output)


if __name__ == '__main__':
    run_main(main)
