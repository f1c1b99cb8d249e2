"""Writes the committed evaluation set: pictures (JPEG) and questions.jsonl.

    python3 make_eval_set.py OUT_DIR [--pictures 100] [--seed 2024]
"""
import argparse
import json
import os

from PIL import Image

import questions
import scenes


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out")
    p.add_argument("--pictures", type=int, default=100)
    p.add_argument("--seed", type=int, default=2024)
    a = p.parse_args()
    os.makedirs(os.path.join(a.out, "images"), exist_ok=True)
    rows = []
    for i, _, qs in questions.held_out(a.seed, 5 * a.pictures):
        name = f"images/{i:03d}.jpg"
        Image.fromarray(scenes.render(a.seed, i)[1]).save(os.path.join(a.out, name), quality=90)
        for k, (family, q, answer) in enumerate(qs):
            rows.append({"id": f"{i:03d}-{k}", "image": name, "family": family, "question": q, "answer": answer})
    with open(os.path.join(a.out, "questions.jsonl"), "w", encoding="ascii") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")
    print(f"{len(rows)} questions about {len({r['image'] for r in rows})} pictures")


if __name__ == "__main__":
    main()
