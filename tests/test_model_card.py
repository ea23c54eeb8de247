"""The card says what the folder's files say: every figure, no other, on any content, in snippets that run."""

import copy
import dataclasses
import json
import re

import pytest
import torch
import yaml
from conftest import make_pipeline, make_unet, run_python
from diffusers import UNet2DModel
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_eval_result
from markdown_it import MarkdownIt
from PIL import Image
from train_config import TrainConfig

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.model_card import render_card, write_card
from ddpm_hub.shared_files import shared_file

MACHINE = {"name": "Some CPU", "threads": 13, "torch": "9.8.7"}
METRICS = {
    "training": {"steps": 311, "seconds": 312.5, "images_per_second": 313.25, "share_of_peak": 0.3125, "loss": 0.314, "num_images": 315,
                 "earlier": {"steps": 316, "images": 317, "seconds": 318.5}, "dataset": "petals", "dataset_on_hub": False, "machine": MACHINE},
    "samples": {"file": "samples/step_000311.png", "num_samples": 321, "seed": 7000, "num_inference_steps": 323,
                "eta": 0.3235, "guidance_scale": 3.235, "class_in_each_column": True},
    "evaluation": [{"type": "class_fidelity", "name": "Class fidelity", "description": "what was seen", "value": 0.331,
                    "num_samples": 332, "seed": 333, "num_inference_steps": 334, "eta": 0.3345,
                    "guidance_scale": 3.345, "extractor": "An SVC",
                    "reference": {"name": "real images", "value": 0.335}}],
    "speed": [{"what": "sampling", "images_per_second": 341.5, "num_inference_steps": 342, "batch_size": 343,
               "dtype": "float13", "machine": {"name": "Other GPU", "devices": 17, "torch": "6.5.4"}}],
}  # fmt: skip


def save_run(folder, metrics=METRICS, config: TrainConfig | None = None, **unet):
    """What a training run leaves, with figures that no computation would give."""
    make_pipeline(**unet).save_pretrained(folder)
    (folder / "samples").mkdir()
    for name in ("samples/step_000311.png", "samples/step_000020.png", "loss_curve.png"):
        Image.new("L", (8, 8)).save(folder / name)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    config = config or dataclasses.replace(TrainConfig(), output_dir=str(folder), dataset_name="/home/me/petals")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("cards") / "flowers")


def headings(card: ModelCard) -> list[str]:
    return re.findall(r"^## (.*)$", card.text, flags=re.MULTILINE)


