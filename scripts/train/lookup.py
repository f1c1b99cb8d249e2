"""Fits the look-up heads of one decoder layer in closed form and writes them into decoder.pt.

    python3 lookup.py STATE_DIR SCENES_DIR 

A head that goes from "star" in the question to the patches that show a star is what gradient descent takes
longest to find.  Ridge regression finds it at once: on the layer's normalised input, queries and keys are the
linear read-outs of the same attribute (shape, colour, place), values are the read-outs of all attributes, and the
output writes the words for them.  Training goes on from there with --resume, and is free to change all of it.
"""
import argparse
import os
import re

import numpy as np
import torch
import torch.nn as nn

import model
import packing
import questions
import scenes
import tokenizer
from train_decoder import choose
from train_vision import Batches, put

SLOW = [12, 13, 14, 15, 28, 29, 30, 31, 11, 27]        # channels of a head that the rotary angle hardly turns


def ridge(x, y, weight, lam=3.0):
    """W of least weighted squares (x W = y), with a constant that is thrown away."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    a = (x * weight[:, None]).T @ x + lam * torch.eye(x.shape[1])
    return torch.linalg.solve(a, (x * weight[:, None]).T @ y)[:-1]


def gather(vision, projector, decoder, packer, data, layer, count):
    """Normalised inputs of the layer with the attributes that they show or name (-1: none)."""
    rng, rows = np.random.default_rng(3), []
    tok, a = packer.tok, []
    for i in range(count):
        x = model.to_patches(torch.from_numpy(data.pix[i][None].copy()))
        f = vision(x, torch.arange(576), last=False)[:, 1:]
        keep = torch.from_numpy(choose(data.lab[i][0].ravel(), 160, rng, True))
        qs = questions.questions(data.facts[i], 14, rng, int(rng.integers(8)))
        p = packer.pack([qs], 160, keep[None])
        e = decoder.embed_tokens
        h = torch.cat([e(torch.tensor(packer.head))[None], projector(f[:, keep]), e(torch.tensor(packer.tail))[None],
                       e(p["ids"])], 1)
        cos, sin = (t[p["positions"]][:, None] for t in (decoder.cos, decoder.sin))
        for one in decoder.layers[:layer]:
            h = one(h, cos, sin, p["mask"])
        scale = h.norm(dim=-1).mean().item()
        h = decoder.layers[layer].input_layernorm(h)[0]
        kind = data.lab[i][0].ravel()[keep]
        cells = (keep // 24 // 8 * 3 + keep % 24 // 8).numpy()
        by_cell = {o["cell"]: o for o in data.facts[i]["objects"]}
        t = packing.HEAD
        for j in range(len(keep)):
            o = by_cell.get(int(cells[j]))
            on = 0 < kind[j] < 9 and o
            if kind[j] == scenes.IGNORE:
                continue
            a.append((h[t + j], "image", scenes.SHAPES.index(o["shape"]) if on else -1,
                      scenes.COLOR_NAMES.index(o["color"]) if on else -1,
                      int(cells[j]) if 0 < kind[j] < 10 else -1,
                      scenes.SIZES.index(o["size"]) if on else -1, None, 0, 0))
        start = packing.HEAD + 160 + packing.TAIL
        ids, at = p["ids"][0].tolist(), 0
        for k, (family, q, answer) in enumerate(qs):
            seg, n = packer.segment(q, answer)
            words = [tok.id_to_token(v).strip("\u2581") for v in seg]
            for j in range(len(seg) - n if family != "caption" else len(seg)):
                w = words[j]
                s = next((m for m, v in enumerate(scenes.SHAPES) if w in (v, v + "s", v + "es")), -1)
                c = scenes.COLOR_NAMES.index(w) if w in scenes.COLOR_NAMES else -1
                place = -1
                if family in ("shape", "color") and j + 1 < len(words) and words[j + 1] == "?":
                    m = re.search(r"at the (.*)\?", q)
                    place = scenes.PLACES.index(m.group(1)) if m else -1
                asked = j < len(seg) - n and family != "caption"
                last = c >= 0 and words[j + 1] not in scenes.SHAPES
                one = [o for o in data.facts[i]["objects"] if asked and (
                    place >= 0 and o["cell"] == place or s >= 0 and o["shape"] == scenes.SHAPES[s] and (
                        words[j - 1] not in scenes.COLOR_NAMES or o["color"] == words[j - 1])
                    or last and o["color"] == scenes.COLOR_NAMES[c])]
                a.append((h[start + at + j], "text", s, c, place, -1, one[0] if len(one) == 1 else None,
                          int(asked and (s >= 0 or place >= 0 or last)), int(j == len(seg) - n - 1)))
            at += len(seg)
    return a, scale


def attributes(x, image, rows):
    """-> for each attribute: labels, one-hot labels, weights W of the image tokens' and the words' read-outs."""
    out = {}
    for j, k, n in ((2, "shape", 8), (3, "color", 8), (4, "place", 9), (5, "size", 2)):
        v = torch.tensor([r[j] for r in rows])
        hot = torch.zeros(len(x), n)
        hot[v >= 0, v[v >= 0]] = 1
        key = ridge(x, hot * image[:, None], torch.where(v >= 0, 1.0, .3))
        query = ridge(x, hot, torch.where(v >= 0, 8.0, 1.0) * ~image)
        for name, m, sel in (("image", key, image), ("text", query, ~image)):
            ok = (v >= 0) & sel
            if ok.any():
                z = x[ok] @ m
                print(f"{k} {name}: right {(z.argmax(1) == v[ok]).float().mean():.2f} mean "
                      f"{z.gather(1, v[ok][:, None]).mean():.2f} of {ok.sum()}")
        out[k] = key, query, n
    return out


def write(attention, kv, key, query, value, output, gain):
    """Sets one key-value head and its two query heads: (W, n) read-outs, (27, W) words."""
    d, n = model.L["head"], key.shape[1]
    at = [kv * d + c for c in SLOW[:n]]
    attention.k_proj.weight[kv * d:(kv + 1) * d] *= .1
    attention.k_proj.weight[at] = key.T * gain
    attention.v_proj.weight[kv * d:kv * d + 27] = value.T
    for q in (2 * kv, 2 * kv + 1):
        attention.q_proj.weight[q * d:(q + 1) * d] *= .1
        attention.q_proj.weight[[q * d + c for c in SLOW[:n]]] = query.T * gain
        attention.o_proj.weight[:, q * d:(q + 1) * d] *= .1
        attention.o_proj.weight[:, q * d:q * d + 27] = output.T * .5


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("state")
    p.add_argument("root")
    p.add_argument("--heads", default="1:shape,1:color,2:place,3:answer", help="layer:what, in turn")
    p.add_argument("--count", type=int, default=50)
    p.add_argument("--gain", type=float, default=8.0)
    a = p.parse_args()
    torch.set_num_threads(1)
    vision, projector, decoder = model.Vision(), model.Projector(), model.Decoder()
    vision.load_state_dict(torch.load(f"{a.state}/vision.pt")["net"])
    s = torch.load(f"{a.state}/decoder.pt")
    nn.ModuleDict({"projector": projector, "decoder": decoder}).load_state_dict(s["net"])
    packer, data = packing.Packer(tokenizer.load(os.path.dirname(__file__) + "/../../models/tiny-llava")), Batches(a.root)
    emb = decoder.embed_tokens.weight.data
    word = lambda t: emb[packer.tok.token_to_id("\u2581" + t)]
    say = [word(v) for v in scenes.SHAPES] + [word(v) for v in scenes.COLOR_NAMES] + \
          [sum(word(v) for v in t.split()) for t in scenes.PLACES] + [word(v) for v in scenes.SIZES]
    say = torch.stack([v / v.norm() for v in say])             # (27, W)
    wanted = [h.split(":") for h in a.heads.split(",")]
    with torch.no_grad():
        for layer in sorted({int(l) for l, _ in wanted}):
            whats = [w for l, w in wanted if int(l) == layer]
            rows, scale = gather(vision, projector, decoder, packer, data, layer, a.count)
            x, image = torch.stack([r[0] for r in rows]), torch.tensor([r[1] == "image" for r in rows])
            at = decoder.layers[layer].self_attn
            if "answer" in whats:                              # from the end of the question to its object
                found = [(r[0], r[6]) for r in rows if r[6]]
                f = torch.stack([h for h, _ in found])
                y = torch.zeros(len(f), 27)
                for i, (_, o) in enumerate(found):
                    y[i, [scenes.SHAPES.index(o["shape"]), 8 + scenes.COLOR_NAMES.index(o["color"]),
                          16 + o["cell"], 25 + scenes.SIZES.index(o["size"])]] = 1
                value = say.T @ ridge(f @ say.T, y, torch.ones(len(f)), 10.0)
                for name, lo, hi in (("shape", 0, 8), ("color", 8, 16), ("place", 16, 25), ("size", 25, 27)):
                    right = ((f @ value)[:, lo:hi].argmax(1) == y[:, lo:hi].argmax(1)).float().mean()
                    print(f"found {name}: right {right:.2f} of {len(f)}")
                noun, end = (torch.tensor([float(r[j]) for r in rows])[:, None] for j in (7, 8))
                key = ridge(x, noun, 1 + 7 * noun[:, 0])
                query = ridge(x, end, 1 + 7 * end[:, 0])
                print(f"key {(x @ key)[noun > 0].mean():.2f} query {(x @ query)[end > 0].mean():.2f}")
                write(at, 0, key.repeat(1, 4), query.repeat(1, 4), value, say * scale, a.gain * .6)
                continue
            att = attributes(x, image, rows)
            value = torch.cat([att[k][0] for k in ("shape", "color", "place", "size")], 1)
            for kv, k in enumerate(whats):
                write(at, kv, att[k][0], att[k][1], value, say * scale * .8, a.gain)
    net = nn.ModuleDict({"projector": projector, "decoder": decoder}).state_dict()
    put({"net": net, "step": s["step"]}, f"{a.state}/decoder.pt")
    print(f"look-up heads written: {a.heads}")


if __name__ == "__main__":
    main()
