"""`--push_to_hub`: whether the run may publish, found out before it computes, and the publishing at its end."""

import shlex
import sys
from pathlib import Path

from train_config import TrainConfig, UserError

from ddpm_hub.ddpm_hub_upload import HubAccount, HubError
from ddpm_hub.hub import push_folder


def prepare_push(config: TrainConfig) -> None:
    """Makes the repository; the model comes when it is trained.

    Raises:
        UserError: if there is no token that may write to it, or if the Hub is out of reach.
    """
    if config.push_to_hub is not None:
        try:
            HubAccount().prepare(config.push_to_hub, private=config.hub_private_repo)
        except HubError as error:
            raise UserError(f"`push_to_hub` is {config.push_to_hub!r}: {error}") from error


def push(config: TrainConfig, output: Path) -> bool:
    """Publishes the output folder, if that was asked for; a failure is told, and costs nothing that was computed.

    Returns:
        `bool`: whether all that was asked for is published.
    """
    if config.push_to_hub is None:
        return True
    try:
        done = push_folder(output, config.push_to_hub, private=config.hub_private_repo)
    except (HubError, OSError, ValueError) as error:
        retry = shlex.join(["ddpm-hub", "push", str(output), config.push_to_hub])
        print(
            f"train.py: the model is trained and saved, but not published: {error}\nTry again: {retry}", file=sys.stderr
        )
        return False
    print(f"Published {done.url} ({'only its owner sees it' if done.private else 'everybody sees it'}).")
    return True
