import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from planner.spec import errors
from planner.spec.errors import (
    MOST_PROBLEMS,
    InputError,
    MalformedError,
    NearestMiss,
    NoPlanFitsError,
    Problem,
    TrimtabError,
)

SAMPLES = [
    InputError(Problem("a.b", "must be 1"), Problem("c", "is required")),
    MalformedError.at("model", "is not JSON"),
    NoPlanFitsError(NearestMiss("pp2 · tp4", stage=1, missing_bytes=2**30, limit_bytes=2**33)),
    errors.NotFoundError("nothing is called x"),
    errors.ConflictError("the search is running"),
    errors.PreconditionError("it has changed"),
    errors.TooLargeError("at most 10"),
    errors.ForbiddenError("not you"),
    errors.UnauthenticatedError("who is it?"),
    errors.TooManyRequestsError("too often", 1.0),
    errors.UnavailableError("no answer"),
    errors.CancelledError("stopped"),
    errors.RankFailedError("rank 1 failed: ValueError", "Traceback"),
    errors.InternalError("a bug"),
]


def leaves(kind):
    """All classes of the tree; other tests may have made some of their own."""
    below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(leaf for child in below for leaf in leaves(child))]


def test_every_error_of_the_tree_has_a_sample():
    assert {type(sample) for sample in SAMPLES} == set(leaves(TrimtabError)) - {TrimtabError}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert all(kind.__name__ in errors.__doc__ for kind in leaves(TrimtabError))


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickle_and_copy(error):
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)


def _raise(error):
    raise error


def test_an_error_crosses_processes_whole():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(NoPlanFitsError) as caught:
            pool.submit(_raise, SAMPLES[2]).result()
        assert caught.value.nearest_miss == SAMPLES[2].nearest_miss
        with pytest.raises(InputError) as caught:
            pool.submit(_raise, SAMPLES[0]).result()
        assert caught.value.problems == SAMPLES[0].problems


def test_problems_can_be_seen_from_one_level_further_out():
    moved = MalformedError(Problem("device", "is required"), Problem("", "is empty")).under("cluster")
    assert type(moved) is MalformedError
    assert str(moved) == "cluster.device: is required; cluster: is empty"


def test_the_nearest_miss_says_which_stage_lacks_how_many_bytes():
    assert "stage 1 needs 9.00 GiB, has 8.00 GiB and so lacks 1.00 GiB" in str(SAMPLES[2])


def test_many_problems_are_named_up_to_a_number_and_the_others_are_counted():
    details = [
        {"type": "missing", "loc": (f"f{number}" + "x" * 1000,), "msg": "", "input": None} for number in range(50)
    ]
    error = InputError.from_details(details)
    assert len(error.problems) == MOST_PROBLEMS and error.num_more == 30 and str(error).endswith("; and 30 more")
    assert len(str(error)) < 3000, "names are cut"
    assert error.under("body").num_more == 30 and pickle.loads(pickle.dumps(error)).num_more == 30
    assert InputError.from_details(details[:MOST_PROBLEMS]).num_more == 0
