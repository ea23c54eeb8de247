"""What `metrics.json` of a model folder may hold, and its check: the one place that says what its keys mean.

`training/train.py` writes `training`, `samples`, a first `evaluation` and `speed`; `training/evaluate.py` the rest. Keys that
are not named here may hold anything. docs/EVALUATION.md tells the same to readers.
"""

import math

_MACHINE = {"name": str, "threads": int, "devices": int, "torch": str}
SAMPLING_FORM = {
    "sampler": str,
    "num_inference_steps": int,
    "eta": float,
    "guidance_scale": float,
    "guidance_interval": [int],  # the smallest and the largest guided timestep; missing for all
}
_DRAWN = {"num_samples": int, "seed": int, **SAMPLING_FORM}
_JUDGED = {"extractor": str, "extractor_sha256": str, "resize": str}
# Of features of samples and real images (training/evaluation/distances.py).
_DISTANCES = {
    "num_compared": int,  # images of each set, for precision, recall, density and coverage
    "fid": float,
    "kid": float,
    "kid_standard_error": float,
    "precision": float,
    "recall": float,
    "density": float,
    "coverage": float,
    "class_fidelity": float,
}
_TABLE = {
    "num_samples": int,  # of each row
    "seed": int,
    "k": int,
    **_JUDGED,
    "against": str,
    "num_reference": int,
    "rows": [{**SAMPLING_FORM, **_DISTANCES}],
}

