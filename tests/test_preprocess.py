from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import preprocess, tensors
from nextdetr.errors import ConfigError, DataError
from nextdetr.preprocess import Reading, as_image, image_size, load_image, to_rgb
from nextdetr.tensors import choose_device, resize_to_tensor


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return image.getpixel((x, y))


class TestResize:
    def test_equals_pillow_antialiased_bilinear(self, photo):
        expected = np.asarray(photo.resize((24, 24), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        tensor = resize_to_tensor(photo, 24)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, torch.from_numpy(expected).permute(2, 0, 1))

    def test_matches_the_transformers_processor(self, photo):
        transformers = pytest.importorskip("transformers")
        processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
        expected = processor(images=photo, return_tensors="pt")["pixel_values"][0]
        # its fast variant resizes in torch, which rounds one grey level differently here and there
        assert (resize_to_tensor(photo, 64) - expected).abs().max() <= 1.01 / 255

    def test_an_image_of_the_right_size_is_untouched(self, photo):
        square = photo.crop((0, 0, 32, 32))
        assert torch.equal(
            resize_to_tensor(square, 32).mul(255).round().byte(), torch.tensor(np.asarray(square)).permute(2, 0, 1)
        )

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize(
        ("width", "height", "size"),
        [
            (1920, 1080, 640),
            (1081, 799, 320),
            (733, 719, 704),
            (900, 640, 640),
            (640, 1111, 640),
            (901, 602, 800),
            (960, 600, 15),
            (1000, 1280, 640),
            (700, 1280, 640),
        ],
    )
    def test_a_large_picture_equals_the_whole_in_two_halves_too(self, monkeypatch, width, height, size, threads):
        rows = []
        fill = preprocess._fill
        monkeypatch.setattr(preprocess, "_fill", lambda *given: (rows.append(given[2:]), fill(*given))[1])
        small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8))
        picture = small.resize((width, height), Image.Resampling.NEAREST)
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        planes = preprocess.resize_to_planes(picture, size, threads=threads)
        assert np.array_equal(planes, expected.transpose(2, 0, 1))
        # Height / size is a fraction of a power of two. Of 1000 by 1280, Pillow 13 resizes the halves in another order.
        split = threads > 1 and (width, height) in ((1920, 1080), (900, 640), (960, 600), (700, 1280))
        assert sorted(rows) == ([(0, size // 2), (size // 2, size)] if split else [(0, size)])

    @pytest.mark.parametrize(
        ("width", "height", "size"),
        [(1920, 1080, 640), (1081, 799, 320), (640, 1111, 640), (901, 602, 800), (1000, 1280, 33)],
    )
    def test_torch_resizes_large_pictures_within_one_grey_level(self, monkeypatch, width, height, size):
        small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8))
        picture = small.resize((width, height), Image.Resampling.NEAREST)
        expected = preprocess.resize_to_planes(picture, size)
        monkeypatch.setattr(tensors, "resize_to_planes", None)  # not called
        monkeypatch.setattr(tensors, "_FAST", (torch.backends.cpu.get_cpu_capability(),))
        found = resize_to_tensor(picture, size)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        levels = (found.numpy() - expected) * 255
        assert np.abs(levels).max() <= 1.001
        assert (np.abs(levels) > 0.5).mean() < 0.01

    def test_large_pictures_with_a_transparent_colour_are_resized_alike(self):
        picture = Image.new("RGB", (900, 640), (10, 20, 30))
        picture.info["transparency"] = (10, 20, 30)
        levels = (resize_to_tensor(picture, 64).numpy() - preprocess.resize_to_planes(picture, 64)) * 255
        assert np.abs(levels).max() <= 1.001

    @pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
    def test_only_processors_with_the_fast_kernel_resize_in_torch(self, monkeypatch, capability):
        used, resize = [], tensors.resize_to_planes
        monkeypatch.setattr(tensors, "resize_to_planes", lambda *given, **more: (used.append(1), resize(*given, **more))[1])
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        resize_to_tensor(Image.new("RGB", (900, 640)), 64)
        assert bool(used) == (capability == "DEFAULT")

    def test_many_threads_may_resize_large_pictures_at_once(self):
        generator = np.random.default_rng(0)
        pictures = [Image.fromarray(generator.integers(0, 256, (700, 800, 3), dtype=np.uint8)) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda picture: preprocess.resize_to_planes(picture, 64, threads=2), pictures * 3))
        expected = [preprocess.resize_to_planes(picture, 64, threads=1) for picture in pictures]
        assert all(np.array_equal(*pair) for pair in zip(found, expected * 3, strict=True))

    def test_takes_arrays_and_other_modes(self, photo):
        assert torch.equal(resize_to_tensor(np.asarray(photo), 20), resize_to_tensor(photo, 20))
        grey = resize_to_tensor(photo.convert("L"), 20)
        assert torch.equal(grey[0], grey[2])

    def test_the_callers_image_is_not_changed(self, photo):
        before = photo.tobytes()
        resize_to_tensor(photo.crop((0, 0, 32, 32)), 32).zero_()
        resize_to_tensor(photo, 32).zero_()
        assert photo.tobytes() == before