def leaves(value, path=()):
    """The paths to all figures and texts in metrics.json."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


class TestFigures:
    def test_every_figure_of_a_run_is_there(self, run):
        card = render_card(run).content
        for path, value in leaves(METRICS):
            if not isinstance(value, bool):
                assert str(value) in card, path

    def test_a_figure_that_is_removed_leaves_no_trace(self, tmp_path):
        save_run(tmp_path / "run")
        needed = {("evaluation", 0, "type"), ("evaluation", 0, "name"), ("speed", 0, "what"),
                  ("samples", "file"),  # the name of a picture that is there
                  ("training", "dataset")}  # config.yaml has it, too  # fmt: skip
        removable = {p: value for p, value in leaves(METRICS) if not isinstance(value, bool) and p not in needed}
        assert len(removable) == 34
        for (*parents, last), value in removable.items():
            metrics = copy.deepcopy(METRICS)
            parent = metrics
            for key in parents:
                parent = parent[key]
            del parent[last]
            (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
            card = render_card(tmp_path / "run").content
            assert not re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w])", card), (*parents, last)

    def test_null_is_not_measured(self, tmp_path):
        metrics = {"training": {"steps": 3, "loss": None}, "evaluation": [{"type": "a", "name": "b", "value": None}]}
        card = render_card(save_run(tmp_path / "run", metrics))
        assert "loss:" not in card.content
        assert "Evaluation" not in headings(card)
        assert card.data.eval_results is None

    def test_the_metadata_is_what_the_hub_reads(self, run):
        entry = METRICS["evaluation"][0]
        card = ModelCard.load(write_card(run, "someone/flowers"))
        assert card.data.library_name == "diffusers"
        assert card.data.pipeline_tag == "unconditional-image-generation"
        assert card.data.license == "apache-2.0"
        assert card.data.datasets is None  # a local folder
        (result,) = card.data.eval_results
        assert result.metric_args == {key: entry[key] for key in
                                      ("num_samples", "seed", "num_inference_steps", "eta", "guidance_scale", "extractor",
                                       "reference")}  # fmt: skip
        expected = metadata_eval_result(
            model_pretty_name="flowers",
            task_pretty_name=None,
            task_id="unconditional-image-generation",
            metrics_pretty_name="Class fidelity",
            metrics_id="class_fidelity",
            metrics_value=0.331,
            dataset_pretty_name="petals",
            dataset_id="petals",
            dataset_split="train",
        )
        (found,), (wanted,) = card.data.to_dict()["model-index"], expected["model-index"]
        for results in (found["results"], wanted["results"]):
            results[0]["metrics"][0] = {
                k: v for k, v in results[0]["metrics"][0].items() if k not in ("args", "verified")
            }
            results[0]["task"].pop("name", None)
        assert found == wanted

    def test_a_data_set_of_the_hub_is_linked(self, tmp_path):
        metrics = copy.deepcopy(METRICS)
        metrics["training"] |= {"dataset": "zalando/fashion", "dataset_on_hub": True}
        config = dataclasses.replace(TrainConfig(), dataset_name="zalando/fashion")
        card = render_card(save_run(tmp_path / "run", metrics, config))
        assert card.data.datasets == ["zalando/fashion"]
        assert "dataset_name: zalando/fashion\n" in card.text

    def test_nothing_of_the_machine_is_told(self, run):
        content = render_card(run).content
        assert "output_dir" not in content
        assert "/home" not in content
        assert str(run.parent) not in content
        assert "dataset_name: petals\n" in content

    def test_the_last_grid_and_all_plots_are_shown(self, tmp_path):
        folder = save_run(tmp_path / "run")
        (folder / "plots").mkdir()
        for name in ("samples/step_1000000.png", "samples/step_999999.png", "plots/fid over steps.png"):
            Image.new("L", (8, 8)).save(folder / name)
        content = render_card(folder).content
        assert "![Samples](samples/step_1000000.png)" in content  # metrics.json speaks of another grid
        assert "![fid over steps](plots/fid%20over%20steps.png)" in content
        assert "step_999999" not in content

    def test_the_card_of_the_default_run(self, default_run):
        content = (default_run / "README.md").read_text(encoding="utf-8")
        assert content == render_card(default_run).content.rstrip("\n") + "\n"
        for path, value in leaves(json.loads((default_run / "metrics.json").read_text())):
            if not isinstance(value, bool):
                shown = (str(value), f"{value:,}", f"{value:.6g}") if isinstance(value, int | float) else (value,)
                assert any(text in content for text in shown), path
        assert str(default_run.parent) not in content


class TestBareFolders:
    @pytest.mark.parametrize("classes", [None, 4])
    def test_what_is_not_there_is_not_spoken_of(self, tmp_path, classes):
        make_pipeline(num_class_embeds=classes).save_pretrained(tmp_path / "bare")
        card = render_card(tmp_path / "bare")
        assert headings(card) == ["Use", "Equations", "Limits and bias", "Licence", "Citation"]
        assert not re.search(r"None|undefined|\{\{|\{%|\n\n\n|!\[", card.content)
        assert card.data.license is None
        assert ("Classes" in card.text) == (classes is not None)

    def test_the_number_of_parameters_is_that_of_the_network(self, tmp_path):
        pipeline = make_pipeline()
        pipeline.to(torch.float16)
        pipeline.save_pretrained(tmp_path / "half", max_shard_size="20KB")
        assert len(list((tmp_path / "half" / "unet").glob("*.safetensors"))) > 1
        assert f"{pipeline.unet.num_parameters():,} parameters, float16 |" in render_card(tmp_path / "half").text

    def test_two_renderings_are_equal_and_a_failure_leaves_the_card(self, run):
        path = write_card(run)
        before = path.read_bytes()
        assert write_card(run).read_bytes() == before
        metrics = (run / "metrics.json").read_text()
        (run / "metrics.json").write_text("{")
        with pytest.raises(ValueError, match=r"metrics\.json"):
            write_card(run)
        (run / "metrics.json").write_text(metrics)
        assert path.read_bytes() == before
        assert not list(run.glob("*.partial"))


def learning(channels: int = 1, classes: int | None = None) -> UNet2DModel:
    """A network with a second half of channels for its variance."""
    network = make_unet(num_class_embeds=classes)
    return UNet2DModel.from_config({**network.config, "out_channels": 2 * channels})


# The network and the scheduler of each model whose snippets are run; (1) and (2) differ from the others in the fourth way.
MODELS = {
    "plain": (lambda: make_unet(num_class_embeds=None), {}),
    "classes": (make_unet, {}),
    "cosine": (lambda: make_unet(3, None, (8, 16)), {"beta_schedule": "squaredcos_cap_v2"}),
    "cosine_classes": (lambda: make_unet(num_class_embeds=2), {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid": (lambda: make_unet(num_class_embeds=None), {"beta_schedule": "sigmoid", "variance_type": "fixed_large_log"}),
    "zero_snr": (lambda: make_unet(num_class_embeds=None), {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    "analytic": (lambda: make_unet(num_class_embeds=None), {"variance_type": "analytic", "original_sample_variances": [0.5] * 1000}),
    "learned": (learning, {"variance_type": "learned_range"}),
    "wide_clip": (make_unet, {"clip_sample_range": 2.0}),  # for which there is no fast solver
    "two_channels": (lambda: make_unet(2, None), {"num_train_timesteps": 150, "beta_end": 0.2, "timestep_spacing": "leading"}),
}  # fmt: skip

RUN_SNIPPETS = """
import json, os, sys, warnings
import numpy as np, torch
from PIL import Image
from ddpm_hub import DDPMHubScheduler, fast_solver
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
os.chdir(sys.argv[1])
for name, snippets in json.load(open("snippets.json")).items():
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        images = np.stack([np.asarray(image) for image in names["images"]])
        assert len(images) == 4 and np.isfinite(images).all(), name
    scheduler = names["scheduler"] if "scheduler" in names else names["pipeline"].scheduler
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        stored = DDPMHubScheduler.load_config(name, subfolder="scheduler")
        if stored["variance_type"] == "learned_range":
            stored["variance_type"] = "fixed_small"
        right = fast_solver(DDPMHubScheduler.from_config(stored))
        for solver in (scheduler, right):
            solver.set_timesteps(20)
        assert torch.equal(scheduler.timesteps, right.timesteps), name
        assert torch.allclose(scheduler.sigmas, right.sigmas, rtol=1e-4), name
        keys = ("thresholding", "sample_max_value", "solver_order", "algorithm_type", "final_sigmas_type")
        assert [scheduler.config[key] for key in keys] == [right.config[key] for key in keys], name
    print(name, type(scheduler).__name__)
