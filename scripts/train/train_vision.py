"""Phase A: trains the vision tower with a label for each patch and a multi-label objective for CLS.

    python3 train_vision.py DIR --minutes 25 [--cells 1] [--batch 12] [--lr 3.5e-4] [--workers 2] [--resume]
    python3 train_vision.py DIR --minutes 15 --cells 9 --batch 2 --resume --teacher FILE

DIR is what data.py wrote.  State goes to DIR/../vision.pt and vision-opt*.pt every two minutes; --resume goes on.
Most of the time only some cells of a picture are shown (--cells of 9), which costs a fraction of a whole one.
A tower that has learnt so is lost in a whole picture: there are nine times as many patches to look at.  So in the end
it is its own teacher (--teacher, a copy of vision.pt): each layer, on the whole picture, is to give what the teacher
gives on each cell alone, and a patch is to attend to its own cell.
"""
import argparse
import io
import os
import signal
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import model
import scenes

HEADS = dict(kind=10, color=8, size=2, char=36, slot=4, word=len(scenes.WORDS), length=4, place=9, center=1,
             digit0=11, digit1=11, digit2=11)
CLS_LABELS = 64 + len(scenes.WORDS) + 36
CELL_PATCHES = (np.arange(8)[:, None] * 24 + np.arange(8)[None]).ravel()
CELL_START = [r * 8 * 24 + c * 8 for r in range(3) for c in range(3)]


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(model.V["width"], sum(HEADS.values()))
        self.early = nn.Linear(model.V["width"], sum(HEADS.values()))      # the same from a layer in the middle
        self.cover = nn.Linear(model.V["width"], 49)                       # which pixels belong to the object
        self.offset = nn.Linear(model.V["width"], 3)                       # where its centre is, how large it is
        self.cls1 = nn.Linear(model.V["width"], CLS_LABELS)
        self.cls2 = nn.Linear(model.V["width"], CLS_LABELS)


def jpeg(img, quality):
    f = io.BytesIO()
    Image.fromarray(img).save(f, "JPEG", quality=quality)
    return np.asarray(Image.open(f))


def augment(img, rng):
    if rng.random() < .25:
        img = jpeg(img, int(rng.integers(70, 97)))
    if rng.random() < .5:
        gain, shift = rng.uniform(.88, 1.1), rng.uniform(-10, 10)
        img = np.clip(img.astype(np.float32) * gain + shift, 0, 255).astype(np.uint8)
    return img


def geometry(facts, img, cells):
    """Targets from the picture itself: (len(cells)*64, 49) share of object in each 2 x 2 pixels of the patch,
    and (len(cells)*64, 3) way to the object's centre and its size (nan where there is no object)."""
    cover = np.zeros((len(cells), 64, 49), np.float32)
    offset = np.full((len(cells), 8, 8, 3), np.nan, np.float32)
    by_cell = {o["cell"]: o for o in facts["objects"]}
    text = facts["text"]
    for j, cell in enumerate(cells):
        y0, x0 = cell // 3 * 112, cell % 3 * 112
        if cell in by_cell:
            o = by_cell[cell]
            y, x, h, w = o["y"] - y0, o["x"] - x0, o["px"], o["px"]
        elif text and text["cell"] == cell:
            y, x, h, w = text["y"] - y0, text["x"] - x0, 26, 26 * len(text["text"])
        else:
            continue
        part = img[y0:y0 + 112, x0:x0 + 112].astype(np.int16)
        if cell in by_cell:
            on = np.abs(part - np.array(scenes.COLORS[o["color"]])).max(-1) < 26
        else:
            box = part[y:y + h, x:x + w]
            dark = (box.max(-1) < 50).sum() > (box.min(-1) > 205).sum()
            on = part.max(-1) < 70 if dark else part.min(-1) > 190
        inside = np.zeros((112, 112), bool)
        inside[max(0, y):y + h, max(0, x - 4):x + w + 4] = True
        on = (on & inside).astype(np.float32)
        cover[j] = on.reshape(8, 7, 2, 8, 7, 2).mean((2, 5)).transpose(0, 2, 1, 3).reshape(64, 49)
        grid = np.arange(8) * 14 + 7
        offset[j, ..., 0] = ((y + h / 2 - grid) / 40)[:, None]
        offset[j, ..., 1] = ((x + w / 2 - grid) / 40)[None]
        offset[j, ..., 2] = w / 60 - 1
    return cover.reshape(-1, 49), offset.reshape(-1, 3)