# A type, a dictionary of what may be there, or a list of one form.
METRICS = {
    "model": {"sha256": {}},  # of the files that the figures of evaluate.py are of
    "data": {  # that it measured with
        "dataset": str,
        "split": str,
        "fingerprint": str,
        "train_split": str,
        "train_fingerprint": str,
    },
    "training": {
        "steps": int,
        "seconds": float,  # wall-clock, with all sample grids
        "images_per_second": float,  # without them
        "share_of_peak": float,  # of the FLOP/s that a large convolution or matrix product reached there
        "loss": float,  # mean of the last interval
        "num_images": int,
        "dataset": str,  # an id of the Hub or the name of a local folder
        "dataset_on_hub": bool,
        "init_from_on_hub": bool,  # whether training began with the weights of a repository of the Hub
        "earlier": {"steps": int, "images": int, "seconds": float},  # that went into the weights it began with
        "machine": _MACHINE,
    },
    "samples": {  # the grid of the last step
        "file": str,  # relative to the model's folder
        **_DRAWN,  # `seed` of the first; sample i has seed + i
        "class_in_each_column": bool,
    },
    "evaluation": [  # the headlines
        {
            "type": str,  # the metric's identifier in the Hub's model-index
            "name": str,
            "description": str,  # one sentence: what was measured
            "value": float,
            "standard_error": float,
            **_DRAWN,
            **_JUDGED,  # the classifier or the network whose features are compared
            "dataset": str,  # where it is not the training's
            "split": str,  # the real images that the value is of, or compares with
            "num_reference": int,  # how many of them
            "reference": {"name": str, "value": float},  # what the value is to be compared with
            "worst": {"name": str, "value": float},  # what it is of noise
        }
    ],
    "bound": {  # bits per dimension of the data, by the variational bound
        "split": str,
        "num_images": int,
        "dimensions": int,  # of the data, without padding
        "timesteps_per_image": int,  # T, or fewer that were drawn by importance
        "seed": int,
        "dtype": str,
        "rows": [
            {
                "variance_type": str,  # the model's own first
                "value": float,  # the sum
                "standard_error": float,  # over the images
                "prior": float,  # L_T
                "decoder": float,  # L_0
                "parts": [{"from": int, "to": int, "value": float}],  # the sum of L_{t−1} at these t of the paper
            }
        ],
    },
    "calibration": {  # the network's ε on unseen images, in bins of the paper's t
        "split": str,
        "rows": [
            {
                "from": int,
                "to": int,
                "loss": float,  # mean of (ε_θ − ε)²
                "bias": float,  # ‖E[ε_θ − ε]‖/√d
                "chance": float,  # what that is on average without a bias
            }
        ],
    },
    "quality": {
        **_DRAWN,
        **_JUDGED,
        "k": int,  # neighbours of precision, recall, density and coverage
        "rows": [
            {
                "images": str,  # samples, a split, or noise
                "num_images": int,
                "against": str,  # a split
                "num_reference": int,
                **_DISTANCES,
            }
        ],
        "inception_score": {"value": float, "spread": float, "real": float},
    },
    "memorisation": [
        {
            "space": str,  # pixels or features
            "num_samples": int,
            "num_unseen": int,
            "split": str,  # of the unseen images
            "share": float,  # of samples as near to a training image as the nearest 1 % of unseen images
            "expected": float,  # of it on average if samples were like unseen images
            "num_duplicates": int,  # unseen images that are training images, and set no limit
            "limit": float,  # distance to the nearest over that to the next 50, which 1 % of the unseen images do not exceed
            "probability": float,  # of at least that share if samples were like unseen images
            "closeness": float,  # how often a sample is nearer than an unseen image; 0.5 where they are alike
            "median": float,
            "unseen_median": float,
            "is_flagged": bool,
        }
    ],
    "classes": {
        "judge": str,
        "samples": float,  # the share of samples with the class that was asked for
        "real": float,  # of real images with their own
        "split": str,
        "num_real": int,
        "rows": [{"name": str, "samples": float, "real": float}],
    },
    "colour": {  # grey levels from 0 to 255
        "rows": [
            {
                "channel": int,
                "mean": float,
                "real_mean": float,
                "standard_error": float,
                "std": float,
                "real_std": float,
            }
        ]
    },
    "quality_by_steps": _TABLE,
    "quality_by_guidance": _TABLE,
    "equal_time": {  # training loops after the same time, on the same data and machine (benchmarks/equal_time.py)
        "num_samples": int,  # of each
        "against": str,
        "num_reference": int,
        **_JUDGED,
        "machine": _MACHINE,
        "rows": [
            {
                "images": str,  # of which loop, or which real ones
                "training": str,  # in a few words
                "drawn": str,  # likewise
                "parameters": int,
                "trained_on": int,  # images
                "seconds": float,  # of training alone
                "fid": float,
            }
        ],
    },
    "sampling_quality": {  # how far samples are from the data in pixels (benchmarks/sampling_quality.py)
        "description": str,  # one sentence: what was measured
        "num_samples": int,
        "floor": {"value": float, "standard_error": float},  # of real images that were held out
        "rows": [
            {
                "sampler": str,
                "variance_type": str,
                "num_inference_steps": int,
                "value": float,
                "standard_error": float,
            }
        ],
    },
    "speed": [
        {
            "what": str,
            "images_per_second": float,
            "num_inference_steps": int,
            "batch_size": int,
            "dtype": str,
            "machine": _MACHINE,
        }
    ],
}
_REQUIRED = {"evaluation": ("type", "name"), "speed": ("what",)}


def metrics_fault(metrics: dict) -> str | None:
    """What is wrong in metrics, if anything is."""
    fault = form_fault(metrics, METRICS)
    if fault is not None:
        return fault
    for part, keys in _REQUIRED.items():
        for number, entry in enumerate(metrics.get(part, [])):
            for key in keys:
                if key not in entry:
                    return f"{part}[{number}] has no `{key}`"
    return None


def form_fault(value, form, where: str = "") -> str | None:
    """Compares a value with a form of the kind of [`METRICS`]: what is wrong and where, if anything is."""
    kind = type(form) if isinstance(form, dict | list) else form
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        wanted = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(kind, "a number")
        return f"{where} is {value!r}; it must be {'an integer' if kind is int else wanted}"
    if kind is float and not math.isfinite(value):
        return f"{where} is {value!r}, which is no finite number"
    inner = []
    if kind is dict:
        inner = [(value[key], part, f"{where}.{key}" if where else key) for key, part in form.items() if key in value]
    elif kind is list:
        inner = [(entry, form[0], f"{where}[{number}]") for number, entry in enumerate(value)]
    return next((fault for each in inner if (fault := form_fault(*each)) is not None), None)


def without_nulls(value):
    """The same without the keys whose value is null: what was not measured."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
