#!/usr/bin/env python3
"""Golden data of the sampler: what Transformers' logits processors make of random logits.

    python3 scripts/golden/sampler.py [OUT_FILE]     (default tests/golden/sampler/cases.txt; needs transformers)

Text, one case after another:
    case TEMPERATURE TOP_K TOP_P PENALTY VOCAB CONTEXT_N
    CONTEXT_N ids
    VOCAB logits
    VOCAB probabilities after penalty, temperature, top-k, top-p (0: the token can not come)"""
import os
import sys

import torch
from transformers.generation import logits_process as lp

CASES = [  # temperature, top_k, top_p, penalty, vocabulary, context ids
    (1.0, 0, 1.0, 1.0, 16, 0), (0.7, 0, 1.0, 1.0, 16, 0), (1.5, 5, 1.0, 1.0, 40, 0), (1.0, 0, 0.8, 1.0, 40, 0),
    (0.8, 12, 0.9, 1.0, 64, 0), (1.0, 0, 1.0, 1.3, 24, 9), (0.9, 8, 0.75, 1.2, 50, 30), (1.3, 3, 0.5, 0.8, 20, 12),
    (1.0, 1, 1.0, 1.0, 16, 0), (1.0, 0, 0.01, 1.0, 16, 0), (2.0, 64, 0.95, 1.1, 64, 100),
]


def make(temperature, top_k, top_p, penalty, vocab, context_n, gen):
    logits = 2.0 * torch.randn(1, vocab, generator=gen)
    ids = torch.randint(0, vocab, (1, context_n), generator=gen)
    scores = logits.clone()
    if penalty != 1.0:
        scores = lp.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    if temperature != 1.0:
        scores = lp.TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = lp.TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = lp.TopPLogitsWarper(top_p)(ids, scores)
    return ids[0].tolist(), logits[0].tolist(), torch.softmax(scores.double(), -1)[0].tolist()


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/sampler/cases.txt"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    generator = torch.Generator().manual_seed(31)
    with open(path, "w", encoding="ascii") as f:
        for case in CASES:
            ids, logits, probs = make(*case, generator)
            f.write("case " + " ".join(f"{v:g}" for v in case) + "\n")
            f.write(" ".join(map(str, ids)) + "\n")
            f.write(" ".join(f"{v:.9g}" for v in logits) + "\n")
            f.write(" ".join(f"{v:.12g}" for v in probs) + "\n")
