"""Features of real images, computed once for each data set, extractor and size, and checked whenever they are read."""

from pathlib import Path

import torch
from durable_files import fresh_name, write_tensors

from evaluation.real_images import RealImages
from evaluation.work import Stage, Work, content_hash, digest, read_checked

BATCHES_PER_UNIT = 16


def reference_features(
    images: RealImages, extractor, count: int | None, batch_size: int, cache: Path, work: Work, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Features, (n, d), and logits, (n, K) or `None`, of at most `count` images, in the main process; to be called by all.

    Args:
        images (`RealImages`)
        extractor: of `extractors.py`.
        count (`int`, *optional*): evenly spaced; all by default.
        batch_size (`int`): how many are computed at once.
        cache (`Path`): where they are kept.
        work (`Work`): where parts are kept meanwhile.
        device (`torch.device`): where they are computed.
    """
    rows = images.rows(count)
    facts = {
        "data": images.data.fingerprint, "rows": len(rows), "extractor": extractor.facts.sha256,
        "resize": extractor.facts.resize, "device": device.type, "torch": torch.__version__,
    }  # fmt: skip
    path = cache / f"features-{digest(facts)}.safetensors"
    metadata = {"facts": digest(facts)}
    found = read_checked(path, metadata) if work.is_main else None
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
            own = fresh_name(cache, f".{path.stem}.")  # other evaluations may write the same file now
            write_tensors(own, found, metadata | {"sha256": content_hash(found)})
            own.replace(path)
    return (found["features"], found.get("logits")) if work.is_main else (None, None)


def extracted(extractor, images: RealImages, rows: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
    """Features and, where there are any, logits of some images, in batches."""
    return joined_batches([extractor(images.as_bytes(some)) for some in rows.split(batch_size)])


def joined_batches(found: list[tuple]) -> dict[str, torch.Tensor]:
    """What an extractor gave for some batches, as tensors by name."""
    tensors = {"features": torch.cat([features for features, _ in found])}
    return tensors if found[0][1] is None else tensors | {"logits": torch.cat([logits for _, logits in found])}
