"""Asks a checkpoint held-out questions and prints the share of exactly right greedy answers per family.

    python3 evaluate.py MODEL_DIR [--questions 2000] [--seed 977]     new pictures, made from the seed
    python3 evaluate.py MODEL_DIR --set ../../tests/eval              the committed pictures
    python3 evaluate.py MODEL_DIR --attention                         does CLS look at the objects?
    python3 evaluate.py MODEL_DIR --generate 50 [--dtype bfloat16]    the same answers from transformers' generate?

The weights are the stored bfloat16 ones; the arithmetic is float32 unless --generate --dtype says otherwise.
"""
import argparse
import itertools
import json
import os

import numpy as np
import torch
from PIL import Image

import export
import model
import packing
import questions
import scenes
import tokenizer

ALL = torch.arange(576)


def from_seed(seed, count):
    """(picture, [(family, question, answer)]) of the held-out questions."""
    for i, _, qs in questions.held_out(seed, count):
        yield scenes.render(seed, i)[1], qs


def from_set(folder):
    with open(os.path.join(folder, "questions.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    for image, group in itertools.groupby(rows, key=lambda r: r["image"]):
        yield (np.asarray(Image.open(os.path.join(folder, image)).convert("RGB")),
               [(r["family"], r["question"], r["answer"]) for r in group])


def chunks(items, n):
    it = iter(items)
    while part := list(itertools.islice(it, n)):
        yield part


def greedy(nets, packer, features, question, limit=100):
    """The answer in words, token by token (slow; the score above needs one pass only)."""
    _, projector, decoder = nets
    ids = packer.tok.encode(questions.PROMPT.format(question)).ids
    e = decoder.embed_tokens
    x = torch.cat([e(torch.tensor(ids[:4])), projector(features), e(torch.tensor(ids[5:]))])[None]
    caches, out, pos = [[] for _ in decoder.layers], [], 0
    while len(out) < limit:
        n = x.shape[1]
        mask = torch.ones(n, pos + n, dtype=torch.bool).tril(pos)[None, None]
        h = decoder(x, torch.arange(pos, pos + n)[None], mask, caches)
        out.append(decoder.lm_head(h[0, -1]).argmax().item())
        if out[-1] == 2:
            out.pop()
            break
        pos, x = pos + n, e(torch.tensor(out[-1:]))[None]
    return packer.tok.decode(out).strip()


@torch.no_grad()
def score(nets, packer, source, keep=576, wrong=0):
    vision, projector, decoder = nets
    got = {f: [] for f in questions.FAMILIES}
    rng = np.random.default_rng(0)
    for part in chunks(source, 8):
        f = vision(model.to_patches(torch.from_numpy(np.stack([p for p, _ in part]))), ALL, last=False)[:, 1:]
        if keep < 576:
            f = f[:, np.sort(rng.permutation(576)[:keep])]
        oks = packing.exact(decoder, packer, projector(f), [qs for _, qs in part])
        for k, (_, qs) in enumerate(part):
            for (family, q, a), ok in zip(qs, oks[k]):
                got[family].append(ok)
                if not ok and wrong > 0:
                    wrong -= 1
                    print(f"{family}: {q} -> {greedy(nets, packer, f[k], q)!r}, not {a!r}")
    return got


@torch.no_grad()
def attention(vision, seed, count=100, top=64):
    """Of the patches that CLS scores highest: how many show something, how many objects have one among them."""
    names = ["mean head, feature layer", "PruMerge, last layer", "chance"]
    hit, found = {n: [] for n in names}, {n: [] for n in names}
    rng = np.random.default_rng(seed)
    for part in chunks(range(count), 8):
        done = [scenes.render(seed, i, labels=True) for i in part]
        x = model.to_patches(torch.from_numpy(np.stack([d[1] for d in done])))
        _, _, heads, _, wide, _ = vision(x, ALL.expand(len(part), -1))
        scores = [heads.softmax(-1).mean(1)[:, 1:], wide.softmax(-1)[:, 1:], torch.from_numpy(rng.random((len(part), 576)))]
        for name, s in zip(names, scores):
            for row, (facts, _, maps) in zip(s, done):
                kind = maps[0].ravel()
                on = (kind > 0) & (kind != scenes.IGNORE)
                best = row.topk(top).indices.numpy()
                hit[name].append(on[best].mean())
                cells = {int(p) // 24 // 8 * 3 + int(p) % 24 // 8 for p in best if on[p]}
                things = [o["cell"] for o in facts["objects"]] + ([facts["text"]["cell"]] if facts["text"] else [])
                found[name] += [c in cells for c in things]
    print(f"top {top} of 576 patches, {count} pictures: patches on an object or text, objects and texts found")
    for name in names:
        print(f"  {name:26s} {100 * np.mean(hit[name]):5.1f} % {100 * np.mean(found[name]):6.1f} %")


def generate(folder, nets, packer, seed, count, dtype):
    """Answers of transformers' generate beside ours."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    other = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    processor = AutoProcessor.from_pretrained(folder)
    same = right = n = 0
    for picture, qs in from_seed(seed, count):
        with torch.no_grad():
            f = nets[0](model.to_patches(torch.from_numpy(picture[None])), ALL, last=False)[0, 1:]
            for family, q, a in qs:
                ours = greedy(nets, packer, f, q)
                batch = processor(images=Image.fromarray(picture), text=questions.PROMPT.format(q), return_tensors="pt")
                batch["pixel_values"] = batch["pixel_values"].to(other.dtype)
                ids = other.generate(**batch, max_new_tokens=100, do_sample=False)[0, batch["input_ids"].shape[1]:]
                theirs = processor.decode(ids, skip_special_tokens=True).strip()
                n, same, right = n + 1, same + (ours == theirs), right + (theirs == a)
                if ours != theirs:
                    print(f"{family}: {q} -> ours {ours!r}, transformers {theirs!r}, right {a!r}")
    print(f"transformers {dtype}: {same} of {n} answers the same as ours, {right} right")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--questions", type=int, default=2000)
    p.add_argument("--seed", type=int, default=977)
    p.add_argument("--set", help="folder with questions.jsonl and its pictures")
    p.add_argument("--keep", type=int, default=576, help="use only so many image tokens, chosen at random")
    p.add_argument("--wrong", type=int, default=0, help="show the first so many wrong answers")
    p.add_argument("--attention", action="store_true")
    p.add_argument("--generate", type=int, default=0)
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    a = p.parse_args()
    nets = export.load(a.model)
    packer = packing.Packer(tokenizer.load(a.model))
    if a.attention:
        return attention(nets[0], a.seed)
    if a.generate:
        return generate(a.model, nets, packer, a.seed, a.generate, a.dtype)
    got = score(nets, packer, from_set(a.set) if a.set else from_seed(a.seed, a.questions), a.keep, a.wrong)
    for family, oks in got.items():
        print(f"{family:9s} {100 * np.mean(oks):6.1f} %  of {len(oks)}")
    every = sum(got.values(), [])
    print(f"{'all':9s} {100 * np.mean(every):6.1f} %  of {len(every)}")


if __name__ == "__main__":
    main()
