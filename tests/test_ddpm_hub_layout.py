"""A saved folder: what it must hold, what is wrong with it, what leaves the machine, and the same model in stock classes."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch
from conftest import make_pipeline, make_unet
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import logging as diffusers_logging

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_hub_layout import CODE_PATHS, WEIGHTS, check_folder, main_files, stock_files

CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
INDEX = "model_index.json"
FP16 = "unet/diffusion_pytorch_model.fp16.safetensors"
PUBLISHED = {INDEX, CONFIG, SCHEDULER, WEIGHTS, *CODE_PATHS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout") / "model"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


# --- Checking ---


def edit(path, **changes):
    """A change of a JSON file; a value of `...` takes the key out."""

    def apply(folder):
        content = json.loads((folder / path).read_text()) | changes
        (folder / path).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return apply


def write(path, content: bytes):
    return lambda folder: (folder / path).write_bytes(content)


def remove(path):
    return lambda folder: (folder / path).unlink()


def append(path):
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes() + b"\n# edited\n")


def cut(path, length):
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:length])


def reweigh(change):
    def apply(folder):
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        change(weights)
        safetensors.torch.save_file(weights, folder / WEIGHTS)

    return apply


def rename(source, target):
    return lambda folder: (folder / source).rename(folder / target)


def shard(folder):
    DDPMHubPipeline.from_pretrained(folder).save_pretrained(folder.parent / "split", max_shard_size="50KB")
    shutil.rmtree(folder)
    (folder.parent / "split").rename(folder)


EXPORT = "Run `ddpm-hub export`"
SAVE = "Save the model again"
BIAS = "conv_out.bias"
DEFECTS = {
    "no index": (remove(INDEX), INDEX, "is missing"),
    "index is no JSON": (write(INDEX, b'{"a": '), INDEX, f"is not JSON .*{SAVE}"),
    "index is no text": (write(INDEX, b"\xff\xfe\x00"), INDEX, f"is not JSON .*{SAVE}"),
    "index is too deep": (write(INDEX, b"[" * 100_000), INDEX, f"is not JSON .*{SAVE}"),
    "index is a list": (write(INDEX, b"[]"), INDEX, f"holds a list; it must be a JSON object.*{SAVE}"),
    "class as a string": (edit(INDEX, _class_name="DDPMHubPipeline"), INDEX, f"_class_name = 'DDPMHubPipeline'.*{EXPORT}"),
    "unknown network": (edit(INDEX, unet=["diffusers", "UNetX"]), INDEX, f"unet = .*UNetX.*UNet2DModel.*{SAVE}"),
    "unknown scheduler": (edit(INDEX, scheduler=["x", "Y"]), INDEX, f"scheduler = .*'Y'.*DDPMHubScheduler.*{EXPORT}"),
    "no network": (edit(INDEX, unet=...), INDEX, "unet = None; it must be"),
    "another component": (edit(INDEX, vae=["diffusers", "VAE"]), INDEX, f"names 'vae'.*{EXPORT}"),
    "a name for no class": (edit(INDEX, id2label={"3": "three"}), INDEX, "`id2label` is .* texts for 0 to 2. Mend it"),
    "a name that is no text": (edit(INDEX, id2label={"0": 0}), INDEX, "`id2label` is .*texts for 0 to 2. Mend it"),
    "names in a list": (edit(INDEX, id2label=["zero"]), INDEX, "`id2label` is .*it may hold"),
    "no classes to name": (edit(CONFIG, num_class_embeds=None), INDEX, "the network knows no classes"),
    "no code": (remove("ddpm_equations.py"), "ddpm_equations.py", f"is missing.*{EXPORT}"),
    "no code of the scheduler": (remove("scheduler/ddpm_equations.py"), "scheduler/ddpm_equations.py", f"missing.*{EXPORT}"),
    "edited code": (append("pipeline_ddpm_hub.py"), "pipeline_ddpm_hub.py", f"not this version's file.*{EXPORT}"),
    "edited code of the scheduler": (append("scheduler/ddpm_equations.py"), "scheduler/ddpm_equations.py", EXPORT),
    "no network's config": (remove(CONFIG), CONFIG, "is missing"),
    "network of another class": (edit(CONFIG, _class_name="UNetX"), CONFIG, f"class 'UNetX'.*'UNet2DModel'.*{SAVE}"),
    "network without a class": (edit(CONFIG, _class_name=...), CONFIG, "class None"),
    "unknown key of the network": (edit(CONFIG, dropuot=0.1), CONFIG, "key 'dropuot'.*remove it"),
    "value of the wrong type": (edit(CONFIG, block_out_channels="many"), CONFIG, "describes no UNet2DModel .*Mend it"),
    "unknown block": (edit(CONFIG, down_block_types=["A", "B"]), CONFIG, "describes no UNet2DModel"),
    "classes of a strange kind": (edit(CONFIG, class_embed_type="timestep"), CONFIG, "class_embed_type = 'timestep'"),
    "no size": (edit(CONFIG, sample_size=None), CONFIG, "sample_size = None; it must be"),
    "three sides": (edit(CONFIG, sample_size=[8, 8, 8]), CONFIG, "sample_size = .*height and width"),
    "channels for another variance": (edit(CONFIG, out_channels=2), CONFIG, "out_channels = 2; .*must be 1"),
    "variance for other channels": (edit(SCHEDULER, variance_type="learned_range"), CONFIG, "out_channels = 1;.*must be 2"),
    "no scheduler's config": (remove(SCHEDULER), SCHEDULER, "is missing"),
    "scheduler of another class": (edit(SCHEDULER, _class_name="DDIMScheduler"), SCHEDULER, "class 'DDIMScheduler'"),
    "unknown key of the scheduler": (edit(SCHEDULER, skip_prk_steps=True), SCHEDULER, "key 'skip_prk_steps'.*remove it"),
    "unknown schedule": (edit(SCHEDULER, beta_schedule="cubic"), SCHEDULER, "DDPMHubScheduler .*'cubic'"),
    "steps in words": (edit(SCHEDULER, num_train_timesteps="many"), SCHEDULER, "DDPMHubScheduler .*'many'.* Mend it"),
    "header cut": (cut(WEIGHTS, 100), WEIGHTS, "is damaged .*Copy it anew"),
    "body cut": (cut(WEIGHTS, -100), WEIGHTS, "is damaged .*Copy it anew"),
    "empty weights": (write(WEIGHTS, b""), WEIGHTS, "is damaged .*Copy it anew"),
    "a pointer of LFS": (write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), WEIGHTS, "is damaged"),
    "another shape": (reweigh(lambda w: w.update({BIAS: torch.zeros(7)})), WEIGHTS, r"'conv_out.bias' of the shape \(7,\)"),
    "a weight missing": (reweigh(lambda w: w.pop(BIAS)), WEIGHTS, r"no 'conv_out.bias'.*the shape \(1,\)"),
    "a weight too many": (reweigh(lambda w: w.update(x=torch.zeros(1))), WEIGHTS, "has 'x' .*no such weight"),
    "a pickle": (rename(WEIGHTS, "unet/diffusion_pytorch_model.bin"), WEIGHTS, r"is missing \(there is .*\.bin\).*safe_ser"),
    "a variant alone": (rename(WEIGHTS, FP16), WEIGHTS, "is missing .*fp16.*no `variant`"),
    "no weights": (remove(WEIGHTS), WEIGHTS, "is missing. Copy the folder whole"),
    "a damaged variant": (write(FP16, b"..."), FP16, "is damaged"),
    "split weights": (shard, "unet/diffusion_pytorch_model", "split weights.*`max_shard_size`"),
    "no folder": (shutil.rmtree, "", "There is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_told_with_its_file_and_what_to_do(folder, defect):
    damage, file, message = DEFECTS[defect]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        check_folder(folder)
    said = str(caught.value)
    assert str(folder / file) in said
    assert re.search(message, said.replace("\n", " ")), said
    assert len(said) < 1000


def test_what_was_saved_passes(folder):
    check_folder(folder)
    assert set(main_files(folder)) == PUBLISHED


@pytest.mark.parametrize(("channels", "classes", "size"), [(3, None, 8), (1, 4, (8, 16)), (4, 1, 8)])
def test_every_kind_of_model_passes(tmp_path, channels, classes, size):
    pipeline = DDPMHubPipeline(make_unet(channels, classes, size), DDPMHubScheduler())
    pipeline.save_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    check_folder(tmp_path)
    assert set(main_files(tmp_path)) == PUBLISHED | {FP16}


# --- What leaves the machine ---


def test_nothing_leaves_but_what_is_on_the_list(folder):
    before = set(main_files(folder))
    wanted = ("README.md", "metrics.json", "loss_curve.png", "samples/step_000100.png", "plots/chains.png", FP16)
    never = (
        "checkpoints/step_000100/model.safetensors", "checkpoints/random_states_0.pkl", "optimizer.bin", "optimizer.pt",
        ".env", ".git/config", ".git/objects/a.png", "token", ".token", ".cache/huggingface/token", "hf_token.txt",
        "config.yaml", "logs/run.log", "train.log", "events.out.tfevents.1.host", "model.pt", "model.ckpt", "notes.txt",
        "README.md.partial", "model_index.json.partial", ".loss_curve.png", "samples/.hidden.png", "plots/._chains.png",
        "samples/step/1.png", "samples/notes.txt", "plots/data.csv", "unet/model.safetensors", "unet/notes.md",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model_old.safetensors", "unet/optimizer.pt",
        "unet/.diffusion_pytorch_model.safetensors", "scheduler/secret.json", "my_script.py", "unet/code.py", "a/model_index.json",
        "scheduler/pipeline_ddpm_hub.py", "Untitled.ipynb", "picture.jpg", "metrics.json.bak", "wandb/run.json",
    )  # fmt: skip
    for path in (*wanted, *never):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"{}")
    (folder / "folder.png").mkdir()
    assert set(main_files(folder)) == before | set(wanted)
    shutil.copyfile(folder / WEIGHTS, folder / FP16)
    assert set(stock_files(folder)) == (before | set(wanted)) - set(CODE_PATHS)


def test_where_a_model_was_loaded_from_stays_here(saved, tmp_path):
    DDPMHubPipeline.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert str(saved) in (tmp_path / "again" / CONFIG).read_text()  # diffusers writes it
    check_folder(tmp_path / "again")
    for files in (main_files(tmp_path / "again"), stock_files(tmp_path / "again")):
        for path, content in files.items():
            assert str(saved).encode() not in (content if isinstance(content, bytes) else content.read_bytes()), path
    config = json.loads((saved / CONFIG).read_text())
    assert json.loads(main_files(tmp_path / "again")[CONFIG]) == config


# --- The revision for diffusers alone ---

SCHEDULES = {
    "linear": {},
    "class-conditional": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "zero SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "trained betas": {"num_train_timesteps": 1000, "trained_betas": [0.01 * k for k in range(1, 21)]},
    "no variance": {"variance_type": None},
    "fixed_large": {"variance_type": "fixed_large"},
    "fixed_large_log": {"variance_type": "fixed_large_log"},
    "fixed_small_log": {"variance_type": "fixed_small_log"},
    "learned_range": {"variance_type": "learned_range"},
    "learned": {"variance_type": "learned"},
    "analytic": {"variance_type": "analytic", "original_sample_variances": [0.5] * 20},
}
OTHER_VARIANCE = ("learned", "analytic")  # of which stock has the prediction alone


def make_model(case: str) -> DDPMHubPipeline:
    """A model with the classes that its kind may have, and T = 20."""
    settings = {"num_train_timesteps": 20, "beta_end": 0.4} | SCHEDULES[case]
    unet = make_unet(channels=2, num_class_embeds=None if case == "linear" else 4)
    if case in ("learned", "learned_range"):
        unet = UNet2DModel.from_config(unet.config, out_channels=4)
    pipeline = DDPMHubPipeline(unet.eval(), DDPMHubScheduler(**settings))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_stock(folder, target, **kwargs):
    for path, content in stock_files(folder).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    pipeline = DiffusionPipeline.from_pretrained(target, **kwargs)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def said(caplog):
    """What diffusers logs."""
    diffusers_logging.enable_propagation()
    yield caplog
    diffusers_logging.disable_propagation()


@pytest.mark.usefixtures("quiet_schedule")
@pytest.mark.parametrize("case", SCHEDULES)
def test_stock_is_the_same_model_for_diffusers_alone(case, tmp_path, said):
    pipeline = make_model(case)
    pipeline.save_pretrained(tmp_path / "ours")
    check_folder(tmp_path / "ours")
    said.clear()
    stock = load_stock(tmp_path / "ours", tmp_path / "stock")
    assert [record.getMessage() for record in said.records] == []
    assert (type(stock), type(stock.scheduler), type(stock.unet)) == (DDPMPipeline, DDPMScheduler, UNet2DModel)
    assert stock.unet.config.num_class_embeds is None
    assert not list((tmp_path / "stock").rglob("*.py"))

    # The same network: no farther from the exact output than ours. A bias that was added in another order is a rounding of
    # the kind that float32 makes at every other addition.
    sample, labels = torch.randn(4, 2, 8, 8), None if case == "linear" else torch.full((4,), 3)
    channels = stock.unet.config.out_channels
    with torch.no_grad():
        ours, theirs = pipeline.unet(sample, 7, labels).sample, stock.unet(sample, 7).sample
        exact = make_model(case).unet
        exact.load_state_dict(pipeline.unet.state_dict())
        exact = exact.double()(sample.double(), 7, labels).sample
    assert channels == (4 if case == "learned_range" else 2)
    rounding = (ours - exact).abs().max().item()
    assert rounding < 1e-5
    torch.testing.assert_close(theirs.double(), exact[:, :channels], rtol=0, atol=4 * rounding)

    if case not in OTHER_VARIANCE:
        # 1 − ᾱ in float32 is off by 2^-24, which is 6e-4 of the smallest, 1e-4: 3e-6 of x̂_0 in a step, 20 steps, twice.
        noise = {"batch_size": 2, "num_inference_steps": 20, "output_type": "pt"}
        drawn, expected = (p(generator=torch.Generator().manual_seed(5), **noise).images for p in (stock, pipeline))
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.1
    else:
        assert stock(num_inference_steps=20, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("conditional", [True, False])
def test_stock_has_every_precision_and_the_same_bytes_each_time(conditional, tmp_path):
    pipeline = make_pipeline(num_class_embeds=4 if conditional else None)
    pipeline.save_pretrained(tmp_path / "ours")
    pipeline.to(torch.float16).save_pretrained(tmp_path / "ours", variant="fp16")
    stock = load_stock(tmp_path / "ours", tmp_path / "stock", variant="fp16", dtype=torch.float16).unet.state_dict()
    half = pipeline.unet.state_dict()
    bias = "time_embedding.linear_2.bias"
    if conditional:
        null = half.pop("class_embedding.weight")[3]
        half[bias] = (half[bias].double() + null.double()).half()
    assert stock.keys() == half.keys()
    assert all(torch.equal(stock[name], half[name]) for name in half)
    assert (load_stock(tmp_path / "ours", tmp_path / "stock").unet.dtype) == torch.float32
    assert stock_files(tmp_path / "ours") == stock_files(tmp_path / "ours")
