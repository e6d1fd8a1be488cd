"""The fit of the presets' constants: it finds those that made-up rows were made with, and leaves others alone."""

import pytest
from run_rows import case

from planner.spec.cluster import KernelEfficiency
from planner.spec.errors import InputError
from planner.spec.parse import parse
from profiles import catalogue
from profiles.fit.parameters import Parameter, Presets, Target, read_parameters
from profiles.fit.refit import left_out_s
from profiles.fit.search import Row, fit, predicted_s, weigh

MATMUL = Parameter(
    name="a100.matmul_ratio",
    start=0.85,
    low=0.3,
    high=0.95,
    targets=(Target(shelf="hardware", presets=("a100-sxm-80g",), path="device.efficiency.matmul_ratio"),),
)
ATTENTION = Parameter(
    name="ampere.attention_ratio",
    start=0.6,
    low=0.15,
    high=0.9,
    targets=(
        Target(shelf="hardware", presets=("a100-sxm-80g",), path="device.efficiency.attention_forward_ratio"),
        Target(
            shelf="hardware", presets=("a100-sxm-80g",), path="device.efficiency.attention_backward_ratio", scale=0.8
        ),
    ),
)
FAR = Parameter(
    name="h100.matmul_ratio",
    start=0.77,
    low=0.3,
    high=0.95,
    targets=(Target(shelf="hardware", presets=("h100-sxm-80g",), path="device.efficiency.matmul_ratio"),),
)
CASES = [
    case(batch={"micro": micro, "seq": sequence}, model={"hidden": hidden, "ffn_hidden": 4 * hidden})
    for micro, sequence, hidden in [(1, 2048, 2048), (2, 2048, 4096), (1, 8192, 2048), (2, 8192, 2048), (1, 4096, 8192)]
]
STACK = CASES[0].cluster.stack.name
ELEMENTWISE = Parameter(
    name="stack.elementwise_ratio",
    start=1.2,
    low=1.0,
    high=3.0,
    targets=(Target(shelf="software", presets=(STACK,), path="stack.elementwise_ratio"),),
)
PARAMETERS = (MATMUL, ATTENTION, ELEMENTWISE, FAR)
START = {parameter.name: parameter.start for parameter in PARAMETERS}
KNOWN = START | {MATMUL.name: 0.6, ATTENTION.name: 0.4, ELEMENTWISE.name: 2.1}


def rows(made_with: dict[str, float]) -> list[Row]:
    """Rows that take just what the formulas say."""
    presets = Presets(PARAMETERS, made_with)
    bare = [Row(f"source {number % 2}", "a publication", each, 1.0, 1.0) for number, each in enumerate(CASES)]
    return [row._replace(measured_s=seconds) for row, seconds in zip(bare, predicted_s(bare, presets), strict=True)]


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return fit(rows(KNOWN), PARAMETERS, START, rounds=30)


def test_constants_that_rows_were_made_with_are_found_again(found):
    assert found == pytest.approx(KNOWN, rel=0.01)


def test_equal_rows_give_equal_constants_bit_by_bit(found):
    assert fit(rows(KNOWN), PARAMETERS, START, rounds=30) == found


def test_constants_have_four_digits(found):
    assert all(value == float(f"{value:.4g}") for value in found.values())


def test_a_constant_that_no_row_depends_on_stays_at_its_start(found):
    assert found[FAR.name] == FAR.start


def test_constants_stay_within_their_range():
    slow = [row._replace(measured_s=100 * row.measured_s) for row in rows(KNOWN)]
    ends = fit(slow, PARAMETERS, START, rounds=30)
    assert all(parameter.low <= ends[parameter.name] <= parameter.high for parameter in PARAMETERS)
    assert ends[MATMUL.name] == pytest.approx(MATMUL.low, rel=0.01)


