"""Files of the repository that the package needs and that are no Python modules of it."""

import sysconfig
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def shared_file(name: str) -> Path:
    """Where a file or folder of the repository's top level lies: in the checkout, or where the installation put it.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    installed = [Path(sysconfig.get_path("data", scheme), "share", "ddpm_hub", name) for scheme in schemes]
    checkout = [_CHECKOUT / name] if (_CHECKOUT / "pyproject.toml").is_file() else []
    for place in (*checkout, *installed):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{name} is neither in a checkout of ddpm_hub nor in {installed[0].parent}: this installation is incomplete. Install "
        f"ddpm_hub again from its repository, with `pip install .` or `pip install -e .`."
    )
