"""The names of augmentations: what a command line may say, and what it then means."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.augment import Augmentation
from bloodcells.augment.settings import _RANGES
from bloodcells.errors import ConfigurationError

NOTHING = Augmentation.parse("none")


@st.composite
def augmentations(draw: st.DrawFn) -> Augmentation:
    values = {}
    for name, (low, high, _) in _RANGES.items():
        whole = name in ("randaugment", "augmix")
        numbers = st.integers(int(low), int(high)) if whole else st.floats(low, high)
        values[name] = draw(st.just(low) | numbers)
    values["mirror" if draw(st.booleans()) else "flips"] = 0
    if not values["randaugment"]:
        values["magnitude"] = values["magnitude_spread"] = 0
    return Augmentation(**values)


def test_the_default_is_todays() -> None:
    assert Augmentation() == Augmentation.parse("default")
    assert str(Augmentation()) == (
        "flips=0.5,rotation=180,zoom=1.8,shift=0.08,stain=0.3,lamp=0.25,density=0.35,"
        "colour=0.6,shade=0.4,blur=1.5,sharpen=0.8,noise=12,strangers=0.08,mild=0.3"
    )


def test_veiled_goes_further_than_the_default_where_a_veil_does() -> None:
    changed = {"power": 0.5, "blur": 2.5, "shift": 0.15}
    assert Augmentation.parse("veiled") == Augmentation(**Augmentation().to_dict() | changed)


def test_report_is_the_published_method() -> None:
    report = Augmentation.parse("report")
    # Rotation by 40 degrees, shifts of 0.2, zoom of 0.2, a horizontal flip; RandAugment with
    # 4 operations and a magnitude of 0.3, standard deviation 0.15, of 1.
    assert report == Augmentation.parse("mirror,rotation=40,shift=0.2,zoom=1.2,randaugment=4:3:1.5")
    assert (report.rotation, report.shift, report.zoom) == (40, 0.2, 1.2)
    assert (report.mirror, report.flips) == (0.5, 0)
    assert report.randaugment == 4
    assert (report.magnitude / 10, report.magnitude_spread / 10) == (0.3, 0.15)
    assert report.stain == report.lamp == report.colour == report.blur == 0
    assert report.augmix == report.cutmix == report.mixup == 0


def test_what_is_not_named_is_off() -> None:
    some = Augmentation.parse("flips, rotation=40, zoom=1.2, shift=0.2, randaugment=4:3")
    assert some == Augmentation(
        **NOTHING.to_dict()
        | {"flips": 0.5, "rotation": 40, "zoom": 1.2, "shift": 0.2, "randaugment": 4}
        | {"magnitude": 3}
    )
    assert Augmentation.parse("rotation").rotation == 180
    assert Augmentation.parse("default,blur=0,mixup=0.2") == Augmentation(blur=0, mixup=0.2)
    assert Augmentation.parse("report,randaugment=2:5").magnitude_spread == 0
    assert Augmentation.parse("report,randaugment=0:0") == Augmentation.parse(
        "mirror,rotation=40,shift=0.2,zoom=1.2"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no ''"),
        ("flip", "no 'flip'; choose of flips, mirror"),
        ("flips,", "no ''"),
        ("flips,default", "no 'default'"),
        ("magnitude=3", "no 'magnitude'"),
        ("zoom", "write zoom=NUMBER"),
        ("zoom=", "write zoom=NUMBER"),
        ("zoom=1.2:3", "write zoom=NUMBER"),
        ("zoom=far", "'far' is no number"),
        ("zoom=0.5", "zoom=0.5: give 1 to 4"),
        ("zoom=nan", "zoom=nan: give 1 to 4"),
        ("rotation=181", "give 0 to 180"),
        ("shift=0.6", "give 0 to 0.45"),
        ("stain=-1", "give 0 to 1"),
        ("lamp=2", "give 0 to 1"),
        ("colour=inf", "give 0 to 1"),
        ("blur=9", "give 0 to 4 .px"),
        ("flips=0.9", "give 0 to 0.5"),
        ("flips,mirror", "one of the two"),
        ("flips,flips", "there twice"),
        ("randaugment", "randaugment=OPERATIONS:MAGNITUDE"),
        ("randaugment=2", "randaugment=OPERATIONS:MAGNITUDE"),
        ("randaugment=2:11", "magnitude=11: give 0 to 10"),
        ("randaugment=2.5:3", "whole number"),
        ("augmix=11", "give 0 to 10"),
        ("augmix=1.5", "whole number"),
        ("cutmix=-1", "give 0 to 10"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as error:
        Augmentation.parse(text)
    assert str(error.value).startswith("--augment")


def test_fields_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="give a number"):
        Augmentation(zoom="wide")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="give a number"):
        Augmentation(flips=True)


@given(augmentations())
def test_text_and_dict_give_back_the_same(augmentation: Augmentation) -> None:
    assert Augmentation.parse(str(augmentation)) == augmentation
    assert Augmentation(**json.loads(json.dumps(augmentation.to_dict()))) == augmentation


@given(augmentations(), st.floats(0, 3), st.floats(0, 3))
def test_strength_says_how_far_everything_goes(
    augmentation: Augmentation, one: float, other: float
) -> None:
    assert augmentation.scaled(1) == augmentation
    assert augmentation.scaled(0) == NOTHING
    less, more = (augmentation.scaled(each).to_dict() for each in sorted((one, other)))
    for name, (low, high, _) in _RANGES.items():
        assert low <= less[name] <= more[name] <= high


def test_strength_multiplies() -> None:
    half = Augmentation.parse("report,augmix=3,stain=0.1,blur=1").scaled(0.5)
    assert math.isclose(half.zoom, 1.2**0.5)
    assert (half.rotation, half.shift, half.mirror) == (20, 0.1, 0.25)
    assert (half.randaugment, half.magnitude, half.magnitude_spread) == (4, 1.5, 0.75)
    assert (half.augmix, half.stain, half.blur) == (2, 0.05, 0.5)
    assert Augmentation.parse("rotation=170").scaled(2).rotation == 180


@pytest.mark.parametrize("strength", [-1, math.nan, math.inf])
def test_a_strength_must_be_a_number(strength: float) -> None:
    with pytest.raises(ConfigurationError, match="strength"):
        Augmentation().scaled(strength)
