#!/usr/bin/env python3
"""Golden data of the forward passes: two tiny random LLaVA-1.5 checkpoints with what Transformers computes from them.

    python3 scripts/golden/llava.py [OUT_DIR]          (default tests/golden; needs torch and transformers)

For each checkpoint OUT_DIR/llava-{a,b}/ holds the Hugging Face directory and golden/:
    golden.txt       sizes, one "key value" a line
    pixels.bin       float32 [images, 3, side, side]
    features.bin     float32 [images, patches, vision hidden]: hidden state -2 without CLS
    projected.bin    float32 [images, patches, hidden]
    cls_attention.bin   float32 [images, heads, tokens]: attention of the CLS query in the layer that makes the features
    mean_attention.bin  float32 [images, tokens]: same layer, mean over heads and queries
    keys.bin, query.bin float32 [images, tokens, width], [images, width]: of the layer that reads the features
    tokens_N.bin     uint32 [rows]: prompt N, an image row is the image token (images are used in order)
    logits_N.bin     float32 [rows, vocab]
    greedy_N.bin     uint32: the greedy continuation of prompt N
All float32 on the CPU, fixed seeds. Weights of llava-b are stored as bfloat16 (and computed in float32)."""
import os
import shutil
import sys

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

MODELS = {
    # Grouped keys and values, an even number of layers, a vocabulary that 4 divides.
    "llava-a": dict(seed=20240807, store=torch.float32, gain=1.3,
                    vision=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4),
                    text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8,
                              num_key_value_heads=4, vocab_size=256, rope_theta=10000.0, rms_norm_eps=1e-5)),
    # As many key heads as query heads, an odd number of layers, a vocabulary that nothing divides, another theta.
    "llava-b": dict(seed=20240808, store=torch.bfloat16, gain=1.5,
                    vision=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3),
                    text=dict(hidden_size=96, intermediate_size=104, num_hidden_layers=5, num_attention_heads=12,
                              num_key_value_heads=12, vocab_size=301, rope_theta=500.0, rms_norm_eps=1e-6)),
}
SIDE, PATCH = 56, 14
PATCHES = (SIDE // PATCH) ** 2
NEW_TOKENS = 12


def config_of(m):
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=32, **m["vision"])
    vocab = m["text"]["vocab_size"]
    text = LlamaConfig(max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                       tie_word_embeddings=False, **m["text"])
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocab - 1,
                       image_seq_length=PATCHES, vision_feature_layer=-2,
                       vision_feature_select_strategy="default", projector_hidden_act="gelu",
                       tie_word_embeddings=False)


@torch.no_grad()
def randomise(model, gain, gen):
    """Weights that make logits of a few units and attention that is not flat."""
    for name, p in model.named_parameters():
        if "norm" in name:
            base = 1.0 if name.endswith("weight") else 0.0
            p.copy_(base + 0.25 * torch.randn(p.shape, generator=gen))
        elif name.endswith("bias"):
            p.copy_(0.1 * torch.randn(p.shape, generator=gen))
        elif "embed" in name:
            p.copy_(torch.randn(p.shape, generator=gen) * 0.5)
        else:
            fan_in = p[0].numel()
            p.copy_(torch.randn(p.shape, generator=gen) * gain / fan_in**0.5)


def prompts_of(vocab, gen):
    """Token ids with image tokens expanded, and how many images each prompt takes."""
    image = vocab - 1

    def text(n):
        return torch.randint(3, vocab - 1, (n,), generator=gen).tolist()

    return [
        ([1] + text(5) + [image] * PATCHES + text(9), 1),
        ([1] + text(12), 0),
        ([1, vocab - 2, 0] + [image] * PATCHES + text(3) + [image] * PATCHES + text(4), 2),
    ]


def dump(folder, name, array, dtype):
    np.ascontiguousarray(np.asarray(array), dtype=dtype).tofile(os.path.join(folder, name))


@torch.no_grad()
def make(name, m, out):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    golden = os.path.join(folder, "golden")
    os.makedirs(golden)
    torch.manual_seed(m["seed"])
    gen = torch.Generator().manual_seed(m["seed"])
    config = config_of(m)
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config)
    randomise(model, m["gain"], gen)
    model.to(m["store"]).save_pretrained(folder)
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                          attn_implementation="eager").eval()
    vocab = config.text_config.vocab_size

    prompts = prompts_of(vocab, gen)
    images = sum(n for _, n in prompts)
    coarse = torch.randn(images, 3, 7, 7, generator=gen)
    pixels = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    pixels += 0.2 * torch.randn(pixels.shape, generator=gen)
    tower = model.model.vision_tower
    seen = tower(pixels, output_hidden_states=True, output_attentions=True)
    features = seen.hidden_states[-2][:, 1:]
    attention = seen.attentions[-2]
    last = tower.vision_model.encoder.layers[-1]
    normed = last.layer_norm1(seen.hidden_states[-2])
    dump(golden, "pixels.bin", pixels, "<f4")
    dump(golden, "features.bin", features, "<f4")
    dump(golden, "projected.bin", model.model.multi_modal_projector(features), "<f4")
    dump(golden, "cls_attention.bin", attention[:, :, 0, :], "<f4")
    dump(golden, "mean_attention.bin", attention.mean(dim=(1, 2)), "<f4")
    dump(golden, "keys.bin", last.self_attn.k_proj(normed), "<f4")
    dump(golden, "query.bin", last.self_attn.q_proj(normed[:, 0]), "<f4")

    lines = [f"images {images}", f"side {SIDE}", f"patches {PATCHES}", f"prompts {len(prompts)}",
             f"new_tokens {NEW_TOKENS}"]
    first = 0
    for i, (ids, n) in enumerate(prompts):
        take = pixels[first:first + n] if n else None
        first += n
        tokens = torch.tensor([ids])
        logits = model(input_ids=tokens, pixel_values=take).logits[0]
        dump(golden, f"tokens_{i}.bin", ids, "<u4")
        dump(golden, f"logits_{i}.bin", logits, "<f4")
        out_ids = model.generate(input_ids=tokens, pixel_values=take, attention_mask=torch.ones_like(tokens),
                                 do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
                                 suppress_tokens=None, eos_token_id=None)[0, len(ids):]
        dump(golden, f"greedy_{i}.bin", out_ids, "<u4")
        lines += [f"prompt_{i}_rows {len(ids)}", f"prompt_{i}_images {n}"]
        top = torch.topk(logits, 2).values
        print(f"{name} prompt {i}: {len(ids)} rows, largest logit {logits.abs().max():.2f}, "
              f"spread {logits.std(-1).mean():.2f}, closest call {(top[:, 0] - top[:, 1]).min():.4f}")
    with open(os.path.join(golden, "golden.txt"), "w", encoding="ascii") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
    for key, value in MODELS.items():
        make(key, value, target)
