#!/usr/bin/env python3
"""Golden answers of models/tiny-llava: greedy token ids by Transformers in bfloat16 on the CPU.

    python3 scripts/golden/tiny_llava.py [--every N] [--new-tokens N] [--workers N]

Needs torch, transformers and pillow. Run it after every change of the checkpoint or of tests/eval.

Writes tests/golden/tiny-llava/answers.txt. The first line is the checkpoint's sha-256 (all its .safetensors files in
order of name), so that the test can say that the answers belong to another checkpoint. Then five lines for every N-th
question of tests/eval/questions.jsonl (default: every one):
    question ID
    the picture, as a path in tests/eval
    the question's text
    prompt ids, one image token for the picture
    new ids, with the end token if it came"""
import argparse
import glob
import hashlib
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlamaTokenizerFast, LlavaForConditionalGeneration, LlavaProcessor

MODEL, EVAL, OUT = "models/tiny-llava", "tests/eval", "tests/golden/tiny-llava"


def checkpoint_hash():
    h = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(MODEL, "*.safetensors"))):
        with open(path, "rb") as f:
            h.update(f.read())
    return h.hexdigest()


@torch.no_grad()
def answers(questions, new_tokens):
    """-> (lines for the file, how many were answered as expected)"""
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    processor = LlavaProcessor(CLIPImageProcessor.from_pretrained(MODEL), LlamaTokenizerFast.from_pretrained(MODEL),
                               patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
                               num_additional_image_tokens=1)
    right, start, image_token, lines = 0, time.time(), model.config.image_token_index, []
    encode, seen = model.model.get_image_features, {}

    def features(pixel_values, **kwargs):  # the questions about a picture follow each other: encode it once
        if seen.get("image") != q["image"]:
            seen.update(image=q["image"], features=encode(pixel_values=pixel_values, **kwargs))
        return seen["features"]

    model.model.get_image_features = features
    for i, q in enumerate(questions):
        text = f"USER: <image>\n{q['question']} ASSISTANT:"
        inputs = processor(images=Image.open(os.path.join(EVAL, q["image"])), text=text, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
        ids = inputs["input_ids"][0].tolist()
        new = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)[0, len(ids):].tolist()
        first = ids.index(image_token)
        short = ids[:first + 1] + [t for t in ids[first + 1:] if t != image_token]
        lines += [f"question {q['id']}", q["image"], q["question"], " ".join(map(str, short)), " ".join(map(str, new))]
        answer = processor.decode(new, skip_special_tokens=True).strip()
        right += answer == q["answer"]
        if i % 20 == 0:
            print(f"{i + 1}/{len(questions)} {time.time() - start:.0f} s: {q['question']} -> {answer}", flush=True)
    return lines, right


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--new-tokens", type=int, default=256)
    p.add_argument("--workers", type=int, default=os.cpu_count())
    a = p.parse_args()
    with open(os.path.join(EVAL, "questions.jsonl"), encoding="ascii") as f:
        questions = [json.loads(line) for line in f][::a.every]
    share = -(-len(questions) // a.workers)
    with ProcessPoolExecutor(a.workers) as pool:
        done = list(pool.map(answers, [questions[i:i + share] for i in range(0, len(questions), share)],
                             [a.new_tokens] * a.workers))
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "answers.txt"), "w", encoding="ascii") as f:
        f.write("\n".join([checkpoint_hash()] + [line for lines, _ in done for line in lines]) + "\n")
    print(f"{len(questions)} questions, {sum(right for _, right in done)} answered as expected")


if __name__ == "__main__":
    main()
