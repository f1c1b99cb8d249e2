"""Renders the training scenes once into flat files that training maps: pictures and patch labels.

    python3 data.py DIR [--scenes 12000] [--seed 1]
"""
import argparse
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import scenes


def part(args):
    root, seed, lo, hi = args
    pix = np.lib.format.open_memmap(f"{root}/pixels.npy", "r+")
    lab = np.lib.format.open_memmap(f"{root}/labels.npy", "r+")
    for i in range(lo, hi):
        _, pix[i], lab[i] = scenes.render(seed, i, labels=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("root")
    p.add_argument("--scenes", type=int, default=12000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=os.cpu_count())
    a = p.parse_args()
    os.makedirs(a.root, exist_ok=True)
    n = a.scenes
    np.lib.format.open_memmap(f"{a.root}/pixels.npy", "w+", np.uint8, (n, scenes.SIZE, scenes.SIZE, 3))
    np.lib.format.open_memmap(f"{a.root}/labels.npy", "w+", np.uint8, (n, 3, scenes.GRID, scenes.GRID))
    with ProcessPoolExecutor(a.workers) as pool:
        list(pool.map(part, [(a.root, a.seed, k, min(n, k + 250)) for k in range(0, n, 250)]))
    with open(f"{a.root}/seed.txt", "w") as f:
        print(a.seed, n, file=f)


if __name__ == "__main__":
    main()
