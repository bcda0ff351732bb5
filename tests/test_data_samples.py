"""Data sets in the layouts that people have, read a sample at a time, and the files that benchmarks' servers take."""

import os
import tracemalloc

import numpy as np
import pytest
import scipy.io

from kithkin.data import Pairs, open_samples, write_dnd_bundle, write_sidd_results
from kithkin.data.mat5 import write_variable
from kithkin.errors import InputError, KithkinError

from layouts import (
    matlab73,
    picture,
    write,
    write_blocks,
    write_dnd,
    write_gopro,
    write_lmdb,
    write_pairs,
    write_sidd_originals,
)


def same(found, expected):
    return found.dtype == expected.dtype and np.array_equal(found, expected)


# Folders of pictures


@pytest.mark.parametrize("sides", [("input", "target"), ("input_crops", "target_crops"), ("input_crops", "gt_crops")])
def test_pairs(tmp_path, sides):
    samples = open_samples(write_pairs(tmp_path, ["a", "deep/b"], sides))
    assert samples.names == ["a.png", "deep/b.png"]
    assert len(samples) == 2
    assert samples[1].name == "deep/b.png"
    assert same(samples[1].input, picture(2))
    assert same(samples[1].target, picture(3))


def test_photos_have_no_input(tmp_path):
    write(tmp_path / "x" / "1.png", picture(1))
    write(tmp_path / "0.png", picture(0))
    samples = open_samples(tmp_path)
    assert samples.names == ["0.png", "x/1.png"]
    assert [sample.input for sample in samples] == [None, None]
    assert same(samples[1].target, picture(1))


def test_gopro_originals_pair_blur_with_sharp_and_never_blur_gamma(tmp_path):
    samples = open_samples(write_gopro(tmp_path))
    assert samples.names == [f"GOPR038{s}_11_0{s - 4}/{f:06}.png" for s in (4, 5) for f in (1, 2)]
    assert same(samples[3].input, picture(110))
    assert same(samples[3].target, picture(111))


def test_one_scene_of_gopro(tmp_path):
    samples = open_samples(write_gopro(tmp_path) / "GOPR0384_11_00")
    assert samples.names == ["000001.png", "000002.png"]
    assert same(samples[0].target, picture(1))


def test_train_and_test_are_never_read_as_one(tmp_path):
    for part in ("train", "test"):
        write_gopro(tmp_path / part, scenes=(part,))
    with pytest.raises(InputError, match="training and the test part of GoPro"):
        open_samples(tmp_path)
    assert open_samples(tmp_path, "gopro").names == ["test/000001.png", "test/000002.png"]
    assert open_samples(tmp_path, "gopro", part="train").names == ["train/000001.png", "train/000002.png"]


def test_sidd_originals(tmp_path):
    folder = write_sidd_originals(tmp_path / "SIDD_Medium_Srgb")
    for samples in (open_samples(folder / "Data"), open_samples(folder, "sidd"), open_samples(tmp_path, "sidd")):
        assert len(samples) == 6
        assert samples.names[3] == "0002_001_S6_00100_00060_3200_L/0002_SRGB_011.PNG"
        assert same(samples[3].input, picture(310))
        assert same(samples[3].target, picture(311))


def test_polyu_and_hide_as_their_authors_name_them(tmp_path):
    write(tmp_path / "CroppedImages" / "Sony_1_real.png", picture(0))
    write(tmp_path / "CroppedImages" / "Sony_1_mean.png", picture(1))
    (sample,) = open_samples(tmp_path, "polyu")
    assert sample.name == "Sony_1.png"
    assert same(sample.target, picture(1))
    hide = tmp_path / "HIDE_dataset"
    write(hide / "test" / "test-close-ups" / "1.png", picture(2))
    write(hide / "test" / "test-long-shot" / "2.png", picture(4))
    for name in (1, 2, 3):
        write(hide / "GT" / f"{name}.png", picture(2 * name + 1))
    write(hide / "train" / "3.png", picture(6))
    samples = open_samples(hide, "hide")
    assert samples.names == ["1.png", "2.png"]
    assert same(samples[1].target, picture(5))


