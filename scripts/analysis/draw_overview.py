"""Draw assets/overview.png, the README's picture of OPSO: what is learned offline, what is learned online.

    python scripts/analysis/draw_overview.py
"""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image  # matplotlib brings it

OUTPUT = Path(__file__).resolve().parents[2] / 'assets' / 'overview.png'
# Okabe-Ito colours; labels and dashes say the same, so that a grey print loses nothing
BLUE, GREEN, ORANGE, RED, PURPLE, GREY = '#0072B2', '#009E73', '#E69F00', '#D55E00', '#CC79A7', '#777777'
INK = '#222222'
WIDTH, HEIGHT = 16.0, 11.0  # drawing units of 100 pixels


def tint(color, amount=0.15):
    """`color` mixed into white."""
    return tuple(1 - amount * (1 - np.array(matplotlib.colors.to_rgb(color))))


def text(ax, x, y, string, size=12.5, color=INK, **style):
    ax.text(x, y, string, fontsize=size, color=color, ha='center', va='center', linespacing=1.3, **style)


def box(ax, x, y, w, h, lines, color, **style):
    """A rounded box around the centre (x, y); `lines` = [(text, font size), ...] from top to bottom."""
    style = {'fc': tint(color), 'ec': color, 'lw': 1.7} | style
    ax.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, 'round,pad=0,rounding_size=0.2', **style))
    for i, (line, size) in enumerate(lines):
        text(ax, x, y + 0.48 * ((len(lines) - 1) / 2 - i), line, size)


def arrow(ax, *points, color=INK, **style):
    """An arrow along straight pieces through `points`."""
    style = {'lw': 1.7, 'color': color} | style
    for (x0, y0), (x1, y1) in zip(points[:-2], points[1:-1], strict=True):
        ax.plot((x0, x1), (y0, y1), solid_capstyle='round', zorder=1, **style)
    head = {'arrowstyle': '-|>', 'mutation_scale': 16, 'shrinkA': 0, 'shrinkB': 0}
    ax.add_patch(FancyArrowPatch(*points[-2:], **head, **style))


def panel(ax, x, w, title, color):
    box(ax, x + w / 2, HEIGHT / 2, w, HEIGHT - 0.2, [], '#BBBBBB', fc='white', lw=1.2)
    text(ax, x + w / 2, HEIGHT - 0.62, title, 16, color, weight='bold')


def draw_offline(ax):
    panel(ax, 0.1, 7.2, 'Offline: states only', BLUE)
    x = 1.4 + 2.3 / 6 * np.arange(-2, 15)
    y = 9.0 + 0.28 * np.sin(1.6 * x)
    ax.plot(x, y, 'o-', color='#AAAAAA', lw=1.4, ms=4.5, zorder=1)
    for i, color, shape, size, state, latent in (
            (2, GREEN, 'o', 11, '$s_t$', '$z_t$'), (8, BLUE, 'o', 11, '$s_{t+k}$', '$z_{t+k}$'),
            (14, ORANGE, '*', 17, '$g$', '$z_g$')):
        arrow(ax, (x[i], y[i]), (x[i], 7.72))
        ax.plot(x[i], y[i], shape, color=color, ms=size, zorder=3)
        text(ax, x[i], y[i] + 0.5, state, 15)
        arrow(ax, (x[i], 6.78), (x[i], 6.2))
        ax.add_patch(Circle((x[i], 5.66), 0.52, fc=tint(color, 0.3), ec=color, lw=1.8))
        text(ax, x[i], 5.64, latent, 15)
        ax.plot((x[i], x[i]), (5.14, 4.86), color=INK, lw=1.7)
        arrow(ax, (x[i], 4.86), (x[i], 4.3))
    ax.plot((x[2], x[14]), (4.86, 4.86), color=INK, lw=1.7)
    box(ax, x[8], 7.24, 6.5, 0.94, [('Mamba-2 encoder  $f$', 12.8)], BLUE)
    heads = ("$Q(z, z', z_g)$", 'critic'), ('$V(z, z_g)$', 'value'), ('$f_P(z, z_g)$', "proposes $z'$")
    for i, (formula, name) in zip((2, 8, 14), heads, strict=True):
        box(ax, x[i], 3.62, 2.1, 1.3, [(formula, 14.5), (name, 12)], GREEN)
    text(ax, x[8], 2.2, 'auxiliary losses shape $z$:', 12)
    for i, name in enumerate(('InfoNCE', 'align-\nment', 'next\nstate', 'reward,\ndone')):
        box(ax, 1.23 + 1.65 * i, 1.2, 1.5, 1.1, [(name, 11.5)], PURPLE)


def draw_online(ax):
    left, right = 9.9, 14.05
    panel(ax, 8.3, 7.6, 'Online: few steps', RED)
    box(ax, left, 8.85, 2.5, 1.3, [('encoder $f$', 12.5), ('(frozen)', 12)], BLUE, hatch='//', fc='white')
    box(ax, right, 8.85, 3.3, 1.72, [("$z' = f_P(z, z_g)$", 14.5), (r'or, with chance $\epsilon$,', 11.5),
                                     (r"$z' = z + \alpha\,(z_g - z)$", 14.5)], GREEN)
    box(ax, left, 6.05, 2.5, 1.0, [('environment', 12.5)], GREY)
    box(ax, right, 6.05, 3.3, 1.3, [("$I\\,(z, z', z_g)$", 14.5), ('inverse dynamics', 12)], RED)
    box(ax, left, 3.75, 2.5, 1.0, [('replay:  $s, a$', 12.5)], GREY)
    box(ax, left, 1.45, 2.8, 1.3, [('$I_1(s_t, s_{t+1})$', 14.5), ('labeler', 12)], RED)
    box(ax, right, 1.45, 3.3, 1.3, [('offline states', 12.5), ('+ inferred actions', 12.5)], GREY)
    for points in (((left, 6.55), (left, 8.2)), ((11.15, 8.85), (12.4, 8.85)), ((right, 7.99), (right, 6.7)),
                   ((12.4, 6.05), (11.15, 6.05)), ((left, 5.55), (left, 4.25))):
        arrow(ax, *points)
    for points in (((left, 3.25), (left, 2.1)), ((left + 1.4, 1.45), (right - 1.65, 1.45)),
                   ((left + 1.25, 3.75), (right - 0.6, 3.75), (right - 0.6, 5.4)),
                   ((right + 0.6, 2.1), (right + 0.6, 5.4))):
        arrow(ax, *points, linestyle=(0, (3.5, 2)))
    for x, y, label, size in ((left - 0.45, 7.35, '$s, g$', 15), (11.77, 9.2, '$z, z_g$', 15),
                              (right + 0.35, 7.35, "$z'$", 15), (11.77, 6.4, 'action', 12),
                              (11.85, 1.8, 'labels', 12), (right - 0.1, 2.75, 'imitate', 12)):
        text(ax, x, y, label, size)
    text(ax, 12.1, 0.46, 'solid: acting    dashed: learning', 11.5, GREY)


def main():
    plt.rcParams.update({'mathtext.fontset': 'cm', 'hatch.color': tint(BLUE, 0.3)})
    figure = plt.figure(figsize=(WIDTH / 2, HEIGHT / 2), dpi=200)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.axis('off')
    draw_offline(ax)
    arrow(ax, (7.38, 7.24), (8.22, 7.24), lw=4, color=GREY)
    draw_online(ax)
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    picture.quantize(128, dither=Image.Dither.NONE).save(OUTPUT, optimize=True)  # half the bytes, same look


if __name__ == '__main__':
    main()
