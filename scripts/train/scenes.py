"""Synthetic scenes: the pictures that models/tiny-llava is trained and tested on.

A scene is 336 x 336 pixels, cut into 3 x 3 cells of 112 pixels (8 x 8 patches of 14).  A cell holds at
most one object or the one printed text, somewhere inside it.  Scene `index` of `seed` is always the same
picture.  Besides the picture, render() gives labels for each 14-pixel patch; only training reads them.
"""
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE, CELL, PATCH, GRID = 336, 112, 14, 24
PLACES = ["top left", "top", "top right", "left", "center", "right",
          "bottom left", "bottom", "bottom right"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"]
COLORS = {"red": (222, 28, 28), "green": (35, 165, 55), "blue": (40, 75, 230), "yellow": (246, 226, 40),
          "orange": (246, 130, 15), "purple": (135, 45, 185), "pink": (252, 125, 190), "cyan": (40, 210, 222)}
COLOR_NAMES = list(COLORS)
SIZES = ["small", "large"]
WORDS = """ANT APE ARK BEAR BEE BIRD BOAT BOOK BUS CAKE CAR CAT CLAM COW CROW CUP DEER DOG DOOR DUCK EEL EGG
EXIT FISH FLAG FOX FROG GATE GOAT HAT HEN ICE INN JAM KEY KING KITE LAMP LION MAP MILK MOON MUG NEST OAK OPEN
OWL PIG QUAY RAIN ROAD SALT SHIP STOP SUN TAXI TEA TREE VAN WAX WOLF YAK ZERO ZOO""".split()
CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNT_P = np.array([.10, .17, .20, .18, .14, .10, .07, .04])     # 1 .. 8 objects
LETTER_W = 26
IGNORE = 255
_font = None


def font():
    """DejaVu Sans Bold as matplotlib ships it, so that the letters do not depend on the system."""
    global _font
    if _font is None:
        import matplotlib
        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
        _font = ImageFont.truetype(path, 32)
    return _font


def dull(rng):
    """A colour that no object has: hardly saturated."""
    v, s, h = rng.uniform(45, 225), rng.uniform(0, .22), rng.uniform(0, 6)
    k = (np.array([5, 3, 1]) + h) % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def background(rng):
    a = dull(rng)
    b = np.clip(a + rng.uniform(-40, 40), 40, 230) * rng.uniform(.93, 1.07, 3)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    style, t = rng.integers(5), rng.uniform(0, math.pi)
    ramp = x * math.cos(t) + y * math.sin(t)
    if style == 0:                                             # gradient
        m = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    elif style == 1:                                           # stripes
        m = .5 + .5 * np.sin(ramp * (2 * math.pi / rng.uniform(9, 60)))
    elif style == 2:                                           # checks
        s = rng.uniform(10, 50)
        m = ((x // s + y // s) % 2).astype(np.float32)
    elif style == 3:                                           # blotches
        n = int(rng.integers(5, 40))
        small = Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8))
        m = np.asarray(small.resize((SIZE, SIZE), Image.BILINEAR), np.float32) / 255
    else:                                                      # plain
        m = np.zeros((SIZE, SIZE), np.float32)
    img = a[None, None].astype(np.float32) + m[..., None] * (b - a)[None, None].astype(np.float32)
    amp = rng.uniform(0, 22) / 128
    noise = rng.integers(0, 256, (SIZE, SIZE, 1 if rng.random() < .5 else 3), dtype=np.uint8)
    return np.clip(img + (noise.astype(np.float32) - 128) * amp, 0, 255)


def polygon(shape, n, turn):
    """Corners of a shape in a box of side n, turned by `turn` radians."""
    c, r = n / 2, n / 2
    if shape == "square":
        p = [(r * .84 * math.sqrt(2), math.pi / 4 + k * math.pi / 2) for k in range(4)]
    elif shape == "diamond":
        p = [(r if k % 2 else r * .72, k * math.pi / 2) for k in range(4)]
    elif shape == "triangle":
        p = [(r, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)]
    elif shape == "star":
        p = [(r if k % 2 == 0 else r * .42, -math.pi / 2 + k * math.pi / 5) for k in range(10)]
    elif shape == "cross":
        w = .34
        q = [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w),
             (-1, -w), (-w, -w)]
        p = [(r * .95 * math.hypot(*k), math.atan2(k[1], k[0])) for k in q]
    else:                                                      # heart
        p = []
        for k in range(48):
            t = 2 * math.pi * k / 48
            hx = 16 * math.sin(t) ** 3 / 17
            hy = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 16
            p.append((r * math.hypot(hx, hy), math.atan2(hy, hx)))
    return [(c + d * math.cos(a + turn), c + d * math.sin(a + turn)) for d, a in p]


def shape_mask(shape, n, turn):
    k = 3
    m = Image.new("L", (n * k, n * k))
    d = ImageDraw.Draw(m)
    if shape in ("circle", "ring"):
        d.ellipse((0, 0, n * k - 1, n * k - 1), fill=255)
        if shape == "ring":
            e = n * k * .25
            d.ellipse((e, e, n * k - 1 - e, n * k - 1 - e), fill=0)
    else:
        d.polygon(polygon(shape, n * k, turn), fill=255)
    return np.asarray(m.reduce(k), np.float32) / 255


