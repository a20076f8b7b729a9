"""Videos as a few frames: sampled uniformly, decoded with PyAV where they come as files."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from weft.core.errors import ConfigError, DataError, WeftError
from weft.core.layout import MediaLayout
from weft.data.images import MAX_PIXELS, ImageTransform, open_image
from weft.data.media_transform import MediaTransform, OpenedMedium
from weft.data.promised_bytes import promised_bytes

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

MICROSECONDS = 1_000_000  # FFmpeg's unit of a file's duration
MISSING_SECONDS = 0.5  # the ends of sound and pictures, and how they are rounded, differ by less
MISSING_BYTES = 16  # some programs count an AVI file's own header into what follows it


def sampled_frames(total: int, num_frames: int) -> list[int]:
    """Which frames of `total` are taken: first, last and evenly between, rounded down; a shorter video repeats some.

    A video of one frame is a picture and gives that frame alone. Source: Video-LLaVA, arXiv:2311.10122.
    """
    if total == 1:
        return [0]
    return [int(index) for index in np.linspace(0, total - 1, num_frames)]


def open_video(source: Any, num_frames: int) -> list[np.ndarray]:
    """`num_frames` frames (height, width, 3) uint8, RGB and upright; one frame where the source is one picture.

    `source` is a path or the bytes of a file, which PyAV decodes; a list of pictures as `open_image` takes them; an array
    (frames, height, width, 3) uint8; or one picture. Nothing but the file itself is read, whatever it refers to.

    Raises: DataError where it is missing, no video, without frames, cut off or damaged; WeftError where PyAV is missing. A cut
    is seen by the bytes that the headers promise, by a broken last frame, or where half a second of the declared duration is
    missing; some streams (MPEG-TS) declare nothing, and what there is of them is taken for the whole.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        if source.dtype != np.uint8 or source.shape[3] != 3 or 0 in source.shape:
            raise DataError(f"a video array is (frames, height, width, 3) uint8, got {source.shape} {source.dtype}")
        return [source[index] for index in sampled_frames(len(source), num_frames)]
    if isinstance(source, np.ndarray | Image.Image):
        return [np.asarray(open_image(source))]
    if isinstance(source, list | tuple):
        return _pictures(source, num_frames)
    if isinstance(source, str | Path):
        return _decoded(source, str(source), num_frames)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(source, f"a video of {len(source)} bytes", num_frames)
    raise DataError(
        "a video is a path, bytes, a list of pictures or an array (frames, height, width, 3) uint8, "
        f"got {type(source).__name__}"
    )


@dataclass(frozen=True, kw_only=True)
class VideoTransform(MediaTransform):
    """How a video becomes `num_frames` pictures; each is a unit, brought to size as `frame` says. A picture becomes one."""

    frame: ImageTransform = ImageTransform()
    num_frames: int = 8

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ConfigError(f"a video needs at least one frame, num_frames is {self.num_frames}")

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return self.frame.unit_shape

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        frames = open_video(source, self.num_frames)
        height, width, _ = frames[0].shape
        pixels = np.stack([self.frame.pixels(frame) for frame in frames])
        return OpenedMedium(pixels, replace(unit, frames=len(frames)), (width, height))

    def usual_layout(self, unit: MediaLayout) -> MediaLayout:
        return replace(unit, frames=self.num_frames)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        return self.frame.normalise(units)


def _pictures(sources: Sequence[Any], num_frames: int) -> list[np.ndarray]:
    if not sources:
        raise DataError("a video given as a list of pictures holds no picture")
    wanted = sampled_frames(len(sources), num_frames)
    opened = {index: np.asarray(open_image(sources[index])) for index in sorted(set(wanted))}
    return [opened[index] for index in wanted]


class _Index(NamedTuple):
    """What a file's packets say of its frames.

    `times` has each frame's time in order of showing, in the stream's unit, None where a packet has none; `keys` the times at
    which decoding may start.
    """

    times: list[int | None]
    keys: list[int]


def _decoded(source: Any, name: str, num_frames: int) -> list[np.ndarray]:
    """The sampled frames of a file: sought by their times, or counted from the start where times do not lead to them."""
    with _container(source, name) as container:
        index = _index(container, name)
    wanted = sampled_frames(len(index.times), num_frames)
    with _container(source, name) as container:
        frames = _frames_sought(container, wanted, index, name)
    if frames is not None:
        return [frames[number] for number in wanted]
    total = len(index.times)
    while True:
        wanted = sampled_frames(total, num_frames)
        with _container(source, name) as container:
            frames, seen = _frames_counted(container, set(wanted), name)
        if seen > wanted[-1]:
            return [frames[number] for number in wanted]
        if seen == 0:
            raise DataError(f"{name} has no frame that can be decoded")
        total = seen  # some packets gave no frame


