"""ddpm_hub: denoising diffusion probabilistic models for the Hugging Face world.

Names are imported when they are first used, so `import ddpm_hub` costs nothing and has no side effect.
"""

import importlib

__version__ = "0.1.0"

_MODULE_OF = {
    "DDPMHubScheduler": "scheduling_ddpm_hub",
    "estimate_original_sample_variances": "analytic_variance",
    "fast_solver": "ddpm_fast_solvers",
    "VariationalBound": "variational_bound",
    "DDPMHubPipeline": "pipeline_ddpm_hub",
    "DDPMHubState": "ddpm_trajectories",
    "film_strip": "trajectory_pictures",
    "save_animation": "trajectory_pictures",
    "shipped_model": "shipped_models",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
