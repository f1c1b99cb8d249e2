"""Writes the decoder's tokenizer.json: BPE with byte fallback in the layout of llava-1.5-7b-hf.

    python3 tokenizer.py DIR

Ids: 0 <unk>, 1 <s>, 2 </s>, 3-258 the bytes, then characters and merges, 1022 <image>, 1023 <pad>.  Merges
stay inside a word and never join digits.
"""
import json
import os
import re
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import questions

VOCAB, IMAGE, PAD = 1024, 1022, 1023
EXTRA = """picture image photo object thing word number letter color colour shape size place side where when who why
which whose name tell me you it this that these those one two three four five six seven eight nine ten and but not
with on to from by for has have was were will can could should would there here up down near far next between
before after first last all some every each other same different more less than most least big tiny huge black
white gray brown please answer question question: answer: Yes No Where Which Who Count Tell Find Look Name Say
Hello hello world test model vision language token server cluster node""".split()


def words():
    firsts, vocab = questions.vocabulary()
    out = []
    for w in vocab:
        w = re.sub(r"[?.]", "", w)
        out += ["\u2581" + w] * 50
    for w in firsts:
        out += [w] * 50
    for w in EXTRA:
        out += ["\u2581" + w.strip(":")] * 3
    return out


def build():
    chars = ["\u2581"] + [chr(c) for c in range(33, 127)]
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.train_from_iterator(words(), trainers.BpeTrainer(
        vocab_size=IMAGE - len(specials) , special_tokens=[], initial_alphabet=chars, show_progress=False))
    trained = json.loads(t.to_str())["model"]
    vocab = {s: i for i, s in enumerate(specials)}
    for s, _ in sorted(trained["vocab"].items(), key=lambda kv: kv[1]):
        vocab[s] = len(vocab)
    c = 0xA1
    while len(vocab) < IMAGE:                                  # what is left: single Latin letters
        if chr(c) not in vocab and chr(c).isprintable():
            vocab[chr(c)] = len(vocab)
        c += 1
    added = [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, s in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (IMAGE, "<image>"), (PAD, "<pad>"))]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    seq = [{"Sequence": {"id": s, "type_id": k}} for k, s in enumerate("AB")]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, seq[0]],
            "pair": [bos, seq[0], {"SpecialToken": {"id": "<s>", "type_id": 1}}, seq[1]],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": trained["merges"]}}


def load(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


if __name__ == "__main__":
    with open(os.path.join(sys.argv[1], "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(build(), f, ensure_ascii=False, indent=1)
        f.write("\n")