"""


class TestSnippets:
    def test_a_learned_variance_is_no_channel_of_the_pictures(self, tmp_path):
        """The pipeline cuts it off and gives pictures; the network of `stock` has it still."""
        pipeline = make_pipeline(num_class_embeds=None)
        unet = UNet2DModel(**{**pipeline.unet.config, "out_channels": 2})
        DDPMHubPipeline(unet, DDPMHubScheduler(variance_type="learned_range")).save_pretrained(tmp_path)
        card = render_card(tmp_path, "me/it").content
        assert card.count("images = pipeline(batch_size=4, num_inference_steps=100).images") == 2
        assert 'images[0].save("sample.png")' in card
        assert 'images = pipeline(batch_size=4, num_inference_steps=100, output_type="np").images' in card

    def test_they_run_with_the_settings_of_the_fast_solver(self, tmp_path):
        snippets = {}
        for name, (unet, schedule) in MODELS.items():
            scheduler = DDPMHubScheduler(**({"timestep_spacing": "trailing"} | schedule))
            DDPMHubPipeline(unet(), scheduler).save_pretrained(tmp_path / name)
            text = render_card(tmp_path / name).text
            snippets[name] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
            assert len(snippets[name]) == 3
            # What diffusers' DDPMScheduler does not know, or makes NaN of, it is told by a name that it knows.
            variance = {"sigmoid": "fixed_large", "analytic": "fixed_small", "learned": "fixed_small"}.get(name)
            assert set(re.findall(r'variance_type="(\w+)"', text)) == ({variance} if variance else set())
        (tmp_path / "snippets.json").write_text(json.dumps(snippets))
        result = run_python("-c", RUN_SNIPPETS, str(tmp_path), HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
        assert result.returncode == 0, result.stderr
        solvers = dict(line.split() for line in result.stdout.splitlines())
        assert solvers.keys() == MODELS.keys()
        assert {name for name, solver in solvers.items() if solver == "DDPMScheduler"} == {"wide_clip"}

    def test_the_repository_is_named_and_has_a_fourth_way(self, run):
        text = render_card(run, "someone/flowers").text
        snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        assert len(snippets) == 4
        assert all('"someone/flowers"' in snippet for snippet in snippets)
        assert 'DiffusionPipeline.from_pretrained("someone/flowers", revision="stock")' in snippets[2]
        assert "class_labels" not in snippets[2]

    def test_what_is_no_name_of_a_repository_is_refused(self, run):
        with pytest.raises(ValueError, match="Repo id"):
            render_card(run, "a b/c")

    # numpy's complaint about the way in which diffusers hands it tensors
    def test_the_fast_solver_draws_the_classes_that_the_snippet_asks_for(self, default_run, monkeypatch):
        """And does not saturate: the real digits' share of pixels at the ends of the range, and little more."""
        from class_fidelity import class_fidelity
        from image_data import load_images

        monkeypatch.chdir(default_run.parent)
        snippet = re.findall(r"```python\n(.*?)```", render_card(default_run).text, flags=re.DOTALL)[-1]
        names = {}
        torch.manual_seed(0)
        exec(snippet, names)
        data = load_images(TrainConfig())
        samples = (255 * names["images"]).round().to(torch.uint8)
        real, labels = data.at(torch.arange(len(data)))
        assert class_fidelity(real, labels, samples, names["class_labels"])["value"] == 1
        ends = [((pixels == 0) | (pixels == 255)).float().mean() for pixels in (samples, real)]
        assert ends[0] < ends[1] + 0.1


