"""The shape of the product: which way data flows, what an import costs, what the top level holds."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_python

import ddpm_hub
from ddpm_hub.pipeline_ddpm_hub import CODE_FILES

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
    "fast_solvers": {".scheduling_ddpm_hub", "diffusers"},
    "pipeline_ddpm_hub": {
        ".ddpm_argument_checks",
        ".ddpm_equations",
        ".ddpm_noise_schedules",
        ".ddpm_sample_arithmetic",
        ".scheduling_ddpm_hub",
        "PIL",
        "diffusers",
        "numpy",
        "torch",
    },
    "shared_files": set(),
    "model_folder": {"safetensors", "yaml"},
    "model_card": {
        ".ddpm_noise_schedules",
        ".fast_solvers",
        ".model_folder",
        ".scheduling_ddpm_hub",
        ".shared_files",
        "ddpm_hub",
        "diffusers",
        "huggingface_hub",
        "yaml",
    },
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


def test_published_files_follow_the_rules_of_the_loader():
    """diffusers follows `from .name import x` and nothing else."""
    for path in PACKAGE.glob("*_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
                assert node.module is not None, path
                assert re.fullmatch(r"\w+", node.module), path


def test_published_files_name_all_that_the_loader_must_copy():
    """diffusers' loader copies the siblings that a file names, not what those import in turn."""
    for folder, (first, *others) in CODE_FILES.items():
        named = imports((PACKAGE / first).read_text(encoding="utf-8"))
        assert {f".{Path(name).stem}" for name in others} <= named, folder


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
    assert not names & {"datasets", "accelerate", "diffusers", "gradio", "torch", "evaluate", "utils"}
