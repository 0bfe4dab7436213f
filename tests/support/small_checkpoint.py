"""Random state dicts with the keys and shapes of PrefPaint's released reward model, and its forward pass spelt out."""

import torch

Weights = dict[str, torch.Tensor]
SMALL = {"width": 128, "layers": 2, "patch": 16, "image": 32, "embedding": 32, "text": 64, "words": 11, "context": 5}
SMALL |= {"hidden": 24, "features": 16, "feed_forward": 40}
TRUE = {"width": 768, "layers": 12, "patch": 32, "image": 224, "embedding": 512, "text": 512, "words": 49408}
TRUE |= {"context": 77, "hidden": 512, "features": 256, "feed_forward": 1024}


def release_state(sizes: dict[str, int] = SMALL, seed: int = 0) -> Weights:
    """Every tensor of the release, at random; the encoder layer's template differs from the layer that is used."""
    shapes, norms = _shapes(sizes)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan_in = shape[0] if name.endswith("proj") else torch.Size(shape[1:]).numel()
        scale = fan_in**-0.5 if len(shape) > 1 else 0.3
        state[name] = scale * torch.randn(shape, generator=generator)
    for name, width in norms.items():
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)
    state["mlp.last_layer_weight"] = state["mlp.last_layer.weight"]
    return state


def _shapes(s: dict[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes of all tensors but those of layer norms, and the widths of these."""
    token, grid = 2 * s["embedding"], s["image"] // s["patch"]
    shapes: dict[str, tuple[int, ...]] = {
        "clip_model.visual.class_embedding": (s["width"],),
        "clip_model.visual.positional_embedding": (grid**2 + 1, s["width"]),
        "clip_model.visual.proj": (s["width"], s["embedding"]),
        "clip_model.visual.conv1.weight": (s["width"], 3, s["patch"], s["patch"]),
        "clip_model.positional_embedding": (s["context"], s["text"]),
        "clip_model.text_projection": (s["text"], s["embedding"]),
        "clip_model.logit_scale": (),
        "clip_model.token_embedding.weight": (s["words"], s["text"]),
        "mlp.last_layer.weight": (1, s["features"]),
        **_linear("mlp.layers.0", s["hidden"], token),
        **_linear("mlp.layers.2", s["features"], s["hidden"]),
    }
    norms = {"clip_model.visual.ln_pre": s["width"], "clip_model.visual.ln_post": s["width"]}
    norms["clip_model.ln_final"] = s["text"]
    for tower, width in (("clip_model.visual.transformer", s["width"]), ("clip_model.transformer", s["text"])):
        for layer in range(s["layers"]):
            block = f"{tower}.resblocks.{layer}"
            shapes |= _attention(f"{block}.attn", width)
            shapes |= _linear(f"{block}.mlp.c_fc", 4 * width, width) | _linear(f"{block}.mlp.c_proj", width, 4 * width)
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
    for layer in ("vit_block.encoder_layer", "vit_block.transformer_encoder.layers.0"):
        shapes |= _attention(f"{layer}.self_attn", token)
        shapes |= _linear(f"{layer}.linear1", s["feed_forward"], token)
        shapes |= _linear(f"{layer}.linear2", token, s["feed_forward"])
        norms |= {f"{layer}.norm1": token, f"{layer}.norm2": token}
    return shapes, norms


def _attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    packed = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return packed | _linear(f"{name}.out_proj", width, width)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def reference_features(state: Weights, pixels: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """z [B, d] of CLIP's inputs [B, 3, S, S], in float64 and one picture, patch and head at a time."""
    w = {name: value.double() for name, value in state.items()}
    rows = []
    for picture, other in zip(pixels.double(), masked.double(), strict=True):
        token = torch.cat([_clip(w, picture), _clip(w, other)])
        layer = "vit_block.transformer_encoder.layers.0"
        # Over a single token, softmax is 1 and attention is its value.
        values = w[f"{layer}.self_attn.in_proj_weight"].chunk(3)[2] @ token
        values = values + w[f"{layer}.self_attn.in_proj_bias"].chunk(3)[2]
        x = _norm(w, f"{layer}.norm1", token + _apply(w, f"{layer}.self_attn.out_proj", values))
        inner = _apply(w, f"{layer}.linear1", x)
        x = _norm(w, f"{layer}.norm2", x + _apply(w, f"{layer}.linear2", inner * (inner > 0)))
        rows.append(_apply(w, "mlp.layers.2", _apply(w, "mlp.layers.0", x)))
    return torch.stack(rows)


def _clip(w: Weights, picture: torch.Tensor) -> torch.Tensor:
    """OpenAI CLIP's image embedding of one picture [3, S, S]."""
    kernel = w["clip_model.visual.conv1.weight"]
    width, _, patch, _ = kernel.shape
    grid = picture.shape[1] // patch
    corners = [(r * patch, c * patch) for r in range(grid) for c in range(grid)]
    patches = [kernel.flatten(1) @ picture[:, r : r + patch, c : c + patch].reshape(-1) for r, c in corners]
    x = torch.stack([w["clip_model.visual.class_embedding"], *patches])
    x = _norm(w, "clip_model.visual.ln_pre", x + w["clip_model.visual.positional_embedding"])
    layer = 0
    while f"clip_model.visual.transformer.resblocks.{layer}.ln_1.weight" in w:
        block = f"clip_model.visual.transformer.resblocks.{layer}"
        x = x + _self_attention(w, f"{block}.attn", _norm(w, f"{block}.ln_1", x), heads=width // 64)
        inner = _apply(w, f"{block}.mlp.c_fc", _norm(w, f"{block}.ln_2", x))
        x = x + _apply(w, f"{block}.mlp.c_proj", inner / (1 + torch.exp(-1.702 * inner)))  # QuickGELU
        layer += 1
    return _norm(w, "clip_model.visual.ln_post", x[0]) @ w["clip_model.visual.proj"]


def _self_attention(w: Weights, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    packed = x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    queries, keys, values = packed.chunk(3, dim=1)
    mixed = []
    for q, k, v in zip(queries.chunk(heads, 1), keys.chunk(heads, 1), values.chunk(heads, 1), strict=True):
        similarity = torch.exp(q @ k.T / q.shape[1] ** 0.5)
        mixed.append(similarity / similarity.sum(1, keepdim=True) @ v)
    return _apply(w, f"{name}.out_proj", torch.cat(mixed, 1))


def _apply(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
