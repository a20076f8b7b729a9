"""What HuBERT learns to say of each frame: the cluster of its MFCC, later the cluster of a feature of the model before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weft.core.errors import DataError

_KEY = "centroids"


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids of k-means. Shapes: `centroids` [K, F] float32.

    Source: HuBERT, arXiv:2106.07447: 100 clusters of MFCC for the first round, 500 of a layer's features for the second.
    """

    centroids: Tensor

    @staticmethod
    def fit(frames: Iterable[Tensor], num_clusters: int, seed: int = 0, num_starts: int = 20) -> Clusters:
        """The clusters of all frames together, by mini-batch k-means with the published settings.

        Shapes: `frames` one [T, F] per recording. Raises: DataError where there are fewer frames than clusters.
        """
        from sklearn.cluster import MiniBatchKMeans

        together = torch.cat([f.detach().float().cpu() for f in frames]).numpy()
        if len(together) < num_clusters:
            raise DataError(f"{num_clusters} clusters need as many frames, got {len(together)}; give more recordings")
        if not np.isfinite(together).all():
            raise DataError("a frame to be clustered holds a value that is not finite")
        found = MiniBatchKMeans(
            n_clusters=num_clusters,
            init="k-means++",
            batch_size=10_000,
            max_iter=100,
            n_init=num_starts,
            tol=0.0,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            random_state=seed,
            compute_labels=False,
        ).fit(together)
        return Clusters(torch.from_numpy(found.cluster_centers_).float())

    def labels(self, frames: Tensor) -> Tensor:
        """The nearest centroid of each frame. Shapes: [T, F] -> [T] int64."""
        centroids = self.centroids.to(frames.device)
        distance = centroids.square().sum(1) - 2 * frames.float() @ centroids.T  # less the frame's own square
        return distance.argmin(1)

    def save(self, path: Path) -> None:
        """Write the centroids as a safetensors file."""
        from safetensors.torch import save_file

        save_file({_KEY: self.centroids.contiguous()}, path)

    @staticmethod
    def load(path: Path) -> Clusters:
        """Read what `save` wrote. Raises: DataError for a file that holds no centroids."""
        tensors = _tensors(path, "clusters")
        if set(tensors) != {_KEY} or tensors[_KEY].dim() != 2:
            raise DataError(f"{path} holds {sorted(tensors)}, a file of clusters holds one matrix {_KEY!r}")
        return Clusters(tensors[_KEY])


def write_targets(path: Path, labels: Mapping[str, Tensor]) -> None:
    """Write the labels of recordings [L] by the recording's name as a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: frames.to(torch.int32).cpu().contiguous() for name, frames in labels.items()}, path)


def read_targets(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_targets` wrote: [L] int64 by name. Raises: DataError for a file that holds no labels."""
    labels = _tensors(path, "targets")
    if wrong := [name for name, frames in labels.items() if frames.dim() != 1 or frames.is_floating_point()]:
        raise DataError(f"{path} holds {tuple(labels[wrong[0]].shape)} {labels[wrong[0]].dtype} for {wrong[0]}, not labels [L]")
    return {name: frames.numpy().astype(np.int64) for name, frames in labels.items()}


def _tensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as {what}: {error}") from None
