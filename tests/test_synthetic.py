"""The synthetic set reads what its manifest names, and only filtered sets have kept rows."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.synthetic import SyntheticSet
from stedm.errors import UserError


def test_synthetic_set(tmp_path):
    with pytest.raises(UserError, match="stedm generate"):
        SyntheticSet(tmp_path)
    for i in range(3):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"i{i}.png")
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"m{i}.png")
    manifest = pd.DataFrame(
        {"id": range(3), "image": [f"i{i}.png" for i in range(3)], "mask": ["m0.png", "m1.png", "m2.png"]}
    )
    manifest.to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="stedm filter"):
        _ = SyntheticSet(tmp_path).kept
    manifest.assign(keep=[True, False, True]).to_parquet(tmp_path / "manifest.parquet")
    synthetic = SyntheticSet(tmp_path)
    assert len(synthetic) == 3 and synthetic.kept.tolist() == [0, 2]
    manifest.assign(layout=["m2.png", "m1.png", "m0.png"]).to_parquet(tmp_path / "manifest.parquet")
    assert SyntheticSet(tmp_path, mask="layout").label_maps([0])[0, 0, 0] == 2
    assert synthetic.images([2]).max() == 2 and synthetic.label_maps([1, 2])[:, 0, 0].tolist() == [1, 2]
