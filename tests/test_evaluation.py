"""Evaluation: the published noise, the rows, the means."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from kithkin.data.degrade import benchmark_noise
from kithkin.errors import InputError, KithkinError
from kithkin.evaluation import (
    PROTOCOLS,
    Report,
    Row,
    evaluate,
    fill_table,
    list_tables,
    load_table,
    means_table,
    over_k_and_h,
    submit,
)
from kithkin.evaluation.tables import row_at
from kithkin.images import Picture, write_picture
from kithkin.methods import ModelMethod, open_method
from kithkin.metrics import psnr, ssim
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

from layouts import write_blocks, write_dnd

SMALL = KiTConfig(width=8, depth=1, n_hashes=1)


@pytest.fixture(scope="module")
def changing():
    """A network that changes its input."""
    model = KiT(SMALL).eval()
    torch.nn.init.normal_(model.head.conv3.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return model


def photo(path, seed, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.float32) / 255
    write_picture(Picture(pixels), path)
    return np.rint(pixels * 255).astype(np.uint8)


def test_benchmark_noise_is_the_published_one():
    clean = np.random.RandomState(5).rand(7, 9, 3)
    before = np.random.get_state()[1].copy()
    found = benchmark_noise(clean, 25)
    assert (np.random.get_state()[1] == before).all()
    state = np.random.get_state()
    np.random.seed(0)
    expected = clean + np.random.normal(0, 25 / 255, clean.shape)
    np.random.set_state(state)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_gray_picture_gets_one_channel_of_noise_and_is_measured_as_one(tmp_path, changing):
    pixels = np.random.RandomState(5).randint(0, 256, (40, 48)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    clean = np.repeat(pixels[..., None], 3, 2) / 255
    found = benchmark_noise(clean, 25)
    state = np.random.get_state()
    np.random.seed(0)
    expected = (clean[..., :1] + np.random.normal(0, 25 / 255, (40, 48, 1))).astype(np.float32)
    np.random.set_state(state)
    np.testing.assert_array_equal(found, np.repeat(expected, 3, 2))
    (row,) = evaluate(changing, tmp_path, sigmas=(25,)).rows
    with torch.inference_mode():
        restored = changing(torch.from_numpy(found).permute(2, 0, 1)[None])[0].mean(0)
    rounded = (restored.clamp(0, 1) * 255).round().numpy()
    assert row.psnr == pytest.approx(10 * np.log10(255**2 / ((rounded - pixels) ** 2).mean()), abs=1e-3)


def test_gaussian_rows_are_what_the_protocol_says(tmp_path, changing):
    pictures = {f"{name}.png": photo(tmp_path / f"{name}.png", i) for i, name in enumerate("ba")}
    report = evaluate(changing, tmp_path, sigmas=(15, 50))
    assert [(row.image, row.condition) for row in report.rows] == [
        (image, f"sigma {sigma}") for image in ("a.png", "b.png") for sigma in (15, 50)
    ]
    for row in report.rows:
        clean = pictures[row.image]
        noisy = benchmark_noise(clean / 255, float(row.condition.split()[1]))
        with torch.inference_mode():
            restored = changing(torch.from_numpy(noisy).permute(2, 0, 1)[None])
        rounded = (restored[0].clamp(0, 1) * 255).round().to(torch.uint8)
        assert row.psnr == pytest.approx(psnr(rounded, clean, protocol="rgb-uint8"), abs=1e-4)
        assert row.ssim == pytest.approx(ssim(rounded, clean, window="wang2d", protocol="rgb-uint8"), abs=1e-5)
        assert row.psnr_input == pytest.approx(psnr(noisy, clean, protocol="rgb-uint8"))
    means = report.means()["sigma 50"]
    assert means["images"] == 2
    assert means["psnr"] == pytest.approx(np.mean([r.psnr for r in report.rows if r.condition == "sigma 50"]))


def test_noise_is_not_clipped_before_the_network(tmp_path):
    photo(tmp_path / "a.png", 0)
    seen = []

    class Spy(KiT):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    evaluate(Spy(SMALL).eval(), tmp_path, sigmas=(50,))
    assert seen[0].min() < 0
    assert seen[0].max() > 1


def test_pairs_are_found_by_their_folders_and_rain_is_measured_on_y(tmp_path):
    source = photo(tmp_path / "input/x.png", 1)
    target = photo(tmp_path / "target/x.png", 2)
    model = KiT(SMALL).eval()  # untrained: returns its input
    plain = evaluate(model, tmp_path)
    assert plain.protocol.name == "rgb"
    assert plain.rows[0].psnr == pytest.approx(psnr(source, target, protocol="rgb-uint8"))
    rain = evaluate(model, tmp_path, "rain").rows[0]
    assert rain.psnr == pytest.approx(psnr(source, target, protocol="y-matlab"))
    assert rain.ssim == pytest.approx(ssim(source, target, window="wang2d", protocol="y-matlab"))


def test_report_is_plain_values_and_is_told_row_by_row(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png", i)
    told = []
    report = evaluate(
        KiT(SMALL).eval(),
        tmp_path,
        sigmas=(25,),
        limit=2,
        watch=lambda row, total, pictures: told.append((total, pictures.restored.shape)),
    )
    assert told == [(2, (40, 48, 3))] * 2
    values = report.to_dict()
    assert values["protocol"]["name"] == "gaussian"
    assert [row["image"] for row in values["images"]] == ["0.png", "1.png"]
    assert values["means"]["sigma 25"]["images"] == 2


def test_wrong_requests_are_refused(tmp_path):
    photo(tmp_path / "a.png", 0)
    model = KiT(SMALL).eval()
    for wrong in ({"protocol": "psnr"}, {"sigmas": ()}, {"sigmas": (-1.0,)}, {"limit": 0}, {"protocol": "rain"}):
        with pytest.raises(InputError):
            evaluate(model, tmp_path, **wrong)
    with pytest.raises(InputError, match="not a folder"):
        evaluate(model, tmp_path / "missing")
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


def test_a_cut_off_evaluation_goes_on_from_its_file(tmp_path, changing):
    for i in range(3):
        photo(tmp_path / f"photos/{i}.png", i)
    scores = tmp_path / "scores.csv"
    whole = evaluate(changing, tmp_path / "photos", sigmas=(15, 25), csv=scores)
    lines = scores.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 7
    scores.write_text("".join(lines[:4]) + lines[4][:40], encoding="utf-8")  # killed while it wrote the fourth row
    measured = []
    again = evaluate(
        changing,
        tmp_path / "photos",
        sigmas=(15, 25),
        csv=scores,
        watch=lambda row, total, pictures: measured.append(pictures is not None),
    )
    assert measured == [False, False, False, True, True, True]
    for row, other in zip(whole.rows, again.rows, strict=True):
        assert (row.image, row.condition, row.psnr, row.ssim) == (other.image, other.condition, other.psnr, other.ssim)
    assert len(list(csv.DictReader(scores.open(encoding="utf-8")))) == 6


def test_rows_of_other_weights_or_protocols_are_not_taken_over(tmp_path, changing):
    photo(tmp_path / "set/input/a.png", 1)
    photo(tmp_path / "set/target/a.png", 2)
    scores = tmp_path / "scores.csv"
    first = evaluate(changing, tmp_path / "set", "rgb", csv=scores).rows[0]
    other = evaluate(KiT(SMALL).eval(), tmp_path / "set", "rgb", csv=scores).rows[0]
    rain = evaluate(changing, tmp_path / "set", "rain", csv=scores).rows[0]
    assert len({first.psnr, other.psnr, rain.psnr}) == 3
    assert len(list(csv.DictReader(scores.open(encoding="utf-8")))) == 3


def test_rows_of_another_k_or_h_are_not_taken_over(tmp_path):
    photo(tmp_path / "set/a.png", 1, size=(96, 96))
    scores = tmp_path / "scores.csv"
    specs = (
        "denoise-gaussian",
        "denoise-gaussian[h=1]",
        "denoise-gaussian[k=8]",
        "denoise-gaussian[k=4,h=2]",
    )  # the last are its own
    found = [evaluate(open_method(spec), tmp_path / "set", sigmas=(25,), csv=scores) for spec in specs]
    assert [report.method for report in found] == [
        "denoise-gaussian-tiny",
        "denoise-gaussian-tiny[h=1]",
        "denoise-gaussian-tiny[k=8]",
        "denoise-gaussian-tiny",
    ]
    assert len({report.rows[0].psnr for report in found}) == 3
    assert found[3] == found[0]  # the seconds too: it was not measured again
    evaluate(open_method("denoise-gaussian[h=1]").model, tmp_path / "set", sigmas=(25,), csv=scores)
    evaluate(open_method("denoise-gaussian").model, tmp_path / "set", sigmas=(25,), csv=scores)
    rows = list(csv.DictReader(scores.open(encoding="utf-8")))
    assert [row["method"] for row in rows] == [*(r.method for r in found[:3]), "model", "model"]


def test_two_sets_of_one_name_do_not_share_rows(tmp_path):
    for seed, place in enumerate(("one", "two")):
        photo(tmp_path / place / "test/a.png", seed)
    found = [
        evaluate(open_method("nlm"), tmp_path / place / "test", sigmas=(25,), csv=tmp_path / "scores.csv").rows[0]
        for place in ("one", "two", "one")
    ]
    assert found[0] == found[2] != found[1]
    assert len(list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8")))) == 2


def test_equal_pictures_survive_the_file(tmp_path):
    photo(tmp_path / "set/input/a.png", 1)
    photo(tmp_path / "set/target/a.png", 1)
    for _ in range(2):
        report = evaluate(open_method("input"), tmp_path / "set", csv=tmp_path / "scores.csv")
        assert report.rows[0].psnr == math.inf
    assert report.to_dict()["means"]["pairs"]["psnr"] is None
    assert "inf" in means_table([report], "csv")


def test_a_file_of_something_else_is_left_alone(tmp_path):
    photo(tmp_path / "set/a.png", 1)
    notes = tmp_path / "notes.csv"
    for text in ("my notes\n", "my notes"):
        notes.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"notes\.csv"):
            evaluate(KiT(SMALL).eval(), tmp_path / "set", csv=notes)
        assert notes.read_text(encoding="utf-8") == text


def test_a_method_that_gives_nan_is_named_with_its_picture(tmp_path, changing):
    for i in range(2):
        photo(tmp_path / f"set/{i}.png", i)

    class Broken(ModelMethod):
        def __call__(self, image, *, sigma=None):
            seen.append(sigma)
            restored = super().__call__(image)
            return restored if len(seen) == 1 else restored * np.nan

    seen = []
    scores = tmp_path / "scores.csv"
    with pytest.raises(KithkinError, match=r"broken on 1\.png"):
        evaluate(Broken(changing, "broken"), tmp_path / "set", sigmas=(25,), csv=scores)
    assert seen == [25, 25]
    assert len(scores.read_text(encoding="utf-8").splitlines()) == 2  # what was measured is kept


def made_up_report(method, dataset, protocol, **means):
    """A report whose condition -> (psnr_input, psnr, ssim) are given."""
    rows = [Row("a.png", c, before, after, 0.5, part, 1.0, 1.0) for c, (before, after, part) in means.items()]
    return Report(method, dataset, PROTOCOLS[protocol], tuple(rows))


def test_tables_hold_what_the_paper_prints():
    assert set(list_tables()) == {"1", "2", "3", "4", "5", "gaussian"}
    assert load_table("1").published("KiT") == (39.80, 0.972, 39.96, 0.956)
    assert load_table("1").published("DAGL") == (None, None, 39.83, 0.957)
    assert load_table("2").published("KiT") == (32.70, 0.959, 30.98, 0.942)
    rain = load_table("3")
    for name in ("KiT", "MPRNet", "PreNet"):
        *sets, mean, mean_part = rain.published(name)
        # The printed means are of the printed columns: within what their rounding can make.
        assert np.mean(sets[0::2]) == pytest.approx(mean, abs=0.0101)
        if name != "KiT":  # its printed mean SSIM, .929, is not the mean of its printed columns, .926
            assert np.mean(sets[1::2]) == pytest.approx(mean_part, abs=0.00101)
    settings = load_table("4")
    assert (settings.k, tuple(column.h for column in settings.columns)) == ((1, 2, 4, 8, 16), (1, 2, 4, 8, 16))
    assert settings.published("KiT, k = 2") == (39.58, 39.69, 39.75, 39.76, 39.78)
    shared = load_table("5")
    assert shared.published("KiT_S") == (39.75, 0.969)
    # The paper's own setting is the same in three tables.
    assert (
        (settings.published("KiT, k = 4")[2], 0.972) == shared.published("KiT") == load_table("1").published("KiT")[:2]
    )
    # Ours have their place, and nothing is in it that nobody measured.
    assert all(v is None for t in (settings, shared) for row in t.groups[-1].values().values() for v in row)
    assert load_table("gaussian").published("CBM3D")[:3] == (33.52, 30.71, 27.38)
    for name in list_tables():
        table = load_table(name)
        assert all(column.protocol in PROTOCOLS for column in table.columns)
        assert table.published(row_at(table.baseline, 4) if table.k else table.baseline)


def test_measured_values_stand_beside_the_published_ones():
    table = load_table("3")
    found = {
        name: [made_up_report("mine", name, "rain", pairs=(20.0 + i, 30.0 + i, 0.9))]
        for i, name in enumerate(("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200"))
    }
    filled = fill_table(table, found, {"Rain100L": (100,), "Test100": (1, 2), "Test1200": (3, 4)})
    assert filled.measured["mine"][0:2] == (30.0, 0.9)
    assert filled.measured["mine"][-2:] == (pytest.approx(32.0), pytest.approx(0.9))
    assert filled.measured["input"][0::2] == (20, 21, 22, 23, 24, pytest.approx(22))
    assert filled.gaps()["mine"][4] == pytest.approx(32.0 - 36.65)
    assert filled.gaps()["mine"][5] is None
    assert any("1 of 100 pictures" in said for said in filled.remarks())
    assert any("Test1200: 1 of 3 or 4 pictures" in said for said in filled.remarks())
    assert not any("Test100:" in said for said in filled.remarks())  # a copy of either size is whole
    text = filled.to_markdown()
    assert "| **mine** | 30.00 | 0.900 |" in text
    assert "| KiT | 30.26 | 0.904 |" in text
    assert "Lee, Choi, Sohn, Min" in text
    lines = list(csv.reader(filled.to_csv().splitlines()))
    assert {len(line) for line in lines} == {14}
    assert json.loads(json.dumps(filled.to_dict()))["gap_db"]["mine"][4] == pytest.approx(-4.65)


def test_a_table_over_k_and_h_measures_a_network_at_each(tmp_path):
    write_blocks(tmp_path, (1, 1, 48, 48, 3))
    table, model, generator = load_table("4"), KiT(SMALL).eval(), torch.Generator().manual_seed(0)
    for weight in model.parameters():  # attention, which writes nothing in an untrained network, counts too
        torch.nn.init.normal_(weight, std=0.1, generator=generator)
    methods = over_k_and_h(table, [ModelMethod(model, "mine")])
    assert [(m.model.config.k, m.model.config.n_hashes) for m in methods[:6]] == [
        *((1, h) for h in (1, 2, 4, 8, 16)),
        (2, 1),
    ]
    found = {method.name: evaluate(method, tmp_path, "float") for method in methods}
    filled = fill_table(table, {"SIDD": [*found.values()]})
    assert list(filled.measured) == ["input", *(f"mine, k = {k}" for k in table.k)]
    for k in table.k:
        row = filled.measured[f"mine, k = {k}"]
        assert row == tuple(found[f"mine[k={k},h={h}]"].means()["pairs"]["psnr"] for h in (1, 2, 4, 8, 16))
    assert len({filled.measured[f"mine, k = {k}"][0] for k in table.k}) > 2
    assert filled.gaps()["mine, k = 8"][1] == pytest.approx(filled.measured["mine, k = 8"][1] - 39.78)
    assert "| **mine, k = 2** |" in filled.to_markdown()
    assert "SIDD h = 16 PSNR" in filled.to_markdown()
    assert "on SIDD not measured" in filled.to_markdown()
    assert over_k_and_h(load_table("5"), methods) == methods
    with pytest.raises(InputError, match="input has no k and h"):
        over_k_and_h(table, [open_method("input")])


def test_what_was_not_measured_stays_blank():
    table = load_table("gaussian")
    noisy = {f"sigma {s}": (20.0, 30.0, 0.9) for s in (15, 25)}
    filled = fill_table(table, {"Kodak24": [made_up_report("mine", "Kodak24", "gaussian", **noisy)]})
    assert filled.measured["mine"] == (None,) * 3 + (30.0, 30.0) + (None,) * 7
    assert "CBSD68, McMaster, Urban100" in filled.remarks()[0]
    rain = load_table("3")
    wrong = {"Rain100L": [made_up_report("mine", "Rain100L", "rgb", pairs=(20.0, 30.0, 0.9))]}
    assert set(fill_table(rain, wrong).measured["mine"]) == {None}  # another protocol is another measure
    some = {"Rain100L": [made_up_report("mine", "Rain100L", "rain", pairs=(20.0, 30.0, 0.9))]}
    assert fill_table(rain, some).measured["mine"][-2:] == (None, None)  # no mean of fewer sets
    assert fill_table(rain, {}).measured == {}


def test_wrong_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="1, 2, 3, 4, 5, gaussian"):
        load_table("6")
    grid = list_tables()["4"].read_text(encoding="utf-8")
    for wrong in (
        grid.replace("h = 8, ", ""),
        grid.replace("k = [1,", "k = [1, 3,"),
        grid.replace("\nk = ", "\n# k = "),
    ):
        assert wrong != grid
        (tmp_path / "grid.toml").write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match="is not a table"):
            load_table(tmp_path / "grid.toml")
    good = list_tables()["2"].read_text(encoding="utf-8")
    for wrong in (
        good.replace('"SRN", 30.26,', '"SRN",'),
        good.replace("30.26", '"good"'),
        good.replace('baseline = "KiT"', 'baseline = "Kit"'),
        good.replace("note =", "remark ="),
        "[[",
    ):
        assert wrong != good
        path = tmp_path / "table.toml"
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match="is not a table"):
            load_table(path)


def test_sidd_is_measured_and_written_as_its_server_takes_it(tmp_path, changing):
    from scipy.io import loadmat

    write_blocks(tmp_path, (2, 3, 16, 24, 3))
    noisy = loadmat(tmp_path / "ValidationNoisyBlocksSrgb.mat")["ValidationNoisyBlocksSrgb"]
    clean = loadmat(tmp_path / "ValidationGtBlocksSrgb.mat")["ValidationGtBlocksSrgb"]
    for place in (tmp_path, tmp_path / "no/Idenoised.mat"):
        with pytest.raises(InputError, match="submit: "):
            submit(changing, tmp_path, place)
    assert evaluate(open_method("input"), tmp_path, limit=1).protocol.name == "float"
    report = submit(changing, tmp_path, tmp_path / "Idenoised.mat")
    written = loadmat(tmp_path / "Idenoised.mat")["Idenoised"]
    assert written.shape == (2, 3, 16, 24, 3)
    for number, row in enumerate(report.rows):
        place = divmod(number, 3)
        assert row.image == f"{place[0] + 1:04}_{place[1] + 1:02}"
        with torch.inference_mode():
            block = torch.from_numpy(noisy[place]).permute(2, 0, 1)[None].float() / 255
            restored = changing(block)[0].clamp(0, 1).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(written[place], restored, atol=1e-5)
        assert row.psnr == pytest.approx(psnr(restored, clean[place], protocol="rgb"), abs=1e-3)  # not rounded
    assert report.protocol.name == "float"


def test_dnd_is_written_and_nothing_is_measured(tmp_path):
    from scipy.io import loadmat

    write_dnd(tmp_path / "dnd")
    report = submit(open_method("input"), tmp_path / "dnd", tmp_path / "bundle")
    assert len(report.rows) == 1000
    assert {row.psnr for row in report.rows} == {None}
    assert report.means()["pairs"]["psnr"] is None
    assert [path.name for path in sorted((tmp_path / "bundle").iterdir())] == [f"{i:04}.mat" for i in range(1, 51)]
    assert loadmat(tmp_path / "bundle/0001.mat")["Idenoised"].size == 20


def test_only_sets_with_a_server_are_submitted(tmp_path):
    photo(tmp_path / "set/a.png", 0)
    with pytest.raises(InputError, match="server"):
        submit(open_method("input"), tmp_path / "set", tmp_path / "out.mat")


def test_gaussian_noise_goes_with_clean_pictures_alone(tmp_path):
    photo(tmp_path / "set/input/a.png", 1)
    photo(tmp_path / "set/target/a.png", 2)
    with pytest.raises(InputError, match="clean pictures"):
        evaluate(open_method("input"), tmp_path / "set", "gaussian")


def test_a_file_of_scores_that_cannot_be_one_is_refused_before_anything_is_measured(tmp_path):
    photo(tmp_path / "set/a.png", 1)
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\n")
    (tmp_path / "text").write_text("x")
    for place in (tmp_path / "set", tmp_path / "binary.csv", tmp_path / "text/scores.csv"):
        with pytest.raises(InputError, match="name another"):
            evaluate(open_method("input"), tmp_path / "set", csv=place)
    assert (tmp_path / "binary.csv").read_bytes() == b"\x89PNG\xff\n"


def test_a_noise_level_that_is_named_twice_is_measured_once(tmp_path):
    photo(tmp_path / "set/a.png", 1)
    report = evaluate(open_method("input"), tmp_path / "set", sigmas=(25, 25.0, 15))
    assert [row.condition for row in report.rows] == ["sigma 25", "sigma 15"]
