"""Movies, camera maps and tables: against tifffile, h5py and pandas, cut short in every way, there and back."""

import itertools
import json
import math
import os
import stat
import tracemalloc
from dataclasses import replace
from importlib.util import find_spec

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.io import imread
from test_data import real

from smlmtut import data, io
from smlmtut.imaging.camera import Camera

MOVIE = np.random.default_rng(0).integers(0, 60_000, (12, 9, 7)).astype(np.uint16)
WRITERS = {
    "plain.tif": {"photometric": "minisblack"},
    "no_metadata.tif": {"photometric": "minisblack", "metadata": None},
    "big.tif": {"bigtiff": True},
    "big_endian.tif": {"byteorder": ">"},
    "imagej.tif": {"imagej": True},
    "imagej_big_endian.tif": {"imagej": True, "byteorder": ">", "metadata": {"axes": "TYX"}},
    "ome.ome.tif": {"metadata": {"axes": "TYX"}},
    "ome_five_axes.ome.tif": {"metadata": {"axes": "TCZYX"}},
    "deflate.tif": {"compression": "zlib"},
    "lzma.ome.tif": {"compression": "lzma", "metadata": {"axes": "TYX"}},
    "tiled.tif": {"tile": (16, 16), "compression": "zlib"},
    "strips.tif": {"rowsperstrip": 2, "compression": "zlib"},
}


def written(folder, name):
    path = folder / name
    if name == "pages.tif":
        with tifffile.TiffWriter(path) as writer:
            for frame in MOVIE:
                writer.write(frame, contiguous=False, metadata=None)
        return path
    array = MOVIE[:, None, None] if name == "ome_five_axes.ome.tif" else MOVIE
    tifffile.imwrite(path, array, **WRITERS[name])
    return path


ALL_WRITERS = [*WRITERS, "pages.tif"]


@pytest.mark.parametrize("name", ALL_WRITERS)
def test_a_movie_reads_as_it_was_written(tmp_path, name):
    with io.read_movie(written(tmp_path, name)) as movie:
        assert movie.shape == MOVIE.shape and len(movie) == 12 and movie.dtype == np.uint16
        assert movie.dtype.isnative and movie[:2].dtype.isnative
        np.testing.assert_array_equal(movie[:], MOVIE)


INDICES = [0, 5, -1, np.int64(3), slice(2, 5), slice(None, None, -1), slice(9, 99), slice(4, 4), [3, 1, 1]]
TUPLES = [(3, 2), (slice(1, 3), slice(2, 5), -1), (slice(0, 2), ..., slice(0, 3)), (2, slice(None), 1)]


@pytest.mark.parametrize("name", ["plain.tif", "deflate.tif"])
@pytest.mark.parametrize("key", [*INDICES, *TUPLES], ids=str)
def test_indices_mean_what_they_mean_for_numpy(tmp_path, name, key):
    with io.read_movie(written(tmp_path, name)) as movie:
        np.testing.assert_array_equal(movie[key], MOVIE[key])
        assert movie[key].flags.writeable or np.ndim(movie[key]) == 0


@pytest.mark.parametrize("name", ["plain.tif", "deflate.tif"])
def test_iteration_covers_the_movie_once(tmp_path, name):
    with io.read_movie(written(tmp_path, name)) as movie:
        np.testing.assert_array_equal(np.stack(list(movie)), MOVIE)
        with pytest.raises(IndexError):
            movie[12]


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_that_are_series_of_their_own_are_a_movie(tmp_path, compression):
    """What a loop around TiffWriter.write makes; several shapes are still an error, and so are the images of OME."""
    for name, metadata in (("loop.tif", {}), ("loop.ome.tif", {"axes": "YX"})):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for frame in MOVIE:
                writer.write(frame, contiguous=False, compression=compression, metadata=metadata)
    with tifffile.TiffFile(tmp_path / "loop.tif") as file:
        assert len(file.series) == 12
    with io.read_movie(tmp_path / "loop.tif") as movie:
        assert movie.shape == MOVIE.shape
        np.testing.assert_array_equal(movie[:], MOVIE)
        np.testing.assert_array_equal(movie[-1, 2:], MOVIE[-1, 2:])
    raw = (tmp_path / "loop.tif").read_bytes()
    for length in np.linspace(1, len(raw) - 1, 30).astype(int):
        (tmp_path / "cut.tif").write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"cut\.tif"):
            io.read_movie(tmp_path / "cut.tif")
    with pytest.raises(ValueError, match="must hold one image series, got 12"):
        io.read_movie(tmp_path / "loop.ome.tif")
    with tifffile.TiffWriter(tmp_path / "loop.tif") as writer:
        for frame in (MOVIE[0], MOVIE[1, :5]):
            writer.write(frame, contiguous=False)
    with pytest.raises(ValueError, match="must hold one image series, got 2 of shapes"):
        io.read_movie(tmp_path / "loop.tif")