class TestEquations:
    @pytest.mark.parametrize(
        ("schedule", "said"),
        [
            ({}, [r"\varepsilon_\theta(x_t, t)", r"\sigma_t^2 = \tilde\beta_t", "= 4.04e-05", "as good as noise", "±1"]),
            ({"variance_type": "fixed_large"}, [r"\sigma_t^2 = \beta_t" + "\n"]),
            ({"prediction_type": "sample", "clip_sample": False}, [r"\hat x_0 = x_\theta(x_t, t)", "which is not clipped"]),
            ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, [r"v_\theta(x_t, t)", "= 0, so that"]),
            ({"beta_schedule": "squaredcos_cap_v2"}, ["`squaredcos_cap_v2`", r"\beta_T \\) = 0.999"]),
            ({"trained_betas": [0.01, 0.02]}, ["`trained_betas`", "t = 1…2", "= 0.97:", "98 % of x_0", "does not have"]),
            ({"variance_type": "learned_range"}, [r"\beta_t^{\,u_\theta}", "second half"]),
            ({"variance_type": "analytic", "original_sample_variances": [0.5] * 1000}, ["V_t", "2201.06503"]),
            ({"thresholding": True}, ["dynamic thresholding"]),
        ],
    )  # fmt: skip
    def test_they_are_those_of_the_scheduler(self, tmp_path, quiet_schedule, schedule, said):
        DDPMHubPipeline(make_unet(), DDPMHubScheduler(**schedule)).save_pretrained(tmp_path / "model")
        equations = render_card(tmp_path / "model").text.partition("## Equations")[2].partition("\n## ")[0]
        for words in said:
            assert words in equations
        assert equations.count("$$") == 6
        assert equations.count(r"\\(") == equations.count(r"\\)")


NASTY = ["a|b", "two\nlines\n---\n# title", "`tick`` ```", "{{ x }} {% y %}", "<script>alert(1)</script>", "![p](q) [l](m)",
         r"back\slash \\( x \\)", "$$x$$ *b* _i_ ~~s~~", "&lt; &amp;", "</details>", '"quotes" \'and\' more', "- item", "---"]  # fmt: skip


def structure(card: ModelCard) -> list[str]:
    """The kinds of blocks and their nesting, without the code in them."""
    return [token.type for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text)]