def test_realblur_is_split_by_its_list(tmp_path):
    name = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    for scene in (1, 2):
        for n in (1, 2):
            write(tmp_path / name / f"scene00{scene}" / "blur" / f"blur_{n}.png", picture(10 * scene + n))
            write(tmp_path / name / f"scene00{scene}" / "gt" / f"gt_{n}.png", picture(100 + 10 * scene + n))
    with pytest.raises(InputError, match=r"RealBlur_J_test_list\.txt.*put it there"):
        open_samples(tmp_path, "realblur-j")
    lines = [f"{name}/scene002/gt/gt_{n}.png {name}/scene002/blur/blur_{n}.png" for n in (1, 2)]
    (tmp_path / "RealBlur_J_test_list.txt").write_text("\n".join(lines) + "\n")
    for folder in (tmp_path, tmp_path / name):
        samples = open_samples(folder, "realblur-j")
        assert samples.names == ["scene002/1.png", "scene002/2.png"]
        assert same(samples[1].target, picture(122))
    (tmp_path / "RealBlur_J_test_list.txt").write_text(lines[0] + "\n" + lines[1].replace("_2.png", "_7.png"))
    with pytest.raises(InputError, match="scene002/7"):
        open_samples(tmp_path, "realblur-j")


def test_a_named_set_is_found_within_a_folder_of_many(tmp_path):
    write_pairs(tmp_path / "Datasets" / "test" / "GoPro", ["1"])
    write_pairs(tmp_path / "Datasets" / "test" / "Rain100L", ["1", "2"])
    assert len(open_samples(tmp_path / "Datasets", "gopro")) == 1
    assert len(open_samples(tmp_path / "Datasets", "Rain100L")) == 2
    with pytest.raises(InputError, match="test2800 .*is expected as test/Test2800/"):
        open_samples(tmp_path / "Datasets", "test2800")


def test_a_training_set_may_lie_as_its_authors_give_it_out(tmp_path):
    pairs = Pairs([write_sidd_originals(tmp_path / "a")])
    assert len(pairs) == 6
    assert same(pairs[0][1], picture(201))
    for part in ("train", "test"):
        write_gopro(tmp_path / "b" / part)
    with pytest.raises(InputError, match="training and the test part of GoPro"):
        Pairs([tmp_path / "b"])
    with pytest.raises(InputError, match="LMDB databases.*kithkin data prepare pairs"):
        Pairs([databases(tmp_path / "c")])


# LMDB


def databases(folder, names=("input_crops.lmdb", "gt_crops.lmdb")):
    for j, name in enumerate(names):
        write_lmdb(folder / name, {f"000{i}_s001": picture(2 * i + j) for i in range(3)})
    return folder


@pytest.mark.parametrize("names", [("input_crops.lmdb", "gt_crops.lmdb"), ("input.lmdb", "target.lmdb")])
def test_lmdb_pairs(tmp_path, names):
    samples = open_samples(databases(tmp_path, names))
    again = open_samples(tmp_path)  # a database may be open only once in a process
    assert samples.names == again.names == ["0000_s001", "0001_s001", "0002_s001"]
    assert same(again[2].input, picture(4))
    assert same(samples[2].target, picture(5))


def test_lmdb_that_is_not_whole(tmp_path):
    databases(tmp_path / "a")
    write_lmdb(tmp_path / "a" / "gt_crops.lmdb", {"0009_s001": picture(1)})
    with pytest.raises(InputError, match="1 keys are in one database alone: 0009_s001"):
        open_samples(tmp_path / "a")
    (databases(tmp_path / "b") / "gt_crops.lmdb" / "data.mdb").unlink()
    with pytest.raises(InputError, match=r"no target.lmdb or .*gt_crops.lmdb with a data.mdb"):
        open_samples(tmp_path / "b")
    (databases(tmp_path / "c") / "gt_crops.lmdb" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"gt_crops.lmdb is damaged"):
        open_samples(tmp_path / "c")
    databases(tmp_path / "d")
    write_lmdb(tmp_path / "d" / "gt_crops.lmdb", {"0001_s001": picture(1, 8, 8)})
    with pytest.raises(InputError, match=r"0001_s001 is \(40, 56, 3\), its partner is \(8, 8, 3\)"):
        open_samples(tmp_path / "d")[1]


# SIDD's blocks


@pytest.mark.parametrize("compressed", [True, False])
def test_sidd_blocks_are_in_matlabs_order(tmp_path, compressed):
    arrays = write_blocks(tmp_path, compressed=compressed)
    samples = open_samples(tmp_path)
    assert samples.names == ["0001_01", "0001_02", "0002_01", "0002_02", "0003_01", "0003_02"]
    for index, (image, block) in enumerate((i, b) for i in range(3) for b in range(2)):
        assert same(samples[index].input, arrays["ValidationNoisyBlocksSrgb"][image, block])
        assert same(samples[index].target, arrays["ValidationGtBlocksSrgb"][image, block])
    assert same(samples[-1].target, arrays["ValidationGtBlocksSrgb"][2, 1])
    with pytest.raises(IndexError):
        samples[6]


