"""What the README says is true: its snippets run, its files exist and are about as long as it says."""

import re

from conftest import REPOSITORY, make_pipeline, run_python
from hub_server import HubServer

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run(default_run, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "digits").symlink_to(default_run)
    make_pipeline(num_class_embeds=None).save_pretrained(tmp_path / "textures")
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 8
    with HubServer() as hub:
        hub.add_user("me")
        environment = hub.environment(hub.add_token("me"), tmp_path / "home")
        script = "import sys; from ddpm_hub.hub import push_folder; push_folder(sys.argv[1], sys.argv[2])"
        for folder, repository in ((default_run, "me/digits"), (tmp_path / "textures", "me/textures")):
            result = run_python("-c", script, str(folder), repository, **environment)
            assert result.returncode == 0, result.stderr
        for number, snippet in enumerate(snippets):
            script = tmp_path / f"{number}.py"
            script.write_text(f"import os; os.chdir({str(tmp_path)!r})\n{snippet}", encoding="utf-8")
            result = run_python(str(script), **environment)
            assert result.returncode == 0, result.stderr
    assert (tmp_path / "three.png").exists()
    assert (tmp_path / "seven.png").exists()


def test_the_map_is_right():
    rows = dict(re.findall(r"^\| `([^`]+\.py)` \| (\d+) \|", README, flags=re.MULTILINE))
    for name, lines in rows.items():
        actual = len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())
        assert abs(int(lines) - actual) <= 10, f"{name} has {actual} lines"
    folders = ("ddpm_hub", "training", "space")
    files = {f"{folder}/{path.name}" for folder in folders for path in (REPOSITORY / folder).glob("*.py")}
    assert rows.keys() == files - {"ddpm_hub/__init__.py"}


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (REPOSITORY / target).exists(), target


def test_the_commands_are_those_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
