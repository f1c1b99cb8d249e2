"""The network of models/tiny-llava in plain PyTorch: CLIP vision tower, projector, Llama decoder.

Parameter names are those of Hugging Face below each part's prefix (export.py adds the prefixes).  The tower
takes any subset of the patches together with their positions, which is what makes training cheap.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
V = dict(width=256, heads=4, mlp=768, layers=7, patch=14, grid=24)
L = dict(width=256, heads=8, kv_heads=4, head=32, mlp=768, layers=6, vocab=1024, theta=10000.0, eps=1e-5)
POS, TURN, GAIN = 64, 2.6, 1.5    # see Vision.begin_like_a_convolution
SIDES = [(0, 1), (0, -1), (1, 0), (-1, 0)]
CORNERS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
OFFSETS = [SIDES, CORNERS] + [[(2 * y, 2 * x) for y, x in SIDES], [(3 * y, 3 * x) for y, x in SIDES],
                              [(2 * y, 2 * x) for y, x in CORNERS]]
LAST = V["layers"] - 1            # hidden_states[-2] is what layers 0 .. LAST-1 give


def normalise(x):
    """uint8 (..., 3, 196) -> float (..., 588), as the checkpoint's preprocessor_config.json says."""
    mean, std = torch.tensor(MEAN).view(3, 1) * 255, torch.tensor(STD).view(3, 1) * 255
    return ((x.float() - mean) / std).flatten(-2)


def to_patches(pixels):
    """uint8 (B, 336, 336, 3) -> normalised float (B, 576, 588), each patch in (channel, row, column) order."""
    b, g, p = pixels.shape[0], V["grid"], V["patch"]
    x = pixels.reshape(b, g, p, g, p, 3).permute(0, 1, 3, 5, 2, 4).reshape(b, g * g, 3, p * p)
    return normalise(x)


class VisionAttention(nn.Module):
    def __init__(self):
        super().__init__()
        w = V["width"]
        self.q_proj, self.k_proj = nn.Linear(w, w), nn.Linear(w, w)
        self.v_proj, self.out_proj = nn.Linear(w, w), nn.Linear(w, w)
        self.watched = False           # training looks at queries and keys

    def forward(self, x, cls_only=False):
        """Also gives the CLS row's scores before softmax, per head (B, H, N) and as one wide head (B, N)."""
        b, n, w = x.shape
        h, d = V["heads"], w // V["heads"]
        q, k, v = self.q_proj(x[:, :1] if cls_only else x), self.k_proj(x), self.v_proj(x)
        wide = (q[:, :1] @ k.transpose(1, 2))[:, 0] / math.sqrt(w)
        qh, kh, vh = (t.view(b, -1, h, d).transpose(1, 2) for t in (q, k, v))
        heads = (qh[:, :, :1] @ kh.transpose(2, 3))[:, :, 0] / math.sqrt(d)
        self.seen = (qh, kh) if self.watched else None
        y = F.scaled_dot_product_attention(qh, kh, vh)
        return self.out_proj(y.transpose(1, 2).reshape(b, -1, w)), heads, wide


class VisionMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(V["width"], V["mlp"]), nn.Linear(V["mlp"], V["width"])

    def forward(self, x):
        return self.fc2(F.silu(1.702 * self.fc1(x)) / 1.702)       # quick_gelu


class VisionLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(V["width"], 1e-5), nn.LayerNorm(V["width"], 1e-5)
        self.self_attn, self.mlp = VisionAttention(), VisionMLP()

    def forward(self, x, cls_only=False):
        a, heads, wide = self.self_attn(self.layer_norm1(x), cls_only)
        x = (x[:, :1] if cls_only else x) + a
        return x + self.mlp(self.layer_norm2(x)), heads, wide


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        w, p, g = V["width"], V["patch"], V["grid"]
        self.class_embedding = nn.Parameter(torch.randn(w) * .5)
        self.patch_embedding = nn.Parameter(torch.randn(w, 3 * p * p) * .02)
        self.position_embedding = nn.Parameter(torch.cat([torch.zeros(1, w), sincos(g, w)]))
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(w, 1e-5), nn.LayerNorm(w, 1e-5)
        self.layers = nn.ModuleList(VisionLayer() for _ in range(V["layers"]))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=.045)
                nn.init.zeros_(m.bias)
        self.begin_like_a_convolution()

    def begin_like_a_convolution(self):
        """The first POS channels hold only the position; each head of the first layers looks at the patch a
        certain way off.  All of this is free to change; it saves the long search for local attention."""
        d = V["width"] // V["heads"]
        self.patch_embedding.data[:POS] = 0
        self.class_embedding.data[:POS] = 0
        a = torch.arange(POS // 4)
        f = (a + .5) * (TURN / len(a))
        for layer, offsets in zip(self.layers, OFFSETS):
            at = layer.self_attn
            for m in (at.out_proj, layer.mlp.fc2):
                m.weight.data[:POS] *= .1
            for h, (dy, dx) in enumerate(offsets):
                k, q = torch.eye(POS), torch.zeros(POS, POS)
                for block, shift in ((0, dy), (POS // 2, dx)):      # [sin, cos] of each axis, turned by the way
                    s, c = block + a, block + POS // 4 + a
                    q[s, s], q[s, c] = (f * shift).cos(), (f * shift).sin()
                    q[c, c], q[c, s] = (f * shift).cos(), -(f * shift).sin()
                rows = slice(h * d, h * d + POS)
                for w, m in ((at.q_proj.weight.data, q), (at.k_proj.weight.data, k)):
                    w[rows] *= .3
                    w[rows, :POS] = m * GAIN

    def embed(self, patches, index):
        x = patches @ self.patch_embedding.T + self.position_embedding[1:][index]
        c = (self.class_embedding + self.position_embedding[0]).expand(x.shape[0], 1, -1)
        return self.pre_layrnorm(torch.cat([c, x], 1))

    def forward(self, patches, index, last=True):
        """-> features with CLS (B, 1+N, W), then for training: CLS of the last layer, the CLS rows of scores of
        the feature layer (per head) and of the last layer (per head, wide), and what each layer put out."""
        x, states = self.embed(patches, index), []
        for layer in self.layers[:LAST]:
            x, heads, _ = layer(x)
            states.append(x)
        if not last:
            return x
        y, heads2, wide = self.layers[LAST](x, cls_only=True)
        return x, self.post_layernorm(y[:, 0]), heads, heads2, wide, states


def sincos(g, w):
    n = POS // 4
    f = (torch.arange(n) + .5) * (TURN / n)
    angle = torch.arange(g)[:, None] * f[None]
    e = torch.cat([angle.sin(), angle.cos()], 1)                   # (g, POS/2)
    out = torch.randn(g, g, w) * .02
    out[..., :POS] = torch.cat([e[:, None].expand(g, g, 2 * n), e[None].expand(g, g, 2 * n)], 2)
    return out.reshape(g * g, w)


class Projector(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(V["width"], L["width"]), nn.Linear(L["width"], L["width"])

    def forward(self, x):
        return self.linear_2(F.gelu(self.linear_1(x)))


class RMSNorm(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(w))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, L["eps"])


def rope_tables(n):
    d = L["head"]
    f = L["theta"] ** (-torch.arange(0, d, 2).float() / d)
    a = torch.arange(n).float()[:, None] * f
    return torch.cat([a.cos(), a.cos()], 1), torch.cat([a.sin(), a.sin()], 1)


def rotate(x, cos, sin):
    """x (B, H, T, D); cos, sin (B, 1, T, D)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class DecoderAttention(nn.Module):
    def __init__(self):
        super().__init__()
        w, d = L["width"], L["head"]
        self.q_proj = nn.Linear(w, L["heads"] * d, bias=False)
        self.k_proj = nn.Linear(w, L["kv_heads"] * d, bias=False)
        self.v_proj = nn.Linear(w, L["kv_heads"] * d, bias=False)
        self.o_proj = nn.Linear(L["heads"] * d, w, bias=False)
        self.watched = False           # training looks at queries and keys of one layer

    def forward(self, x, cos, sin, mask, cache=None):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, L["head"]).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self.seen = (q, k) if self.watched else None
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        g = L["heads"] // L["kv_heads"]
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(g, 1), v.repeat_interleave(g, 1), attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class DecoderMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(L["width"], L["mlp"], bias=False)
        self.up_proj = nn.Linear(L["width"], L["mlp"], bias=False)
        self.down_proj = nn.Linear(L["mlp"], L["width"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(L["width"]), RMSNorm(L["width"])
        self.self_attn, self.mlp = DecoderAttention(), DecoderMLP()

    def forward(self, x, cos, sin, mask, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(L["vocab"], L["width"])
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(L["layers"]))
        self.norm = RMSNorm(L["width"])
        self.lm_head = nn.Linear(L["width"], L["vocab"], bias=False)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=.04)
        for layer in self.layers:
            layer.self_attn.o_proj.weight.data *= .3
            layer.mlp.down_proj.weight.data *= .3
        nn.init.normal_(self.embed_tokens.weight, std=.5)
        nn.init.normal_(self.lm_head.weight, std=.02)
        self.cos, self.sin = rope_tables(2048)

    def forward(self, x, positions, mask, caches=None):
        """Embeddings (B, T, W), positions (B, T), boolean mask (B, 1, T, keys) -> hidden states before lm_head."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, caches[i] if caches is not None else None)
        return self.norm(x)
