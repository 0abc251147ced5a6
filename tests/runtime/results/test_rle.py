import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusioner_rt.results import rle

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(masks)
def test_runs_give_the_mask_back(mask: np.ndarray) -> None:
    counts = rle.encode(mask)
    np.testing.assert_array_equal(rle.decode(counts, *mask.shape), mask)
    assert sum(counts[1::2]) == mask.sum()
    assert all(counts[1:])  # only the first run of zeros may be empty


@given(st.lists(st.integers(0, 2**40), max_size=40))
def test_text_gives_the_runs_back(counts: list[int]) -> None:
    assert rle.decompress(rle.compress(counts)) == counts


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    assert rle.encode(np.array([[0, 1, 1], [0, 0, 1]], bool)) == [2, 1, 1, 2]
    assert rle.encode(np.array([[1, 0]], bool)) == [0, 1, 1]


def test_text_is_cocos() -> None:
    # Worked by hand from the format: five bits a character from '0', the sixth says "more", from the fourth run on
    # the difference to two before. 16 needs two characters because its fifth bit would read as a minus sign.
    assert rle.compress([1, 3]) == "13"
    assert rle.compress([16]) == "`0"
    assert rle.compress([6, 1, 40, 4, 5, 4]) == "61X13mN0"


def test_runs_that_do_not_fill_the_mask() -> None:
    with pytest.raises(ValueError, match="the mask has 2x2"):
        rle.decode([3], 2, 2)