def test_a_source_counts_as_the_square_root_of_its_rows_also_where_some_are_left_out():
    made = rows(KNOWN)
    assert [row.weight for row in weigh(made, made)] == pytest.approx([3**-0.5, 2**-0.5, 3**-0.5, 2**-0.5, 3**-0.5])
    assert [row.weight for row in weigh(made[:2], made)] == pytest.approx([3**0.5, 2**0.5])


def test_what_a_publication_that_is_left_out_measured_plays_no_part_in_its_prediction():
    made = [row._replace(publication=row.source) for row in rows(KNOWN)]
    lied = [row._replace(measured_s=row.measured_s * (3 if row.source == "source 1" else 1)) for row in made]
    honest, after = (left_out_s(each, PARAMETERS, 1, lambda name: None) for each in (made, lied))
    which = [number for number, row in enumerate(made) if row.source == "source 1"]
    assert after[which] == pytest.approx(honest[which], rel=1e-12)
    assert list(after) != pytest.approx(list(honest))


def test_presets_of_other_constants_apply_to_device_stack_and_links():
    link = Parameter(
        name="link",
        start=0.5,
        low=0.1,
        high=1.0,
        targets=(
            Target(shelf="hardware", presets=("a100-sxm-80g",), path="intra_node.efficiency_ratio"),
            Target(shelf="hardware", presets=("a100-sxm-80g",), path="inter_node.efficiency_ratio", scale=0.5),
        ),
    )
    cluster = CASES[0].cluster
    applied = Presets((*PARAMETERS, link), KNOWN | {"link": 0.5}).applied(cluster)
    efficiency = applied.device.efficiency
    assert isinstance(efficiency, KernelEfficiency)
    assert efficiency.matmul_ratio == 0.6
    assert (efficiency.attention_forward_ratio, efficiency.attention_backward_ratio) == pytest.approx((0.4, 0.32))
    assert applied.stack.elementwise_ratio == 2.1
    assert [level.link.efficiency_ratio for level in applied.levels] == [0.5, 0.25]
    assert [level.link.bandwidth_bytes_per_s for level in applied.levels] == [
        level.link.bandwidth_bytes_per_s for level in cluster.levels
    ]


def test_edits_of_presets_leave_the_presets_alone():
    before = catalogue.content("hardware", "a100-sxm-80g")
    Presets(PARAMETERS, KNOWN).content("hardware", "a100-sxm-80g")["device"]["name"] = "other"
    assert Presets(PARAMETERS, START).content("hardware", "a100-sxm-80g")["device"]["name"] == "a100-sxm-80g"
    assert catalogue.content("hardware", "a100-sxm-80g") == before


def test_what_the_presets_hold_is_the_constant_times_its_scale():
    preset = catalogue.content("hardware", "a100-sxm-80g")["device"]["efficiency"]
    assert ATTENTION.value == preset["attention_forward_ratio"]
    scaled = ATTENTION.model_copy(update={"targets": (ATTENTION.targets[1],)})
    assert scaled.value == pytest.approx(preset["attention_backward_ratio"] / 0.8)


def test_a_constant_knows_its_presets_by_shelf():
    assert (MATMUL.presets("hardware"), MATMUL.presets("software")) == ({"a100-sxm-80g"}, frozenset())


def test_all_fitted_constants_have_names_of_their_own_and_start_inside_their_range():
    known = read_parameters()
    assert len({parameter.name for parameter in known}) == len(known) <= 60
    assert all(parameter.low <= parameter.start <= parameter.high for parameter in known)
    places = [
        (target.shelf, preset, target.path)
        for parameter in known
        for target in parameter.targets
        for preset in target.presets
    ]
    assert len(set(places)) == len(places)


def test_a_place_that_holds_nothing_of_the_constant_is_refused():
    place = {"shelf": "hardware", "presets": ["a100-sxm-80g"], "path": "device.name", "scale": 0}
    with pytest.raises(InputError, match="scale"):
        parse(Target, place, "target")
