"""Writes the trained network as an unchanged Hugging Face directory of LlavaForConditionalGeneration.

    python3 export.py STATE_DIR OUT_DIR        STATE_DIR holds vision.pt and decoder.pt

config, preprocessor, tokenizer, chat template, two bfloat16 safetensors shards and their index.
"""
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file

import model
import tokenizer

V, L = model.V, model.L
VISION, PROJECTOR, DECODER = "vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."
CHAT = ("{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for content in message['content'] "
        "| selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'text') %}{{ content['text'] }} {% endfor %}{% else %}ASSISTANT: "
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
        "{% endfor %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}")


def configs():
    size = V["patch"] * V["grid"]
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": L["width"],
            "intermediate_size": L["mlp"], "num_hidden_layers": L["layers"], "num_attention_heads": L["heads"],
            "num_key_value_heads": L["kv_heads"], "head_dim": L["head"], "vocab_size": L["vocab"], "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": L["eps"], "rope_theta": L["theta"],
            "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.PAD, "torch_dtype": "bfloat16"}
    vision = {"model_type": "clip_vision_model", "hidden_size": V["width"], "intermediate_size": V["mlp"],
              "num_hidden_layers": V["layers"], "num_attention_heads": V["heads"], "image_size": size,
              "patch_size": V["patch"], "num_channels": 3, "projection_dim": V["width"], "hidden_act": "quick_gelu",
              "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
              "image_token_index": tokenizer.IMAGE, "image_seq_length": V["grid"] ** 2,
              "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
              "projector_hidden_act": "gelu", "multimodal_projector_bias": True, "ignore_index": -100,
              "pad_token_id": tokenizer.PAD, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
              "transformers_version": "4.57.1", "text_config": text, "vision_config": vision}
    pre = {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_convert_rgb": True,
           "do_resize": True, "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True,
           "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
           "do_normalize": True, "image_mean": list(model.MEAN), "image_std": list(model.STD)}
    processor = {"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": V["patch"],
                 "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    content = lambda s: {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                         "special": True}
    tok = {"tokenizer_class": "LlamaTokenizer", "processor_class": "LlavaProcessor", "legacy": True,
           "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
           "model_max_length": 2048, "padding_side": "left", "image_token": "<image>",
           "extra_special_tokens": {"image_token": "<image>"}, **special,
           "added_tokens_decoder": {str(i): content(s) for i, s in (
               (0, "<unk>"), (1, "<s>"), (2, "</s>"), (tokenizer.IMAGE, "<image>"), (tokenizer.PAD, "<pad>"))}}
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.PAD,
                  "do_sample": False, "max_new_tokens": 128, "transformers_version": "4.57.1"}
    return {"config.json": config, "preprocessor_config.json": pre, "processor_config.json": processor,
            "special_tokens_map.json": dict(special, image_token="<image>"), "tokenizer_config.json": tok,
            "generation_config.json": generation, "chat_template.json": {"chat_template": CHAT},
            "tokenizer.json": tokenizer.build()}


def to_hf(name, part):
    if part == VISION:
        top, _, rest = name.partition(".")
        name = "encoder." + name if top == "layers" else name
        if top in ("class_embedding", "patch_embedding", "position_embedding"):
            name = "embeddings." + name + ("" if top == "class_embedding" else ".weight")
    if name.startswith("lm_head"):
        return "language_model." + name
    return part + name


def tensors(vision, projector, decoder):
    out = {}
    for part, net in ((VISION, vision), (PROJECTOR, projector), (DECODER, decoder)):
        for name, t in net.state_dict().items():
            if name == "patch_embedding":
                t = t.view(-1, 3, V["patch"], V["patch"])
            out[to_hf(name, part)] = t.to(torch.bfloat16).contiguous()
    return out


def load(folder):
    """The exported weights back in our modules, float32 copies of the bfloat16 values."""
    with open(os.path.join(folder, "model.safetensors.index.json")) as f:
        files = sorted(set(json.load(f)["weight_map"].values()))
    stored = {}
    for name in files:
        stored.update(load_file(os.path.join(folder, name)))
    nets = model.Vision(), model.Projector(), model.Decoder()
    for part, net in zip((VISION, PROJECTOR, DECODER), nets):
        net.load_state_dict({n: stored[to_hf(n, part)].float().reshape(t.shape) for n, t in net.state_dict().items()})
        net.requires_grad_(False)
    return nets


def main():
    state, out = sys.argv[1:3]
    nets = model.Vision(), model.Projector(), model.Decoder()
    path = os.path.join(state, "vision.pt")
    if os.path.exists(path):
        nets[0].load_state_dict(torch.load(path)["net"])
    path = os.path.join(state, "decoder.pt")
    if os.path.exists(path):
        s = torch.load(path)
        torch.nn.ModuleDict({"projector": nets[1], "decoder": nets[2]}).load_state_dict(s["net"])
        if "vision" in s:
            nets[0].load_state_dict(s["vision"])
    os.makedirs(out, exist_ok=True)
    for name, c in configs().items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(c, f, ensure_ascii=False, indent=1 if name == "tokenizer.json" else 2)
            f.write("\n")
    every = tensors(*nets)
    total = sum(t.numel() for t in every.values())
    shards, size = [{}, {}], 0
    for name, t in every.items():                              # in order: tower first, then the decoder
        shards[size > total // 2][name] = t
        size += t.numel()
    where = {}
    for k, shard in enumerate(shards):
        name = f"model-{k + 1:05d}-of-00002.safetensors"
        save_file(shard, os.path.join(out, name), metadata={"format": "pt"})
        where.update({n: name for n in shard})
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": 2 * total}, "weight_map": where}, f, indent=2)
        f.write("\n")
    print(f"{total} parameters, {2 * total} bytes -> {out}")


if __name__ == "__main__":
    main()