class TestModes:
    def test_rgb_is_not_copied(self, photo):
        assert to_rgb(photo) is photo

    @pytest.mark.parametrize(("most", "bits", "seen"), [
        (4095, 16, [0, 62, 255]), (4095, 12, [0, 62, 255]), (4095, 10, [0, 249, 255]), (4095, 14, [0, 16, 64]),
        (65535, 16, [0, 4, 16]), (65535, 12, [0, 62, 255]),
    ])  # fmt: skip
    def test_bits_count_in_a_pgm_that_states_its_largest_value(self, tmp_path, most, bits, seen):
        """Pillow scales its values to 16 bits unless that is 65535, so that 12 bits seemed to be exceeded everywhere."""
        values = [0, 1000, 4095]
        plain, binary = tmp_path / "plain.pgm", tmp_path / "binary.pgm"
        plain.write_text(f"P2\n3 1\n{most}\n{' '.join(map(str, values))}\n")
        binary.write_bytes(b"P5\n3 1\n%d\n" % most + np.array(values, ">u2").tobytes())
        for source in (plain, binary, binary.read_bytes(), Image.open(binary)):
            image = as_image(source, Reading(bits=bits))
            assert [pixel(image, x)[0] for x in range(3)] == seen

    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path):
        values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        Image.fromarray(values).save(tmp_path / "deep.tif")
        for name in ("deep.png", "deep.tif"):
            assert np.asarray(load_image(tmp_path / name))[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
        assert np.asarray(to_rgb(Image.fromarray(values.astype(np.int32))))[0, 1].tolist() == [100] * 3

    def test_transparency_is_laid_on_white(self, tmp_path):
        Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
        assert pixel(load_image(tmp_path / "clear.png")) == (255, 255, 255)
        assert pixel(to_rgb(Image.new("RGBA", (4, 4), (200, 0, 0, 255)))) == (200, 0, 0)
        assert pixel(to_rgb(Image.new("LA", (4, 4), (0, 128)))) == (127, 127, 127)

    def test_palettes(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 210, 220])
        image.putpixel((1, 0), 1)
        assert pixel(to_rgb(image), 1) == (200, 210, 220)
        image.save(tmp_path / "palette.png", transparency=1)
        assert pixel(load_image(tmp_path / "palette.png")) == (10, 20, 30)
        assert pixel(load_image(tmp_path / "palette.png"), 1) == (255, 255, 255)

    def test_colour_key(self, tmp_path):
        Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
        assert pixel(load_image(tmp_path / "key.png")) == (255, 255, 255)

    @pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV"])
    def test_other_modes(self, mode, photo):
        assert to_rgb(photo.convert(mode)).mode == "RGB"

    def test_cmyk_jpeg(self, tmp_path):
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
        red, green, blue = pixel(load_image(tmp_path / "red.jpg"))
        assert red > 240
        assert max(green, blue) < 15

    def test_floats(self):
        assert pixel(to_rgb(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)))) == (128, 128, 128)
        assert pixel(to_rgb(Image.fromarray(np.full((2, 2), 200, dtype=np.float32)))) == (200, 200, 200)
        with pytest.raises(DataError, match="scale it"):
            to_rgb(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)))