def make_scene(seed, index):
    """Only the facts: {"objects": [...], "text": {...} or None}, in raster order of the cells."""
    rng = np.random.default_rng([seed, index, 1])
    n = 1 + int(rng.choice(8, p=COUNT_P))
    cells = rng.permutation(9)
    colors = rng.permutation(8)[:int(rng.integers(2, 9))]      # few colours and shapes in some scenes, so
    shapes = rng.permutation(8)[:int(rng.integers(2, 9))]      # that there is something to count
    objects = []
    for cell in sorted(int(c) for c in cells[:n]):
        size = int(rng.integers(2))
        px = int(rng.integers(36, 49) if size == 0 else rng.integers(72, 97))
        slack = CELL - px - 4
        objects.append({"cell": cell, "shape": SHAPES[rng.choice(shapes)],
                        "color": COLOR_NAMES[rng.choice(colors)], "size": SIZES[size], "px": px,
                        "x": cell % 3 * CELL + 2 + int(rng.integers(slack + 1)),
                        "y": cell // 3 * CELL + 2 + int(rng.integers(slack + 1))})
    text = None
    if rng.random() < .7:
        cell = int(cells[n])
        if rng.random() < .6:
            s = WORDS[rng.integers(len(WORDS))]
        else:
            d = int(rng.integers(1, 4))
            s = str(rng.integers(10 ** (d - 1) if d > 1 else 0, 10 ** d))
        w = LETTER_W * len(s)
        text = {"cell": cell, "text": s, "x": cell % 3 * CELL + 4 + int(rng.integers(CELL - w - 7)),
                "y": cell // 3 * CELL + 4 + int(rng.integers(CELL - 26 - 7))}
    return {"objects": objects, "text": text}


def render(seed, index, labels=False):
    """The scene's facts and its picture (uint8, 336 x 336 x 3), and with labels=True the patch labels:
    (3, 24, 24) uint8 of kind (0 nothing, 1-8 shape, 9 text), character and its place in the text."""
    scene = make_scene(seed, index)
    rng = np.random.default_rng([seed, index, 2])
    img = background(rng)
    cover = np.zeros((SIZE, SIZE), np.float32)
    maps = np.full((3, GRID, GRID), IGNORE, np.uint8)
    for o in scene["objects"]:
        m = shape_mask(o["shape"], o["px"], rng.uniform(-.14, .14))
        color = np.array(COLORS[o["color"]], np.float32) + rng.uniform(-12, 12, 3)
        win = np.s_[o["y"]:o["y"] + o["px"], o["x"]:o["x"] + o["px"]]
        img[win] += m[..., None] * (color + rng.uniform(-6, 6, m.shape + (1,)) - img[win])
        cover[win] = m
    t = scene["text"]
    if t:
        w = LETTER_W * len(t["text"])
        win = np.s_[t["y"]:t["y"] + 26, t["x"] - 4:t["x"] + w + 4]      # W is wider than its slot
        m = Image.new("L", (w + 8, 26))
        d = ImageDraw.Draw(m)
        for k, ch in enumerate(t["text"]):
            d.text((LETTER_W * k + LETTER_W / 2 + 4, 25), ch, fill=255, font=font(), anchor="ms")
        m = np.asarray(m, np.float32)[..., None] / 255
        ink = rng.uniform(235, 255) if img[win].mean() < 128 else rng.uniform(0, 20)
        img[win] += m * (ink - img[win])
    picture = np.clip(img + .5, 0, 255).astype(np.uint8)
    if not labels:
        return scene, picture
    part = cover.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    maps[0][part < .01] = 0
    for o in scene["objects"]:
        r, c = o["cell"] // 3 * 8, o["cell"] % 3 * 8
        maps[0, r:r + 8, c:c + 8][part[r:r + 8, c:c + 8] > .12] = 1 + SHAPES.index(o["shape"])
    if t:
        part = np.zeros((len(t["text"]), SIZE, SIZE), np.float32)
        for k in range(len(t["text"])):
            part[k, t["y"]:t["y"] + 26, t["x"] + LETTER_W * k:t["x"] + LETTER_W * (k + 1)] = 1
        part = part.reshape(-1, GRID, PATCH, GRID, PATCH).mean((2, 4))
        all_, best = part.sum(0), part.argmax(0)
        maps[0][all_ > .01] = IGNORE
        on = all_ > .3
        maps[0][on] = 9
        maps[1][on] = np.array([CHARS.index(c) for c in t["text"]])[best[on]]
        maps[2][on] = best[on]
    return scene, picture, maps


def patch_owner(scene):
    """Rows of patches (inclusive boxes) of each object and the text: [(first row, last row, first column, last column)]."""
    boxes = [(o["y"], o["y"] + o["px"] - 1, o["x"], o["x"] + o["px"] - 1) for o in scene["objects"]]
    if scene["text"]:
        t = scene["text"]
        boxes.append((t["y"], t["y"] + 25, t["x"], t["x"] + LETTER_W * len(t["text"]) - 1))
    return [tuple(v // PATCH for v in b) for b in boxes]
