"""The web demo under load: 40 visitors at once, the first picture, and Stop.

    python benchmarks/space_load.py --model outputs/digits

It serves the model on the loopback address in a process of its own. First one visitor opens the page in a real browser and
draws with the default settings; then another one asks for 1000 steps and presses Stop; then `--clients` ask the API for the
default images again and again for `--seconds`, each with seeds of its own. Printed are the times, the failures and the memory of the
server, a fifth of the time after the beginning and at the end.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from playwright.sync_api import sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
COUNT = 8


def main() -> None:
    """Serves, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/digits")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(Path(options.model).resolve(), Path(folder)) as server:
        print_page(server)
        print_load(server, options.clients, options.seconds)
        print(f"tracebacks in the server's log: {server.said().count('Traceback')}")


class Server:
    """The demo, in a process of its own."""

    def __init__(self, model: Path, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "log.txt"
        self.environment = os.environ | {
            "DDPM_HUB_MODEL": str(model),
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(folder / "gradio"),
        }

    def __enter__(self) -> "Server":
        begun = time.monotonic()
        with self.log.open("wb") as output:
            command = [sys.executable, str(REPOSITORY / "space" / "app.py")]
            self.process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
        while self.process.poll() is None:
            try:
                httpx.get(self.url, timeout=10)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise SystemExit(self.said())
        print(f"from the command to the page: {time.monotonic() - begun:.1f} s")
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(30)

    def said(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> float:
        """What the server holds, in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


def print_page(server: Server) -> None:
    """Draws with the default settings in a browser, and stops a long drawing."""
    with sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(locale="en-GB")
        page.set_default_timeout(60_000)
        opened = time.monotonic()
        page.goto(server.url)
        page.locator("#samples-status").get_by_text("Ready.").wait_for()
        ready = time.monotonic()
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#samples-live img").first.wait_for()
        first = time.monotonic()
        page.locator("#samples-status").get_by_text("Done").wait_for()
        done = time.monotonic()
        print(f"page ready {ready - opened:.2f} s after it was asked for")
        print(f"first picture {first - ready:.2f} s and the images {done - ready:.2f} s after Generate")
        page.get_by_label("number input for Steps").first.fill("1000")
        page.get_by_label("number input for Steps").first.press("Tab")
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#samples-status").get_by_text(re.compile("Step .* of 1000")).wait_for()
        stop = page.get_by_role("button", name="Stop", exact=True).filter(visible=True)
        pressed = time.monotonic()
        stop.click()
        while " generate stopped " not in server.said() and time.monotonic() - pressed < 60:
            time.sleep(0.002)
        stopped = time.monotonic() - pressed
        (seconds,) = re.findall(r"generate stopped .*seconds=([\d.]+)", server.said())
        print(f"the computation has ended {stopped:.3f} s after Stop, {seconds} s after it began")
        browser.close()


def print_load(server: Server, clients: int, seconds: float) -> None:
    """Many visitors at once, for some time."""
    times, failures, memory = asyncio.run(_watched_load(server, clients, seconds))
    early, late = memory[len(memory) // 5], memory[-1]
    print(f"{clients} clients for {seconds:.0f} s, {COUNT} images each time, as the model is best sampled:")
    print(f"  {len(times)} answers, {len(failures)} failures, {len(times) * COUNT / seconds:.0f} images/s")
    if times:
        tail = sorted(times)[round(0.95 * (len(times) - 1))]
        print(
            f"  an answer takes {statistics.median(times):.2f} s (median), {tail:.2f} s (95 %), {max(times):.2f} s (longest)"
        )
    print(f"  memory {early:.0f} MB after {seconds / 5:.0f} s, {late:.0f} MB at the end ({late / early - 1:+.1%})")
    for failure, group in itertools.groupby(sorted(failures)):
        print(f"  failed {len(list(group))} times: {failure[:200]}")


async def load(
    url: str, clients: int, seconds: float, drawings: int = 0, first_seed: int = 0
) -> tuple[list[float], list[str]]:
    """Many visitors at once, each of whom asks for images again and again, with seeds that nobody else asks for.

    Args:
        url (`str`): the address of the demo, which ends in a slash.
        clients (`int`): how many visitors.
        seconds (`float`): nobody asks again after this time, unless fewer than `drawings` were asked for.
        drawings (`int`): how many are asked for at least.
        first_seed (`int`): the first of the seeds.

    Returns:
        The seconds that each answer took, and what went wrong in each request that failed.
    """
    times, failures = [], []
    end = time.monotonic() + seconds
    numbers = itertools.count()

    async def visit() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            while (number := next(numbers)) < drawings or time.monotonic() < end:
                begun = time.monotonic()
                failure = await _ask(client, first_seed + number * COUNT)
                if failure:
                    failures.append(failure)
                    await asyncio.sleep(0.2)
                else:
                    times.append(time.monotonic() - begun)

    await asyncio.gather(*(visit() for _ in range(clients)))
    return times, failures


async def _watched_load(server: Server, clients: int, seconds: float) -> tuple[list[float], list[str], list[float]]:
    memory, visits = [], asyncio.create_task(load(server.url, clients, seconds))
    while not visits.done():
        memory.append(server.memory())
        await asyncio.wait([visits], timeout=0.5)
    return *visits.result(), memory


async def _ask(client: httpx.AsyncClient, seed: int) -> str | None:
    """Draws once; what went wrong, if anything did."""
    try:
        asked = {"data": ["any", COUNT, seed, *[None] * 4]}  # the model's own settings
        answer = await client.post("gradio_api/call/generate", json=asked)
        if answer.status_code != 200:
            return f"HTTP {answer.status_code} {answer.text}"
        address = f"gradio_api/call/generate/{answer.json()['event_id']}"
        said = (await client.get(address)).text
    except httpx.HTTPError as error:
        return repr(error)
    if "event: complete" not in said:
        return said
    images = json.loads(said.split("event: complete\ndata: ")[1].splitlines()[0])[0]
    return None if len(images) == COUNT else f"{len(images)} images in place of {COUNT}"


if __name__ == "__main__":
    main()
