"""The recordings of a folder, and what is to be said of their frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import DataError
from weft.data.acoustic_targets import read_targets
from weft.data.dataset import Dataset


class Recordings(Dataset):
    """Every audio file under a folder, by name, as a conversation of one medium and no text: what speech is pre-trained on.

    `targets` names a file that `write_targets` wrote, with the labels of each recording under its path within the folder.

    Raises: DataError for a folder without recordings and for recordings without targets.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        folder: str
        targets: str = ""  # none: the recordings alone
        stream: str = "audio"
        suffixes: tuple[str, ...] = (".wav", ".flac", ".ogg", ".mp3")

        def build(self) -> Recordings:
            return Recordings(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.folder)
        self.names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix.lower() in config.suffixes and path.is_file()
        )
        if not self.names:
            raise DataError(f"no recording ({', '.join(config.suffixes)}) under {self.folder}")
        self.targets = read_targets(Path(config.targets)) if config.targets else None
        if self.targets is not None and (without := [name for name in self.names if name not in self.targets]):
            raise DataError(f"{config.targets} has no targets for {len(without)} of {len(self.names)} recordings: {without[0]}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Conversation:
        name = self.names[index]
        targets = None if self.targets is None else self.targets[name]
        medium = Media(self.folder / name, self.config.stream, targets)
        return Conversation((user(medium),), id=name, source=self.folder.name)