def test_an_ome_movie_in_two_files_reads_without_a_warning(tmp_path):
    """Each file names both; tifffile warns of reading from a closed file unless one opens the other again."""
    files = [("a.ome.tif", 0), ("b.ome.tif", 6)]
    parts = "".join(
        f'<TiffData IFD="0" FirstT="{first}" PlaneCount="6"><UUID FileName="{name}">urn:uuid:{first}</UUID></TiffData>'
        for name, first in files
    )
    for name, first in files:
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{first}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            f'SizeX="7" SizeY="9" SizeZ="1" SizeC="1" SizeT="12">{parts}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / name, MOVIE[first : first + 6], description=xml, metadata=None)
    for name, _ in files:
        with io.read_movie(tmp_path / name) as movie:
            np.testing.assert_array_equal(movie[:], MOVIE)


@pytest.mark.parametrize("suffix", [".nd2", ".czi", ".lsm", ".dcimg"])
def test_formats_of_makers_say_how_to_convert(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        io.read_movie(tmp_path / f"movie{suffix}")
    (tmp_path / f"movie{suffix}").write_bytes(b"anything")
    with pytest.raises(ValueError, match=f"movie{suffix} must be a TIFF movie, .*convert it.*Bio-Formats"):
        io.read_movie(tmp_path / f"movie{suffix}")


@pytest.mark.parametrize("shape", [(3, 9, 7), (9, 7, 3)])
def test_frames_taken_for_colours_get_a_hint(tmp_path, shape):
    tifffile.imwrite(tmp_path / "rgb.tif", np.ones(shape, np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="must hold grey frames.*photometric='minisblack'"):
        io.read_movie(tmp_path / "rgb.tif")


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="the codecs are there")
@pytest.mark.parametrize(("tag", "value", "name"), [("Compression", 5, "LZW"), ("Compression", 50000, "ZSTD"),
                                                    ("Predictor", 3, "FLOATINGPOINT")])  # fmt: skip
def test_a_codec_that_is_not_there_names_the_extra(tmp_path, tag, value, name):
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, MOVIE[0], compression="zlib", predictor=True)
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[tag].valueoffset
    with open(path, "r+b") as raw:
        raw.seek(place)
        raw.write(value.to_bytes(2, "little"))
    with pytest.raises(ValueError, match=rf"codec is not installed: .*{name}.*pip install 'smlmtut\[microscope\]'"):
        io.read_movie(path)


def test_a_closed_movie_says_so(tmp_path):
    with io.read_movie(written(tmp_path, "plain.tif")) as movie:
        pass
    with pytest.raises(ValueError, match=r"plain\.tif is closed"):
        movie[0]


@pytest.mark.parametrize("name", ["plain.tif", "deflate.tif"])
def test_frames_go_into_torch(tmp_path, name):
    with io.read_movie(written(tmp_path, name)) as movie:
        assert torch.from_numpy(movie[1:3]).shape == (2, 9, 7)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_one_frame_does_not_load_the_movie(tmp_path, compression):
    movie = np.zeros((64, 256, 256), np.uint16)  # 8 MiB
    tifffile.imwrite(tmp_path / "large.tif", movie, compression=compression)
    tracemalloc.start()
    with io.read_movie(tmp_path / "large.tif") as opened:
        opened[40]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21  # a frame is 2^17 bytes; the rest is tifffile's description of 64 pages


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux tells the memory of each mapped file")
def test_release_memory_gives_back_what_was_read(tmp_path):
    def resident() -> int:
        """Memory of the mapped file in kB."""
        with open("/proc/self/smaps") as maps:
            _, _, entry = maps.read().partition(str(tmp_path / "large.tif"))
        return int(entry.partition("Rss:")[2].split()[0])

    frames = np.full((64, 256, 256), 7, np.uint16)  # 8 MiB
    io.write_movie(tmp_path / "large.tif", frames)
    with io.read_movie(tmp_path / "large.tif") as movie:
        movie[:]
        assert resident() > 8000
        movie.release_memory()
        assert resident() < 100
        np.testing.assert_array_equal(movie[60:], frames[60:])
    with io.read_movie(written(tmp_path, "deflate.tif")) as movie:
        movie.release_memory()  # nothing is mapped


def test_the_real_movie_is_what_tifffile_reads():
    path = real("sptnet_af647_slb.tif")
    np.testing.assert_array_equal(data.af647_movie(), tifffile.imread(path))
    with io.read_movie(path) as movie:
        assert isinstance(movie[7].sum().item(), float)
        np.testing.assert_array_equal(movie[7:9, 10:20], tifffile.imread(path)[7:9, 10:20])


@pytest.mark.parametrize("name", ALL_WRITERS)
def test_a_truncated_movie_is_refused_wherever_it_is_cut(tmp_path, name):
    whole = written(tmp_path, name).read_bytes()
    cut = tmp_path / ("cut_" + name)
    refused = 0
    lengths = np.unique(np.linspace(1, len(whole) - 1, 60).astype(int))
    for length in lengths:
        cut.write_bytes(whole[:length])
        try:
            with io.read_movie(cut) as movie:
                # what may be missing is padding after the last value, never a pixel
                np.testing.assert_array_equal(movie[:], MOVIE, err_msg=f"cut after {length} bytes")
        except ValueError as error:
            refused += 1
            assert "cut_" + name in str(error)
    assert refused >= len(lengths) - 1


