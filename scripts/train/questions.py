"""Questions about a scene, with their one right answer.  Eight families; a question is asked only where
the scene leaves no doubt (the colour of "the star" only if there is one star)."""
import numpy as np

from scenes import COLOR_NAMES, PLACES, SHAPES, SIZES, WORDS

FAMILIES = ["color", "shape", "size", "count", "relation", "exist", "read", "caption"]
PROMPT = "USER: <image>\n{} ASSISTANT:"            # what llava-1.5 was trained on, without a system prompt
RELATIONS = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def pick(rng, seq):
    return seq[int(rng.integers(len(seq)))]


def names(objects):
    """(object, a name that only it has): its shape alone, or colour and shape."""
    shapes = [o["shape"] for o in objects]
    pairs = [(o["color"], o["shape"]) for o in objects]
    out = [(o, o["shape"]) for o in objects if shapes.count(o["shape"]) == 1]
    out += [(o, f'{o["color"]} {o["shape"]}') for o in objects if pairs.count((o["color"], o["shape"])) == 1]
    return out


def caption(scene):
    said = []
    for o in scene["objects"]:
        s = article(f'{o["color"]} {o["shape"]}')
        said.append(f'{s[0].upper()}{s[1:]} is at the {PLACES[o["cell"]]}.')
    if scene["text"]:
        said.append(f'The text {scene["text"]["text"]} is at the {PLACES[scene["text"]["cell"]]}.')
    return " ".join(said)


def ask(scene, family, rng):
    """(question, answer), or None if this scene allows no question of the family."""
    objects, text = scene["objects"], scene["text"]
    if family == "caption":
        return pick(rng, ["Describe the picture.", "What is in the picture?"]), caption(scene)
    if family == "read":
        if not text:
            return None
        return pick(rng, ["What does the text say?", "Read the text.", "What is written in the picture?"]), text["text"]
    if family == "shape":
        colors = [o["color"] for o in objects]
        one = [o for o in objects if colors.count(o["color"]) == 1]
        if one and rng.random() < .4:
            o = pick(rng, one)
            return f'What shape is {o["color"]}?', o["shape"]
        o = pick(rng, objects)
        return f'What shape is at the {PLACES[o["cell"]]}?', o["shape"]
    if family == "color":
        shapes = [o["shape"] for o in objects]
        one = [o for o in objects if shapes.count(o["shape"]) == 1]
        if one and rng.random() < .75:
            o = pick(rng, one)
            return f'What color is the {o["shape"]}?', o["color"]
        o = pick(rng, objects)
        return f'What color is the object at the {PLACES[o["cell"]]}?', o["color"]
    if family == "size":
        named = names(objects)
        if not named:
            return None
        o, name = pick(rng, named)
        return f"Is the {name} small or large?", o["size"]
    if family == "count":
        kind = int(rng.integers(3))
        if kind == 0:
            return "How many objects are there?", str(len(objects))
        key, values = (("color", COLOR_NAMES), ("shape", SHAPES))[kind - 1]
        here = [o[key] for o in objects]
        v = pick(rng, values) if rng.random() < .12 else pick(rng, here)
        if rng.random() < .5:                                  # the most frequent: larger numbers too
            v = max(sorted(set(here)), key=here.count)
        what = f"{v} objects" if key == "color" else ("crosses" if v == "cross" else v + "s")
        return f"How many {what} are there?", str(here.count(v))
    if family == "relation":
        word, yes = pick(rng, list(RELATIONS)), bool(rng.integers(2))
        axis, sign = RELATIONS[word]
        named = names(objects)
        pairs = [(n, m) for o, n in named for p, m in named
                 if (divmod(o["cell"], 3)[axis] - divmod(p["cell"], 3)[axis]) * sign * (1 if yes else -1) > 0]
        if not pairs:
            return None
        n, m = pick(rng, pairs)
        return f"Is the {n} {word} the {m}?", "yes" if yes else "no"
    if family == "exist":
        have = {(o["color"], o["shape"]) for o in objects}
        if rng.random() < .1:
            return "Is there any text?", "yes" if text else "no"
        if rng.random() < .5:
            c, s = pick(rng, sorted(have))
            answer = "yes"
        else:                                                  # mostly near misses: a colour or shape that is there
            colors, shapes = sorted({c for c, _ in have}), sorted({s for _, s in have})
            for _ in range(50):
                mode = rng.random()
                c = pick(rng, colors if mode < .66 else COLOR_NAMES)
                s = pick(rng, shapes if mode < .33 or mode >= .66 else SHAPES)
                if (c, s) not in have:
                    break
            else:
                return None
            answer = "no"
        return f"Is there {article(c + ' ' + s)}?", answer
    raise ValueError(family)


def questions(scene, n, rng, shift=0):
    """n different questions [(family, question, answer)], the families in turn from `shift` on."""
    out, k = [], shift
    while len(out) < n and k < shift + 60:
        q = ask(scene, FAMILIES[k % len(FAMILIES)], rng)
        if q and q[0] not in [o[1] for o in out] and not (
                FAMILIES[k % 8] == "caption" and any(o[0] == "caption" for o in out)):
            out.append((FAMILIES[k % len(FAMILIES)],) + q)
        k += 1
    return out


def vocabulary():
    """Every word of the templates, as (text, may start the question)."""
    firsts = ["What", "Read", "Is", "How", "Describe"]
    words = """A An The is at the text Describe picture. What in does say? Read written shape color object small or
 large? many objects are there? there any text? yes no of above below a an left right top bottom center""".split()
    plural = [s + ("es" if s == "cross" else "s") for s in SHAPES]
    return firsts, words + COLOR_NAMES + SHAPES + plural + SIZES + WORDS + ["USER", "ASSISTANT"]


def held_out(seed, count, per_scene=5):
    """The test questions: yields (scene index, scene, [(family, question, answer)]) until `count` are out."""
    from scenes import make_scene
    done, i, shift = 0, 0, 0
    while done < count:
        scene = make_scene(seed, i)
        qs = questions(scene, min(per_scene, count - done), np.random.default_rng([seed, i, 3]), shift)
        yield i, scene, qs
        done, i, shift = done + len(qs), i + 1, shift + per_scene
