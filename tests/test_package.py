"""The shape of the product: which way data flows, what an import costs, what the top level holds."""

import ast
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_python

import ddpm_hub
from ddpm_hub.ddpm_hub_layout import CODE_FILES
from ddpm_hub.hub import check_loader_rules, space_files

PACKAGE = REPOSITORY / "ddpm_hub"
# What each file of the package may import: data flows from the top to the bottom.
ALLOWED = {
    "ddpm_equations": {"torch"},
    "ddpm_sample_arithmetic": {"torch"},
    "ddpm_argument_checks": {"torch"},
    "ddpm_noise_schedules": {".ddpm_argument_checks", "torch"},
    "scheduling_ddpm_hub": {
        ".ddpm_argument_checks",
        ".ddpm_equations",
        ".ddpm_noise_schedules",
        ".ddpm_sample_arithmetic",
        "diffusers",
        "torch",
    },
    "analytic_variance": {".ddpm_argument_checks", ".scheduling_ddpm_hub", "diffusers", "torch", "tqdm"},
    "variational_bound": {
        ".ddpm_argument_checks",
        ".ddpm_equations",
        ".ddpm_sample_arithmetic",
        ".scheduling_ddpm_hub",
        "torch",
    },
    "ddpm_fast_solvers": {
        ".ddpm_argument_checks",
        ".ddpm_noise_schedules",
        ".scheduling_ddpm_hub",
        "diffusers",
        "torch",
    },
    "ddpm_noise_sources": {".ddpm_argument_checks", ".ddpm_sample_arithmetic", "torch"},
    "ddpm_samplers": {
        ".ddpm_argument_checks",
        ".ddpm_fast_solvers",
        ".ddpm_noise_sources",
        ".scheduling_ddpm_hub",
        "torch",
    },
    "ddpm_sampling_settings": {".ddpm_argument_checks", ".ddpm_samplers"},
    "ddpm_network_calls": {"diffusers", "torch"},
    "ddpm_trajectories": {".ddpm_network_calls", ".ddpm_noise_sources", ".ddpm_samplers", "torch"},
    "ddpm_image_formats": {".ddpm_argument_checks", ".ddpm_equations", "PIL", "numpy", "torch"},
    "ddpm_interruption": set(),
    "ddpm_editing": {
        ".ddpm_argument_checks",
        ".ddpm_image_formats",
        ".ddpm_noise_sources",
        ".ddpm_sampling_settings",
        ".ddpm_trajectories",
        "diffusers",
        "torch",
    },
    "ddpm_hub_layout": {
        ".ddpm_argument_checks",
        ".ddpm_sampling_settings",
        ".scheduling_ddpm_hub",
        "diffusers",
        "safetensors",
        "torch",
    },
    "ddpm_hub_upload": {".ddpm_hub_layout", "httpx2", "huggingface_hub"},
    "ddpm_hub_loading": {
        ".ddpm_hub_layout",
        ".ddpm_hub_upload",
        ".scheduling_ddpm_hub",
        "diffusers",
        "huggingface_hub",
        "torch",
    },
    "pipeline_ddpm_hub": {
        ".ddpm_argument_checks",
        ".ddpm_editing",
        ".ddpm_equations",
        ".ddpm_fast_solvers",
        ".ddpm_hub_layout",
        ".ddpm_hub_loading",
        ".ddpm_hub_upload",
        ".ddpm_image_formats",
        ".ddpm_interruption",
        ".ddpm_network_calls",
        ".ddpm_noise_schedules",
        ".ddpm_noise_sources",
        ".ddpm_sample_arithmetic",
        ".ddpm_samplers",
        ".ddpm_sampling_settings",
        ".ddpm_trajectories",
        ".scheduling_ddpm_hub",
        "PIL",
        "diffusers",
        "numpy",
        "torch",
    },
    "trajectory_pictures": {".ddpm_argument_checks", ".ddpm_equations", ".ddpm_trajectories", "PIL", "torch"},
    "shared_files": set(),
    "domain_classifier": {".ddpm_equations", "safetensors", "torch"},
    "metrics_file": set(),
    "model_folder": {".metrics_file", "safetensors", "yaml"},
    "card_text": set(),
    "evaluation_tables": {".card_text", ".model_folder"},
    "model_card": {
        ".card_text",
        ".ddpm_noise_schedules",
        ".ddpm_fast_solvers",
        ".evaluation_tables",
        ".metrics_file",
        ".model_folder",
        ".scheduling_ddpm_hub",
        ".shared_files",
        "ddpm_hub",
        "diffusers",
        "huggingface_hub",
        "yaml",
    },
    "hub": {
        ".ddpm_hub_layout",
        ".ddpm_hub_upload",
        ".model_card",
        ".model_folder",
        ".shared_files",
        "diffusers",
        "huggingface_hub",
        "safetensors",
        "torch",
        "yaml",
    },
    "command_line": {
        ".",
        ".ddpm_hub_layout",
        ".hub",
        ".model_card",
        ".model_folder",
        "PIL",
        "huggingface_hub",
        "torch",
    },
    "shipped_models": set(),
    "__init__": set(),
}


