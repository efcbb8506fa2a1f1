"""Requests a second of ``loredit serve`` over the loopback, with edits and without, for so many clients at a time.

    loredit apply edits --limit 64
    python benchmarks/serving.py edits

Each client sends one request after another: a fact's own prompt, to be continued by so many tokens, greedily. The first
requests of each row are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from urllib.request import Request, urlopen

from loredit.engine.storage.manifest import read_manifest


def ask(url: str, model: str, prompt: str, tokens: int) -> int:
    """Tokens that came back."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    request = Request(f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=600) as response:
        return json.load(response)["usage"]["completion_tokens"]


def rate(url: str, model: str, prompts: Sequence[str], clients: int, requests: int, tokens: int) -> tuple[float, float]:
    """Requests and tokens a second."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda prompt: ask(url, model, prompt, tokens), islice(cycle(prompts), clients)))
        begun = time.perf_counter()
        written = sum(pool.map(lambda prompt: ask(url, model, prompt, tokens), islice(cycle(prompts), requests)))
        seconds = time.perf_counter() - begun
    return requests / seconds, written / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="of 32 clients; one client sends a quarter of them")
    parser.add_argument("--tokens", type=int, default=20)
    arguments = parser.parse_args()
    prompts = [fact.prompt for facts in read_manifest(arguments.folder).facts for fact in facts]
    command = [sys.executable, "-m", "loredit", "serve", str(arguments.folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            with urlopen(f"{url}/models", timeout=60) as response:
                edited, base = (model["id"] for model in json.load(response)["data"])
            print("| clients | edited, requests/s | tokens/s | unedited, requests/s | tokens/s |")
            print("|---|---|---|---|---|")
            for clients in arguments.clients:
                requests = arguments.requests if clients > 1 else max(1, arguments.requests // 4)
                cells = [rate(url, model, prompts, clients, requests, arguments.tokens) for model in (edited, base)]
                print(f"| {clients} | " + " | ".join(f"{r:.2f} | {t:.1f}" for r, t in cells) + " |", flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
