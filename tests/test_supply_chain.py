"""What the product is made of: pinned, listed, and with its licences said."""

import importlib.metadata
import json
import re
import tomllib

from conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = {"pip", "setuptools", "ddpm-hub"}  # what makes the environment, and what it is for
# Their metadata name no licence; these are those of their repositories.
UNNAMED = {"axe-playwright-python": "MIT", "protobuf": "BSD-3-Clause", "transformers": "Apache-2.0"}
WORDS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD",
}


def plain(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))


def bill() -> dict[str, dict]:
    components = json.loads((REPOSITORY / "docs" / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    return {plain(component["name"]): component for component in components}


def licence(component: dict) -> str:
    """What a package says of itself, in the identifiers of SPDX where it has one."""
    found = [entry.get("expression") or entry["license"].get("id") for entry in component.get("licenses", [])]
    named = [entry["license"]["name"] for entry in component.get("licenses", []) if "name" in entry.get("license", {})]
    known = [name for name in found if name] or [WORDS[name] for name in named if name in WORDS]
    return known[0] if known else UNNAMED[plain(component["name"])]


def required() -> dict[str, set[str]]:
    """Each package that the product names, with the extras that name it."""
    groups = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    found: dict[str, set[str]] = {}
    for extra, lines in groups.items():
        for line in lines:
            name = plain(re.match(r"[\w.-]+", line)[0])
            if name != "ddpm-hub":
                found.setdefault(name, set()).add(extra)
    return found


def test_what_is_installed_is_what_is_pinned():
    wanted = {plain(name): version for name, version in pins().items()}
    installed = {plain(found.name): found.version.split("+")[0] for found in importlib.metadata.distributions()}
    # A GPU's build of torch brings packages of its own, which pip chooses with it.
    ours = {name: version for name, version in installed.items() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert {name: ours.get(name) for name in wanted} == wanted
    assert ours.keys() - wanted.keys() <= TOOLS


def test_the_bill_of_materials_is_that_of_the_pins():
    """`make audit` writes it."""
    wanted = {plain(name): version for name, version in pins().items()}
    listed = {name: component["version"].split("+")[0] for name, component in bill().items() if name not in TOOLS}
    assert listed == wanted


def test_every_dependency_is_listed_with_its_licence_and_range():
    text = (REPOSITORY / "docs" / "DEPENDENCIES.md").read_text(encoding="utf-8")
    rows = {plain(name): terms for name, terms in re.findall(r"^\| `([\w.-]+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)}
    optional = {name for name, extras in required().items() if extras <= {"inception"}}  # never installed here
    expected = {name: licence(bill()[name]) for name in required() if name not in optional}
    assert {name: terms for name, terms in rows.items() if name not in optional} == expected
    assert optional <= rows.keys()


def test_the_versions_that_are_said_to_be_supported_are_those_of_the_project_and_the_pins():
    text = (REPOSITORY / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    rows = {
        name: said for name, *said in re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    }
    lines = [
        line for group in ({"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]).values() for line in group
    ]
    oldest = dict(re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", line).groups() for line in lines if ">=" in line)
    expected = {name: [oldest[name], pins()[name]] for name in rows}
    assert rows == expected
    assert rows.keys() == {"diffusers", "accelerate", "datasets", "gradio", "huggingface_hub", "transformers", "torch"}


def test_no_licence_of_the_product_forbids_its_own():
    """All permit use in a work under Apache-2.0; MPL-2.0 asks for the source of its own files alone."""
    known = r"Apache-2\.0|BSD|MIT|0BSD|ISC|PSF|Python-2\.0|MPL-2\.0|Zlib|CC0|BSL-1\.0|CNRI-Python|LLVM-exception"
    for name, component in bill().items():
        if name not in TOOLS:
            for part in re.split(r" (?:AND|OR|WITH) ", licence(component).replace("(", "").replace(")", "")):
                assert re.match(known, part), f"{name}: {part}"