def imports(source: str) -> set[str]:
    """Modules that are imported anywhere in the source: siblings as `.name`, others by their top-level name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or "") if node.level else node.module.split(".")[0])
    return found


def forbidden(name: str, source: str) -> set[str]:
    allowed = ALLOWED[name] | (set() if name == "ddpm_equations" else set(sys.stdlib_module_names))
    return imports(source) - allowed


def test_data_flows_one_way():
    files = {path.stem: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    assert files.keys() == ALLOWED.keys()
    assert {name: forbidden(name, source) for name, source in files.items()} == {key: set() for key in files}


@pytest.mark.parametrize("line", ["import training", "from .pipeline_ddpm_hub import X", "def f():\n    import gradio"])
def test_the_check_can_fail(line):
    assert forbidden("scheduling_ddpm_hub", line)


@pytest.fixture
def source_files(tmp_path):
    """What a saved folder has of this package."""
    for folder, names in CODE_FILES.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(PACKAGE / name, tmp_path / folder / name)
    return tmp_path


def test_published_files_follow_the_rules_of_the_loader(source_files):
    check_loader_rules(source_files)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            "pipeline_ddpm_hub.py",
            "from ..equations import x",
            r"line 1: the loader follows `from \.name import x` alone",
        ),
        ("scheduler/ddpm_equations.py", "from . import ddpm_argument_checks", "line 1: the loader follows"),
        ("ddpm_hub_layout.py", "from .scheduler.scheduling_ddpm_hub import x", "line 1: the loader follows"),
        ("pipeline_ddpm_hub.py", "from .unheard_of import x", r"unheard_of\.py' is missing.*Run `ddpm-hub export`"),
        (
            "ddpm_hub_upload.py",
            "from .pipeline_two import x",
            r"imports \.pipeline_two, which pipeline_ddpm_hub.py does not",
        ),
        (
            "scheduler/ddpm_equations.py",
            "from .ddpm_hub_layout import x",
            "imports .ddpm_hub_layout, which scheduling_ddpm",
        ),
        ("ddpm_equations.py", "def f(:", "is no Python source .*Run `ddpm-hub export`"),
        ("ddpm_equations.py", '"""\nfrom .elsewhere import x\n"""', r"takes a text for an import of \.elsewhere"),
        ("ddpm_equations.py", "a = 1; from .ddpm_argument_checks import x", "or overlooks it"),
        ("ddpm_argument_checks.py", None, r"ddpm_argument_checks\.py' is missing"),
        ("scheduler/scheduling_ddpm_hub.py", None, r"scheduling_ddpm_hub\.py' is missing"),
    ],
)
def test_the_rules_of_the_loader_can_be_broken(source_files, path, change, message):
    file = source_files / path
    if change is None:
        file.unlink()
    else:
        file.write_text(f"{change}\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_loader_rules(source_files)


def test_an_installation_has_what_is_read_outside_the_package():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    installed = {
        f"{folder}/{path.name}".removeprefix("share/ddpm_hub/")
        for folder, patterns in settings["data-files"].items()
        for pattern in patterns
        for path in REPOSITORY.glob(pattern)
    }
    read = {name for name in space_files("me/model") if not name.startswith("ddpm_hub/")}
    published = {name if name.startswith("docs/") else f"space/{name}" for name in read}
    assert installed == {"model_card.md"} | published
    assert settings["packages"] == ["ddpm_hub"]


def test_importing_the_package_costs_nothing_and_says_nothing():
    script = "import sys; before = set(sys.modules); import ddpm_hub; print(sorted(set(sys.modules) - before))"
    result = run_python("-c", script)
    assert result.stderr == ""
    loaded = set(ast.literal_eval(result.stdout))
    assert not loaded & {"torch", "numpy", "diffusers", "PIL"}


def test_every_public_name_is_there_and_no_other():
    for name in ddpm_hub.__all__:
        assert getattr(ddpm_hub, name) is not None
    assert dir(ddpm_hub) == sorted(ddpm_hub.__all__)
    with pytest.raises(AttributeError, match="DDPMHubSchedule'"):
        _ = ddpm_hub.DDPMHubSchedule


def test_the_top_level_is_as_agreed():
    expected = {"ddpm_hub", "training", "space", "tests", "model_card.md", "pyproject.toml", "README.md", "LICENSE",
                "Makefile", "constraints.txt", "docs", "CONTRIBUTING.md", "CHANGELOG.md", ".ci", ".gitignore",
                ".pre-commit-config.yaml"}  # fmt: skip
    for name in expected:
        assert (REPOSITORY / name).exists(), name
    assert "torch==2.13.0\n" in (REPOSITORY / "constraints.txt").read_text()
    assert "torchvision" not in (REPOSITORY / "constraints.txt").read_text()


def test_no_module_is_named_like_a_dependency():
    names = {path.stem for folder in ("training", "space") for path in Path(REPOSITORY / folder).glob("*.py")}
    assert not names & {"datasets", "accelerate", "diffusers", "gradio", "torch", "transformers", "utils"}
