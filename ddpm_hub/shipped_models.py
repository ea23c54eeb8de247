"""The models that come with the package: folders that are finished Hub repositories, and load without a network."""

from pathlib import Path

SHIPPED_MODELS = ("fashion_mnist", "digits")
FOLDER = Path(__file__).parent / "models"


def shipped_model(name: str) -> Path:
    """The folder of a model that comes with the package: `DDPMHubPipeline.from_pretrained(shipped_model("digits"))`.

    Args:
        name (`str`): `"fashion_mnist"`, garments of 28×28 in 10 classes, or `"digits"`, 8×8 in 10 classes.

    Raises:
        ValueError: for another name.
        FileNotFoundError: if this copy of the package came without its models, as the one in a published Space does.
    """
    if name not in SHIPPED_MODELS:
        raise ValueError(f"`name` is {name!r}; the models that come with the package are {', '.join(SHIPPED_MODELS)}.")
    folder = FOLDER / name
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"This copy of ddpm_hub has no models: {str(folder)!r} is missing. Install ddpm_hub from its repository, or load "
            f"a model of your own or of the Hub."
        )
    return folder
