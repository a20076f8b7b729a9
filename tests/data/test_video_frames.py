"""Videos become a few frames: which, from what sources, upright, and with errors that name the file."""

import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data import video
from weft.data.images import ImageTransform
from weft.data.video import VideoTransform, open_video, sampled_frames

HEIGHT, WIDTH, TOTAL = 24, 32, 25
FRAMES = np.stack([np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8) for i in range(TOTAL)])
SAMPLED = [0, 6, 12, 18, 24]


def shades(frames):
    """The mean of each frame in tens: the number of a frame of FRAMES."""
    return [float(frame.mean()) / 10 for frame in frames]


def written(frames=FRAMES, container="matroska", codec="ffv1", pixels="bgr0", between_keys=None, **options):
    """The bytes of a video file, ten frames a second; ffv1 in bgr0 loses nothing."""
    av = pytest.importorskip("av")
    with tempfile.NamedTemporaryFile() as file:  # by name: moving the index to the front opens the file again
        _write(av, file.name, frames, container, codec, pixels, between_keys, options)
        return Path(file.name).read_bytes()


def _write(av, name, frames, container, codec, pixels, between_keys, options):
    with av.open(name, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = (*frames.shape[1:3], pixels)
        if between_keys is not None:
            stream.gop_size = between_keys
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def mp4(frames=FRAMES, **options):
    """A file as cameras write it; `faststart` puts the index before the frames."""
    return written(frames, "mp4", "libx264", "yuv420p", **options)


def test_the_published_choice_of_frames():
    assert sampled_frames(100, 8) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert sampled_frames(8, 8) == list(range(8))
    assert sampled_frames(3, 8) == [0, 0, 0, 0, 1, 1, 1, 2], "a shorter video repeats frames"
    assert sampled_frames(1, 8) == [0], "a picture is one frame"


@pytest.mark.parametrize("kind", ["path", "text path", "bytes"])
def test_a_file_gives_exactly_the_sampled_frames(kind, tmp_path):
    path = tmp_path / "clip.mkv"
    path.write_bytes(written())
    source = {"path": path, "text path": str(path), "bytes": path.read_bytes()}[kind]
    found = open_video(source, 5)
    assert all(np.array_equal(frame, FRAMES[index]) for frame, index in zip(found, SAMPLED, strict=True))


def test_a_camera_file_gives_them_too():
    found = open_video(mp4(), 5)
    np.testing.assert_allclose(shades(found), SAMPLED, atol=0.3)  # 8-bit YUV and a lossy codec: three of 255 steps


def test_arrays_and_lists_of_pictures_need_no_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_container", lambda *_: pytest.fail("nothing to decode"))
    assert [np.shares_memory(frame, FRAMES) for frame in open_video(FRAMES, 5)] == [True] * 5
    Image.fromarray(FRAMES[1]).save(tmp_path / "1.png")
    pictures = [FRAMES[0], tmp_path / "1.png", Image.fromarray(FRAMES[2])]
    assert shades(open_video(pictures, 3)) == shades(open_video(tuple(pictures), 3)) == [0, 1, 2]
    assert shades(open_video(pictures, 5)) == [0, 0, 1, 1, 2]


def test_one_picture_is_a_video_of_one_frame():
    for source in (FRAMES[3], Image.fromarray(FRAMES[3]), FRAMES[3:4], [FRAMES[3]]):
        assert shades(open_video(source, 8)) == [3]


def test_a_video_that_lies_on_its_side_is_put_upright():
    lying = FRAMES[:5].copy()
    lying[:, :, : WIDTH // 2] = 255  # the left half is white
    data = bytearray(mp4(lying))
    matrix = data.find(b"tkhd") + 4 + 4 + 20 + 16  # behind the box's name, version, times and layers
    assert struct.unpack_from(">9i", data, matrix)[:5] == (65536, 0, 0, 0, 65536), "the identity in 16.16 fixed point"
    # a quarter turn clockwise, as phones write it: the left edge comes to the top
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, HEIGHT << 16, 0, 1 << 30)
    upright = open_video(bytes(data), 2)[0]
    assert upright.shape == (WIDTH, HEIGHT, 3)
    assert upright[: WIDTH // 2 - 2].mean() > 250 and upright[WIDTH // 2 + 2 :].mean() < 10


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"),  # with frames out of order
        ("matroska", "libx264", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
    ],
)
@pytest.mark.parametrize("between_keys", [1, 4, 50])
def test_sought_frames_are_those_that_counting_gives(container, codec, pixels, between_keys, monkeypatch):
    texture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    moving = np.stack([np.roll(texture, i, 1) for i in range(TOTAL)])  # most frames are told by those before them
    data = written(moving, container, codec, pixels, between_keys)
    for num_frames in (2, 5, 9):
        sought = open_video(data, num_frames)
        with monkeypatch.context() as patch:
            patch.setattr(video, "_frames_sought", lambda *_: None)
            counted = open_video(data, num_frames)
        assert all(np.array_equal(a, b) for a, b in zip(sought, counted, strict=True))


def test_of_a_long_video_only_the_way_from_key_frames_is_decoded():
    decoded = []
    data = mp4(between_keys=5)
    with video._container(data, "clip") as container:
        index = video._index(container, "clip")
    with video._container(data, "clip") as container:
        counting = SimpleNamespace(
            streams=container.streams, seek=container.seek,
            decode=lambda stream: (decoded.append(frame.pts) or frame for frame in container.decode(stream)),
        )  # fmt: skip
        found = video._frames_sought(counting, [0, 11, 23], index, "clip")
    assert sorted(found) == [0, 11, 23]
    assert [index.times.index(key) for key in index.keys] == [0, 4, 8, 12, 16, 20]
    assert len(decoded) == 1 + 4 + 4  # frame 0; from 8 to 11; from 20 to 23


def test_frames_are_counted_again_where_packets_gave_none(monkeypatch):
    monkeypatch.setattr(video, "_index", lambda container, name: video._Index([None] * 2 * TOTAL, []))
    assert shades(open_video(written(), 5)) == SAMPLED


def endless(data: bytes) -> bytes:
    """The file of a recorder that did not know how long it would get."""
    at = data.find(b"mdat") - 4 if data[4:8] == b"ftyp" else data.find(bytes.fromhex("18538067")) + 4
    return data[:at] + (bytes(4) + data[at + 4 :] if data[4:8] == b"ftyp" else b"\x01" + b"\xff" * 7 + data[at + 8 :])


def broken_files():
    fast, matroska = endless(mp4(movflags="faststart")), endless(written())
    damaged = bytearray(mp4())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = bytes(400)
    return {
        "text": (b"not a video at all " * 20, "no video of a known format"),
        "empty": (b"", "no video of a known format"),
        "cut before its index": (mp4()[:1000], "is cut off: 1,000 bytes where its headers promise [0-9],[0-9]+"),
        "cut in its first box": (mp4()[:10], "is cut off: 10 bytes where its headers promise 32"),
        "cut within a frame": (fast[: len(fast) * 2 // 3], "is cut off: the last of its [0-9]+ frames is not whole"),
        "cut between frames": (matroska[: len(matroska) // 2], "is cut off: its [0-9]+ frames end at 1.[0-9] of 2.5 seconds"),
        "a list of other files": (b"ffconcat version 1.0\nfile /etc/hostname\n", "no video of a known format"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "text", "empty", "cut before its index", "cut in its first box", "cut within a frame", "cut between frames",
        "a list of other files",
    ],
)  # fmt: skip
def test_a_broken_file_is_named_in_one_line(name, tmp_path):
    pytest.importorskip("av")
    data, reason = broken_files()[name]
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        open_video(path, 5)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"container": "avi"}, {"container": "mp4", "codec": "libx264", "pixels": "yuv420p"}])
def test_one_missing_frame_is_seen_and_what_a_camera_appends_does_no_harm(options):
    data = written(**options)
    assert shades(open_video(data + b"\0\0\0\x20camera's own notes" * 9, 5)) == pytest.approx(SAMPLED, abs=0.3)  # of 10
    for missing in (17, len(data) // TOTAL):
        with pytest.raises(DataError, match=f"is cut off: {len(data) - missing:,} bytes where its headers promise"):
            open_video(data[:-missing], 5)


@pytest.mark.parametrize(
    "options", [{}, {"container": "mp4", "codec": "libx264", "pixels": "yuv420p", "movflags": "faststart"}]
)
def test_headers_that_promise_nothing_are_no_cut(options):
    data = written(**options)
    assert endless(data) != data
    assert shades(open_video(endless(data), 5)) == pytest.approx(SAMPLED, abs=0.3)


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "reason"),
    [
        ("avi", "mpeg4", "yuv420p", "has no frames"),  # a stream of pictures, and no packet in it
        ("mp4", "libx264", "yuv420p", "holds no pictures; is it cut off"),  # a stream without packets is not written at all
        ("matroska", "ffv1", "bgr0", "is no video of a known format, or it is cut off"),  # ends where its first packet would be
    ],
)
def test_a_file_with_a_stream_of_no_frames_is_named_in_one_line(container, codec, pixels, reason, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "nothing-filmed"
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        out.start_encoding()  # the headers, and nothing behind them
    with pytest.raises(DataError, match=reason) as caught:
        open_video(path, 5)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_frame_is_an_error_that_names_the_file():
    """Noise does not compress: whichever frame the zeros hit, the decoder stumbles."""
    noise = np.random.default_rng(0).integers(0, 255, FRAMES.shape, dtype=np.uint8)
    data = bytearray(mp4(noise))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    with pytest.raises(DataError, match=r"a video of [0-9]+ bytes is damaged or cut off after frame [0-9]+"):
        open_video(bytes(data), 5)


def test_sound_alone_is_no_video():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 8000, Fraction(1, 8000)
        out.mux(stream.encode(frame))
    with pytest.raises(DataError, match="holds no pictures, only audio"):
        open_video(file.getvalue(), 5)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/clip.mp4", "no video file /nowhere/clip.mp4"),
        ([], "a video given as a list of pictures holds no picture"),
        (
            np.zeros((4, 8, 8, 3), np.float32),
            r"a video array is \(frames, .* got \(4, 8, 8, 3\) float32",
        ),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got \(0, 8, 8, 3\) uint8"),
        (7, "a video is a path, bytes, a list of pictures or an array .* got int"),
    ],
)
def test_other_sources_are_refused_by_name(source, reason):
    pytest.importorskip("av")
    with pytest.raises(DataError, match=reason):
        open_video(source, 5)


def test_a_folder_is_no_video(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(DataError, match=f"{tmp_path} is a folder"):
        open_video(tmp_path, 5)


def test_the_transform_makes_units_that_the_image_transform_would_make():
    frame = ImageTransform(size=16)
    transform = VideoTransform(frame=frame, num_frames=5)
    opened = transform.open(FRAMES, MediaLayout(2, 2))
    assert (opened.layout, opened.size) == (MediaLayout(2, 2, frames=5), (WIDTH, HEIGHT))
    assert opened.units.shape == (5, 16, 16, 3) and transform.unit_shape == (3, 16, 16)
    expected = torch.stack([frame.apply(FRAMES[index]) for index in SAMPLED])
    assert torch.equal(transform.normalise(list(opened.units)), expected)
    assert transform.open(FRAMES[0], MediaLayout(2, 2)).layout.frames == 1
    with pytest.raises(ConfigError, match="at least one frame"):
        VideoTransform(num_frames=0)