def test_the_truncated_real_movie_is_refused_where_tifffile_shows_one_frame(tmp_path):
    raw = real("sptnet_af647_slb.tif").read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(raw[: len(raw) * 97 // 100])
    with tifffile.TiffFile(cut) as file:
        assert len(file.pages) == 1  # the trap: no error, 29 frames gone
    with pytest.raises(io.TruncatedFile, match="truncated"):
        io.read_movie(cut)


def test_a_truncated_frame_after_an_intact_directory_is_refused(tmp_path):
    path = tmp_path / "one.tif"
    tifffile.imwrite(path, MOVIE[0])  # one frame: its pixels come last
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(io.TruncatedFile, match=r"one\.tif is truncated"):
        io.read_movie(path)


def test_missing_pixels_before_intact_directories_are_found(tmp_path):
    path = tmp_path / "hole.tif"
    tifffile.imwrite(path, MOVIE, compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        page = file.pages[5]
        assert isinstance(page, tifffile.TiffPage)
        tag = page.tags["StripOffsets"]
    with open(path, "r+b") as raw:  # the strip of frame 5 now claims to lie beyond the end
        raw.seek(tag.offset + 8)
        raw.write((10**6).to_bytes(4, "little"))
    with pytest.raises(io.TruncatedFile, match="frame 5"):
        io.read_movie(path)


def test_a_damaged_frame_is_named(tmp_path):
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, MOVIE, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[5].dataoffsets[0]
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(20))
    with io.read_movie(path) as movie:
        np.testing.assert_array_equal(movie[4], MOVIE[4])
        with pytest.raises(ValueError, match=r"damaged\.tif: frame 5 cannot be decoded"):
            movie[5]


def test_a_loop_of_directories_is_refused(tmp_path):
    path = tmp_path / "loop.tif"
    tifffile.imwrite(path, MOVIE[:2], metadata=None)
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
        page = file.pages[1]
        assert isinstance(page, tifffile.TiffPage)
        count = len(page.tags)
    with open(path, "r+b") as raw:
        raw.seek(second + 2 + 12 * count)
        raw.write(first.to_bytes(4, "little"))
    with pytest.raises(ValueError, match="loop"):
        io.read_movie(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("name", ["movie.tif", "movie.ome.tif"])
def test_writing_keeps_type_and_values(tmp_path, dtype, name):
    frames = (MOVIE % 200).astype(dtype)
    io.write_movie(tmp_path / name, frames)
    with io.read_movie(tmp_path / name) as movie:
        assert movie.dtype == dtype
        np.testing.assert_array_equal(movie[:], frames)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / name), frames)
    with tifffile.TiffFile(tmp_path / name) as file:
        assert file.is_ome == (".ome." in name)


STATED = {
    "nm.ome.tif": {"PhysicalSizeX": 108.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 108.0,
                   "PhysicalSizeYUnit": "nm"},
    "default.ome.tif": {"PhysicalSizeX": 0.108, "PhysicalSizeY": 0.108},  # OME's default unit is the micrometre
    "mm.ome.tif": {"PhysicalSizeX": 1.08e-4, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 1.08e-4,
                   "PhysicalSizeYUnit": "mm"},
    "um.tif": {"unit": "um"}, "micron.tif": {"unit": "micron"}, "escaped.tif": {"unit": r"\u00B5m"},
    "nm.tif": {"unit": "nm"},
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_the_pixel_size_of_ome_and_imagej(tmp_path, name):
    more = {}
    if ".ome." not in name:
        more = {"imagej": True, "resolution": (1 / 108 if name == "nm.tif" else 1e3 / 108,) * 2}
    tifffile.imwrite(tmp_path / name, MOVIE, metadata={"axes": "TYX", **STATED[name]}, **more)
    with io.read_movie(tmp_path / name) as movie:
        assert movie.pixel_size_nm == pytest.approx(108, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "metadata", "more"),
    [
        ("plain.tif", {}, {"resolution": (72, 72)}),
        ("nothing.ome.tif", {}, {}),
        ("not_square.ome.tif", {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2}, {}),
        ("negative.ome.tif", {"PhysicalSizeX": -0.1, "PhysicalSizeY": -0.1}, {}),
        ("pixels.ome.tif", {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1.0}, {}),
        ("print.tif", {"unit": "inch"}, {"imagej": True, "resolution": (72, 72)}),
        ("zero.tif", {"unit": "um"}, {"imagej": True, "resolution": (0, 0)}),
        ("no_unit.tif", {}, {"imagej": True, "resolution": (10, 10)}),
    ],
)
def test_no_pixel_size_where_none_is_stated(tmp_path, name, metadata, more):
    tifffile.imwrite(tmp_path / name, MOVIE, metadata={"axes": "TYX", **metadata}, **more)
    with io.read_movie(tmp_path / name) as movie:
        assert movie.pixel_size_nm is None


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_written_files_state_their_pixel_size_and_axes(tmp_path, dtype, suffix):
    frames = (MOVIE % 200).astype(dtype)
    io.write_movie(tmp_path / f"movie{suffix}", frames, 108)
    io.write_image(tmp_path / f"image{suffix}", frames[0], pixel_size_nm=27)
    for name, wanted, axes, pixel in (("movie", frames, "TYX", 108), ("image", frames[0], "YX", 27)):
        with tifffile.TiffFile(tmp_path / f"{name}{suffix}") as file:
            assert file.series[0].axes == axes and file.series[0].shape == wanted.shape
            np.testing.assert_array_equal(file.asarray(), wanted)
            if suffix == ".tif" and dtype in ("int32", "float64"):  # types that ImageJ does not know
                assert file.pages.first.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
                numerator, denominator = file.pages.first.tags["XResolution"].value
                assert 1e7 * denominator / numerator == pytest.approx(pixel, rel=1e-6)
                continue
        with io.read_movie(tmp_path / f"{name}{suffix}") as movie:
            assert movie.pixel_size_nm == pytest.approx(pixel, rel=1e-6)
    stacks = np.ones((2, 3, 6, 5), np.float32)
    io.write_stacks(tmp_path / "stacks.tif", stacks, stacks.shape, 27)
    with tifffile.TiffFile(tmp_path / "stacks.tif") as file:
        assert file.series[0].axes == "TZYX" and file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "um"
    with pytest.raises(ValueError, match="pixel_size_nm must be finite and positive, got -1"):
        io.write_movie(tmp_path / "movie.tif", frames, -1)


@pytest.mark.parametrize("kind", [list, iter, lambda x: map(torch.from_numpy, x)])
def test_stacks_are_a_hyperstack(tmp_path, kind):
    images = np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype(np.float32)
    io.write_stacks(tmp_path / "stacks.tif", kind(list(images)), images.shape)
    with tifffile.TiffFile(tmp_path / "stacks.tif") as file:
        assert file.is_imagej and file.imagej_metadata is not None and len(file.pages) == 12
        assert file.imagej_metadata["frames"] == 3 and file.imagej_metadata["slices"] == 4
        assert np.array_equal(file.asarray(), images)
    assert len(list(tmp_path.iterdir())) == 1


def test_stacks_of_one_frame_are_a_movie_of_samples(tmp_path):
    images = np.ones((1, 4, 6, 5), np.float32)
    io.write_stacks(tmp_path / "stacks.tif", images, images.shape)
    with io.read_movie(tmp_path / "stacks.tif") as movie:
        assert movie.shape == (4, 6, 5)


@pytest.mark.parametrize(
    ("stacks", "shape", "message"),
    [
        (np.ones((2, 4, 6, 5)), (3, 4, 6, 5), "stacks must be 3, got 2"),
        (np.ones((3, 4, 6, 5)), (2, 4, 6, 5), "stacks must be 2 of shape .* got number 3"),
        (np.ones((2, 4, 6, 5)), (2, 4, 5, 6), r"shape \(4, 5, 6\), got number 1: \(4, 6, 5\)"),
        (np.ones((0, 4, 6, 5)), (0, 4, 6, 5), "shape must be a whole number"),
    ],
)
def test_stacks_of_another_shape_leave_no_file(tmp_path, stacks, shape, message):
    with pytest.raises(ValueError, match=message):
        io.write_stacks(tmp_path / "stacks.tif", stacks, shape)
    with pytest.raises(ValueError, match="path must end in .tif or .tiff"):
        io.write_stacks(tmp_path / "stacks.png", stacks, shape)
    assert not list(tmp_path.iterdir())


def test_writing_takes_a_tensor_and_one_frame_stays_a_movie(tmp_path):
    io.write_movie(tmp_path / "one.tif", torch.ones(1, 4, 5))
    with io.read_movie(tmp_path / "one.tif") as movie:
        assert movie.shape == (1, 4, 5) and movie[0].shape == (4, 5)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "movie.tif"
    io.write_movie(path, MOVIE)
    before = path.read_bytes()

    def full(file, *_, **__):
        file.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OSError, match="no space"):
        io.write_movie(path, MOVIE[:3])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["movie.tif"]


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    io.write_movie(tmp_path / "movie.tif", MOVIE)
    mode = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("movie.tif", "other")]
    assert mode[0] == mode[1]


