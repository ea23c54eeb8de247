"""loss_curve.png: the loss over optimizer steps, all of it and by quartile of t, and the gradient's norm."""

from pathlib import Path

from train_log import QUARTILES, Table

QUARTILE_COLORS = ("#440154", "#31688e", "#35b779", "#d8b70a")


def save_loss_plot(log: Table, validation: Table, label: str, path: Path) -> None:
    """Draws what the tables hold; nothing before there is a row.

    Args:
        log, validation (`Table`): the training's and the validation's, which may be empty.
        label (`str`): what the loss is.
        path (`Path`): the PNG file.
    """
    if not log.rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, quartiles = figure.subplots(1, 2)
    steps = log.column("step")
    values = log.column("loss")
    loss.plot(steps, gaps(values), color="#b8c4d6", linewidth=1, label="mean of each interval")
    loss.plot(steps, smooth(values), color="#1f4e8c", linewidth=2, label="moving average")
    if validation.rows:
        loss.plot(validation.column("step"), gaps(validation.column("loss")), "o-", color="#c0392b", label="validation")
    loss.set(title="loss", ylabel=label)
    for quartile, color in zip(range(1, QUARTILES + 1), QUARTILE_COLORS, strict=True):
        name = f"{100 * (quartile - 1) // QUARTILES}–{100 * quartile // QUARTILES} % of T"
        quartiles.plot(steps, smooth(log.column(f"loss_q{quartile}")), color=color, linewidth=2, label=name)
    quartiles.plot(steps, smooth(log.column("grad_norm")), color="#999999", linewidth=1, label="gradient norm")
    quartiles.set(title="loss by t, and gradient norm")
    for axes in (loss, quartiles):
        axes.set(xlabel="optimizer step", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)


def gaps(values: list[float | None]) -> list[float]:
    """Numbers that matplotlib leaves out where there are none."""
    return [float("nan") if value is None else value for value in values]


def smooth(values: list[float | None]) -> list[float]:
    """The mean of each value and the five on either side."""
    windows = ([v for v in values[max(0, i - 5) : i + 6] if v is not None] for i in range(len(values)))
    return [sum(window) / len(window) if window else float("nan") for window in windows]
