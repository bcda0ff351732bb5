"""The configuration of a run: every recipe, and every way to get one wrong."""

import copy
import math
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from kithkin.config import RunConfig, list_recipes, load_config, parse_config
from kithkin.errors import InputError
from kithkin.model_config import SIZES, KiTConfig

PAPER = ["gopro", "rain13k", "sidd"]
SECTIONS = ["model", "data", "validation", "schedule", "optimizer", "loss"]


def values(name="sidd"):
    return tomllib.loads(list_recipes()[name].read_text(encoding="utf-8"))


# The recipes


def test_there_are_recipes():
    assert set(list_recipes()) >= {"denoise-gaussian-tiny", "denoise-gaussian-small", *PAPER}
    assert all(path.suffix == ".toml" and path.is_file() for path in list_recipes().values())


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_loads(name):
    config = load_config(name)
    assert config.name == name
    assert config.data.folders == ()
    assert config.network == KiTConfig(**config.model)
    assert load_config(list_recipes()[name]) == config
    assert load_config(str(list_recipes()[name])) == config


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_leaves_nothing_to_a_default(name):
    """But for what TOML can't say (that there is no number) and for what is given at the start or goes with photos."""
    given = values(name)
    assert set(given) == set(RunConfig.model_fields)
    of_the_other_kind = (
        {"depth", "ffn_ratio", "stem_stride"} if "blocks" in given["model"] else {"blocks", "full_width"}
    )
    assert set(given["model"]) == {field.name for field in fields(KiTConfig)} - {"n_buckets"} - of_the_other_kind
    for section in SECTIONS[1:]:
        known = set(RunConfig.model_fields[section].annotation.model_fields)
        optional = {"sigma", "folder", "sigmas", "degradation", "degraded_share", "pairs", "pairs_share"}
        optional |= {"weights", "exclude", "augment"}
        optional |= {"momentum", "update_rms"} if given["optimizer"]["kind"] == "adamw" else set()
        assert known - set(given[section]) <= optional, section
    degradation = load_config(name).data.degradation
    if degradation is not None:
        assert set(given["data"]["degradation"]) == set(type(degradation).model_fields)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_numbers_are_in_its_recipes(name):
    """Sec. 4.1, and the ε of Sec. 3.4."""
    config = load_config(name)
    assert (config.schedule.batch_size, config.data.crop, config.schedule.epochs) == (16, 128, 300)
    assert (config.schedule.lr, config.schedule.steps) == (1e-4, 0)
    assert config.schedule.warmup > 0
    assert config.loss.epsilon == 1e-3
    assert config.data.kind == "pairs"
    assert config.optimizer.ema_decay == 0
    assert config.optimizer.grad_clip == 0
    network = config.network
    assert (network.patch_size, network.k, network.n_hashes, network.depth) == (4, 4, 4, 2)
    assert not network.share_query_key
    assert network == KiTConfig.named("paper")


def test_the_tasks_of_the_recipes():
    assert {name: load_config(name).task for name in PAPER} == {
        "sidd": "denoise",
        "gopro": "deblur",
        "rain13k": "derain",
    }
    assert load_config("sidd").loss.edge_weight == 0
    assert load_config("gopro").loss.edge_weight == load_config("rain13k").loss.edge_weight == 0.05
    for name in list_recipes():
        config = load_config(name)
        if config.data.kind == "photos":
            kind = config.data.degradation.kind if config.data.degradation else None
            white = "denoise-gaussian"
            assert config.task == {None: white, "rain": "derain", "blur": "deblur"}.get(kind, "denoise")


@pytest.mark.parametrize("size", [size for size in SIZES if size != "base"])
def test_every_named_size_but_the_largest_has_a_recipe(size):
    assert KiTConfig.named(size) in [load_config(name).network for name in list_recipes()]


# Changes


def test_a_change_by_dotted_key():
    changes = {"schedule.steps": 7, "schedule.epochs": 0, "name": "mine", "data.folders": ["a", "b"], "model.k": 2}
    config = load_config("sidd", changes)
    assert (config.schedule.steps, config.schedule.epochs, config.name, config.network.k) == (7, 0, "mine", 2)
    assert config.data.folders == (Path("a"), Path("b"))
    untouched = load_config("sidd")
    assert config.optimizer == untouched.optimizer
    assert config.data.crop == untouched.data.crop


