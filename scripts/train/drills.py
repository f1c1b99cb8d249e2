"""Short lists that teach the decoder to look things up; only training sees them.

A question of twelve words has one token that needs the picture.  A list such as "top left red star small bottom
blue ring large" needs it at two tokens of three, so attention from a word to the patches that show it is
found many times sooner.  A drill is [(word, is it scored?)]; the words are those of the questions.
"""
from questions import RELATIONS, names
from scenes import COLOR_NAMES, PLACES, SHAPES


def shuffled(rng, seq):
    seq = list(seq)
    return [seq[i] for i in rng.permutation(len(seq))]


def entry(key, values):
    return [(w, False) for w in key.split()] + [(w, True) for v in values for w in v.split()]


def places(scene, rng):
    """place -> colour, shape, size | text | no"""
    here = {o["cell"]: [o["color"], o["shape"], o["size"]] for o in scene["objects"]}
    if scene["text"]:
        here[scene["text"]["cell"]] = ["text"]
    return [entry(PLACES[c], here.get(c, ["no"])) for c in shuffled(rng, range(9))]


def by(scene, rng, key, others, values):
    """shape or colour -> the other one, size and place, where only one object has it; no where none has"""
    have, out = [o[key] for o in scene["objects"]], []
    for v in values:
        if have.count(v) == 0 and rng.random() < .4:
            out.append(entry(v, ["no"]))
        elif have.count(v) == 1:
            o = scene["objects"][have.index(v)]
            out.append(entry(v, [o[k] for k in others] + [PLACES[o["cell"]]]))
    return shuffled(rng, out)


def requests(scene, rng):
    """attribute, name or place -> its value"""
    out = []
    for o, name in names(scene["objects"]):
        want = shuffled(rng, [k for k in ("color", "shape", "size") if o[k] not in name.split()])[0]
        out.append([(want, False)] + entry(name, [o[want]]))
    for o in scene["objects"]:
        want = shuffled(rng, ["color", "shape", "size"])[0]
        out.append([(want, False)] + entry(PLACES[o["cell"]], [o[want]]))
    return shuffled(rng, out)[:8]


def numbers(scene, rng):
    objects, out = scene["objects"], [entry("objects", [str(len(scene["objects"]))])]
    for key, values in (("color", COLOR_NAMES), ("shape", SHAPES)):
        for v in values:
            n = [o[key] for o in objects].count(v)
            if n or rng.random() < .2:
                what = v + " objects" if key == "color" else v + ("es" if v == "cross" else "s")
                out.append(entry(what, [str(n)]))
    return shuffled(rng, out)


def pairs(scene, rng):
    """colour and shape -> is there one?"""
    have = {(o["color"], o["shape"]) for o in scene["objects"]}
    near = {(c, s) for c, _ in have for _, s in have} | {(c, s) for c, _ in have for s in shuffled(rng, SHAPES)[:1]} \
        | {(c, s) for _, s in have for c in shuffled(rng, COLOR_NAMES)[:1]}
    near = shuffled(rng, sorted(near - have))[:len(have)]
    return shuffled(rng, [entry(f"{c} {s}", ["yes"]) for c, s in have] + [entry(f"{c} {s}", ["no"]) for c, s in near])


def ways(scene, rng):
    """two names -> which way the first lies from the second"""
    named, out = names(scene["objects"]), []
    if len(named) > 1:
        for _ in range(5):
            (o, n), (p, m) = shuffled(rng, named)[:2]
            (y, x), (v, u) = divmod(o["cell"], 3), divmod(p["cell"], 3)
            if o is not p:
                out.append(entry(f"{n} {m}", [("left", "center", "right")[(x > u) - (x < u) + 1],
                                              ("above", "center", "below")[(y > v) - (y < v) + 1]]))
    return out


def sides(scene, rng):
    """name, relation, name -> is it so?"""
    named, out = names(scene["objects"]), []
    for _ in range(7 if len(named) > 1 else 0):
        (o, n), (p, m) = shuffled(rng, named)[:2]
        word = shuffled(rng, RELATIONS)[0]
        axis, sign = RELATIONS[word]
        far = (divmod(o["cell"], 3)[axis] - divmod(p["cell"], 3)[axis]) * sign
        if far:                                                    # the questions never ask about the same row
            out.append(entry(f"{n} {word} {m}", ["yes" if far > 0 else "no"]))
    return out


def drills(scene, rng):
    """[("drill", None, ((word, scored), ...)), ...] about a scene, in the shape of questions.questions."""
    lists = [places(scene, rng), by(scene, rng, "shape", ["color", "size"], SHAPES),
             by(scene, rng, "color", ["shape", "size"], COLOR_NAMES), requests(scene, rng),
             numbers(scene, rng), pairs(scene, rng), ways(scene, rng), sides(scene, rng)]
    labels = ["places", "by-shape", "by-color", "requests", "numbers", "pairs", "ways", "sides"]
    return [(f"drill-{k}", None, tuple(w for e in one for w in e)) for k, one in zip(labels, lists) if one]