class TestEscaping:
    def test_no_text_breaks_the_card(self, run, tmp_path):
        plain_names = {str(k): f"name {k}" for k in range(len(NASTY))}
        nasty_names = dict(zip(plain_names, NASTY, strict=True))
        cards = []
        for folder, names, text in (("plain", plain_names, "name"), ("nasty", nasty_names, "|".join(NASTY))):
            metrics = copy.deepcopy(METRICS)
            metrics["training"] |= {"dataset": text.replace("/", ""), "machine": {"name": text, "torch": text}}
            metrics["evaluation"][0] |= {"name": text, "description": text, "extractor": text, "type": text,
                                         "reference": {"name": text, "value": 1.0}}  # fmt: skip
            metrics["speed"][0] |= {"what": text, "dtype": text}
            config = dataclasses.replace(TrainConfig(), split=f"{text}\n```\n#", dataset_name=text, dataset_config=text)
            save_run(tmp_path / folder, metrics, config, num_class_embeds=len(NASTY) + 1)
            index = json.loads((tmp_path / folder / "model_index.json").read_text())
            (tmp_path / folder / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
            cards.append(ModelCard.load(write_card(tmp_path / folder)))
        assert structure(cards[1]) == structure(cards[0])
        cells = [t.content for t in MarkdownIt("commonmark").enable("table").parse(cards[1].text) if t.type == "inline"]
        shown = MarkdownIt("commonmark").enable("strikethrough").parseInline(next(c for c in cells if "lines" in c))
        assert {child.type for child in shown[0].children} <= {"text", "text_special"}
        for name in NASTY:
            assert " ".join(name.split()) in "".join(child.content for child in shown[0].children)
        (result,) = cards[1].data.eval_results
        assert result.metric_name == "|".join(NASTY)
        fences = [t for t in MarkdownIt("commonmark").parse(cards[1].text) if t.type == "fence" and t.info == "yaml"]
        assert yaml.safe_load(fences[0].content)["split"] == "|".join(NASTY) + "\n```\n#"

    def test_a_folder_of_any_name_is_named_rightly_in_python(self, tmp_path):
        name = 'a "b" \\ `c` {{d}} é'
        make_pipeline().save_pretrained(tmp_path / name)
        snippet = re.search(r"```python\n(.*?)```", render_card(tmp_path / name).text, flags=re.DOTALL)[1]
        literal = re.search(r"from_pretrained\((.*), trust", snippet)[1]
        assert eval(literal) == name


class TestDamage:
    @pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json",
                                      "unet/diffusion_pytorch_model.safetensors"])  # fmt: skip
    def test_a_file_that_is_missing_is_named(self, tmp_path, file):
        save_run(tmp_path / "run")
        (tmp_path / "run" / file).unlink()
        name = "safetensors" if "safetensors" in file else re.escape(file)
        with pytest.raises(FileNotFoundError, match=name):
            render_card(tmp_path / "run")

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
            render_card(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("file", "content", "reason"),
        [
            ("metrics.json", "{", "Expecting"),
            ("metrics.json", "[1]", "no `key: value` pairs"),
            ("metrics.json", '{"training": 3}', "training is 3; it must be an object"),
            ("metrics.json", '{"training": {"steps": "many"}}', "training.steps is 'many'; it must be an integer"),
            ("metrics.json", '{"training": {"steps": true}}', "training.steps is True"),
            ("metrics.json", '{"training": {"loss": NaN}}', "training.loss is nan, which is no finite number"),
            ("metrics.json", '{"training": {"loss": 1e999}}', "training.loss is inf"),
            ("metrics.json", '{"training": {"dataset": "a b", "dataset_on_hub": true}}', "training.dataset: .*a b"),
            ("metrics.json", '{"evaluation": {}}', "evaluation is {}; it must be a list"),
            ("metrics.json", '{"evaluation": [{"value": 1}]}', r"evaluation\[0\] has no `type`"),
            ("metrics.json", '{"evaluation": [{"type": "a", "name": "b", "value": "c"}]}', r"evaluation\[0\].value is 'c'"),
            ("metrics.json", '{"speed": [{"what": "x", "machine": []}]}', r"speed\[0\].machine is \[\]"),
            ("config.yaml", "a: [", "damaged"),
            ("config.yaml", "just words", "no `key: value` pairs"),
            ("config.yaml", "1: a", "its key 1 is no text"),
            ("config.yaml", "license: 3", "license is 3; it must be a text"),
            ("config.yaml", "batch_size: many", "batch_size is 'many'"),
            ("model_index.json", '{"_class_name": "DDPMPipeline"}', "names no DDPMHubPipeline"),
            ("unet/config.json", '{"in_channels": 1}', "`sample_size`"),
            ("scheduler/scheduler_config.json", '{"beta_schedule": "cosine"}', "`beta_schedule` is 'cosine'"),
            ("unet/diffusion_pytorch_model.safetensors", "short", "damaged"),
        ],
    )  # fmt: skip
    def test_a_file_that_is_damaged_is_named_with_the_reason(self, tmp_path, file, content, reason):
        save_run(tmp_path / "run")
        (tmp_path / "run" / file).write_text(content)
        with pytest.raises(ValueError, match=f"{re.escape(file)}' is damaged: .*{reason}|{re.escape(file)}.*{reason}"):
            render_card(tmp_path / "run")

    def test_weights_that_were_cut_off(self, tmp_path):
        save_run(tmp_path / "run")
        file = tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors' is damaged"):
            render_card(tmp_path / "run")