def test_other_variables_before_the_blocks_are_passed_over(tmp_path):
    arrays = write_blocks(tmp_path)
    key = "ValidationGtBlocksSrgb"
    cell = np.empty(2, object)
    cell[:] = ["text", np.arange(3.0)]
    before = {"a": np.arange(5, dtype=np.int16), "s": {"x": 1.5}, "c": cell, "t": "text", "tiny": np.uint8(7)}
    scipy.io.savemat(tmp_path / f"{key}.mat", {**before, key: arrays[key]}, do_compression=True)
    assert same(open_samples(tmp_path)[3].target, arrays[key][1, 1])


def test_blocks_larger_than_a_piece(tmp_path, monkeypatch):
    """Many pieces, the last of them short, give the same as one."""
    import kithkin.data.sidd as module

    monkeypatch.setattr(module, "_PIECE", 6 * 7)
    arrays = write_blocks(tmp_path)
    samples = open_samples(tmp_path)
    assert all(
        same(samples[2 * i + b].input, arrays["ValidationNoisyBlocksSrgb"][i, b]) for i in range(3) for b in (0, 1)
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_sidd_blocks_are_never_in_memory_as_a_whole(tmp_path, compressed):
    shape = (40, 32, 96, 96, 3)  # 35 MB
    zeros = np.zeros(shape, np.uint8)
    zeros[-1, -1] = 9
    write_blocks(
        tmp_path, (1, 1, 1, 1, 3), compressed=compressed, ValidationNoisyBlocksSrgb=zeros, ValidationGtBlocksSrgb=zeros
    )
    del zeros
    tracemalloc.start()
    samples = open_samples(tmp_path)
    for sample in samples:
        assert sample.input.shape == (96, 96, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sample.target.min() == 9
    assert peak < 16e6


def test_blocks_that_are_something_else(tmp_path):
    key = "ValidationNoisyBlocksSrgb"
    for name, array, said in (
        (
            "raw",
            np.zeros((2, 2, 8, 8), np.float32),
            r"is float32 \(2, 2, 8, 8\), expected uint8 \(40, 32, 256, 256, 3\)",
        ),
        ("double", np.zeros((2, 2, 8, 8, 3)), "is float64"),
        (
            "other",
            np.zeros((2, 1, 8, 8, 3), np.uint8),
            r"is \(2, 1, 8, 8, 3\) but ValidationGt\w+ is \(3, 2, 8, 6, 3\)",
        ),
        ("none", None, rf"{key}\.mat does not exist"),
    ):
        write_blocks(tmp_path / name, **{key: array})
        with pytest.raises(InputError, match=said):
            open_samples(tmp_path / name)
    write_blocks(tmp_path / "key")
    scipy.io.savemat(tmp_path / "key" / f"{key}.mat", {"BenchmarkNoisyBlocksSrgb": np.zeros((1, 1, 8, 8, 3), np.uint8)})
    with pytest.raises(InputError, match=rf"holds no variable {key} \(only BenchmarkNoisyBlocksSrgb\)"):
        open_samples(tmp_path / "key")
    write_blocks(tmp_path / "new")
    matlab73(tmp_path / "new" / f"{key}.mat").close()
    with pytest.raises(InputError, match=r"7\.3 .*save it with -v7"):
        open_samples(tmp_path / "new")
    write_blocks(tmp_path / "text")
    (tmp_path / "text" / f"{key}.mat").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="no MATLAB file of version 5; download it again"):
        open_samples(tmp_path / "text")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("left", [0, 100, 130, 180, 0.5, 0.999])
def test_a_file_that_was_cut_short(tmp_path, compressed, left):
    write_blocks(tmp_path, (4, 4, 16, 16, 3), compressed=compressed)
    path = tmp_path / "ValidationGtBlocksSrgb.mat"
    size = os.path.getsize(path)
    os.truncate(path, int(size * left) if 0 < left < 1 else left)
    with pytest.raises(InputError, match=r"ValidationGt.*(damaged|no MATLAB file).*download it again"):
        open_samples(tmp_path)[0]


@pytest.mark.parametrize("compressed", [True, False])
def test_no_damage_goes_unnoticed_or_gives_another_error(tmp_path, compressed):
    """Bytes of the file, each changed in turn: an error that names the file, or the blocks all the same. Only numbers
    that are not compressed have no checksum."""
    blocks = write_blocks(tmp_path, compressed=compressed)["ValidationGtBlocksSrgb"]
    path = tmp_path / "ValidationGtBlocksSrgb.mat"
    whole = path.read_bytes()
    places = range(116, len(whole), 3) if compressed else range(116, whole.index(blocks.tobytes(order="F")))
    refused = 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= 0x55
        path.write_bytes(data)
        try:
            found = [sample.target for sample in open_samples(tmp_path)]
        except InputError:
            refused += 1
        else:
            assert np.array_equal(np.reshape(found, blocks.shape), blocks)
    assert refused > len(places) / 2


def test_a_file_with_a_wrong_byte(tmp_path):
    write_blocks(tmp_path)
    path = tmp_path / "ValidationGtBlocksSrgb.mat"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the checksum: every block still inflates
    path.write_bytes(data)
    with pytest.raises(InputError, match="ValidationGt.*damaged.*download it again"):
        open_samples(tmp_path)[0]


# DND


def test_dnd_crops(tmp_path):
    pictures, boxes = write_dnd(tmp_path)
    samples = open_samples(tmp_path)
    assert len(samples) == 1000
    assert samples.names[0] == "0001_01"
    assert samples.names[999] == "0050_20"
    for image, box in ((0, 0), (0, 19), (17, 4), (49, 19)):
        top, left, bottom, right = boxes[image][box]
        sample = samples[20 * image + box]
        assert sample.name == f"{image + 1:04}_{box + 1:02}"
        assert sample.target is None
        assert sample.input.shape == (32, 24, 3)
        assert same(sample.input, pictures[image][top - 1 : bottom, left - 1 : right])


def test_dnd_that_is_something_else(tmp_path):
    write_dnd(tmp_path, images=2)
    image = tmp_path / "images_srgb" / "0002.mat"
    with matlab73(image) as file:
        file["Inoisy"] = np.zeros((90, 70), np.float32)
    with pytest.raises(InputError, match=r"0002\.mat holds Inoisy, expected InoisySRGB; that is the raw half"):
        open_samples(tmp_path)[20]
    with matlab73(image) as file:
        file["InoisySRGB"] = np.zeros((3, 90, 70), np.uint8)
    with pytest.raises(InputError, match=r"0002\.mat: InoisySRGB is uint8 \(3, 90, 70\), expected floats"):
        open_samples(tmp_path)[20]
    with matlab73(image) as file:
        file["InoisySRGB"] = np.zeros((3, 20, 20), np.float32)
    with pytest.raises(InputError, match=r"0002\.mat is 20×20, but box 1 of info\.mat reaches"):
        open_samples(tmp_path)[20]
    os.truncate(image, 700)
    with pytest.raises(InputError, match=r"0002\.mat is damaged or no MATLAB 7\.3 file"):
        open_samples(tmp_path)[20]
    image.unlink()
    with pytest.raises(InputError, match=r"0002\.mat does not exist"):
        open_samples(tmp_path)[20]
    with matlab73(tmp_path / "info.mat") as file:
        file["information"] = np.zeros(3)
    with pytest.raises(InputError, match=r"info\.mat holds information, expected info/boundingboxes"):
        open_samples(tmp_path)


@pytest.mark.parametrize(
    ("module", "make", "said"),
    [("h5py", write_dnd, r"info\.mat \(HDF5\) needs h5py"), ("lmdb", databases, r"input_crops\.lmdb needs lmdb")],
)
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, module, make, said):
    make(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(InputError, match=said + r'; install it with: pip install "kithkin\[data\]"'):
        open_samples(tmp_path)


# What is refused


def test_folders_that_hold_nothing_that_fits(tmp_path):
    with pytest.raises(InputError, match="missing is not a folder"):
        open_samples(tmp_path / "missing")
    with pytest.raises(InputError, match="missing is not a folder"):
        open_samples(tmp_path / "missing", "gopro")
    with pytest.raises(InputError, match="holds no picture"):
        open_samples(tmp_path)
    with pytest.raises(InputError, match="no data set is called 'gopr0'; there are sidd, "):
        open_samples(tmp_path, "gopr0")
    write_pairs(tmp_path / "pairs", ["1"])
    with pytest.raises(InputError, match="holds folders of inputs and targets, but cbsd68 .*clean pictures alone"):
        open_samples(tmp_path / "pairs", "cbsd68")
    with pytest.raises(InputError, match=r"holds pictures, but dnd .*is expected as info\.mat"):
        open_samples(tmp_path / "pairs" / "input", "dnd")
    with pytest.raises(InputError, match="gopro has no part 'val'; it has test, train"):
        open_samples(tmp_path / "pairs", "gopro", part="val")


def test_a_missing_partner_and_a_missing_side(tmp_path):
    write_pairs(tmp_path / "a", ["1", "2"])
    (tmp_path / "a" / "target" / "2.png").unlink()
    with pytest.raises(KithkinError, match=r"a: 1 pictures have no partner of the same name: input/2\.png"):
        open_samples(tmp_path / "a")
    write_gopro(tmp_path / "b")
    (tmp_path / "b" / "GOPR0385_11_01" / "sharp" / "000001.png").unlink()
    with pytest.raises(KithkinError, match=r"no partner.*GOPR0385_11_01/blur/000001\.png"):
        open_samples(tmp_path / "b")
    write(tmp_path / "c" / "target" / "1.png", picture(1))
    with pytest.raises(KithkinError, match="has no folder input or input_crops"):
        open_samples(tmp_path / "c")


# Results for the servers


def restored(index, shape=(16, 12, 3)):
    return np.random.RandomState(index).rand(*shape).astype(np.float32)


def test_sidd_results(tmp_path):
    path = tmp_path / "Idenoised.mat"
    write_sidd_results((restored(i) for i in range(15)), path, images=5, per_image=3)
    assert scipy.io.whosmat(path) == [("Idenoised", (5, 3, 16, 12, 3), "single")]
    found = scipy.io.loadmat(path)["Idenoised"]
    assert found.dtype == np.float32
    assert all(np.array_equal(found[i, b], restored(3 * i + b)) for i in range(5) for b in range(3))
    assert [p.name for p in tmp_path.iterdir()] == ["Idenoised.mat"]


def test_sidd_results_are_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "Idenoised.mat"
    tracemalloc.start()
    block = np.full((48, 48, 3), 0.25, np.float32)  # 35 MB of them
    write_sidd_results((block for _ in range(1280)), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    assert scipy.io.whosmat(path) == [("Idenoised", (40, 32, 48, 48, 3), "single")]
    assert os.path.getsize(path) > 35e6


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], r"expected 4 blocks \(2 × 2\), got 0"),
        ([restored(0)] * 3, "got 3"),
        ([restored(0)] * 5, "got 5"),
        ([restored(0), restored(1, (8, 8, 3))], r"block 2 is \(8, 8, 3\)"),
        ([restored(0), 2 * restored(0)], "block 2 has values outside"),
        ([restored(0), restored(0) * np.nan], "block 2 has values outside"),
        ([(restored(0) * 255).astype(np.uint8)], "block 1 is uint8.*divide by 255"),
    ],
)
def test_sidd_results_that_are_not_right_leave_no_file(tmp_path, blocks, said):
    with pytest.raises(InputError, match=said):
        write_sidd_results(iter(blocks), tmp_path / "Idenoised.mat", images=2, per_image=2)
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(InputError, match=f"holds less than {2**31}"):
        write_variable(tmp_path / "a.mat", "a", (2**28, 2), "float32", [])