def test_changes_do_not_reach_back_into_what_was_given():
    given = values()
    before = copy.deepcopy(given)
    parse_config(given, {"data.crop": 64, "model.k": 2, "seed": 3}, source="here")
    assert given == before


def test_a_section_can_be_made_by_a_change():
    given = values()
    loss = given.pop("loss")
    config = parse_config(given, {f"loss.{key}": value for key, value in loss.items()}, source="here")
    assert config == load_config("sidd")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sead", "seed"),
        ("data.crops", "data.*crop"),
        ("data.sigmas", "sigma"),
        ("validation.evry", "every"),
        ("schedule.batchsize", "batch_size"),
        ("optimizer.weight_dekay", "weight_decay"),
        ("loss.edge_wight", "edge_weight"),
        ("model.widht", "width"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key, near):
    with pytest.raises(InputError, match=near) as caught:
        load_config("sidd", {key: 1})
    assert key.rpartition(".")[2] in str(caught.value)
    assert "did you mean" in str(caught.value)
    assert "sidd.toml" in str(caught.value)


@pytest.mark.parametrize("key", ["zzz", *(f"{section}.zzz" for section in SECTIONS)])
def test_an_unknown_key_like_no_other_is_refused_in_every_section(key):
    with pytest.raises(InputError, match=r"zzz.*known:"):
        load_config("sidd", {key: 1})


@pytest.mark.parametrize("key", ["nothing.crop", "data.crop.x", "name.x", "seed.x", ".", "data."])
def test_a_dotted_key_that_leads_nowhere_is_refused(key):
    with pytest.raises(InputError):
        load_config("sidd", {key: 1})


def test_every_mistake_is_listed():
    with pytest.raises(InputError, match=r"crop.*lr"):
        load_config("sidd", {"data.crop": 0, "schedule.lr": -1})


