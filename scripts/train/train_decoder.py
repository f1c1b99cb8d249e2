"""Phase B: trains projector and decoder on the frozen vision tower's features.

    python3 train_decoder.py DIR --minutes 60 [--batch 4] [--lr 5e-4] [--cached 4000] [--resume] [--begin 0..1]

DIR is what data.py wrote, DIR/../vision.pt comes from train_vision.py.  State goes to DIR/../decoder*.pt
Features are kept in memory (0.3 MB a picture).  At first each picture shows only a few of its 576 tokens, which
is cheap and teaches the decoder to live with pruned tokens; the end shows mostly all of them.
"""
import argparse
import os
import signal
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import drills
import gaze
import model
import packing
import questions
import scenes
import tokenizer
from train_vision import Batches, augment, optimizer, put

WEIGHT = {"caption": .5, "relation": 1.5, "drill": .4}
EVAL_SEED = 555                    # for the figures printed while training; the card uses another one


def warm_start(decoder, projector, tok, feats, data):
    """Begins where matching and copying work: queries and keys alike, values and outputs inverse, lm_head like
    the embedding, and image tokens near the sum of the words that they show."""
    g = torch.Generator().manual_seed(7)
    w, d = model.L["width"], model.L["head"]
    slow = (torch.arange(d) % (d // 2) >= 9).float()[:, None]      # rotary pairs that hardly turn over a picture
    for layer in decoder.layers:
        a = layer.self_attn
        vs = torch.linalg.qr(torch.randn(w, w, generator=g))[0]
        for kv in range(model.L["kv_heads"]):
            p = torch.linalg.qr(torch.randn(w, d, generator=g))[0].T * (.35 + 1.2 * slow)
            a.k_proj.weight.data[kv * d:(kv + 1) * d] = p + .02 * torch.randn(d, w, generator=g)
            v = vs[kv * d:(kv + 1) * d]
            a.v_proj.weight.data[kv * d:(kv + 1) * d] = v
            for q in (2 * kv, 2 * kv + 1):
                a.q_proj.weight.data[q * d:(q + 1) * d] = p + .05 * torch.randn(d, w, generator=g)
                a.o_proj.weight.data[:, q * d:(q + 1) * d] = .25 * v.T + .01 * torch.randn(w, d, generator=g)
    emb = decoder.embed_tokens.weight.data
    decoder.lm_head.weight.data.copy_(emb * .08)
    word = lambda s: emb[tok.token_to_id("\u2581" + s)]
    target = torch.zeros(len(feats), 576, w)
    for i in range(len(feats)):
        f, kind = data.facts[i], torch.from_numpy(data.lab[i][0].astype(np.int64)).view(24, 24)
        char = torch.from_numpy(data.lab[i][1].astype(np.int64)).view(24, 24)
        t = target[i].view(24, 24, w)
        for cell, place in enumerate(scenes.PLACES):
            r, c = cell // 3 * 8, cell % 3 * 8
            t[r:r + 8, c:c + 8] = .5 * sum(word(s) for s in place.split())
        for o in f["objects"]:
            r, c = o["cell"] // 3 * 8, o["cell"] % 3 * 8
            on = ((kind[r:r + 8, c:c + 8] > 0) & (kind[r:r + 8, c:c + 8] < 9))[..., None]
            t[r:r + 8, c:c + 8] += on * (word(o["shape"]) + word(o["color"]) + .5 * word(o["size"]))
        if f["text"]:
            s = f["text"]["text"]
            on = kind == 9
            t[on] += word("text") + (word(s) if s in scenes.WORDS else 0)
            if s not in scenes.WORDS:
                for digit in range(10):
                    t[on & (char == digit)] += emb[tok.token_to_id(str(digit))]
    x, y = feats.float().reshape(-1, w), target.reshape(-1, w)
    y = y + .25 * ((x - x.mean(0)) / x.std(0)) @ torch.randn(w, w, generator=g) / w ** .5
    weight = torch.where(target.reshape(-1, w).norm(dim=1) > 9, 1.0, .2)
    opt = torch.optim.AdamW(projector.parameters(), lr=3e-3, weight_decay=0)
    for step in range(400):
        for p in opt.param_groups:
            p["lr"] = 3e-3 * (1 - step / 400) + 1e-5
        k = torch.multinomial(weight, 1024, generator=g) if step % 20 else torch.randint(len(x), (1024,), generator=g)
        loss = F.mse_loss(projector(x[k]), y[k])
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"projector warm start: mse {loss.item():.4f} of {y.var().item():.4f}", flush=True)


def choose(kind, n, rng, foreground):
    """n of 576 positions in order; with foreground, first the text, then some patches of each object."""
    score = rng.random(576)
    if foreground:
        grid = kind.reshape(3, 8, 3, 8).transpose(0, 2, 1, 3).reshape(9, 64)       # the patches of each cell
        at = np.arange(576).reshape(3, 8, 3, 8).transpose(0, 2, 1, 3).reshape(9, 64)
        score[at[grid == 9]] -= 3
        some = max(3, (n * 7 // 8 - int((kind == 9).sum())) // max(1, int(((grid > 0) & (grid < 9)).any(1).sum())))
        for k, where in zip(grid, at):
            score[rng.permutation(where[(k > 0) & (k < 9)])[:some]] -= 2
    return np.sort(np.argpartition(score, n - 1)[:n])


class Stream:
    """Features of one worker's pictures, computed when the training gets to them, and batches of them."""

    def __init__(self, data, vision, packer, ids, file=None):
        self.data, self.vision, self.packer, self.ids = data, vision, packer, ids
        shape, self.ready, self.file = (len(ids), 576, model.V["width"]), 0, file
        if not file:
            self.feats = torch.zeros(shape, dtype=torch.float16)
            return
        if os.path.exists(file + ".count"):                        # an earlier run of the same tower left these
            self.ready = int(open(file + ".count").read())
        self.feats = torch.from_numpy(np.memmap(file, np.float16, "r+" if self.ready else "w+", shape=shape))

    @torch.no_grad()
    def grow(self, upto, rng):
        while self.ready < min(upto, len(self.ids)):
            ids = self.ids[self.ready:self.ready + 4]
            x = model.to_patches(torch.from_numpy(np.stack([augment(self.data.pix[i], rng) for i in ids])))
            f = self.vision(x, torch.arange(576), last=False)[:, 1:]
            self.feats[self.ready:self.ready + len(ids)] = f.half()
            self.ready += len(ids)
            if self.file:
                with open(self.file + ".count", "w") as f:
                    f.write(str(self.ready))

    def get(self, rng, batch, segments, lists, n, foreground):
        """Half of the time the chosen tokens keep their positions of 576, so that these are known early."""
        rows, asked, where, shown = [], [], [], []
        for k in rng.integers(0, self.ready, batch):
            f, i = self.feats[k], self.ids[k]
            if n < 576:
                where.append(torch.from_numpy(choose(self.data.lab[i][0].ravel(), n, rng, foreground)))
                f = f[where[-1]]
            rows.append(f.float())
            shown.append((i, where[-1] if n < 576 else torch.arange(576)))
            asked.append(questions.questions(self.data.facts[i], segments, rng, int(rng.integers(8))))
            asked[-1] += drills.shuffled(rng, drills.drills(self.data.facts[i], rng))[:lists]
        keep = torch.stack(where) if where and rng.random() < .5 else None
        packed = self.packer.pack(asked, n, keep)
        return torch.stack(rows), asked, packed, self.targets(shown, asked, packed["prefix"], packed["mask"].shape[-1])

    def targets(self, shown, asked, prefix, total):
        """(row, token, which of all keys it should look at) for each word that has something to look at, and
        (row, token, id of what should be known there)."""
        out, known = [], []
        for row, ((i, where), segments) in enumerate(zip(shown, asked)):
            cell = where // 24 // 8 * 3 + where % 24 // 8
            kind = torch.from_numpy(self.data.lab[i][0].ravel())[where]
            cell = torch.where((kind > 0) & (kind != scenes.IGNORE), 1 << cell, 0)
            at = prefix
            for family, q, a in segments:
                ids, scored = self.packer.segment(q, a)
                words = gaze.words_of(self.packer.tok, ids)
                for k, bits in enumerate(gaze.cells(words, scored, self.data.facts[i], family)):
                    here = (cell & bits) > 0
                    if bits and here.any():
                        keys = torch.zeros(total, dtype=torch.bool)
                        keys[packing.HEAD:packing.HEAD + len(here)] = here
                        out.append((row, at + k, keys))
                for k, word in gaze.hints(words, scored, self.data.facts[i], family):
                    known.append((row, at + k, self.packer.tok.encode(word, add_special_tokens=False).ids[-1]))
                at += len(ids)
        return out, known


@torch.no_grad()
def check(vision, projector, decoder, packer, cache, count=400):
    """Accuracy per family on held-out questions."""
    if not cache:
        for i, scene, qs in questions.held_out(EVAL_SEED, count):
            x = model.to_patches(torch.from_numpy(scenes.render(EVAL_SEED, i)[1][None]))
            cache.append((vision(x, torch.arange(576), last=False)[:, 1:].half(), qs))
    got = {}
    for k in range(0, len(cache), 8):
        part = cache[k:k + 8]
        visual = projector(torch.cat([f for f, _ in part]).float())
        for (_, qs), oks in zip(part, packing.exact(decoder, packer, visual, [q for _, q in part])):
            for (family, _, _), ok in zip(qs, oks):
                got.setdefault(family, []).append(ok)
    every = sum(got.values(), [])
    return f"all {np.mean(every):.3f} " + " ".join(f"{k} {np.mean(v):.2f}" for k, v in sorted(got.items()))


def plan(t, rng):
    """Share of the run -> questions and drills a picture, how many image tokens, foreground first?"""
    few, many = (8, 8, 64, True), (14, 4, 576, False)
    some = (10, 4, int(rng.choice([64, 128, 192, 288])), bool(rng.random() < .7))
    x = rng.random()
    if t < .5:
        return few if x < .9 else some
    if t < .7:
        return few if x < .5 else some if x < .8 else many
    return many if x < .65 else some


def work(rank, a, vision, both, step, start, states):
    """One of a.workers processes; they share the weights and do not wait for each other (Hogwild)."""
    torch.set_num_threads(1)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    projector, decoder = both["projector"], both["decoder"]
    opt = optimizer(list(both.parameters()), a.lr)
    if states and rank < len(states):
        opt.load_state_dict(states[rank])
    packer, data = packing.Packer(tokenizer.load(a.tokenizer)), Batches(a.root)
    stream = Stream(data, vision, packer, list(range(rank, a.cached, a.workers)),
                    f"{a.state}/features{rank}.bin")
    rng = np.random.default_rng([a.seed, step, rank])
    decoder.layers[gaze.LAYER].self_attn.watched, middle = True, [None]
    decoder.layers[gaze.LAYER + 1].register_forward_hook(lambda m, x, y: middle.__setitem__(0, y))
    first, mean, cache, saved = step, {}, [], time.time()
    while True:
        t = (time.time() - start) / (a.minutes * 60)
        if t >= 1 or stop:
            break
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step - first + 1) / 60) * min(1, max(.01, (1 - t) / (1 - a.hold)))
        stream.grow(a.ready + 2 * (step - first), rng)
        segments, lists, n, foreground = plan(a.begin + t * (1 - a.begin), rng)
        feats, asked, packed, (targets, known) = stream.get(rng, a.batch, segments, lists, n, foreground)
        h, want, rows, segs = packing.hidden_of_answers(decoder, packer, projector(feats), packed)
        each = F.cross_entropy(decoder.lm_head(h), want, reduction="none")
        names = [[q[0] for q in qs] for qs in asked]
        family = np.array([names[r][s] for r, s in zip(rows.tolist(), segs.tolist())])
        weight = torch.tensor([WEIGHT.get(k.split("-")[0], 1.0) for k in family])
        loss = (each * weight).sum() / weight.sum()
        look = gaze.loss(decoder.layers[gaze.LAYER].self_attn, packed["mask"], targets)
        mean["look"] = look.item() if "look" not in mean else .96 * mean["look"] + .04 * look.item()
        loss = loss + a.gaze * look
        if known:
            r, at, want = (torch.tensor(v) for v in zip(*known))
            hint = F.cross_entropy(decoder.lm_head(decoder.norm(middle[0][r, at])), want)
            mean["hint"] = hint.item() if "hint" not in mean else .96 * mean["hint"] + .04 * hint.item()
            loss = loss + a.gaze * hint
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        step += 1
        each = each.detach().numpy()
        for k in set(family):
            v = float(each[family == k].mean())
            mean[k] = v if k not in mean else .96 * mean[k] + .04 * v
        if step % 25 == 0 and rank == 0:
            print(f"{step} {(time.time() - start) / (step - first):.3f}s/step ready {stream.ready} n {n} lr "
                  f"{opt.param_groups[0]['lr']:.1e} " + " ".join(f"{k} {v:.3f}" for k, v in sorted(mean.items())), flush=True)
        if time.time() - saved > 300:
            save(a, rank, both, opt, step)
            if rank == 0:
                print(f"-- {step} {check(vision, projector, decoder, packer, cache, 200)}", flush=True)
            saved = time.time()
    save(a, rank, both, opt, step)
    if rank == 0 and step > first:
        print(f"-- {step} {check(vision, projector, decoder, packer, cache, 200)}", flush=True)


def save(a, rank, both, opt, step):
    put(opt.state_dict(), f"{a.state}/decoder-opt{rank}.pt")
    if rank == 0:
        put({"net": both.state_dict(), "step": step}, f"{a.state}/decoder.pt")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("root")
    p.add_argument("--state", help="folder of vision.pt and decoder.pt, DIR/.. if not given")
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--begin", type=float, default=0, help="where in the plan to start (0 .. 1)")
    p.add_argument("--batch", type=int, default=4, help="pictures a step, of each worker")
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--gaze", type=float, default=.3, help="weight of the attention that is told where to look")
    p.add_argument("--hold", type=float, default=.5, help="share of the time before the rate decays")
    p.add_argument("--cached", type=int, default=4000, help="pictures whose features are used")
    p.add_argument("--ready", type=int, default=64, help="of these, how many each worker computes at first")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--warm", type=int, default=96, help="pictures for the warm start")
    p.add_argument("--tokenizer", default=os.path.join(os.path.dirname(__file__), "../../models/tiny-llava"))
    p.add_argument("--resume", action="store_true")
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    a.state = a.state or os.path.join(a.root, "..")
    torch.manual_seed(a.seed)
    vision, projector, decoder = model.Vision(), model.Projector(), model.Decoder()
    vision.load_state_dict(torch.load(f"{a.state}/vision.pt")["net"])
    vision.requires_grad_(False)
    if not a.resume:
        for f in (f"{a.state}/features{r}.bin.count" for r in range(a.workers)):
            if os.path.exists(f):
                os.remove(f)
    both, step, states = nn.ModuleDict({"projector": projector, "decoder": decoder}), 0, []
    if a.resume:
        s = torch.load(f"{a.state}/decoder.pt")
        both.load_state_dict(s["net"])
        step = s["step"]
        states = [torch.load(f) for f in (f"{a.state}/decoder-opt{r}.pt" for r in range(a.workers)) if os.path.exists(f)]
    else:
        torch.set_num_threads(1)
        tok, data = tokenizer.load(a.tokenizer), Batches(a.root)
        stream = Stream(data, vision, None, list(range(a.warm)))
        stream.grow(a.warm, np.random.default_rng(a.seed))
        warm_start(decoder, projector, tok, stream.feats, data)
        del data, stream
    both.share_memory()
    vision.share_memory()
    context, start = torch.multiprocessing.get_context("spawn"), time.time()
    crew = [context.Process(target=work, args=(r, a, vision, both, step, start, states)) for r in range(a.workers)]
    signal.signal(signal.SIGTERM, lambda *_: [c.terminate() for c in crew])
    for c in crew:
        c.start()
    for c in crew:
        c.join()


if __name__ == "__main__":
    main()
