"""The user's own pictures."""

from pathlib import Path

from torch.utils.data import Dataset

from dds_train.data.images import read_image, square_crop
from dds_train.data.paths import find_images
from dds_train.data.source import Sample
from dds_train.errors import UserError


class FolderSource:
    """Every picture under `path`, scaled and cropped to `size` x `size` pixels.

    Args:
        path: a folder, searched to any depth, or a glob pattern.
        size: side in pixels, a multiple of the codec's factor; the teacher's own size if not given.
        factor: the codec's.

    Raises:
        UserError: if there are no pictures, or the size does not suit the codec.
    """

    def __init__(self, path: str, size: int, factor: int) -> None:
        if size < 1 or size % factor:
            raise UserError(f"data.size={size}: the codec needs a positive multiple of {factor}")
        self.size = size
        self.paths = find_images(path, "data.path")

    def prepare(self) -> None:
        """Nothing takes long."""

    def dataset(self) -> Dataset[Sample]:
        return _Folder(self.paths, self.size)


class _Folder(Dataset[Sample]):
    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        return {"image": square_crop(read_image(self.paths[index]), self.size)}
