"""Files of a model that somebody has changed: a clear error or a right model, and nothing in the folder is ever executed.

Beside the files lie traps: source files and pickles that leave a marker when they are run, and a hook that sees every file
that is opened and all code that is executed.
"""

import json
import pickle
import re
import resource
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from changed_files import DAMAGES, KEYS, NUMBERS, TEXTS, VALUES, damaged, edited, edits, with_header
from conftest import make_pipeline, seeds
from hypothesis import strategies as st

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS, SPLIT = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json"
CONFIGS = (INDEX, UNET, SCHEDULER)
CODE = (
    "pipeline_ddpm_hub.py",
    "scheduler/scheduling_ddpm_hub.py",
    "unet/unet.py",
    "unet/diffusers.py",
    "os.py",
    "evil.py",
)
PICKLES = ("diffusion_pytorch_model.bin", "model.ckpt", "pytorch_model.pt", "evil.bin", "weights.pkl")
INSIDE = r"Traceback|object at 0x"

pytestmark = pytest.mark.usefixtures("quiet_schedule")


class Trap:
    """A pickle that writes a file when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Watch:
    """What happens in a folder: pickles that are opened, code that is executed. A hook of the interpreter is for ever."""

    def __init__(self):
        self.folder, self.seen = None, []
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple) -> None:
        if self.folder is None or event not in ("open", "exec"):
            return
        path = str(getattr(arguments[0], "co_filename", arguments[0]))
        if path.startswith(self.folder) and (event == "exec" or path.endswith((".py", ".bin", ".ckpt", ".pt", ".pkl"))):
            self.seen.append((event, path))


@pytest.fixture(scope="module")
def watch():
    return Watch()


class Model:
    """A saved model with traps, one of whose files is changed for a while."""

    def __init__(self, folder: Path, watch: Watch):
        self.folder, self.watch, self.marker = folder, watch, folder.with_name("executed")
        make_pipeline().save_pretrained(folder)
        for name in CODE:
            (folder / name).write_text(f"open({str(self.marker)!r}, 'a').close()\n", encoding="utf-8")
        for name in PICKLES:
            for place in (folder, folder / "unet"):
                (place / name).write_bytes(pickle.dumps(Trap(self.marker)))
        self.outcomes = {"loaded": 0, "refused": 0}

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    @contextmanager
    def changed(self, path: str, content: bytes):
        there = self.read(path) if (self.folder / path).is_file() else None
        (self.folder / path).write_bytes(content)
        try:
            yield
        finally:
            (self.folder / path).unlink() if there is None else (self.folder / path).write_bytes(there)

    def load(self, **options) -> None:
        """Loads it, and sees to it that it is right, or refused by a message that names what is wrong."""
        self.watch.folder = str(self.folder)
        try:
            pipeline = DDPMHubPipeline.from_pretrained(self.folder, **options)
        except (ValueError, OSError) as error:
            check_message(str(error), self.folder)
            self.outcomes["refused"] += 1
        else:
            check_model(pipeline)
            self.outcomes["loaded"] += 1
        self.check_traps()

    def load_scheduler(self) -> None:
        self.watch.folder = str(self.folder)
        try:
            scheduler = DDPMHubScheduler.from_pretrained(self.folder, subfolder="scheduler")
        except (ValueError, OSError) as error:
            check_message(str(error), self.folder)
            self.outcomes["refused"] += 1
        else:
            scheduler.set_timesteps(timesteps=[len(scheduler) - 1])
            assert scheduler.step(
                torch.zeros(1, 1, 8, 8), len(scheduler) - 1, torch.ones(1, 1, 8, 8)
            ).prev_sample.shape == (1, 1, 8, 8)
            self.outcomes["loaded"] += 1
        self.check_traps()

    def check_traps(self) -> None:
        self.watch.folder = None
        assert self.watch.seen == []
        assert not self.marker.exists()


def check_message(text: str, folder: Path) -> None:
    """It names a file of the folder, or a key in backticks, and is no text from the depths."""
    assert str(folder) in text or re.match(r"`\w+`", text), text
    assert not re.search(INSIDE, text), text


def check_model(pipeline: DDPMHubPipeline) -> None:
    """Finite weights, and an image of the right shape after one step."""
    assert all(weight.isfinite().all() for weight in pipeline.unet.state_dict().values())
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size
    sides = [size, size] if isinstance(size, int) else size
    sides = [8, 8] if size is None or max(sides) > 64 else list(sides)  # what a caller may ask for, and pays for
    options = {"sampler": "ddpm", "timestep_spacing": "trailing", "num_inference_steps": 1, "output_type": "sample"}
    images = pipeline(1, generator=seeds(1), height=sides[0], width=sides[1], guidance_scale=1.0, **options).images
    assert images.shape == (1, pipeline.unet.config.in_channels, *sides)


@pytest.fixture
def model(tmp_path, watch):
    return Model(tmp_path / "model", watch)


# --- The campaigns ---

HELD = (
    "{loaded} loaded, with finite weights, and drew an image of the right shape; {refused} were refused by an error that names "
    "the file or the key; no code was executed, no pickle opened"
)


def test_changed_configurations(model, campaign):
    contents = {path: json.loads(model.read(path)) for path in CONFIGS}
    times = campaign.times(short=50, long=800)

    @campaign.for_all(
        times, case=st.sampled_from(CONFIGS).flatmap(lambda path: st.tuples(st.just(path), edits(contents[path])))
    )
    def tried(case):
        path, changes = case
        with model.changed(path, edited(contents[path], changes)):
            model.load()

    campaign.held(
        "Loading",
        "`model_index.json` and configurations with keys dropped, added, or given other values",
        times,
        HELD.format(**model.outcomes),
    )


def test_damaged_configurations(model, campaign):
    times = campaign.times(short=30, long=300)

    @campaign.for_all(times, path=st.sampled_from(CONFIGS), how=DAMAGES, chance=st.randoms(use_true_random=False))
    def tried(path, how, chance):
        with model.changed(path, damaged(model.read(path), how, chance)):
            model.load()

    campaign.held(
        "Loading",
        "their bytes cut, flipped, inserted, repeated, random, nested deep, with a key twice",
        times,
        HELD.format(**model.outcomes),
    )


def test_damaged_weights(model, campaign):
    weights, times = model.read(WEIGHTS), campaign.times(short=30, long=300)
    lengths = st.sampled_from(
        (0, 1, 7, 2**31, 2**63, 2**64 - 1, 100 * 2**20, len(weights), len(weights) - 8, len(weights) - 7)
    )

    @campaign.for_all(times, how=DAMAGES, chance=st.randoms(use_true_random=False), length=st.none() | lengths)
    def tried(how, chance, length):
        content = damaged(weights, how, chance) if length is None else struct.pack("<Q", length) + weights[8:]
        with model.changed(WEIGHTS, content):
            model.load()

    campaign.held(
        "Loading",
        "weights with bytes cut, flipped, inserted or random, and with another header length",
        times,
        HELD.format(**model.outcomes),
    )


def test_changed_headers(model, campaign):
    weights, times = model.read(WEIGHTS), campaign.times(short=30, long=300)
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    kinds = st.sampled_from(("F64", "F32", "F16", "BF16", "I32", "U32", "BOOL", "F8_E4M3", "X", "", None, 4))
    change = (
        st.tuples(st.just("dtype"), kinds)
        | st.tuples(st.just("shape"), st.lists(st.sampled_from(NUMBERS), max_size=4) | VALUES)
        | st.tuples(
            st.just("data_offsets"),
            st.lists(st.sampled_from((*NUMBERS, len(weights))), min_size=2, max_size=2) | VALUES,
        )
    )
    names = st.sampled_from(sorted(entries))

    @campaign.for_all(
        times, name=names, change=change, moved=st.none() | names | st.sampled_from(KEYS), whole=st.none() | VALUES
    )
    def tried(name, change, moved, whole):
        new = header | {name: header[name] | dict([change])}
        if moved is not None:
            new[moved] = new.pop(name)
        if whole is not None:
            new[name] = whole
        with model.changed(WEIGHTS, with_header(weights, lambda _: new)):
            model.load()

    campaign.held(
        "Loading", "headers of weights with other types, shapes, places and names", times, HELD.format(**model.outcomes)
    )


def test_changed_indexes_of_split_weights(model, campaign):
    times = campaign.times(short=20, long=100)
    (length,) = struct.unpack("<Q", model.read(WEIGHTS)[:8])
    names = sorted(set(json.loads(model.read(WEIGHTS)[8 : 8 + length])) - {"__metadata__"})
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, Path(WEIGHTS).name)}
    files = st.sampled_from((*PICKLES, *TEXTS, "../evil.bin", Path(WEIGHTS).name)) | VALUES
    maps = st.dictionaries(st.sampled_from(names), files, max_size=3).map(lambda some: content["weight_map"] | some)

    @campaign.for_all(times, changes=edits(content), places=maps)
    def tried(changes, places):
        with model.changed(SPLIT, edited(content, [("weight_map", places), *changes])):
            model.load()

    campaign.held(
        "Loading",
        "indexes of split weights that name pickles, other folders and nonsense",
        times,
        HELD.format(**model.outcomes),
    )


def test_changed_schedulers_alone(model, campaign):
    content, times = json.loads(model.read(SCHEDULER)), campaign.times(short=30, long=200)
    original = model.read(SCHEDULER)
    damage = st.tuples(DAMAGES, st.randoms(use_true_random=False))

    @campaign.for_all(times, case=edits(content) | damage)
    def tried(case):
        changed = edited(content, case) if isinstance(case, list) else damaged(original, *case)
        with model.changed(SCHEDULER, changed):
            model.load_scheduler()

    campaign.held(
        "Loading",
        "configurations of a scheduler, by `DDPMHubScheduler.from_pretrained`",
        times,
        "{loaded} loaded and took a step; {refused} were refused by an error that names the file".format(
            **model.outcomes
        ),
    )


BOMBS = {
    UNET: (
        {"block_out_channels": [10**6, 10**6]}, {"layers_per_block": 10**9}, {"num_class_embeds": 10**12}, {"in_channels": 10**12},
        {"block_out_channels": [8] * 10**5}, {"downsample_padding": 10**9}, {"sample_size": 10**9}, {"attention_head_dim": 10**12},
    ),
    SCHEDULER: ({"num_train_timesteps": 10**11}, {"num_train_timesteps": 10**400}, {"steps_offset": 10**30}),
}  # fmt: skip


def test_what_asks_for_all_memory_is_refused(model, campaign):
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for path, changes in BOMBS.items():
        for change in changes:
            with model.changed(path, edited(json.loads(model.read(path)), change.items())):
                model.load()
            count += 1
    model.load()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, grown  # KiB; what the first load takes for itself is less
    campaign.held(
        "Loading",
        "configurations that ask for a million channels, 10^9 layers, 10^11 timesteps",
        count,
        f"{model.outcomes['refused']} were refused, the others loaded; the process grew by less than 200 MB",
    )


def test_a_pickle_is_never_opened(model, campaign):
    """In the place of the weights, and named by whatever could name it; each trap goes off if it is opened."""
    weights, count = model.read(WEIGHTS), 0
    (model.folder / WEIGHTS.replace(".s", ".fp16.s")).write_bytes(weights)  # so that a variant is looked for to the end
    for name in PICKLES:
        with model.changed(WEIGHTS, model.read(f"unet/{name}")):
            model.load()
        (model.folder / WEIGHTS).unlink()
        model.load()
        (model.folder / WEIGHTS).write_bytes(weights)
        for index in (
            SPLIT,
            SPLIT.replace("index", "index.fp16"),
            SPLIT.replace("index", "fp16.index"),
            "unet/diffusion_pytorch_model.bin.index.json",
        ):
            content = json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}).encode()
            for options in ({}, {"variant": "fp16"}):
                with model.changed(index, content):
                    model.load(**options)
                count += 1
        count += 2
    assert model.outcomes["refused"] > count / 2
    pickle.loads(model.read("evil.bin"))
    assert model.marker.exists()  # so the trap would have gone off
    campaign.held("Loading", "pickles in place of weights, beside them, and named by indexes", count, "never opened")
