"""The page on which people try a translator: through its interface, and as they see it in a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from random_translator import export_random
from shell import environment, run

from dds_train import Translator
from dds_train.demo import OWN_PROMPT, result_name
from dds_train.translator import Task


@pytest.fixture(scope="module")
def ckpt(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {"lion": Task("a cat", "a lion", "make it a lion"), "dog": Task("a cat", "a dog", "make it a dog")}
    return export_random(tmp_path_factory.mktemp("demo") / "translator", tiny("epsilon"), tasks, std=0.1)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((80, 61), Image.Resampling.BICUBIC)
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "my cat.jpg", exif=exif)
    return tmp_path / "my cat.jpg"


@pytest.fixture(scope="module")
def url(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page as the command serves it; ends with Ctrl-C, as people end it."""
    folder = tmp_path_factory.mktemp("served")
    examples = folder / "examples"
    examples.mkdir()
    Image.new("RGB", (40, 40), "red").save(examples / "red.png")
    command = [sys.executable, "-m", "dds_train", "demo", f"ckpt={ckpt}", f"examples={examples}", "max_side=70"]
    nowhere = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")  # as behind a company's proxy
    env = {**environment(folder), "TMPDIR": str(folder), **nowhere}
    server = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    else:
        pytest.fail(said)
    yield found[0]
    server.send_signal(signal.SIGINT)
    rest = server.communicate(timeout=20)[0]
    assert "Traceback" not in rest
    assert list(folder.glob("dds_train_demo_*")) == []  # uploads and results are gone with the page


def test_names_of_tasks_stay_in_the_folder_of_results() -> None:
    assert result_name("/tmp/up/my cat.jpg", "../../a b") == "my cat-..-..-a-b.png"
    assert len(result_name("cat.jpg", "x" * 300)) == 250


@pytest.mark.slow
def test_the_page_edits_as_the_translator_does(url: str, ckpt: Path, photo: Path) -> None:
    client, translator = Client(url, verbose=False), Translator.from_pretrained(ckpt, device="cpu")
    sizes = set()
    for task, words, strength in (("lion", "", 1.0), ("dog", "", 1.0), ("dog", "", 0.4), (OWN_PROMPT, "a bear", 1.0)):
        (before, after), result, note = client.predict(handle_file(photo), task, words, strength, api_name="/edit")
        result = result["value"] if isinstance(result, dict) else result
        shown, edited = Image.open(after), Image.open(result)
        assert np.array_equal(np.asarray(shown), np.asarray(edited))
        small = Image.open(before)
        assert small.size == (53, 70)  # upright, and scaled down to 70
        assert "53 x 70 pixels, from 61 x 80" in note
        expected = translator(small, words or None, strength, None if words else task)
        # Scaled in floating point there, through a file of 8 bits here.
        assert np.abs(np.asarray(expected).astype(int) - np.asarray(edited)).mean() < 1
        assert Path(result).name == f"my cat-{task.replace(' ', '-')}.png"
        sizes.add(np.asarray(edited).tobytes())
    assert len(sizes) == 4


@pytest.mark.slow
def test_a_file_that_is_no_image_is_refused_in_words(url: str, tmp_path: Path) -> None:
    client = Client(url, verbose=False)
    for name, content in (("cat.jpg", b"<html>not found</html>"), ("notes.txt", b"hello"), ("cut.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
        _, _, note = client.predict(handle_file(tmp_path / name), "lion", "", 1.0, api_name="/edit")
        assert note.startswith(f"{name}: not a readable image")  # and no path of the server's
        assert "tmp" not in note


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(url: str, ckpt: Path, tmp_path: Path) -> None:
    port = re.findall(r"\d+", url)[-1]
    assert f"port={port}" in run("demo", f"ckpt={ckpt}", f"port={port}", cwd=tmp_path, code=2)


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)")
def test_in_a_browser(url: str, ckpt: Path, photo: Path, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.remote.webelement import WebElement
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for one in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(one)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))

    def wait_for(look: Callable[[], object], seconds: int = 30) -> object:
        return WebDriverWait(driver, seconds, ignored_exceptions=[Exception]).until(lambda _: look())

    def find(selector: str) -> WebElement:
        return driver.find_element(By.CSS_SELECTOR, selector)

    def images() -> list[np.ndarray]:
        """What the slider shows, by the browser's own decoding."""
        script = """
            return [...document.querySelectorAll('#both img')].map(image => {
                if (!image.complete || !image.naturalWidth) return null;
                const canvas = document.createElement('canvas');
                canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0);
                return [canvas.height, canvas.width, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
            })"""
        found = driver.execute_script(script)
        assert len(found) == 2
        assert None not in found
        return [np.array(values, np.uint8).reshape(height, width, 4)[..., :3] for height, width, values in found]

    def others(than: list[np.ndarray]) -> list[np.ndarray]:
        now = images()
        assert not np.array_equal(now[1], than[1])
        return now

    try:
        driver.get(url)
        wait_for(lambda: find("#image input[type=file]"))
        find("#image input[type=file]").send_keys(str(photo))
        first = wait_for(images)
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert [one for one in loaded if not one.startswith((url, "blob:", "data:"))] == []  # nothing from elsewhere
        assert first[0].shape == first[1].shape == (70, 53, 3)
        assert np.abs(first[0].astype(int) - first[1]).mean() > 2  # an edit, to be seen

        # Another task, and then half of its strength.
        driver.find_elements(By.CSS_SELECTOR, "#task input")[1].click()
        second = wait_for(lambda: others(first))
        script = """
            const slider = document.querySelector('#strength input[type=range]');
            slider.value = 0.5;
            for (const event of ['input', 'pointerup']) slider.dispatchEvent(new Event(event, {bubbles: true}))"""
        driver.execute_script(script)
        third = wait_for(lambda: others(second))
        translator = Translator.from_pretrained(ckpt, device="cpu")
        for shown, strength in ((second, 1.0), (third, 0.5)):
            expected = np.asarray(translator(Image.fromarray(first[0]), None, strength, "dog")).astype(int)
            assert np.abs(expected - shown[1]).mean() < 1

        find("#download").click()
        saved = wait_for(lambda: next(iter((tmp_path / "downloads").glob("*.png"))))
        assert os.path.basename(str(saved)) == "my cat-dog.png"
        assert np.array_equal(np.asarray(Image.open(str(saved)).convert("RGB")), third[1])

        # An example, with one click.
        find("#examples img").click()
        red = wait_for(lambda: others(third))
        assert np.array_equal(red[0], np.broadcast_to([255, 0, 0], (40, 40, 3)))

        # Not an image: a message, and the page goes on working.
        (tmp_path / "cat.jpg").write_bytes(b"<html>not found</html>")
        find("#image button[aria-label*=lear], #image button[aria-label*=emove]").click()
        wait_for(lambda: find("#image input[type=file]")).send_keys(str(tmp_path / "cat.jpg"))  # type: ignore[attr-defined]
        toast = wait_for(lambda: find(".toast-body.warning").text)
        assert "cat.jpg: not a readable image" in str(toast)
        assert "cat.jpg: not a readable image" in find("#note").text
        find("#image button[aria-label*=lear], #image button[aria-label*=emove]").click()
        time.sleep(0.5)
        wait_for(lambda: find("#image input[type=file]")).send_keys(str(photo))  # type: ignore[attr-defined]
        again = wait_for(lambda: others(red))
        assert np.array_equal(again[0], first[0])
    finally:
        driver.save_screenshot(str(tmp_path / "page.png"))
        driver.quit()