@contextmanager
def _container(source: Any, name: str) -> Iterator[InputContainer]:
    """The open file; PyAV gets its bytes, never its name, and may open nothing else."""
    try:
        import av
    except ImportError:
        raise WeftError(
            "video files are read with PyAV, which is not installed; pip install 'weft[video]', or give the frames as a list "
            "of pictures"
        ) from None
    try:
        with (
            io.BytesIO(source) if not isinstance(source, str | Path) else Path(source).open("rb") as file,
            av.open(_whole(file, name), "r", options={"protocol_whitelist": "none"}) as container,
        ):
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams})
                raise DataError(f"{name} holds no pictures{', only ' if kinds else '; is it cut off?'}{', '.join(kinds)}")
            yield container
    except FileNotFoundError:
        raise DataError(f"no video file {name}") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder, not a video file") from None
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{name} is no video of a known format, or it is cut off: {error.strerror}") from None


def _whole(file: IO[bytes], name: str) -> IO[bytes]:
    """The file at its start. Raises: DataError where it is shorter than its headers say."""
    promised, there = promised_bytes(file), file.seek(0, io.SEEK_END)
    if promised is not None and promised - there > MISSING_BYTES:
        raise DataError(f"{name} is cut off: {there:,} bytes where its headers promise {promised:,}")
    file.seek(0)
    return file


def _index(container: InputContainer, name: str) -> _Index:
    """Read all packets, decode none. Raises: DataError where no picture is shown, or the file ends before it says."""
    video = container.streams.video[0]
    times: list[int | None] = []
    keys: list[int] = []
    broken, end = False, Fraction(0)
    for packet in container.demux():
        start = packet.pts if packet.pts is not None else packet.dts
        if start is not None and packet.time_base:
            end = max(end, (start + (packet.duration or 0)) * packet.time_base)
        if packet.stream is video and packet.size and not packet.is_discard:
            times.append(packet.pts)
            broken = packet.is_corrupt
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
    if not times:
        raise DataError(f"{name} has no frames")
    if broken:
        raise DataError(f"{name} is cut off: the last of its {len(times)} frames is not whole")
    declared = Fraction(container.duration or 0, MICROSECONDS)
    if declared - end > MISSING_SECONDS:
        raise DataError(f"{name} is cut off: its {len(times)} frames end at {float(end):.1f} of {float(declared):.1f} seconds")
    times.sort(key=lambda time: -math.inf if time is None else time)  # packets come in the order of decoding
    return _Index(times, sorted(keys))


def _frames_sought(container: InputContainer, wanted: Sequence[int], index: _Index, name: str) -> dict[int, np.ndarray] | None:
    """The wanted frames by their number, decoded from the last key frame before each; None where one is not found so."""
    import av

    if None in index.times or len(set(index.times)) < len(index.times):
        return None
    times = [time for time in index.times if time is not None]
    video = container.streams.video[0]
    found: dict[int, np.ndarray] = {}
    try:
        frames, at = container.decode(video), times[0]
        for number in sorted(set(wanted)):
            key = bisect_right(index.keys, times[number]) - 1
            if key >= 0 and index.keys[key] > at:  # decoding on to here would pass a key frame
                container.seek(index.keys[key], stream=video)
                frames = container.decode(video)
            frame = next((frame for frame in frames if frame.pts is not None and frame.pts >= times[number]), None)
            if frame is None or frame.pts != times[number]:
                return None
            found[number], at = _upright(frame, name), times[number]
    except av.FFmpegError:
        return None
    return found


def _frames_counted(container: InputContainer, wanted: set[int], name: str) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames by their number, and how many frames were seen on the way to the last of them."""
    import av

    found: dict[int, np.ndarray] = {}
    seen = 0
    try:
        for frame in container.decode(container.streams.video[0]):
            if seen in wanted:
                found[seen] = _upright(frame, name)
            seen += 1
            if len(found) == len(wanted):
                break
    except av.FFmpegError as error:
        raise DataError(f"{name} is damaged or cut off after frame {seen}: {error.strerror}") from None
    return found, seen


def _upright(frame: av.VideoFrame, name: str) -> np.ndarray:
    """RGB, turned as the file says; phones store portrait videos lying on their side."""
    if frame.width * frame.height > MAX_PIXELS:
        raise DataError(f"{name} is refused: frames of {frame.width} x {frame.height} have more than {MAX_PIXELS:,} pixels")
    turned: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(turned)
