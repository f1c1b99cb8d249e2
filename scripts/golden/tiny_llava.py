#!/usr/bin/env python3
"""Golden answers of models/tiny-llava: greedy token ids by Transformers in bfloat16 on the CPU.

    python3 scripts/golden/tiny_llava.py [--every N] [--new-tokens N]

Needs torch, transformers and pillow. Run it after every change of the checkpoint or of tests/eval (on a machine that is
busy with other things, with OMP_NUM_THREADS=1).

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
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--new-tokens", type=int, default=256)
    a = p.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    processor = LlavaProcessor(CLIPImageProcessor.from_pretrained(MODEL), LlamaTokenizerFast.from_pretrained(MODEL),
                               patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
                               num_additional_image_tokens=1)
    with open(os.path.join(EVAL, "questions.jsonl"), encoding="ascii") as f:
        questions = [json.loads(line) for line in f][::a.every]
    os.makedirs(OUT, exist_ok=True)
    right, start, image_token = 0, time.time(), model.config.image_token_index
    encode, seen = model.model.get_image_features, {}

    def features(pixel_values, **kwargs):  # the questions about a picture follow each other: encode it once
        if seen.get("image") != q["image"]:
            seen.update(image=q["image"], features=encode(pixel_values=pixel_values, **kwargs))
        return seen["features"]

    model.model.get_image_features = features
    with open(os.path.join(OUT, "answers.txt"), "w", encoding="ascii") as f:
        f.write(checkpoint_hash() + "\n")
        for i, q in enumerate(questions):
            text = f"USER: <image>\n{q['question']} ASSISTANT:"
            inputs = processor(images=Image.open(os.path.join(EVAL, q["image"])), text=text, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
            ids = inputs["input_ids"][0].tolist()
            new = model.generate(**inputs, do_sample=False, max_new_tokens=a.new_tokens)[0, len(ids):].tolist()
            first = ids.index(image_token)
            short = ids[:first + 1] + [t for t in ids[first + 1:] if t != image_token]
            for line in (f"question {q['id']}", q["image"], q["question"], " ".join(map(str, short)),
                         " ".join(map(str, new))):
                f.write(line + "\n")
            answer = processor.decode(new, skip_special_tokens=True).strip()
            right += answer == q["answer"]
            if i % 20 == 0:
                print(f"{i + 1}/{len(questions)} {time.time() - start:.0f} s: {q['question']} -> {answer}", flush=True)
    print(f"{len(questions)} questions, {right} answered as expected")


if __name__ == "__main__":
    main()