def test_a_map_is_found_whatever_it_is_called(tmp_path):
    values = np.random.default_rng(1).uniform(1, 2, (6, 5)).astype(np.float32)
    with h5py.File(tmp_path / "map.h5", "w") as file:
        file["deep/inside/gain map"] = values
        file["a list"] = np.arange(4)
        file["a note"] = "taken in the dark"
    np.testing.assert_array_equal(io.read_map(tmp_path / "map.h5"), values.astype(np.float64))
    with h5py.File(tmp_path / "map.h5", "a") as file:
        file["offset"] = values + 1
    np.testing.assert_array_equal(io.read_map(tmp_path / "map.h5", "offset"), (values + 1).astype(np.float64))


# -- descriptions of a camera --------------------------------------------------------------------------------------


def described(folder, text: str, maps=("gain",), shape=(6, 5)):
    """camera.yaml with this text in a folder of its own, and maps beside it."""
    (folder / "setup").mkdir(parents=True)
    for i, name in enumerate(maps):
        with h5py.File(folder / "setup" / f"{name}.hdf5", "w") as file:
            file["map"] = 1 + i + np.arange(math.prod(shape)).reshape(shape) / 10
    (folder / "setup" / "camera.yaml").write_text(text)
    return folder / "setup" / "camera.yaml"


def test_a_camera_of_numbers(tmp_path):
    text = "gain: 2\noffset: 100.5\nread_variance: 2e1\nsaturation: 65535\nquantum_efficiency: 0.9\npixel_size_nm: 108"
    found = io.read_camera(described(tmp_path, text))
    assert found == io.CameraDescription(2, 100.5, 20.0, 65535, 0.9, 108)
    assert found.camera() == found.camera((20, 30)) == Camera(2, 100.5, 20.0, 0.9, 65535)
    (tmp_path / "setup" / "camera.yaml").write_text("offset: 3")
    assert io.read_camera(tmp_path / "setup" / "camera.yaml") == io.CameraDescription(offset=3)


