"""A folder of the user's images."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from dds_train.data.buckets import Shape, bucket_shapes, bucketed
from dds_train.data.captioner import Captioner
from dds_train.data.source import Sample, image_size
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.images.captions import CaptionFiles
from dds_train.images.files import centre_crop, read_image, upright_size
from dds_train.images.find import find_images_and_others


class FolderSource:
    """Images of a folder, resized and cropped to `size` x `size` pixels, or to the nearest shape of that area.

    Only tasks with {caption} in a prompt need captions.

    Args:
        path: a folder, searched recursively, or a glob pattern.
        checkpoint: the teacher's, for the size of images.
        size: side in pixels, a multiple of the VAE's downsampling factor; default: the teacher's.
        captioner: hub id or folder of a captioning model, for images without a caption.
        buckets: whether images keep about their own aspect (`data.buckets`).

    Raises:
        UserError: if there are no images, or the VAE does not support the size.
    """

    def __init__(
        self,
        path: str,
        checkpoint: DiffusionCheckpoint,
        size: int | None = None,
        captioner: str | None = None,
        buckets: bool = False,
    ) -> None:
        self.size, self.path = image_size(checkpoint, size), path
        self.captioner = Captioner(captioner, checkpoint.device) if captioner else None
        self.shapes = bucket_shapes(self.size, checkpoint.image_unit()) if buckets else []
        self.paths, self.skipped = find_images_and_others(path, "data.path")

    def prepare(self) -> None:
        if self.skipped:
            print(f"note: data.path={self.path}: {self.skipped}", flush=True)

    @property
    def captions(self) -> list[str]:
        """The caption of each image (`CaptionFiles`); of those without one, the captioner's.

        Raises:
            UserError: naming the first image that has none, or an empty one, without a captioner; as `Captioner`.
        """
        files = CaptionFiles(self.paths, self.path)
        if self.captioner is None:
            return list(map(files, self.paths))
        found = {path: files.find(path) for path in self.paths}
        missing = [path for path, text in found.items() if not text]
        found.update(zip(missing, self.captioner(missing), strict=True))
        return [str(found[path]) for path in self.paths]

    def dataset(self) -> Dataset[Sample]:
        squares = FolderDataset(self.paths, self.size)
        return bucketed(squares, self.shapes) if self.shapes else squares


class FolderDataset(Dataset[Sample]):
    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Sample:
        return self.shaped(index, (self.size, self.size))

    def original_shape(self, index: int) -> Shape:
        return upright_size(self.paths[index], self.name(index))

    def shaped(self, index: int, shape: Shape) -> Sample:
        image = centre_crop(read_image(self.paths[index], 4 * self.size), *shape)
        return {"image": image, "caption": torch.tensor(index)}
