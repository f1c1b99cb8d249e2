"""Many questions about one picture in one sequence.

[<s> USER : _ | image tokens | _ \\n] question 1 ... answer 1 </s> question 2 ... answer 2 </s> ...
Each question sees the shared beginning and itself, and its positions go on where the beginning ends, so its
logits are those of the same question asked alone.  One forward pass then scores all of them, and a greedy
answer is exactly right if and only if each token of the right answer is the arg max.
"""
import torch

import model
import questions
from tokenizer import IMAGE, PAD

HEAD, TAIL = 4, 2                  # tokens of the shared beginning before and after the image


class Packer:
    def __init__(self, tok):
        self.tok, self.known = tok, {}
        ids = self.ids("x", "y")
        at = ids.index(IMAGE)
        assert at == HEAD
        self.head, self.tail = ids[:at], ids[at + 1:at + 1 + TAIL]

    def ids(self, question, answer):
        """Token ids of the whole conversation; the image is one token here."""
        return self.tok.encode(questions.PROMPT.format(question) + " " + answer + "</s>").ids

    def segment(self, question, answer):
        """(ids after the shared beginning, for each: is it scored?), which the answer with its </s> is.
        Without a question, answer is a drill."""
        if question is None:
            ids, scored = [], []
            for word, counts in answer:
                one = self.known.setdefault(word, self.tok.encode(word, add_special_tokens=False).ids)
                ids += one
                scored += [False] * (len(one) - 1) + [counts]      # a number is a blank and a digit
            return ids, scored
        key = (question, answer)
        if key not in self.known:
            if len(self.known) > 200000:
                self.known.clear()
            ids = self.ids(question, answer)[HEAD + 1 + TAIL:]
            n = len(self.tok.encode(questions.PROMPT.format(question)).ids) - (HEAD + 1 + TAIL)
            self.known[key] = ids, [False] * n + [True] * (len(ids) - n)
        return self.known[key]

    def pack(self, asked, image_tokens, where=None):
        """asked: for each picture a list of (family, question, answer).  -> dict of tensors.
        where (B, image tokens): leave the tokens at these of the 576 positions instead of closing the gaps."""
        rows = []
        for qs in asked:
            ids, seg, pos, ans = [], [], [], []
            for k, (_, q, a) in enumerate(qs):
                s, scored = self.segment(q, a)
                ids += s
                seg += [k] * len(s)
                pos += range(len(s))
                ans += scored
            rows.append((ids, seg, pos, ans))
        width = max(len(r[0]) for r in rows)
        prefix = HEAD + image_tokens + TAIL
        ids = torch.full((len(rows), width), PAD)
        seg = torch.full((len(rows), width), -1)
        pos = torch.zeros((len(rows), width), dtype=torch.long)
        ans = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, r in enumerate(rows):
            n = len(r[0])
            ids[i, :n], seg[i, :n], pos[i, :n], ans[i, :n] = (torch.tensor(v) for v in r)
        total = prefix + width
        causal = torch.ones(total, total, dtype=torch.bool).tril()
        mask = causal.expand(len(rows), 1, total, total).clone()
        mask[:, 0, prefix:, prefix:] &= seg[:, :, None] == seg[:, None, :]
        if where is None:
            where = torch.arange(image_tokens).expand(len(rows), -1)
            end = image_tokens
        else:
            end = model.V["grid"] ** 2
        head = torch.arange(HEAD).expand(len(rows), -1)
        tail = torch.arange(TAIL).expand(len(rows), -1) + HEAD + end
        positions = torch.cat([head, where + HEAD, tail, pos + HEAD + end + TAIL], 1)
        return dict(ids=ids, seg=seg, ans=ans, mask=mask, positions=positions, prefix=prefix)


def hidden_of_answers(decoder, packer, visual, p):
    """Projected image tokens (B, N, W) -> (hidden states that predict the answer tokens, those tokens, (row, segment))."""
    b = visual.shape[0]
    emb = decoder.embed_tokens
    head = emb(torch.tensor(packer.head)).expand(b, -1, -1)
    tail = emb(torch.tensor(packer.tail)).expand(b, -1, -1)
    h = decoder(torch.cat([head, visual, tail, emb(p["ids"])], 1), p["positions"], p["mask"])
    h = h[:, p["prefix"] - 1:-1][p["ans"]]                     # the state before each answer token
    rows = torch.arange(b)[:, None].expand_as(p["ids"])[p["ans"]]
    return h, p["ids"][p["ans"]], rows, p["seg"][p["ans"]]


def exact(decoder, packer, visual, asked):
    """For each picture, for each of its questions: is the greedy answer exactly right?"""
    p = packer.pack(asked, visual.shape[1])
    h, want, rows, segs = hidden_of_answers(decoder, packer, visual, p)
    good = decoder.lm_head(h).argmax(-1) == want
    out = [[True] * len(qs) for qs in asked]
    for ok, r, s in zip(good.tolist(), rows.tolist(), segs.tolist()):
        out[r][s] &= ok
    return out
