"""Arms are chosen by validation patients, with a second laboratory by their images in its stains."""

import numpy as np
import pandas as pd
import pytest

from stedm.evaluation.choice import means, merits


def test_restained_validation_decides_only_where_every_arm_has_it() -> None:
    arms: dict[str, dict[str, float | None]] = {
        "real": {"validation_iou": 0.8, "restained_iou": 0.5},
        "real+synthetic": {"validation_iou": 0.7, "restained_iou": 0.6},
        "full": {"validation_iou": 0.9, "restained_iou": None},
    }
    assert merits(arms) == ("restained_iou", {"real": 0.5, "real+synthetic": 0.6})
    arms["real"]["restained_iou"] = None
    assert merits(arms) == ("validation_iou", {"real": 0.8, "real+synthetic": 0.7})
    assert merits({"real": {}}) == ("validation_iou", {})


def test_means_leave_out_what_is_not_known() -> None:
    table = pd.DataFrame({"validation_iou": [0.5, np.nan, 0.7], "restained_iou": [np.nan] * 3})
    assert means(table) == {"restained_iou": None, "validation_iou": pytest.approx(0.6)}
    assert means(pd.DataFrame({"iou": [0.5]})) == {"restained_iou": None, "validation_iou": None}
