"""hf_bench.py CONFIG [compiled SECONDS] [dry] - the yardstick of bench_gpu: Transformers (4.57 to 5.17) on the same shapes
with random weights (bfloat16, SDPA, static cache), on the GPU. Prints CSV rows: what, shape, median us, least us.
compiled: decode steps by torch.compile with CUDA graphs, one batch after the other as long as there is time; what does
not work is said, and no failure. dry: two narrow layers on the CPU, a run or two of each, to see that the calls are
right."""
import json
import os
import signal
import sys
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, StaticCache

config = json.load(open(sys.argv[1]))
DRY = sys.argv[-1] == "dry"
COMPILED = int(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[2] == "compiled" else 0
PROMPT, SEQS = 616, (1, 2) if DRY else (1, 8, 32, 64)
if DRY:
    config["vision_config"].update(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2)
    config["text_config"].update(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2,
                                 num_key_value_heads=4, vocab_size=100)


def settle():
    if not DRY:
        torch.cuda.synchronize()


def timed(what, shape, run, before=lambda: None, seconds=2.0):
    for _ in range(3):
        before()
        run()
    settle()
    times, start = [], time.perf_counter()
    while len(times) < (1 if DRY else 5) or (not DRY and time.perf_counter() - start < seconds and len(times) < 200):
        before()
        settle()
        t = time.perf_counter()
        run()
        settle()
        times.append((time.perf_counter() - t) * 1e6)
    times.sort()
    print(f"{what},{shape},{times[len(times) // 2]:.1f},{times[0]:.1f}", flush=True)


def vision():
    v = CLIPVisionConfig(**{k: config["vision_config"][k] for k in
                            ("hidden_size", "image_size", "intermediate_size", "num_attention_heads",
                             "num_hidden_layers", "patch_size", "projection_dim")})
    tower = CLIPVisionModel._from_config(v, attn_implementation="sdpa").eval()
    for images in (1, 8):
        pixels = torch.randn(images, 3, v.image_size, v.image_size)
        timed("hf_vision", f"I{images}", lambda: tower(pixels))


def decode(name, model, step, device):
    for seqs in SEQS:
        cache = StaticCache(config=model.config, max_batch_size=seqs, max_cache_len=640, device=device,
                            dtype=torch.bfloat16)

        def rewind():  # from version 5 on a cache counts by itself, and every run would be one token further
            for layer in cache.layers:
                if torch.is_tensor(getattr(layer, "cumulative_length", None)):
                    layer.cumulative_length.fill_(PROMPT)

        prompt = torch.randint(0, model.config.vocab_size, (1, PROMPT)).expand(seqs, -1)
        for first in range(0, PROMPT, 88):
            model(prompt[:, first:first + 88], past_key_values=cache, logits_to_keep=1,
                  cache_position=torch.arange(first, first + 88))
        token, at = prompt[:, :1].contiguous(), torch.tensor([PROMPT])
        timed(name, f"B{seqs}", lambda: step(token, past_key_values=cache, cache_position=at), rewind)
        del cache


def no_more_time(*_):
    print("# torch.compile: no more time", flush=True)
    os._exit(0)


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    device = torch.device("cpu" if DRY else "cuda")
    with torch.inference_mode(), device:
        if not COMPILED:
            vision()
        t = LlamaConfig(**{k: config["text_config"][k] for k in
                           ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
                            "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size")})
        model = LlamaForCausalLM._from_config(t, attn_implementation="sdpa").eval()
        if COMPILED:
            signal.signal(signal.SIGALRM, no_more_time)
            signal.alarm(COMPILED)
            try:
                decode("hf_decode_compiled", model, torch.compile(model, mode="reduce-overhead", dynamic=False), device)
            except Exception as e:  # noqa: BLE001 - the plain rows stand
                print(f"# torch.compile: {type(e).__name__}: {e}"[:200])
            return
        for rows in (PROMPT, 104):
            embeds = torch.randn(1, rows, t.hidden_size)
            timed("hf_prefill", f"R{rows}", lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))
        decode("hf_decode", model, model, device)


main()
