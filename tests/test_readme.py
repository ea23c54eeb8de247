"""What the README says is true: its snippets run, its files exist and are about as long as it says."""

import re

from conftest import REPOSITORY, make_pipeline, run_python
from hub_server import HubServer

# Each file in a process of its own, which is forked where what takes longest to import is there.
RUN_EACH = """
import os, runpy, sys
from diffusers import DDPMPipeline, UNet2DModel
for path in sys.argv[1:]:
    if os.fork() == 0:
        runpy.run_path(path, run_name="__main__")
        sys.exit()
    assert os.wait()[1] == 0, path
"""

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run(default_run, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "digits").symlink_to(default_run)
    make_pipeline(num_class_embeds=None).save_pretrained(tmp_path / "textures")
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 9
    with HubServer() as hub:
        hub.add_user("me")
        environment = hub.environment(hub.add_token("me"), tmp_path / "home")
        files = [tmp_path / "push.py"]
        files[0].write_text(
            "from ddpm_hub.hub import push_folder\n"
            f"push_folder({str(default_run)!r}, 'me/digits')\n"
            f"push_folder({str(tmp_path / 'textures')!r}, 'me/textures')\n"
        )
        for number, snippet in enumerate(snippets):
            files.append(tmp_path / f"{number}.py")
            files[-1].write_text(f"import os; os.chdir({str(tmp_path)!r})\n{snippet}", encoding="utf-8")
        result = run_python("-c", RUN_EACH, *map(str, files), **environment)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "sandal.png").exists()
    assert (tmp_path / "seven.png").exists()


def test_the_map_is_right():
    rows = dict(re.findall(r"^\| `([^`]+\.py)` \| (\d+) \|", README, flags=re.MULTILINE))
    for name, lines in rows.items():
        actual = len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())
        assert abs(int(lines) - actual) <= 10, f"{name} has {actual} lines"
    folders = ("ddpm_hub", "training", "space")
    found = (path.relative_to(REPOSITORY) for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    own = {path.as_posix() for path in found if path.name != "__init__.py" and "models" not in path.parts}
    assert rows.keys() == own


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (REPOSITORY / target).exists(), target


def test_the_commands_are_those_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