def test_a_camera_of_maps_and_numbers(tmp_path, monkeypatch):
    """Paths start at the file's folder, whatever the current one is; the movie shows a part."""
    monkeypatch.chdir(tmp_path)
    text = "gain: gain.hdf5\noffset: ../setup/offset.hdf5\nread_variance: 4.0\ncrop: [2, 1]"
    found = io.read_camera(described(tmp_path, text, ("gain", "offset")))
    whole, part = found.camera(), found.camera((3, 4))
    assert whole.shape == (6, 5) and whole.read_variance == 4
    assert isinstance(part.gain, torch.Tensor) and isinstance(part.offset, torch.Tensor)
    gain = io.read_map(tmp_path / "setup" / "gain.hdf5")
    np.testing.assert_array_equal(part.gain, gain[2:5, 1:5])
    np.testing.assert_array_equal(part.offset, gain[2:5, 1:5] + 1)
    assert replace(found, crop=None).camera((6, 5)).shape == (6, 5)


KEYS = "gain, offset, read_variance, saturation, quantum_efficiency, pixel_size_nm, crop, photon_units"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gian: 2", f"must have the keys {KEYS} only, got 'gian'"),
        ("gain: 2\n3: 4", "only, got 3"),
        ("gain: none.hdf5", "gain must be a number or the path of an HDF5 map, got 'none.hdf5': there is no such file"),
        ("gain: [1, 2]", r"gain must be a number or the path of an HDF5 map, got \[1, 2\]"),
        ("offset: true", "offset must be a number or the path of an HDF5 map, got True"),
        ("read_variance:", "read_variance must be a number or the path of an HDF5 map, got None"),
        ("saturation: gain.hdf5", "saturation must be a number, got 'gain.hdf5'"),
        ("pixel_size_nm: 0", "pixel_size_nm must be finite and positive, got 0"),
        ("gain: -1", "gain must be finite and positive, got -1"),
        ("offset: .nan", "offset must be finite, got nan"),
        ("read_variance: -4", "read_variance must be finite and not negative, got -4"),
        ("crop: 3", r"crop must be \[row, column\], for instance \[128, 256\], got 3"),
        ("crop: [1, 2, 3]", r"crop must be \[row, column\]"),
        ("crop: [1, -2]", "crop's column must be a whole number of at least 0, got -2"),
        ("crop: [1.5, 2]", "crop's row must be a whole number"),
        ("crop: [a, 2]", "crop's row must be a whole number of at least 0, got 'a'"),
        ("", "must hold keys and values, for instance 'gain: 2.0', got None"),
        ("- gain", "must hold keys and values"),
        ("gain: [", "must be a YAML file"),
    ],
)
def test_a_bad_description_of_a_camera(tmp_path, text, message):
    path = described(tmp_path, text)
    with pytest.raises(ValueError, match=f"camera.yaml.*{message}"):
        io.read_camera(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gain: gain.hdf5", r"maps of the camera must have the movie's size \(3, 4\), got \(6, 5\): give crop"),
        ("gain: gain.hdf5\ncrop: [4, 1]", r"crop of shape \(3, 4\) at row 4, column 1 must lie on the maps"),
        ("gain: gain.hdf5\noffset: small.hdf5", "maps must have one shape"),
        ("gain: 2\ncrop: [0, 0]", "crop needs a map"),
        ("gain: camera.yaml", "camera.yaml must be an HDF5 file"),
        ("saturation: 5\noffset: 100", "saturation must be above the offset, got 5 ADU"),
        ("quantum_efficiency: 1.5", r"quantum_efficiency must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_camera_that_does_not_fit(tmp_path, text, message):
    path = described(tmp_path, f"photon_units: true\n{text}")
    with h5py.File(path.with_name("small.hdf5"), "w") as file:
        file["map"] = np.ones((3, 4))
    with pytest.raises(ValueError, match=message):
        io.read_camera(path).camera((3, 4))


def test_a_camera_that_is_not_known_is_not_guessed(tmp_path):
    """A guess, gain 1 and no offset, made thousands of molecules out of noise."""
    for text, missing in (("gain: 2", "no offset, read_variance"), ("pixel_size_nm: 9", "no gain, offset, read_var")):
        with pytest.raises(ValueError, match=f"the camera must be known, got {missing}"):
            io.read_camera(described(tmp_path / missing[:6], text)).camera((3, 4))
    ideal = io.read_camera(described(tmp_path / "c", "photon_units: true\nread_variance: 4")).camera((3, 4))
    assert ideal == Camera(1.0, 0.0, 4.0)


# -- tables --------------------------------------------------------------------------------------------------------

HEADER = (
    '"id","frame","x [nm]","y [nm]","sigma [nm]","intensity [photon]","offset [photon]",'
    '"bkgstd [photon]","uncertainty [nm]"\n'
)


def test_thunderstorm_by_hand(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text(HEADER + "1,1,50,150,130,700,8,3,9.5\n2,4,1234.5,60,120,500,7.5,2.5,11\n")
    table = io.read_localizations(path, 100)
    wanted = {
        "id": [1, 2],
        "frame": [0, 3],  # the first frame is 1 in the file, 0 here
        "u": [0.0, 11.845],  # 50 nm is the centre of the first 100 nm pixel
        "v": [1.0, 0.1],
        "sigma": [1.3, 1.2],
        "photons": [700, 500],
        "background": [8, 7.5],
        "background_sd": [3, 2.5],
        "u_sd": [0.095, 0.11],
        "v_sd": [0.095, 0.11],
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame(wanted), check_dtype=False, rtol=1e-14, atol=1e-14)


def test_frames_that_count_from_zero_are_noticed_and_can_be_read(tmp_path):
    path = tmp_path / "zero.csv"
    path.write_text("frame,x [nm],y [nm]\n0,1,2\n1,3,4\n")
    with pytest.raises(ValueError, match="frame must be a whole number of at least 1"):
        io.read_localizations(path, 100)
    assert list(io.read_localizations(path, 100, first_frame=0)["frame"]) == [0, 1]


def test_the_real_table_comes_with_every_row_and_column():
    path = real("thunderstorm_3d.csv")
    table, raw = io.read_localizations(path, 127.0), pd.read_csv(path)
    assert len(table) == len(raw) == 11195
    np.testing.assert_array_equal(table["frame"], raw["frame"] - 1)
    for ours, theirs, scale, shift in [
        ("u", "x [nm]", 127, 0.5),
        ("v", "y [nm]", 127, 0.5),
        ("z_nm", "z [nm]", 1, 0),
        ("sigma_u", "sigma1 [nm]", 127, 0),
        ("sigma_v", "sigma2 [nm]", 127, 0),
        ("photons", "intensity [photon]", 1, 0),
        ("background", "offset [photon]", 1, 0),
        ("background_sd", "bkgstd [photon]", 1, 0),
        ("u_sd", "uncertainty_xy [nm]", 127, 0),
        ("v_sd", "uncertainty_xy [nm]", 127, 0),
        ("z_sd_nm", "uncertainty_z [nm]", 1, 0),
        ("detections", "detections", 1, 0),
    ]:
        np.testing.assert_allclose((table[ours] + shift) * scale, raw[theirs], rtol=1e-12)
    assert len(table.columns) == 13


def test_the_real_table_written_again_is_the_real_table(tmp_path):
    path = real("thunderstorm_3d.csv")
    io.write_localizations(tmp_path / "again.csv", io.read_localizations(path, 127.0), 127.0)
    again, raw = pd.read_csv(tmp_path / "again.csv"), pd.read_csv(path)
    assert set(again) == set(raw)
    pd.testing.assert_frame_equal(again.reindex(columns=list(raw)), raw, rtol=1e-12, check_dtype=False)


positions = st.floats(-0.5, 2048)
sizes = st.floats(1e-3, 1e5)
words = st.text(st.characters(codec="utf-8", categories=["L"])).map(lambda letters: "w" + letters)
COLUMNS = {
    "frame": st.integers(0, 10**6),
    "u": positions,
    "v": positions,
    "photons": sizes,
    "background": sizes,
    "sigma": sizes,
    "u_sd": sizes,
    "v_sd": sizes,
    "z_nm": positions,
    "net_gradient": st.floats(),  # NaN and infinity among them: a column that the package does not know
    "détections [n]": st.integers(0, 9),
    "class": words,
}


def tables(*without):
    """Tables of 0 to 6 localizations."""
    columns = {name: values for name, values in COLUMNS.items() if name not in without}
    rows = st.lists(st.tuples(*columns.values()), max_size=6)
    return rows.map(lambda drawn: pd.DataFrame(drawn, columns=list(columns)))


@settings(max_examples=40)  # each writes and reads a file
@given(table=tables(), pixel=st.floats(1, 500))
def test_thunderstorm_there_and_back(tmp_path_factory, table, pixel):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    io.write_localizations(path, table, pixel)
    again = io.read_localizations(path, pixel)
    assert set(again) == set(table)
    if len(table) == 0:
        return
    again = again.reindex(columns=list(table))
    pd.testing.assert_frame_equal(
        again.drop(columns=["class", "u", "v"]), table.drop(columns=["class", "u", "v"]), rtol=1e-13, atol=0
    )
    assert list(again["class"]) == list(table["class"])
    for name in "uv":
        assert np.all(np.abs(again[name] - table[name]) < 1e-12 * (np.abs(table[name]) + 1))


@settings(max_examples=40)  # each writes and reads a file
@given(table=tables("class"), pixel=st.floats(1, 500))
def test_picasso_there_and_back(tmp_path_factory, table, pixel):
    path = tmp_path_factory.getbasetemp() / "table.hdf5"
    io.write_localizations(path, table, pixel, shape=(2049, 2050), frames=10**6 + 1)
    again = io.read_localizations(path, pixel)
    assert again.attrs == {"height": 2049, "width": 2050, "frames": 10**6 + 1, "pixel_size_nm": pixel}
    assert set(again) == set(table)
    if len(table) == 0:
        return
    again, mine = again.reindex(columns=list(table)), ["frame", "net_gradient", "détections [n]"]
    pd.testing.assert_frame_equal(
        again.reindex(columns=mine), table.reindex(columns=mine), rtol=0, atol=0
    )  # exact: own types are kept
    half_ulp = 2.0**-24
    for name in ["u", "v", "photons", "background", "sigma", "u_sd", "v_sd", "z_nm"]:
        # below 2^-126 a float32 has fewer digits: then half the smallest step
        wanted, error = np.asarray(table[name]), np.abs(np.asarray(again[name] - table[name]))
        assert np.all(error <= np.maximum(half_ulp * np.abs(wanted), 2.0**-150))


def test_two_uncertainties_stay_two(tmp_path):
    table = pd.DataFrame({"frame": [0, 1], "u": [1.0, 2], "v": [3.0, 4], "u_sd": [0.1, 0.2], "v_sd": [0.1, 0.3]})
    io.write_localizations(tmp_path / "t.csv", table, 100)
    assert list(pd.read_csv(tmp_path / "t.csv"))[3:] == ["uncertainty_x [nm]", "uncertainty_y [nm]"]
    pd.testing.assert_frame_equal(io.read_localizations(tmp_path / "t.csv", 100), table, rtol=1e-14)


def picasso_file(path, yaml_parts=None, embedded=None, order="<"):
    """A file as Picasso 0.11.3 writes it: the field names, types and their order were read from one of its own."""
    names = ["x", "y", "photons", "sx", "sy", "bg", "lpx", "lpy", "ellipticity", "net_gradient"]
    dtype = [("frame", order + "u4"), *((name, order + "f4") for name in names)]
    locs = np.zeros(3, dtype)
    for i, name in enumerate(names):
        locs[name] = np.arange(3) + i / 8
    locs["frame"] = [0, 0, 7]
    with h5py.File(path, "w") as file:
        file["locs"] = locs
        if embedded is not None:
            file["metadata"] = embedded
    if yaml_parts is not None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump_all(yaml_parts))
    return locs


MOVIE_INFO = {"Byte Order": "<", "Height": 32, "Width": 64, "Frames": 9}
LOCALIZE_INFO = {"Generated by": "Picasso Localize", "Pixelsize": 108, "Box Size": 7}


@pytest.mark.parametrize(
    "where",
    [
        {"yaml_parts": [MOVIE_INFO, LOCALIZE_INFO]},
        {"embedded": '[{"Height": 32, "Width": 64, "Frames": 9}, {"Pixelsize": 108}]'},
        {"yaml_parts": [MOVIE_INFO, LOCALIZE_INFO], "embedded": '[{"Height": 1, "Pixelsize": 5}]'},
        {"yaml_parts": [MOVIE_INFO, LOCALIZE_INFO], "order": ">"},
    ],
    ids=["yaml", "embedded", "both", "big-endian"],
)
def test_picasso_file_as_picasso_writes_it(tmp_path, where):
    locs = picasso_file(tmp_path / "locs.hdf5", **where)
    table = io.read_localizations(tmp_path / "locs.hdf5")
    assert table.attrs == {"height": 32, "width": 64, "frames": 9, "pixel_size_nm": 108}
    ours = ["frame", "u", "v", "photons", "sigma_u", "sigma_v", "background", "u_sd", "v_sd"]
    assert list(table) == [*ours, "ellipticity", "net_gradient"]
    for mine, theirs in zip(table, locs.dtype.names or (), strict=True):
        np.testing.assert_array_equal(table[mine], locs[theirs])  # px here, px there, the same origin
        assert np.asarray(table[mine]).dtype.isnative
    with pytest.raises(ValueError, match=r"pixel_size_nm must be 108.*got 100"):
        io.read_localizations(tmp_path / "locs.hdf5", 100)


@pytest.mark.parametrize("where", ["yaml", "embedded"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Pixelsize", -108, "Pixelsize in .* must be finite and positive, got -108"),
        ("Pixelsize", 0, "Pixelsize in .* must be finite and positive, got 0"),
        ("Pixelsize", "108 nm", "Pixelsize must be a number in .*, got '108 nm'"),
        ("Pixelsize", True, "Pixelsize must be a number in .*, got True"),
        ("Pixelsize", [108, 108], r"Pixelsize must be a number in .*, got \[108, 108\]"),
        ("Pixelsize", None, "Pixelsize must be a number in .*, got None"),
        ("Height", -3, "Height in .* must be a whole number of at least 1, got -3"),
        ("Frames", 1.5, "Frames in .* must be a whole number of at least 1, got 1.5"),
    ],
)
def test_metadata_that_are_no_positive_numbers(tmp_path, where, key, value, message):
    info = [MOVIE_INFO | LOCALIZE_INFO | {key: value}]
    in_yaml = where == "yaml"
    picasso_file(tmp_path / "locs.hdf5", info if in_yaml else None, None if in_yaml else json.dumps(info))
    with pytest.raises(ValueError, match=message) as error:
        io.read_localizations(tmp_path / "locs.hdf5")
    assert ("locs.yaml" if in_yaml else "locs.hdf5") in str(error.value)


@pytest.mark.parametrize("sidecar", [True, False])
def test_overwritten_bytes_of_a_table_are_noticed(tmp_path, sidecar):
    """500 bytes, anywhere: an error of ours, or the same table and metadata, where no value lay in them."""
    rng, path = np.random.default_rng(0), tmp_path / "locs.hdf5"
    positions = {name: rng.uniform(0, 30, 500) for name in ("u", "v", "photons")}
    io.write_localizations(path, pd.DataFrame({"frame": np.arange(500), **positions}), 108)
    if not sidecar:
        path.with_suffix(".yaml").unlink()
    raw, whole = path.read_bytes(), io.read_localizations(path)
    noticed = 0
    starts = range(0, len(raw) - 500, 137)
    for start in starts:
        path.write_bytes(raw[:start] + rng.bytes(500) + raw[start + 500 :])
        try:
            found = io.read_localizations(path)
        except ValueError as error:
            assert "locs.hdf5" in str(error)
            noticed += 1
        else:
            pd.testing.assert_frame_equal(found, whole)
            assert found.attrs == whole.attrs
    assert noticed >= 500 * 16 // 137  # wherever rows are hit; much of the rest is room that HDF5 keeps free


def test_a_changed_table_is_damaged_and_one_of_picasso_is_not_verified(tmp_path):
    table = pd.DataFrame({"frame": [0, 1], "u": [1.0, 2.0], "v": [3.0, 4.0]})
    path = tmp_path / "locs.hdf5"
    io.write_localizations(path, table, 108)
    with h5py.File(path, "a") as file:
        locs = file["locs"]
        assert isinstance(locs, h5py.Dataset)
        rows = locs[...]
        rows["x"][1] = 2.5
        locs[...] = rows
    with pytest.raises(ValueError, match="locs.hdf5 is damaged: its rows or metadata are not those that were written"):
        io.read_localizations(path)
    with h5py.File(path, "a") as file:
        for place in (file, file["locs"]):
            del place.attrs["sha256"]
    assert io.read_localizations(path)["u"].tolist() == [1, 2.5]


def test_picasso_file_without_metadata_reads_but_states_nothing(tmp_path):
    picasso_file(tmp_path / "locs.hdf5")
    assert io.read_localizations(tmp_path / "locs.hdf5", 100).attrs == {}


def test_picasso_gets_the_smallest_movie_that_holds_the_table(tmp_path):
    table = pd.DataFrame({"frame": [0, 6], "u": [0.0, 11.4], "v": [3.5, 2.0]})
    io.write_localizations(tmp_path / "t.hdf5", table, 108)
    info = yaml.safe_load((tmp_path / "t.yaml").read_text())
    # 11.4 lies in pixel 11, the twelfth; 3.5 is the first edge of pixel 4, the fifth
    assert (info["Width"], info["Height"], info["Frames"], info["Pixelsize"]) == (12, 5, 7, 108)


def test_metadata_survive_a_change_of_the_table(tmp_path):
    picasso_file(tmp_path / "locs.hdf5", [MOVIE_INFO, LOCALIZE_INFO])
    table = io.read_localizations(tmp_path / "locs.hdf5")
    io.write_localizations(tmp_path / "fewer.hdf5", table.drop(index=0), 108)
    assert io.read_localizations(tmp_path / "fewer.hdf5").attrs == table.attrs


@pytest.mark.parametrize("suffix", ["csv", "hdf5"])
def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"t.{suffix}"
    table = pd.DataFrame({"frame": [0], "u": [1.0], "v": [2.0]})
    io.write_localizations(path, table, 100)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fails(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    monkeypatch.setattr(h5py.Group, "create_dataset", fails)
    with pytest.raises(OSError, match="no space"):
        io.write_localizations(path, table, 100)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_truncated_table_is_refused(tmp_path):
    picasso_file(tmp_path / "locs.hdf5", [MOVIE_INFO])
    raw = (tmp_path / "locs.hdf5").read_bytes()
    for length in itertools.chain(range(1, len(raw), len(raw) // 40)):
        (tmp_path / "locs.hdf5").write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"locs\.hdf5 must be an HDF5 file"):
            io.read_localizations(tmp_path / "locs.hdf5")


def test_an_image_keeps_its_numbers_as_tiff_and_its_order_as_png(tmp_path):
    image = np.linspace(0, 5, 12, dtype=np.float32).reshape(3, 4)
    io.write_image(tmp_path / "a.tif", image)
    with io.read_movie(tmp_path / "a.tif") as movie:
        assert np.array_equal(movie[0], image)
    io.write_image(tmp_path / "a.png", image, brightest=1.0)
    shown = imread(tmp_path / "a.png")[..., :3].astype(int).sum(-1)
    assert shown.shape == (3, 4) and (np.diff(shown.ravel()) > 0).all()  # inferno rises in lightness


def test_an_image_without_light_is_black(tmp_path):
    io.write_image(tmp_path / "a.png", np.zeros((2, 2)))
    assert imread(tmp_path / "a.png")[..., :3].max() < 5  # inferno begins at (0, 0, 3)


@pytest.mark.parametrize(
    ("name", "image", "brightest"),
    [("path", np.ones((2, 2)), 0.5), ("image", np.ones((1, 2, 2)), 0.5), ("brightest", np.ones((2, 2)), 1.5)],
)
def test_an_image_that_cannot_be_written(tmp_path, name, image, brightest):
    with pytest.raises(ValueError, match=name):
        io.write_image(tmp_path / ("a.jpg" if name == "path" else "a.png"), image, brightest)
    assert not list(tmp_path.iterdir())
