"""Changes of a model's files: JSON objects with other keys and values, bytes that are spoilt, headers of weights that are others."""

import json
import struct

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 3, 7, 1000, 10**5, 10**6, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.5, 1e-30, 1e300)
TEXTS = (
    "", "x", "../../etc/passwd", "/etc/passwd", "os", "os.system", "evil", "evil.Pipeline", "pipeline_ddpm_hub", "unet", "hub/evil",
    "https://127.0.0.1:9/evil.py", "DDPMPipeline", "StableDiffusionPipeline", "DDIMScheduler", "DDPMScheduler", "UNet2DConditionModel",
    "UNet2DModel", "DDPMHubScheduler", "DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "KUpBlock2D", "UNetMidBlock2D", "learned",
    "learned_range", "analytic", "v_prediction", "sample", "linspace", "sigmoid", "fourier", "positional", "scale_shift", "timestep",
    "identity", "gelu", "NaN", "../evil.bin", "evil.bin", "model.ckpt", "diffusion_pytorch_model.bin", "\ud800", "\0",
)  # fmt: skip
KEYS = (
    "auto_map", "quantization_config", "custom_pipeline", "trust_remote_code", "dtype", "torch_dtype", "device_map", "vae", "_module",
    "_class_name", "_name_or_path", "_use_default_values", "_ignore_files", "_diffusers_version", "weight_map", "kwargs", "self", "",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
REMOTE = st.sampled_from(
    (["os", "system"], ["evil", "Pipeline"], ["unet", "Evil"], ["hub/evil", "Evil"], ["pipeline_ddpm_hub", "DDPMHubPipeline"],
     ["diffusers", "DDIMScheduler"], ["diffusers", "UNet2DModel"], {"AutoModel": "evil.Model"}, {"quant_method": "bitsandbytes"})
)  # fmt: skip
REMOVED = object()


def edits(content: dict):
    """One to three changes of a JSON object: a key dropped, added, or given another value, often one of its own kind."""

    def alike(value):
        if isinstance(value, bool):
            return st.booleans()
        if isinstance(value, int | float):
            return st.sampled_from(NUMBERS)
        return (
            st.permutations(value).map(list) | st.just(value * 2) | st.just(value[:1])
            if isinstance(value, list)
            else st.sampled_from(TEXTS)
        )

    def edit(key):
        return st.tuples(st.just(key), st.just(REMOVED) | VALUES | REMOTE | alike(content.get(key)))

    return st.lists((st.sampled_from(sorted(content)) | st.sampled_from(KEYS)).flatmap(edit), min_size=1, max_size=3)


def edited(content: dict, changes: list) -> bytes:
    new = content | dict(changes)
    return json.dumps({key: value for key, value in new.items() if value is not REMOVED}).encode(
        "utf-8", "surrogatepass"
    )


DAMAGES = st.sampled_from(("cut", "flip", "insert", "repeat", "random", "nested", "nested objects", "twice"))


def damaged(content: bytes, how: str, chance) -> bytes:
    """Bytes that a disk, a network or somebody has spoilt."""
    place, length = chance.randrange(len(content)), chance.choice((1, 2, 8, 100))
    some = chance.randbytes(length)
    other = bytearray(content)
    for _ in range(length):
        other[chance.randrange(len(other))] ^= 1 << chance.randrange(8)
    key = b'"%s": %s, ' % (chance.choice(KEYS).encode(), json.dumps(chance.choice(TEXTS)).encode())
    return {
        "cut": content[:place],
        "flip": bytes(other),
        "insert": content[:place] + some + content[place:],
        "repeat": content[:place] * 2 + content[place:],
        "random": chance.randbytes(chance.choice((0, 1, 7, 8, 9, 1000))),
        "nested": b"[" * 200_000 if chance.random() < 0.5 else b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        "nested objects": b'{"a": ' * 100_000,
        "twice": content.replace(b"{", b"{" + key, 1),
    }[how]


def with_header(weights: bytes, change) -> bytes:
    """Weights whose header is another."""
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.dumps(change(json.loads(weights[8 : 8 + length]))).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + weights[8 + length :]
