"""Checkpoints: exact, and found damaged wherever they are damaged."""

import contextlib
import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run.saved import assert_is_step, bytes_of, load_warned, names, save_step, tensors_of

from fastgan.errors import FastganError
from fastgan.run import checkpoint
from fastgan.run.checkpoint import load, load_latest, read_tensors, save

# ------------------------------------------------------------------------------------------- round trip


def test_values_shapes_and_dtypes_come_back_exactly(tmp_path):
    whole = torch.randn(4, 6, 5, 5)
    tied = torch.randn(8)
    group = {
        "channels_last": whole.contiguous(memory_format=torch.channels_last),
        "strided": whole[:, ::2, 1:, ::3],
        "transposed": torch.randn(3, 9).T,
        "expanded": torch.randn(1, 4).expand(3, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "count": torch.tensor(2**62 + 1),
        "flag": torch.tensor([True, False]),
        "half": torch.randn(5).bfloat16(),
        "bytes": torch.arange(256).to(torch.uint8),
        "empty": torch.empty(0, 3),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "learned": torch.nn.Parameter(torch.randn(3)),
        "tied.a": tied,
        "tied.b": tied,
        "tied.part": tied[2:5],
    }
    state = {"step": 12, "text": "déjà \N{SNOWMAN}", "nested": {"list": [1, 2.5, None, True]}, "tiny": 5e-324}
    found = load(save(tmp_path / "checkpoints", "step-12", {"all.things": group, "none": {}}, state, keep=1))
    assert found.state == state
    assert found.tensors["none"] == {}
    assert found.tensors["all.things"].keys() == group.keys()
    for key, tensor in group.items():
        back = found.tensors["all.things"][key]
        assert back.dtype == tensor.dtype, key
        assert back.shape == tensor.shape, key
        assert back.is_contiguous(), key
        assert bytes_of(back) == bytes_of(tensor), key  # NaN and -0.0 too


def test_loaded_tensors_are_writable_and_outlive_the_files(tmp_path):
    path = save_step(tmp_path, 1)
    weight = load(path).tensors["generator"]["weight"]
    for file in path.iterdir():
        file.unlink()
    weight += 1
    assert torch.equal(weight, torch.full((3, 5), 2.0))


def test_nothing_saved_yet_is_none_without_warning(tmp_path):
    assert load_warned(tmp_path / "checkpoints") == (None, [])
    assert load_warned(tmp_path) == (None, [])


def test_the_newest_are_kept_by_number_and_latest_names_the_last(tmp_path):
    for step in (8, 9, 10, 11):
        save_step(tmp_path, step, keep=2)
    assert names(tmp_path) == {"step-10", "step-11", "latest.json"}
    found, warnings = load_warned(tmp_path)
    assert_is_step(found, 11)
    assert warnings == []


def test_a_name_can_be_saved_again(tmp_path):
    save_step(tmp_path, 3)
    save(tmp_path, "step-3", tensors_of(4), {"step": 4}, keep=1)
    assert names(tmp_path) == {"step-3", "latest.json"}
    assert_is_step(load_warned(tmp_path)[0], 4)


def test_what_an_abandoned_future_left_counts_as_oldest(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    save(tmp_path, "step-2", tensors_of(2), {"step": 2}, keep=3)  # resumed from step-1, by hand
    (tmp_path / "step-2" / "state.json").write_bytes(b"")
    found, warnings = load_warned(tmp_path)
    assert_is_step(found, 1)  # not step-3, which is of the other history
    assert len(warnings) == 1
    save(tmp_path, "step-2", tensors_of(2), {"step": 2}, keep=2)
    assert names(tmp_path) == {"step-1", "step-2", "latest.json"}


def test_keep_less_than_one_is_refused(tmp_path):
    with pytest.raises(FastganError, match="at least 1, not 0"):
        save_step(tmp_path, 1, keep=0)


def test_a_hundred_megabytes_take_about_a_second(tmp_path):
    group = {f"w{i}": torch.randn(256, 1024, 10) for i in range(10)}
    start = time.perf_counter()
    path = save(tmp_path, "step-1", {"network": group}, {}, keep=1)
    saved = time.perf_counter()
    load(path)
    print(f"save {saved - start:.2f} s, load {time.perf_counter() - saved:.2f} s")
    assert time.perf_counter() - start < 10  # loose: the machine may be busy


# ------------------------------------------------------------------------------------------------- damage


def flip_bit(path: Path, at: float, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


GENERATOR, OPTIMIZER, STATE = "generator.safetensors", "optimizer.safetensors", "state.json"


DAMAGE = {
    "truncated": (lambda p: truncate(p / GENERATOR), r"generator.safetensors is damaged: .* bytes"),
    "grown": (lambda p: append(p / GENERATOR), r"generator.safetensors is damaged: .* bytes instead of"),
    "bit in tensors": (lambda p: flip_bit(p / OPTIMIZER, 1), r"optimizer.safetensors is damaged: its SHA"),
    "bit in header": (lambda p: flip_bit(p / OPTIMIZER, 0.2), r"optimizer.safetensors is damaged: its SHA"),
    "no tensors": (lambda p: (p / GENERATOR).unlink(), r"generator.safetensors is missing"),
    "state cut": (lambda p: truncate(p / STATE), r"state.json is damaged"),
    "state empty": (lambda p: (p / STATE).write_bytes(b""), r"state.json is damaged"),
    "no state": (lambda p: (p / STATE).unlink(), r"state.json is missing"),
    "folder for state": (lambda p: (p / STATE).rename(p / "x") and (p / STATE).mkdir(), r"is a directory"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_one_is_taken(tmp_path, kind):
    damage, message = DAMAGE[kind]
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    damage(tmp_path / "step-3")
    with pytest.raises(FastganError, match=message):
        load(tmp_path / "step-3")
    found, warnings = load_warned(tmp_path)
    assert_is_step(found, 2)
    assert len(warnings) == 1
    assert "step-3" in warnings[0]
    assert warnings[0].endswith("falling back to step-2")
    for step in (1, 2):
        damage(tmp_path / f"step-{step}")
    lines: list[str] = []
    with pytest.raises(FastganError, match=r"no checkpoint in .* can be read"):
        load_latest(tmp_path, lines.append)
    assert len(lines) == 3


def test_any_flipped_bit_of_the_json_files_is_found(tmp_path):
    path = save_step(tmp_path, 1)
    for file in (path / "state.json", tmp_path / "latest.json"):
        good = file.read_bytes()
        for position in range(len(good)):
            data = bytearray(good)
            data[position] ^= 1 << position % 8
            file.write_bytes(data)
            with pytest.raises(FastganError):
                checkpoint.unseal(file)
        file.write_bytes(good)
        checkpoint.unseal(file)


def test_a_removed_newest_falls_back_with_a_warning(tmp_path):
    for step in (1, 2):
        save_step(tmp_path, step)
    (tmp_path / "step-2").rename(tmp_path.parent / "elsewhere")
    found, warnings = load_warned(tmp_path)
    assert_is_step(found, 1)
    assert len(warnings) == 1
    assert "step-2 is missing" in warnings[0]
    (tmp_path / "step-1").rename(tmp_path.parent / "elsewhere too")
    with pytest.raises(FastganError, match="can be read"):  # latest.json says that there was a run
        load_latest(tmp_path, lambda line: None)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b'{"latest": "step-1"}', b"\xff\xfe"])
def test_without_a_good_latest_json_the_folder_is_used(tmp_path, content):
    for step in (9, 10):
        save_step(tmp_path, step)
    if content is None:
        (tmp_path / "latest.json").unlink()
    else:
        (tmp_path / "latest.json").write_bytes(content)
    found, warnings = load_warned(tmp_path)
    assert_is_step(found, 10)
    assert len(warnings) == 1
    assert "latest.json" in warnings[0]


def reseal(path: Path, **changes) -> None:
    """state.json with other content and a matching hash."""
    head = checkpoint.unseal(path / "state.json")
    (path / "state.json").write_bytes(checkpoint.seal(json.dumps({**head, **changes})))


def test_a_schema_from_the_future_says_so_and_does_not_fall_back(tmp_path):
    for step in (1, 2):
        save_step(tmp_path, step)
    reseal(tmp_path / "step-2", schema=99, versions={"fastgan": "7.1"}, files="in another form")
    with pytest.raises(FastganError, match=r"newer fastgan \(7.1, schema 99.*upgrade fastgan"):
        load_latest(tmp_path, lambda line: None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


RECORD = st.fixed_dictionaries({}, optional={"bytes": JSON, "sha256": JSON})


PATHS = ["generator.safetensors", "../x.safetensors", "/etc/x.safetensors", "state.json", ""]


FILES = JSON | st.dictionaries(st.sampled_from(PATHS), RECORD)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.builds(lambda text: checkpoint.seal(text), st.text(max_size=60)))
def test_any_bytes_as_state_give_a_clear_error(tmp_path, data):
    path = tmp_path / "step-1"
    path.mkdir(exist_ok=True)
    (path / "state.json").write_bytes(data)
    with pytest.raises(FastganError):
        load(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=JSON | st.just(1), versions=JSON | st.just({}), files=FILES, state=JSON | st.just({}))
def test_any_json_as_state_gives_a_clear_error_or_nothing_wrong(tmp_path, schema, versions, files, state):
    path = tmp_path / "step-1"
    if not path.exists():
        save_step(tmp_path, 1)
    reseal(path, schema=schema, versions=versions, files=files, state=state)
    with contextlib.suppress(FastganError):
        assert load(path).tensors == {}


def test_files_outside_the_checkpoint_are_not_read(tmp_path):
    for step in (1, 2):
        save_step(tmp_path, step)
    record = checkpoint.unseal(tmp_path / "step-1" / "state.json")["files"]["generator.safetensors"]
    for file in ("../step-1/generator.safetensors", str(tmp_path / "step-1" / "generator.safetensors")):
        reseal(tmp_path / "step-2", files={file: record})
        with pytest.raises(FastganError, match="does not list the files of a checkpoint"):
            load(tmp_path / "step-2")


def test_deep_nesting_and_endless_numbers_are_damage(tmp_path):
    for body in ("[" * 100_000, "9" * 10_000):
        (tmp_path / "state.json").write_bytes(checkpoint.seal(body))
        with pytest.raises(FastganError, match="damaged"):
            load(tmp_path)


def test_a_file_that_is_not_safetensors_is_named(tmp_path):
    path = save_step(tmp_path, 1)
    (path / "generator.safetensors").write_bytes(b"hello")
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    reseal(path, files={"generator.safetensors": {"bytes": 5, "sha256": digest}})
    with pytest.raises(FastganError, match=r"generator.safetensors is not a safetensors file"):
        load(path)


def test_a_single_file_can_be_read(tmp_path):
    path = save_step(tmp_path, 1)
    assert torch.equal(read_tensors(path / "generator.safetensors")["weight"], torch.ones(3, 5))
    with pytest.raises(FastganError, match=r"state.json is not a safetensors file"):
        read_tensors(path / "state.json")
    with pytest.raises(FastganError, match=r"nowhere.safetensors is missing"):
        read_tensors(path / "nowhere.safetensors")