# Values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "upscale"),
        ("seed", -1),
        ("seed", 2**64),
        ("precision", "float16"),
        ("backend", "cudnn"),
        ("name", None),
        ("data.kind", "video"),
        ("data.crop", 0),
        ("data.crop", 64.5),
        ("data.crop", "wide"),
        ("data.folders", "photos"),
        ("data.cache_gb", -1),
        ("validation.crop", 0),
        ("validation.every", 0),
        ("schedule.batch_size", 0),
        ("schedule.steps", -1),
        ("schedule.warmup", -1),
        ("schedule.lr", 0),
        ("schedule.lr", math.nan),
        ("schedule.final_lr", -1e-6),
        ("optimizer.betas", [0.9]),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.betas", [-0.1, 0.9]),
        ("optimizer.weight_decay", -1),
        ("optimizer.kind", "sgd"),
        ("optimizer.update_rms", 0),
        ("optimizer.grad_clip", -1),
        ("optimizer.ema_decay", 1),
        ("optimizer.ema_decay", -0.1),
        ("loss.edge_weight", -0.1),
        ("loss.epsilon", 0),
        ("model", 3),
        ("model.k", 0),
        ("model.n_buckets", 3),
        ("model.width", "wide"),
        ("model.weighting", "sum"),
        ("model.n_heads", 5),
        ("data", "photos"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(InputError, match=key.rpartition(".")[2]):
        load_config("sidd", {key: value})


@pytest.mark.parametrize("key", ["name", "seed", "task", "precision", *SECTIONS])
def test_a_missing_part_is_refused_by_name(key):
    given = values()
    del given[key]
    with pytest.raises(InputError, match=rf"here.*{key}"):
        parse_config(given, source="here")


@pytest.mark.parametrize("key", ["data.crop", "data.kind", "schedule.lr", "optimizer.betas", "loss.epsilon"])
def test_a_missing_key_is_refused_by_name(key):
    given = values()
    section, name = key.split(".")
    del given[section][name]
    with pytest.raises(InputError, match=key):
        parse_config(given, source="here")


@pytest.mark.parametrize("sigma", [[50, 10], [-1, 5], [0, 256], [10], [1, 2, 3], "high"])
def test_noise_levels_that_can_not_be_meant(sigma):
    with pytest.raises(InputError, match="sigma"):
        load_config("denoise-gaussian-tiny", {"data.sigma": sigma})


@pytest.mark.parametrize("sigma", [[0, 0], [25, 25], [0, 255]])
def test_noise_levels_at_the_edges(sigma):
    assert load_config("denoise-gaussian-tiny", {"data.sigma": sigma}).data.sigma == tuple(sigma)


def test_noise_goes_with_photographs_alone():
    with pytest.raises(InputError, match="sigma"):
        load_config("sidd", {"data.sigma": [0, 50]})
    with pytest.raises(InputError, match="sigma"):
        load_config("denoise-gaussian-tiny", {"data.kind": "pairs"})
    with pytest.raises(InputError, match="sigma"):
        load_config("sidd", {"data.kind": "photos"})


# Degradations


CAMERA = {"data.degradation": {"kind": "camera"}, "data.sigma": None}


def test_a_degradation_instead_of_noise_or_beside_it():
    alone = load_config("denoise-gaussian-tiny", CAMERA).data
    assert (alone.degradation.kind, alone.sigma, alone.degraded_share) == ("camera", None, 1)
    mixed = load_config("denoise-gaussian-tiny", {**CAMERA, "data.sigma": [0, 25], "data.degraded_share": 0.7}).data
    assert (mixed.degradation.kind, mixed.sigma, mixed.degraded_share) == ("camera", (0, 25), 0.7)
    other = load_config("denoise-gaussian-tiny", {**CAMERA, "data.degradation.kind": "correlated"}).data
    assert other.degradation.kind == "correlated"


def test_a_recipe_without_the_keys_of_degradations_means_what_it_meant():
    data = load_config("denoise-gaussian-tiny").data
    assert (data.sigma, data.degradation, data.degraded_share) == ((0, 55), None, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {**CAMERA, "data.sigma": [0, 25]},
        {**CAMERA, "data.degraded_share": 0.5},
        {"data.degraded_share": 0.5},
        {**CAMERA, "data.kind": "pairs"},
        {**CAMERA, "data.degraded_share": 1.5, "data.sigma": [0, 25]},
    ],
    ids=["sigma without a share", "share without sigma", "share of nothing", "pairs", "more than all"],
)
def test_a_mix_that_can_not_be_meant(changes):
    with pytest.raises(InputError, match=r"degrad"):
        load_config("denoise-gaussian-tiny", changes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("kind", "fog", "correlated.*camera"),
        ("jpeg_qality", [1, 2], r"unknown key data\.degradation\.jpeg_qality; did you mean 'jpeg_quality'"),
        ("zzz", 1, "known: kind, phone_share"),
        ("jpeg_quality", [90, 80], "jpeg_quality.*low to high"),
        ("jpeg_quality", [0, 80], "jpeg_quality"),
        ("phone_share", 1.1, r"toml: data\.degradation\.phone_share: "),
        ("noise_left", [0.5], "noise_left"),
        ("correlated_sigma", [0, 300], "correlated_sigma"),
    ],
)
def test_what_a_degradation_does_not_know_is_refused_by_name(key, value, said):
    with pytest.raises(InputError, match=said):
        load_config("denoise-gaussian-tiny", {**CAMERA, f"data.degradation.{key}": value})


def test_a_key_that_is_called_like_a_kind_is_named_as_a_key():
    noise = {"data.degradation": {"kind": "noise"}, "data.sigma": None}
    with pytest.raises(InputError, match=r"toml: data\.degradation\.camera: "):
        load_config("denoise-gaussian-tiny", {**noise, "data.degradation.camera": 2})


def test_a_degradation_without_its_kind_is_refused():
    with pytest.raises(InputError, match="degradation.*kind"):
        load_config("denoise-gaussian-tiny", {"data.degradation": {"jpeg_share": 1}})