class TestFiles:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, orientation):
        from PIL import ImageOps

        image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "turned.png", exif=exif)
        loaded = load_image(tmp_path / "turned.png")
        with Image.open(tmp_path / "turned.png") as stored:
            expected = ImageOps.exif_transpose(stored)
        assert np.array_equal(np.asarray(loaded), np.asarray(expected))
        assert image_size(tmp_path / "turned.png") == loaded.size

    def test_a_pil_image_is_taken_as_it_lies(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
        assert as_image(tmp_path / "turned.jpg").size == (4, 8)
        with Image.open(tmp_path / "turned.jpg") as image:
            assert as_image(image).size == (8, 4)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_a_damaged_exif_block_costs_no_picture(self, tmp_path, photo):
        photo.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
        assert load_image(tmp_path / "a.jpg").size == photo.size

    def test_unicode_path(self, tmp_path, photo):
        path = tmp_path / "Blut ж 血.png"
        photo.save(path)
        assert np.array_equal(np.asarray(load_image(str(path))), np.asarray(photo))

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.jpg: there is no such"):
            load_image(tmp_path / "nowhere.jpg")
        with pytest.raises(DataError, match="folder"):
            load_image(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n"])
    def test_not_an_image(self, tmp_path, content):
        (tmp_path / "bad.jpg").write_bytes(content)
        for read in (load_image, image_size):
            with pytest.raises(DataError, match=r"bad\.jpg"):
                read(tmp_path / "bad.jpg")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "gif"])
    def test_truncated(self, tmp_path, photo, suffix):
        path = tmp_path / f"cut.{suffix}"
        photo.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"cut\.{suffix}"):
            load_image(path)
        with pytest.raises(DataError, match=r"cannot be read|is not an image"):
            as_image(path)

    def test_a_lazily_opened_truncated_image(self, tmp_path, photo):
        photo.save(tmp_path / "cut.jpg")
        (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:800])
        with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(DataError, match=r"cut\.jpg"):
            resize_to_tensor(as_image(image), 32)

    def test_decompression_bomb(self, tmp_path, photo, monkeypatch):
        photo.save(tmp_path / "bomb.png")  # 53 x 37
        assert load_image(tmp_path / "bomb.png", Reading(max_pixels=1961)).size == (53, 37)
        with pytest.raises(DataError, match=r"bomb\.png is too large: 53 x 37 are 1,961 pixels, and the limit is 1,960"):
            load_image(tmp_path / "bomb.png", Reading(max_pixels=1960))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own guard has no say
        assert load_image(tmp_path / "bomb.png").size == (53, 37)

    def test_postscript_is_never_run(self, tmp_path, monkeypatch):
        from PIL import EpsImagePlugin

        def refuse(*_args, **_keywords):
            pytest.fail("Ghostscript was asked to run the file")

        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
        (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
        with pytest.raises(DataError, match=r"x\.jpg is not an image"):
            load_image(tmp_path / "x.jpg")


class TestArrays:
    def test_accepted(self):
        grey = np.array([[0, 51], [102, 255]], dtype=np.uint8)
        expected = np.repeat(grey[:, :, None], 3, axis=2)
        for array in (
            grey,
            grey[:, :, None],
            expected,
            grey / 255,
            (grey / 255).astype(np.float16),
            grey.astype(np.uint16) * 257,
        ):
            assert np.array_equal(np.asarray(as_image(array)), expected)

    def test_views_need_not_be_contiguous(self, photo):
        array = np.asarray(photo)[::-1, ::2]
        assert np.array_equal(np.asarray(as_image(array)), array)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((3, 8, 8), np.uint8), "channels-first"),
            (np.zeros((8, 8, 4), np.uint8), "alpha"),
            (np.zeros((1, 8, 8, 3), np.uint8), "list"),
            (np.zeros((8, 0, 3), np.uint8), "shape"),
            (np.zeros(8, np.uint8), "shape"),
            (np.zeros((8, 8, 3), np.int64), "int64"),
            (np.full((8, 8, 3), 200.0), "fractions"),
            (np.full((8, 8, 3), -0.1), "fractions"),
            (np.full((8, 8, 3), np.nan), "fractions"),
        ],
    )
    def test_refused(self, array, message):
        with pytest.raises(DataError, match=message):
            as_image(array)

    def test_other_types(self):
        with pytest.raises(DataError, match="not an image"):
            as_image(b"abc")
        with pytest.raises(DataError, match="not set"):
            as_image({1})


class TestDevice:
    def test_choice(self):
        assert choose_device("cpu") == torch.device("cpu")
        assert choose_device().type in {"cpu", "cuda", "mps"}

    def test_unknown(self):
        with pytest.raises(ConfigError, match="toaster"):
            choose_device("toaster")
