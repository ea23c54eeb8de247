"""Features of real images, computed once for each data set, extractor and size, and checked whenever they are read."""

import hashlib
import sys
from pathlib import Path

import torch
from durable_files import write_tensors
from safetensors import SafetensorError, safe_open

from evaluation.real_images import RealImages
from evaluation.work import Stage, Work, digest

BATCHES_PER_UNIT = 16


def reference_features(
    images: RealImages, extractor, count: int | None, batch_size: int, cache: Path, work: Work
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Features, (n, d), and logits, (n, K) or `None`, of at most `count` images, in the main process; to be called by all.

    Args:
        images (`RealImages`)
        extractor: of `extractors.py`.
        count (`int`, *optional*): evenly spaced; all by default.
        batch_size (`int`): how many are computed at once.
        cache (`Path`): where they are kept.
        work (`Work`): where parts are kept meanwhile.
    """
    rows = images.rows(count)
    facts = {
        "data": images.data.fingerprint, "rows": len(rows), "extractor": extractor.facts.sha256,
        "resize": extractor.facts.resize,
    }  # fmt: skip
    path = cache / f"features-{digest(facts)}.safetensors"
    found = read_features(path, facts) if work.is_main else None
    if work.from_main(lambda: found is None):
        per_unit = batch_size * BATCHES_PER_UNIT

        def compute(unit: int) -> dict[str, torch.Tensor]:
            return extracted(extractor, images, rows[unit * per_unit : (unit + 1) * per_unit], batch_size)

        stage = Stage(
            f"features_{images.split.split('[')[0]}", facts | {"batch_size": batch_size}, -(-len(rows) // per_unit), compute,
            lambda unit: len(rows[unit * per_unit : (unit + 1) * per_unit]),
        )  # fmt: skip
        results = work.run(stage)
        if work.is_main:
            names = sorted(next(iter(results)))
            found = dict(zip(names, results.joined(*names), strict=True))
            cache.mkdir(parents=True, exist_ok=True)
            write_tensors(path, found, {"facts": digest(facts), "sha256": content_hash(found)})
    return (found["features"], found.get("logits")) if work.is_main else (None, None)


def extracted(extractor, images: RealImages, rows: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
    """Features and, where there are any, logits of some images, in batches."""
    return joined_batches([extractor(images.as_bytes(some)) for some in rows.split(batch_size)])


def joined_batches(found: list[tuple]) -> dict[str, torch.Tensor]:
    """What an extractor gave for some batches, as tensors by name."""
    tensors = {"features": torch.cat([features for features, _ in found])}
    return tensors if found[0][1] is None else tensors | {"logits": torch.cat([logits for _, logits in found])}


def content_hash(tensors: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(tensors[name].detach().cpu().contiguous().numpy())
    return hashed.hexdigest()


def read_features(path: Path, facts: dict) -> dict[str, torch.Tensor] | None:
    """What a cache holds, if it is what was written for these facts; `None`, with a message, if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        print(f"The cache {path} is damaged ({error}); the features are computed again.", file=sys.stderr)
        return None
    if (said.get("facts"), said.get("sha256")) != (digest(facts), content_hash(tensors)):
        print(f"The cache {path} is damaged (its hash differs); the features are computed again.", file=sys.stderr)
        return None
    return tensors
