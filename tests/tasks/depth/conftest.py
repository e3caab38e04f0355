"""Small depth data: synthetic scenes, and a file in the layout of the labeled NYU Depth V2."""

import numpy as np
import pytest

from ddfnet.tasks.depth.synthetic import render_scenes

NYU_WIDTH, NYU_HEIGHT, NYU_PAIRS = 48, 32, 1003


@pytest.fixture(scope="session")
def scene_tree(tmp_path_factory):
    """10 training and 5 validation scenes of 48 x 48; 2 does not divide 5."""
    root = tmp_path_factory.mktemp("depth") / "scenes"
    render_scenes(root, train=10, val=5, size=48)
    return root


@pytest.fixture(scope="session")
def nyu_file(tmp_path_factory):
    """As MATLAB writes it: axes reversed. Pixel (x, y) of pair n has red n % 256, green x, blue y, depth x + 100 y."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("nyu") / "nyu_depth_v2_labeled.mat"
    x, y = np.mgrid[:NYU_WIDTH, :NYU_HEIGHT]
    images = np.zeros((NYU_PAIRS, 3, NYU_WIDTH, NYU_HEIGHT), np.uint8)
    images[:, 0] = (np.arange(NYU_PAIRS) % 256)[:, None, None]
    images[:, 1], images[:, 2] = x, y
    depths = np.broadcast_to(1 + x + 100 * y, (NYU_PAIRS, NYU_WIDTH, NYU_HEIGHT)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["images"], file["depths"] = images, depths
    return path
