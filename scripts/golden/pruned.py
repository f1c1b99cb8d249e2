#!/usr/bin/env python3
"""Golden answers about pruned pictures: what Transformers says in float32 when it is given the rows that are kept.

    python3 scripts/golden/pruned.py          (needs torch, transformers and pillow; after every change of the checkpoint)

Writes tests/golden/tiny-llava/pruned.txt: the checkpoint's sha-256 as in answers.txt, then for each of QUESTIONS
questions of tests/eval (one a picture), each way of pruning and both policies of position five lines:
    question ID
    the picture, as a path in tests/eval
    the question's text
    METHOD KEEP compact|original
    new token ids, with the end token if it came
The methods are written here anew from their specifications: uniform (every third patch each way), cls-topk (attention of
the CLS query in the layer of the features, mean over heads, raster order) and prumerge (keys and CLS query of the layer
after, one head, softmax with CLS; the highest scores in descending order, each with its 32 nearest by cosine of keys
added, weighted by score; the rest summed up as one row more). Positions: a row has its patch's, the row without a patch
the last of its image, and text goes on after 576; or all are numbered on.
A question is left out if any choice is close (a patch at the edge of the budget, a token): float32 in another order of
sums may then differ."""
import json
import os

import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlamaTokenizerFast, LlavaForConditionalGeneration

from tiny_llava import EVAL, MODEL, OUT, checkpoint_hash

QUESTIONS, NEW_TOKENS, PATCHES = 12, 40, 576
CLOSE_SCORE, CLOSE_LOGIT = 1e-5, 1e-3  # of the score; of the largest logit


class Close(Exception):
    """Somebody else's float32 may choose otherwise."""


def top(score, k):
    value, order = torch.sort(score, descending=True, stable=True)
    if (value[k - 1] - value[k]) / value[k - 1] < CLOSE_SCORE:
        raise Close
    return order[:k]


def uniform(_):
    at = 1 + 3 * torch.arange(8)
    return [(int(y * 24 + x), None) for y in at for x in at]


def cls_topk(seen, keep=40):
    score = seen["attention"].mean(0)[0, 1:]
    return [(int(i), None) for i in top(score, keep).sort().values]


def prumerge(seen, keep=33):
    keys, query, x = seen["keys"], seen["query"], seen["features"]
    score = torch.softmax(query @ keys.T / keys.shape[1] ** .5, 0)[1:]
    unit = torch.nn.functional.normalize(keys[1:], dim=1)
    chosen, rows = top(score, keep - 1), []
    for i in chosen:
        likeness = unit @ unit[i]
        likeness[i] = -2
        near = top(likeness, 32)
        rows.append((int(i), x[i] + score[near] @ x[near]))
    left = torch.ones(PATCHES, dtype=torch.bool)
    left[chosen] = False
    return rows + [(None, score[left] @ x[left])]


METHODS = [("uniform", 64, uniform), ("cls-topk", 40, cls_topk), ("prumerge", 33, prumerge)]


def look(model, pixels):
    """-> what the tower makes of a picture, all that a method reads"""
    tower = model.model.vision_tower.vision_model
    out = tower(pixels, output_hidden_states=True, output_attentions=True)
    hidden = out.hidden_states[-2]
    after = tower.encoder.layers[-1]
    normed = after.layer_norm1(hidden)[0]
    return {"features": hidden[0, 1:], "attention": out.attentions[-2][0], "keys": after.self_attn.k_proj(normed),
            "query": after.self_attn.q_proj(normed[:1])[0]}


def answer(model, before, rows, after, original, end):
    embed, n = model.get_input_embeddings(), len(before)
    place = [n + (PATCHES - 1 if i is None else i) for i, _ in rows] if original else list(range(n, n + len(rows)))
    follow = n + (PATCHES if original else len(rows))
    values = model.model.multi_modal_projector(torch.stack([v for _, v in rows]))
    new = []
    while len(new) < NEW_TOKENS:
        x = torch.cat([embed(torch.tensor(before)), values, embed(torch.tensor(after + new))])
        positions = torch.tensor(list(range(n)) + place + list(range(follow, follow + len(after) + len(new))))
        mask = torch.full((len(x), len(x)), torch.finfo(torch.float32).min).triu(1)[None, None]
        hidden = model.model.language_model(inputs_embeds=x[None], position_ids=positions[None], attention_mask=mask,
                                            use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0, -1])
        first, second = torch.topk(logits, 2).values
        if first - second < CLOSE_LOGIT * logits.abs().max():
            raise Close
        new.append(int(logits.argmax()))
        if new[-1] == end:
            break
    return new


@torch.no_grad()
def main():
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer, processor = LlamaTokenizerFast.from_pretrained(MODEL), CLIPImageProcessor.from_pretrained(MODEL)
    with open(os.path.join(EVAL, "questions.jsonl"), encoding="ascii") as f:
        questions = [json.loads(line) for line in f]
    lines, used, left_out, moved = [checkpoint_hash()], 0, 0, 0
    for n, q in enumerate(questions[4::5] + questions[2::5]):  # captions are the fifth
        if used == QUESTIONS:
            break
        picture = Image.open(os.path.join(EVAL, q["image"])).convert("RGB")
        seen = look(model, processor(picture, return_tensors="pt")["pixel_values"])
        ids = tokenizer(f"USER: <image>\n{q['question']} ASSISTANT:")["input_ids"]
        at = ids.index(model.config.image_token_index)
        block = []
        try:
            for name, keep, choose in METHODS:
                rows = [(i, seen["features"][i] if v is None else v) for i, v in choose(seen)]
                assert len(rows) == keep
                both = [answer(model, ids[:at], rows, ids[at + 1:], original, tokenizer.eos_token_id)
                        for original in (False, True)]
                moved += both[0] != both[1]
                for policy, new in zip(("compact", "original"), both):
                    block += [f"question {q['id']}", q["image"], q["question"], f"{name} {keep} {policy}",
                              " ".join(map(str, new))]
        except Close:
            left_out += 1
            continue
        lines, used = lines + block, used + 1
        print(f"{q['id']} ({n + 1} looked at)", flush=True)
    with open(os.path.join(OUT, "pruned.txt"), "w", encoding="ascii") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{used} questions, {left_out} left out; in {moved} of {used * len(METHODS)} positions change the answer")


if __name__ == "__main__":
    main()
