#!/usr/bin/env python3
"""Golden data of the position policy `original`: what Transformers computes when pruned image rows keep their positions.

    python3 scripts/golden/original.py [DIR]           (default tests/golden; needs torch, transformers, safetensors)

Reads the checkpoints and features that llava.py made, and writes DIR/llava-{a,b}/golden/:
    original_rows.bin      uint32 [rows, 6]: token, image (0, 1; 0xffffffff: text), row of that image's features, index of
                           the patch it stands for (0xffffffff: none), flags (1 merged, 2 extra, 4 CLS), position
    original_features.bin  float32 [KEPT[0] + KEPT[1], vision hidden]: what a vision worker would send
    original_logits.bin    float32 [rows, vocab]
    original_greedy.bin    uint32 [new tokens]
The first image comes as LLaVA-PruMerge leaves it: merged rows in no order of place, then one extra row. The second as
VisionZip does: CLS, patches in order, then a merged row that stands for no single patch. A patch has position first +
index, where first is that of its image; CLS has first; other rows without a patch have first + PATCHES - 1; text after an
image goes on at first + PATCHES. Rows see the rows before them in the list, whatever their positions."""
import os
import sys

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from llava import NEW_TOKENS, PATCHES

NONE, MERGED, EXTRA, CLS = 0xFFFFFFFF, 1, 2, 4
KEPT = [[(9, MERGED), (2, MERGED), (14, MERGED), (5, MERGED), (0, MERGED), (11, MERGED), (NONE, EXTRA)],
        [(NONE, CLS), (1, 0), (3, 0), (8, 0), (15, 0), (NONE, MERGED)]]


@torch.no_grad()
def make(folder):
    golden = os.path.join(folder, "golden")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                          attn_implementation="eager").eval()
    vocab, width = model.config.text_config.vocab_size, model.config.vision_config.hidden_size
    gen = torch.Generator().manual_seed(20240809)
    features = torch.from_numpy(np.fromfile(os.path.join(golden, "features.bin"), "<f4")).view(-1, PATCHES, width)

    def text(n):
        return torch.randint(3, vocab - 1, (n,), generator=gen).tolist()

    rows, kept, position = [], [], 0
    for part in ([1] + text(2), 0, text(3), 1, text(4)):
        if isinstance(part, list):
            for token in part:
                rows.append((token, NONE, 0, NONE, 0, position))
                position += 1
            continue
        for r, (index, flags) in enumerate(KEPT[part]):
            row = features[part, index] if flags == 0 else \
                torch.rand(PATCHES, generator=gen) @ features[part] / PATCHES * 2
            place = index if index != NONE else 0 if flags & CLS else PATCHES - 1
            kept.append(row)
            rows.append((vocab - 1, part, r, index, flags, position + place))
        position += PATCHES

    table = torch.tensor([[v if v != NONE else -1 for v in row] for row in rows])
    image = table[:, 1] >= 0
    kept = torch.stack(kept)
    embed = model.get_input_embeddings()

    def run(new):
        ids = torch.cat([table[:, 0], torch.tensor(new, dtype=torch.long)])
        x = embed(ids)
        x[:len(rows)][image] = model.model.multi_modal_projector(kept)
        positions = torch.cat([table[:, 5], position + torch.arange(len(new))])
        n = len(ids)
        # said in full, so that nothing is concluded from positions that fall
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        hidden = model.model.language_model(inputs_embeds=x[None], position_ids=positions[None], attention_mask=mask,
                                            use_cache=False).last_hidden_state
        return model.lm_head(hidden)[0]

    logits = run([])
    new = []
    for _ in range(NEW_TOKENS):
        last = run(new)[-1]
        top = torch.topk(last, 2).values
        assert top[0] - top[1] > 1e-3, "a close call: change the seed"
        new.append(int(last.argmax()))
    np.array(rows, dtype="<u4").tofile(os.path.join(golden, "original_rows.bin"))
    kept.numpy().astype("<f4").tofile(os.path.join(golden, "original_features.bin"))
    logits.numpy().astype("<f4").tofile(os.path.join(golden, "original_logits.bin"))
    np.array(new, dtype="<u4").tofile(os.path.join(golden, "original_greedy.bin"))

    position = len(rows)
    table[:, 5] = torch.arange(len(rows))
    print(f"{folder}: {len(rows)} rows; compact positions would move logits by {(run([]) - logits).abs().max():.3f}")


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
    for name in ("llava-a", "llava-b"):
        make(os.path.join(target, name))
