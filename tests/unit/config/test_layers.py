import os
from pathlib import Path

import pytest

from genrl.config.layers import Layer, combine, read_file, read_override
from genrl.errors import ConfigError


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_includes_come_first_in_their_order_and_relative_to_their_file(tmp_path):
    write(tmp_path, "parts/a.yaml", "include: deeper/c.yaml\nseed: 1\n")
    write(tmp_path, "parts/deeper/c.yaml", "seed: 0\n")
    write(tmp_path, "parts/b.yaml", "seed: 2\n")
    write(tmp_path, "parts/empty.yaml", "# nothing\n")
    main = write(
        tmp_path, "main.yaml", "include: [parts/a.yaml, parts/b.yaml, parts/a.yaml, parts/empty.yaml]\nseed: 3\n"
    )
    layers, problems = read_file(main)
    assert [layer.values.get("seed") for layer in layers] == [0, 1, 2, 0, 1, None, 3]  # the same file may come twice
    assert problems == []


def test_layers_know_the_line_of_each_key_and_a_cycle_of_includes_is_named(tmp_path):
    write(tmp_path, "a.yaml", "include: b.yaml\n")
    path = write(tmp_path, "b.yaml", "include: a.yaml\nrl:\n  max_steps: 3\n")
    (_, layer), (problem,) = read_file(path)
    assert "b.yaml -> a.yaml -> b.yaml" in problem
    assert (layer.where("rl.max_steps"), layer.where("rl.select")) == (f"{path}:3", None)
    assert (layer.get("rl.max_steps"), layer.get("rl")) == (3, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"seed={'9' * 5_000}", "the value of seed is not YAML: '9999.* an integer of more than 4,300 digits"),
        (f"rl.betas={'[' * 40}{']' * 40}", "more than 30 groups or lists inside each other"),
        (f"{'a.' * 9_999}a=1", r"names no option: 10,000 names in a row"),
        ("name=a\udce9", "surrogates not allowed"),
    ],
)
def test_an_override_that_no_reader_takes_is_named(text, reason):
    with pytest.raises(ConfigError, match=f"command line: .*{reason}"):
        read_override(text)


def test_a_pipe_or_a_device_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path / ("n" * 300), tmp_path / "a\0b"):
        ((problem,), layers) = read_file(path)[1], read_file(path)[0]
        assert layers == []
        assert problem.startswith(str(path)[:200])


def test_a_folder_is_not_a_file_and_a_missing_file_suggests_its_neighbour(tmp_path):
    assert read_file(tmp_path)[1] == [f"{tmp_path}: is a folder, not a file."]
    write(tmp_path, "beauty.yaml", "")
    assert "no such file. Did you mean 'beauty.yaml'?" in read_file(tmp_path / "beuty.yaml")[1][0]
    first = write(tmp_path, "apple.yml", "")
    assert read_file(tmp_path)[1][0].endswith(f"Give one of those in it, e.g. {first}.")


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("seed: 1\nrl: max_steps: 3\n", ":2: ", "mapping values are not allowed"),
        ("seed: 1\n\tx: 2\n", ":2: ", "cannot start any token"),
        ("seed: 1\nseed: 2\n", ":2: ", "duplicate key seed"),
        ("just words\n", ": ", "holds no options"),
        ("- 1\n- 2\n", ": ", "holds no options"),
        ("include: [3]\n", ": ", "include: 3 is not the path of a file"),
        ("rl: " + "[" * 50_000, ":", "not YAML: "),
        ("rl: " + "[" * 40 + "]" * 40, ": ", "more than 30 groups or lists inside each other, and options have five"),
        ("rl: &a {b: *a}\n", ": ", "more than 30 groups or lists"),
        ("a: &a [x, x]\n" + "".join(f"a: &a [{'*a, ' * 9}]\n" for _ in range(9)), ":", "not YAML: "),
        ("seed: " + "9" * 5_000, ": ", "this is not YAML: an integer of more than 4,300 digits"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, place, reason):
    path = write(tmp_path, "broken.yaml", text)
    _, problems = read_file(path)
    assert problems[0].startswith(f"{path}{place}")
    assert reason in problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1", 1), ("1e-5", 1e-5), ("[1, 2]", [1, 2]), ("[[]]", [[]]), ("{b: 2}", {"b": 2}), ("{}", {})),
        *(("null", None), ("~", None), ("", None), ("x=y", "x=y"), ('"1"', "1")),
        *((signs, signs) for signs in ("|", "::", ",", ";", " ", "#", "%", "-", "||", "[", "\\", "\t")),
    ],
)
def test_the_value_of_an_override_is_yaml(text, value):
    assert read_override(f"a={text}").values == {"a": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "is not an override") for text in ("words", "=3", "a..b=3", ".a=3")),
        ("a=[1,", "value of a is not YAML"),
    ],
)
def test_an_override_is_a_key_and_a_value(text, said):
    with pytest.raises(ConfigError, match=said):
        read_override(text)


def test_sections_merge_and_lists_are_replaced():
    layers = [Layer("1", {"rl": {"betas": [0.9, 0.95], "max_steps": 3}}), Layer("2", {"rl": {"betas": [0.5, 0.5]}})]
    assert combine(layers, {}) == {"rl": {"betas": [0.5, 0.5], "max_steps": 3}}


def test_another_component_drops_the_options_of_the_one_before():
    base = {"objective": {"name": "sapo"}, "layout": {"name": "sid"}}
    configured = Layer("file", {"objective": {"clip_high": 0.3}, "layout": {"order": "tail"}})
    assert combine([configured], base)["objective"] == {"name": "sapo", "clip_high": 0.3}
    switched = combine(
        [configured, Layer("flag", {"objective": "gbpo"}), Layer("line", {"objective": {"level": "item"}})], base
    )
    assert switched["objective"] == {"name": "gbpo", "level": "item"}
    assert switched["layout"] == {"name": "sid", "order": "tail"}
    again = combine([configured, Layer("flag", {"objective": "sapo"})], base)
    assert again["objective"] == {"name": "sapo", "clip_high": 0.3}
    assert base == {"objective": {"name": "sapo"}, "layout": {"name": "sid"}}  # arguments are left alone
