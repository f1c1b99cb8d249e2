"""Where a word should look; only training asks.

That the word "star" should look at the patches of the stars is what gradient descent takes longest to find out by
the answers alone, and it is known.  So four heads of one layer are told: the share of their attention that lies on
the right patches is part of the loss.  What they do with it, and all other heads, is left to the training.
"""
import torch

import scenes

LAYER, HEADS = 2, 4
SHAPE_OF = {s + e: s for s in scenes.SHAPES for e in ("", "es" if s == "cross" else "s")}
COLORS = set(scenes.COLOR_NAMES)
SIDES = {"top", "bottom", "left", "right", "center"}


def words_of(tok, ids):
    return [tok.id_to_token(i).strip("\u2581") for i in ids]


def caption(words, scene, begin):
    """Every word of a sentence at what it is about, the full stop at what comes next."""
    order = [o["cell"] for o in scene["objects"]] + ([scene["text"]["cell"]] if scene["text"] else [])
    out, k = [0] * len(words), 0
    for i in range(begin - 1, len(words)):
        if i >= begin and words[i] == ".":
            k += 1
        out[i] = 1 << order[k] if k < len(order) else 0
    return out


def cells(words, scored, scene, family):
    """For each word of a question with its answer, or of a drill, the cells it should look at, as bits (0: any).
    What is asked for (scored) looks where the word that it is asked of looks, if more is to follow."""
    if family == "caption":
        return caption(words, scene, words.index("ASSISTANT") + 2)
    objects, out = scene["objects"], []
    go_on = family in ("drill-places", "drill-by-shape", "drill-by-color")
    for i, w in enumerate(words):
        if scored[i]:
            out.append(out[-1] if go_on else 0)
            continue
        last, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        color = last if last in COLORS else None
        found = []
        if w in SHAPE_OF:
            found = [o["cell"] for o in objects if o["shape"] == SHAPE_OF[w] and color in (None, o["color"])]
        elif w in COLORS:
            found = [o["cell"] for o in objects if o["color"] == w]
        elif w == "objects":
            found = [o["cell"] for o in objects if color in (None, o["color"])]
        elif w == "text" and scene["text"]:
            found = [scene["text"]["cell"]]
        elif w in SIDES and family not in ("relation", "drill-ways", "drill-sides") and after != "of" and not (
                w in ("top", "bottom") and after in ("left", "right")):
            place = f"{last} {w}" if last in ("top", "bottom") and w in ("left", "right") else w
            found = [scenes.PLACES.index(place)]
        out.append(sum(1 << c for c in set(found)))
    return out


def loss(attention, mask, targets):
    """attention: the watched one, after a forward pass; mask (B, 1, T, T); targets: (row, token, (keys,) bool) each.
    -> mean of -log(share of attention on the target)"""
    q, k = attention.seen
    group = q.shape[1] // k.shape[1]
    rows, at = torch.tensor([t[0] for t in targets]), torch.tensor([t[1] for t in targets])
    want = torch.stack([t[2] for t in targets])                                       # (R, T)
    k = k.repeat_interleave(group, 1)[:, :HEADS]
    out = []
    for b in rows.unique().tolist():
        mine = rows == b
        score = q[b, :HEADS, at[mine]] @ k[b].transpose(1, 2) * q.shape[-1] ** -.5     # (HEADS, r, T)
        score = score.masked_fill(~mask[b, 0, at[mine]], -1e9)
        share = score.masked_fill(~want[mine], -1e9).logsumexp(-1) - score.logsumexp(-1)
        out.append(-share.mean(0))
    return torch.cat(out).mean()


def hints(words, scored, scene, family):
    """[(index of a word, what the layer after the watched one should already know there)]: a number, or the way
    from one thing to another.  What the last layer finds out cannot be used by the words that follow."""
    if family in ("count", "drill-numbers"):
        at = [i for i, w in enumerate(words) if (w in SHAPE_OF or w == "objects") and not scored[i]]
        number = [words[i] for i in range(len(words)) if scored[i] and words[i].isdigit()]
        return list(zip(at, number))
    if family not in ("relation", "drill-sides"):
        return []
    out, found, relation = [], [], None
    for i, w in enumerate(words):
        if scored[i]:
            found = []
        elif w in ("left", "right", "above", "below"):
            relation = w
        elif w in SHAPE_OF:
            color = words[i - 1] if words[i - 1] in COLORS else None
            found.append(next(o["cell"] for o in scene["objects"]
                              if o["shape"] == w and color in (None, o["color"])))
            if len(found) == 2:
                axis = relation in ("left", "right")
                a, b = (divmod(c, 3)[axis] for c in found)
                way = ("left", "center", "right") if axis else ("above", "center", "below")
                out.append((i, way[(a > b) - (a < b) + 1]))
    return out
