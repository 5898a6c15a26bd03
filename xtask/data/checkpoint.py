#!/usr/bin/env python3
# Makes DIR/checkpoint, the same bytes every time: five versions of a model of float16 numbers (1.07 GB). Of 24 layers 16 never
# change; of the others each weight takes a small step from one version to the next. Needs numpy.
# usage: checkpoint.py DIR
import numpy as np, json, struct, os, sys

D = sys.argv[1] + "/checkpoint"
os.makedirs(D, exist_ok=True)
r = np.random.Generator(np.random.PCG64(42))
T = {}
T["embed.weight"] = r.standard_normal((16000, 768), dtype=np.float32) * 0.02
for l in range(24):
    for n, s in (
        ("attn.qkv", (768, 2304)),
        ("attn.o", (768, 768)),
        ("mlp.up", (768, 1024)),
        ("mlp.down", (1024, 768)),
        ("ln", (1536,)),
    ):
        T[f"layers.{l}.{n}.weight"] = (
            r.standard_normal(s, dtype=np.float32) * 0.02 if n != "ln" else np.ones(s, np.float32)
        )
for v in range(5):
    if v:
        for k in T:
            if k.startswith("layers.") and int(k.split(".")[1]) >= 16:
                T[k] = T[k] + np.float32(2e-5) * np.clip(
                    r.standard_normal(T[k].shape, dtype=np.float32), -3, 3
                )
    h = {}
    o = 0
    for k, a in T.items():
        n = a.size * 2
        h[k] = {"dtype": "F16", "shape": list(a.shape), "data_offsets": [o, o + n]}
        o += n
    j = json.dumps(h).encode()
    j += b" " * (-len(j) % 8)
    with open(f"{D}/model-step{v*1000:05d}.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(j)))
        f.write(j)
        for a in T.values():
            f.write(a.astype(np.float16).tobytes())