def test_every_degradation_has_a_function_and_every_function_a_section():
    from kithkin.data.degrade import DEGRADATIONS

    for kind in DEGRADATIONS:
        assert (
            load_config("denoise-gaussian-tiny", {**CAMERA, "data.degradation.kind": kind}).data.degradation.kind
            == kind
        )
    with pytest.raises(InputError) as caught:
        load_config("denoise-gaussian-tiny", {**CAMERA, "data.degradation.kind": "fog"})
    assert all(f"'{kind}'" in str(caught.value) for kind in DEGRADATIONS)
    assert str(caught.value).count("'") == 2 * len(DEGRADATIONS) + 4  # and those around fog and kind


def test_noise_in_validation_goes_with_photographs_alone():
    with pytest.raises(InputError, match="sigma"):
        load_config("sidd", {"validation.sigmas": [15, 25]})
    with pytest.raises(InputError, match="sigma"):
        load_config("denoise-gaussian-tiny", {"validation.sigmas": [300]})


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (10, 10)])
def test_a_run_has_one_length(steps, epochs):
    with pytest.raises(InputError, match="steps and epochs"):
        load_config("sidd", {"schedule.steps": steps, "schedule.epochs": epochs})


def test_epochs_in_steps():
    schedule = load_config("sidd").schedule
    assert schedule.in_steps(1600) == (300 * 100, 3 * 100)
    assert schedule.in_steps(1615) == (300 * 100, 3 * 100)
    assert schedule.in_steps(5) == (300, 3)  # fewer pictures than a batch
    counted = load_config("denoise-gaussian-tiny").schedule
    assert counted.in_steps(5) == counted.in_steps(10**6) == (counted.steps, counted.warmup)


def test_a_configuration_is_frozen_and_survives_json():
    config = load_config("denoise-gaussian-tiny", {"data.folders": ["a"], "validation.folder": "b"})
    with pytest.raises(ValidationError):
        config.seed = 3
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


# Files


def test_a_file_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        list_recipes()["sidd"].read_text(encoding="utf-8").replace("seed = 0", "seed = 5"), encoding="utf-8"
    )
    assert load_config(path).seed == 5
    path.write_text(path.read_text(encoding="utf-8") + "\nepsilo = 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.toml.*epsilo.*epsilon"):
        load_config(path)


def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    for source in ("sid", tmp_path / "missing.toml", tmp_path):
        with pytest.raises(InputError, match="denoise-gaussian-tiny.*sidd"):
            load_config(source)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b"[data\n", b"name = 1\nname = 2"])
def test_a_file_that_is_no_toml(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.toml is not a TOML file"):
        load_config(tmp_path / "a.toml")


def test_an_empty_file_names_what_is_missing(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"")
    with pytest.raises(InputError, match="schedule"):
        load_config(tmp_path / "a.toml")


def test_rain_without_a_look_is_refused():
    shares = {f"data.degradation.{look}": 0.0 for look in ("light", "medium", "heavy")}
    with pytest.raises(InputError, match="at least one look"):
        load_config("derain-small", shares)


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "9" * 5000], ids=["nested", "long"])
def test_toml_that_no_parser_takes_is_refused(tmp_path, text):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.toml is not a TOML file"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.crop", 10**6, "8192"),
        ("schedule.batch_size", 10**9, "65536"),
        ("schedule.steps", 10**12, "1000000000"),
        ("schedule.lr", float("inf"), "finite"),
        ("data.workers", 10**6, "1024"),
        ("model.width", 10**6, "width must be at most 8192"),
        ("model.n_hashes", 256, "lower n_hashes, n_buckets or patch_size"),
        ("model.n_stages", 8, "lower width, n_stages, depth or ffn_ratio"),
    ],
)
def test_sizes_that_ask_for_more_than_is_meant_are_refused(key, value, said):
    wide = {"model.width": 1024, "model.n_hashes": 1} if key == "model.n_stages" else {}
    with pytest.raises(InputError, match=said):
        load_config("denoise-gaussian-tiny", {**wide, key: value})


def test_crops_and_their_number_are_bounded_together():
    with pytest.raises(InputError, match="pixels a step"):
        load_config("denoise-gaussian-tiny", {"data.crop": 4096, "schedule.batch_size": 1024})
