"""hf_bench.py CONFIG - the yardstick of bench_gpu: Transformers on the same shapes with random weights (bfloat16, SDPA,
static cache), on the GPU. Prints CSV rows: what, shape, median us, least us."""
import json
import sys
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, StaticCache

config = json.load(open(sys.argv[1]))
PROMPT, SEQS = 616, (1, 8, 32, 64)


def timed(what, shape, run, seconds=2.0):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times, start = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 200):
        t = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - t) * 1e6)
    times.sort()
    print(f"{what},{shape},{times[len(times) // 2]:.1f},{times[0]:.1f}", flush=True)


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    device = torch.device("cuda")
    with torch.inference_mode(), device:
        v = CLIPVisionConfig(**{k: config["vision_config"][k] for k in
                                ("hidden_size", "image_size", "intermediate_size", "num_attention_heads",
                                 "num_hidden_layers", "patch_size", "projection_dim")})
        tower = CLIPVisionModel._from_config(v, attn_implementation="sdpa").eval()
        for images in (1, 8):
            pixels = torch.randn(images, 3, v.image_size, v.image_size)
            timed("hf_vision", f"I{images}", lambda: tower(pixels))
        del tower
        t = LlamaConfig(**{k: config["text_config"][k] for k in
                           ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
                            "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size")})
        model = LlamaForCausalLM._from_config(t, attn_implementation="sdpa").eval()
        for rows in (PROMPT, 104):
            embeds = torch.randn(1, rows, t.hidden_size)
            timed("hf_prefill", f"R{rows}", lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))

        def decode(name, step):
            for seqs in SEQS:
                cache = StaticCache(config=t, max_batch_size=seqs, max_cache_len=640, device=device,
                                    dtype=torch.bfloat16)
                prompt = torch.randint(0, t.vocab_size, (1, PROMPT)).expand(seqs, -1)
                for first in range(0, PROMPT, 88):
                    model(prompt[:, first:first + 88], past_key_values=cache, logits_to_keep=1,
                          cache_position=torch.arange(first, first + 88))
                token, at = prompt[:, :1].contiguous(), torch.tensor([PROMPT])
                timed(name, f"B{seqs}", lambda: step(token, past_key_values=cache, cache_position=at))
                del cache

        decode("hf_decode", model)
        try:  # compiled with CUDA graphs, where that works in the time that is left
            decode("hf_decode_compiled", torch.compile(model, mode="reduce-overhead"))
        except Exception as e:  # noqa: BLE001 - the plain rows stand
            print(f"# torch.compile: {type(e).__name__}: {e}"[:200])


main()