def cell_labels(facts, labels, cells):
    """Per-patch targets for the chosen cells: dict of (len(cells)*64,) int arrays, -100 where not asked."""
    n = len(cells) * 64
    out = {k: np.full(n, -100, np.int64) for k in HEADS}
    multi = np.zeros(CLS_LABELS, np.float32)
    by_cell = {o["cell"]: o for o in facts["objects"]}
    text = facts["text"]
    for j, cell in enumerate(cells):
        s = slice(j * 64, j * 64 + 64)
        at = CELL_START[cell] + CELL_PATCHES
        kind = labels[0].ravel()[at].astype(np.int64)
        fg = (kind > 0) & (kind < scenes.IGNORE)
        out["kind"][s] = np.where(kind == scenes.IGNORE, -100, kind)
        out["place"][s] = cell
        box = None
        if cell in by_cell:
            o = by_cell[cell]
            c, h = scenes.COLOR_NAMES.index(o["color"]), scenes.SHAPES.index(o["shape"])
            out["color"][s][fg] = c
            out["size"][s][fg] = scenes.SIZES.index(o["size"])
            multi[c * 8 + h] = 1
            box = ((o["y"] + o["px"] // 2) // 14, (o["x"] + o["px"] // 2) // 14)
        elif text and text["cell"] == cell:
            t = text["text"]
            out["char"][s][fg] = labels[1].ravel()[at][fg]
            out["slot"][s][fg] = labels[2].ravel()[at][fg]
            out["length"][s][fg] = len(t) - 1
            if t in scenes.WORDS:
                out["word"][s][fg] = scenes.WORDS.index(t)
                multi[64 + scenes.WORDS.index(t)] = 1
            else:
                for k in range(3):
                    out[f"digit{k}"][s][fg] = int(t[k]) if k < len(t) else 10
            for ch in t:
                multi[64 + len(scenes.WORDS) + scenes.CHARS.index(ch)] = 1
            box = ((text["y"] + 13) // 14, (text["x"] + 13 * len(t)) // 14)
        if box:
            out["center"][s] = 0
            out["center"][s][at == box[0] * 24 + box[1]] = 1
    return out, multi


class Batches:
    def __init__(self, root):
        self.pix = np.load(f"{root}/pixels.npy", mmap_mode="r")
        self.lab = np.load(f"{root}/labels.npy", mmap_mode="r")
        self.seed, self.n = (int(v) for v in open(f"{root}/seed.txt").read().split())
        self.facts = [scenes.make_scene(self.seed, i) for i in range(self.n)]

    def one_cell(self, rng, large):
        """(scene, cell, patches of the cell to show): all 64 of a large object, else the 36 nearest."""
        while True:
            i = int(rng.integers(self.n))
            f = self.facts[i]
            j = int(rng.integers(len(f["objects"]) + 2))           # text twice as often as its share
            if j >= len(f["objects"]):
                if large or not f["text"]:
                    continue
                j = len(f["objects"])
            thing = (f["objects"] + [f["text"]])[j]
            y0, y1, x0, x1 = scenes.patch_owner(f)[j]
            y, x = thing["cell"] // 3 * 8, thing["cell"] % 3 * 8
            if large != ((y1 - y0 + 1) * (x1 - x0 + 1) > 36):
                continue
            if large:
                return i, thing["cell"], np.arange(64)
            row, col = np.arange(64) // 8 + y, np.arange(64) % 8 + x
            far = np.maximum(np.maximum(y0 - row, row - y1), np.maximum(x0 - col, col - x1)).clip(0)
            return i, thing["cell"], np.sort(np.argsort(far + rng.random(64) * .9)[:36])

    def get_cells(self, rng, size):
        """A batch of single cells, all large objects (64 patches) or all small ones and texts (36 patches)."""
        large = rng.random() < .45
        rows = []
        for _ in range(size if large else size * 3 // 2):
            i, cell, keep = self.one_cell(rng, large)
            t, m = cell_labels(self.facts[i], self.lab[i], [cell])
            cover, offset = geometry(self.facts[i], self.pix[i], [cell])
            at = (CELL_START[cell] + CELL_PATCHES)[keep]
            img = augment(self.pix[i][cell // 3 * 112:cell // 3 * 112 + 112, cell % 3 * 112:cell % 3 * 112 + 112], rng)
            part = img.reshape(8, 14, 8, 14, 3).transpose(0, 2, 4, 1, 3).reshape(64, 3, 196)[keep]
            rows.append((part, at, {k: v[keep] for k, v in t.items()}, m, cover[keep], offset[keep]))
        part, at, t, m, cover, offset = zip(*rows)
        patches = model.normalise(torch.from_numpy(np.stack(part)))
        targets = {k: torch.from_numpy(np.stack([r[k] for r in t])) for k in HEADS}
        stack = lambda v: torch.from_numpy(np.stack(v))
        return patches, stack(at), targets, stack(m), [stack(cover), stack(offset)]

    def get(self, rng, size, k):
        if k == 1 and rng.random() < .88:
            return self.get_cells(rng, size)
        if k == 1:                                                 # now and then the whole of two pictures
            k, size = 9, 2
        pix, index, targets, multi, geo = [], [], [], [], []
        for i in rng.integers(0, self.n, size):
            f = self.facts[i]
            used = [o["cell"] for o in f["objects"]] + ([f["text"]["cell"]] if f["text"] else [])
            w = np.full(9, .12)
            w[used] = 1
            if f["text"]:
                w[f["text"]["cell"]] = 1.8
            cells = sorted(rng.choice(9, k, replace=False, p=w / w.sum())) if k < 9 else list(range(9))
            pix.append(augment(self.pix[i], rng))
            index.append(np.concatenate([CELL_START[c] + CELL_PATCHES for c in cells]))
            t, m = cell_labels(f, self.lab[i], cells)
            targets.append(t)
            multi.append(m)
            geo.append(geometry(f, self.pix[i], cells))
        patches = model.to_patches(torch.from_numpy(np.stack(pix)))
        index = torch.from_numpy(np.stack(index))
        patches = torch.gather(patches, 1, index[..., None].expand(-1, -1, patches.shape[2]))
        targets = {k: torch.from_numpy(np.stack([t[k] for t in targets])) for k in HEADS}
        geo = [torch.from_numpy(np.stack(g)) for g in zip(*geo)]
        return patches, index, targets, torch.from_numpy(np.stack(multi)), geo


def attention_loss(att, fg):
    """att (B, N) attention of CLS over the patches, fg (B, cells, 64): each object should get its share."""
    mass = (att.view(fg.shape) * fg).sum(-1)
    has = fg.any(-1)
    share = has.float() / has.sum(-1, keepdim=True).clamp(min=1)
    return -(share * (mass + 1e-4).log()).sum() / has.any(-1).sum().clamp(min=1)


def dense_losses(z, targets):
    """Cross entropy of each label, from all heads' logits (B, N, sum)."""
    logits = dict(zip(HEADS, z.split(list(HEADS.values()), -1)))
    res = {}
    for k, t in targets.items():
        z, y = logits[k].reshape(-1, HEADS[k]), t.reshape(-1)
        if k == "center":
            if (y >= 0).any():
                z, y = z[y >= 0, 0], y[y >= 0].float()
                res[k] = F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(4.))
            continue
        if k == "kind":
            e = F.cross_entropy(z, y, reduction="none", ignore_index=-100)
            fg, bg = y > 0, y == 0
            res[k] = e[fg].sum() / fg.sum().clamp(min=1) + .3 * e[bg].sum() / bg.sum().clamp(min=1)
        elif (y >= 0).any():
            res[k] = F.cross_entropy(z[y >= 0], y[y >= 0])
    return {k: v * .5 for k, v in res.items()}


def cells_of(t):
    """(B, N) -> (B, cells, N / cells)"""
    return t.view(t.shape[0], t.shape[1] // 64 if t.shape[1] % 64 == 0 else 1, -1)


def pooled_losses(z, targets, res, acc, tag):
    """The same with the logits' mean over an object's patches (over a letter's for char), which is far easier
    to learn at first, and is what a decoder can do by attention."""
    kind = cells_of(targets["kind"])
    z = z.view(*kind.shape, z.shape[-1])
    on = (kind > 0).float()
    mean = (z * on[..., None]).sum(2) / on.sum(2, keepdim=True).clamp(min=1)
    logits = dict(zip(HEADS, mean.split(list(HEADS.values()), -1)))
    for k in ("kind", "color", "size", "word", "length", "digit0", "digit1", "digit2"):
        y = torch.where(kind > 0, targets[k].view(kind.shape), -100).amax(2)
        if (y >= 0).any():
            p, y = logits[k][y >= 0], y[y >= 0]
            res[k] = res.get(k, 0) + F.cross_entropy(p, y)
            acc[k + tag] = (p.argmax(-1) == y).float().mean().item()
    first = sum(v for k, v in list(HEADS.items())[:list(HEADS).index("char")])
    slot, char = targets["slot"].view(kind.shape), targets["char"].view(kind.shape)
    for s in range(4):
        on = (slot == s).float()
        y = torch.where(slot == s, char, -100).amax(2)
        if (y >= 0).any():
            p = ((z[..., first:first + HEADS["char"]] * on[..., None]).sum(2) / on.sum(2, keepdim=True).clamp(min=1))[y >= 0]
            y = y[y >= 0]
            res["char"] = res.get("char", 0) + F.cross_entropy(p, y) / 3
            acc["char" + tag] = (p.argmax(-1) == y).float().mean().item()


def losses(out, heads, targets, multi, geo):
    x, last, s1, s2, wide, states = out
    z, early, acc = heads.dense(x[:, 1:]), {}, {}
    res = dense_losses(z, targets)
    pooled_losses(z, targets, res, acc, "")
    z = heads.early(states[3][:, 1:])
    pooled_losses(z, targets, early, acc, "3")
    res["early"] = sum(WEIGHT[k] * v for k, v in early.items())
    acc = {k: v for k, v in acc.items() if k[-1] != "3" or k in ("kind3", "char3")}
    cover, offset = geo
    busy = (~offset[..., 0].isnan())
    e = F.binary_cross_entropy_with_logits(heads.cover(states[1][:, 1:]), cover, reduction="none").mean(-1)
    res["cover"] = (e * (busy * .9 + .1)).sum() / busy.sum().clamp(min=1)
    res["offset"] = F.l1_loss(heads.offset(states[2][:, 1:])[busy], offset[busy])
    acc["cover"], acc["offset"] = res["cover"].item(), res["offset"].item()
    for name, z in (("cls1", heads.cls1(x[:, 0])), ("cls2", heads.cls2(last))):
        res[name] = F.binary_cross_entropy_with_logits(z, multi, reduction="sum") / multi.sum().clamp(min=1)
    kind = targets["kind"]
    fg = cells_of(kind > 0)
    for name, a in (("att1", s1.softmax(-1).mean(1)), ("att2", s2.softmax(-1).mean(1)), ("att3", wide.softmax(-1))):
        res[name] = attention_loss(a[:, 1:], fg)
        acc[name] = (a[:, 1:] * (kind > 0)).sum(1).mean().item()
    return res, acc


def teach(teacher, net, states, patches, index, res, acc):
    """patches (B, 9 * 64, .), cell by cell: how far the layers are from the teacher's on each cell alone, and how
    much of the attention leaves the cell."""
    b, n, w = states[0][:, 1:].shape
    with torch.no_grad():
        x, aim = teacher.embed(patches.view(b * 9, 64, -1), index.view(b * 9, 64)), []
        for layer in teacher.layers[:model.LAST]:
            x = layer(x)[0]
            aim.append(x[:, 1:].reshape(b, n, w))
    res["copy"] = sum(F.mse_loss(s[:, 1:], t) / t.var() for s, t in zip(states, aim)) / len(aim)
    acc["copy"] = (F.mse_loss(states[-1][:, 1:], aim[-1]) / aim[-1].var()).item()
    away = 0
    for layer in net.layers[:model.LAST]:
        q, k = layer.self_attn.seen
        q = q[:, :, 1:] * q.shape[-1] ** -.5
        every = (q @ k.transpose(2, 3)).logsumexp(-1)                          # (B, H, 9 * 64)
        at_cls = (q @ k[:, :, :1].transpose(2, 3))
        own = q.unflatten(2, (9, 64)) @ k[:, :, 1:].unflatten(2, (9, 64)).transpose(3, 4)
        own = torch.cat([own.flatten(2, 3), at_cls], -1).logsumexp(-1)
        away = away + (every - own).mean()
    res["away"] = away / model.LAST
    acc["away"] = 1 - torch.exp(-res["away"]).item()


WEIGHT = dict(copy=8, away=2, kind=1, color=.7, size=.2, char=1, slot=.3, word=.5, length=.2, place=.2, center=.3, digit0=.2,
              digit1=.2, digit2=.2, cls1=.15, cls2=.15, att1=.05, att2=.05, att3=.05,
              early=.4, cover=4, offset=1)


def optimizer(params, lr):
    return torch.optim.AdamW([{"params": [q for q in params if q.ndim > 1], "weight_decay": .02},
                              {"params": [q for q in params if q.ndim < 2], "weight_decay": 0}],
                             lr=lr, betas=(.9, .99), fused=True)


def work(rank, a, net, heads, step, start, states):
    """One of a.workers processes.  They share the weights and do not wait for each other (Hogwild): on a
    machine where other programs run, waiting for the slower thread at each operation costs most of the time."""
    torch.set_num_threads(1)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    params = list(net.parameters()) + list(heads.parameters())
    opt = optimizer(params, a.lr)
    if states and rank < len(states):
        opt.load_state_dict(states[rank])
    data, rng = Batches(a.root), np.random.default_rng([a.seed, step, rank])
    first, mean, saved, teacher = step, {}, time.time(), None
    if a.teacher:
        teacher = model.Vision()
        teacher.load_state_dict(torch.load(a.teacher)["net"])
        teacher.requires_grad_(False)
        for layer in net.layers[:model.LAST]:
            layer.self_attn.watched = True
    while True:
        t = (time.time() - start) / (a.minutes * 60)
        if t >= 1 or stop:
            break
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step - first + 1) / 60) * min(1, max(.01, (1 - t) / (1 - a.hold)))
        patches, index, *labels = data.get(rng, a.batch, a.cells)
        out = net(patches, index)
        res, acc = losses(out, heads, *labels)
        if teacher:
            teach(teacher, net, out[-1], patches, index, res, acc)
        loss = sum(WEIGHT[k] * v for k, v in res.items())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        for k, v in list(acc.items()) + [("loss", loss.item()), ("cls", res["cls2"].item())]:
            mean[k] = v if k not in mean else .97 * mean[k] + .03 * v
        if step % 25 == 0 and rank == 0:
            print(f"{step} {(time.time() - start) / (step - first):.3f}s/step lr {opt.param_groups[0]['lr']:.1e} "
                  + " ".join(f"{k} {v:.3f}" for k, v in mean.items()), flush=True)
        if time.time() - saved > 120:
            save(a, rank, net, heads, opt, step)
            saved = time.time()
    save(a, rank, net, heads, opt, step)


def save(a, rank, net, heads, opt, step):
    here = os.path.join(a.root, "..")
    put(opt.state_dict(), f"{here}/vision-opt{rank}.pt")
    if rank == 0:
        put({"net": net.state_dict(), "heads": heads.state_dict(), "step": step}, f"{here}/vision.pt")


def put(state, path):
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("root")
    p.add_argument("--minutes", type=float, default=25)
    p.add_argument("--cells", type=int, default=1, help="of 9 shown; 1 also cuts the empty part of the cell away")
    p.add_argument("--teacher", help="a vision.pt that sees one cell at a time (with --cells 9)")
    p.add_argument("--batch", type=int, default=12, help="pictures a step, of each worker")
    p.add_argument("--lr", type=float, default=3.5e-4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--hold", type=float, default=.5, help="share of the time before the rate decays")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    net, heads, step, states = model.Vision(), Heads(), 0, []
    here = os.path.join(a.root, "..")
    if a.resume:
        s = torch.load(f"{here}/vision.pt")
        net.load_state_dict(s["net"])
        heads.load_state_dict(s["heads"])
        step = s["step"]
        states = [torch.load(f) for f in (f"{here}/vision-opt{r}.pt" for r in range(a.workers)) if os.path.exists(f)]
    net.share_memory()
    heads.share_memory()
    context, start = torch.multiprocessing.get_context("spawn"), time.time()
    crew = [context.Process(target=work, args=(r, a, net, heads, step, start, states)) for r in range(a.workers)]
    signal.signal(signal.SIGTERM, lambda *_: [c.terminate() for c in crew])
    for c in crew:
        c.start()
    for c in crew:
        c.join()


if __name__ == "__main__":
    main()
