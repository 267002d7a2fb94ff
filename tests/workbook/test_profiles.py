"""Profiles: the three files, overrides, where the choice comes from, and errors by field."""

import pytest

from workbook.profiles import (
    DEPTHS,
    PROFILES,
    ProfileError,
    active_profile,
    load_profile,
    use_profile,
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("WORKBOOK_PROFILE", "WORKBOOK_DEPTH", "WORKBOOK_OVERRIDES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_profile_is_valid_at_every_depth(name, depth):
    profile = load_profile(name, depth)
    assert (profile.name, profile.depth) == (name, depth)
    assert profile.sampling.settings(temperature=1.0).temperature == 1.0


def test_lesson_01_evaluates_at_least_512_problems_unless_it_is_a_smoke_run():
    for name in PROFILES:
        for depth in ("short", "full"):
            assert load_profile(name, depth).sizes.eval_problems >= 512


def test_the_tiny_profile_names_files_of_the_course_only():
    profile = load_profile("tiny")
    names = [*profile.models.model_dump().values(), *profile.data.model_dump().values()]
    assert all(name.startswith("workbook/assets/") for name in names)
    assert profile.path(profile.models.maths).startswith("/")
    assert load_profile("full").path("Qwen/Qwen3-8B-AWQ") == "Qwen/Qwen3-8B-AWQ"


def test_overrides_change_one_value_and_keep_its_type():
    overrides = ["sampling.temperature=0.7", "sizes.eval_problems=4", "engine.quantization=nf4"]
    profile = load_profile("tiny", "short", overrides)
    assert profile.sampling.temperature == 0.7 and profile.sampling.top_p == 1.0
    assert profile.sizes.eval_problems == 4 and profile.engine.quantization == "nf4"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampling.temperature=-1", r"Profile tiny: sampling.temperature: .* \(got -1\)"),
        ("sampling.temperature=hot", r"sampling.temperature: .*number.*'hot'"),
        ("sizes.eval_problems=2.5", "sizes.eval_problems: .*integer"),
        ("engine.name=tensorflow", "engine.name: "),
        ("sampling.temprature=1", r"is no setting.*like sampling.temperature="),
        ("temperature=1", "is no setting of a profile"),
        ("sampling.temperature", "is no setting of a profile"),
        ("name=other", "is no setting of a profile"),
        ("sampling.temperature=[1", "has a value that cannot be read"),
    ],
)
def test_a_bad_override_is_answered_by_field(override, says):
    with pytest.raises(ProfileError, match=says) as caught:
        load_profile("tiny", "short", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "depth"), [("huge", "short"), ("tiny", "deep")])
def test_unknown_names_list_the_known(name, depth):
    with pytest.raises(ProfileError, match="take one of"):
        load_profile(name, depth)


def test_the_environment_comes_before_the_cell(monkeypatch, capsys):
    assert use_profile("tiny", "sampling.seed=3").sampling.seed == 3
    monkeypatch.setenv("WORKBOOK_PROFILE", "small")
    monkeypatch.setenv("WORKBOOK_DEPTH", "smoke")
    monkeypatch.setenv("WORKBOOK_OVERRIDES", "sampling.seed=5 engine.batch_size=2")
    profile = use_profile("tiny", "sampling.seed=3")
    assert (profile.name, profile.depth, profile.sampling.seed) == ("small", "smoke", 5)
    assert profile.engine.batch_size == 2 and active_profile() is profile
    assert "Profile small, depth smoke." in capsys.readouterr().out
