"""The pictures of docs/pictures: terminal, report, comparison, benchmark page, as a browser shows them.

    python benchmarks/screenshots.py RUN OTHER BENCHMARK [-o docs/pictures] [--all]

RUN and OTHER are folders of zaq quantize, BENCHMARK one of zaq benchmark. Each page is shown 1300 pixels wide and
light, and 390 pixels wide and dark, as on a phone; with --all both ways at both widths. The terminal is that of a run
by `rtn` that the script makes. Needs Chromium (Debian's package chromium) and playwright, which the test extra has.
The demo's pictures are tests/cli/test_demo.py's.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
HEIGHTS = {1300: 1000, 390: 900}
WIDE, PHONE = (1300, "light"), (390, "dark")
COLORS = 64  # of a picture: flat colours and letters need no more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--all", action="store_true", help="light and dark at both widths")
    arguments = parser.parse_args()
    ways = [(w, s) for w in HEIGHTS for s in ("light", "dark")] if arguments.all else [WIDE, PHONE]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = {
            "terminal": terminal(folder),
            "report": arguments.run / "report.html",
            "compare": comparison(arguments.run, arguments.other, folder),
            "benchmark": arguments.benchmark / "index.html",
        }
        for page, file in pages.items():
            for width, scheme in [WIDE] if page == "terminal" else ways:
                target = arguments.output / f"{page}-{width}-{scheme}.png"
                shoot(file, width, scheme, target)
                print(f"{target}: {target.stat().st_size / 1024:.0f} KB")


def terminal(folder: Path) -> Path:
    """What a run says, as rich draws a terminal."""
    command = ["quantize", "--bits", "w8a8", "--method", "rtn", "-o", "out"]
    whole = [sys.executable, "-m", "zaq", *command]
    done = subprocess.run(whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    console = Console(record=True, width=112, file=io.StringIO())
    console.print(Text(f"$ zaq {' '.join(command)}", style="bold"))
    console.print(Text.from_ansi(done.stdout))
    page = folder / "terminal.html"
    page.write_text(f"<!doctype html><body style='margin: 24px'>{console.export_svg(title='zaq')}")
    return page


def comparison(run: Path, other: Path, folder: Path) -> Path:
    page = folder / "compare.html"
    subprocess.run([sys.executable, "-m", "zaq", "compare", run, other, "-o", page], check=True, stdout=subprocess.PIPE)
    return page


def shoot(page: Path, width: int, scheme: str, target: Path) -> None:
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        shown = browser.new_page(viewport={"width": width, "height": HEIGHTS[width]})
        shown.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        shown.goto(page.resolve().as_uri())
        picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
        browser.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLORS).save(target, optimize=True)


if __name__ == "__main__":
    main()