class TestTheTemplate:
    def test_it_is_found_in_a_checkout_and_in_an_installation(self, tmp_path, monkeypatch):
        assert shared_file("model_card.md").read_text(encoding="utf-8").startswith("---\n{{ card_data }}")
        monkeypatch.setattr("ddpm_hub.shared_files._CHECKOUT", tmp_path)
        monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path / scheme / name))
        with pytest.raises(FileNotFoundError, match=r"model_card.md is neither in .*pip install"):
            shared_file("model_card.md")
        (tmp_path / "posix_prefix" / "data" / "share" / "ddpm_hub").mkdir(parents=True)
        (tmp_path / "posix_prefix" / "data" / "share" / "ddpm_hub" / "model_card.md").touch()
        monkeypatch.setattr("sysconfig.get_default_scheme", lambda: "posix_prefix")
        assert shared_file("model_card.md").is_relative_to(tmp_path / "posix_prefix")


def test_the_model_s_own_sampling_is_told_once_and_not_repeated_in_the_snippets(tmp_path):
    """What is stored need not be said, and plain diffusers takes the steps of a plain DDPM."""
    folder = save_run(tmp_path / "run")
    index = json.loads((folder / "model_index.json").read_text())
    sampling = {"sampler": "dpm++", "num_inference_steps": 12, "guidance_scale": 2.5, "guidance_interval": [20, 70]}
    (folder / "model_index.json").write_text(json.dumps(index | {"sampling": sampling}))
    card = render_card(folder, "me/flowers").content
    assert "| Sampled by default | 12 steps, `dpm++`, guidance 2.5, guided for t from 20 to 70 |" in card
    assert card.count("images = pipeline(class_labels=[0, 1, 2, 0]).images") == 2  # with the package, and by trust
    assert "num_inference_steps=100" in card  # of stock
    assert "num_inference_steps=12" not in card
    assert "By default `dpm++` solves the equation of this process without noise; a reverse step" in card
    assert "without guidance, so that the figures below are not those of its images" in card
    assert "give its whole path" not in card
    (folder / "model_index.json").write_text(json.dumps(index | {"sampling": sampling | {"sampler": "sde-dpm++"}}))
    assert "By default `sde-dpm++` solves the equation of this process with noise;" in render_card(folder).content
    plain = render_card(save_run(tmp_path / "plain")).content
    assert "clipped to ±1. A reverse step draws" in plain
    assert "give its whole path" in plain
    for words in ("Sampled by default", "By default `", "without guidance"):
        assert words not in plain


@pytest.mark.parametrize(("optimizer", "words"), [("adamw", "AdamW"), ("muon", "Muon and AdamW"), (None, "AdamW")])
def test_the_optimizer_is_named(tmp_path, optimizer, words):
    """A configuration of an earlier version has no such key: there was AdamW alone."""
    folder = save_run(tmp_path / "run", config=TrainConfig(optimizer=optimizer or "adamw"))
    if optimizer is None:
        config = (folder / "config.yaml").read_text().replace("optimizer: adamw\n", "")
        (folder / "config.yaml").write_text(config)
    assert f"images each, {words} with a learning rate of at most 0.001, " in render_card(folder).content


def test_the_study_of_steps_and_samplers_stands_in_the_card(tmp_path):
    rows = [
        {"sampler": sampler, "variance_type": variance, "num_inference_steps": n, "value": value, "standard_error": 5e-5}
        for sampler, variance, n, value in (
            ("ddpm", "fixed_small", 10, 0.00211), ("ddpm", "fixed_small", 1000, 0.00044), ("dpm++", "none", 10, 0.00014),
        )
    ]  # fmt: skip
    study = {"description": "Energy distance.", "num_samples": 512, "floor": rows[0] | {"value": 0.00372}, "rows": rows}
    folder = save_run(tmp_path / "run", metrics={"sampling_quality": study})
    index = json.loads((folder / "model_index.json").read_text())
    sampling = {"sampler": "dpm++", "num_inference_steps": 10}
    (folder / "model_index.json").write_text(json.dumps(index | {"sampling": sampling}))
    card = render_card(folder).content
    assert "Energy distance. In thousandths, ± one standard error, 512 samples each; bold is what" in card
    assert "Real images that were held out: 3.72 ± 0.05." in card
    assert "| `ddpm` | `fixed_small` | 2.11 ± 0.05 | 0.44 ± 0.05 |" in card
    assert "| `dpm++` |  | **0.14 ± 0.05** |  |" in card