def test_doubles_are_written_too(tmp_path):
    values = np.random.RandomState(0).rand(3, 5)
    write_variable(tmp_path / "a.mat", "some_name", (3, 5), "float64", [values.T[:2], values.T[2:]])
    assert same(scipy.io.loadmat(tmp_path / "a.mat")["some_name"], values)


def test_dnd_bundle(tmp_path):
    """The form of DND's own ``bundle_submissions_srgb``: a cell of 20 arrays, a logical, a text."""
    written = write_dnd_bundle((restored(i) for i in range(1000)), tmp_path / "bundle")
    assert [path.name for path in written] == [f"{i:04}.mat" for i in range(1, 51)]
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == [path.name for path in written]
    found = scipy.io.loadmat(written[17])
    assert found["Idenoised"].shape == (1, 20)
    assert found["Idenoised"].dtype == object
    assert found["Idenoised"][0, 3].dtype == np.float32
    assert all(np.array_equal(found["Idenoised"][0, b], restored(17 * 20 + b)) for b in range(20))
    assert found["eval_version"] == "1.0"
    assert found["israw"].shape == (1, 1)
    assert not found["israw"][0, 0]
    kinds = {name: kind for name, _, kind in scipy.io.whosmat(written[0])}
    assert kinds == {"Idenoised": "cell", "israw": "logical", "eval_version": "char"}


@pytest.mark.parametrize("count", [999, 1001])
def test_a_dnd_bundle_of_another_number(tmp_path, count):
    with pytest.raises(InputError, match=f"expected 1000 crops, got {count}"):
        write_dnd_bundle((np.zeros((2, 2, 3)) for _ in range(count)), tmp_path)


def test_a_dnd_bundle_of_wrong_values(tmp_path):
    with pytest.raises(InputError, match="crop 1 has values outside"):
        write_dnd_bundle([restored(0) + 1], tmp_path)
