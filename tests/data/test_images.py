from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brecq.data.images import UnreadableError, is_image, map_ordered, read_image


def test_gray_palette_alpha_and_cmyk_become_rgb(tmp_path: Path) -> None:
    color = Image.new("RGB", (8, 8), (200, 40, 90))
    for mode, suffix in (("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg")):
        path = tmp_path / f"{mode}.{suffix}"
        color.convert(mode).save(path)
        image = read_image(path)
        assert (image.mode, image.size) == ("RGB", (8, 8)), mode
        if mode in ("RGBA", "P", "CMYK"):
            assert np.abs(np.asarray(image).astype(int) - (200, 40, 90)).max() < 60, mode


@pytest.mark.filterwarnings("error")
def test_transparent_palette_gives_no_warning(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.save(tmp_path / "p.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "p.png").mode == "RGB"


def test_sixteen_bit_gray_keeps_its_contrast(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels = np.asarray(read_image(tmp_path / "deep.png"))[..., 0]
    assert np.array_equal(pixels, ramp // 256)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)


def test_large_jpeg_is_decoded_smaller_but_never_below_twice_the_need(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1200)).save(tmp_path / "large.jpg")
    assert read_image(tmp_path / "large.jpg").size == (1600, 1200)
    assert read_image(tmp_path / "large.jpg", short_side=100).size == (400, 300)
    assert read_image(tmp_path / "large.jpg", short_side=700).size == (1600, 1200)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    reasons = {"text.jpg": "not an image", "empty.png": "not an image", "cut.jpg": "truncated",
               "float.tif": "floating-point", "absent.jpg": "No such file"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(UnreadableError, match=reason):
            read_image(tmp_path / name)


def test_decompression_bomb_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableError, match="exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_is_image_by_suffix_and_not_hidden() -> None:
    assert is_image(Path("a/B.JPEG"))
    assert not is_image(Path("a/._b.jpg"))
    assert not is_image(Path("a/b.txt"))


def test_map_ordered_keeps_order_and_returns_errors() -> None:
    def slow_first(path: Path) -> str:
        if path.name == "0":
            time.sleep(0.05)
        if path.name == "7":
            raise UnreadableError("seven")
        return path.name

    paths = [Path(str(i)) for i in range(40)]
    results = list(map_ordered(slow_first, paths, threads=4))
    assert [path for path, _ in results] == paths
    assert [str(result) for _, result in results] == [str(i) if i != 7 else "seven" for i in range(40)]


def test_map_ordered_stops_early_without_reading_the_rest() -> None:
    read: list[Path] = []

    def record(path: Path) -> Path:
        read.append(path)
        return path

    results = map_ordered(record, [Path(str(i)) for i in range(1000)], threads=2)
    next(results)
    results.close()
    assert len(read) < 20


def test_map_ordered_raises_other_errors() -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(map_ordered(fail, [Path("a")]))
