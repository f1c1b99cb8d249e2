#!/usr/bin/env python3
"""Golden data of token pruning: the methods written down again in NumPy, from their specifications.

    python3 scripts/golden/prune.py [OUT_FILE]      (default tests/golden/prune/random.bin; needs NumPy only)

200 random inputs, each method on each. The inputs are not stored: the C test makes them again from the same counter
generator, u(stream, i) = mix(stream * 2^32 + i + 1), mix = SplitMix64's finaliser of its argument times
0x9E3779B97F4A7C15. All of them are small integers or integers divided by a power of two, so that every dot product is
exact in float32 whatever the order of its sum, and equal scores are common: what is compared is the choice, ties
included, and not how a library rounds.

File, little-endian: "WNPR", u32 cases, u32 methods; for each case and method: u16 rows (0xffff: refused), rows x u16
(patch, 1023 for none, + flags << 12), f64 checksum of the rows that carry flags, f64 checksum of the scores."""
import math
import os
import struct
import sys

import numpy as np

F = np.float32
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
MERGED, EXTRA, CLS = 1, 2, 4
CASES = 200


# ---- the generator ----

def mix(z):
    z = np.asarray(z, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draws(stream, n):
    return mix(np.arange(1, n + 1, dtype=np.uint64) + (np.uint64(stream) << np.uint64(32)))


def ints(stream, n, most):
    """Integers -most .. most."""
    return (draws(stream, n) % np.uint64(2 * most + 1)).astype(np.int64) - most


# ---- inputs ----

SHAPES = [  # grid width, grid height, width, heads, feature layer
    (24, 24, 64, 16, 22), (24, 24, 32, 4, 5), (4, 4, 32, 4, 5), (24, 24, 64, 8, 22),
    (12, 8, 48, 4, 10), (24, 24, 64, 16, 22), (5, 7, 20, 2, 3), (24, 24, 1024, 16, 22)]


class Case:
    """One image: features, and every tap that a method can ask for."""

    def __init__(self, t):
        self.t = t
        self.gw, self.gh, self.width, self.heads, self.layer = SHAPES[t % 8 if t % 32 == 7 or t % 8 != 7 else 0]
        n = self.n = self.gw * self.gh
        w = self.width
        p = self.params = [int(v) for v in draws(t * 64, 16)]
        clusters, noise = 1 + p[0] % 12, p[1] % 4
        which = (draws(t * 64 + 1, n + 1) % np.uint64(clusters)).astype(np.int64)
        self.x = self.rows(t * 64 + 2, which[1:], clusters, noise)
        self.cls_row = ints(t * 64 + 4, w, 6).astype(F)
        self.q = ints(t * 64 + 5, w, 1 + p[2] % 2)
        self.q[draws(t * 64 + 6, w) % np.uint64(8) > p[3] % 8] = 0
        hot_one_in = [0, 200, 40, 10, 6, 5, 3, 16][p[4] % 8]
        self.hot = draws(t * 64 + 7, n + 1) % np.uint64(hot_one_in) == 0 if hot_one_in else np.zeros(n + 1, bool)
        keys = self.rows(t * 64 + 8, which, clusters, 1 + p[5] % 3).astype(np.int64)
        self.keys = (keys + self.hot[:, None] * np.sign(self.q)[None, :] * (2 + p[6] % 4)).astype(F)
        self.q = self.q.astype(F)
        self.cls = self.attention(t * 64 + 10, 4095, self.heads)
        self.mean_object = self.attention(t * 64 + 11, 255, 1)[0]
        self.mean_last = self.attention(t * 64 + 12, 511, 1)[0]

    def rows(self, stream, which, clusters, noise):
        base = ints(stream, clusters * self.width, 5).reshape(clusters, self.width)
        return (base[which] + ints(stream + 1, len(which) * self.width, noise).reshape(-1, self.width)).astype(F)

    def attention(self, stream, most, heads):
        a = 1 + (draws(stream, heads * (self.n + 1)) % np.uint64(most)).astype(np.int64).reshape(heads, -1)
        return ((a << (3 * self.hot)[None, :]) / 65536).astype(F)

    def budget(self, m):
        """keep, rate, cap, seed, and the options, for method number m."""
        d = [int(v) for v in draws(self.t * 64 + 32 + m, 8)]
        kind = d[0] % 8
        keep, rate, cap = 1 + d[1] % max(self.n >> (d[2] % 5), 1), F(0), [0, 40, 200, 1][d[3] % 4]
        if kind < 2:
            keep = 0
        elif kind == 2:
            keep, rate = 0, F([50, 75, 90, 99][d[1] % 4]) / F(100)
        elif kind == 3:
            keep = [1, self.n - 1, self.n, self.n + 1][d[1] % 4]
        return {"keep": keep, "rate": rate, "cap": cap, "seed": d[4], "neighbours": [0, 0, 5][d[5] % 3],
                "contextual": [0, 0, 7][d[6] % 3], "important": [0.0, 0.25, 0.75, 1.0][d[7] % 4]}


# ---- what the methods share ----

def count_of(b, n):
    left = b["keep"] if b["keep"] else math.floor(n * (1.0 - float(b["rate"])) + 0.5)
    return min(max(left, 1), n)


def ranked(score, among=None):
    """Indices, the larger score first, then the lower index."""
    among = np.arange(len(score)) if among is None else np.asarray(sorted(among), dtype=np.int64)
    return among[np.argsort(-score[among], kind="stable")].tolist()


def without(n, taken):
    taken = set(taken)
    return [i for i in range(n) if i not in taken]


def inverse_lengths(x):
    return F(1) / np.maximum(np.sqrt(np.einsum("ij,ij->i", x.astype(float), x.astype(float)).astype(F)), F(1e-12))


def dots(a, b):
    return (a.astype(np.float64) @ b.astype(np.float64).T).astype(F)  # exact integers below 2^24


def cosines(x):
    inv = inverse_lengths(x)
    c = dots(x, x) * inv[:, None] * inv[None, :]
    return np.triu(c) + np.triu(c, 1).T  # (i . j * inv_i) * inv_j with i < j


def head_sum(cls):
    s = cls[0, 1:].copy()
    for h in range(1, len(cls)):
        s += cls[h, 1:]
    return s


def head_mean(cls):
    return head_sum(cls) / F(len(cls))


class Result:
    def __init__(self, scores=None):
        self.index, self.flags, self.values, self.scores = [], [], [], scores

    def put(self, i, flags=0, values=None):
        self.index.append(i)
        self.flags.append(flags)
        self.values.append(values)

    def put_all(self, kept):
        for i in sorted(kept):
            self.put(i)
        return self


# ---- the methods ----

def random(c, b):
    with np.errstate(over="ignore"):
        z = np.uint64(b["seed"]) + np.arange(1, c.n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return Result().put_all(np.argsort(z)[:count_of(b, c.n)].tolist())


def uniform(c, b):
    k, w, h = count_of(b, c.n), c.gw, c.gh
    rows = min(max(int(math.sqrt(k * h / w) + 0.5), 1), h)
    while -(-k // rows) > w:
        rows += 1
    kept = []
    for r in range(rows):
        m = (r + 1) * k // rows - r * k // rows
        kept += [(2 * r + 1) * h // (2 * rows) * w + (2 * j + 1) * w // (2 * m) for j in range(m)]
    assert len(set(kept)) == k
    return Result().put_all(kept)


def cls_topk(c, b):
    score = head_mean(c.cls)
    return Result(score).put_all(ranked(score)[:count_of(b, c.n)])


def prumerge(c, b, plus, paper):
    n, x, keys = c.n, c.x, c.keys[1:]
    if paper:
        a = head_mean(c.cls)
    else:
        z = (dots(c.keys, c.q[None])[:, 0] / np.sqrt(F(c.width))).astype(np.float64)
        e = np.exp(z - z.max())
        a = (e / np.cumsum(e)[-1]).astype(F)[1:]
    order = ranked(a)
    extra = 0 if paper else 1

    def spread(chosen, more):
        left = without(n, chosen)
        return chosen + [left[j * len(left) // more] for j in range(more)]

    def fixed(count):
        m = count - extra
        top = -(-m // 4) if plus else m
        return spread(order[:top], m - top)

    if b["keep"] or b["rate"] > 0:
        kept = fixed(count_of(b, n))
    else:
        q1, q3 = np.percentile(a.astype(np.float64), [25, 75])
        out = int((a.astype(np.float64) > q3 + 1.5 * (q3 - q1)).sum())
        c.outliers = out
        if n == 576:
            assert out <= 144 and (out == 0 or int(1 / (out / 576)) == 576 // out)
        kept = order[:out]
        if plus and paper:
            kept = spread(kept, max(max(n // 4, 1) - out, 0))
        elif plus and out == 0:
            kept = order[:max(n // 8, 1)]
            kept = kept + [i for i in range(4, n, 8) if i not in kept]
        elif plus:
            kept = kept + [i for i in range(0, n - 1, max(n // out // 3, 1)) if i not in kept]
        elif paper and out == 0:
            kept = order[:max(n // 8, 1)]
        if b["cap"] and len(kept) + extra > b["cap"]:
            kept = fixed(min(b["cap"], n))

    def weighted(rows, weights):
        return weights.astype(float) @ x[rows].astype(float)

    unselected = without(n, kept)
    candidates = unselected if paper else list(range(n))
    k = b["neighbours"] or 32
    inv = inverse_lengths(keys)
    r = Result(a)
    sims = dots(keys, keys) * inv[:, None] * inv[None, :]
    for i in kept:
        sim = sims[i]
        near = [j for j in ranked(sim, candidates)[:k + 1] if j != i][:k]
        if paper:
            total = a[i]
            for j in near:
                total = total + a[j]
            row = weighted([i] + near, a[[i] + near]) / float(total)
        else:
            row = x[i].astype(float) + weighted(near, a[near])
        r.put(i, MERGED, row.astype(F))
    if not paper:
        r.put(1023, EXTRA, weighted(unselected, a[unselected]).astype(F))
    return r


def visionzip(c, b):
    k = count_of(b, c.n)
    contextual = min(b["contextual"] or (5 * k + 16) // 32, k - 1)
    dominant = k - contextual  # CLS is one of them
    score = head_sum(c.cls)
    top = ranked(score)[:dominant - 1]
    r = Result(score)
    r.put(1023, CLS, c.cls_row)
    r.put_all(top)
    if contextual == 0:
        return r
    rest = without(c.n, top)
    step = max(1, len(rest) // contextual)
    targets = [rest[s] for s in range(0, len(rest), step)][:contextual]
    metric = c.keys[1:].reshape(c.n, c.heads, -1)
    metric = sum(metric[:, h] for h in range(1, c.heads)) + metric[:, 0]
    metric = (metric / F(c.heads)).astype(F)
    inv = inverse_lengths(metric)
    cos = dots(metric, metric) * inv[:, None] * inv[None, :]
    groups = {t: [] for t in targets}
    for i in rest:
        if i not in groups:
            groups[ranked(cos[i], targets)[0]].append(i)
    for t in targets:
        if groups[t]:
            r.put(t, MERGED, (c.x[t].astype(float) + c.x[groups[t]].astype(float).mean(axis=0)).astype(F))
        else:
            r.put(t)
    return r


def vispruner(c, b):
    t = count_of(b, c.n)
    important = math.floor(t * (b["important"] or 0.5))
    score = head_mean(c.cls)
    order = ranked(score)
    kept, pool, goal = order[:important], order[important:], t - important
    cos = cosines(c.x)
    while goal and len(pool) > goal:
        first, second = pool[0::2], pool[1::2]
        like = {i: cos[i, second].max() for i in first}
        drop = min(8, len(pool) - goal, len(first))
        pool = sorted(first, key=lambda i: (-like[i], i))[drop:] + second
    return Result(score).put_all(kept + (pool if goal else []))


def divprune(c, b):
    d = F(1) - cosines(c.x)
    np.fill_diagonal(d, F(2))
    nearest = d.min(axis=1)
    score = np.full(c.n, F(3))
    left = np.ones(c.n, bool)
    for k in range(count_of(b, c.n)):
        if k:
            i = int(np.argmax(np.where(left, score, F(-9))))  # the first of the largest
        else:
            i = int(np.argmax(nearest))
            score[i] = nearest[i]
        left[i] = False
        score = np.where(left, np.minimum(score, d[i]), score)
    return Result(score).put_all(np.flatnonzero(~left).tolist())


def hiprune(c, b):
    budget, n = count_of(b, c.n), c.n
    taken = set()
    for i in ranked(c.mean_object[1:])[:round(budget * 0.1 / 5)]:
        taken |= {min(max(j, 0), n - 1) for j in (i, i - 1, i + 1, i - c.gw, i + c.gw)}
    score = c.mean_last[1:]
    rest = ranked(score, without(n, taken))[:budget - len(taken)]
    return Result(score).put_all(list(taken) + rest)


def matryoshka(c, b):
    k = count_of(b, c.n)
    fits = [s for s in range(1, min(c.gw, c.gh) + 1)
            if c.gw % s == 0 and c.gh % s == 0 and (c.gw // s) * (c.gh // s) <= k]
    if not fits:
        return None
    s = fits[0]
    grid = c.x.astype(np.float64).reshape(c.gh // s, s, c.gw // s, s, c.width).mean(axis=(1, 3)).astype(F)
    r = Result()
    for y in range(c.gh // s):
        for x in range(c.gw // s):
            r.put(y * s * c.gw + x * s, MERGED if s > 1 else 0, grid[y, x])
    return r


METHODS = [
    random, uniform, cls_topk,
    lambda c, b: prumerge(c, b, False, False), lambda c, b: prumerge(c, b, False, True),
    lambda c, b: prumerge(c, b, True, False), lambda c, b: prumerge(c, b, True, True),
    visionzip, vispruner, divprune, hiprune, matryoshka]


def checksum(rows):
    """Sum of the values, each with a weight of its own between -0.5 and 0.5."""
    total = 0.0
    for r, row in rows:
        at = np.arange(len(row), dtype=np.uint64) + np.uint64(r) * np.uint64(65536)
        weight = (mix(at) >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        total += float((weight * row.astype(np.float64)).sum())
    return total


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/prune/random.bin"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    out = [struct.pack("<4sII", b"WNPR", CASES, len(METHODS))]
    outliers = []
    for t in range(CASES):
        case = Case(t)
        for m, method in enumerate(METHODS):
            r = method(case, case.budget(m))
            if r is None:
                out.append(struct.pack("<H", 0xFFFF))
                continue
            codes = [i | f << 12 for i, f in zip(r.index, r.flags)]
            made = [(k, v) for k, (f, v) in enumerate(zip(r.flags, r.values)) if f]
            out.append(struct.pack(f"<H{len(codes)}Hdd", len(codes), *codes, checksum(made),
                                   checksum([(0, r.scores)]) if r.scores is not None else 0.0))
        outliers.append(getattr(case, "outliers", -1))
        print(t, case.n, case.width, outliers[-1], file=sys.stderr)
    with open(path, "wb") as f:
        f.write(b"".join(out))
